"""``execnet.aio`` over what is no pipe to a process of this machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from socketservers import Servers
from tools import BOUND_S

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
