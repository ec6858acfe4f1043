"""A lock for the greenlets of eventlet, which ``EventletExecModel`` makes."""

from __future__ import annotations

from ..gateway_base import _thread  # the interpreter's own, also where eventlet replaces it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


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
