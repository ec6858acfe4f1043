"""An executor over the workers of a group, in an asyncio loop.

Which worker gets which call is decided as in threads; here are futures of the loop.  Start at
``Executor.submit``.
"""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextlib import suppress

from .. import gateway
from .._calls import executor
from .._calls.lane import Work
from .._calls.near import Mapped
from .calls import Sink
from .channel import FutureFlag
from .threads import in_thread, to_its_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import AsyncIterator, Callable, Iterable
    from typing import Any, NoReturn, ParamSpec, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")


class Executor(executor.Executor):
    """Calls functions in the workers of a group, each call in whichever is free.

    Only the loop's thread may use it.  ``async with`` waits in the end until all calls have ended.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, group: executor.GroupLike, *options: Any
    ) -> None:
        self._loop = loop
        self._preparing: list[Work] = []  # whose functions' modules are sent
        super().__init__(group, *options)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Have a function called by the first worker that is free; return an ``asyncio.Future``.

        Does not wait.  Cancelling the future keeps a call from beginning; a running one goes on,
        unless the executor was asked for more.  Arguments and errors as for
        ``execnet.Gateway.submit``; RuntimeError after ``shutdown``, and without any worker.
        """
        future, work = self._work(fn, args, kwargs)
        if self._lacking(fn, 1):
            self._submit_later(work)
        else:
            self._submit(work)
        return future

    def _work(
        self,
        fn: object,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        is_mapped: bool = False,
    ) -> tuple[asyncio.Future[Any], Work]:
        future: asyncio.Future[Any] = self._loop.create_future()
        sink = Sink(future)
        return future, Work(sink, fn, args, kwargs, self._retries, self._codec, is_mapped)

    def _ask(self, fn: object, row: tuple[object, ...]) -> asyncio.Future[Any]:
        future, work = self._work(fn, row, {}, is_mapped=True)
        self._submit(work)
        return future

    def _submit_later(self, work: Work) -> None:
        """Submit a call after a thread has sent what its function imports; raises as _submit."""

        def submit(sending: asyncio.Future[None] | None) -> None:
            if sending is not None:
                sending.exception()  # if it failed, the call will tell
            with self._lock:
                self._preparing.remove(work)
                self._waiting.append(work)
            self._dispatch()

        with self._lock:
            self._admit(1)
            self._preparing.append(work)
        try:
            sending = in_thread(self._loop, self._send_modules_of, work.function, 1)
        except RuntimeError:  # there can be no more threads: the worker will ask
            submit(None)
        else:
            sending.add_done_callback(submit)

    async def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> AsyncIterator[T]:
        """Yield ``fn(*items)`` for the items of the iterables, in their order.

        chunksize, buffersize: as for the executor of ``execnet.Group``.  What was not taken when
        the iteration ends, or is cancelled, is cancelled, too.
        """
        executor.check_map(chunksize, buffersize)
        rows = executor.rows_of(iterables, chunksize)
        if self._lacking(fn, None):
            send = in_thread(self._loop, self._send_modules_of, fn, None)  # it reads files
            await to_its_end(send, int)
        function = Mapped(fn, chunksize > 1)
        asked = deque(self._ask(function, row) for row in itertools.islice(rows, buffersize))
        try:
            while asked:
                result = await asked[0]
                asked.popleft()
                asked.extend(self._ask(function, row) for row in itertools.islice(rows, 1))
                for one in result if chunksize > 1 else (result,):
                    yield one
        finally:
            for future in asked:
                future.cancel()
            if asked:
                self._recall()

    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the workers stay.

        wait: until all submitted calls have ended.  cancel_futures: cancel those that were not
        sent yet.
        """
        for work in self._preparing if cancel_futures else ():
            work.sink.cancel()
        super().shutdown(False, cancel_futures=cancel_futures)
        if wait and self._unfinished:
            finished = FutureFlag(self._loop.create_future())
            self._finished.append(finished)  # type: ignore[arg-type]
            await finished.future

    async def __aenter__(self) -> Executor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Wait for all calls; after an error or a cancellation, only for those that were sent."""
        await self.shutdown(cancel_futures=error is not None)

    def __enter__(self) -> NoReturn:
        raise TypeError("an executor of execnet.aio is used with 'async with' and 'await'")

    def on_group_changed(self) -> None:
        """The workers changed; in whatever thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(super().on_group_changed)

    def _forward_imports(self, worker: gateway.Gateway, names: list[str]) -> None:
        gateway.Gateway.forward_imports(worker, names)
