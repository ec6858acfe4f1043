"""Modules that a worker loads while idle, since later it may not be able to import them.

Start at ``load``.
"""

from __future__ import annotations

import os
import sys

from ..gateway_base import FEATURE_PARTS, IDLE_MS, _import, _thread, _threading, load_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway_base import WorkerGateway

# What an established worker needs, in the order in which it is loaded, with its dependencies.
_LOADED_LATER = ["select", "_pickle", "threading", "queue", "ctypes"]
_BROUGHT_ALONG = (
    "_compat_pickle _weakrefset collections contextlib copyreg enum errno functools heapq keyword "
    "linecache operator pickle re reprlib sysconfig token tokenize traceback types warnings weakref"
)
# A fork waits for it; otherwise locks of the import system would stay taken in the child.
_loading = getattr(_thread, "RLock", _thread.allocate_lock)()


def load(gateway: WorkerGateway) -> None:
    """Import the remaining modules, one by one, until something can be read."""
    while not __import__("_imp").lock_held():
        name = (gateway._to_load or []).pop(0)
        if not name:  # the first time
            gateway._to_load = _modules_to_load()
        else:
            with _loading:
                if name in FEATURE_PARTS:
                    load_part(name)
                else:
                    _threading() if name == "threading" else _import(name)
        if not gateway._to_load or gateway._io.has_more(IDLE_MS):
            return


def _modules_to_load() -> list[str]:
    """Return the modules to load while a worker is idle; no file of the user may run for it."""
    names = set(_LOADED_LATER + _BROUGHT_ALONG.split())
    try:
        home = os.path.dirname(os.__file__)
        for folder in sys.path[: sys.path.index(home)]:
            if os.path.isdir(folder or os.curdir):
                found = os.listdir(folder or os.curdir)
                if names.intersection(name.partition(".")[0] for name in found):
                    return []
        free = _loading.release
        os.register_at_fork(before=_loading.acquire, after_in_parent=free, after_in_child=free)
    except (AttributeError, ValueError, OSError):  # an old Python, or one from a zip
        return []
    return FEATURE_PARTS + [name for name in _LOADED_LATER if name not in sys.modules]
