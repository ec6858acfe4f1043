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
    from typing import TypeVar

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

    A cancellation makes the thread hurry, and is raised when the thread has ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as exc:
            if cancelled is None:
                cancelled = exc
                hurry()
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # nobody else takes it
        raise cancelled
    return future.result()
