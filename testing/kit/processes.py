"""Other processes, seen from outside: their states, their children, what they were given."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tools import BOUND_S, wait_until


def state_of(pid: int) -> str:
    """Return the letter for the state of a process: "" if there is none, "Z" for a zombie.

    It is "?" for any that is there on a system without Linux's /proc.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):  # before the reading, or during it
        if os.path.exists("/proc/self/stat"):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    return "?"


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    return not is_running(pid)


def is_reaped(pid: int) -> bool:
    """Whether there is no process with that number, not even a zombie."""
    return state_of(pid) == ""


def wait_reaped(*pids: int, timeout_s: float = BOUND_S) -> None:
    """Wait until there are no processes with these numbers."""
    wait_until(lambda: all(map(is_reaped, pids)), timeout_s)


def children_of(pid: int) -> set[int]:
    """Return the processes that the threads of a process have started and not reaped."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has gone meanwhile
            found.update(map(int, children.read_text().split()))
    return found


def processes_with(variable: str) -> list[int]:
    """Return the ids of all processes that have this, a "NAME=value", in their environment."""
    mark, found = variable.encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def command_of(pid: int) -> str:
    """Return the id and the command line of a process, as far as it is still there."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_text().split(chr(0))}"
    except OSError:
        return f"{pid} (ended)"


def is_asleep(pid: int, since_s: float = 0.0) -> Callable[[], bool]:
    """Return what tells whether the main thread of a process waits, and did when last asked.

    Where a signal comes in the moment before it begins to wait, Python does not see it.  since_s:
    for how many seconds it has to have been one wait.
    """
    last = [b"", 0.0]

    def is_asleep() -> bool:
        try:
            status = Path(f"/proc/{pid}/task/{pid}/status").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # no Linux, or it has gone
            return True
        switches = status.partition(b"voluntary_ctxt")[2]
        if b"State:\tS" not in status or switches != last[0]:
            last[:] = switches, time.monotonic()
            return False
        return time.monotonic() - float(last[1]) >= since_s

    return is_asleep


def stop(pid: int) -> None:
    """Stop a process; returns when all its threads have stopped, where that is to be seen.

    They run on for a moment after the signal, if the processors are busy.
    """
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")

    def states() -> set[str]:
        try:
            return {stat.read_text().rpartition(") ")[2][0] for stat in tasks.glob("*/stat")}
        except (FileNotFoundError, ProcessLookupError):  # a thread has gone meanwhile
            return {""}

    wait_until(lambda: states() <= {"T"})


def interrupt_asleep(pid: int, since_s: float = 0.0) -> None:
    """Send SIGINT to a process as soon as its main thread waits; since_s as above."""
    wait_until(is_asleep(pid, since_s))
    os.kill(pid, signal.SIGINT)
