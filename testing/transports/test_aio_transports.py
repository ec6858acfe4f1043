"""``execnet.aio`` over what is no pipe to a process of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from socketservers import Servers
from tools import BOUND_S

import execnet
from execnet import aio


def echo(spec: str, item: Any) -> Any:
    """Return what comes back of an item from a worker of a spec, in a loop of its own."""

    async def talk(group: aio.Group) -> Any:
        channel = group[0].remote_exec("for item in channel: channel.send(item)")
        await channel.send(1)
        assert await channel.receive() == 1
        await channel.send(item)
        return await channel.receive()

    async def main() -> Any:
        async with aio.Group([spec]) as group:
            return await asyncio.wait_for(talk(group), BOUND_S)

    return asyncio.run(main())


def test_large_items_pass_over_ssh(spec: str) -> None:
    assert echo(spec, b"x" * 3_000_000) == b"x" * 3_000_000


def test_large_items_pass_over_a_socket(servers: Servers) -> None:
    assert echo(f"socket={servers.start().address}", b"x" * 3_000_000) == b"x" * 3_000_000


@pytest.mark.usefixtures("templates")
def test_large_items_pass_to_a_forked_worker() -> None:
    assert echo("popen//forkserver", b"x" * 3_000_000) == b"x" * 3_000_000


def test_large_items_pass_over_tls(servers: Servers) -> None:
    address = servers.start(":0", "--tls").address
    assert echo(f"socket={address}", b"x" * 3_000_000) == b"x" * 3_000_000


class TestVia:
    def test_large_items_pass_through_other_workers(self) -> None:
        async def main() -> None:
            specs = ["popen//id=a", "popen//via=a//id=b", "popen//via=b//id=c"]
            async with aio.Group(specs) as group:
                for gateway in group:
                    channel = gateway.remote_exec("for item in channel: channel.send(item)")
                    for item in (1, b"x" * 3_000_000):
                        await channel.send(item)
                        assert await asyncio.wait_for(channel.receive(), BOUND_S) == item

        asyncio.run(main())

    def test_ends_tell_what_has_ended(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen//id=a", "popen//via=a//id=b"]) as group:
                for victim, told in (("b", "^worker b died, killed by SIGKILL"), ("a", "worker a")):
                    gateway = (
                        await group.makegateway("popen//via=a") if victim == "a" else group["b"]
                    )
                    channel = gateway.remote_exec("channel.receive()")
                    os.kill((await group[victim].remote_status()).pid, signal.SIGKILL)
                    with pytest.raises(execnet.WorkerDied, match=told):
                        await channel.receive(BOUND_S)

        asyncio.run(main())

    def test_a_server_is_installed_via_another(self) -> None:
        async def main() -> int:
            async with aio.Group(["popen//id=a", "socket//installvia=a//id=b"]) as group:
                number: int = await group["b"].call("operator:add", 1, 2)
                return number

        assert asyncio.run(main()) == 3
