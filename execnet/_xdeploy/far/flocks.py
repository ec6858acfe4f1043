"""Locks that the kernel gives back when their holder has ended, however it did: ``flock``.

Finding an environment needs no more than this, so nothing is imported that takes a while.
This file is shipped.  Start at ``shared``.
"""

from __future__ import annotations

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUSY = errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK
REFUSED = tuple(
    getattr(errno, name)
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")
    if hasattr(errno, name)
)


class NoLocks(Exception):
    """The file system does not support locks."""


class Busy(Exception):
    """Another process still holds it; the text says which."""


def shared(path: Any) -> Any:
    """Hold a file shared; return its descriptor.

    Raises ``Busy`` if a process is removing what the file stands for, ``NoLocks`` where there are
    no locks, and OSError if it does not exist.
    """
    return _locked(path, "LOCK_SH", os.O_RDWR)


def exclusive(path: Any) -> Any:
    """Hold a file exclusively, if nobody holds it; return its descriptor.  Errors as ``shared``."""
    return _locked(path, "LOCK_EX", os.O_RDWR | os.O_CREAT)


def _locked(path: Any, kind: str, flags: int) -> Any:
    if fcntl is None:
        raise NoLocks()
    for _ in range(100):
        fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            fcntl.flock(fd, getattr(fcntl, kind) | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except EnvironmentError as exc:
            os.close(fd)
            if exc.errno in BUSY:
                raise Busy(path)
            if exc.errno in REFUSED:
                raise NoLocks()
            raise
        os.close(fd)  # it was removed meanwhile, by whoever held it
    raise Busy(path)


def _is_at(fd: int, path: Any) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino)
