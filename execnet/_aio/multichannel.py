"""Channels to several workers, used at once by an asyncio loop."""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio

from .. import _multichannel
from .._clock import monotonic
from .._multichannel import raise_first
from ..gateway_base import NO_ENDMARKER_WANTED, RemoteError
from .channel import await_items

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Any

    from .channel import Channel


class MultiChannel(_multichannel.MultiChannel):
    """Channels to several workers, used at once."""

    _channels: list[Any]  # of this loop

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Channel]: ...
        def __getitem__(self, key: int) -> Channel: ...

    async def send_each(self, item: object) -> None:
        """Send an item over every channel; errors as for a channel's ``send``.

        A worker that is slow to read holds up no other.  If some can't send any more, the others
        do, then the first error is raised.
        """
        sends = [channel.send(item) for channel in self._channels]
        for told in await asyncio.gather(*sends, return_exceptions=True):
            if isinstance(told, BaseException):
                raise told

    async def receive_each(self, withchannel: bool = False) -> list[Any]:
        """Return one item of every channel, in order; as (channel, item) if asked for.

        They are taken when all are there: if it is cancelled, or a channel has ended, the items of
        the others are for the next one who receives.
        """
        await await_items(self._channels)
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
            self._fill(asyncio.Queue(), endmarker)
        queue: asyncio.Queue[tuple[Channel, object]] = self._queue
        return queue

    async def as_received(self) -> AsyncIterator[tuple[Channel, Any]]:
        """Yield (channel, item) as they come, until all channels have ended.

        What ended a channel, such as a ``RemoteError``, is raised after its items; calling this
        again goes on with the other channels.  Raises OSError if a queue was made before.
        """
        queue = self._queue_with_ends()
        while self._open:
            channel, item = await queue.get()
            if item is self._end:
                self._open -= 1
                await channel.waitclose()
            else:
                yield channel, item

    async def waitclose(self, timeout: float | None = None) -> None:
        """Wait until all channels are closed; as ``execnet.MultiChannel.waitclose``."""
        errors: list[BaseException] = []
        deadline = None if timeout is None else monotonic() + timeout
        for channel in self._channels:
            try:
                left = None if deadline is None else max(0.0, deadline - monotonic())
                await channel.waitclose(left)
            except (RemoteError, EOFError) as exc:
                errors.append(exc)
        raise_first(errors)
