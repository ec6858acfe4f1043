"""A fast producer and a slow reader with ``window=``: what is unread stays small.

Both directions. Prints by how much the memory of either process rose at its highest; the exit
status is 1 if that was more than the window and 16 MiB.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import execnet

MAY_RISE_MIB = 16.0  # above the window
ITEM_BYTES = 1 << 18
PACE_ITEMS = 32  # the reader takes a pause after so many


def watch_memory(process: int | str = "self") -> float:
    """Return the resident memory in MiB; from now on its highest is counted."""
    with open(f"/proc/{process}/clear_refs", "w") as file:
        file.write("5")
    return memory("VmRSS", process)


def memory(field: str, process: int | str = "self") -> float:
    """Return a line of a process's status in MiB; ``VmHWM`` is its highest."""
    with open(f"/proc/{process}/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) / 1024.0
    raise LookupError(field)


WORKER = """
import time
kind, count, size, pace, pause = channel.receive()
for number in range(count):
    if kind == "produce":
        channel.send(bytes([number % 251]) * size)
    else:
        assert channel.receive() == bytes([number % 251]) * size
        if number % pace == 0:
            time.sleep(pause)
channel.send(None)
channel.receive()
"""


def produce(channel: execnet.Channel, count: int) -> None:
    """Send as fast as the window lets us."""
    for number in range(count):
        channel.send(bytes([number % 251]) * ITEM_BYTES)
    assert channel.receive() is None


def read(channel: execnet.Channel, count: int, pause_s: float) -> None:
    """Take what comes, slowly."""
    for number in range(count):
        assert channel.receive() == bytes([number % 251]) * ITEM_BYTES
        if number % PACE_ITEMS == 0:
            time.sleep(pause_s)
    assert channel.receive() is None


def run(direction: str, window_bytes: int, mib: int, pause_s: float) -> tuple[float, float]:
    """Return by how many MiB the coordinator's and the worker's memory rose."""
    count = mib * 2**20 // ITEM_BYTES
    with execnet.Group() as group:
        spec = f"popen//window={window_bytes}" if window_bytes else "popen"
        gateway = group.makegateway(spec)
        pid = gateway._rinfo().pid
        channel = gateway.remote_exec(WORKER)
        kind = "read" if direction == "send" else "produce"
        before = watch_memory(), watch_memory(pid)
        channel.send((kind, count, ITEM_BYTES, PACE_ITEMS, pause_s))
        if direction == "send":
            produce(channel, count)
        else:
            read(channel, count, pause_s)
        rises = memory("VmHWM") - before[0], memory("VmHWM", pid) - before[1]
        channel.send(None)
        return rises


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mib", type=int, default=2000, help="how much is produced (2000)")
    add("--window", type=int, default=1 << 20, metavar="BYTES", help="0: none (1 MiB)")
    add("--pause", type=float, default=0.03, metavar="S", help="of the reader, per 8 MiB (0.03)")
    options = parser.parse_args()
    limit = options.window / 2**20 + MAY_RISE_MIB
    if not Path("/proc/self/clear_refs").exists():
        print("this needs Linux's /proc")
        return 2
    high = False
    for direction in ("send", "collect"):
        started = time.monotonic()
        here, there = run(direction, options.window, options.mib, options.pause)
        high |= max(here, there) > limit
        took_s = time.monotonic() - started
        print(
            f"{direction}: {options.mib} MiB in {took_s:.0f} s; the coordinator rose by"
            f" {here:.1f} MiB, the worker by {there:.1f} MiB, at most {limit:g} are allowed",
            flush=True,
        )
    return int(high)


if __name__ == "__main__":
    sys.exit(main())
