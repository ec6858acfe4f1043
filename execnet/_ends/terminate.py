"""Ends several things at once, each with a time limit and a harder way after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from .._clock import monotonic
from ..gateway_base import WorkerGateway, _Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ..gateway import Gateway
    from ..gateway_base import ExecModel

    class Member(Protocol):
        """What a group needs from a foreign gateway in order to end it."""

        _io: Any

        def join(self) -> object: ...


MARGIN_S = 10.0  # for what follows an orderly end, such as a worker's ``atexit`` functions
KILL_S = 0.2  # how long a killfunc may take before we go on without it


def safe_terminate(
    execmodel: ExecModel,
    timeout: float | None,
    list_of_paired_functions: list[tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    """Call all termfuncs at once, and the killfunc of each that takes longer than timeout.

    list_of_paired_functions: pairs (termfunc, killfunc).  Returns even if a killfunc blocks.
    """
    waiting = []
    for termfunc, killfunc in list_of_paired_functions:
        ended = _Flag(execmodel)
        try:
            execmodel.start(_call_and_set, (termfunc, ended), "execnet-terminate")
        except RuntimeError:  # no more threads can be started, so nothing can wait
            killfunc()
            continue
        waiting.append((ended, killfunc))
    deadline = None if timeout is None else monotonic() + timeout
    for ended, killfunc in waiting:
        if not ended.wait(None if deadline is None else max(0.0, deadline - monotonic())):
            killed = _Flag(execmodel)
            try:
                execmodel.start(_call_and_set, (killfunc, killed), "execnet-kill")
            except RuntimeError:
                killfunc()
            killed.wait(KILL_S)
            ended.wait(KILL_S)


def _call_and_set(func: Callable[[], object], done: _Flag) -> None:
    try:
        func()
    finally:
        done.set()


def kill_all(execmodel: ExecModel, streams: list[Any]) -> None:
    """Kill the workers of streams; all at once where each takes a login."""
    slow = [io for io in streams if io.kills_by_login]
    ended = []
    for io in slow[1:]:
        ended.append(_Flag(execmodel))
        try:
            execmodel.start(_call_and_set, (io.kill, ended[-1]), "execnet-kill")
        except RuntimeError:  # there can be no more threads
            _call_and_set(io.kill, ended[-1])
    for io in [*(io for io in streams if io not in slow), *slow[:1]]:
        io.kill()
    for flag in ended:
        flag.wait()


def longest_end_s(gateways: Iterable[Gateway]) -> float:
    """Return how long the orderly end of workers may take, with a margin."""
    graces_s = [gateway.settings.grace_s for gateway in gateways]
    return 2 * max(graces_s, default=WorkerGateway.grace_s) + MARGIN_S


def carriers_of(gateway: Any) -> list[str | None]:
    """Return the ids of the gateways that another one goes via, or was installed via."""
    spec = gateway.spec
    carrier = getattr(getattr(gateway, "_io", None), "carrier", None)
    return [spec.via, getattr(spec, "installvia", None), getattr(carrier, "id", None)]


def wait_ended(gateway: Gateway, deadline: float) -> bool:
    """Wait for a worker's end until the deadline; return whether it ended."""
    io = gateway._io
    if io.poll_until(deadline) is not None or not gateway.hasreceiver():
        return True
    return io.has_ended()  # an ended one may have None as its status


def warn_killed(gateway: Gateway) -> None:
    """Warn about a worker that had to be killed; never raises, as ending must go on."""
    stacks = gateway._stacks or "it told none"
    text = f"worker {gateway.id} did not end in time and was killed; its last stacks: {stacks}"
    try:
        import warnings

        warnings.warn(text, ResourceWarning, stacklevel=5)
    except Exception:  # warnings are errors, or stderr is broken
        with suppress(Exception):  # it may be anything, even None
            sys.stderr.write(f"ResourceWarning: {text}\n")


def foreign_pair(member: Member) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return functions that wait for a foreign gateway, which was told to exit, and kill it."""
    io = member._io

    def wait() -> None:
        member.join()
        io.wait()

    return wait, getattr(io, "kill", int)
