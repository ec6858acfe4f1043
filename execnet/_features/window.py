"""Windows: how many bytes of a channel may be in transit or unread."""

from __future__ import annotations

from ..gateway_base import (
    _HEADER,
    LoadError,
    Message,
    _Flag,
    _OSError,
    _refuse_in_callback,
    _Timed,
    _timed,
    dumps_internal,
    load_part,
    loads_internal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator
    from typing import Any

    from ..gateway_base import BaseGateway, Channel, ChannelFactory, Frame, Inbox, Piece
    from . import credit
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

Credit = load_part("_features.credit").Credit


class Windows:
    """Back pressure: limits the bytes of channels that are in transit or unread.

    ``_features.credit`` has the rule; what counts here are whole items.  The receiver thread never
    waits, since it has to read.  ``_lock`` guards the counts; any thread may call.
    """

    def __init__(self, factory: ChannelFactory) -> None:
        self._factory = factory
        self._bytes: dict[int, int] = {}  # by channel; 0: for all that are made from now on
        self._credits: dict[int, credit.Credit] = {}  # of the channels that have sent something
        # Holds the sizes of unread items; a coordinator's also checks that the window is kept.
        self.bound: Any = getattr(factory.gateway, "_bound_sizes", None)
        self._lock = factory.gateway.execmodel.Lock()
        self._senders: deque[_Flag] = deque()  # of threads that wait

    def set(self, id: int, window_bytes: int) -> None:
        """Limit a channel; id 0: all that are made from now on."""
        self._bytes[id] = window_bytes
        channel = self._factory._channels.get(id)
        if channel is not None:
            self.adopt(channel)
            if self.bound is not None and isinstance(channel._items, _CountedInbox):
                channel._items.sizes.announce(window_bytes)

    def adopt(self, channel: Channel) -> None:
        """Count the items of a channel, if it has a window."""
        if self.of(channel.id):
            with channel._lock:
                if channel._items is not None and not isinstance(channel._items, _CountedInbox):
                    channel._set_inbox(_CountedInbox(channel._items, self, channel.id))

    def of(self, id: int) -> int:
        """Return the window of a channel in bytes; 0 for none."""
        return self._bytes.get(id) or self._bytes.get(0, 0)

    def send(self, id: int, size: int, frames: Iterator[tuple[bool, bytes, Piece]]) -> None:
        """Send the frames of an item as soon as allowed; OSError if the channel ends first.

        An interrupt gives back what was counted, unless the last frame has left.
        """
        gateway = self._factory.gateway
        if not self.of(id):
            for _, header, payload in frames:
                gateway._send_frame(header, payload)
            return
        writer, frame = gateway._writer, None
        may_wait = gateway._get_ident() != gateway._receiver_ident
        hand_in = writer.deliver if may_wait else writer.post_frame
        counted: list[int] = []
        try:
            self._await_room(id, size, counted)
            for is_last, header, payload in frames:
                frame = writer.frame(header, payload) if is_last else None
                hand_in(frame or writer.frame(header, payload))
        except BaseException:
            if counted and not (frame and writer.has(frame)):
                self.on_credit(id, size)
            raise

    def _await_room(self, id: int, size: int, counted: list[int]) -> None:
        """Wait until an item may be sent, and count it; ``counted`` shows when that is done."""
        gateway, window = self._factory.gateway, self.of(id)
        while True:
            with self._lock:
                credit = self._credits.setdefault(id, Credit(window))
                credit.window_bytes = window
                if credit.has_room(size):
                    counted += (size,)  # no call comes between this and the next one
                    credit.sent += size
                    return
                _refuse_in_callback(gateway, "a window of channel %d" % id)
                room = _Flag(gateway.execmodel)
                self._senders.append(room)
            channel = self._factory._channels.get(id)
            if self._factory.finished or channel is None or channel.isclosed():
                raise _OSError("the channel was closed while it waited to send: %r" % (channel,))
            self._factory.take_back()
            room.wait()

    def on_read(self, id: int, size: int) -> None:
        """Tell the other side that this many bytes of a channel were read here."""
        if self.bound is not None:
            self.bound.check_queue(self._factory.gateway)
        self._factory.post(Message.CREDIT, id, dumps_internal(size))

    def on_credit(self, id: int, size: int) -> None:
        """Let a channel send that much more."""
        with self._lock:
            if id in self._credits:
                self._credits[id].taken += size
        self.wake()

    def forget(self, id: int) -> None:
        """Drop what is known about a channel that is gone."""
        self._credits.pop(id, None)
        self._bytes.pop(id, None)

    def wake(self) -> None:
        """Let all waiting threads look again.  A finalizer may call, so it takes no lock."""
        try:
            while True:
                self._senders.popleft().set()
        except IndexError:
            pass


class _CountedInbox:
    """The queue of a channel that has a window.

    An item counts as read when the next one is asked for.  ``_lock`` guards the reports.
    """

    def __init__(self, items: Inbox, windows: Windows, id: int) -> None:
        self._items = items
        self._windows = windows
        self._gateway = windows._factory.gateway
        self._id = id
        self._lock = self._gateway.execmodel.Lock()
        # Of the items in the queue, and of those last taken.
        self.sizes: Any = [] if windows.bound is None else windows.bound(windows.of(id))
        self._bound = windows.bound
        self._telling: tuple[int, Frame] | None = None  # how many of them, and the frame
        self.put, self.put_nowait = items.put, items.put_nowait
        self.empty = items.empty
        self.qsize = items.qsize

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """Return the next item, like a queue."""
        self.note_read()
        timed = _timed(self._items, timeout if block else 0)
        try:
            (item,) = map(self._items.get, *timed)  # as in ``Channel.receive``
        except self._gateway.execmodel.Empty:
            if not isinstance(timed[0], _Timed) or timed[0].left <= 0:
                raise
            return self.get(True, timed[0].left)  # another thread was faster
        return item

    def over(self, items: Inbox) -> _CountedInbox:
        """Return what counts the items of another queue, which has ours."""
        other = _CountedInbox(items, self._windows, self._id)
        other.sizes = self.sizes
        return other

    def note_read(self) -> None:
        """Count what was taken as read: the next item is asked for."""
        if len(self.sizes) > self._items.qsize():
            with self._lock:
                self._tell()

    def _tell(self) -> None:  # holds _lock
        """Tell the other side what was read; what an interrupt left is also told, once."""
        writer = self._gateway._writer
        while len(self.sizes) > self._items.qsize():
            if self._telling is None:
                count = len(self.sizes) - self._items.qsize()
                data = dumps_internal(sum(self.sizes[:count]))
                header = _HEADER.pack(Message.CREDIT, self._id, len(data))
                self._telling = count, writer.frame(header, data)
            count, frame = self._telling
            if self._bound is not None:
                self._bound.check_queue(self._gateway)
                self.sizes.credited = count  # the other side may act on it before we continue
            writer.post_frame(frame)
            del self.sizes[:count]  # no call comes between this and the next one
            self._telling = None
            if self._bound is not None:
                self.sizes.credited = 0


def on_window(message: Message, gateway: BaseGateway) -> None:
    """Act on a WINDOW frame: limit a channel, or with the id 0 each new one."""
    factory, window_bytes = gateway._channelfactory, loads_internal(message.data)
    if type(window_bytes) is not int or window_bytes < 1:
        raise LoadError("not a window: %.40r" % (window_bytes,))
    windows = factory.windows if isinstance(factory.windows, Windows) else Windows(factory)
    factory.windows = windows
    windows.set(message.channelid, window_bytes)


def on_credit(message: Message, gateway: BaseGateway) -> None:
    """Act on a CREDIT frame: this many bytes of a channel were read on the other side."""
    windows, size = gateway._channelfactory.windows, loads_internal(message.data)
    if type(size) is not int or size < 0:
        raise LoadError("not a number of bytes: %.40r" % (size,))
    if isinstance(windows, Windows):
        windows.on_credit(message.channelid, size)
