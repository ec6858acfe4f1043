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

BUSY = errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK
REFUSAL_NAMES = "ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL"
REFUSED = tuple(code for name, code in vars(errno).items() if name in REFUSAL_NAMES)
CLOEXEC = getattr(os, "O_CLOEXEC", 0)


class NoLocks(Exception):
    """The file system does not support locks."""


class Busy(Exception):
    """Another process still holds it; the text says which."""


def shared(path: str) -> int:
    """Hold a file shared; return its descriptor.

    Raises ``Busy`` if a process is removing what the file stands for, ``NoLocks`` where there are
    no locks, and OSError if it does not exist.
    """
    return _locked(path, False, os.O_RDWR)


def exclusive(path: str) -> int:
    """Hold a file exclusively, if nobody holds it; return its descriptor.  Errors as ``shared``."""
    return _locked(path, True, os.O_RDWR | os.O_CREAT)


def _locked(path: str, is_exclusive: bool, flags: int) -> int:
    if fcntl is None:
        raise NoLocks()
    for _ in range(100):
        fd = os.open(path, flags | CLOEXEC, 0o600)
        try:
            kind = fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
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


def _is_at(fd: int, path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino)
