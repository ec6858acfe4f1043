"""Items that are sent from, and received into, memory of the program's own.

The bytes of a large item go from the buffer to the stream, and from the stream to the buffer of a
thread that waits for it, with no copy in between.  A thread that no longer waits gets its buffer
back at once: what has come is moved out of it, and the item stays for the next receive.
Start at ``send_bytes`` and ``receive_into``.
"""

from __future__ import annotations

from io import BytesIO

from ..gateway_base import (
    ENDMARKER,
    FOUR_BYTE_INT_MAX,
    PY2,
    Channel,
    ChannelState,
    DumpError,
    TimeoutError,
    _left,
    _now,
    _OSError,
    _pack_op,
    _refusal,
    _refuse_in_callback,
    _Timed,
    _timed,
    _unpack_int4,
    opcode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..gateway_base import ChannelFactory, Frame, FrameDecoder, Inbox, Piece

    ReadInto = Callable[[memoryview], int | None]
    Ways = tuple[Callable[[int], bool] | None, ReadInto | None]  # neither, or both
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

COPIED_BYTES = 1 << 16  # less is cheaper copied than sent as a frame of its own
STEP_BYTES = 1 << 26  # of memory that is asked for at once
WAIT_MS = 50  # for more of an item, before the receiver thread reads as it does otherwise
FULL = object()  # what a thread that waits is given when its buffer holds the item


def view_of(buffer: Any, writable: bool = False) -> memoryview:
    """Return the bytes of an object as a flat memoryview.

    Raises TypeError for an object that has none, or none that can be written to if asked for, and
    BufferError if they are not in one piece.
    """
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError) as exc:
        if not PY2:
            raise TypeError("%s has no buffer of bytes: %s" % (type(buffer).__name__, exc))
        view = _old_view(buffer, writable)
    if writable and view.readonly:
        raise TypeError("nothing can be written to %s" % type(buffer).__name__)
    if not PY2 and not view.c_contiguous:
        raise BufferError("the bytes of %s are not in one piece" % type(buffer).__name__)
    if (view.format, view.ndim) == ("B", 1):
        return view
    if 0 in (view.shape or ()):
        return memoryview(b"")
    try:
        return view.cast("B")
    except (AttributeError, TypeError, ValueError, NotImplementedError):  # not in Python 2
        if not writable:
            return memoryview(view.tobytes())
        if PY2:
            return _old_view(buffer, writable)
        raise TypeError("items of the format %r: receive into a view as bytes" % (view.format,))


def _old_view(obj: Any, writable: bool) -> memoryview:  # Python 2, where arrays have no memoryview
    try:
        old: Any = buffer(obj)  # type: ignore[name-defined]  # noqa: F821
        if not writable:
            return memoryview(bytes(old))
        ctypes: Any = __import__("ctypes")
        return memoryview((ctypes.c_ubyte * len(old)).from_buffer(obj))
    except (TypeError, ValueError) as exc:
        raise TypeError("%s has no buffer of bytes: %s" % (type(obj).__name__, exc))


# ---------------------------------------------------------------- sending


def send_bytes(channel: Channel, buffer: Any) -> None:
    """Send the bytes of an object; see ``Channel.send_bytes``."""
    view, buffers = view_of(buffer), channel._factory.buffers
    if buffers is not None and buffers.shared is not None and channel._codec is None:
        buffers.shared.send(channel, view, buffer)
    else:
        send_pieces(channel, [view])


def send_pieces(channel: Channel, pieces: list[Piece]) -> None:
    """Send bytes that are in several places as one item."""
    gateway, factory = channel.gateway, channel._factory
    if channel._state not in ChannelState.SENDS:
        raise _refusal(gateway, "cannot send to %r of %r" % (channel, gateway))
    in_receiver = gateway._get_ident() == gateway._receiver_ident  # which never waits
    if in_receiver or not is_in_place(channel, sum(map(len, pieces))):
        send_copy(factory, channel.id, joined(pieces))
        return
    getattr(gateway, "note_sent", int)()  # where ``execnet top`` watches
    writer, frame = gateway._writer, None
    try:
        for frame in frames_of(channel, pieces):
            writer.deliver(frame)
    except BaseException:
        if frame is not None:
            let_go(frame)
        raise


def joined(pieces: list[Piece]) -> bytes:
    """Return a copy of all pieces."""
    return b"".join([piece if isinstance(piece, bytes) else piece.tobytes() for piece in pieces])


def is_in_place(channel: Channel, size: int) -> bool:
    """Whether so many bytes are sent from where they are; else from a copy."""
    if size < COPIED_BYTES or channel.gateway._writer._write_pieces is None:
        return False
    return channel._factory.windows is None


def send_copy(factory: ChannelFactory, id: int, data: bytes) -> None:
    """Send bytes that nobody changes; as such from Python 2, too."""
    if not PY2:
        factory.send_item(id, data)
        return
    vars(factory.gateway).get("note_sent", int)()
    item = _head(len(data)) + data + opcode.STOP
    if factory.windows is not None:
        factory.windows.send(id, len(item), factory.frames_of(id, [item]))
        return
    for _, header, payload in factory.frames_of(id, [item]):
        factory._send_frame(header, payload)


def frames_of(channel: Channel, pieces: list[Piece]) -> Iterator[Frame]:
    """Yield the frames of an item whose bytes stay where they are."""
    frame, frames_of_pieces = channel.gateway._writer.frame, channel._factory.frames_of
    pieces = [_head(sum(map(len, pieces)))] + pieces + [opcode.STOP]
    for _, header, payload in frames_of_pieces(channel.id, pieces):
        yield frame(header, payload)


def let_go(frame: Frame) -> None:
    """Have what is left of a frame sent from a copy: the buffer is its owner's again."""
    if _left(frame):
        frame[1] = bytes(frame[1])


def _head(size: int) -> bytes:
    if size > FOUR_BYTE_INT_MAX:
        raise DumpError("can't send %d bytes as one item" % size)
    return _pack_op(opcode.BYTES, size)


# ---------------------------------------------------------------- large items that come


class Waiter(object):
    """A buffer that the next item of a channel is to go to.

    tell: called when something was given; it must not wait.
    """

    def __init__(self, view: memoryview, tell: Callable[[object], object]) -> None:
        self.view = view
        self.tell = tell
        self.filling: Filling | None = None
        self.is_given = self.is_full = False
        self.size = 0  # of the item that is in the buffer, once that is full

    def give(self, item: object) -> bool:  # holds the lock of ``Buffers``
        """Give it an item, unless it has one or is getting one."""
        if self.is_given or self.filling is not None:
            return False
        self.is_given = True
        self.tell(item)
        return True

    def is_free(self) -> bool:
        return not self.is_given and self.filling is None


class Filling(object):
    """The item that a buffer gets, as its pieces come; to the factory it is like a ``BytesIO``.

    The lock of ``Buffers`` is held while something is written to the buffer.
    """

    def __init__(self, buffers: Buffers, channel: Channel, waiter: Waiter, size: int) -> None:
        self._lock = buffers.lock
        self._channel = channel
        self._waiter: Waiter | None = waiter  # None once it has left
        self._size = size
        self._filled = 0  # bytes in the buffer
        self._rest = BytesIO()  # what does not belong there
        self._is_whole = False

    def write(self, data: Piece) -> None:
        with self._lock:
            if self._waiter is not None:
                part = data[: self._size - self._filled]
                self._waiter.view[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                data = data[len(part) :]
            self._rest.write(data)

    def read(self, read_into: ReadInto, limit: int) -> int:
        """Read what is there from the stream, straight into the buffer; return how much."""
        with self._lock:
            limit = min(limit, self._size - self._filled)
            if self._waiter is None or not limit:
                return 0
            end = self._filled + limit
            count = read_into(self._waiter.view[self._filled : end]) or 0
            self._filled += count
            return count

    def tell(self) -> int:
        return self._filled + self._rest.tell()

    def truncate(self, size: int) -> None:
        """All has come, and the item is nothing but these bytes."""
        self._rest.truncate(size - self._filled)
        self._is_whole = True

    def getvalue(self) -> bytes | bytearray | None:
        """Return what came; None if the buffer has it, and whoever waits was told."""
        with self._lock:
            waiter = self._waiter
            if waiter is None or not self._is_whole:
                self.move_out()
                return self._rest.getvalue()
            self._channel._count(self._size + 6)
            waiter.filling, self._waiter = None, None
            waiter.size, waiter.is_full = self._size, True
            waiter.give(FULL)
            return None

    def move_out(self) -> None:  # holds the lock
        """Take what has come out of the buffer, which is no longer ours."""
        waiter, rest = self._waiter, self._rest.getvalue()
        if waiter is not None:
            self._rest = BytesIO()
            self._rest.write(waiter.view[: self._filled].tobytes())
            self._rest.write(rest)
            self._filled, self._waiter, waiter.filling = 0, None, None


class OwnFilling(Filling):
    """The item of a channel whose codec wants it as a ``bytearray``.

    Memory is asked for as the bytes come: the other side may lie about their number.
    """

    def __init__(self, buffers: Buffers, channel: Channel, size: int) -> None:
        self._data = bytearray(min(size, STEP_BYTES))
        waiter = Waiter(memoryview(self._data), id)
        super(OwnFilling, self).__init__(buffers, channel, waiter, size)

    def write(self, data: Piece) -> None:
        while self._filled + len(data) > len(self._data) < self._size:
            self._grow()
        super(OwnFilling, self).write(data)

    def read(self, read_into: ReadInto, limit: int) -> int:
        if self._filled == len(self._data) < self._size:
            self._grow()
        return super(OwnFilling, self).read(read_into, min(limit, len(self._data) - self._filled))

    def _grow(self) -> None:
        waiter: Any = self._waiter
        more = bytearray(min(len(self._data), self._size - len(self._data)))
        waiter.view = None  # a bytearray that is looked at can't grow
        try:
            self._data.extend(more)
        except BufferError:  # PyPy forgets a view only some time later
            self._data = self._data + more
        waiter.view = memoryview(self._data)

    def getvalue(self) -> bytes | bytearray | None:
        if not self._is_whole:
            return super(OwnFilling, self).getvalue()
        return self._data if _wants_bytearrays(self._channel) else bytes(self._data)


def _wants_bytearrays(channel: Channel) -> bool:
    return getattr(channel._codec, "wants_bytearrays", False)


class Buffers(object):
    """The buffers that wait for items of one gateway.

    ``lock`` guards them, and is held while something is written to one; no lock is taken by a
    thread that holds it.
    """

    def __init__(self, factory: ChannelFactory) -> None:
        self._factory = factory
        self._gateway: Any = factory.gateway
        self._waiting: dict[int, list[Waiter]] = {}  # by channel
        self.lock = factory.gateway.execmodel.Lock()
        self.shared: Any = None  # memory that both ends have: ``_shared.far``
        self._ways: Ways | None = None

    def enter(self, id: int, waiter: Waiter) -> None:
        """Have the next item of a channel go to a buffer."""
        with self.lock:
            self._waiting.setdefault(id, []).append(waiter)

    def leave(self, id: int, waiter: Waiter) -> None:
        """Write no more to a buffer; may be called again."""
        with self.lock:
            waiters = self._waiting.get(id, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiting.pop(id, None)
            if waiter.filling is not None:
                waiter.filling.move_out()
            waiter.is_given = True

    def waiters(self, id: int) -> list[Waiter]:
        return self._waiting.get(id, [])

    # in the receiver thread

    def begin(self, id: int, head: bytes) -> BytesIO | Filling:
        """Return what the pieces of a large item are written to.

        head: what it begins with if it may be bytes, else b"".
        """
        channel = self._factory._channels.get(id)
        size = _unpack_int4(head, 1)[0] if len(head) == 5 else -1
        with self.lock:
            waiter = next((one for one in self.waiters(id) if one.is_free()), None)
            if channel is None or size < 0:
                return BytesIO()
            items = channel._items
            is_next = items is not None and items.empty()
            if waiter is not None and size <= len(waiter.view) and is_next:
                waiter.filling = Filling(self, channel, waiter, size)
                return waiter.filling
        if _wants_bytearrays(channel):
            return OwnFilling(self, channel, size)
        return BytesIO()

    def fill(self, decoder: FrameDecoder, wait_ms: int = WAIT_MS) -> bool:
        """Read the rest of a frame into its buffer while some is there; return whether it was."""
        gateway, has_read = self._gateway, False
        key = self._factory.coming_part and self._factory.coming_part[0]
        filling: object = self._factory.parts.get(key, (b"", None))[1]
        direct = self._factory.direct
        if not isinstance(filling, Filling) or (direct and direct.chunks):
            return False
        if gateway._next_data.__self__ is not gateway:  # another thread may be reading
            return False
        has_more, read_into = self._ways = self._ways or _ways(gateway._io)
        try:
            while decoder.left and has_more and read_into and has_more(wait_ms):
                count = filling.read(read_into, decoder.left)
                if not count:
                    break
                gateway._heard += 1
                decoder.left -= count
                has_read = True
        except (EnvironmentError, ValueError):
            pass  # reading as otherwise meets it, too
        return has_read


def _ways(io: Any) -> Ways:
    """Return how to know whether a stream can be read, and how to read it into a buffer."""
    read_into = getattr(io, "read_into", None)
    if read_into is None and type(getattr(io, "infile", None)).__name__ == "FileIO":
        read_into = io.infile.readinto
    has_more = getattr(io, "has_more", None)
    return (has_more, read_into) if has_more is not None else (None, None)


def buffers_of(factory: ChannelFactory) -> Buffers:
    """Return the buffers of a gateway."""
    if factory.buffers is None:
        with factory.lock:
            factory.buffers = factory.buffers or Buffers(factory)
    buffers: Buffers = factory.buffers
    return buffers


def copied(item: object, view: memoryview) -> int:
    """Copy an item to a buffer and return its size; raise for one that can't be."""
    if not isinstance(item, (bytes, bytearray, memoryview)):
        kind = type(item).__name__
        raise TypeError("the next item is not bytes but %s; it stays for receive()" % kind)
    if len(item) > len(view):
        sizes = len(item), len(view)
        raise ValueError("the next item has %d bytes, the buffer %d; it stays" % sizes)
    view[: len(item)] = item
    return len(item)


# ---------------------------------------------------------------- threads that wait


class BufferInbox(object):
    """The queue of a channel whose items are received into buffers.

    An item that comes while a thread waits with a buffer is given to that thread.
    """

    def __init__(self, items: Inbox, channel: Channel, buffers: Buffers) -> None:
        self._items = items
        self._buffers = buffers
        self._id = channel.id
        self._back: deque[object] = deque()  # taken, and the next ones again
        self._draws = iter(self._back.popleft, FULL)
        self._empty = channel.gateway.execmodel.Empty
        self.put, self.put_nowait = items.put, items.put_nowait
        self.note_read: Callable[[], object] = getattr(items, "note_read", int)
        if hasattr(items, "sizes"):
            self.sizes = items.sizes

    def qsize(self) -> int:
        return len(self._back) + int(self._items.qsize())

    def empty(self) -> bool:
        """Whether there is nothing for anybody."""
        if self._back or not self._items.empty():
            return False
        return not any(waiter.is_given for waiter in list(self._buffers.waiters(self._id)))

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """Return the next item, like a queue."""
        try:
            for item in self._draws:  # each step takes one
                return item
        except IndexError:
            pass
        timed = _timed(self._items, timeout if block else 0)
        try:
            (item,) = map(self._items.get, *timed)  # as in ``Channel.receive``
        except self._empty:
            if not isinstance(timed[0], _Timed) or timed[0].left <= 0:
                raise
            return self.get(True, timed[0].left)  # another thread was faster
        return item

    def offer(self, item: object) -> None:
        """Put an item while threads wait with buffers: the first of them gets it."""
        waiters = self._buffers.waiters(self._id)
        with self._buffers.lock:
            if item is not ENDMARKER and any(waiter.give(item) for waiter in waiters):
                return
            self._items.put_nowait(item)
            if item is ENDMARKER:
                for waiter in waiters:
                    waiter.tell(ENDMARKER)

    def give_back(self, item: object) -> None:
        """Make an item that was taken the next one again."""
        if self._back or not self._items.empty() or hasattr(self, "sizes"):
            self._back.appendleft(item)
        else:
            self.put_nowait(item)  # which wakes others

    def enter(self, waiter: Waiter) -> None:
        self._buffers.enter(self._id, waiter)
        self.put = self.put_nowait = self.offer

    def leave(self, waiter: Waiter) -> None:
        """As ``Buffers.leave``."""
        self._buffers.leave(self._id, waiter)
        with self._buffers.lock:
            if not self._buffers.waiters(self._id):
                self.put, self.put_nowait = self._items.put, self._items.put_nowait


def receive_into(channel: Channel, buffer: Any, timeout: float | None = None) -> int:
    """Put the next item into a buffer; see ``Channel.receive_into``."""
    view = view_of(buffer, writable=True)
    inbox = _inbox_of(channel)
    waiter = Waiter(view, channel.gateway.execmodel.inbox().put_nowait)
    taken: list[object] = []  # the item, once it is ours; whatever happens then, it is not lost
    try:
        _take(channel, inbox, waiter, timeout, taken)
        return waiter.size if taken[0] is FULL else copied(taken[0], view)
    except BaseException:
        for item in taken:
            inbox.give_back(view[: waiter.size].tobytes() if item is FULL else item)
        raise


def _inbox_of(channel: Channel) -> BufferInbox:
    with channel._lock:
        items = channel._items
        if items is None:
            raise _OSError("cannot receive_into(), %r has a callback" % (channel,))
        if not isinstance(items, BufferInbox):
            items = BufferInbox(items, channel, buffers_of(channel._factory))
            channel._set_inbox(items)
        return items


def _take(
    channel: Channel, inbox: BufferInbox, waiter: Waiter, timeout: float | None, taken: list[object]
) -> None:
    """Take the next item, waiting for it up to ``timeout`` seconds."""
    deadline = None if timeout is None else _now() + timeout
    untaken = getattr(channel, "_untaken", None)  # of a channel with a codec
    if untaken:
        taken += untaken[:1]
        del untaken[:1]
        return
    while not taken:
        left = None if deadline is None else deadline - _now()
        direct = channel._factory.direct
        is_read = direct and direct.offered and direct.read(channel, inbox, left)
        if not (is_read or not inbox.empty()) and (left is None or left > 0):
            _refuse_in_callback(channel.gateway, channel)
            inbox.note_read()
            if _wait(channel, inbox, waiter, left, taken):
                continue
        else:
            left = 0
        try:
            taken += map(Channel.receive, (channel,), (left,))
        except TimeoutError:
            if deadline is not None and deadline <= _now():
                raise


def _wait(
    channel: Channel, inbox: BufferInbox, waiter: Waiter, left: float | None, taken: list[object]
) -> bool:
    """Wait with a buffer for the next item; return False if there is no need to."""
    factory, me, box = channel._factory, object(), channel.gateway.execmodel.inbox()
    waiter.tell, waiter.is_given = box.put_nowait, False
    try:
        with channel._lock:  # so that nothing comes meanwhile
            if channel._items is not inbox:
                raise _OSError("cannot receive_into(), %r got a callback meanwhile" % (channel,))
            if channel._state not in ChannelState.RECEIVES or not inbox.empty():
                return False
            inbox.enter(waiter)
        if factory.direct is not None:
            factory.direct.waiting[me] = inbox
        factory.take_back()
        try:
            taken += map(box.get, *_timed(box, left))
        except channel.gateway.execmodel.Empty:
            pass
    finally:
        _surely(lambda: _stop(channel, inbox, waiter, me, box, taken))
    return True


def _stop(
    channel: Channel, inbox: BufferInbox, waiter: Waiter, me: object, box: Inbox,
    taken: list[object]
) -> None:
    """Wait no more: nothing is written to the buffer from now on; may be called again."""
    if channel._factory.direct is not None:
        channel._factory.direct.waiting.pop(me, None)
    inbox.leave(waiter)
    while not (taken or box.empty()):
        taken += map(box.get, (False,))
    if taken == [ENDMARKER]:  # which is in the queue as well, and means an error
        del taken[:]


def _surely(function: Callable[[], object]) -> None:
    """Call a function until no interrupt keeps it from finishing; it may be called again."""
    interrupt: BaseException | None = None
    while True:
        try:
            function()
            break
        except KeyboardInterrupt as exc:
            interrupt = exc
    if interrupt is not None:
        raise interrupt
