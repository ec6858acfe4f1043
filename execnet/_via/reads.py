"""Direct reads for ``via=``: a thread that waits reads the stream of the gateway between.

``_features.direct`` explains direct reads.  Start at ``ViaReads``.
"""

from __future__ import annotations

import struct

from .._features.direct import DirectReads
from ..gateway_base import _HEADER, ChannelState, LoadError, _pack_bytes_head, opcode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway import Gateway
    from ..gateway_base import Channel, Inbox

# A frame of the gateway between, whose item is a frame with an int.
_unpack_int_within = struct.Struct("!biicibiiBiBc").unpack
_INT_BYTES = 30
_HEAD_BYTES = 14  # in front of a frame within another
LIMITED_S = 1.0  # stands for any time limit: with one, a direct read lasts some milliseconds


class ViaReads(DirectReads):
    """Direct reads of what comes over a channel: its gateway's stream is read directly, too.

    How much was taken is noted before an interrupt could make it forgotten.  So after an interrupt
    it may be reported twice, but never not at all.
    """

    def __init__(self, io: Any, via: Gateway, data: Channel) -> None:
        super().__init__(0, io.execmodel)
        self._io = io
        self._via = via
        self._data = data
        self._reads = data._arrivals

    def offer(self) -> None:
        """Leave the stream to others, as the base class; not if that gateway can't do so now."""
        direct = self._via.factory.direct
        if direct is None or direct.waiting:  # it reads itself for all that wait
            self.served = self.declined = False
            return
        super().offer()

    def _set_up(self) -> None:
        self._poll = self._await_data
        self._limit_ms = None  # the offer of that gateway ends as well

    def _tear_down(self) -> None:
        pass

    def _await_data(self, limit_ms: int | None) -> list[tuple[int, int]]:
        items, direct = self._data._items, self._via.factory.direct
        if items is not None and items.empty():
            timeout = None if limit_ms is None else LIMITED_S
            if not (direct and direct.offered and direct.read(self._data, items, timeout)):
                return []
        return [(0, 0)]

    def _load(self, channel: Channel, items: Inbox, data: object) -> bool:
        if type(data) is not bytes:
            return False  # the end
        self._io.account(len(data))
        if super()._load(channel, items, data):
            return True
        self._io.account(-len(data))
        return False

    def read(self, channel: Channel, items: Inbox, timeout: float | None) -> bool:
        """Read an item into a channel's queue; False if the receiver thread has to do it."""
        if self._turn.locked() or not (timeout is None or timeout > self.IDLE_S):
            return False
        factory = self._via.factory
        outer, arrived = factory.direct, self._data._items
        with self._turn:
            if not self.offered or self.chunks or not items.empty():
                return False
            self.uses += 1
            if type(outer) is not DirectReads or factory.windows is not None or arrived is None:
                if not self._await_data(None if timeout is None else 5):
                    return False
            elif arrived.empty():
                if outer._turn.locked():
                    return False
                with outer._turn:
                    if not outer.offered or outer.chunks or not arrived.empty():
                        return False
                    try:
                        if not outer._read_chunk(outer._limit_ms if timeout is None else 5):
                            return False
                    except OSError:
                        return False  # as in the base class
                    data = outer.chunks[0]
                    if self._load_through(outer, channel, items, data):
                        return True
                    if not outer._load(self._data, arrived, data):
                        return False
            for item in self._reads:
                self.chunks.append(item)
                return self._load(channel, items, item)
        return False

    def _load_through(
        self, outer: DirectReads, channel: Channel, items: Inbox, data: bytes
    ) -> bool:
        """Put bytes that ``outer`` has read into a channel's queue, as ``_load`` would in the end.

        They are one frame of the gateway between, in which there is one item for the channel.
        """
        size, data_id, code = len(data) - _HEAD_BYTES - 1, self._data.id, 0
        if len(data) == _INT_BYTES:
            unpacked = _unpack_int_within(data)
            code, item = unpacked[5], unpacked[9]
            expected = (4, data_id, 21, b"A", 15, 4, channel.id, 6, 70, item, 81, b"Q")
            if unpacked != expected:
                code = 0
        if not code:
            head = _pack_bytes_head(4, data_id, size + 6, opcode.BYTES, size)
            head += _HEADER.pack(4, channel.id, size - _HEADER.size)
            if not data.startswith(head) or data[-1:] != opcode.STOP:
                return False
            try:
                item = channel._factory.load_item(data[len(head) : -1], None, channel._strconfig)
            except LoadError:
                return False
        self._io.account(size)
        with channel._lock:
            if items is channel._items and channel._state in ChannelState.RECEIVES:
                counts = channel._factory.windows is not None
                sizes: list[int] = getattr(items, "sizes", []) if counts else []
                # As in the base class: no call comes between these.
                sizes += (size - _HEADER.size,)
                del outer.chunks[0]
                items.put(item)
                return True
        self._io.account(-size)
        return False

    def next_chunk(self) -> bytes:
        """Take away and return what was read first."""
        data: bytes = self._io.take(self.chunks.pop(0))
        return data
