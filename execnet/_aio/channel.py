"""Channels of an asyncio loop: what waits is awaited.

An item leaves the inbox only in the task that returns it, so that cancelling a ``receive`` loses
none.  Start at ``Inbox``.
"""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from contextlib import suppress

from .. import gateway_base
from ..gateway_base import (
    _SAVERS,
    ENDMARKER,
    NO_ENDMARKER_WANTED,
    ChannelState,
    DeadlockError,
    ExecModel,
    _refusal,
    _save_channel,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

REFUSED_S = 2.0  # how long the reason may take to be known why a stream takes no more


class Inbox:
    """Items that have come and were not taken, and the tasks that wait for one.

    Only the loop's thread uses it.  ``put`` wakes one of the tasks, which looks by itself whether
    there is an item.
    """

    __slots__ = ("_items", "_waiters", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: list[Any] | deque[Any] = []  # a deque once there is more than one
        self._waiters: list[asyncio.Future[bool]] = []

    def qsize(self) -> int:
        """Return how many items there are."""
        return len(self._items)

    def empty(self) -> bool:
        """Whether there is no item."""
        return not self._items

    def put(self, item: Any) -> None:
        """Add an item."""
        if self._items and type(self._items) is list:
            self._items = deque(self._items)
        self._items.append(item)
        if self._waiters:
            self.wake_next()

    put_nowait = put

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        """Take the next item; raises ``Empty`` if there is none, as this never waits."""
        if not self._items:
            raise ExecModel().Empty
        return self._items.pop() if type(self._items) is list else self._items.popleft()  # type: ignore[union-attr]

    def wake_next(self) -> None:
        """Wake one task that waits, if there is something for it."""
        if self._items:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(True)
                    return

    async def wait(self, deadline: float | None) -> bool:
        """Wait until there may be an item; False if that was not until the loop's deadline."""
        waiter: asyncio.Future[bool] = self.loop.create_future()
        timer = None
        if deadline is not None:
            timer = self.loop.call_at(deadline, _set_late, waiter)
        self._waiters.append(waiter)
        took_turn = False
        try:
            took_turn = await waiter
            return took_turn
        finally:
            self._waiters.remove(waiter)
            if timer is not None:
                timer.cancel()
            if not took_turn:  # perhaps it was chosen, and the item is for the next one now
                self.wake_next()


def _set_late(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


class Channel(gateway_base.Channel):
    """Carries items to code on the other side of a gateway, and back; used in the loop's thread.

    Several tasks may wait for its items: each item goes to one of them.
    """

    gateway: Any  # an ``execnet.aio.Gateway``

    def __init__(self, gateway: Any, id: int, _factory: Any = None) -> None:
        super().__init__(gateway, id, _factory)
        self._inbox = Inbox(gateway._loop)
        self._set_inbox(self._inbox)

    async def send(self, item: Any) -> None:
        """Send an item; waits while the stream takes nothing, and while its window is full.

        Returns when the item was handed to the stream, which may still be writing it; items of
        one task go in order.  A send that is cancelled has sent nothing.
        item, and errors: as for ``execnet.Channel.send``.
        """
        if self._state not in ChannelState.SENDS:
            raise _refusal(self.gateway, f"cannot send to {self!r} of {self.gateway!r}")
        writer = self.gateway._writer
        codec = self.__dict__.get("_codec")
        if codec is not None:
            item = codec.dump(item)
        if not (writer.is_full() or writer._error or self._factory.windows):
            self._factory.send_item(self.id, item)
            return
        while True:
            await writer.room()
            try:
                if writer._error is not None:
                    await self.gateway.join(REFUSED_S)  # then the reason is known
                    raise writer.refusal_now()
                if self._state not in ChannelState.SENDS:
                    raise _refusal(self.gateway, "the channel was closed while it waited to send")
                self._factory.send_item(self.id, item)
                return
            except DeadlockError:  # its window is full
                pass
            finally:
                writer.pass_on()
            await self._credit()

    async def _credit(self) -> None:
        """Wait until the other side has read something."""
        windows: Any = self._factory.windows
        credit = _Credit(self.gateway._loop.create_future())
        windows._senders.append(credit)
        try:
            await credit.future
        finally:
            with suppress(ValueError):
                windows._senders.remove(credit)

    async def receive(self, timeout: float | None = None) -> Any:
        """Return the next item, waiting for it up to ``timeout`` seconds (None: for ever).

        Cancelling it loses no item: that is for the next ``receive``.
        Raises as ``execnet.Channel.receive`` does.
        """
        inbox, items = self._inbox, self._items
        if items is None:
            raise OSError(f"cannot receive(), {self!r} has a callback")
        if inbox.empty() and not (timeout is not None and timeout <= 0):
            if items is not inbox:  # it has a window: what was taken before was read
                with suppress(ExecModel().Empty):
                    items.get(False)
            deadline = None if timeout is None else inbox.loop.time() + timeout
            while inbox.empty() and await inbox.wait(deadline):
                pass
        if inbox.empty():
            raise self.TimeoutError(f"no item after {timeout!r} seconds from {self!r}")
        if self._items is None:
            raise OSError(f"cannot receive(), {self!r} got a callback meanwhile")
        item = self._items.get(False)
        if item is not ENDMARKER:
            codec = self.__dict__.get("_codec")
            return item if codec is None else codec.load(item)
        inbox.put(item)  # others may be waiting too
        raise self._getremoteerror() or EOFError(f"{self!r} has no more items")

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
            self.__dict__.setdefault("_closers", []).append(closed)
            try:
                await asyncio.wait([closed], timeout=timeout)
            finally:
                self.__dict__["_closers"].remove(closed)
        super().waitclose(0)

    def _go(self, event: str) -> str:
        before = super()._go(event)
        if self._receiveclosed.is_set():
            for closed in self.__dict__.get("_closers", ()):
                if not closed.done():
                    closed.set_result(None)
        return before

    def setcallback(
        self, callback: Callable[[Any], object], endmarker: Any = NO_ENDMARKER_WANTED
    ) -> None:
        """Have ``callback(item)`` called in the loop for every item; as ``execnet.Channel``'s.

        It is a plain function, and may make tasks.  Raises TypeError for a coroutine function.
        """
        if inspect.iscoroutinefunction(callback):
            raise TypeError("a callback of execnet.aio is a plain function, which may make tasks")
        codec = self.__dict__.get("_codec")
        if codec is not None:
            super().setcallback(
                lambda item: callback(item if item is endmarker else codec.load(item)), endmarker
            )
        else:
            super().setcallback(callback, endmarker)

    def makefile(self, mode: str = "w", proxyclose: bool = False) -> Any:
        """Refuse: what reads or writes a file would wait, and stop the loop."""
        raise TypeError("a channel of execnet.aio is no file: await its send() and receive()")

    def __iter__(self) -> Any:
        raise TypeError("a channel of execnet.aio is iterated over with 'async for'")

    __next__ = next = __iter__


class _Credit:
    """Somebody who waits for credit, as ``_features.window`` wakes them."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


_SAVERS[Channel] = _save_channel
