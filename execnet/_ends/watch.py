"""Notices the end of a process that its stream hides, without a descriptor per process.

The stream to a process ends with it, unless a process that it forked holds the stream open.  One
thread waits for any process to end, and if the stream does not end as well, it rings a bell: a
descriptor that all readers poll next to their streams.  None of this exists until a reader has
waited for a while.  After the last of the processes has ended, the thread may stay while the
program has other children, as it can't be stopped.  Start at ``EndWatch``.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

from .._clock import monotonic, sleep
from ..gateway_base import HAS_DAEMON_THREADS, above_stdio, new_lock, threads_are_patched
from . import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Process(Protocol):
        """A process to watch."""

        def has_ended(self) -> bool: ...


GRACE_S = 0.02  # within which the stream of an ended process ends, too
LOOK_S = 1.0  # how often to look where nothing reports an end


class Bell:
    """A descriptor, ``fd``, that is readable from the time it is rung until it is muted."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._ring_fd = above_stdio(os.eventfd(0))
        else:
            self.fd, self._ring_fd = map(above_stdio, os.pipe())
        self.users = 0

    def ring(self) -> None:
        os.write(self._ring_fd, b"\0\0\0\1\0\0\0\0")  # the format of an eventfd

    def mute(self) -> None:
        os.read(self.fd, 8)

    def close(self) -> None:
        for fd in {self.fd, self._ring_fd}:
            os.close(fd)


class EndWatch:
    """Rings for readers of the streams of processes that have ended.

    wait_for_an_end: returns when another process may have ended.  A bell that was rung stays so;
    ``enter`` gives those who heard it the next one.
    """

    def __init__(self, wait_for_an_end: Callable[[], object]) -> None:
        self._wait_for_an_end = wait_for_an_end
        self._set_up()

    def _set_up(self) -> None:
        self._lock = new_lock()
        self._thread: threading.Thread | None = None
        self._pausing = new_lock()  # free when the thread has nothing left to do
        self._pausing.acquire()  # not an Event, which an interrupt may leave locked
        self._processes: set[Process] = set()  # not known to have ended
        self._bells: dict[Process, Bell] = {}  # of those who read
        self._bell: Bell | None = None  # the next to ring

    def enter(self, process: Process) -> int:
        """Return the descriptor of a bell for the reader of a process's stream.

        It may have ended already.  OSError: too many descriptors.  RuntimeError: no thread.
        """
        with self._lock:
            self._leave(process)
            if self._bell is None:
                self._bell = Bell()
            self._bell.users += 1
            self._bells[process] = self._bell
            self._processes.add(process)
            self._pausing.acquire(False)
            if self._thread is None:
                fork.register(self)
                thread = threading.Thread(target=self._run, name="execnet-ends", daemon=True)
                thread.start()
                self._thread = thread
            return self._bell.fd

    def leave(self, process: Process) -> None:
        """Give the bell back: the stream has ended."""
        with self._lock:
            self._leave(process)

    def _leave(self, process: Process) -> None:  # holds _lock
        bell = self._bells.pop(process, None)
        if bell is not None:
            bell.users -= 1
            if not bell.users:
                bell.close()
                if bell is self._bell:
                    self._bell = None

    def tell(self, process: Process) -> None:
        """Ring for a process that is known to have ended, if its stream does not end.

        After the last one the thread is gone, unless the program has other children.
        """
        deadline = monotonic() + GRACE_S
        while process in self._bells and monotonic() < deadline:
            sleep(0.001)
        self._ring_for({process})
        with self._lock:
            self._processes.discard(process)
            thread = None if self._processes else self._thread
            if thread is not None and self._pausing.locked():
                self._pausing.release()
        if thread is not None:
            thread.join(GRACE_S)

    def _ring_for(self, ended: set[Process]) -> None:
        with self._lock:
            bell = self._bell
            if bell is not None and any(self._bells.get(process) is bell for process in ended):
                bell.ring()
                self._bell = None

    def _run(self) -> None:
        delay_s = GRACE_S
        while True:
            self._wait_for_an_end()
            self._pausing.acquire(True, delay_s)
            ended = {process for process in list(self._processes) if process.has_ended()}
            self._ring_for(ended)
            # The process that ended may belong to other code, which does not ask for its status.
            delay_s = GRACE_S if ended else min(2 * delay_s, LOOK_S)
            with self._lock:
                self._processes -= ended
                if not self._processes:
                    self._thread = None
                    return

    def _disown(self) -> None:
        """In a forked process: neither the thread nor the readers exist here."""
        bells = set(self._bells.values())
        self._set_up()
        for bell in bells:
            bell.close()


def _wait_for_a_child() -> None:
    """Wait until any child has ended, and leave its status for others to ask."""
    with suppress(ChildProcessError):  # there are none, so all have ended
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


_children = EndWatch(_wait_for_a_child)


def of_children() -> EndWatch | None:
    """Return what watches children; None where the system does not report their ends."""
    if not hasattr(os, "waitid") or signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        return None
    if threads_are_patched() or not HAS_DAEMON_THREADS:  # it would stop all greenlets, or stay
        return None
    return _children
