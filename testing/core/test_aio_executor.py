"""Executors of ``execnet.aio``: who gets a call, and how each future ends."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, wait_in_loop

from execnet import RemoteError, WorkerDied, aio, codecs

Body = Callable[[aio.Group], Awaitable[Any]]


def run(body: Body, *specs: str) -> Any:
    """Run a body with a group of these workers in a loop of its own; return its result."""

    async def main() -> Any:
        async with aio.Group(specs or ("2*popen",)) as group:
            return await asyncio.wait_for(body(group), BOUND_S)

    return asyncio.run(main())


def pid() -> int:
    import os

    return os.getpid()


def inverse(number: int) -> float:
    return 1 / number


def sleep_for_ever() -> None:
    import time

    while True:
        time.sleep(0.01)


def die() -> None:
    import os

    os._exit(3)


def die_once(path: str) -> int:
    import os

    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(3)
    return 5


async def begun(future: asyncio.Future[Any], executor: Any) -> None:
    """Wait until a call was sent."""
    await wait_in_loop(lambda: not executor._waiting)
    assert not future.done()


def test_calls_go_to_all_workers_and_end_as_they_do_there() -> None:
    async def body(group: aio.Group) -> None:
        async with group.executor() as executor:
            pids = await asyncio.gather(*(executor.submit(pid) for _ in range(20)))
            assert len(set(pids)) == 2
            assert await executor.submit(inverse, 4) == 0.25
            with pytest.raises(ZeroDivisionError) as raised:
                await executor.submit(inverse, 0)
            assert isinstance(raised.value.__cause__, RemoteError)
            with pytest.raises(ValueError, match="a function's name is"):
                await executor.submit("nothing")  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(pid)
        assert len(group) == 2
        with pytest.raises(TypeError, match="async with"), group.executor():
            pass

    run(body)


@pytest.mark.parametrize("options", [{}, {"chunksize": 7}, {"buffersize": 2}])
def test_map_yields_in_order(options: dict[str, Any]) -> None:
    async def body(group: aio.Group) -> None:
        async with group.executor() as executor:
            found = [one async for one in executor.map(pow, range(50), [2] * 50, **options)]
            assert found == [number**2 for number in range(50)]
            with pytest.raises(ZeroDivisionError):
                async for _ in executor.map(inverse, [1, 0, 2], **options):
                    pass
            with pytest.raises(ValueError, match="chunksize"):
                async for _ in executor.map(pow, [1], chunksize=0):
                    pass

    run(body)


def test_it_follows_the_group_and_survives_deaths(tmp_path: Path) -> None:
    async def body(group: aio.Group) -> None:
        async with group.executor() as executor, group.executor(retries=1) as safe:
            await group.makegateways(["2*popen"])
            pids = await asyncio.gather(*(executor.submit(pid) for _ in range(30)))
            assert len(set(pids)) == 3
            with pytest.raises(WorkerDied):
                await executor.submit(die)
            assert await safe.submit(die_once, str(tmp_path / "once")) == 5
            with pytest.raises(WorkerDied):
                await executor.submit(die)
            with pytest.raises(RuntimeError, match="no workers") as raised:
                executor.submit(pid)
            assert isinstance(raised.value.__cause__, WorkerDied)

    run(body, "popen")


def test_cancelling_keeps_calls_from_beginning_and_interrupts_one_if_asked() -> None:
    async def body(group: aio.Group) -> None:
        async with group.executor(cancel="interrupt") as executor:
            running = executor.submit(sleep_for_ever)
            await begun(running, executor)
            waiting = executor.submit(die)
            waiting.cancel()
            running.cancel()
            assert await executor.submit(inverse, 2) == 0.5
        endless = group.executor()
        running = endless.submit(sleep_for_ever)
        await begun(running, endless)
        waiting = endless.submit(die)
        await endless.shutdown(wait=False, cancel_futures=True)
        assert waiting.cancelled()
        assert not running.done()
        running.cancel()

    run(body, "popen//grace=0.1")


def test_codecs_and_imports_go_with_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import datetime\ndef later(day): return day + datetime.timedelta(1)\n"
    tmp_path.joinpath("only_here.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    async def body(group: aio.Group) -> Any:
        async with group.executor(codec=codecs.standard, imports=["only_here"]) as executor:
            later: Any = "only_here:later"
            return await executor.submit(later, datetime.date(2024, 2, 28))

    assert run(body, "popen//chdir=/") == datetime.date(2024, 2, 29)
