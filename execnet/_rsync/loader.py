"""Brings the halves of RSync to workers: several modules, sent one by one, kept there.

Start at ``load``.
"""

from __future__ import annotations

from typing import Any

from .._ship import parts

# In the order in which they import each other.
TARGET_PARTS = ("wire", "messages", "rules", "places", "removal", "temps",
                "requests", "sweeping", "linking", "target")  # fmt: skip
SOURCE_PARTS = ("wire", "messages", "rules", "places", "links", "folders", "tree", "blocks",
                "standin", "watcher", "pump", "server")  # fmt: skip

# What a worker does first: take the modules, as parts of a package that is on no disk.  Those
# that an earlier run has brought are there still.
LOADER = """
import sys, threading
parts = channel.receive()
package = sys.modules.setdefault("_execnet_rsync", type(sys)("_execnet_rsync"))
package.__path__ = []
with vars(package).setdefault("lock", threading.Lock()):
    for name, file_name, source in parts:
        full_name = str(package.__name__ + "." + name)
        if full_name not in sys.modules:
            module = type(sys)(full_name)
            module.__package__ = package.__name__
            module.__file__ = file_name
            vars(module).pop("__spec__", None)
            exec(compile(source, file_name, "exec", 0, True), module.__dict__)
            setattr(package, str(name), module)
            sys.modules[full_name] = module
sys.modules[full_name].main(channel)
"""


def load(gateway: Any, names: tuple[str, ...]) -> Any:
    """Bring modules to a worker and run the last one's ``main``; return its channel.

    Raises OSError if the worker is gone.
    """
    channel = gateway.remote_exec(LOADER)
    channel.reconfigure(py2str_as_py3str=False)  # what Python 2 calls str are bytes here
    needs_lowering = gateway._rinfo().version_info[:2] < (3, 7)
    channel.send([_part(name, needs_lowering) for name in names])
    return channel


def _part(name: str, needs_lowering: bool) -> tuple[str, str, str]:
    full_name = "_rsync.far." + name
    source = parts.lowered(full_name) if needs_lowering else parts.source_of(full_name)
    return name, parts.file_of(full_name), source
