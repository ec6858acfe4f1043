"""Ends several things at once, each with a time limit and a harder way after it."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from .._clock import monotonic
from .._inside import Inside
from ..gateway_base import (
    HAS_DAEMON_THREADS,
    DeadlockError,
    WorkerGateway,
    _Flag,
    _refuse_in_callback,
    new_rlock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .._endpoint import Endpoint
    from ..gateway import Gateway
    from ..gateway_base import ExecModel

    class Member(Protocol):
        """What a group needs from a foreign gateway in order to end it."""

        _io: Any

        def join(self) -> object: ...


MARGIN_S = 10.0  # for what follows an orderly end, such as a worker's ``atexit`` functions
LOGIN_S = 5.0  # what the login that kills a worker may take, where there is that much time
REACH_S = 0.7  # after so long it is given up if nothing shows that there is a network
LEAST_S = 0.1  # how long it may take at least, if others have used up that time
SILENT_S = 1.0  # after so long without an answer to its end a worker is out of reach
KILL_S = 0.2  # how long a killfunc may take before we go on without it
LOOK_S = 0.1  # how often whoever waits for its turn looks whether it is waited for itself
GREEN_S = 0.01  # how often a greenlet looks whether it is its turn


class Turn:
    """Lets one caller at a time end the members of a group; any thread or greenlet may call.

    Whoever has the turn may take it again.  All greenlets of a thread would be the owner of a lock
    for threads, and an interrupt may leave those for greenlets taken.
    """

    def __init__(self, execmodel: ExecModel) -> None:
        self.ending: list[Gateway] = []  # whose end is waited for now
        self._execmodel = execmodel
        self._lock = new_rlock()  # for threads
        self._held: dict[str, list[int]] = {}  # the number of the greenlet that has the turn

    def take(self, deadline: float | None) -> Callable[[], object] | None:
        """Wait for the turn; return what gives it back, None if another caller sees to the end.

        At the deadline, workers whose end somebody else waits for are killed.  A callback of one of
        them only waits until their processes have ended: its own end waits for the callback.
        Called as ``acquire`` of a lock is: doc/interrupts.rst, "Locks".
        """
        left_s, is_awaited = LOOK_S, False
        while left_s > 0 and not is_awaited:
            left_s = LOOK_S if deadline is None else min(LOOK_S, deadline - monotonic())
            (leave,) = map(self._take, (max(0.0, left_s),))
            if leave is not None:  # no jump: Python 3.10 looks for interrupts after those
                return leave
            is_awaited = _is_in_callback(self.ending)
        ending = list(self.ending)
        until = monotonic() + longest_end_s(ending) if deadline is None else deadline
        for gateway in ending if is_awaited else ():
            wait_ended(gateway, until)
        for gateway in ending:
            gateway.endpoint.kill()
        (leave,) = map(self._take, (0.0 if is_awaited else KILL_S,))
        return leave

    def _take(self, limit_s: float) -> Callable[[], object] | None:
        """Do that within a time; what is returned is in C, so that no interrupt comes before it."""
        if self._execmodel.has_main_thread:
            (taken,) = map(self._lock.acquire, (True,), (limit_s,))
            return self._lock.release if taken else None
        mine = [self._execmodel.get_ident()]
        until = monotonic() + limit_s
        while True:
            (holder,) = map(self._held.setdefault, ("by",), (mine,))
            if holder is mine:
                return self._held.clear
            if holder == mine:
                return int  # does nothing: the outer call gives it back
            if monotonic() >= until:
                return None
            self._execmodel.sleep(GREEN_S)


def _is_in_callback(gateways: Iterable[Gateway]) -> bool:
    """Whether the calling thread runs a callback of a gateway, or of one that it goes via."""
    try:
        for gateway in gateways:
            _refuse_in_callback(gateway, gateway)
    except DeadlockError:
        return True
    return False


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


def kill_all(execmodel: ExecModel, streams: list[Endpoint]) -> None:
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


def carriers_last(members: list[Any]) -> Iterator[list[Any]]:
    """Yield the members in parts, those that others go via after these."""
    while members:
        carriers = {id for gateway in members for id in carriers_of(gateway)}
        ends = [gateway for gateway in members if gateway.id not in carriers] or members
        members = [gateway for gateway in members if gateway not in ends]
        yield ends


def end_members(
    execmodel: ExecModel,
    members: list[Any],
    own: list[Gateway],
    timeout: float | None,
    deadline: float | None,
    is_hurried: bool,
    is_quiet: bool,
) -> None:
    """Ask all members of a group to end, wait, kill those that did not, and reap all.

    own: those that are gateways; somebody may have put others into the group.  timeout: seconds,
    which are over at the deadline; None takes as long as an orderly end may take.  is_hurried:
    interrupt running code at once.  is_quiet: the program ends, where to be cut short is usual, so
    don't warn of it.
    """
    limit_s = longest_end_s(own)
    if deadline is None:
        deadline = monotonic() + limit_s
    began = deadline - (limit_s if timeout is None else timeout)
    stuck: list[Gateway] = []
    try:
        for gateway in own if is_hurried else ():
            gateway._exit(is_hurried=True)
        for member in members:
            member.exit()
        wait_all_ended(execmodel, own, deadline)
    finally:  # even if Ctrl-C ends the wait
        stuck += [gateway for gateway in own if not wait_ended(gateway, 0.0)]
        _kill_and_reap(execmodel, own, stuck, began, deadline)
    for gateway in [] if is_quiet else stuck:
        warn_killed(gateway)
    foreign = [member for member in members if member not in own]
    if foreign:
        limit_s = limit_s if timeout is None else timeout
        safe_terminate(execmodel, limit_s, [foreign_pair(member) for member in foreign])


def _kill_and_reap(
    execmodel: ExecModel,
    gateways: list[Gateway],
    stuck: list[Gateway],
    began: float,
    deadline: float,
) -> None:
    """Kill workers, and wait until they are gone; of stuck ones what they started, if asked for.

    began: when the end began, as ``time.monotonic()``; deadline: when it was to be over.
    """
    streams: list[Any] = [gateway._io for gateway in gateways]
    for gateway, io in zip(gateways, streams, strict=True):
        if gateway.settings.kills_group and gateway in stuck:
            io.kill_group()
        if io.kills_by_login and io.kill_by is None:
            now = monotonic()
            is_heard = io.read_at >= began  # then it has a network, or had one just now
            since = now if is_heard else min(now, deadline)
            io.reach_by = max(since + REACH_S, now + LEAST_S)
    kill_all(execmodel, streams)
    for gateway, io in zip(gateways, streams, strict=True):
        io.wait()
        with suppress(DeadlockError):  # a callback of its own ends before its receiver
            gateway.await_receiver()


def wait_all_ended(execmodel: ExecModel, gateways: list[Gateway], deadline: float) -> None:
    """Wait for the end of workers until the deadline; those that are out of reach are killed."""
    _kill_unreachable(execmodel, gateways, deadline)
    for gateway in gateways:
        if not wait_ended(gateway, deadline):
            break


def _kill_unreachable(execmodel: ExecModel, gateways: list[Gateway], deadline: float) -> None:
    """Kill workers that don't answer and that only a login can kill, before the deadline.

    There may be no network, so each login may wait until then; they are made at once.
    """
    slow = [gateway for gateway in gateways if gateway.endpoint.kills_by_login]
    if not slow:
        return
    from .asked import ask_on_way

    for gateway in slow:  # early, as the deadline may be near
        ask_on_way(gateway.endpoint)
    began = monotonic()
    early = max(deadline - LOGIN_S, (began + deadline) / 2)
    late = max(deadline, began + SILENT_S)
    waited = [gateway for gateway in slow if not wait_ended(gateway, early)]
    since = early - SILENT_S
    times = [since] if since >= began else []  # before that, nothing had to come
    lost = [gateway.endpoint for gateway in waited if gateway.endpoint.is_out_of_reach(*times)]
    for io in lost:
        io.kill_by = late
    kill_all(execmodel, lost)


def longest_end_s(gateways: Iterable[Gateway]) -> float:
    """Return how long the orderly end of workers may take, with a margin."""
    graces_s = [gateway.settings.grace_s for gateway in gateways]
    return 2 * max(graces_s, default=WorkerGateway.grace_s) + MARGIN_S


def carriers_of(gateway: Any) -> list[str | None]:
    """Return the ids of the gateways that another one goes via, or was installed via.

    One of a tree that is out of reach may go via any of the level above, if it has to be killed.
    """
    spec = gateway.spec
    ids = [spec.via, getattr(spec, "installvia", None)]
    if isinstance(gateway, Inside):
        io, level = gateway.endpoint, vars(spec).get("_level")
        if io.carrier is not None:
            ids.append(io.carrier.id)
        if level is not None and io.is_out_of_reach():
            ids += level[0]
    return ids


def wait_ended(gateway: Gateway, deadline: float) -> bool:
    """Wait for a worker's end until the deadline; return whether it ended."""
    io = gateway.endpoint
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


def name_of(member: object) -> object:
    """Return the id of a gateway, or the repr of what else somebody put into a group."""
    return getattr(member, "id", member)


def register_at_exit(function: Callable[[], object]) -> None:
    """Call a function when the interpreter ends, while threads can still be waited for."""
    atexit.register(function)
    if not HAS_DAEMON_THREADS:  # those that it waits for are ours, and end with our gateways
        import threading

        threading._register_atexit(function)  # type: ignore[attr-defined]


def foreign_pair(member: Member) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return functions that wait for a foreign gateway, which was told to exit, and kill it."""
    io = member._io

    def wait() -> None:
        member.join()
        io.wait()

    return wait, getattr(io, "kill", int)
