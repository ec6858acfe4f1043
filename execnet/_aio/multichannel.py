"""Channels to several workers, used at once by an asyncio loop."""

from __future__ import annotations

import asyncio
from functools import partial

from .._multichannel import NO_ENDMARKER_WANTED
from ..gateway_base import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from typing import Any

    from .channel import Channel


class MultiChannel:
    """Channels to several workers, used at once."""

    def __init__(self, channels: Iterable[Channel]) -> None:
        self._channels = list(channels)
        self._queue: asyncio.Queue[tuple[Channel, Any]] | None = None
        self._end: object = None  # what the queue gets for a channel that has ended
        self._open = len(self._channels)  # those whose end nobody has taken from the queue

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

    async def send_each(self, item: object) -> None:
        """Send an item over every channel."""
        for channel in self._channels:
            await channel.send(item)

    async def receive_each(self, withchannel: bool = False) -> list[Any]:
        """Return one item of every channel, in order; as (channel, item) if asked for.

        If it is cancelled, or one of them fails, items that were taken before are lost.
        """
        if withchannel:
            return [(channel, await channel.receive()) for channel in self._channels]
        return [await channel.receive() for channel in self._channels]

    def make_receive_queue(
        self, endmarker: object = NO_ENDMARKER_WANTED
    ) -> asyncio.Queue[tuple[Channel, Any]]:
        """Return the queue that gets (channel, item) of every channel as they come.

        endmarker: put as the item of a channel that has ended.
        """
        if self._queue is None:
            self._end, self._queue = endmarker, asyncio.Queue()
            for channel in self._channels:
                channel.setcallback(partial(self._put, channel), endmarker)
        return self._queue

    def _put(self, channel: Channel, item: object) -> None:
        assert self._queue is not None
        self._queue.put_nowait((channel, item))

    async def as_received(self) -> AsyncIterator[tuple[Channel, Any]]:
        """Yield (channel, item) as they come, until all channels have ended.

        What ended a channel, such as a ``RemoteError``, is raised after its items; calling this
        again goes on with the other channels.  Raises OSError if a queue was made before.
        """
        if self._queue is None:
            self.make_receive_queue(endmarker=object())
        elif self._end is NO_ENDMARKER_WANTED:
            raise OSError("a receive queue was made that gets no endmarker: take items from that")
        assert self._queue is not None
        while self._open:
            channel, item = await self._queue.get()
            if item is self._end:
                self._open -= 1
                await channel.waitclose()
            else:
                yield channel, item

    def close(self, error: str | None = None) -> None:
        """Close all channels; the far sides get ``error`` as a RemoteError."""
        for channel in self._channels:
            channel.close(error)

    async def waitclose(self) -> None:
        """Wait until all channels are closed; then raise the first RemoteError of them.

        Where there is none, the error of the first gateway that was lost.
        """
        errors: list[BaseException] = []
        for channel in self._channels:
            try:
                await channel.waitclose()
            except (RemoteError, EOFError) as exc:
                errors.append(exc)
        errors.sort(key=lambda error: not isinstance(error, RemoteError))
        if errors:
            raise errors[0]
