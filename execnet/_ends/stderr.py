"""The stderr of transports: passed on at once, with its last bytes kept for errors.

One thread serves all captures of a process, as long as there are any.  Start at ``capture``.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ..gateway_base import ExecModel, _Flag, above_stdio, new_lock, real_select
from . import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TAIL_BYTES = 4096
CLOSE_S = 1.0  # how long what was already written may take to arrive
READ_BYTES = 65536

_MODEL = ExecModel()


class Capture:
    """The stderr of one process, read by the relay's thread.

    ``tail`` is replaced as a whole, so that any thread may read it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tail = b""
        self.done = _Flag(_MODEL)  # everything that came was kept, the descriptor is closed

    def close(self) -> None:
        """Take what has been written until now, and no more; for use after the process has ended.

        Processes that it started may still hold the other end; nobody is to wait for them.
        """
        _relay.close(self)


class _Served:
    """The captures that the relay's thread waits for, and None for its wake-up pipe.

    It uses the interpreter's own ``poll``: that of gevent would need a hub in this thread.
    """

    def __init__(self, wake: int) -> None:
        select = real_select()
        self._poll = select.poll()
        self._readable: int = select.POLLIN
        self._poll.register(wake, self._readable)
        self.captures: dict[int, Capture] = {}

    def add(self, capture: Capture) -> None:
        self._poll.register(capture.fd, self._readable)
        self.captures[capture.fd] = capture

    def remove(self, capture: Capture) -> None:
        self._poll.unregister(capture.fd)
        del self.captures[capture.fd]

    def wait(self) -> Iterator[Capture | None]:
        """Wait until there is something to read; yield the captures that have something."""
        for fd, _ in self._poll.poll():
            yield self.captures.get(fd)

    def has_more(self, capture: Capture) -> bool:
        """Whether a read would return at once."""
        return any(fd == capture.fd for fd, _ in self._poll.poll(0))


class Relay:
    """Reads captures and copies what arrives to this process's stderr.

    ``_lock`` guards all attributes.  The thread ends with the last capture.
    """

    def __init__(self) -> None:
        self._set_up()

    def _set_up(self) -> None:
        self._lock = new_lock()
        self._open: set[Capture] = set()
        self._to_close: set[Capture] = set()
        self._wake_fd = -1  # written to when a set has changed; -1 while no thread runs

    def _disown(self) -> None:
        """In a forked process: the captures, and the thread, are the parent's."""
        self._set_up()

    def add(self, capture: Capture) -> None:
        """Serve a capture; RuntimeError if no thread can be started."""
        with self._lock:
            self._open.add(capture)
            try:
                if self._wake_fd < 0:
                    self._start()
                else:
                    os.write(self._wake_fd, b"+")
            except BaseException:
                self._open.discard(capture)
                raise

    def close(self, capture: Capture) -> None:
        """End a capture after what has arrived so far; returns when it has ended."""
        with self._lock:
            if capture in self._open:
                self._to_close.add(capture)
                os.write(self._wake_fd, b"-")
        capture.done.wait(CLOSE_S)

    def _start(self) -> None:
        fork.register(self)
        wake, self._wake_fd = map(above_stdio, os.pipe())
        try:
            _MODEL.start(self._run, (wake,), "execnet-stderr")
        except BaseException:
            os.close(wake)
            os.close(self._wake_fd)
            self._wake_fd = -1
            raise

    def _run(self, wake: int) -> None:
        served = _Served(wake)
        while self._update(served, wake):
            for capture in served.wait():
                if capture is None:
                    os.read(wake, READ_BYTES)
                elif not _pass_on(capture):
                    self._end(served, capture)

    def _update(self, served: _Served, wake: int) -> bool:
        """Serve the requests; return whether there are any captures left."""
        with self._lock:
            to_close, self._to_close = self._to_close, set()
            for capture in self._open.difference(served.captures.values()):
                served.add(capture)
        for capture in to_close:
            while served.has_more(capture) and _pass_on(capture):
                pass
            self._end(served, capture)
        with self._lock:
            if self._open:
                return True
            os.close(wake)
            os.close(self._wake_fd)
            self._wake_fd = -1
            return False

    def _end(self, served: _Served, capture: Capture) -> None:
        with self._lock:
            if capture not in self._open:
                return
            self._open.remove(capture)
            self._to_close.discard(capture)
        served.remove(capture)
        os.close(capture.fd)
        capture.done.set()


def _pass_on(capture: Capture) -> bool:
    """Read once, keep and show what was read; return False at the end."""
    try:
        data = os.read(capture.fd, READ_BYTES)
    except OSError:
        return False
    capture.tail = (capture.tail + data)[-TAIL_BYTES:]
    shown = memoryview(data)
    with suppress(OSError):  # it is closed, or nobody is reading it
        while shown and os.get_inheritable(2):  # otherwise it is a file of the program
            shown = shown[os.write(2, shown) :]
    return bool(data)


_relay = Relay()


def capture(fd: int) -> Capture:
    """Serve a pipe from now on, and own its descriptor.

    Raises RuntimeError, and leaves the descriptor alone, if no thread can be started.
    """
    captured = Capture(fd)
    _relay.add(captured)
    return captured
