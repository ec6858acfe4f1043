"""What a loop leaves to threads: to start and end processes, which waits for the system.

Each task gets a thread of its own, not one of the loop's executor.  All threads of that may be busy
with work of the program that waits for just this.  Start at ``in_thread``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ..gateway_base import get_execmodel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


def in_thread(
    loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: object
) -> asyncio.Future[T]:
    """Call a function in a thread; return a future of the loop for its result.

    Raises RuntimeError if there can be no more threads.
    """
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            told = future.set_result, function(*args)
        except BaseException as exc:
            told = future.set_exception, exc  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *told)

    def tell(what: Callable[[T], object], value: T) -> None:
        if not future.done():
            what(value)

    get_execmodel("thread").start(run, (), "execnet-aio")
    return future


async def to_its_end(future: asyncio.Future[T], hurry: Callable[[], object]) -> T:
    """Wait until a thread has done its work, whatever happens, and return the result.

    hurry: called at a cancellation, which is raised when the thread has ended; if it returns a
    future, that one is waited for as well.
    """
    cancelled: asyncio.CancelledError | None = None
    waited: list[asyncio.Future[Any]] = [future]
    while not all(one.done() for one in waited):
        try:
            await asyncio.wait(waited)
        except asyncio.CancelledError as exc:
            if cancelled is None:
                cancelled = exc
                hurrying = hurry()
                waited += [hurrying] if isinstance(hurrying, asyncio.Future) else []
    if cancelled is not None:
        for one in waited:
            if not one.cancelled():
                one.exception()  # nobody else takes it
        raise cancelled
    return future.result()
