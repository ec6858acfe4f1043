"""Channels to several workers, used at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ._clock import monotonic
from .gateway_base import NO_ENDMARKER_WANTED, Channel, RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class MultiChannel:
    """Channels to several workers, used at once."""

    def __init__(self, channels: Iterable[Channel]) -> None:
        self._channels = list(channels)
        self._queue: Any = None
        self._end: object = None  # what the queue gets for a channel that has ended
        self._open = len(self._channels)  # channels whose end was not taken from the queue yet

    def __repr__(self) -> str:
        parts = [f"{channel.gateway.id} {channel!r}" for channel in self._channels]
        return f"<MultiChannel {', '.join(parts)}>"

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels)

    def __getitem__(self, key: int) -> Channel:
        return self._channels[key]

    def __contains__(self, channel: object) -> bool:
        return channel in self._channels

    def send_each(self, item: object) -> None:
        """Send an item over every channel; errors as for a channel's ``send``.

        It is serialized once and posted to all, then this waits until all streams have taken it,
        so that a worker that is slow to read holds up no other.  If some can't send any more, the
        others do, then the first error is raised.
        """
        from ._broadcast import send_to_all

        send_to_all(self._channels, item)

    def receive_each(self, withchannel: bool = False) -> list[Any]:
        """Return one item of every channel, in order; as (channel, item) if ``withchannel``."""
        if withchannel:
            return [(channel, channel.receive()) for channel in self._channels]
        return [channel.receive() for channel in self._channels]

    def make_receive_queue(self, endmarker: object = NO_ENDMARKER_WANTED) -> Any:
        """Return a queue that gets (channel, item) from every channel as they arrive.

        endmarker: put as the item of a channel that has ended.
        """
        if self._queue is None and self._channels:
            self._fill(self._channels[0].gateway.execmodel.queue.Queue(), endmarker)
        return self._queue

    def _fill(self, queue: Any, endmarker: object) -> None:
        """Have what comes put into a queue."""
        self._queue, self._end = queue, endmarker
        for channel in self._channels:
            put = partial(self._put, channel)
            if endmarker is NO_ENDMARKER_WANTED:
                channel.setcallback(put)
            else:
                channel.setcallback(put, endmarker=endmarker)

    def _put(self, channel: Channel, item: object) -> None:
        self._queue.put_nowait((channel, item))

    def _queue_with_ends(self) -> Any:
        """Return the queue, which has to tell of ends; OSError if another was made before."""
        if self._queue is None:
            self.make_receive_queue(endmarker=object())
        elif self._end is NO_ENDMARKER_WANTED:
            raise OSError("a receive queue was made that gets no endmarker: take items from that")
        return self._queue

    def as_received(self) -> Iterator[tuple[Channel, Any]]:
        """Yield (channel, item) as they arrive, until all channels have ended.

        An error that ended a channel, such as a ``RemoteError``, is raised after its items; call
        this again to go on with the other channels.  Raises OSError if a queue was made before.
        """
        queue = self._queue_with_ends()
        while self._open:
            channel, item = queue.get()
            if item is self._end:
                self._open -= 1
                channel.waitclose()
            else:
                yield channel, item

    def close(self, error: str | None = None) -> None:
        """Close all channels; the far sides get ``error`` as a RemoteError."""
        for channel in self._channels:
            channel.close(error)

    def waitclose(self, timeout: float | None = None) -> None:
        """Wait until all channels are closed; then raise the first RemoteError of them.

        If there is none, raise the error of the first gateway that was lost.  timeout: seconds for
        all of them together, then ``TimeoutError``; None for as long as it takes.
        """
        errors: list[BaseException] = []
        deadline = None if timeout is None else monotonic() + timeout
        for channel in self._channels:
            try:
                channel.waitclose(None if deadline is None else max(0.0, deadline - monotonic()))
            except (channel.RemoteError, EOFError) as exc:
                errors.append(exc)
        raise_first(errors)


def raise_first(errors: list[BaseException]) -> None:
    """Raise the first RemoteError, or else the first error, if there is one."""
    errors.sort(key=lambda error: not isinstance(error, RemoteError))
    if errors:
        raise errors[0]
