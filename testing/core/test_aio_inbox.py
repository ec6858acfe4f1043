"""How tasks of an asyncio loop wait for items, and go on when one has come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from tools import BOUND_S

from execnet import aio
from execnet._aio.inbox import Inbox, Turn

ECHO = "for item in channel: channel.send(item)"
WHERE: ContextVar[str] = ContextVar("WHERE", default="the loop")


def with_inbox(body: Callable[[Inbox, Turn], Awaitable[None]]) -> None:
    """Run a body with an inbox in a loop of its own."""

    async def main() -> None:
        turn = Turn()
        await asyncio.wait_for(body(Inbox(asyncio.get_running_loop(), turn), turn), BOUND_S)

    asyncio.run(main())


def started(inbox: Inbox, got: list[Any], deadline: float | None = None) -> asyncio.Task[None]:
    """Return a task that takes an item, or notes that there was none."""

    async def take() -> None:
        while inbox.empty():
            if not await inbox.wait(deadline):
                got.append("late")
                return
        got.append(inbox.get())

    return asyncio.ensure_future(take())


def go_on(turn: Turn) -> None:
    """End a turn, from a callback of the loop, where no task runs."""

    def end() -> None:
        turn.is_open = False
        waiter, turn.waiter = turn.waiter, None
        assert waiter is not None
        waiter.go_on()
        done.set_result(None)

    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(end)


class TestTurn:
    def test_the_first_task_goes_on_in_it_and_others_in_the_next_round(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            got: list[Any] = []
            tasks = [started(inbox, got), started(inbox, got)]
            await asyncio.sleep(0)
            seen: list[list[Any]] = []

            def read() -> None:
                turn.is_open = True
                inbox.put(1)
                inbox.put(2)
                turn.is_open = False
                seen.append(got[:])
                assert turn.waiter is not None
                turn.waiter.go_on()
                seen.append(got[:])

            asyncio.get_running_loop().call_soon(read)
            await asyncio.gather(*tasks)
            assert (seen, got) == ([[], [1]], [1, 2])

        with_inbox(body)

    def test_without_one_tasks_go_on_in_the_next_round(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            got: list[Any] = []
            task = started(inbox, got)
            await asyncio.sleep(0)
            inbox.put(1)
            assert (turn.waiter, got) == (None, [])
            await task
            assert got == [1]

        with_inbox(body)

    def test_a_task_that_goes_on_in_it_is_in_its_own_context(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            async def take() -> str:
                WHERE.set("the task")
                await inbox.wait(None)
                return WHERE.get()

            task = asyncio.ensure_future(take())
            await asyncio.sleep(0)
            turn.is_open = True
            inbox.put(1)
            go_on(turn)
            assert (await task, WHERE.get()) == ("the task", "the loop")

        with_inbox(body)

    def test_a_task_that_is_cancelled_before_it_goes_on_leaves_its_item_to_the_next(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            got: list[Any] = []
            first, second = started(inbox, got), started(inbox, got)
            await asyncio.sleep(0)
            turn.is_open = True
            inbox.put(1)
            first.cancel()
            go_on(turn)
            with pytest.raises(asyncio.CancelledError):
                await first
            await second
            assert got == [1]

        with_inbox(body)

    def test_a_task_whose_turn_an_interrupt_ended_can_be_cancelled(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            got: list[Any] = []
            task = started(inbox, got)
            await asyncio.sleep(0)
            turn.is_open = True
            inbox.put(1)
            turn.is_open, turn.waiter = False, None
            await asyncio.sleep(0)
            assert not got  # nobody has let it go on
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert inbox.get() == 1

        with_inbox(body)

    def test_a_deadline_ends_a_wait(self) -> None:
        async def body(inbox: Inbox, turn: Turn) -> None:
            got: list[Any] = []
            await started(inbox, got, asyncio.get_running_loop().time() + 0.01)
            inbox.put(1)
            await started(inbox, got, asyncio.get_running_loop().time())
            assert got == ["late", 1]

        with_inbox(body)


class TestRounds:
    def test_a_round_trip_takes_one_round_of_the_loop(self) -> None:
        async def main() -> int:
            loop = asyncio.get_running_loop()
            async with aio.Group(["popen"]) as group:
                channel = group[0].remote_exec(ECHO)
                hops = 0
                call_soon: Any = loop.call_soon

                def count(*args: Any, **kwargs: Any) -> Any:
                    nonlocal hops
                    hops += 1
                    return call_soon(*args, **kwargs)

                for number in range(3):
                    if number == 1:  # what the worker says of itself has come
                        loop.call_soon = count  # type: ignore[method-assign]
                    await channel.send(number)
                    assert await channel.receive() == number
                loop.call_soon = call_soon  # type: ignore[method-assign]
                return hops

        assert asyncio.run(main()) == 0

    def test_a_program_that_exits_in_a_task_does_not_end_its_gateway_by_that(self) -> None:
        errors: list[BaseException | None] = []

        async def main() -> None:
            group = aio.Group()
            gateway = await group.makegateway("popen")
            channel = gateway.remote_exec(ECHO)
            await channel.send(1)

            async def receive_and_exit() -> None:
                await channel.receive()
                try:
                    raise SystemExit(3)
                finally:
                    asyncio.get_running_loop().call_soon(lambda: errors.append(gateway._error))

            await asyncio.ensure_future(receive_and_exit())

        with pytest.raises(SystemExit):
            asyncio.run(main())
        assert errors == [None]
