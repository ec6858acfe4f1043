"""Starts workers of a group that died anew, each at most a number of times.

A gateway that ends as LOST, see ``GatewayState``, comes to ``Respawner.on_loss``, which decides
whether its worker is started anew, and begins a thread that sees to it.  Start there.
"""

from __future__ import annotations

from contextlib import suppress

from .._clock import monotonic
from .._ends import fork
from .._log import INFO, WARNING, note
from .._reports import Reporter
from ..gateway_base import _Flag, get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    from .._specs import Settings
    from .._starts import Starts
    from ..gateway import Gateway

    class GroupLike(Protocol):
        """What a respawner needs from its group."""

        def __iter__(self) -> Iterator[Any]: ...
        def _prepare(self, spec: Any) -> Settings: ...
        def _starts_of(self, prepared: list[Settings]) -> Starts: ...
        def _bring_up(
            self, starts: Starts, register: Callable[[Gateway], object]
        ) -> list[Gateway]: ...
        def _replace(self, old: Gateway, new: Gateway) -> None: ...
        def _tell_executors(self) -> None: ...


STEADY_S = 60.0  # a worker that lived for so long did not die of its start
PAUSE_S, PAUSE_MAX_S = 0.1, 30.0  # before the second start in a row, and the most before one
END_S = 1.0  # how long a worker whose stream has ended may take to end, beside its grace
STOP_S = 10.0  # how long what is being started may take to be gone
STOP_MIN_S = 1.0


class _Member:
    """What is known of a member, and of those that had its place before."""

    def __init__(self, now: float) -> None:
        self.begun = 0  # how often one was started anew
        self.since = now  # when the present one was started
        self._in_a_row = 0  # of these, since the last one that lived for a while

    def begin(self, now: float) -> float:
        """Count a start; return how many seconds to wait before it."""
        if now - self.since >= STEADY_S:
            self._in_a_row = 0
        pause_s = PAUSE_S * 2.0 ** min(self._in_a_row - 1, 20) if self._in_a_row else 0.0
        self.begun += 1
        self._in_a_row += 1
        self.since = now
        return min(pause_s, PAUSE_MAX_S)


class _Attempt:
    """The work of a thread: to have another worker in the place of a lost one."""

    def __init__(self, old: Gateway, member: _Member) -> None:
        self.old = old
        self.member = member
        self.cancelled = _Flag(get_execmodel("thread"))
        self.ended = _Flag(get_execmodel("thread"))
        self.starts: Starts | None = None

    def kill(self) -> None:
        """Kill what the thread has begun, after it was cancelled."""
        self.old.endpoint.kill()
        if self.starts is not None:
            self.starts.cancel()


class Respawner:
    """Starts workers of a group that died anew; any thread may call.

    most: how many times each of them is.  ``_lock`` guards what ``_set_up`` makes after it, and is
    held while a new gateway takes its place, so that whoever cancels an attempt knows whether it
    came too late.  Raises ValueError unless the number is a whole one from 0 on.
    """

    def __init__(self, group: GroupLike, most: int) -> None:
        if type(most) is not int or most < 0:
            raise ValueError(f"respawn is a number from 0 on, not {most!r}")
        self._group = group
        self._most = most
        self._reporter: Reporter | None = None
        self._set_up()
        fork.register(self)

    def _set_up(self) -> None:
        self._lock = new_lock()
        self._members: dict[Gateway, _Member] = {}
        self._attempts: dict[Gateway, _Attempt] = {}  # by the gateway that was lost
        self._changed = _Flag(get_execmodel("thread"))  # set, and replaced, after each attempt

    def set_callback(self, callback: Callable[..., object] | None) -> None:
        """Have a function called after each start, as ``Group.on_respawn`` says."""
        self._reporter = None if callback is None else Reporter(callback, "execnet-respawned")

    def enrol(self, gateway: Gateway) -> None:
        """Note a new member of the group, whose spec can start another."""
        with self._lock:
            self._members[gateway] = _Member(monotonic())
        if not gateway.hasreceiver():  # it died before it could tell the group
            self.on_loss(gateway)

    def forget(self, gateway: Gateway) -> None:
        """Note that somebody ended a gateway, so that nobody wants another in its place."""
        with self._lock:
            self._members.pop(gateway, None)
        self._cancel(gateway)

    def is_awaited(self) -> bool:
        """Whether a member that was lost is to be started anew, or is just being so."""
        return any(self._is_to_return(gateway) for gateway in self._group)

    def _is_to_return(self, gateway: Gateway) -> bool:
        with self._lock:
            member = self._members.get(gateway)
            if member is None or gateway.hasreceiver():
                return False
            return gateway in self._attempts or member.begun < self._most

    def on_loss(self, gateway: Gateway) -> None:
        """Start another worker in the place of one that died; does not wait for it."""
        with self._lock:
            member = self._members.get(gateway)
            if member is None or gateway in self._attempts:
                return
            if member.begun >= self._most:
                text = f"{gateway.id} is not started anew, after {self._most} times"
                note("gateway", WARNING, lambda: text, gateway.id)
                return
            attempt = self._attempts[gateway] = _Attempt(gateway, member)
        try:
            get_execmodel("thread").start(self._run, (attempt,), "execnet-respawn")
        except RuntimeError as exc:  # no more threads can be started
            member.begun = self._most
            self._end(attempt)
            self._tell(gateway, None, exc)

    # ---------------------------------------------------------------- the end

    def cancel(self) -> None:
        """End all attempts soon: their group is ended."""
        self._cancel(*list(self._attempts))

    def _cancel(self, *lost: Gateway) -> None:
        with self._lock:
            attempts = [self._attempts[old] for old in lost if old in self._attempts]
            for attempt in attempts:
                attempt.cancelled.set()  # so that nothing that it starts takes a place any more
        for attempt in attempts:
            attempt.kill()
        if attempts:
            self._tell_change()

    def wait(self, deadline: float | None) -> None:
        """Wait until all attempts have ended that were cancelled, or the deadline is over."""
        now = monotonic()
        until = now + STOP_S if deadline is None else max(deadline, now + STOP_MIN_S)
        with self._lock:
            attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.ended.wait(max(0.0, until - monotonic()))

    def _disown(self) -> None:
        """In a forked process: the workers are the parent's, and so are the threads."""
        self._set_up()

    # ---------------------------------------------------------------- a thread for each attempt

    def _run(self, attempt: _Attempt) -> None:
        old = attempt.old
        try:
            self._end_old(old)
            while self._may_begin(attempt):
                try:
                    new = self._start(attempt)
                except Exception as exc:
                    if not attempt.cancelled.is_set():
                        exc.__cause__ = exc.__cause__ or old.end_error
                        self._tell(old, None, exc)
                else:
                    self._tell(old, new, old.end_error)
                    break
        finally:
            self._end(attempt)

    def _end_old(self, old: Gateway) -> None:
        """See to it that nothing is left of the worker whose stream has ended."""
        old.endpoint.poll_until(monotonic() + old.settings.grace_s + END_S)
        old.endpoint.kill()
        old.endpoint.wait()

    def _may_begin(self, attempt: _Attempt) -> bool:
        """Count an attempt, and wait for its time; return whether it may begin."""
        member = attempt.member
        if attempt.cancelled.is_set() or member.begun >= self._most:
            return False
        pause_s = member.begin(monotonic())
        return not attempt.cancelled.wait(pause_s) and self._await_carriers(attempt)

    def _await_carriers(self, attempt: _Attempt) -> bool:
        """Wait for the gateways that the worker starts through, if they were lost, too."""
        spec = attempt.old.spec
        while not attempt.cancelled.is_set():
            with self._lock:
                changed = self._changed
            carriers = [one for one in self._group if one.id in (spec.via, spec.installvia)]
            if not any(self._is_to_return(carrier) for carrier in carriers):
                return True
            changed.wait()
        return False

    def _start(self, attempt: _Attempt) -> Gateway:
        """Start a worker, and let its gateway take the place of the lost one."""
        starts = self._group._starts_of([self._group._prepare(attempt.old.spec)])
        attempt.starts = starts
        if attempt.cancelled.is_set():
            raise InterruptedError("nobody wants it any more")

        def register(new: Gateway) -> None:
            with self._lock:
                if attempt.cancelled.is_set() or attempt.old not in self._members:
                    raise InterruptedError("nobody wants it any more")
                self._group._replace(attempt.old, new)
                del self._members[attempt.old], self._attempts[attempt.old]
                self._members[new] = attempt.member
                attempt.member.since = monotonic()
            self._tell_change()
            if not new.hasreceiver():
                self.on_loss(new)

        (new,) = self._group._bring_up(starts, register)
        return new

    def _end(self, attempt: _Attempt) -> None:
        with self._lock:
            self._attempts.pop(attempt.old, None)
        attempt.ended.set()
        self._tell_change()
        self._group._tell_executors()

    def _tell_change(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, _Flag(get_execmodel("thread"))
        changed.set()

    def _tell(self, old: Gateway, new: Gateway | None, error: BaseException | None) -> None:
        if new is not None:
            note("gateway", INFO, lambda: f"{old.id} was started anew, as {error}", old.id)
        else:
            note("gateway", WARNING, lambda: f"{old.id} could not be started anew: {error}", old.id)
        reporter = self._reporter
        if reporter is not None:
            with suppress(Exception):
                reporter.tell(old, new, error)
