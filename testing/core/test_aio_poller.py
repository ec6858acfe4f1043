"""``execnet.aio`` in a loop that can't poll descriptors, as the default one on Windows can't."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from processes import stop
from tools import BOUND_S, wait_in_loop, wait_until

import execnet
from execnet import aio
from execnet._aio.poller import Poller

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing polls pipes there")


class Blind(asyncio.SelectorEventLoop):
    """A loop that can't poll."""

    def _refuse(self, *_: object) -> Any:
        raise NotImplementedError

    add_reader = remove_reader = add_writer = remove_writer = _refuse


def run(body: Callable[[aio.Group], Awaitable[Any]], *specs: str) -> Any:
    """Run a body with a group of these workers in such a loop; return its result."""

    async def main() -> Any:
        async with aio.Group(specs) as group:
            return await asyncio.wait_for(body(group), BOUND_S)

    loop = Blind()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("aio-poll")]


@pytest.mark.usefixtures("nothing_is_left")
class TestGateways:
    def test_items_of_all_sizes_pass_by_one_thread_for_all(self) -> None:
        async def body(group: aio.Group) -> None:
            for channel in group.remote_exec("for item in channel: channel.send(item)"):
                for item in (1, b"x" * 3_000_000, b"y" * 70_000):
                    await channel.send(item)
                    assert await channel.receive() == item
            assert len(pollers()) == 1

        run(body, "3*popen")

    def test_a_send_waits_for_a_worker_that_reads_nothing(self) -> None:
        async def body(group: aio.Group) -> list[int]:
            pid = (await group[0].remote_status()).pid
            channel = group[0].remote_exec("for item in channel: channel.send(len(item))")
            stop(pid)
            try:
                await channel.send(b"x" * 3_000_000)
                waiting = asyncio.ensure_future(channel.send(b"y"))
                assert not (await asyncio.wait([waiting], timeout=0.01))[0]
            finally:
                os.kill(pid, signal.SIGCONT)
            await waiting
            return [await channel.receive(), await channel.receive()]

        assert run(body, "popen") == [3_000_000, 1]

    def test_a_death_is_seen_and_others_go_on(self) -> None:
        async def body(group: aio.Group) -> int:
            waiting = group[0].remote_exec("channel.receive()")
            os.kill((await group[0].remote_status()).pid, signal.SIGKILL)
            with pytest.raises(execnet.WorkerDied, match="SIGKILL"):
                await waiting.receive()
            return await group[1].call(sum, [1, 2])

        assert run(body, "popen", "popen") == 3


@pytest.mark.usefixtures("nothing_is_left")
class TestPoller:
    def test_what_was_removed_is_not_called_and_the_thread_ends_with_the_last(self) -> None:
        async def main() -> None:
            heard: list[int] = []
            poller = Poller(asyncio.get_running_loop())
            (one, tell_one), (other, tell_other) = os.pipe(), os.pipe()
            try:
                poller.add_reader(one, lambda: heard.append(len(os.read(one, 9))))
                poller.add_reader(other, lambda: heard.append(-len(os.read(other, 9))))
                os.write(tell_one, b"123")
                await wait_in_loop(lambda: heard)
                poller.remove_reader(one)
                os.write(tell_one, b"123")
                os.write(tell_other, b"1")
                await wait_in_loop(lambda: len(heard) > 1)
                assert heard == [3, -1]
                poller.remove_reader(other)
                await wait_in_loop(lambda: not pollers())
                poller.add_writer(tell_one, lambda: heard.append(0))  # begins anew
                await wait_in_loop(lambda: heard.count(0) > 1)
                poller.remove_writer(tell_one)
                await wait_in_loop(lambda: not pollers())
            finally:
                for fd in (one, tell_one, other, tell_other):
                    os.close(fd)

        asyncio.run(main())

    def test_a_loop_that_is_closed_ends_the_thread(self) -> None:
        read, write = os.pipe()

        async def main() -> None:
            Poller(asyncio.get_running_loop()).add_reader(read, int)
            await wait_in_loop(pollers)

        try:
            asyncio.run(main())
            os.write(write, b"1")
            wait_until(lambda: not pollers())
        finally:
            os.close(read)
            os.close(write)
