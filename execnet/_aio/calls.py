"""Calls of one gateway whose answers a loop reads."""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio

from .._calls import near
from .._calls.lane import Asked, Lane, Work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Calls(near.Calls):
    """The calls of one gateway; used in the loop's thread."""

    async def call(self, function: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run a function in the worker and return its result; raises what it raised."""
        for is_last in (False, True):
            await self.gateway._writer.room()  # type: ignore[attr-defined]
            request = self.request(0, function, positional, named)
            channel: Any = self._idle.pop() if self._idle else self.new_lane()
            try:
                self.send(channel.id, request)
                answer = await channel.receive()
            except BaseException:
                channel.close()  # whatever comes is for nobody
                raise
            finally:
                self.gateway._writer.pass_on()  # type: ignore[attr-defined]
            if len(self._idle) < near.IDLE_MAX:
                self._idle.append(channel)
            else:
                channel.close()
            if type(answer) is tuple and len(answer) == 2:
                return answer[1]
            error = self.error_of(answer, function, is_last)
            if error is not None:
                raise error
        raise AssertionError("it was asked for a third time")


class _Sink:
    """Puts the result of a call into a future of the loop."""

    interrupt: Callable[[], object] | None = None

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def begin(self) -> bool:
        return True

    def cancel(self) -> object:
        return self._future.cancel()

    def end(self, value: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
        else:
            self._future.set_exception(error)


class Submitted:
    """A lane of one gateway, whose calls have futures of the loop."""

    def __init__(self, calls: Calls) -> None:
        self._gateway: Any = calls.gateway
        self._lane = Lane(calls, self)

    def submit(
        self, function: Any, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> asyncio.Future[Any]:
        """Have a call sent soon and return its future; raises as ``Lane.post`` does."""
        if not self._lane.is_live():
            raise self._gateway._writer.refusal_now()
        future: asyncio.Future[Any] = self._gateway._loop.create_future()
        self._lane.post(Work(_Sink(future), function, positional, named))
        return future

    def on_answered(self, lane: Lane) -> None:
        """Nothing waits for that."""

    def on_lost(self, lane: Lane, lost: list[Asked]) -> None:
        """Tell all that will not be answered why."""
        for asked in lost:
            asked.work.sink.end(None, lane.end_of_gateway())
