"""``resume=`` in an asyncio loop: the same link, read by the loop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from cut_links import EXCHANGE_S, FAR, CutLink, assert_gone, supervisor_of
from cut_ports import CutPort
from interpreters import far_sides
from processes import stop
from socketservers import Servers
from tools import BOUND_S, some_of, wait_in_loop, wait_until

from execnet import WorkerDied, aio

WAITS = "channel.send(1); channel.receive()"
RESUMED = ["gw0 lost", "gw0 resumed"]
ECHO = "for item in channel: channel.send(item)"


def spec_of(seconds: float, python: str = sys.executable, more: str = "") -> str:
    return f"ssh=host//python={python}//resume={seconds:g}{more}"


def in_loop(
    use: Callable[[aio.Group, aio.Gateway], Awaitable[object]], spec: str, told: Iterable[str] = ()
) -> None:
    """Make a gateway and use it; wait until the group has told this of its connection."""
    states: list[str] = []

    async def main() -> None:
        async with aio.Group() as group:
            group.on_state(lambda gateway, state: states.append(f"{gateway.id} {state}"))
            await use(group, await group.makegateway(spec))
            expected = list(told)
            await wait_in_loop(lambda: states[: len(expected)] == expected)

    asyncio.run(main())


async def gone(*pids: int) -> None:
    await asyncio.get_running_loop().run_in_executor(None, assert_gone, *pids)


async def pid_of(gateway: aio.Gateway) -> int:
    return int((await gateway.remote_status(BOUND_S)).pid)


def resuming(gateway: aio.Gateway) -> Any:
    return gateway._io


async def exchange(gateway: aio.Gateway, sizes: list[int]) -> None:
    """Send items of these sizes there and back over two channels, one with a callback."""
    channel, other = gateway.remote_exec(FAR), gateway.newchannel()
    await channel.send("go")
    await channel.send(other)
    came: list[str] = []
    other.setcallback(came.append)
    texts = [f"{number}:".ljust(size, "x") for number, size in enumerate(sizes)]

    async def send() -> None:
        for text in texts:
            await channel.send(text)
            await other.send(text)

    sending = asyncio.ensure_future(send())
    for number, text in enumerate(texts):
        assert await channel.receive(EXCHANGE_S) == [number, text]
    await sending
    await wait_in_loop(lambda: len(came) == len(texts))
    assert came == texts
    await channel.send(None)
    await channel.waitclose(EXCHANGE_S)


@pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
def test_all_that_is_sent_comes_once_and_in_order_over_a_link_that_is_cut_at_random_bytes(
    python: str, link: CutLink
) -> None:
    draw = random.Random(f"cuts in a loop {python}")
    count = some_of(10)
    boot = 40_000  # so many bytes pass before the worker can be found again
    link.set_cuts([boot + 200_000] + [draw.randrange(12_000, 300_000) for _ in range(count)])
    sizes = [draw.choice((3, 300, 30_000)) for _ in range(40 * count)]
    in_loop(lambda group, gateway: exchange(gateway, sizes), spec_of(BOUND_S, python))
    assert link.runs() > count // 2


@pytest.mark.parametrize("tls", [False, True])
def test_a_socket_server_is_dialled_again(servers: Servers, tls: bool) -> None:
    server = servers.start(":0", *(["--tls"] if tls else []))

    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        for number in range(3):
            await channel.send(number)
            port.cut()
            assert await channel.receive(BOUND_S) == number

    with CutPort(server.address) as port:
        bound = "" if tls else f"//bound={server.address}"
        in_loop(use, f"socket={port.address}{bound}//resume={BOUND_S}", RESUMED)


def test_a_silent_connection_is_taken_for_a_lost_one(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        link.stop()
        await channel.send(1)
        assert await channel.receive(BOUND_S) == 1

    in_loop(use, spec_of(BOUND_S, more="//heartbeat=0.2//dead_after=2"), RESUMED)


def test_an_end_of_the_command_that_its_pipes_hide_is_seen(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        connection = resuming(gateway).connection
        connection.has_ended = lambda: True  # and nothing is to be read
        await wait_in_loop(lambda: connection.is_lost)
        channel = gateway.remote_exec(ECHO)
        await channel.send(1)
        assert await channel.receive(BOUND_S) == 1

    in_loop(use, spec_of(BOUND_S), RESUMED)


def test_a_task_that_sends_waits_when_8_MiB_are_not_acknowledged(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        channel = gateway.remote_exec("for item in channel: channel.send(len(item))")
        link.go_down()
        sent: list[int] = []

        async def send() -> None:
            for number in range(12):
                await channel.send(b"x" * (1 << 20))
                sent.append(number)

        sending = asyncio.ensure_future(send())
        await wait_in_loop(lambda: len(sent) >= 7)
        for _ in range(10):
            gateway._post(12)  # frames that must not wait pass
        assert len(sent) <= 9
        link.go_up()
        assert [await channel.receive(BOUND_S) for _ in range(12)] == [1 << 20] * 12
        await sending

    in_loop(use, spec_of(BOUND_S))


def test_a_task_that_is_cancelled_while_it_waits_to_send_lets_others_send(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        channel = gateway.remote_exec("for item in channel: channel.send(len(item))")
        link.go_down()
        block, sending = b"x" * (1 << 20), []
        for _ in range(12):
            sending.append(asyncio.ensure_future(channel.send(block)))
        await wait_in_loop(lambda: len(gateway._writer._waiting_tasks) > 1)
        waiting = [one for one in sending if not one.done()]
        waiting[0].cancel()
        link.go_up()
        ends = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), BOUND_S)
        assert [type(end) for end in ends].count(asyncio.CancelledError) == 1
        assert [await channel.receive(BOUND_S) for _ in range(11)] == [1 << 20] * 11

    in_loop(use, spec_of(BOUND_S))


def test_errors_come_only_when_the_time_is_over_and_then_nothing_is_left(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        pid = await pid_of(gateway)
        folder = resuming(gateway)._session.folder
        channel = gateway.remote_exec(WAITS)
        assert await channel.receive(BOUND_S) == 1
        supervisor = supervisor_of(pid)
        link.go_down()
        await channel.send("kept")
        why = r"(?s)was given up: it was out of reach for 1 s; .*Network"
        with pytest.raises(WorkerDied, match=why):
            await channel.receive(BOUND_S)
        with pytest.raises(OSError, match="out of reach"):
            await channel.send(1)
        await gone(pid, supervisor)
        assert not os.path.exists(folder)

    in_loop(use, spec_of(1, more="//grace=0.2"), ["gw0 lost"])


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_who_waits_is_told_of_a_death_while_connected(link: CutLink, victim: str) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        pid = await pid_of(gateway)
        channel = gateway.remote_exec(WAITS)
        assert await channel.receive(BOUND_S) == 1
        supervisor = supervisor_of(pid)
        os.kill(pid if victim == "worker" else supervisor, signal.SIGKILL)
        how = "SIGKILL" if victim == "worker" else "its supervisor ended"
        with pytest.raises(WorkerDied, match=how):
            await channel.receive(BOUND_S)
        await gone(pid, supervisor)

    in_loop(use, spec_of(BOUND_S, more="//grace=0.2"))


def test_a_group_that_is_cancelled_kills_by_a_login_of_its_own(link: CutLink) -> None:
    pids: list[int] = []

    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        pids.append(await pid_of(gateway))
        pids.append(supervisor_of(pids[0]))
        stop(pids[0])  # so that it does not end as it is asked to
        ending = asyncio.ensure_future(group.terminate())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending

    in_loop(use, spec_of(BOUND_S))
    assert_gone(*pids)
    assert link.runs() == 2


def test_nothing_is_left_of_many_connections(link: CutLink) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()

    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        for number in range(5):
            link.cut()
            await channel.send(number)
            assert await channel.receive(BOUND_S) == number

    in_loop(use, spec_of(BOUND_S), RESUMED * 5)
    wait_until(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before)


def test_calls_go_on_as_well(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        pid = await gateway.call("os:getpid")
        link.cut()
        assert await gateway.call("os:getpid") == pid
        async with group.executor() as executor:
            link.cut()
            numbers = [number async for number in executor.map(abs, range(100))]
            assert numbers == list(range(100))

    in_loop(use, spec_of(BOUND_S))


def test_a_gateway_goes_via_one_that_resumes(link: CutLink) -> None:
    async def use(group: aio.Group, gateway: aio.Gateway) -> None:
        other = await group.makegateway(f"popen//via={gateway.id}")
        channel = other.remote_exec(ECHO)
        for number in range(3):
            link.cut()
            await channel.send(number)
            assert await channel.receive(BOUND_S) == number

    in_loop(use, spec_of(BOUND_S))


def test_it_does_not_go_via_another_gateway_itself() -> None:
    async def main() -> None:
        async with aio.Group(["popen//id=hop"]) as group:
            with pytest.raises(ValueError, match=r"resume= with via= is not for execnet\.aio"):
                await group.makegateway(spec_of(10, more="//via=hop"))

    asyncio.run(main())
