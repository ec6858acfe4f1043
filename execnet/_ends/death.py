"""What is told of a worker that died, in words and as attributes."""

from __future__ import annotations

from ..gateway_base import WorkerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def worker_died(
    gateway: Any, error: EOFError, silence: str = "", reason: str = "", trace: str = ""
) -> WorkerDied:
    """Return the error for a gateway whose stream has ended.

    silence: why it was given up before, if it was.  reason: why it ended, if it said so.
    trace: that of the fatal signal that ended it.
    """
    stderr = "\n".join(filter(None, [gateway._io.stderr_tail(), trace.strip()]))
    text = f"worker {gateway.id} died, {describe_exit(gateway.exitcode)}: {error}"
    if silence:
        text = f"worker {gateway.id} was given up{silence}"
    elif reason:
        text = f"worker {gateway.id} gave up, {describe_exit(gateway.exitcode)}: {reason}"
    if gateway._last_asked:
        text += f"\nit was asked last to execute {gateway._last_asked}"
    if stderr:
        text += f"\nits last words on stderr:\n{stderr}"
    died = WorkerDied(text, gateway.exitcode)
    died.signal = -gateway.exitcode if gateway.exitcode and gateway.exitcode < 0 else None
    died.id, died.spec, died.stderr = gateway.id, str(gateway.spec), stderr
    died.last_asked = gateway._last_asked
    return died


def shown(source: Any) -> str:
    """Return what code is called in messages."""
    if isinstance(source, str):
        line = next((line.strip() for line in source.splitlines() if line.strip()), "")
        return f"{line[:60]!r}" + (" ..." if source.strip() != line[:60] else "")
    return f"{type(source).__name__} {source.__name__}"


def describe_exit(status: int | None) -> str:
    """Return in words how a process ended."""
    if status is None:
        return "its process runs on or its exit status is not known"
    if status >= 0:
        return f"exit status {status}"
    import signal

    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
