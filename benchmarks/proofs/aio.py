"""``execnet.aio``: cancelled receives lose nothing, and one loop holds many idle gateways.

Prints both figures; the exit status is 1 if an item was lost or doubled, a gateway did not answer,
or there was another thread.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import threading
import time
from contextlib import suppress

from execnet import aio

AT_ONCE = 50  # gateways that are started by one call, so that their processes take turns
ENDS_WITHIN_S = 2.0  # a thread that has started gateways
FEW = 20  # items that are on their way at once
COUNT = """
for count in channel:
    for number in range(count):
        channel.send(number)
"""


async def cancel_receives(count: int, seed: int) -> tuple[int, int]:
    """Cancel so many receives at random moments; return how many items came, and were wrong."""
    rng = random.Random(seed)
    cancelled = came = wrong = 0
    async with aio.Group(["popen"]) as group:
        channel = group[0].remote_exec(COUNT)
        while cancelled < count:
            await channel.send(FEW)
            items: list[int] = []

            async def take(items: list[int] = items) -> None:
                items.append(await channel.receive())

            while len(items) < FEW:
                waiting = [asyncio.ensure_future(take()) for _ in range(rng.randint(1, 8))]
                for _ in range(rng.randint(0, 6)):
                    await asyncio.sleep(0)
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.random() / 1e3)
                for task in waiting:
                    cancelled += task.cancel()
                for task in waiting:
                    with suppress(asyncio.CancelledError):
                        await task
            came += len(items)
            wrong += items != list(range(FEW))
    return came, wrong


async def hold(count: int) -> tuple[int, int, float]:
    """Hold so many idle gateways; return how many answered, threads, and KiB for each."""
    async with aio.Group(["popen"]) as group:
        await group[0].remote_status()
        before = private_kib()
        while len(group) < count:
            await group.makegateways(["popen"] * min(AT_ONCE, count - len(group)))
        kib = (private_kib() - before) / count
        channels = group.remote_exec("import os; channel.send(os.getpid())")
        pids = {item async for _, item in channels.as_received()}
        deadline = time.monotonic() + ENDS_WITHIN_S
        while threading.active_count() > 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        threads = threading.active_count()
    return len(pids), threads, kib


def private_kib() -> int:
    """Return the memory of this process that is its own, in KiB."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


def allow_descriptors(count: int) -> None:
    """Raise the limit of descriptors to what so many gateways need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 4 * count + 200
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), hard))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks aio", description=__doc__)
    parser.add_argument("--cancelled", type=int, default=100_000, help="receives (100,000)")
    parser.add_argument("--gateways", type=int, default=1000, help="that are idle (1,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    options = parser.parse_args()
    allow_descriptors(options.gateways)
    started = time.monotonic()
    came, wrong = asyncio.run(cancel_receives(options.cancelled, options.seed))
    print(f"{options.cancelled} cancelled receives, {came} items: {wrong} rounds were wrong")
    answered, threads, kib = asyncio.run(hold(options.gateways))
    print(
        f"{options.gateways} idle gateways in one loop: {answered} answered, {threads} thread,"
        f" {kib:.1f} KiB each, in {time.monotonic() - started:.0f} s"
    )
    return int(wrong > 0 or answered != options.gateways or threads != 1)


if __name__ == "__main__":
    sys.exit(main())
