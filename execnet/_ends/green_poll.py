"""``_ends.poll`` for greenlets: a process that a worker forked must not hide its end.

One greenlet per thread checks once a second the processes whose streams are being read, and wakes
the reader of one that has ended.  Reads cost nothing extra.  Start at ``GreenPoll``.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import ExecModel
    from .watch import Process

LOOK_S = 1.0


class GreenPoll:
    """Waits until a stream can be read, or its process has ended.

    fd: of the stream, which does not block.  Everything is called in one thread, except ``tell``.
    """

    def __init__(self, fd: int, process: Process, execmodel: ExecModel) -> None:
        self.process = process
        self._fd = fd
        self._over = False  # nobody waits any more
        self._closed = False  # the descriptor may be another's
        self._waits: Any = _WAITS[execmodel.backend](fd)
        self._watch = _watch_of(execmodel)
        self._thread = threading.get_native_id()
        self._watch.enter(self)

    def read(self, read: Callable[[int], bytes], limit: int) -> bytes:
        """Return the available bytes, up to ``limit``; wait for the first.

        Returns b"" at the end, and when the process has ended and nothing is left.  ``read`` alone
        would wait for ever then.
        """
        while not self._closed:
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                if not self._over:
                    self._waits.wait()
                    continue
                data = b""
            if not data:
                self.close()
            return data
        return b""

    def tell(self) -> None:
        """End the wait of the reader: the process has ended."""
        self._over = True
        if threading.get_native_id() == self._thread:  # otherwise the watch does it
            self._waits.wake()

    def close(self) -> None:
        """Forget the stream, which nobody reads any more."""
        self._watch.leave(self)
        if not self._closed:
            self._closed = True
            self._waits.close()

    def disown(self) -> None:
        """In a forked process: the stream is the parent's."""
        self._watch.leave(self)


class _GeventWaits:
    """Waits for a descriptor in a greenlet of gevent."""

    def __init__(self, fd: int) -> None:
        self._hub = _gevent_hub()
        self._watcher = self._hub.loop.io(fd, 1)  # 1: to be read

    def wait(self) -> None:
        with suppress(_Woken):
            self._hub.wait(self._watcher)

    def wake(self) -> None:
        self._hub.cancel_wait(self._watcher, _Woken)

    def close(self) -> None:
        self._hub.cancel_wait(self._watcher, _Woken, True)


class _EventletWaits:
    """Waits for a descriptor in a greenlet of eventlet."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hub = _eventlet_hub()
        self._reader: Any = None  # the greenlet that waits
        self._timer: Any = None  # the function that wakes it

    def wait(self) -> None:
        self._reader = sys.modules["eventlet"].getcurrent()
        try:
            with suppress(_Woken):
                sys.modules["eventlet.hubs"].trampoline(self._fd, read=True)
        finally:
            self._reader = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def wake(self) -> None:
        if (
            self._reader is not None and self._timer is None
        ):  # closing the descriptor would not end its wait
            self._timer = self._hub.schedule_call_global(0, self._reader.throw, _Woken)

    close = wake


class _Woken(Exception):
    """Raised in the reader, to end its wait although nothing came."""


class _GreenWatch:
    """Checks processes whose streams are read, in a greenlet that ends with the last one."""

    def __init__(self, execmodel: ExecModel) -> None:
        self._execmodel = execmodel
        self._polls: set[GreenPoll] = set()
        self._runs = False

    def enter(self, poll: GreenPoll) -> None:
        self._polls.add(poll)
        if not self._runs:
            self._runs = True
            self._execmodel.start(self._run, (), "execnet-ends")

    def leave(self, poll: GreenPoll) -> None:
        self._polls.discard(poll)

    def _run(self) -> None:
        while self._polls:
            self._execmodel.sleep(LOOK_S)
            for poll in list(self._polls):
                if poll.process.has_ended():
                    poll.tell()
        self._runs = False


def _gevent_hub() -> Any:
    return sys.modules["gevent"].get_hub()


def _eventlet_hub() -> Any:
    return sys.modules["eventlet.hubs"].get_hub()


_WAITS = {"gevent": _GeventWaits, "eventlet": _EventletWaits}
_HUBS = {"gevent": _gevent_hub, "eventlet": _eventlet_hub}  # each returns the one of its thread
_watches: weakref.WeakKeyDictionary[object, _GreenWatch] = weakref.WeakKeyDictionary()


def _watch_of(execmodel: ExecModel) -> _GreenWatch:
    """Return the watch of this thread."""
    hub = _HUBS[execmodel.backend]()
    if hub not in _watches:
        _watches[hub] = _GreenWatch(execmodel)
    return _watches[hub]
