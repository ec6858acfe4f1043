"""Waits for a stream, and for the end of its process, which the stream may hide.

Start at ``EndPoll``; the bell is in ``_ends.watch``.
"""

from __future__ import annotations

import select
from contextlib import suppress

from ..gateway_base import real_select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .watch import EndWatch, Process

LISTEN_MS = 50  # after this long without data it listens for the bell
LOOK_MS = 1000  # how often to check a process whose end no bell reports


class EndPoll:
    """Waits until a stream can be read, or its process has ended.

    A process that it forked may hold the stream open, and must not hide its end.  A bell reports
    the end, or if there is none, a check each second.
    find_watch: returns the watch that has the bell, or None.
    """

    def __init__(
        self, fd: int, process: Process, find_watch: Callable[[], EndWatch | None]
    ) -> None:
        self._fd = fd
        self._process = process
        self._find_watch = find_watch
        self._watch: EndWatch | None = None
        self._bell = -1
        self._limit_ms: int | None = LOOK_MS
        self._poll = real_select().poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, read: Callable[[int], bytes], limit: int) -> bytes:
        """Return what ``read(limit)`` returns; b"" also when the process has ended."""
        data = read(limit) if self.wait() else b""
        if not data:
            self.close()
        return data

    def wait(self) -> bool:
        """Wait for data; return False if the process has ended and nothing is left to read."""
        while True:
            ready = self._poll.poll(self._limit_ms)
            if ready and ready[0][0] == self._fd:  # the first time
                if self._bell < 0:
                    self._limit_ms = LISTEN_MS
                return True
            self._listen()
            if self._process.has_ended():
                return any(fd == self._fd for fd, _ in self._poll.poll(0))

    def _listen(self) -> None:
        """Let the next bell end the wait from now on."""
        if self._bell >= 0:
            self._poll.unregister(self._bell)
            self._bell = -1
        self._limit_ms = LOOK_MS
        with suppress(OSError, RuntimeError, ImportError):  # too many descriptors, or threads
            self._watch = self._find_watch()
            if self._watch is not None:
                self._bell = self._watch.enter(self._process)
                self._poll.register(self._bell, select.POLLIN)
                self._limit_ms = None

    def tell(self) -> None:
        """End the wait for the stream: the process has ended."""
        if self._watch is not None:
            self._watch.tell(self._process)

    def close(self) -> None:
        """Give the bell back; nobody waits any more."""
        if self._watch is not None:
            self._watch.leave(self._process)

    def disown(self) -> None:
        """In a forked process, where nobody waits: the bell is the parent's."""
        self._watch = None
