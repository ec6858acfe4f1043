"""The execution models of greenlets: gevent's and eventlet's.

``get_execmodel`` of ``gateway_base`` loads them when one is asked for.  A worker that is to have
one is sent this file in its first line: before its hello, it has only that and the first part of
``gateway_base``.  Start at ``MODELS``.
"""

from __future__ import annotations

import os

from ..gateway_base import ExecModel, _thread  # the interpreter's own, also where it was replaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..gateway_base import Inbox, LockLike


class GeventExecModel(ExecModel):
    """The greenlets of gevent."""

    backend = "gevent"
    has_main_thread = False
    _modules = {
        "queue": "gevent.queue",
        "subprocess": "gevent.subprocess",
        "socket": "gevent.socket",
        "time": "gevent",
        "get_ident": "gevent.thread",
        "os": "gevent.os",
        "threading": "gevent.lock",
        "event": "gevent.event",
    }

    def start(self, func: Callable[..., object], args: Sequence[Any] = (), name: str = "") -> None:
        self._module("gevent").spawn(func, *args)

    def _open_text(self, fd: int, mode: str, bufsize: int) -> Any:
        return self._module("gevent.fileobject").FileObject(fd, mode, bufsize)

    def _open_binary(self, fd: int, mode: str, bufsize: int) -> _GreenFile:
        green_os = self._module("os")
        green_os.make_nonblocking(fd)
        return _GreenFile(fd, green_os.nb_read, self.wait_writable)

    def wait_writable(self, fd: int) -> None:
        self._module("socket").wait_write(fd)

    def inbox(self) -> Inbox:
        items: Inbox = self.queue.Queue()
        return items

    def _plain_lock(self) -> LockLike:
        lock: LockLike = self._module("threading").Semaphore(1)
        return lock

    def RLock(self) -> LockLike:
        lock: LockLike = self._module("threading").RLock()
        return lock

    def Event(self) -> Any:
        return self._module("event").Event()


class EventletExecModel(GeventExecModel):
    """The greenlets of eventlet."""

    backend = "eventlet"
    _modules = {
        "queue": "eventlet.queue",
        "subprocess": "eventlet.green.subprocess",
        "socket": "eventlet.green.socket",
        "time": "eventlet",
        "get_ident": "eventlet.green.thread",
        "threading": "eventlet.green.threading",
        "event": "eventlet.green.threading",
    }

    def start(self, func: Callable[..., object], args: Sequence[Any] = (), name: str = "") -> None:
        self._module("eventlet").spawn_n(func, *args)

    def Lock(self) -> LockLike:
        return PolledLock(self._module("time").sleep)

    def _open_text(self, fd: int, mode: str, bufsize: int) -> Any:
        return self._module("eventlet.greenio").GreenPipe(fd, mode, bufsize)

    def _open_binary(self, fd: int, mode: str, bufsize: int) -> _GreenFile:
        hubs = self._module("eventlet.hubs")
        os.set_blocking(fd, False)

        def read(fd: int, size: int) -> bytes:
            while True:
                try:
                    return os.read(fd, size)
                except BlockingIOError:
                    hubs.trampoline(fd, read=True)

        return _GreenFile(fd, read, self.wait_writable, hubs.notify_close)

    def wait_writable(self, fd: int) -> None:
        self._module("eventlet.hubs").trampoline(fd, write=True)


class _GreenFile(object):
    """A file over a non-blocking descriptor; waiting for it lets other greenlets run."""

    def __init__(
        self,
        fd: int,
        read: Callable[[int, int], bytes],
        wait_writable: Callable[[int], object],
        before_close: Callable[[int], object] = id,
    ) -> None:
        self._fd = fd
        self._os_read = read
        self._wait_writable = wait_writable
        self._before_close = before_close  # wakes up whoever waits for the descriptor

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError("the file is closed")
        return self._fd

    def read(self, size: int) -> bytes:
        return self._os_read(self.fileno(), size)

    def write(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self.fileno(), data)
            except BlockingIOError:
                self._wait_writable(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._before_close(fd)
            os.close(fd)


class PolledLock(object):
    """A lock for the greenlets of eventlet, whose own ones an interrupt may leave taken.

    It is rarely held while others run, so whoever finds it taken looks again now and then.
    """

    __slots__ = ("__exit__", "_sleep", "_try", "locked", "release")

    def __init__(self, sleep: Callable[[float], object]) -> None:
        lock = _thread.allocate_lock()
        self._try = lock.acquire
        self._sleep = sleep
        self.release = lock.release
        self.locked = lock.locked
        self.__exit__ = lock.__exit__

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        delay = 0.0
        while True:
            (taken,) = map(self._try, (False,))
            if taken:  # no jump: Python 3.10 looks for interrupts after those
                return True
            if not blocking:
                return False
            self._sleep(delay)
            delay = min(delay + 0.001, 0.01)

    __enter__ = acquire


MODELS = {"gevent": GeventExecModel, "eventlet": EventletExecModel}
