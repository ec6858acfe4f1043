"""Memory that both ends of a gateway have, for what ``send_bytes`` sends.

Each side fills segments of its own half, and lends them to the other side; that gives one back
when it has no view of it any more (``Borrower._give_back``), and then it is free again
(``Lender._free_unused``).  An item for which no segment is free goes over the stream, so that
nobody waits for memory.  On PyPy nothing tells that a view has gone, as views keep the memory, but
not the object that it came from: so items are copied as they come (``CopyingBorrower``), and
``Lender.new`` returns ordinary memory.  Both sides run this.  Start at ``Shared``.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import sys
import weakref
from io import BytesIO

from ..gateway_base import (
    _HEADER,
    ISPYPY,
    PART_BYTES,
    PY2,
    ChannelState,
    Message,
    ProtocolError,
    _decoded,
    _import,
    _refusal,
    above_stdio,
    dumps_internal,
    load_part,
    new_lock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..gateway_base import BaseGateway, Channel, ChannelFactory
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

LEAST_BYTES = 1 << 16  # less is cheaper sent over the stream
STEP_BYTES = 1 << 24  # that are written at once
PAGE_BYTES = 1 << 12  # segments begin at multiples of it
KINDS_MAX = 32  # sizes whose type is kept: making one takes longer than a view
MORE, LAST = -1, -2  # in place of where a segment begins: a piece of the item follows
PARTS_MAX = 1000  # items of which some pieces have come
# Where its segment begins, and the size of the item; or MORE or LAST, and the item's number.
_ITEM = struct.Struct("!qq")
_PLACE = struct.Struct("!q")
OVERHEAD = 6  # that a window counts for an item of bytes


class Memory(object):
    """A file without a name, in two halves of equal size; closed when nobody uses it any more."""

    def __init__(self, fd: int, half_bytes: int) -> None:
        self.fd = fd
        self.half_bytes = half_bytes

    def __del__(self, close: Callable[[int], object] = os.close) -> None:
        close(self.fd)

    def write(self, place: int, view: memoryview) -> None:
        """Write all of a view; OSError if there is no memory for it."""
        done = 0
        while done < len(view):
            done += self._write_some(place + done, view[done : done + STEP_BYTES])

    def _write_some(self, place: int, view: memoryview) -> int:
        if not PY2:
            return os.pwrite(self.fd, view, place)
        os.lseek(self.fd, place, os.SEEK_SET)  # Python 2 holds the lock of ``Lender`` meanwhile
        return os.write(self.fd, view)

    def map(self, start: int) -> mmap.mmap:
        """Return a half as an ``mmap``."""
        more: dict[str, Any] = {"offset": start}
        if sys.version_info >= (3, 13):  # before, it keeps another descriptor
            more["trackfd"] = False
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self.fd, self.half_bytes, mmap.MAP_SHARED, protection, **more)


def _frame(id: int, begin: int, number: int, piece: bytes = b"") -> tuple[bool, bytes, bytes]:
    payload = _ITEM.pack(begin, number) + piece
    return begin != MORE, _HEADER.pack(Message.SHARED, id, len(payload)), payload


class Half(object):
    """A half of the memory, as views of its segments."""

    def __init__(self, memory: Memory, start: int) -> None:
        ctypes = _import("ctypes")
        self._map = memory.map(start)
        self._start = start
        # Views of arrays of numbers have a format that Python can't index; one of unions has "B".
        byte: Any = type("Byte", (ctypes.Union,), {"_fields_": [("byte", ctypes.c_ubyte)]})
        self._byte = byte
        self._kinds: dict[int, Any] = {}
        self._address_of = ctypes.addressof
        self._address = int(ctypes.addressof(byte.from_buffer(self._map)))

    def view(
        self, begin: int, size: int, on_drop: Callable[[object], object]
    ) -> tuple[memoryview, object]:
        """Return a view of a segment, and a weak reference to what its bytes come from.

        on_drop: called with that once nobody has a view of the segment any more.
        """
        kind = self._kinds.get(size)
        if kind is None:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds.clear()
            kind = self._kinds[size] = self._byte * size
        source = kind.from_buffer(self._map, begin - self._start)
        return memoryview(source), weakref.ref(source, on_drop)

    def place_of(self, view: memoryview) -> int:
        """Return where a view begins in the memory; any number if it is not of this half."""
        try:
            first = self._byte.from_buffer(view)
        except (TypeError, ValueError):  # nothing can be written to it; or Python 2
            return -1
        return int(self._address_of(first)) - self._address + self._start


class Lender(object):
    """Our half: segments that are filled here.

    A segment is held while there are views of it here, and lent until the other side has none any
    more; then it is free.  ``_lock`` guards all of that.  Any thread sends; what comes back is
    noted by the receiver thread.
    """

    def __init__(self, memory: Memory, start: int) -> None:
        self.memory: Memory | None = memory
        self._start = start
        self._free = [(start, memory.half_bytes)]  # where one begins, and how long it is
        self._taken: dict[int, int] = {}
        self._lent: set[int] = set()
        self._held: dict[int, object] = {}
        self._dropped: deque[int] = deque()  # a finalizer takes no lock, so it tells by this
        self._half: Half | None = None  # once somebody fills segments by views
        self._numbers = itertools.count(1)  # of items that go over the stream
        self._lock = new_lock()

    def new(self, size: int) -> memoryview:
        """Return a view to fill, of a segment if there is one."""
        taken: list[int] = []
        memory = self.memory
        if size < LEAST_BYTES or memory is None or ISPYPY:
            return memoryview(bytearray(size))
        try:
            self._take(size, taken)
            if taken:
                return self._hold(memory, taken[0], size)
        except EnvironmentError:  # it can't be mapped
            self._abandon(taken)
        except BaseException:
            self._abandon(taken)
            raise
        return memoryview(bytearray(size))

    def _hold(self, memory: Memory, begin: int, size: int) -> memoryview:
        with self._lock:
            half = self._half
            if half is None:
                half = self._half = Half(memory, self._start)
        view, held = half.view(begin, size, lambda _: self._dropped.append(begin))
        self._held[begin] = held
        return view

    def send(self, channel: Channel, view: memoryview, buffer: object) -> None:
        """Send the bytes of a view of a buffer, through the memory or over the stream."""
        gateway, factory = channel.gateway, channel._factory
        if channel._state not in ChannelState.SENDS:
            raise _refusal(gateway, "cannot send to %r of %r" % (channel, gateway))
        getattr(gateway, "note_sent", int)()
        writer, frame = gateway._writer, None
        in_receiver = gateway._get_ident() == gateway._receiver_ident  # which never waits
        taken: list[int] = []
        try:
            frames = self._frames_of(channel.id, view, taken)
            if factory.windows is not None:
                factory.windows.send(channel.id, len(view) + OVERHEAD, frames)
            else:
                for _, header, payload in frames:
                    frame = writer.frame(header, payload)
                    (writer.post_frame if in_receiver else writer.deliver)(frame)
        except BaseException:
            # Of a channel with a window, the frame may be on its way: then it stays lent.
            if frame is not None and not writer.has(frame):
                self._abandon(taken)
            raise
        if taken and taken[0] in self._held and type(buffer) is memoryview and not PY2:
            _release(buffer)

    def _frames_of(
        self, id: int, view: memoryview, taken: list[int]
    ) -> Iterator[tuple[bool, bytes, bytes]]:
        """Yield the frames of an item; a window asks for them once there is room."""
        if self._lend(view, taken) or self._fill(view, taken):
            yield _frame(id, taken[0], len(view))
            return
        number, size = next(self._numbers), len(view)
        for start in range(0, size, PART_BYTES) or (0,):
            begin = LAST if start + PART_BYTES >= size else MORE
            yield _frame(id, begin, number, view[start : start + PART_BYTES].tobytes())

    def _lend(self, view: memoryview, taken: list[int]) -> bool:
        """Lend the segment that a view is of, if it is one that ``new`` returned; else False."""
        half = self._half  # another thread may end the gateway meanwhile
        if half is None or len(view) < LEAST_BYTES:
            return False
        begin = half.place_of(view)
        with self._lock:
            if begin in self._held and begin not in self._lent and len(view) <= self._taken[begin]:
                self._lent.add(begin)
                taken += (begin,)
        return bool(taken)

    def _fill(self, view: memoryview, taken: list[int]) -> bool:
        """Write a view to a segment; False if there is none for it."""
        memory = self.memory
        if len(view) < LEAST_BYTES or memory is None:
            return False
        try:
            self._take(len(view), taken)
            if taken and PY2:
                with self._lock:
                    memory.write(taken[0], view)
            elif taken:
                memory.write(taken[0], view)
            self._lent.update(taken)
            return bool(taken)
        except EnvironmentError:  # there is no more memory
            self._abandon(taken)
            return False
        except BaseException:
            self._abandon(taken)
            raise

    def _take(self, size: int, taken: list[int]) -> None:
        """Find the first free segment of a size; ``taken`` shows where it begins."""
        size += -size % PAGE_BYTES
        with self._lock:
            while self._dropped:
                begin = self._dropped.popleft()
                self._held.pop(begin, None)
                self._free_unused(begin)
            free = self._free
            for number, (start, length) in enumerate(free):
                if length >= size:
                    rest = [(start + size, length - size)] if length > size else []
                    self._taken[start] = size
                    self._free = free[:number] + rest + free[number + 1 :]
                    taken += (start,)  # no call comes between this and the line before
                    return

    def _abandon(self, taken: list[int]) -> None:
        """Use a segment for other items, if an item was to be in it and did not get there."""
        while taken:
            with self._lock:
                self._lent.discard(taken[0])
                self._free_unused(taken[0])
            del taken[0]

    def close(self) -> None:
        """Fill no more segments."""
        self.memory = self._half = None

    def take_back(self, begin: int) -> None:
        """Note that the other side has no view of a segment; ``ProtocolError`` if it had none."""
        with self._lock:
            if begin not in self._lent:
                raise ProtocolError("segment %d was given back, and was not lent" % begin)
            self._lent.discard(begin)
            self._free_unused(begin)

    def _free_unused(self, begin: int) -> None:  # holds _lock
        if begin in self._lent or begin in self._held or begin not in self._taken:
            return
        free: list[tuple[int, int]] = []
        for start, length in sorted(self._free + [(begin, self._taken.pop(begin))]):
            if free and sum(free[-1]) == start:
                start, length = free[-1][0], free.pop()[1] + length
            free.append((start, length))
        self._free = free


def _release(view: memoryview) -> None:
    """Have whoever filled a view use it no more: it is the other side's."""
    try:
        view.release()
    except BufferError:  # something was made of it
        pass


class Borrower(object):
    """The other side's half: views of segments that it lent.

    ``view`` runs in the receiver thread.  A segment is given back by whoever drops its last view,
    at any moment, also within a garbage collection: no lock is taken.
    """

    def __init__(self, gateway: BaseGateway, memory: Memory, start: int) -> None:
        self._gateway = gateway
        self._start, self._end = start, start + memory.half_bytes
        self.half: Any = self._see(memory, start)
        self._pid = os.getpid()
        self._seen: dict[int, object] = {}  # weak references to what their bytes come from

    def _see(self, memory: Memory, start: int) -> Any:
        return Half(memory, start)

    def view(self, begin: int, size: int) -> memoryview:
        """Return a view of a segment; ``ProtocolError`` for one that there can't be."""
        is_inside = self._start <= begin < begin + size <= self._end
        if not is_inside or begin % PAGE_BYTES or begin in self._seen:
            raise ProtocolError("no segment begins at %d and has %d bytes" % (begin, size))
        return self._view(begin, size)

    def _view(self, begin: int, size: int) -> memoryview:
        view: memoryview
        view, self._seen[begin] = self.half.view(begin, size, lambda _: self._give_back(begin))
        return view

    def _give_back(self, begin: int) -> None:
        if os.getpid() == self._pid:  # what a fork of this process drops, this one may still have
            self._seen.pop(begin, None)
            self._gateway._post(Message.RELEASED, 0, _PLACE.pack(begin))

    def close(self) -> None:
        """See no further segments; views that exist stay valid."""
        self.half = None


class CopyingBorrower(Borrower):
    """Copies each segment, and gives it back at once."""

    def _see(self, memory: Memory, start: int) -> Any:
        return memory.map(start)

    def _view(self, begin: int, size: int) -> memoryview:
        place = begin - self._start
        view = memoryview(bytearray(self.half[place : place + size]))
        self._give_back(begin)
        return view

    def close(self) -> None:
        """See no further segments, and close the map, which has a descriptor of its own."""
        self.half.close()


class Shared(object):
    """The memory of one gateway, as one of its ends uses it.

    own: where the half begins that this side fills.
    """

    def __init__(self, gateway: BaseGateway, memory: Memory, own: int) -> None:
        self._factory = gateway._channelfactory
        self.lender = Lender(memory, own)
        borrower = CopyingBorrower if ISPYPY else Borrower
        self.borrower = borrower(gateway, memory, memory.half_bytes - own)
        self.send, self.new = self.lender.send, self.lender.new

    def on_item(self, message: Message) -> None:
        """Act on a SHARED frame: an item is in a segment, or a piece of one comes with it."""
        factory, id = self._factory, message.channelid
        begin, number = _ITEM.unpack_from(message.data)
        if begin in (MORE, LAST):
            view = _joined(factory, id, begin == LAST, number, message.data[_ITEM.size :])
        else:
            view = self.borrower.view(begin, number)
        callback = factory._callbacks.get(id)
        channel = None if callback else factory._channels.get(id)
        if view is not None:
            factory.deliver(id, callback, channel, view, len(view) + OVERHEAD)

    def on_released(self, message: Message) -> None:
        """Act on a RELEASED frame: the other side has no view of a segment any more."""
        self.lender.take_back(*_PLACE.unpack(message.data))

    def close(self) -> None:
        """Use it no more, in the receiver thread; views that exist stay valid."""
        self.lender.close()
        self.borrower.close()


def start(gateway: BaseGateway, memory: Memory, own: int) -> Shared:
    """Have ``send_bytes`` of a gateway's channels use the memory."""
    buffers = load_part("_features.buffers").buffers_of(gateway._channelfactory)
    shared = buffers.shared = Shared(gateway, memory, own)
    return shared


def _joined(
    factory: ChannelFactory, id: int, is_last: bool, number: int, piece: bytes
) -> memoryview | None:
    """Return a view of an item that came over the stream; None while pieces are missing."""
    parts, key = factory.parts, (id, -number)  # of other items, the numbers are above 0
    if id not in factory._callbacks and factory._channels.get(id) is None:
        parts.pop(key, None)  # nobody waits for it
        return None
    stream = parts.setdefault(key, (b"", BytesIO()))[1]
    stream.write(piece)
    most, size = factory.max_item, sum([part.tell() for _, part in parts.values()])
    if most is not None and (len(parts) > PARTS_MAX or size > most):
        raise ProtocolError("pieces of items take more than max_item=%d" % most)
    if not is_last:
        return None
    del parts[key]
    return memoryview(bytearray(stream.getvalue())) if PY2 else stream.getbuffer()


# ---------------------------------------------------------------- in a worker


def tell(gateway: BaseGateway, told: tuple[int, str, tuple[int, int], int]) -> None:
    """Open the memory that the coordinator has made, and answer what went wrong."""
    id, place, mark, half_bytes = told
    problem = None
    try:
        start(gateway, Memory(_open(place, mark), half_bytes), half_bytes)
    except Exception as exc:
        problem = _decoded("%s: %s" % (type(exc).__name__, exc))
    gateway._post(Message.CHANNEL_DATA, id, dumps_internal(problem))
    gateway._post(Message.CHANNEL_CLOSE, id)


def _open(place: str, mark: tuple[int, int]) -> int:
    """Open a file by its place below /proc; OSError if another file is there, or none."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | getattr(os, "O_CLOEXEC", 0)
    fd = above_stdio(os.open(place, flags))
    if PY2:
        fcntl = _import("fcntl")
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != tuple(mark):
        os.close(fd)
        raise OSError("%s is another file: it runs in another namespace of processes" % place)
    return fd
