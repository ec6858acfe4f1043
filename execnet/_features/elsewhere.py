"""Imports of the standard library that it lacks, which are not to be found in the working folder.

``subprocess`` asks for ``msvcrt``, and ``pickle`` for ``org``, on every system.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import FrameType

    from .start import _StandardLibrary


def find_spec(library: _StandardLibrary, name: str) -> ModuleSpec | None:
    """Return where a module is that our code or the library imports, but that this does not have.

    None: it is for the ordinary finders.  Raises ImportError if nobody but the user has it.
    """
    if name not in getattr(sys, "stdlib_module_names", ()) and not _is_by_library(library):
        return None
    try:
        here = ["", os.getcwd(), sys.path[0]]
    except (EnvironmentError, IndexError):  # the folder is gone
        here = [""]
    found = library.find(name, [place for place in sys.path if place not in here])
    if found is None:
        raise ModuleNotFoundError("No module named %r" % (name,), name=name)
    return found


def _is_by_library(library: _StandardLibrary) -> bool:
    """Whether the library imports it for itself, and not what it was called with."""
    frame: FrameType | None = sys._getframe(3)  # what has the import
    while frame is not None and frame.f_code.co_filename.startswith("<frozen "):
        frame = frame.f_back
    file = frame.f_code.co_filename if frame is not None else ""
    return library.has(file) and "importlib" not in file
