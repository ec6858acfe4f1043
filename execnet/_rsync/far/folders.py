"""Directories of a source, and access to what is in them; no link below the root is followed.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  Start at ``Folders``.
"""

from __future__ import annotations

import errno
import os
import stat

from .places import HAS_FDS, O_NOFOLLOW, O_OLD, SEP, Handles, at, files_max, identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .places import Handle, Identity

HANDLES_MAX = 16  # directories that are kept open for one reader, where so many may be
O_READ = O_OLD


class Folders(Handles):
    """One thread's way into a source.

    Paths are relative to the root; b"" is the root itself.  identity: of the root, None if it is
    a file.
    """

    def __init__(self, root: bytes, identity: Identity | None) -> None:
        self._root = root
        self._identity = identity
        self._root_handle: Handle | None = None
        Handles.__init__(self, max(1, min(HANDLES_MAX, files_max() // 16)))

    def handle(self, path: bytes) -> Handle:
        """Return the handle of a directory; OSError if it is not a directory any more."""
        handle = self._handles.get(path)
        missing = []
        while handle is None and path:
            missing.append(path)
            path = path.rpartition(SEP)[0]
            handle = self._handles.get(path)
        if handle is None:
            handle = self._enter_root()
        for path in reversed(missing):
            handle = self._enter(path, handle)
        return handle

    def _enter_root(self) -> Handle:
        if self._root_handle is None:
            handle: Handle = self._root
            if HAS_FDS:
                handle = os.open(self._root, (O_OLD | os.O_DIRECTORY) & ~O_NOFOLLOW)
            if identity_of(os.stat(handle)) != self._identity:
                self._leave(handle)
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._root_handle = handle
        return self._root_handle

    def _enter(self, path: bytes, parent: Handle) -> Handle:
        name, where = at(parent, path.rpartition(SEP)[2])
        if HAS_FDS:
            handle: Handle = os.open(name, O_OLD | os.O_DIRECTORY, **where)
        else:
            handle = name
            if not stat.S_ISDIR(os.lstat(handle).st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._keep(path, handle)

    def close(self) -> None:
        Handles.close(self)
        if self._root_handle is not None:
            handle, self._root_handle = self._root_handle, None
            self._leave(handle)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in a directory, sorted; OSError if it is gone."""
        handle = self.handle(path)
        if isinstance(handle, int):
            found = [os.fsencode(name) for name in os.listdir(handle)]
        else:
            found = os.listdir(handle)
        if not found:
            self._check_there(path, handle)  # a removed one reads as empty, without an error
        return sorted(found)

    def _check_there(self, path: bytes, handle: Handle) -> None:
        there = self.look(path) if path else os.stat(self._root)
        known = os.fstat(handle) if isinstance(handle, int) else os.lstat(handle)
        if identity_of(there) != identity_of(known):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def look(self, path: bytes) -> os.stat_result:
        """Return the ``lstat`` of a path other than the root's."""
        outer, _, name = path.rpartition(SEP)
        name, where = at(self.handle(outer), name)
        return os.lstat(name, **where)

    def open(self, path: bytes) -> int:
        """Open a file for reading; the caller closes it.  A root that is a file may be a link."""
        if not path:
            return os.open(self._root, O_READ & ~O_NOFOLLOW)
        outer, _, name = path.rpartition(SEP)
        name, where = at(self.handle(outer), name)
        return os.open(name, O_READ, **where)
