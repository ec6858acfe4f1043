"""How gateways in an asyncio loop end: asked, killed, cancelled, with their loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import textwrap
import threading
from typing import Any

import pytest
from processes import is_gone, stop, wait_reaped
from tools import BOUND_S, run_python

import execnet
from execnet import aio
from execnet._aio import group as aio_group

STUCK = "while True:\n try:\n  import time; time.sleep(99)\n except KeyboardInterrupt: pass"


async def pid_of(gateway: aio.Gateway) -> int:
    pid: int = (await gateway.remote_status(BOUND_S)).pid
    return pid


class TestDeaths:
    @pytest.mark.parametrize("is_hidden", [False, True])
    def test_a_killed_worker_is_told_to_all_that_wait(self, is_hidden: bool) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                gateway = group[0]
                if is_hidden:  # a process that the worker forked holds its stream
                    child = await gateway.remote_exec(
                        "import subprocess, os\n"
                        "stream = channel.gateway._io.outfile.fileno()\n"
                        "popen = subprocess.Popen(['sleep', '99'], pass_fds=[stream])\n"
                        "channel.send(popen.pid)"
                    ).receive(BOUND_S)
                channel = gateway.remote_exec("channel.receive()")
                waiting = [
                    asyncio.ensure_future(awaited)
                    for awaited in (
                        channel.receive(),
                        channel.waitclose(),
                        gateway.call("time:sleep", 99),
                        gateway.submit("time:sleep", 99),
                        gateway.join(),
                    )
                ]
                os.kill(await pid_of(gateway), signal.SIGKILL)
                ends = await asyncio.wait_for(
                    asyncio.gather(*waiting, return_exceptions=True), BOUND_S
                )
                assert [type(end) for end in ends] == [execnet.WorkerDied] * 4 + [type(None)]
                assert ends[0].signal == signal.SIGKILL
                with pytest.raises(OSError, match="SIGKILL"):
                    await channel.send(1)
                with pytest.raises(OSError, match="SIGKILL"):
                    gateway.remote_exec("pass")
                if is_hidden:
                    os.kill(child, signal.SIGKILL)

        asyncio.run(main())

    def test_a_silent_worker_is_given_up(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen//heartbeat=0.05//dead_after=1"]) as group:
                channel = group[0].remote_exec("channel.receive()")
                stop(await pid_of(group[0]))
                with pytest.raises(execnet.WorkerDied, match="silent"):
                    await channel.receive(BOUND_S)

        asyncio.run(main())

    def test_exit_lets_join_go(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                gateway = group[0]
                gateway.exit()
                await gateway.join(BOUND_S)
                assert not gateway.hasreceiver()
                assert len(group) == 0
                async with await group.makegateway("popen") as gateway:
                    pid = await pid_of(gateway)
                assert is_gone(pid)

        asyncio.run(main())


class TestCancelling:
    def test_a_cancelled_end_kills_what_does_not_end(self) -> None:
        pids: list[int] = []

        async def main() -> None:
            async with aio.Group(["2*popen//grace=99"]) as group:
                group.remote_exec(STUCK)
                pids.extend([await pid_of(gateway) for gateway in group])
                asyncio.get_running_loop().call_later(0.1, me.cancel)

        async def outer() -> None:
            nonlocal me
            me = asyncio.ensure_future(main())
            with pytest.raises(asyncio.CancelledError):
                await me

        me: asyncio.Future[None]
        asyncio.run(outer())
        wait_reaped(*pids)

    @pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
    def test_a_cancelled_start_leaves_nothing(self, after_s: float) -> None:
        async def main() -> None:
            async with aio.Group() as group:
                task = asyncio.ensure_future(group.makegateways(["2*popen"]))
                await asyncio.sleep(after_s)
                if task.cancel():  # else they have started by then
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert len(group) == 0

        asyncio.run(main())

    def test_a_start_that_is_cancelled_as_it_ends_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All gateways have been made, but the loop does not know yet."""
        are_made, goes_on = threading.Event(), threading.Event()

        def make(*args: Any) -> Any:
            gateways = _make(*args)
            are_made.set()
            assert goes_on.wait(BOUND_S)
            return gateways

        async def main() -> None:
            async with aio.Group() as group:
                monkeypatch.setattr(aio_group._Core, "make", make)
                task = asyncio.ensure_future(group.makegateways(["2*popen"]))
                assert await asyncio.to_thread(are_made.wait, BOUND_S)
                task.cancel()
                goes_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(group) == 0

        _make = aio_group._Core.make
        asyncio.run(main())


class TestLoops:
    def test_workers_end_with_their_loop(self) -> None:
        async def main() -> int:
            group = aio.Group()
            return await pid_of(await group.makegateway("popen"))

        wait_reaped(asyncio.run(main()))

    def test_a_group_that_nobody_holds_keeps_its_workers(self) -> None:
        async def main() -> None:
            gateway = await aio.Group().makegateway("popen")
            gc.collect()
            await asyncio.sleep(0)
            assert await gateway.call("operator:add", 1, 2) == 3

        asyncio.run(main())

    def test_workers_of_a_closed_loop_end_with_the_program(self) -> None:
        program = """
            import asyncio
            from execnet import aio

            async def main():
                gateway = await group.makegateway("popen")
                print((await gateway.remote_status()).pid)
                gateway.remote_exec("channel.receive()")

            group = aio.Group()
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
        """
        done = run_python(textwrap.dedent(program))
        assert (done.returncode, done.stderr) == (0, "")
        assert is_gone(int(done.stdout))

    def test_what_a_callback_raises_closes_its_channel(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                channel = group[0].remote_exec("channel.send(1); channel.receive()")
                channel.setcallback(lambda item: 1 / 0)
                with pytest.raises(execnet.RemoteError, match="ZeroDivisionError"):
                    await channel.waitclose(BOUND_S)
                assert await group[0].call("os:getpid")

        asyncio.run(main())
