"""The output of a service's code: to the connection that the code belongs to, else to the log.

Descriptors 1 and 2 lead to a pipe, so that output of other processes gets into the log as well; a
thread writes the log, and keeps it short.  This file is shipped; it keeps to what Python 2.7 and
today's Python both accept.  Start at ``Log`` and ``Router``.
"""

from __future__ import annotations

import errno
import os
import sys
import threading

from ..gateway_base import get_ident, new_lock
from . import far_find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from typing import Any, Protocol

    class Sink(Protocol):
        """Where the output of a thread goes instead of the log: a ``Route``, or a session's job."""

        def write(self, number: int, data: bytes) -> bool: ...

LOG_BYTES = 1 << 20  # of each of the two files
CHUNK_BYTES = 1 << 16


class Log(object):
    """A file and its predecessor; only the thread that ``begin`` starts writes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._read_fd = -1
        self._done = threading.Event()
        self._open()

    def _open(self) -> None:
        self._fd = far_find.open_private(self._path, os.O_WRONLY | os.O_APPEND)
        keep_from_children(self._fd)
        self._size = os.fstat(self._fd).st_size

    def begin(self) -> None:
        """Take over descriptors 1 and 2."""
        self._read_fd, write_fd = os.pipe()
        keep_from_children(self._read_fd)
        for fd in 1, 2:
            os.dup2(write_fd, fd)
            if sys.version_info[0] > 2:
                os.set_inheritable(fd, True)
        os.close(write_fd)
        thread = threading.Thread(target=self._run, name="execnet-service-log")
        thread.daemon = True
        thread.start()

    def _run(self) -> None:
        while True:
            try:
                data = os.read(self._read_fd, CHUNK_BYTES)
            except EnvironmentError as exc:
                if exc.errno != errno.EINTR:
                    raise
                continue
            if not data:
                break
            try:
                self._write(data)
            except (EnvironmentError, far_find.ServiceError):
                pass  # the disk is full, or the folder is gone: there is nobody to tell
        self._done.set()

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > LOG_BYTES:
            os.rename(self._path, self._path + ".1")
            os.close(self._fd)
            self._open()
        while data:
            size = os.write(self._fd, data)
            self._size += size
            data = data[size:]

    def end(self, wait_s: float) -> None:
        """Write everything; do not wait for a process that holds the pipe."""
        null = os.open(os.devnull, os.O_WRONLY)
        for fd in 1, 2:
            os.dup2(null, fd)
        os.close(null)
        self._done.wait(wait_s)


def keep_from_children(fd: int) -> None:
    """Keep a descriptor from being inherited; Python 3 does so by itself."""
    if sys.version_info[0] == 2:
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


class Route(object):
    """Two descriptors for the output of a connection's code, until they are closed."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._lock = new_lock()
        self._is_open = True

    def write(self, number: int, data: bytes) -> bool:
        """Write to the first or the second; return False if they are closed."""
        with self._lock:  # the number of a closed one could be another file's
            if self._is_open:
                write_all(self._fds[number - 1], data)
            return self._is_open

    def close(self) -> None:
        """Allow no more writes; then they can be closed."""
        with self._lock:
            self._is_open = False


def write_all(fd: int, data: bytes) -> None:
    """Write to a descriptor, unless its reader is gone."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except EnvironmentError as exc:
            if exc.errno != errno.EINTR:
                return


class Router(object):
    """Replaces ``sys.stdout`` or ``sys.stderr``: whole lines go to the route of the thread.

    number: 1 or 2.  routes: by the number of the thread; other threads use the log.  noted: has
    the threads whose incomplete lines are kept until they ``flush``; others may end unseen.
    """

    encoding, errors = "utf-8", "backslashreplace"
    closed = False
    name = "<the output of a service>"

    def __init__(self, number: int, routes: Mapping[int, Sink], noted: Container[int]) -> None:
        self._number = number
        self._routes = routes
        self._noted = noted
        self._begun: dict[int, bytes] = {}  # an incomplete line, by thread
        self.buffer = self  # accepts bytes as well
        self._spaced: set[int] = set()  # the threads whose next ``print`` begins with a space

    @property
    def softspace(self) -> bool:
        """Whether Python 2's print is to write a space first; it sets that, for its thread."""
        return get_ident() in self._spaced

    @softspace.setter
    def softspace(self, value: object) -> None:
        (self._spaced.add if value else self._spaced.discard)(get_ident())

    def write(self, text: Any) -> int:
        """Write text, or bytes."""
        is_text = isinstance(text, type(u""))
        data = text.encode("utf-8", "backslashreplace") if is_text else bytes(text)
        ident = get_ident()
        data = self._begun.pop(ident, b"") + data
        end = data.rfind(b"\n") + 1 if ident in self._noted else len(data)
        if data[end:]:
            self._begun[ident] = data[end:]
        self._out(ident, data[:end])
        return len(text)

    def writelines(self, lines: Iterable[object]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write the incomplete line of this thread."""
        ident = get_ident()
        self._out(ident, self._begun.pop(ident, b""))

    def end_code(self) -> None:
        """Leave nothing of this thread's code to the next that runs in it."""
        self.flush()
        self.softspace = False

    def _out(self, ident: int, data: bytes) -> None:
        route = self._routes.get(ident)
        if data and not (route is not None and route.write(self._number, data)):
            write_all(self._number, data)

    def fileno(self) -> int:
        """Return the descriptor that leads to the log."""
        return self._number

    def isatty(self) -> bool:
        """Return False: a service has no terminal."""
        return False

    def readable(self) -> bool:
        """Return False: it is only for writing."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: all code of the service writes here."""
