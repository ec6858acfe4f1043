"""Keeps the working folder out of imports that the standard library can't serve.

On every system ``subprocess`` tries to import ``msvcrt``, and ``pickle`` tries ``org``.  A file of
that name in the working folder is the user's, and not meant.
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
    """Return where to find a module that our code imports, or the library on its behalf.

    The library itself does not have it.  None: the ordinary finders should look for it.  Raises
    ImportError if it is nowhere, or in the working folder or the script's only.
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
    """Whether a module of the library wants it for itself, not on behalf of its caller."""
    frame: FrameType | None = sys._getframe(3)  # what has the import
    while frame is not None and "frozen importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    file = frame.f_code.co_filename if frame is not None else ""
    return library.has(file) and "importlib" not in file
