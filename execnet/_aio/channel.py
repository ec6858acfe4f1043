"""Channels of an asyncio loop: what waits is awaited.

What waits for items is in ``inbox``.  Start at ``Channel``.
"""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress

from .. import gateway_base
from .._features import buffers, packed
from ..gateway_base import (
    _SAVERS,
    ENDMARKER,
    NO_ENDMARKER_WANTED,
    ChannelState,
    DeadlockError,
    ExecModel,
    _left,
    _refusal,
    _save_channel,
)
from .inbox import Inbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    from .._features.codecs import Codec
    from ..gateway_base import ChannelFactory, Piece

    T = TypeVar("T")

REFUSED_S = 2.0  # how long it may take until the reason is known why a stream takes no more


def check_callback(callback: object) -> None:
    """Raise TypeError for a coroutine function."""
    if inspect.iscoroutinefunction(callback):
        raise TypeError("a callback of execnet.aio is a plain function, which may make tasks")


class Channel(gateway_base.Channel):
    """Carries items to code on the other side of a gateway, and back; used in the loop's thread.

    Several tasks may wait for its items: each item goes to one of them.
    """

    gateway: Any  # an ``execnet.aio.Gateway``
    _codec: Codec | None

    def __init__(self, gateway: Any, id: int, _factory: ChannelFactory | None = None) -> None:
        self._closers: list[asyncio.Future[None]] = []  # tell tasks that wait for its end
        super().__init__(gateway, id, _factory)
        self._inbox = Inbox(gateway._loop, gateway._turn)
        self._set_inbox(self._inbox)

    async def send(self, item: object) -> None:
        """Send an item; waits while the stream takes nothing, and while its window is full.

        Returns when the stream has taken the item, though it may still be writing it.  Items of one
        task are sent in order.  A send that is cancelled has sent nothing.
        item, and errors: as for ``execnet.Channel.send``.
        """
        if self._state not in ChannelState.SENDS:
            raise _refusal(self.gateway, f"cannot send to {self!r} of {self.gateway!r}")
        writer = self.gateway._writer
        codec = self._codec
        if codec is not None:
            raws: list[memoryview] = []
            item = codec.dump(item, raws)
            if raws:
                await self._send_pieces(packed.pieces_of(self, item, raws))
                return
        factory = self._factory
        if not (writer._frames or writer._begun or writer._error or factory.windows):
            factory.send_item(self.id, item)
        else:
            await self._send_later(lambda: factory.send_item(self.id, item))

    async def _send_later(self, send: Callable[[], T]) -> T:
        """Call what sends an item once the stream, and the window, take it."""
        writer = self.gateway._writer
        while True:
            await writer.room()
            try:
                if writer._error is not None:
                    await self.gateway.join(REFUSED_S)  # then the reason is known
                    raise writer.refusal_now()
                if self._state not in ChannelState.SENDS:
                    raise _refusal(self.gateway, "the channel was closed while it waited to send")
                return send()
            except DeadlockError:  # its window is full
                pass
            finally:
                writer.pass_on()
            await self._credit()

    async def send_bytes(self, buffer: object) -> None:
        """Send what an object with a buffer holds, as an item of bytes.

        Many bytes are not copied: leave them as they are until it returns.  One that is cancelled
        has sent all or nothing, and no longer needs the buffer.  Raises as
        ``execnet.Channel.send_bytes`` does.
        """
        view, mine = buffers.view_of(buffer), self._factory.buffers
        if mine is not None and mine.shared is not None and self._codec is None:
            shared = mine.shared
            await self._send_later(lambda: shared.send(self, view, buffer))
        else:
            await self._send_pieces([view])

    async def _send_pieces(self, pieces: list[Piece]) -> None:
        writer = self.gateway._writer
        if self._state not in ChannelState.SENDS:
            raise _refusal(self.gateway, f"cannot send to {self!r} of {self.gateway!r}")
        if not buffers.is_in_place(self, sum(map(len, pieces))):
            data = buffers.joined(pieces)
            await self._send_later(lambda: self._factory.send_item(self.id, data))
            return
        frames = list(buffers.frames_of(self, pieces))
        await self._send_later(lambda: list(map(writer.post_frame, frames)))
        try:
            await writer.room()
        except BaseException:
            for frame in frames:
                buffers.let_go(frame)
            raise
        writer.pass_on()
        if any(map(_left, frames)):
            raise writer.refusal_now()

    async def _credit(self) -> None:
        """Wait until the other side has read something."""
        windows: Any = self._factory.windows
        flag = FutureFlag(self.gateway._loop.create_future())
        windows._senders.append(flag)
        try:
            await flag.future
        finally:
            with suppress(ValueError):
                windows._senders.remove(flag)

    async def receive(self, timeout: float | None = None) -> Any:
        """Return the next item, waiting for it up to ``timeout`` seconds (None: for ever).

        Cancelling it loses no item: the next ``receive`` gets it.
        Raises as ``execnet.Channel.receive`` does.
        """
        inbox, items = self._inbox, self._items
        if not inbox.items and items is not None and (timeout is None or timeout > 0):
            if items is not inbox:  # it has a window: what was taken before was read
                with suppress(ExecModel().Empty):
                    items.get(False)
            deadline = None if timeout is None else inbox.loop.time() + timeout
            while not inbox.items and await inbox.wait(deadline):
                pass
        item = self._take(timeout)
        codec = self._codec
        return item if codec is None else codec.load(item, self)

    def _take(self, timeout: float | None) -> object:
        """Take the next item, or raise what there is in its place; does not wait."""
        inbox, items = self._inbox, self._items
        if items is None:
            raise OSError(f"cannot receive(), {self!r} has a callback")
        if not inbox.items:
            raise self.TimeoutError(f"no item after {timeout!r} seconds from {self!r}")
        item = items.get(False)
        if item is not ENDMARKER:
            return item
        inbox.put(item)  # others may be waiting too
        raise self._getremoteerror() or EOFError(f"{self!r} has no more items")

    async def receive_into(self, buffer: object, timeout: float | None = None) -> int:
        """Put the next item, which has to be bytes, into a buffer, and return their number.

        Once it has raised, or was cancelled, nothing writes to the buffer any more, and the item
        is for the next ``receive``.  Raises as ``execnet.Channel.receive_into`` does.
        """
        view, inbox = buffers.view_of(buffer, writable=True), self._inbox
        waiting, waiter = buffers.buffers_of(self._factory), buffers.Waiter(view, inbox.wake_all)
        waiting.enter(self.id, waiter)
        if self._items is not inbox and self._items is not None and inbox.empty():
            with suppress(ExecModel().Empty):  # as in ``receive``
                self._items.get(False)
        deadline = None if timeout is None else inbox.loop.time() + timeout
        try:
            while inbox.empty() and not waiter.is_full and await inbox.wait(deadline):
                pass
        except BaseException:
            if waiter.is_full:
                inbox.put_back(view[: waiter.size].tobytes())
            raise
        finally:
            waiting.leave(self.id, waiter)
        if waiter.is_full:
            return waiter.size
        item = self._take(timeout)
        try:
            return buffers.copied(item, view)
        except Exception:
            inbox.put_back(item)
            raise

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except EOFError:
            raise StopAsyncIteration from None

    async def waitclose(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds until no more items can arrive.

        Raises as ``execnet.Channel.waitclose`` does.
        """
        if not self._receiveclosed.is_set():
            loop = self._inbox.loop
            closed: asyncio.Future[None] = loop.create_future()
            self._closers.append(closed)
            try:
                await asyncio.wait([closed], timeout=timeout)
            finally:
                self._closers.remove(closed)
        super().waitclose(0)

    def _go(self, event: str) -> str:
        before = super()._go(event)
        if self._receiveclosed.is_set():
            for closed in self._closers:
                if not closed.done():
                    closed.set_result(None)
        return before

    def setcallback(
        self, callback: Callable[[Any], object], endmarker: object = NO_ENDMARKER_WANTED
    ) -> None:
        """Have ``callback(item)`` called in the loop for every item; as ``execnet.Channel``'s.

        It is a plain function, and may make tasks.  Raises TypeError for a coroutine function.
        """
        check_callback(callback)
        codec = self._codec
        if codec is not None:
            super().setcallback(
                lambda item: callback(item if item is endmarker else codec.load(item, self)),
                endmarker,
            )
        else:
            super().setcallback(callback, endmarker)

    def makefile(self, mode: str = "w", proxyclose: bool = False) -> NoReturn:
        """Refuse, since code that reads or writes a file would wait, and so stop the loop."""
        raise TypeError("a channel of execnet.aio is no file: await its send() and receive()")

    def __iter__(self) -> NoReturn:
        raise TypeError("a channel of execnet.aio is iterated over with 'async for'")

    __next__ = next = __iter__


async def await_items(channels: list[Channel]) -> None:
    """Wait until all channels have an item, without taking any.

    Raises as ``receive`` of the first one that has ended, or has a callback.
    """
    waiting = channels
    while waiting:
        for channel in waiting:
            inbox, items = channel._inbox, channel._items
            if items is not inbox and items is not None and inbox.empty():
                with suppress(ExecModel().Empty):  # as in ``receive``
                    items.get(False)
            while items is not None and inbox.empty():
                await inbox.wait(None)
            inbox.wake_next()  # another task may want it
            if items is None or inbox.next_is_end():
                channel._take(None)
        waiting = [channel for channel in channels if channel._inbox.empty()]  # taken meanwhile


class FutureFlag:
    """A future with the face of a flag, for what is set where the core knows nothing of loops."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


_SAVERS[Channel] = _save_channel
