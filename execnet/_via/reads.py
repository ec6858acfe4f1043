"""Direct reads for ``via=``: a thread that waits reads the stream of the gateway between.

``_features.direct`` explains direct reads.  Start at ``ViaReads``.
"""

from __future__ import annotations

from .._features.direct import DirectReads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway import Gateway
    from ..gateway_base import Channel, Inbox

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
        direct = self._via._channelfactory.direct
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
        items, direct = self._data._items, self._via._channelfactory.direct
        if items is not None and items.empty():
            timeout = None if limit_ms is None else LIMITED_S
            if not (direct and direct.offered and direct.read(self._data, items, timeout)):
                return []
        return [(0, 0)]

    def _load(self, channel: Channel, items: Inbox, data: Any) -> bool:
        if type(data) is not bytes:
            return False  # the end
        self._io.account(len(data))
        if super()._load(channel, items, data):
            return True
        self._io.account(-len(data))
        return False

    def next_chunk(self) -> bytes:
        """Take away and return what was read first."""
        data: bytes = self._io.take(self.chunks.pop(0))
        return data
