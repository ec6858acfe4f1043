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
import struct

from ..gateway_base import (
    _HEADER,
    LARGE_BYTES,
    Message,
    Popen2IO,
    _is_full,
    _pack_bytes_head,
    write_all,
)
from .far_ends import PIPE_BYTES, STDERR_S
from .far_forwarder import (
    BYTES,
    CHUNK_BYTES,
    EOF,
    SMALL_BYTES,
    STOP,
    WINDOW_BYTES,
    Forwarder,
)
from .far_loop import ERRORS, IN, OUT, Loop, set_nonblocking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import BaseGateway, Channel
    from .far_ends import Owner, Request


def loops_of(gateway: Any) -> tuple[Loop, Loop]:
    """Return the loops of a gateway: the one that reads, and the one that never waits."""
    with gateway._channelfactory.lock:
        loops: tuple[Loop, Loop] | None = getattr(gateway, "via_loops", None)
        if loops is None:
            model = gateway.execmodel
            loops = Loop(model, "execnet-via-read"), Loop(model, "execnet-via-write")
            gateway.via_loops = loops
    return loops


SPLICE_F_NONBLOCK = 2  # on Linux; ``os`` has ``splice`` since 3.10
_HEAD = struct.Struct("!biici")  # of a frame whose item is bytes


class Sieve(object):
    """Reads for a gateway, and passes on at once what is for its forwarders, as most is.

    The gateway gets everything else.  Its receiver thread reads; threads that start forwarders
    add them to ``forwarders``.
    """

    def __init__(self, gateway: BaseGateway) -> None:
        self._gateway = gateway
        self._read: Callable[[int], bytes] = gateway._io.read_some
        self._fd = fds_of(gateway)[0]
        self.forwarders: dict[int, PolledForwarder] = {}  # by the ids of their channels

    def read_some(self, limit: int) -> bytes:
        """Return what is there for the gateway, up to ``limit`` bytes; waits for some."""
        gateway, read, get = self._gateway, self._read, self.forwarders.get
        decoder, start_bytes = gateway._decoder, _HEAD.size
        if gateway._to_load or gateway._channelfactory.windows:
            return read(limit)
        if decoder.left or decoder._have:  # so that frames begin where the data do
            return read(min(limit, decoder.left or max(1, decoder.missing)))
        wanted = limit
        while True:
            data = read(wanted)
            start, end, wanted = 0, len(data), limit
            while end - start >= start_bytes:
                code, id, size, op, inner = _HEAD.unpack_from(data, start)
                is_ours = code == Message.CHANNEL_DATA and op == BYTES and size == inner + 6 > 6
                forwarder = get(id) if is_ours else None
                if forwarder is None:
                    break
                after = start + _HEADER.size + size
                if start + start_bytes < end:
                    forwarder.put(data[start + start_bytes : after - 1])
                start = after
                if start > end:
                    if not self._pass_rest(forwarder, start - end):
                        return b""
                    if size >= LARGE_BYTES and self._fd >= 0 and forwarder.moves:
                        wanted = start_bytes  # what is moved from the next one is not copied
            if start < end or not data:
                return data[start:]
            gateway._heard += 1

    def _pass_rest(self, forwarder: PolledForwarder, left: int) -> bool:
        """Pass on the rest of a frame, but for the STOP; False at the end of the stream."""
        while left > 1:
            size = forwarder.move(self._fd, left - 1)
            if not size:
                data = self._read(min(left - 1, SMALL_BYTES))
                if not data:
                    return False
                forwarder.put(data)
                size = len(data)
            self._gateway._heard += 1
            left -= size
        return bool(self._read(left))


def _readable_bytes(fd: int) -> int:
    """Return how many bytes are in a pipe; 0 if that can't be known."""
    try:
        import fcntl
        import termios

        count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0)))[0]
    except (ImportError, EnvironmentError):
        return 0
    return count


def fds_of(gateway: BaseGateway) -> tuple[int, int]:
    """Return what a gateway reads and writes, if bytes pass there as they are; else -1."""
    io = gateway._io
    if type(io) is Popen2IO and type(io.infile).__name__ == "FileIO":
        return io.infile.fileno(), io.outfile.fileno()
    return -1, -1


def sieve_of(gateway: Any) -> Sieve:
    """Return what reads for a gateway with forwarders.

    It reads nothing for one whose bytes others may read as well without ``_read``, or that does
    not pass them on as they are.
    """
    with gateway._channelfactory.lock:
        sieve: Sieve | None = getattr(gateway, "via_sieve", None)
        if sieve is None:
            sieve = gateway.via_sieve = Sieve(gateway)
            if fds_of(gateway)[0] >= 0:
                gateway._io.read_some = sieve.read_some
    return sieve


class PolledForwarder(Forwarder):
    """Forwards in threads that it shares with others: see the module.

    ``_read_fd`` and what else begins with ``_read_`` belong to the loop that reads, the rest of the
    state, but for the queue, to the other one.
    """

    moves = True  # whether bytes may be moved from pipe to pipe

    def __init__(
        self, channel: Channel, news: Channel, request: Request, owner: Owner | None = None
    ) -> None:
        super(PolledForwarder, self).__init__(channel, news, request, owner)
        self._reads, self._writes = loops_of(channel.gateway)
        self._read_fd = self._write_fd = self._end_fd = self._out_fd = -1
        self._read_limit = SMALL_BYTES
        self._read_is_paused = False  # as the window is full
        self._read_left: int | None = None  # bytes that may still come, once the process has ended
        self._takes = True  # whether the process may still read
        self._waits_for_room = False
        self._status: int | None = None
        self._is_told = False

    # the thread that starts it

    def _forward(self) -> None:
        sieve_of(self._channel.gateway).forwarders[self._channel.id] = self
        owner = self._owner
        for fd in owner.read_fd, owner.write_fd:
            set_nonblocking(fd)
        self._read_fd = owner.read_fd
        self._out_fd = fds_of(self._channel.gateway)[1]
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
        if self._read_limit == CHUNK_BYTES and self._move_out():
            self._pause_reading()
            return
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
        self._send_bytes(data)
        self._pause_reading()

    def _move_out(self) -> bool:
        """Send what there is, if that is much, from pipe to pipe; whether that was possible."""
        gateway, out_fd = self._channel.gateway, self._out_fd
        if out_fd < 0 or not self.moves or self._drops or self._read_left is not None:
            return False
        left = size = min(_readable_bytes(self._read_fd), CHUNK_BYTES)
        if size < SMALL_BYTES or gateway._channelfactory.windows is not None:
            return False
        writer, io, id = gateway._writer, gateway._io, self._channel.id
        with writer._lock:
            writer._flush()
            if writer._error or writer._closing:
                return False
            self._output.sent += size
            try:
                write_all(io, _pack_bytes_head(Message.CHANNEL_DATA, id, size + 6, BYTES, size))
                while left:
                    moved = self._moved(self._read_fd, out_fd, left)
                    if moved is None:  # it can't be done with these
                        data = os.read(self._read_fd, left)
                        write_all(io, data)
                        moved = len(data)
                    elif not moved:
                        io.wait_writable()
                    left -= moved
                write_all(io, STOP)
            except Exception as exc:
                writer.fail(str(exc))  # nothing may come after half a frame
        writer._flush_queued()
        return True

    def _moved(self, fd: int, to_fd: int, size: int) -> int | None:
        """Return how many bytes could be moved; None if that is never possible."""
        try:
            moved: int = os.splice(fd, to_fd, size, flags=SPLICE_F_NONBLOCK)
        except (EnvironmentError, AttributeError) as exc:
            if isinstance(exc, EnvironmentError) and _is_full(exc):
                return 0
            self.moves = False
            return None
        return moved

    def _pause_reading(self) -> None:
        """Read no more while the window is full."""
        if self._output.sent - self._output.taken >= WINDOW_BYTES:
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

    def _on_coordinator_gone(self) -> None:
        sieve_of(self._channel.gateway).forwarders.pop(self._channel.id, None)
        super(PolledForwarder, self)._on_coordinator_gone()

    def _write_now(self, data: bytes) -> int:  # holds _lock
        try:
            return os.write(self._write_fd, data) if self._write_fd >= 0 else 0
        except ERRORS:
            return 0  # the loop will find out

    def move(self, fd: int, size: int) -> int:
        """Do as ``put``, with up to so many bytes of a pipe; return how many were there.

        0 also if they have to be read, as they can't be written at once.
        """
        with self._lock:
            if not self.moves or fd < 0 or self._write_fd < 0 or self._queue:
                return 0
            sent = self._moved(fd, self._write_fd, size) or 0  # the loop will find out about errors
            self._account(sent)
        return sent

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
