"""Polls descriptors in a thread, for a loop that can't: the default one on Windows.

All gateways of a group share the thread, which exists while something is polled.  Start at
``poller_of``.
"""

from __future__ import annotations

import selectors
import socket
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE

from ..gateway_base import get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Protocol

    class Polls(Protocol):
        """Calls back in the loop when a descriptor can be read or written, as loops do."""

        def add_reader(self, fd: int, callback: Callable[[], object]) -> object: ...
        def add_writer(self, fd: int, callback: Callable[[], object]) -> object: ...
        def remove_reader(self, fd: int) -> object: ...
        def remove_writer(self, fd: int) -> object: ...


def poller_of(loop: asyncio.AbstractEventLoop) -> Polls:
    """Return what polls for a loop: the loop itself, if it can."""
    ends = socket.socketpair()
    try:
        loop.add_reader(ends[0], int)
        loop.remove_reader(ends[0])
        return loop
    except NotImplementedError:
        return Poller(loop)
    finally:
        for end in ends:
            end.close()


class Poller:
    """Polls for one loop, whose thread adds and removes.

    What was ready is not polled again before the loop has called back.  ``_lock`` guards the
    selector, which changes while the thread waits in it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[tuple[int, int], Callable[[], object]] = {}  # by descriptor and event
        self._lock = new_lock()
        self._selector: selectors.BaseSelector | None = None  # of the thread, if there is one
        self._bell: socket.socket | None = None  # wakes it

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Have a callback called whenever a descriptor can be read."""
        self._add(fd, EVENT_READ, callback)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        """Have a callback called whenever a descriptor can be written."""
        self._add(fd, EVENT_WRITE, callback)

    def remove_reader(self, fd: int) -> None:
        """Call back no more when a descriptor can be read."""
        self._remove(fd, EVENT_READ)

    def remove_writer(self, fd: int) -> None:
        """Call back no more when a descriptor can be written."""
        self._remove(fd, EVENT_WRITE)

    def _add(self, fd: int, event: int, callback: Callable[[], object]) -> None:
        with self._lock:
            self._callbacks[fd, event] = callback
            if self._selector is None:
                self._start()
            self._change(fd, event, 0)

    def _remove(self, fd: int, event: int) -> None:
        with self._lock:
            if self._callbacks.pop((fd, event), None) is not None:
                self._change(fd, 0, event)

    def _change(self, fd: int, more: int, less: int) -> None:  # holds _lock
        selector = self._selector
        if selector is None:
            return
        before = selector.get_map().get(fd)
        events = ((before.events if before else 0) | more) & ~less
        if before is None and events:
            selector.register(fd, events)
        elif before is not None and events:
            selector.modify(fd, events)
        elif before is not None:
            selector.unregister(fd)
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            with suppress(BlockingIOError):  # it rings already
                self._bell.send(b"!")

    def _start(self) -> None:  # holds _lock
        heard, bell = socket.socketpair()
        heard.setblocking(False)
        bell.setblocking(False)
        selector = selectors.DefaultSelector()
        selector.register(heard, EVENT_READ)
        self._selector, self._bell = selector, bell
        try:
            get_execmodel("thread").start(self._run, (selector, heard, bell), "execnet-aio-poll")
        except RuntimeError:  # there can be no more threads
            self._callbacks.clear()
            self._end(selector, heard, bell)
            raise

    def _end(self, selector: selectors.BaseSelector, *ends: socket.socket) -> None:
        self._selector = self._bell = None
        selector.close()
        for end in ends:
            end.close()

    # the loop's thread

    def _call(self, fd: int, event: int) -> None:
        callback = self._callbacks.get((fd, event))
        if callback is None:  # it was removed meanwhile
            return
        try:
            callback()
        finally:
            with self._lock:
                if (fd, event) in self._callbacks:
                    self._change(fd, event, 0)

    # the thread that polls

    def _run(
        self, selector: selectors.BaseSelector, heard: socket.socket, bell: socket.socket
    ) -> None:
        while True:
            try:
                ready = [(key.fd, events) for key, events in selector.select()]
            except OSError:  # one was removed and closed meanwhile, which Windows minds
                ready = []
            with suppress(BlockingIOError):
                heard.recv(4096)
            with self._lock:
                calls = self._disarm(ready)
                try:
                    for call in calls:
                        self._loop.call_soon_threadsafe(self._call, *call)
                except RuntimeError:  # the loop is closed
                    self._callbacks.clear()
                if not self._callbacks:
                    self._end(selector, heard, bell)
                    return

    def _disarm(self, ready: list[tuple[int, int]]) -> list[tuple[int, int]]:  # holds _lock
        """Return what to call back for, which is not polled before that is done."""
        calls = []
        for fd, events in ready:
            for event in (EVENT_READ, EVENT_WRITE):
                if events & event and (fd, event) in self._callbacks:
                    self._change(fd, 0, event)
                    calls.append((fd, event))
        return calls
