"""Direct reads: a thread that waits for an item reads the stream itself."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import sys

from ..gateway_base import (
    _HEADER,
    _INT_FRAME,
    ChannelState,
    LoadError,
    _import,
    above_stdio,
    real_select,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..gateway_base import Channel, ExecModel, Inbox

    Poll = Callable[[int | None], list[tuple[int, int]]]

_unpack_int_frame = _INT_FRAME.unpack


class DirectReads:
    """Lets a thread that waits for an item read the stream itself: no switch of threads.

    The receiver thread offers the stream after giving an item to the only thread that waited for
    one, and takes it back on request, or when nobody reads any more.  The thread that reads holds
    ``_turn`` and handles nothing but an item that it waits for itself; everything else is left in
    ``chunks`` for the receiver thread.

    CPython checks for interrupts and switches threads after calls.  So a step of a loop reads, with
    no call between the read and the end of the append of its bytes, and none between their removal
    and ``items.put``.
    """

    IDLE_S = 0.005  # after this long without use the receiver thread reads again
    int_bytes = 15  # of the frame of an int, which is taken without ``_load``; 0: none is

    def __init__(self, fd: int, execmodel: ExecModel) -> None:
        self._fd = fd
        self._reads: Iterator[bytes] = map(os.read, itertools.repeat(fd), itertools.repeat(65536))
        self._poll: Poll | None = None  # None: the socket itself waits no longer than ``IDLE_S``
        self._limit_ms: int | None = 5  # ``IDLE_S``; None: something else ends it, too
        self._wake_fd = -1
        self._turn = execmodel.Lock()
        self._asked_back = execmodel.Lock()  # free after that; an interrupt can break an Event
        self._asked_back.acquire()
        self.uses = 0
        self.offered = False
        self.chunks: list[bytes] = []
        self.waiting: dict[object, Inbox] = {}  # the queues that wait for the receiver thread
        self.served = False  # whether one of them got an item
        self._given: list[object] = []  # the waits that it was for, also if they are not over yet
        self.declined = False  # whether the thread that was to read has ended before the offer

    def offer(self) -> None:
        """Leave the stream to others as long as they use it; in the receiver thread."""
        self._set_up()
        uses, self.offered = -1, True
        asked = self.declined or self._does_one_wait()
        while not (asked or self.chunks or uses == self.uses):
            uses = self.uses
            asked = self._asked_back.acquire(True, self.IDLE_S)
        self.offered = self.served = self.declined = False
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)
        with self._turn:  # the thread that read so far has finished
            self._asked_back.acquire(False)
            self._tear_down()

    def serve(self, items: Inbox) -> None:
        """Note who waits for the item that is about to be put into a queue."""
        self._given = [me for me, queue in self.waiting.copy().items() if queue is items]
        self.served = self.served or bool(self._given)

    def _does_one_wait(self) -> bool:
        """Whether a thread has begun to wait since then, or waits for another item.

        From CPython 3.13 on a queue is empty already while the thread that gets its item wakes up.
        """
        waiting = self.waiting.copy().items()
        return any(items.empty() for me, items in waiting if me not in self._given)

    def _set_up(self) -> None:
        if sys.platform == "linux" and stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            try:
                self._set_receive_timeout(self.IDLE_S)
                return
            except OSError:  # with another kind of time
                pass
        select = real_select()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        try:
            self._wake_fd = above_stdio(os.eventfd(0))
            poll.register(self._wake_fd, select.POLLIN)
            self._limit_ms = None
        except (AttributeError, OSError):  # an old Python, another system, or too many open
            pass
        self._poll = poll.poll

    def _tear_down(self) -> None:
        if self._poll is None:
            self._set_receive_timeout(0)
        elif self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd, self._limit_ms = -1, 5

    def _set_receive_timeout(self, seconds: float) -> None:
        """Make reads of the socket fail after that time, 0 for never."""
        _socket = _import("_socket")
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, self._fd)
        try:
            timeval = struct.pack("ll", 0, int(seconds * 1e6))
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeval)
        finally:
            sock.detach()

    def want(self) -> None:
        """A thread was given something to do, after which it may read; in the receiver thread."""
        self.declined = False
        self.served = True

    def decline(self) -> None:
        """That thread was done before there was an offer: the receiver thread goes on."""
        self.served, self.declined = False, True
        self.take_back()  # if there is one by now

    def next_chunk(self) -> bytes:
        """Remove and return the bytes that were read first; in the receiver thread."""
        return self.chunks.pop(0)

    def take_back(self) -> None:
        """Make the receiver thread read again."""
        if self.offered and self._asked_back.locked():
            try:
                self._asked_back.release()
            except RuntimeError:
                pass  # another thread did it first

    def read(self, channel: Channel, items: Inbox, timeout: float | None) -> bool:
        """Read an item into a channel's queue; False if the receiver thread has to do it."""
        if self._turn.locked() or not (timeout is None or timeout > self.IDLE_S):
            return False
        chunks = self.chunks
        with self._turn:
            if self.offered and not chunks and items.empty():
                self.uses += 1
                try:
                    if self._poll is not None:
                        ready = self._poll(self._limit_ms if timeout is None else 5)
                        if not ready or ready[0][0] != self._fd:
                            return False
                    for data in self._reads:
                        chunks.append(data)
                        if len(data) != self.int_bytes or channel._factory.windows is not None:
                            return self._load(channel, items, data)
                        # What that would come to for an int: it is often sent.
                        code, id, size, op, item, stop = _unpack_int_frame(data)
                        # 4 is CHANNEL_DATA, 70 INT and 81 STOP
                        if op != 70 or id != channel.id or code != 4 or size != 6 or stop != 81:
                            return self._load(channel, items, data)
                        with channel._lock:
                            is_open = channel._state in ChannelState.RECEIVES
                            if is_open and items is channel._items:
                                del chunks[0]  # as in ``_load``: no call comes between these
                                items.put(item)
                                return True
                        return False
                except OSError:
                    pass  # the receiver thread meets it as well; or nothing came in time
        return False

    def read_frames(
        self,
        code: int,
        id: int,
        send: Callable[[], object],
        give_up: Callable[[], object],
        ignored: bytes,
    ) -> list[bytes]:
        """Send something, then return the payloads of the frames that come next, at least one.

        [], after ``give_up()``, if there comes none for a while, or first one of another code or
        for another channel, or an empty one: the receiver thread meets what comes then.  While
        the stream is not offered, or others read it, neither function is called.
        ignored: a frame that means nothing if it comes first.
        """
        if self._turn.locked():
            return []
        chunks = self.chunks
        with self._turn:
            if not self.offered or chunks:
                return []
            payloads: list[bytes] = []
            try:
                send()
                while self._read_chunk(self._limit_ms):
                    data = chunks[0]
                    if data != ignored:
                        break
                    del chunks[0]
            except OSError:
                pass  # as in ``read``
            start = _take_frames(data, code, id, payloads) if chunks else 0
            if not payloads:
                give_up()
            elif start == len(data):
                del chunks[0]
            else:
                chunks[0] = data[start:]
                self.take_back()
            return payloads

    def _read_chunk(self, limit_ms: int | None) -> bool:
        """Append to ``chunks`` what comes next; False if nothing does, for a while."""
        self.uses += 1
        if self._poll is not None:
            ready = self._poll(limit_ms)
            if not ready or ready[0][0] != self._fd:
                return False
        for data in self._reads:
            self.chunks.append(data)
            return True
        return False

    def _load(self, channel: Channel, items: Inbox, data: bytes) -> bool:
        """Put the bytes read into a channel's queue, if they are exactly one item for it.

        Not an item with channels: an interrupt would drop them, and so close them.
        """
        if data[:9] != _HEADER.pack(4, channel.id, len(data) - 9):
            return False
        try:
            item = channel._factory.load_item(data[9:], None, channel._strconfig)
        except LoadError:
            return False  # the receiver thread meets it as well, and closes the channel
        with channel._lock:
            if items is not channel._items or channel._state not in ChannelState.RECEIVES:
                return False
            counts = channel._factory.windows is not None
            sizes: list[int] = getattr(items, "sizes", []) if counts else []
            # No call comes between these, so an interrupt comes before or after all three.
            sizes += (len(data) - 9,)
            del self.chunks[0]
            items.put(item)
        return True


def _take_frames(data: bytes, code: int, id: int, payloads: list[bytes]) -> int:
    """Append the payloads of whole frames of a code and a channel; return where they end."""
    start, size = 0, _HEADER.size
    while start + size < len(data):
        head = _HEADER.unpack_from(data, start)
        end = start + size + head[2]
        if head[:2] != (code, id) or not start + size < end <= len(data):
            break
        payloads.append(data[start + size : end])
        start = end
    return start
