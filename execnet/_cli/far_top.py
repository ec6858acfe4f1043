"""The worker's half of ``execnet top``: reports the state of its process when asked.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at ``run``.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TOLD = 5  # pieces of running code


class Tasks(object):
    """What this process executes; ``_since`` says when each piece of code was first seen."""

    def __init__(self, base: Any) -> None:
        self._names = base.__dict__
        self._since: dict[Any, float] = {}

    def look(self, now: float) -> list[Any]:
        """Return [where it is, for how many seconds it has been seen] for each, oldest first."""
        found: list[Any] = []
        seen: dict[Any, float] = {}
        for ident, frame in sys._current_frames().items():
            task = self._task_of(frame)
            if task is not None:
                key, place = (ident, task[0]), task[1]
                seen[key] = self._since.get(key, now)
                found.append([place, now - seen[key]])
        self._since = seen
        return sorted(found, key=lambda item: -item[1])[:TOLD]

    def _task_of(self, frame: Any) -> Any:
        """Return what identifies a thread's task, and where it is; None if it has no task."""
        innermost = outermost = None
        while frame is not None:
            if frame.f_globals is globals():
                return None
            if frame.f_globals is not self._names:
                innermost, outermost = innermost or frame, frame
            elif frame.f_code.co_name == "_execute" and innermost is not None:
                name, line = os.path.basename(innermost.f_code.co_filename), innermost.f_lineno
                return id(outermost), "%s:%d %s" % (name, line, innermost.f_code.co_name)
            frame = frame.f_back
        return None


def _memory() -> int | None:
    """Return the bytes of memory that this process has now, or had at its peak."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (EnvironmentError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    except ImportError:
        return None


def run(channel: Any) -> None:
    """Answer each item with the current state of this process."""
    tasks = Tasks(sys.modules[channel.__class__.__module__])
    for _ in channel:
        times = os.times()
        try:
            load: Any = os.getloadavg()[0]
        except (AttributeError, EnvironmentError):
            load = None
        now = time.time()
        found = {"pid": os.getpid(), "cpu_s": times[0] + times[1], "now": now, "load": load}
        found.update(memory=_memory(), tasks=tasks.look(now))
        channel.send(found)
