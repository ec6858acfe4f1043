"""What idle popen gateways need: memory, threads, descriptors, time.

Arguments: ``worker`` (the memory of one worker, in MiB), or of the coordinator with 100 gateways
its ``memory`` (KiB a gateway), ``threads`` or ``descriptors``, or the ``cpu`` time of all of them
(ms a second).
"""

from __future__ import annotations

import time

import _proc
from _measure import Result, Scaled, main

import execnet

GATEWAYS = 100
SETTLE_S = 1.5  # after this nothing of their start is going on, and all are taken for idle
IDLE_S = 3

GET_PID = "import os; channel.send(os.getpid())"


def start(count: int) -> tuple[execnet.Group, list[int]]:
    """Return a group of gateways that have been used and are idle, and their processes."""
    group = execnet.Group(["popen"] * count)
    pids = group.remote_exec(GET_PID).receive_each()
    time.sleep(SETTLE_S)
    return group, pids


def worker() -> float:
    group, [pid] = start(1)
    memory = _proc.kib(pid, "Pss") / 1024
    group.terminate(5)
    return memory


def memory(count: int) -> float:
    """Return the memory that ``count`` gateways take in the coordinator, beyond one that went."""
    start(1)[0].terminate(5)
    before = _proc.kib("self", "Private_Dirty")
    group, _ = start(count)
    after = _proc.kib("self", "Private_Dirty")
    group.terminate(5)
    return (after - before) / count


def held(count: int, what: str) -> int:
    group, _ = start(count)
    number = _proc.threads("self") if what == "threads" else _proc.descriptors("self")
    group.terminate(5)
    return number


def cpu(count: int) -> float:
    group, pids = start(count)
    # The coordinator's own is read last and first, so that the looking itself is not in it.
    used = -sum(map(_proc.cpu_seconds, pids))
    used -= time.process_time()  # Linux's own figure for a process that runs is an old one
    time.sleep(IDLE_S)
    used += time.process_time()
    used += sum(map(_proc.cpu_seconds, pids))
    group.terminate(5)
    return used / IDLE_S * 1e3


def measure(scaled: Scaled, what: str) -> Result:
    count = scaled(GATEWAYS)
    if what == "worker":
        return {"samples": [worker()]}
    if what == "memory":
        return {"samples": [memory(count)]}
    return {"samples": [cpu(count) if what == "cpu" else held(count, what)]}


if __name__ == "__main__":
    main(measure)
