"""The error for a worker that died, in words and as attributes.

How the worker ended is an argument: ``gateway.Gateway._explain_end`` decides it.
"""

from __future__ import annotations

from .._errors import WorkerDied, indented
from ..gateway_base import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping

    from ..xspec import XSpec

    Source = str | types.FunctionType | types.ModuleType | Callable[..., object]


def worker_died(
    id: str, spec: XSpec, exitcode: int | None, how: str, stderr: str, last_asked: str
) -> WorkerDied:
    """Return the error for a worker whose stream has ended.

    how: what is known about that, continuing "worker ID".  stderr: its last words.  last_asked:
    what it was last asked to execute.
    """
    text = f"worker {id} {indented(printable(how))}"
    if spec.memory or spec.cpus:
        from . import limits

        text += limits.told(spec)
    if last_asked:
        text += f"\nit was last asked to execute {last_asked}"
    if stderr:
        text += "\n" + indented(f"its last words on stderr:\n{printable(stderr)}")
    died = WorkerDied(text, exitcode)
    died.signal = -exitcode if exitcode and exitcode < 0 else None
    died.id, died.spec, died.stderr, died.last_asked = id, spec.shown(), stderr, last_asked
    return died


def place_of(facts: Mapping[str, object]) -> str:
    """Return in words where a worker that dialled in was, "" for others."""
    if not facts:
        return ""
    words = []
    if facts["rank"] is not None:
        job = f" job {facts['job']}" if facts["job"] else ""
        words.append(f"rank {facts['rank']} of {facts['launcher']}{job}")
    if facts["host"]:
        words.append(f"on {facts['host']}")
    return f"({', '.join(words)}) " if words else ""


def shown(source: Source) -> str:
    """Return the name of code for messages."""
    if isinstance(source, str):
        line = next((line.strip() for line in source.splitlines() if line.strip()), "")
        return f"{line[:60]!r}" + (" ..." if source.strip() != line[:60] else "")
    return f"{type(source).__name__} {source.__name__}"


def describe_exit(status: int | None) -> str:
    """Return in words how a process ended."""
    if status is None:
        return "its process is still running, or its exit status is not known"
    if status >= 0:
        return f"exit status {status}"
    import signal

    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
