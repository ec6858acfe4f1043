"""What idle popen gateways of one asyncio loop need.

Arguments: ``memory`` (KiB a gateway), ``threads`` or ``descriptors``, of the coordinator with 100
of them.
"""

from __future__ import annotations

import asyncio

import _proc
from _measure import Result, Scaled, main

from execnet import aio

GATEWAYS = 100


async def start(count: int) -> aio.Group:
    """Return a group of gateways that have been used and are idle."""
    group = aio.Group()
    await group.makegateways(["popen"] * count)
    await group.remote_exec("channel.send(None)").receive_each()
    return group


async def measure_in_loop(count: int, what: str) -> float:
    await (await start(1)).terminate(5)
    before = _proc.kib("self", "Private_Dirty")
    group = await start(count)
    if what == "memory":
        found = (_proc.kib("self", "Private_Dirty") - before) / count
    else:
        found = _proc.threads("self") if what == "threads" else _proc.descriptors("self")
    await group.terminate(5)
    return found


def measure(scaled: Scaled, what: str) -> Result:
    return {"samples": [asyncio.run(measure_in_loop(scaled(GATEWAYS), what))]}


if __name__ == "__main__":
    main(measure)
