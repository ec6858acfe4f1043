"""Where environments are, and which of them are complete.

All of one name and key are in one folder, ``venvs/NAME-KEY``, numbered from 1: ``1`` is the
environment, at its final path; ``1.done`` is written last and says that it is complete; ``1.held``
is locked by whoever uses it, ``lock`` by whoever makes one.  A number is never used twice: a
process that outlived its maker may still write there.
This file is shipped.  Start at ``newest``.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys

from .locks import Busy, NoLocks, exclusive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRIVATE = 0o700
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
KEY = re.compile(r"[0-9a-f]{24}$")


def native(text: Any) -> Any:
    """Return a text as this Python's ``str``, which is bytes on Python 2."""
    if isinstance(text, str):
        return text
    return text.encode("utf-8") if sys.version_info[0] == 2 else text.decode("utf-8", "replace")


def text_of(value: Any) -> Any:
    """Return a ``str`` of this Python as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def root_folder(root: Any) -> Any:
    """Return the folder that everything is in: ``root``, or one in the user's cache folder."""
    if root:
        return os.path.abspath(os.path.expanduser(native(root)))
    caches = os.environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(caches):
        caches = os.path.expanduser(os.path.join("~", ".cache"))
    return os.path.join(os.path.abspath(caches), "execnet")


def make_folder(path: Any) -> None:
    """Make a folder that only this user can write; OSError if somebody else could."""
    if not os.path.isdir(path):
        try:
            os.makedirs(path, PRIVATE)
        except OSError:
            if not os.path.isdir(path):
                raise
    if hasattr(os, "geteuid"):
        status = os.stat(path)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise OSError("%s can be written by other users, so it is not used" % path)


def key_folder(root: Any, kind: str, name: Any, key: Any) -> Any:
    """Return the folder for a name and a key; kind: "venvs" or "layers"."""
    name, key = native(name), native(key)
    if not NAME.match(name) or not KEY.match(key):
        raise ValueError("not the name of an environment: %r" % (name,))
    return os.path.join(root_folder(root), kind, "%s-%s" % (name, key))


def python_of(venv: Any) -> Any:
    """Return the path of an environment's interpreter."""
    names = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(venv, *names)


def numbers_in(folder: Any) -> Any:
    """Return the numbers used in a folder, complete or not, the newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    heads = {name.partition(".")[0] for name in names}
    return sorted((int(head) for head in heads if head.isdigit()), reverse=True)


def read_marker(folder: Any, number: Any) -> Any:
    """Return the content of an environment's marker, None if it is not complete."""
    try:
        with io.open(os.path.join(folder, "%d.done" % number), encoding="utf-8") as file:
            lines = file.read().split(u"\n")
    except (EnvironmentError, ValueError):
        return None
    marker = {line.partition(u"\t")[0]: line.partition(u"\t")[2] for line in lines[:-2]}
    return marker if lines[-2:] == [u"done", u""] else None


def newest(folder: Any) -> Any:
    """Return (number, marker) of the one to use, or None."""
    for number in numbers_in(folder):
        marker = read_marker(folder, number)
        if marker is not None:
            return number, marker
    return None


def newest_venv(folder: Any) -> Any:
    """Return the same for environments.

    One whose interpreter can't run any more, as the one it was made from is gone, does not count.
    """
    found = newest(folder)
    runs = found is not None and os.access(python_of(os.path.join(folder, str(found[0]))), os.X_OK)
    return found if runs else None


def write_marker(folder: Any, number: Any, marker: Any) -> None:
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


def remove(folder: Any, number: Any) -> None:
    """Remove an environment that nobody holds, its marker first."""
    import shutil  # it takes a while, and is not needed to find one

    base = os.path.join(folder, str(number))
    for end in (".done", ".done.new"):
        _unlink(base + end)
    for path in (base, base + ".tmp"):
        if os.path.isdir(path):
            shutil.rmtree(path, onerror=_make_writable_and_go_on)
    _unlink(base + ".held")


def remove_if_free(folder: Any, number: Any) -> bool:
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


def _unlink(path: Any) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _make_writable_and_go_on(function: Any, path: Any, _: Any) -> None:
    """Make a folder writable, since its content can't be removed otherwise; packages have such."""
    try:
        os.chmod(os.path.dirname(path), PRIVATE)
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil

            os.chmod(path, PRIVATE)
            shutil.rmtree(path, True)
        else:
            function(path)
    except OSError:
        pass
