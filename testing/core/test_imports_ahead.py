"""Modules that are sent before a worker asks for them, as it is about to call their functions."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from import_projects import Project, Worker
from tools import BOUND_S, find_python

from execnet import DumpError, Group, WorkerDied, aio

Body = Callable[[aio.Group], Awaitable[None]]


@pytest.fixture(params=["2.7", "3.6", "3.13"])
def worker(request: pytest.FixtureRequest, group: Group, tmp_path: Path) -> Worker:
    """A worker in an empty folder, on a Python that shares nothing with this one."""
    python = find_python(request.param)
    return Worker(group.makegateway(f"popen//python={python}//chdir={tmp_path / 'there'}"))


def test_the_modules_of_a_called_function_come_without_a_request(
    worker: Worker, project: Project
) -> None:
    project.write(
        ahead__init="",
        ahead__work="from .parts import one\nimport other\ndef two(): return 2 * one.VALUE",
        ahead__parts__init="",
        ahead__parts__one="VALUE = 1",
        other="VALUE = 1",
    )
    gateway = worker.gateway
    gateway.forward_imports(["ahead", "other"], deny=["ahead.secret"])
    assert gateway.call("ahead.work:two") == 2
    assert gateway.submit("ahead.work:two").result(BOUND_S) == 2
    assert worker.requests == 0
    project.write(ahead__secret="def f(): pass")
    with pytest.raises(ModuleNotFoundError):  # neither by request nor without one
        gateway.call("ahead.secret:f")


def test_an_executor_sends_the_modules_of_a_function_before_its_first_call(
    group: Group, worker: Worker, project: Project
) -> None:
    project.write(
        first__init="def one(number): return number\n",
        later__init="import other\ndef two(number): return 2 * number\n",
        other="",
    )
    with group.executor(imports=["first", "later", "other"]) as executor:
        assert executor.submit("first:one", 1).result(BOUND_S) == 1
        assert list(executor.map("later:two", range(4), chunksize=2)) == [0, 2, 4, 6]
    assert worker.requests == 0


NAMES = ["first", "second", "third", "fourth", "other"]


@pytest.fixture
def in_loop(project: Project, tmp_path: Path) -> Callable[[Body], int]:
    """Runs a body in a loop, with a worker that may import modules of the project.

    It returns how many of these the worker has asked for.
    """
    for name in NAMES[:-1]:
        project.write(
            **{f"{name}__init": "import other\ndef add(*all): other.done += all; return sum(all)"}
        )
    project.write(other="done = ()\ndef all_done(): return list(done)\n")

    def run(body: Body) -> int:
        async def main() -> int:
            async with aio.Group([f"popen//chdir={tmp_path / 'there'}"]) as group:
                worker = Worker(group[0])
                await group[0].forward_imports(NAMES)
                await asyncio.wait_for(body(group), BOUND_S)
                return worker.requests

        return asyncio.run(main())

    return run


def test_so_do_calls_and_executors_in_a_loop(in_loop: Callable[[Body], int]) -> None:
    async def body(group: aio.Group) -> None:
        gateway = group[0]
        assert await gateway.call("first:add", 1) == 1
        futures = [gateway.submit(f"{name}:add", 2) for name in ("second", "first", "third")]
        assert await asyncio.gather(*futures, gateway.submit("other:all_done")) == [
            *(2, 2, 2),
            [1, 2, 2, 2],
        ]
        async with group.executor() as executor:
            assert await executor.submit("fourth:add", 3) == 3
            assert [n async for n in executor.map("fourth:add", range(3))] == [0, 1, 2]

    assert in_loop(body) == 0


def test_what_can_not_be_sent_is_refused_before_its_modules_are(
    in_loop: Callable[[Body], int],
) -> None:
    async def body(group: aio.Group) -> None:
        given = [1]
        future = group[0].submit("first:add", *given)
        given[0] = 2
        with pytest.raises(DumpError):
            group[0].submit("second:add", object())
        assert await future == 1
        assert await group[0].submit("second:add", 1) == 1

    assert in_loop(body) == 0


def test_a_call_whose_modules_are_sent_may_be_cancelled(in_loop: Callable[[Body], int]) -> None:
    async def body(group: aio.Group) -> None:
        async with group.executor() as executor:
            given_up = executor.submit("first:add", 1)
            given_up.cancel()
        async with group.executor() as executor:
            left = executor.submit("second:add", 1)
            await executor.shutdown(cancel_futures=True)
            with pytest.raises(RuntimeError, match="after shutdown"):
                executor.submit("third:add", 1)
            assert left.cancelled()
        assert await group[0].call("other:all_done") == []

    in_loop(body)


def test_a_worker_that_dies_while_modules_are_sent_is_told_to_their_calls(
    in_loop: Callable[[Body], int],
) -> None:
    async def body(group: aio.Group) -> None:
        pid = (await group[0].remote_status()).pid
        async with group.executor() as executor:
            futures = [group[0].submit("first:add", 1), executor.submit("second:add", 1)]
            os.kill(pid, signal.SIGKILL)
            ended = await asyncio.gather(*futures, return_exceptions=True)
        assert [isinstance(one, (WorkerDied, RuntimeError)) for one in ended] == [True, True]

    in_loop(body)
