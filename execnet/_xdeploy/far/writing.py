"""Makes and removes what ``places`` tells the places of.

This file is shipped.  Start at ``write_marker``.
"""

from __future__ import annotations

import os

from .flocks import Busy, NoLocks, exclusive
from .places import PRIVATE
from .quick import check_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Marker


def make_folder(path: str) -> None:
    """Make a folder that only this user can write; OSError if somebody else could."""
    if not os.path.isdir(path):
        try:
            os.makedirs(path, PRIVATE)
        except OSError:
            if not os.path.isdir(path):
                raise
    check_owner(path)


def write_marker(folder: str, number: int, marker: Marker) -> None:
    """Mark an environment as complete; after this it never changes.

    The marker is read at every look-up, so it has plain lines: JSON is slow to import.
    """
    path = os.path.join(folder, "%d.done" % number)
    lines = [u"%s\t%s" % (name, u" ".join(text.split())) for name, text in sorted(marker.items())]
    data = u"".join(line + u"\n" for line in lines + [u"done"]).encode("utf-8")
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


def remove(folder: str, number: int) -> None:
    """Remove an environment that nobody holds, its marker first."""
    base = os.path.join(folder, str(number))
    for end in (".done", ".done.new"):
        _unlink(base + end)
    for path in (base, base + ".tmp"):
        if os.path.isdir(path):
            remove_tree(path)
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if name.startswith("%d.python-" % number):  # starts an interpreter in a tree
            _unlink(os.path.join(folder, name))
    _unlink(base + ".held")


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, also what nobody may write to."""
    import shutil  # which takes a while, and is not needed to use what is there

    shutil.rmtree(path, onerror=_make_writable_and_go_on)


def remove_if_free(folder: str, number: int) -> bool:
    """Remove it, or what is left of it, unless somebody uses it; return whether it was removed.

    Where the file system has no locks we cannot know, and it stays.
    """
    try:
        held = exclusive(os.path.join(folder, "%d.held" % number))
    except (Busy, NoLocks, OSError):
        return False
    try:
        remove(folder, number)
    finally:
        os.close(held)
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _make_writable_and_go_on(function: Callable[[str], object], path: str, _: object) -> None:
    """Make a folder writable, since its content can't be removed otherwise; packages have such."""
    import shutil

    try:
        os.chmod(os.path.dirname(path), PRIVATE)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, PRIVATE)
            shutil.rmtree(path, True)
        else:
            function(path)
    except OSError:
        pass
