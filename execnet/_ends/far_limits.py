"""Limits a worker's memory and processors, before any of its code runs and before it has threads.

This file is shipped in the first line; it stands alone and keeps to what Python 2.7 and today's
Python both accept.  Start at ``set_limits``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Load = Callable[[str], Any]
    Find = Callable[[int], Iterable[int]]  # returns the processors of a process
    Choose = Callable[[int, list[int]], object]

ROOM = 32 << 20  # bytes that a worker needs beside what its interpreter has: stacks of threads
MASK_LONGS = 128  # for at least 4096 processors


def set_limits(limits: dict[str, Any], load: Load) -> None:
    """Set them for this process; processes that it starts inherit them.

    limits: "memory" in bytes and "cpus", how many or a list of which, or None; "turn", which of
    the processors comes first if "cpus" says how many.  load: imports a module of the standard
    library.  Raises ValueError for a limit that can't be.
    """
    if limits["memory"] is not None:
        _limit_memory(limits["memory"], load)
    if limits["cpus"] is not None:
        _limit_cpus(limits["cpus"], limits["turn"], load)


def _limit_memory(size: int, load: Load) -> None:
    """Limit the addresses of the process: of all limits, nothing that it allocates escapes this."""
    try:
        resource = load("resource")
    except ImportError:
        resource = None
    if resource is None or sys.platform == "darwin":  # that has the limit, and does not keep it
        raise ValueError("memory= is not available on %s, which limits no memory" % sys.platform)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    if allowed != resource.RLIM_INFINITY and size > allowed:
        raise ValueError("memory= is more than the %d bytes that a process may have" % allowed)
    try:
        with open("/proc/self/statm") as file:
            least = int(file.read().split()[0]) * resource.getpagesize() + ROOM
    except EnvironmentError:  # not Linux
        least = ROOM
    if size < least:
        raise ValueError("memory= is less than the %d MiB that a worker needs" % (least >> 20))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _limit_cpus(cpus: Any, turn: int, load: Load) -> None:
    find, choose = _affinity(load)
    there = sorted(find(0))
    if isinstance(cpus, int):
        if cpus > len(there):
            raise ValueError("cpus= is more than the %d that the worker may use" % len(there))
        cpus = [there[(turn + n) % len(there)] for n in range(cpus)]
    for number in cpus:
        if number not in there:
            text = "cpus= has %d, none of the %d that the worker may use"
            raise ValueError(text % (number, len(there)))
    choose(0, cpus)


def _affinity(load: Load) -> tuple[Find, Choose]:
    """Return the functions of ``os``, or like those, which Python 2 and PyPy do not have."""
    if hasattr(os, "sched_setaffinity"):
        return os.sched_getaffinity, os.sched_setaffinity
    try:
        ctypes = load("ctypes")
        libc = ctypes.CDLL(None, use_errno=True)
        getter, setter = libc.sched_getaffinity, libc.sched_setaffinity
    except (ImportError, EnvironmentError, AttributeError, TypeError):  # TypeError: Windows
        raise ValueError("cpus= is not available on %s, or in this Python" % sys.platform)
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * MASK_LONGS)()

    def check(failed: int) -> None:
        if failed < 0:
            raise ValueError("cpus=: %s" % os.strerror(ctypes.get_errno()))

    def find(pid: int) -> list[int]:
        check(getter(pid, ctypes.sizeof(mask), mask))
        return [n for n in range(MASK_LONGS * bits) if mask[n // bits] >> n % bits & 1]

    def choose(pid: int, cpus: list[int]) -> None:
        for n in range(MASK_LONGS):
            mask[n] = sum(1 << cpu % bits for cpu in set(cpus) if cpu // bits == n)
        check(setter(pid, ctypes.sizeof(mask), mask))

    return find, choose
