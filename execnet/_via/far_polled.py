"""Forwards for any number of processes in one thread for each thing that may have to be waited for.

One thread reads what the processes write, and waits if the stream to the coordinator is full.
Another writes to the processes, and sees to their ends; it never waits for anything but them.  A
third passes on what they say on stderr (``far_ends``), if there is any.  Each is a ``Loop``; a
process that reads nothing, or writes without end, holds up no other.

This file is shipped, see ``_via.far``; it keeps to what Python 2.7 and today's Python both accept.
Start at ``PolledForwarder``.
"""

from __future__ import annotations

import errno
import os

from .far_ends import PIPE_BYTES, STDERR_S
from .far_forwarder import CHUNK_BYTES, EOF, SMALL_BYTES, Forwarder
from .far_loop import ERRORS, IN, OUT, Loop, set_nonblocking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel
    from .far_ends import Owner


def loops_of(gateway: Any) -> tuple[Loop, Loop]:
    """Return the loops of a gateway: the one that reads, and the one that never waits."""
    with gateway._channelfactory._lock:
        loops: tuple[Loop, Loop] | None = getattr(gateway, "via_loops", None)
        if loops is None:
            model = gateway.execmodel
            loops = Loop(model, "execnet-via-read"), Loop(model, "execnet-via-write")
            gateway.via_loops = loops
    return loops


class PolledForwarder(Forwarder):
    """Forwards in threads that it shares with others: see the module.

    ``_read_fd`` and what else begins with ``_read_`` belong to the loop that reads, the rest of the
    state, but for the queue, to the other one.
    """

    def __init__(
        self, channel: Channel, news: Channel, request: dict[str, Any], owner: Owner | None = None
    ) -> None:
        super(PolledForwarder, self).__init__(channel, news, request, owner)
        self._reads, self._writes = loops_of(channel.gateway)
        self._read_fd = self._write_fd = self._end_fd = -1
        self._read_limit = SMALL_BYTES
        self._read_is_paused = False  # as the window is full
        self._read_left: int | None = None  # bytes that may still come, once the process has ended
        self._takes = True  # whether the process may still read
        self._waits_for_room = False
        self._status: int | None = None
        self._is_told = False

    # the thread that starts it

    def _forward(self) -> None:
        owner = self._owner
        for fd in owner.read_fd, owner.write_fd:
            set_nonblocking(fd)
        self._read_fd = owner.read_fd
        if owner.open_end is not None:
            self._end_fd = owner.open_end()
        self._reads.call(self._begin_reading)
        self._writes.call(self._begin_writing)
        if self._end_fd < 0 and owner.open_end is not None:
            self._writes.call(self._on_end, owner.status())  # which waits

    # the loop that reads

    def _begin_reading(self) -> None:
        self._reads.enter()
        self._reads.watch(self._read_fd, IN, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, self._read_limit)
        except EnvironmentError as exc:  # if it was reset, that is an end as well
            if exc.errno == errno.EINTR:
                return
            if exc.errno == errno.EAGAIN and self._read_left is None:
                return
            data = b""
        if self._read_left is not None:
            self._read_left -= len(data)
            if self._read_left < 0:
                data = b""
        size = len(data)
        if not size:
            self._end_reading()
            return
        self._read_limit = CHUNK_BYTES if size >= SMALL_BYTES else SMALL_BYTES
        if self._drops:
            return
        self._output.sent += size
        self._send(data)
        if not self._output.has_room():
            self._reads.unwatch(self._read_fd)
            self._read_is_paused = True
            self._read_on()  # there may be room since then

    def _read_on(self) -> None:
        """Read again, if it is paused and may go on."""
        if self._read_is_paused and (self._drops or self._output.has_room()):
            self._read_is_paused = False
            self._reads.watch(self._read_fd, IN, self._read)
            if self._read_left is not None:
                self._read_rest()

    def _on_process_end(self) -> None:
        """Read only what is there from now on: a fork of the process may hold the pipe open."""
        self._read_left = PIPE_BYTES
        self._read_rest()

    def _read_rest(self) -> None:
        if self._read_fd >= 0 and not self._read_is_paused:
            self._read()
            self._reads.call(self._read_rest)  # when others had their turn

    def _end_reading(self) -> None:
        self._reads.unwatch(self._read_fd)
        os.close(self._read_fd)
        self._read_fd = -1
        self._read_all.set()
        self._send(EOF)
        if self._owner.open_end is None:
            self._writes.call(self._on_end_of_connection)
        self._reads.leave()

    def _on_credit(self) -> None:
        if self._read_is_paused:
            self._reads.call(self._read_on)

    # the receiver thread

    def _write_now(self, data: bytes) -> int:  # holds _lock
        try:
            return os.write(self._write_fd, data) if self._write_fd >= 0 else 0
        except ERRORS:
            return 0  # the loop will find out

    def _on_queued(self) -> None:
        if self._write_fd >= 0:  # else ``_begin_writing`` is to come, or it is closed
            self._writes.call(self._write)

    # the loop that never waits

    def _begin_writing(self) -> None:
        self._writes.enter()
        if self._end_fd >= 0:
            self._writes.watch(self._end_fd, IN, self._on_end_fd)
        self._write_fd = self._owner.write_fd
        self._write()

    def _write(self) -> None:
        """Write what the process takes at once of what is queued, and no more than one item."""
        while self._write_fd >= 0 and self._queue:
            data = self._queue[0]
            if data is None:
                self._end_writing()
                return
            sent = self._written(data)
            self._account(sent)
            with self._lock:
                if sent < len(data):
                    self._queue[0] = data[sent:]
                else:
                    self._queue.popleft()
                waits = bool(self._queue) and self._queue[0] is not None and self._takes
            if waits:
                if not self._waits_for_room:
                    self._writes.watch(self._write_fd, OUT, self._write)
                    self._waits_for_room = True
                return
        if self._waits_for_room:
            self._writes.unwatch(self._write_fd)
            self._waits_for_room = False

    def _written(self, data: bytes) -> int:
        """Write what is taken of some bytes; return how many need not be written any more."""
        try:
            if self._takes:
                return os.write(self._write_fd, data)
        except EnvironmentError as exc:
            if exc.errno in (errno.EAGAIN, errno.EINTR):
                return 0
            self._takes = False  # it does not read any more, and has ended or is about to
        return len(data)

    def _end_writing(self) -> None:
        self._writes.unwatch(self._write_fd)
        os.close(self._write_fd)
        self._write_fd = -1
        self._owner.close_write()

    def _on_end_fd(self) -> None:
        self._writes.unwatch(self._end_fd)
        os.close(self._end_fd)
        self._on_end(self._owner.status())

    def _on_end_of_connection(self) -> None:
        self._on_end(self._owner.status())

    def _on_end(self, status: int | None) -> None:
        self._status = status
        self._ended.set()
        if self._read_fd >= 0:
            self._reads.call(self._on_process_end)
        self._takes = False
        with self._lock:
            self._queue.append(None)
        self._write()
        stderr = self._owner.stderr
        if stderr is None:
            self._tell_end()
        else:
            self._writes.call_later(STDERR_S, self._tell_end)
            stderr.when_over(self._on_stderr_over)

    def _on_stderr_over(self) -> None:
        if not self._is_told:
            self._writes.call(self._tell_end)

    def _tell_end(self) -> None:
        if not self._is_told:
            self._is_told = True
            stderr = self._owner.stderr
            self._tell((self._status, b"" if stderr is None else stderr.tail, b""))
            if stderr is not None:
                stderr.when_over(None)
            self._writes.leave()
