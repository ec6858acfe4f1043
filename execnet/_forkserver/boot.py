"""What makes an interpreter a template of ``popen//forkserver``: its first line.

Start at ``first_line``.
"""

from __future__ import annotations

from .._ship import parts
from .far import BROKEN

# Run by the template's interpreter.  {load} defines ``base`` and ``template``.
_BOOT = """\
import sys
def boot():
 search, sys.path = sys.path, [entry for entry in sys.path if entry]
 import os, struct
 if sys.version_info < (3, 6):
  text = b"forkserver needs Python 3.6 or newer"
  os.write(0, struct.pack("!BiI", {broken}, 0, len(text)) + text)
  return
 {load}
 sys.path = search
 base._find_standard_library()
 template.run(base, {preload!r})
boot()
"""
_BY_IMPORT = """\
path, sys.path = sys.path, [{folder!r}] + [entry for entry in sys.path if entry]
 from execnet import gateway_base as base
 from execnet._forkserver import far as template
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
 template = base.load_part("_forkserver.far", *{template!r})
"""


def first_line(preload: tuple[str, ...], ship: bool) -> bytes:
    """Return the line that makes an interpreter a template.

    preload: the modules that it is to import.  ship: whether it has no source of ours.
    """
    if ship:
        from .._ship.shipment import shipment_for

        base = parts.file_of("gateway_base"), shipment_for("thread").whole()
        name = "_forkserver.far"
        template = parts.file_of(name), parts.lowered(name)
        load = _BY_SOURCE.format(base=base, template=template)
    else:
        load = _BY_IMPORT.format(folder=parts.import_folder())
    code = _BOOT.format(load=load.rstrip(), preload=preload, broken=BROKEN)
    return (ascii(code) + "\n").encode("ascii")
