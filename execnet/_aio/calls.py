"""Calls of one gateway whose answers a loop reads."""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from .._calls import near
from .._calls.lane import Work
from .._calls.submitted import Owner
from .threads import in_thread, to_its_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .writer import LoopWriter

    class LoopGateway(near.GatewayLike, Protocol):
        """What calls need from their gateway."""

        _loop: asyncio.AbstractEventLoop

        @property
        def _writer(self) -> LoopWriter: ...


class Calls(near.Calls):
    """The calls of one gateway; used in the loop's thread."""

    gateway: LoopGateway

    async def call(
        self,
        function: object,
        positional: tuple[object, ...],
        named: dict[str, object],
        is_last: bool = False,
    ) -> Any:
        """Run a function in the worker and return its result; raises what it raised."""
        writer = self.gateway._writer
        if self.new_module_of(function):
            loop = asyncio.get_running_loop()  # and a thread reads the files
            await to_its_end(in_thread(loop, self.send_modules_of, function), int)
        codec = self.codec_for(function)
        await writer.room()
        try:
            channel, request = self.prepared(function, positional, named, codec)
            self.send(channel.id, request)
        finally:
            writer.pass_on()
        try:
            answer = await channel.receive()
        except BaseException:
            channel.close()  # nobody wants the answer any more
            raise
        if not self.taken(channel, answer, function, is_last):
            return await self.call(function, positional, named, is_last=True)
        return answer[1] if codec is None else codec.load(answer[1])


class Sink:
    """Puts the result of a call into a future of the loop."""

    interrupt: Callable[[], object] | None = None  # ends a running call, if it may

    def __init__(self, future: asyncio.Future[object]) -> None:
        self._future = future
        future.add_done_callback(self._on_done)

    def begin(self) -> bool:
        return not self._future.done()

    def _on_done(self, future: asyncio.Future[object]) -> None:
        if future.cancelled() and self.interrupt is not None:
            self.interrupt()

    def cancel(self) -> object:
        return self._future.cancel()

    def end(self, value: object, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
        else:
            self._future.set_exception(error)


class Submitted(Owner):
    """A lane of one gateway, whose calls have futures of the loop.

    Calls of a function whose module has to be sent before are held meanwhile, as a thread reads
    files for it, and so are those that are submitted after them.
    """

    _gateway: LoopGateway

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._functions: deque[object] = deque()  # whose modules are sent next

    def submit(
        self, function: object, positional: tuple[object, ...], named: dict[str, object]
    ) -> asyncio.Future[Any]:
        """Have a call sent soon and return its future; raises as ``Lane.post`` does."""
        lane = self._lane
        if not lane.is_live():
            raise self._gateway._writer.refusal_now()
        future: asyncio.Future[object] = self._gateway._loop.create_future()
        work = Work(Sink(future), function, positional, named, codec=self._gateway.codec)
        is_new = lane.calls.new_module_of(function)
        if not (is_new or self._functions):
            lane.post(work)
            return future
        with lane.posting:
            lane.hold(work)
        if is_new:
            self._functions.append(function)
            if len(self._functions) == 1:
                self._send_modules()
        return future

    def _send_modules(self) -> None:
        """Send what the held calls import, then the calls."""
        lane, loop = self._lane, self._gateway._loop
        while self._functions:
            if lane.calls.new_module_of(self._functions[0]):
                with suppress(RuntimeError):  # there can be no more threads: the worker will ask
                    sending = in_thread(loop, lane.calls.send_modules_of, self._functions[0])
                    sending.add_done_callback(self._go_on)
                    return
            self._functions.popleft()
        with lane.posting:
            lane.post_held()
        lane.look_for_end()

    def _go_on(self, sending: asyncio.Future[None]) -> None:
        sending.exception()  # if it failed, the calls will tell
        self._functions.popleft()
        self._send_modules()
