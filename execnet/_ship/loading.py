"""The code that loads our modules in an interpreter that is to become more than a worker.

It imports them, or makes them from the source that it contains.  Start at ``code_to_load``.
"""

from __future__ import annotations

from . import parts

# These lines belong in a function, so all but the first are indented by one space.
_BY_IMPORT = """\
path, sys.path = sys.path, [{folder!r}] + [entry for entry in sys.path if entry]
 from execnet import gateway_base as base
 part = base.load_part({name!r})
 sys.path = path
"""
_BY_SOURCE = """\
file_name, source = {base!r}
 for name in "_execnet", "_execnet.gateway_base":
  base = sys.modules[name] = type(sys)(name)
  vars(base).pop("__spec__", None)
  base.__path__ = []
 del base.__path__
 base.__file__ = file_name
 exec(compile(source, file_name, "exec"), base.__dict__)
 for sent in {parts!r}:
  part = base.load_part(*sent)
"""

_BOOT = """\
import sys
def boot(options):
 search, sys.path = sys.path, [entry for entry in sys.path if entry]
 {load}
 sys.path = search
 part.run(options)
"""


def code_to_load(name: str, others: tuple[str, ...] = (), ships: bool = False) -> str:
    """Return code that defines ``base``, which is ``gateway_base``, and ``part``, a module.

    name: of the module in the package.  others: the modules that it needs, in order.
    ships: whether the interpreter has none of our source.
    """
    if not ships:
        return _BY_IMPORT.format(folder=parts.import_folder(), name=name)
    from .shipment import shipment_for

    base = parts.file_of("gateway_base"), shipment_for("thread").whole()
    sent = [(one, parts.file_of(one), parts.lowered(one)) for one in (*others, name)]
    return _BY_SOURCE.format(base=base, parts=sent)


def code_to_run(name: str, others: tuple[str, ...], ships: bool) -> str:
    """Return code that defines ``boot(options)``, which runs one of our modules.

    others, ships: as for ``code_to_load``.
    """
    return _BOOT.format(load=code_to_load(name, others, ships).rstrip())
