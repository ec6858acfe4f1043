"""A byte stream that outlives its connections: bytes on their way are kept, and sent again.

Both ends number the bytes of the frames, from 0 on, and keep copies of those that the other end has
not acknowledged.  A connection begins with its epoch and the number of bytes read so far; of two
connections, the one with the higher epoch wins.  An acknowledgement is a frame like others, and its
bytes are numbered as well.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at
``Link``; what is special to each end is in ``near`` and ``far_worker``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import time

from ..gateway_base import (
    _HEADER,
    FrameWriter,
    Message,
    ProtocolError,
    _Flag,
    above_stdio,
    dumps_internal,
    loads_internal,
    new_lock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Any

    from ..gateway_base import ExecModel, Frame, Piece
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

KEPT_BYTES = 8 << 20  # how much may be unacknowledged before ``send`` waits
QUEUED_FRAMES = 64  # how many the link's thread may leave in the queue before ``send`` waits
ACK_BYTES = 64 << 10
ACK_S = 0.2
WRITE_BYTES = 128 << 10  # the most that one system call writes
LOOK_MS = 1000  # how often to look for the end of a process, which the stream may hide
FULL = errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR
OPENING = struct.Struct("!QQ")  # epoch of the connection, bytes read of all before it

clock = getattr(time, "monotonic", time.time)


class Bell(object):
    """A pipe that ends the poll of one thread; any thread may ring."""

    def __init__(self) -> None:
        self.fd, self._ring_fd = map(above_stdio, os.pipe())
        self._lock = new_lock()
        for fd in self.fd, self._ring_fd:
            make_private(fd)

    def ring(self) -> None:
        """Wake the thread, now or when it waits next."""
        with self._lock:
            if self._ring_fd >= 0:
                try:
                    os.write(self._ring_fd, b"!")
                except EnvironmentError:  # it is full, so it has been rung
                    pass

    def take(self) -> None:
        """Silence the bell; the thread looks at everything after that."""
        try:
            os.read(self.fd, 4096)
        except EnvironmentError:
            pass

    def close(self) -> None:
        """Close it, as nobody waits any more."""
        with self._lock:
            for fd in self.fd, self._ring_fd:
                if fd >= 0:
                    os.close(fd)
            self.fd = self._ring_fd = -1


def make_private(fd: int) -> None:
    """Make a descriptor non-blocking, and keep child processes from inheriting it."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)


class Connection(object):
    """The descriptors of one connection, which are its own."""

    def __init__(self, read_fd: int, write_fd: int, epoch: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.epoch = epoch
        self.is_lost = False
        self.is_broken = False  # whether nothing can be written; what has come can still be read
        self.is_closed = False
        for fd in read_fd, write_fd:
            make_private(fd)

    def has_ended(self) -> bool:
        """Whether something else than reading has shown that it has ended."""
        return False

    def close(self) -> None:
        """Close the descriptors; called in the link's thread, which holds the readers' lock."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self.write_fd)
            os.close(self.read_fd)


class LinkWriter(FrameWriter):
    """Takes frames for a link; ``send`` returns when the link has a copy.

    It hands a frame over to the link's thread in one step, so no interrupt sends half of one.
    """

    _io: Link

    def __init__(self, io: Link, name: str) -> None:
        super(LinkWriter, self).__init__(io, name)
        self._waiting: deque[_Flag] = deque()  # one for each sender that waits for room
        self._io.start(self, name)

    def frame(self, header: bytes, payload: Piece) -> Frame:
        """Return a frame for ``deliver``: a copy, since it may be sent again."""
        return [b"".join((header, payload)), b"", [], []]

    def send(self, header: bytes, payload: Piece) -> None:
        """Have a frame sent; waits for room, OSError if the link has ended."""
        self.deliver(self.frame(header, payload))

    def deliver(self, frame: Frame) -> None:
        """Send a frame; after an interrupt, a second call does not send it twice."""
        while not (self._has_room() or self.has(frame)):
            room = _Flag(self._io.execmodel)
            self._waiting.append(room)
            self._io.bell.ring()
            if not self._has_room():
                room.wait()
        if self._error is not None or self._closing:
            reason = self._error or "the gateway was ended"
            raise self.refusal("cannot send (already closed?): %s" % reason)
        self.post_frame(frame)

    def _has_room(self) -> bool:
        if self._error is not None or self._closing:
            return True  # to fail
        queued = list(self._frames)
        if len(queued) >= QUEUED_FRAMES:
            return False
        left: int = KEPT_BYTES - self._io.kept_bytes
        return sum(len(frame[0]) for frame in queued) < left

    def post_frame(self, frame: Frame) -> None:
        """Have a frame sent soon; never waits."""
        if self._error is None and not self._closing and not self.has(frame):
            frame[3] += map(self._frames.append, (frame,))
            self._io.bell.ring()

    def close_soon(self) -> None:
        """Refuse all frames from now on; waiting ones are sent, and the stream goes on."""
        self._closing = True
        self.wake()
        self._io.finish()

    def fail(self, reason: str) -> None:
        """Refuse all frames from now on, and drop those that are waiting."""
        if self._error is None:
            self._error = reason
        self.wake()
        self._io.bell.ring()

    def take(self) -> Frame | None:
        """Return the next frame; None if there is none.  Only the link's thread calls this."""
        return self._frames.popleft() if self._frames else None

    def wake(self) -> None:
        """Make all senders that wait for room look again."""
        while self._waiting:
            self._waiting.popleft().set()


class Link(object):
    """The stream of a gateway over one connection after the other.

    Only the link's thread writes, closes and changes connections; one thread reads.  It holds
    ``_reading`` while it does, so when a connection is given up it is known how much was read.
    ``_changing`` guards which connection is in use.
    """

    writer_class = LinkWriter
    small_bytes = 0
    takes_whole = False
    write_some: Any = None  # not used: the writer of a link works in another way
    write_pieces: Any = None

    def __init__(self, execmodel: ExecModel, connection: Connection) -> None:
        self.execmodel = execmodel
        self.connection: Connection | None = connection
        self.bell = Bell()
        self.is_over = False
        self.end_text = ""  # the error that the reader gets at the end
        self.kept_bytes = 0  # in ``_kept`` and ``_ahead`` together
        self.read_bytes = 0
        self.read_at = clock()  # when the last of them were
        self.is_numbered = True
        self.is_held = False  # whether nothing may be written for now
        self._changing = new_lock()
        self._reading = new_lock()
        self._reader_bell = Bell()
        self._given_up: deque[Connection] = deque()  # to be closed
        self._next: tuple[Connection, int] | None = None  # the one to change to
        # Only for the link's thread:
        self._kept: deque[bytes] = deque()  # written to some connection, not acknowledged
        self._first = self._after = 0  # numbers of its first byte, and of the one after its last
        self._ahead: deque[bytes] = deque()  # not written yet
        self._part = 0  # how much of the first of these is written
        # What was read: all of it, how much of it was reported, and the frames that reported it.
        self._acked = 0  # how much the other end has acknowledged
        self._told = 0
        self._acks_read = self._acks_told = 0
        self._ack_due: float | None = None
        self._done = _Flag(execmodel)  # set when the link's thread has ended or never began
        self._done.set()

    writer: LinkWriter

    def start(self, writer: LinkWriter, name: str) -> None:
        """Start the link's thread, which writes what its writer gets; RuntimeError if it can't."""
        self.writer = writer
        done = _Flag(self.execmodel)
        self.execmodel.start(self._run, (done,), "execnet-link-%s" % name)
        self._done = done

    # ------------------------------------------------------------ for the receiver thread

    def read_some(self, limit: int) -> bytes:
        """Return the bytes that are there; waits for some, over as many connections as it takes.

        Raises EOFError at the end, with the reason.
        """
        while not self.is_over:
            connection = self.connection
            poll = select.poll()
            poll.register(self._reader_bell.fd, select.POLLIN)
            if connection is not None:
                poll.register(connection.read_fd, select.POLLIN)
            try:
                ready = dict(poll.poll(LOOK_MS))
            except (EnvironmentError, select.error):  # a signal, in Python 2
                continue
            if self._reader_bell.fd in ready:
                self._reader_bell.take()
            if connection is None:
                continue
            if connection.read_fd in ready:
                data = self._read(connection, limit)
                if data:
                    return data
                if data is not None:
                    self.lose(connection, "the connection ended")
            elif connection.is_broken or (not ready and connection.has_ended()):
                self.lose(connection, "the connection ended")
        raise EOFError(self.end_text)

    def _read(self, connection: Connection, limit: int) -> bytes | None:
        """Return the bytes that are there; None for none now, b"" at the connection's end."""
        with self._reading:
            if connection.is_lost:
                return None
            try:
                data = os.read(connection.read_fd, limit)
            except EnvironmentError as exc:
                return None if exc.errno in FULL else b""
            self.read_bytes += len(data)
            self.read_at = clock()
        if self._ack_due is None or self.read_bytes - self._told >= ACK_BYTES:
            self._ack_due = self._ack_due or self.read_at + ACK_S
            self.bell.ring()
        return data

    def on_ack(self, message: Message) -> None:
        """Act on an ACK frame; in the receiver thread."""
        self.count_ack(message)
        count = loads_internal(message.data)
        if not isinstance(count, (int, type(1 << 63))) or count < 0:
            raise ProtocolError("no number of bytes: %.40r" % (count,))
        self._acked = max(self._acked, count)
        self.bell.ring()

    def count_ack(self, message: Message) -> None:
        """Exclude a frame from acknowledgement, which would never end otherwise."""
        self._acks_read += _HEADER.size + len(message.data)

    def close_read(self) -> None:
        """End the link."""
        self.stop("the stream was closed")
        self._done.wait()
        self._reader_bell.close()

    # ------------------------------------------------------------ for any thread

    def lose(self, connection: Connection, why: str) -> None:
        """Give a connection up, unless somebody has done so before."""
        with self._changing:
            if connection.is_lost:
                return
            with self._reading:
                connection.is_lost = True
            if self.connection is connection:
                self.connection = None
            self._given_up.append(connection)
        self.bell.ring()
        self._reader_bell.ring()
        if not self.is_over:
            self.on_lost(connection, why)

    def on_silence(self, reason: str) -> bool:
        """Try another connection, as the other end is silent; return True: the link goes on."""
        connection = self.connection
        if connection is not None:
            self.lose(connection, reason)
        return not self.is_over

    def use(self, connection: Connection, peer_read: int) -> None:
        """Use a connection from now on, whose other end has read this many bytes."""
        with self._changing:
            self._next = connection, peer_read
        self.bell.ring()

    def stop(self, text: str) -> None:
        """End the link, and the wait of whoever reads."""
        with self._changing:
            self.end_text = self.end_text or text
            self.is_over = True
        self.bell.ring()
        self._reader_bell.ring()

    def on_lost(self, connection: Connection, why: str) -> None:
        """Ask for another connection; never waits."""

    def on_used(self, connection: Connection) -> None:
        """Note that a connection is in use; called in the link's thread."""

    def finish(self) -> None:
        """Have the waiting frames written; no more are handed in."""
        self.bell.ring()

    # what the core asks of a stream

    def write(self, data: bytes) -> None:
        """Have bytes written like any frame."""
        self.writer.post(data, b"")

    def wait_writable(self) -> None:
        """Return at once: only the link's thread waits for room."""

    def can_write_now(self) -> bool:
        """Whether a frame would be taken."""
        return True

    def close_write(self) -> None:
        """Do nothing: the end of a connection would not be the other end's."""

    def direct_reads(self) -> None:
        """Return None: only the receiver thread reads."""

    # ------------------------------------------------------------ the link's thread

    def _run(self, done: _Flag) -> None:
        try:
            while not self.is_over:
                self._step()
        except Exception as exc:
            self.stop("the link failed: %s: %s" % (type(exc).__name__, exc))
        finally:
            self.stop("the link has ended")
            self._close_all()
            self.writer.fail(self.end_text)
            done.set()

    def _close_all(self) -> None:
        with self._changing:
            found = list(self._given_up) + [self.connection]
            found += [self._next[0]] if self._next is not None else []
            self.connection = self._next = None
        with self._reading:
            for connection in found:
                if connection is not None:
                    connection.is_lost = True
                    connection.close()
        self.bell.close()

    def _step(self) -> None:
        """Do what is to be done, then wait for more."""
        while self._given_up:
            with self._reading:
                self._given_up.popleft().close()
        self._change()
        self._forget_acked()
        self._take_frames()
        if self.kept_bytes < KEPT_BYTES:
            self.writer.wake()
        due_s = self._acknowledge()
        connection = self.connection
        if connection is None or connection.is_broken or self.is_held or not self._ahead:
            self._await(None, due_s)
        elif not self._write_some(connection):  # otherwise there may be more by now
            self._await(connection, due_s)

    def _take_frames(self) -> None:
        """Take over frames up to the limit; the rest stays in the writer's queue, which counts."""
        while self.kept_bytes < KEPT_BYTES:
            frame = self.writer.take()
            if frame is None:
                return
            self._ahead.append(frame[0])
            self.kept_bytes += len(frame[0])
            frame[2].append(len(frame[0]))  # as good as written

    def _change(self) -> None:
        """Change to the next connection, if there is one, and resend what its other end lacks."""
        with self._changing:
            found, self._next = self._next, None
        if found is None:
            return
        connection, peer_read = found
        self._ahead.extendleft(reversed(self._kept))
        self._kept.clear()
        if not self._first <= peer_read <= self._first + sum(map(len, self._ahead)):
            self.stop("the other end has read what was not sent, or is not kept any more")
            connection.close()
            return
        while self._ahead and self._first + len(self._ahead[0]) <= peer_read:
            self._drop(self._ahead)
        self._after, self._part = self._first, peer_read - self._first
        with self._changing:
            self.connection = connection
        self.on_used(connection)
        self._reader_bell.ring()

    def _forget_acked(self) -> None:
        while self._kept and self._first + len(self._kept[0]) <= self._acked:
            self._drop(self._kept)
        if self._acked > self._after + self._part:
            self.stop("the other end acknowledged what was not sent")

    def _drop(self, pieces: deque[bytes]) -> None:
        size = len(pieces.popleft())
        self._first += size
        self.kept_bytes -= size

    def _acknowledge(self) -> float | None:
        """Acknowledge what was read, if it is time; return the seconds until it is."""
        if self._ack_due is None or not self.is_numbered:
            return None
        left = self._ack_due - clock()
        if self.read_bytes - self._told < ACK_BYTES and left > 0:
            return left
        self._ack_due = None  # before anything else, as the next read looks at it
        acks, read = self._acks_read, self.read_bytes
        if read - self._told > acks - self._acks_told:  # acks themselves need none
            self._ahead.append(ack_frame(read))
            self.kept_bytes += len(self._ahead[-1])
        self._told, self._acks_told = read, acks
        return None

    def _write_some(self, connection: Connection) -> bool:
        """Write what one system call takes; return whether it took anything."""
        if self._ahead[0] is BARRIER:
            self._ahead.popleft()
            self.is_numbered = self.is_held = True
            return False
        data = self._ahead[0][self._part : self._part + WRITE_BYTES]
        if len(data) < 4096 and len(self._ahead) > 1:
            data = self._gather(data)
        try:
            taken = os.write(connection.write_fd, data)
        except EnvironmentError as exc:
            if exc.errno not in FULL:
                connection.is_broken = True
                self._reader_bell.ring()
            return False
        self._part += taken
        while self._ahead and self._ahead[0] is not BARRIER and self._part >= len(self._ahead[0]):
            piece = self._ahead.popleft()
            self._part -= len(piece)
            if self.is_numbered:
                self._kept.append(piece)
                self._after += len(piece)
            else:
                self.kept_bytes -= len(piece)
        return True

    def _gather(self, data: bytes) -> bytes:
        """Return as much of several small pieces as one call takes, joined."""
        pieces, size = [data], len(data)
        for place, piece in enumerate(self._ahead):
            if place == 0:
                continue
            if piece is BARRIER or size + len(piece) > WRITE_BYTES:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def _await(self, connection: Connection | None, due_s: float | None) -> None:
        """Wait for work; connection: one that can't be written to now."""
        poll = select.poll()
        poll.register(self.bell.fd, select.POLLIN)
        if connection is not None and not (connection.is_lost or connection.is_broken):
            poll.register(connection.write_fd, select.POLLOUT)
        for fd in self.watched():
            poll.register(fd, select.POLLIN)
        try:
            ready = dict(poll.poll(None if due_s is None else int(1000 * due_s) + 1))
        except (EnvironmentError, select.error):  # a signal, in Python 2
            return
        if self.bell.fd in ready:
            self.bell.take()
        self.on_ready(ready)

    def watched(self) -> list[int]:
        """Return other descriptors that the link's thread is to watch."""
        return []

    def on_ready(self, ready: dict[int, int]) -> None:
        """Look at them: something may have come."""


BARRIER: bytes = type("Barrier", (bytes,), {})()  # what comes after it is numbered


def ack_frame(item: object) -> bytes:
    """Return the frame that acknowledges bytes, or says what else there is to say."""
    data = dumps_internal(item)
    return _HEADER.pack(Message.ACK, 0, len(data)) + data
