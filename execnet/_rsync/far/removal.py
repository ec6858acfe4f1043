"""Removes names from a target with everything below them, however deep; follows no link.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Removal.remove``.
"""

from __future__ import annotations

import errno
import os
import stat

from .places import O_NOFOLLOW, O_OLD, O_PATH, SEP, at, names_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Handle, Identity


    Spare = Callable[[bytes, bool], bool]
    Tell = Callable[[bytes, bool], object]


class Frame:
    """A directory that is being emptied."""

    __slots__ = ("has_rest", "identity", "name", "names")

    def __init__(self, name: bytes, names: list[bytes], identity: Identity | None) -> None:
        self.name = name
        self.names = names  # still to be removed, the first one last
        self.identity = identity  # recognises it on the way up
        self.has_rest = False  # something stays in it, and so it stays


class Removal:
    """Removes names of one directory; ``count`` says how many, those below them included.

    handle: of the directory.  path: its path below the root, for the next two.
    spare: takes (path, whether it is a directory) and returns whether that stays, with its content.
    tell: takes the same of what would be removed, in order; then nothing is removed.
    is_source: whether a directory is what all is copied from, which is never removed.
    However deep it goes, one descriptor is open at a time, two for a moment.
    """

    def __init__(
        self, handle: Handle, path: bytes = b"", spare: Spare | None = None,
        tell: Tell | None = None, is_source: Callable[[Identity], bool] | None = None
    ) -> None:  # fmt: skip
        self.count = 0
        self._handle = handle
        self._path = path
        self._spare = spare
        self._tell = tell
        self._is_source = is_source
        self._frames: list[Frame] = []
        self._error: OSError | None = None  # the first one

    def remove(self, name: bytes) -> bool:
        """Remove a name; return whether it is gone, or would be.

        What cannot be removed stays, and the rest is removed; then its OSError is raised.
        """
        here, self._error = self._handle, None
        self._frames = [Frame(b"", [name], None)]
        try:
            while True:
                frame = self._frames[-1]
                if frame.names:
                    here = self._take(here, frame, frame.names.pop())
                elif len(self._frames) > 1:
                    here = self._leave(here)
                else:
                    break
        finally:
            self._close(here)
        if self._error is not None:
            raise self._error
        return not frame.has_rest

    def _take(self, here: Handle, frame: Frame, name: bytes) -> Handle:
        """Remove a name, or enter it; return the handle of where to go on."""
        path, where = at(here, name)
        try:
            is_directory = stat.S_ISDIR(os.lstat(path, **where).st_mode)
            if self._spare is not None and self._spare(self._path_of(name), is_directory):
                frame.has_rest = True
                return here
            if is_directory:
                return self._enter(here, name)
            if self._tell is None:
                os.unlink(path, **where)
        except OSError as exc:
            self._fail(frame, exc)
        else:
            self._went(name, False)
        return here

    def _enter(self, here: Handle, name: bytes) -> Handle:
        inner = enter(here, name, self._tell is None)
        try:
            identity = identity_of(inner)
            if self._is_source is not None and self._is_source(identity):
                raise OSError(errno.EBUSY, "it is the source")
            names = sorted(names_in(inner), reverse=True)
        except OSError:
            self._close(inner)
            raise
        self._frames.append(Frame(name, names, identity))
        self._close(here)
        return inner

    def _leave(self, inner: Handle) -> Handle:
        """Go up from an emptied directory and remove it; return the handle of where to go on."""
        here = self._climb(inner)
        left, frame = self._frames.pop(), self._frames[-1]
        if left.has_rest:
            frame.has_rest = True
            return here
        path, where = at(here, left.name)
        try:
            if self._tell is None:
                os.rmdir(path, **where)
        except OSError as exc:
            self._fail(frame, exc)
        else:
            self._went(left.name, True)
        return here

    def _climb(self, inner: Handle) -> Handle:
        if not isinstance(inner, int):
            return inner[: -len(SEP + self._frames[-1].name)]
        if len(self._frames) == 2:
            os.close(inner)
            return self._handle
        here = os.open(b"..", O_OLD | os.O_DIRECTORY, dir_fd=inner)
        if identity_of(here) != self._frames[-2].identity:
            os.close(here)
            raise OSError(errno.ENOENT, "was moved while it was being emptied")
        os.close(inner)
        return here

    def _close(self, here: Handle) -> None:
        if isinstance(here, int) and here != self._handle:
            os.close(here)

    def _fail(self, frame: Frame, exc: OSError) -> None:
        if exc.errno != errno.ENOENT:  # else somebody else removed it first
            frame.has_rest = True
            self._error = self._error or exc

    def _went(self, name: bytes, is_directory: bool) -> None:
        self.count += 1
        if self._tell is not None:
            self._tell(self._path_of(name), is_directory)

    def _path_of(self, name: bytes) -> bytes:
        parts = [frame.name for frame in self._frames[1:]] + [name]
        return b"/".join([self._path] + parts if self._path else parts)


def enter(handle: Handle, name: bytes, may_open_up: bool) -> Handle:
    """Return a handle of a directory in another, changing its mode if it has to and may."""
    if not isinstance(handle, int):
        path = handle + SEP + name
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, "is not a directory any more")
        if may_open_up and mode & 0o700 != 0o700:
            os.chmod(path, stat.S_IMODE(mode) | 0o700)
        return path
    flags = O_OLD | os.O_DIRECTORY
    try:
        fd = os.open(name, flags, dir_fd=handle)
    except OSError as exc:
        if exc.errno != errno.EACCES or not may_open_up:
            raise
        make_readable(handle, name)
        fd = os.open(name, flags, dir_fd=handle)
    mode = os.fstat(fd).st_mode
    if may_open_up and mode & 0o700 != 0o700:
        try:
            os.fchmod(fd, stat.S_IMODE(mode) | 0o700)
        except OSError:
            pass  # what needs it will fail with a better message
    return fd


def make_readable(handle: int, name: bytes) -> None:
    """Make a directory of ours accessible that cannot be opened as it is; never a link's target."""
    if not O_PATH:
        os.chmod(name, 0o700, dir_fd=handle, follow_symlinks=False)
        return
    fd = os.open(name, O_PATH | os.O_DIRECTORY | O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
    try:
        os.chmod("/proc/self/fd/%d" % fd, stat.S_IMODE(os.fstat(fd).st_mode) | 0o700)
    finally:
        os.close(fd)


def identity_of(handle: Handle) -> Identity:
    found = os.fstat(handle) if isinstance(handle, int) else os.lstat(handle)
    return found.st_dev, found.st_ino


def is_empty(handle: Handle, name: bytes) -> bool:
    """Return whether a directory in another is empty; OSError if it cannot be looked at."""
    inner = enter(handle, name, False)
    try:
        return not names_in(inner)
    finally:
        if isinstance(inner, int):
            os.close(inner)
