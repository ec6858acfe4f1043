"""One item to a popen gateway of an asyncio loop and back, in microseconds."""

from __future__ import annotations

import asyncio
from time import perf_counter

import _items
from _measure import Result, Scaled, main, microseconds

from execnet import aio

ECHO = "for item in channel:\n    channel.send(item)"


async def measure_in_loop(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    samples = []
    async with aio.Group(["popen"]) as group:
        channel = group[0].remote_exec(ECHO)
        for _ in range(scaled(count // 10) + scaled(count)):
            started = perf_counter()
            await channel.send(item)
            received = await channel.receive()
            samples.append(perf_counter() - started)
        if received != item:
            raise ValueError("another item came back")
    return microseconds(samples[scaled(count // 10) :])


def measure(scaled: Scaled, kind: str) -> Result:
    return asyncio.run(measure_in_loop(scaled, kind))


if __name__ == "__main__":
    main(measure)
