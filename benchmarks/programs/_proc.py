"""What Linux tells of a process: its memory, threads, descriptors and time."""

from __future__ import annotations

import os
import re
from pathlib import Path


def kib(pid: int | str, what: str) -> int:
    """Return a sum over the memory of a process: "Pss", "Private_Dirty", ..."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def threads(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int | str) -> float:
    """Return the time that all threads of a process, which are still there, have run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
