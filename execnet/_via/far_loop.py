"""One thread that waits for any number of descriptors, and acts on those that are ready.

This file is shipped, see ``_via.far``; it keeps to what Python 2.7 and today's Python both accept.
Start at ``Loop``.
"""

from __future__ import annotations

import errno
import os
import select as _select
import sys
import time

from ..gateway_base import new_lock, real_select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ..gateway_base import ExecModel

    T = TypeVar("T")

IN, OUT = 1, 4  # POLLIN and POLLOUT, wherever there is a poll
ERRORS = (EnvironmentError, ValueError, _select.error)  # ValueError: a file is closed
_clock = getattr(time, "monotonic", time.time)  # Python 2 has no other


class Loop(object):
    """Calls functions in a thread of its own: soon, later, or whenever a descriptor is ready.

    Any thread may ``call``; the other methods are for the functions that this thread calls.  It
    runs as long as it has users, or calls to make.  What it calls has to be short: all else here
    waits meanwhile.  ``_lock`` guards the calls, and whether the thread runs.
    """

    def __init__(self, model: ExecModel, name: str) -> None:
        self._model = model
        self._name = name
        self._lock = new_lock()
        self._calls: list[tuple[Any, ...]] = []
        self._runs = False
        self._users = 0
        self._watched: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._wake_fd = self._wake_writer = -1
        self._poller: Any = None

    def call(self, func: Callable[..., object], *args: object) -> None:
        """Have a function called soon; never waits.

        RuntimeError (Python 2: ``thread.error``) or OSError if there can be no thread for it.
        """
        with self._lock:
            if not self._runs:
                self._start()
            elif not self._calls:
                os.write(self._wake_writer, b".")  # one byte at most, so there is room
            self._calls.append((func,) + args)

    def _start(self) -> None:  # holds _lock
        self._wake_fd, self._wake_writer = os.pipe()
        self._poller = None
        try:
            for fd in self._wake_fd, self._wake_writer:
                set_private(fd)
            self._poller, self._unit = new_poller()
            self.watch(self._wake_fd, IN, self._make_calls)
            os.write(self._wake_writer, b".")
            self._model.start(self._run, (), self._name)
        except BaseException:
            self._close()
            raise
        self._runs = True

    def _close(self) -> None:
        os.close(self._wake_fd)
        os.close(self._wake_writer)
        self._watched = {}
        if hasattr(self._poller, "close"):
            self._poller.close()

    # in the thread

    def enter(self) -> None:
        """Count a user, for whom the thread goes on."""
        self._users += 1

    def leave(self) -> None:
        """Forget a user."""
        self._users -= 1

    def watch(self, fd: int, mask: int, func: Callable[[], object]) -> None:
        """Call a function whenever a descriptor, which nothing watches yet, is ready."""
        self._poller.register(fd, mask)
        self._watched[fd] = func

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more; comes before it is closed, as a fork may hold it open."""
        if self._watched.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def call_later(self, delay_s: float, func: Callable[[], object]) -> None:
        """Call a function after some time, if there are users then."""
        self._timers.append((_clock() + delay_s, func))

    def _run(self) -> None:
        poll, watched = self._poller.poll, self._watched
        func: Callable[[], object] | None
        limit: tuple[float, ...] = ()
        while True:
            for fd, _ in poll(*limit) if sys.version_info[0] > 2 else retried(poll, *limit):
                func = watched.get(fd)
                if func is not None:  # else it is watched no more since a moment ago
                    try:
                        func()
                    except Exception:
                        self._report()
                        self.unwatch(fd)
            func = None  # it may be the last to hold what has ended
            limit = self._call_timers() if self._timers else ()
            if not self._users and self._ends():
                return

    def _make_calls(self) -> None:
        retried(os.read, self._wake_fd, 1)
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            self._try(*call)

    def _call_timers(self) -> tuple[float, ...]:
        """Call what is due; return how long it is to the next, if there is one."""
        now = _clock()
        due = [func for when, func in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for func in due:
            self._try(func)
        if not self._timers:
            return ()
        return (max(0.0, min(when for when, _ in self._timers) - now) * self._unit,)

    def _try(self, func: Callable[..., object], *args: object) -> None:
        """Call a function; an error of it ends nobody else's."""
        try:
            func(*args)
        except Exception:
            self._report()

    def _report(self) -> None:
        """Print an error, as those of threads are."""
        sys.excepthook(*sys.exc_info())

    def _ends(self) -> bool:
        """Whether the thread ends now."""
        with self._lock:
            if self._calls:
                return False
            self._runs = False
            self._timers = []
            self._close()
        return True


def new_poller() -> tuple[Any, float]:
    """Return the best that the system has, and what a second is for its ``poll``."""
    select = real_select()
    if hasattr(select, "epoll"):
        poller = select.epoll()
        set_private(poller.fileno())
        return poller, 1.0
    return select.poll(), 1000.0


def set_private(fd: int) -> None:
    """Keep a descriptor from the processes that start here, which in Python 2 inherit it."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


def set_nonblocking(fd: int) -> None:
    """Have reads and writes of a descriptor raise an error in place of waiting."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def retried(func: Callable[..., T], *args: object) -> T:
    """Call a function again for as long as a signal interrupts it, as Python 3 does itself."""
    while True:
        try:
            return func(*args)
        except ERRORS as exc:
            if exc.args[:1] != (errno.EINTR,):
                raise
