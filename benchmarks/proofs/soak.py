"""Gateways, started and ended by the hundred in one process: nothing of them stays.

Prints descriptors, threads, processes and memory after the first round and after the last; the
exit status is 1 if one of them grew.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from pathlib import Path

import execnet

ENDS_WITHIN_S = 2.0  # a thread that is to end
MAY_GROW_MIB = 4.0  # of memory: the allocator keeps what it may need again
CODE = "channel.send(channel.receive() + 1)"


def measured() -> dict[str, float]:
    """Return what this process has of each, once the threads that have nothing more to do ended."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(ENDS_WITHIN_S)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": count_children(),
        "MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
    }


def count_children() -> int:
    """Return how many processes are ours, zombies included."""
    ours = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            ours += int(path.read_bytes().rpartition(b") ")[2].split()[1]) == os.getpid()
        except OSError:  # it has gone meanwhile
            continue
    return ours


def run_round(count: int, spec: str) -> None:
    """Start so many at once, have each answer, and end them."""
    with execnet.Group() as group:
        gateways = group.makegateways([spec] * count)
        channels = [gateway.remote_exec(CODE) for gateway in gateways]
        for number, channel in enumerate(channels):
            channel.send(number)
        for number, channel in enumerate(channels):
            assert channel.receive(timeout=60) == number + 1


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gateways", type=int, default=2000, help="how many in all (2000)")
    parser.add_argument("--at-once", type=int, default=100, help="how many at a time (100)")
    parser.add_argument("--spec", default="popen", help="what is started (popen)")
    options = parser.parse_args()
    started = time.monotonic()
    run_round(options.at_once, options.spec)  # modules are imported, the heap has its size
    first = last = measured()
    for number in range(1, options.gateways // options.at_once):
        run_round(options.at_once, options.spec)
        last = measured()
        print(f"{(number + 1) * options.at_once} gateways: {last}", flush=True)
    took_s = time.monotonic() - started
    print(f"{options.gateways} gateways, {options.at_once} at a time, in {took_s:.0f} s")
    print(f"after the first round: {first}\nafter the last round:  {last}")
    limits = {**first, "MiB": first["MiB"] + MAY_GROW_MIB}
    grown = [name for name in last if last[name] > limits[name]]
    print(f"grown: {', '.join(grown)}" if grown else "nothing grew")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
