"""What runs at the end of a login for ``attach=NAME``: it passes bytes on to a service.

It finds the service of this user on this machine, or starts it, and asks it for a gateway.  The
service can go on when this process has ended.  This file is shipped; it keeps to what Python 2.7
and today's Python both accept.  Start at ``run``.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys

from ..gateway_base import _frame_of, load_part
from . import far_find
from .far_find import ServiceError, clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BOOT = ["-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
SIZE = 65536
AGAIN = errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR
LOOK_MS = 5000  # between checks for the service's end, if the system does not tell
END_MS = 1000  # how long the service's process may take to end after its connection


def run(options: dict[str, Any]) -> None:
    """Connect to a service, and pass on bytes; ends the process.

    options: ``marker``, which comes before the answer; ``want`` as for ``far_find.connect``;
    ``timeout`` in seconds, or None; ``request``, the frame that asks for a gateway;
    ``leaves_terminal``: whether this is another user than the one at the terminal.
    """
    if options["leaves_terminal"]:
        load_part("_ends.far_terminal").leave_terminal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal of a program
    want, marker = dict(options["want"]), options["marker"]
    if want["words"] is None:
        want["words"], want["python"] = [sys.executable] + BOOT, sys.executable
    known: list[bytes] = []

    def line_for(more: dict[str, Any]) -> bytes:
        if not known:
            _write(marker.rstrip() + b"?\n")
            line: Any = sys.stdin.readline()
            known.append((line if isinstance(line, bytes) else line.encode("ascii")).strip())
        return far_find.line_of(known[0], dict(want, **more))

    try:
        deadline = clock() + (options["timeout"] or far_find.LONGEST_S)
        sock, greeting = far_find.connect(want, deadline, line_for)
        sock.sendall(options["request"])
    except (ServiceError, EnvironmentError) as exc:
        _write(marker + _frame_of({"error": "%s" % (exc,)}))
        os._exit(1)
    status = 1
    try:
        status = Passage(sock, greeting).run()
    finally:
        os._exit(status)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


class Way(object):
    """The bytes of one direction; one of its two descriptors is polled at a time."""

    def __init__(self, poll: Any, source: int, sink: int) -> None:
        self._poll = poll
        self.source, self.sink = source, sink
        self._data = b""  # what the sink has not taken
        self.is_over = False
        for fd in source, sink:
            _never_wait(fd)
        poll.register(source, select.POLLIN)

    def move(self) -> None:
        """Read what there is, if all was written, and write what can be."""
        had = bool(self._data)
        try:
            if not had:
                self._data = os.read(self.source, SIZE)
                self.is_over = not self._data
            self._data = self._data[os.write(self.sink, self._data) :]
        except EnvironmentError as exc:
            self.is_over = exc.errno not in AGAIN
        if self.is_over:
            self._poll.unregister(self.sink if had else self.source)
        elif bool(self._data) != had:
            self._poll.unregister(self.sink if had else self.source)
            if had:
                self._poll.register(self.source, select.POLLIN)
            else:
                self._poll.register(self.sink, select.POLLOUT)


def _never_wait(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


class Passage(object):
    """A connection between stdin and stdout, and a service.

    Processes that the service's code has forked may hold the connection open, so the process of the
    service is watched as well.
    """

    def __init__(self, sock: socket.socket, greeting: dict[str, Any]) -> None:
        self._sock = sock
        self._greeting = greeting
        self._poll = select.poll()
        self._end_fd = -1
        try:
            self._end_fd = os.pidfd_open(greeting["pid"])
            self._poll.register(self._end_fd, select.POLLIN)
        except (AttributeError, EnvironmentError):  # an older Python, or another system
            pass
        self._there = Way(self._poll, 0, sock.fileno())
        self._back = Way(self._poll, os.dup(sock.fileno()), 1)

    def run(self) -> int:
        """Pass on bytes until the service has closed the connection; return the exit status."""
        there, back, is_shut, has_ended = self._there, self._back, False, False
        while not back.is_over:
            timeout_ms = 0 if has_ended else -1 if self._end_fd >= 0 else LOOK_MS
            ready = self._ready(timeout_ms)
            if has_ended and not ready:
                break  # all that it had sent was passed on
            for fd in ready:
                if fd == self._end_fd:
                    self._poll.unregister(fd)
                    has_ended = True
                elif fd in (there.source, there.sink) and not there.is_over:
                    there.move()
                elif fd in (back.source, back.sink) and not back.is_over:
                    back.move()
            if self._end_fd < 0 and not ready:
                has_ended = self._is_gone()
            if there.is_over and not is_shut:
                is_shut = True
                self._shut()
        if there.is_over or not (has_ended or self._ends_soon()):
            return 0
        text = "the service %s, process %d, has ended\n"
        sys.stderr.write(text % (self._greeting["service"], self._greeting["pid"]))
        sys.stderr.flush()
        return 1

    def _ready(self, timeout_ms: int) -> list[int]:
        try:
            return [fd for fd, _ in self._poll.poll(timeout_ms)]
        except (EnvironmentError, select.error):  # Python 2, at a signal
            return []

    def _ends_soon(self) -> bool:
        """Whether the service, which has closed the connection, is ending; else it said goodbye."""
        if self._end_fd < 0:
            return self._is_gone()
        poll = select.poll()
        poll.register(self._end_fd, select.POLLIN)
        return bool(poll.poll(END_MS))

    def _is_gone(self) -> bool:
        try:
            os.kill(self._greeting["pid"], 0)
        except EnvironmentError as exc:
            return exc.errno == errno.ESRCH
        return False

    def _shut(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except EnvironmentError:  # the service has closed it
            pass
