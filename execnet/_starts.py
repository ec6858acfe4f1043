"""Workers that start at once, few of them by a login to one address; refused logins again.

All of it happens in the thread that makes the gateways; an answer of a worker wakes it.  Start
at ``Starts.run``.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic

from . import gateway_bootstrap
from ._logins import address_of, logins, pause_s, was_refused
from .gateway_base import load_codec
from .gateway_io import BootstrapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .gateway import Gateway
    from .gateway_base import ExecModel
    from .xspec import XSpec

NEVER = float("inf")
LOOK_S = 0.1  # how often to look whether another thread's login has made room


class Start:
    """One worker on its way; ``gateway`` is None while it waits for its turn."""

    def __init__(self, spec: XSpec) -> None:
        self.spec = spec
        self.id = str(spec.id)
        self.address = address_of(spec)  # None: it takes no login, and needs no turn
        self.gateway: Gateway | None = None
        self.is_ready = False
        self.deadline: float | None = None  # known as soon as it has begun
        self.tries = 0
        self.due = 0.0  # when the next try may begin, by ``time.monotonic()``


class Starts:
    """The workers of one call, from specs with ids to gateways that are ready.

    begin: starts the worker of a spec; gets what finds the gateway that another id has.
    find: finds one that is not of this call, or raises KeyError.
    """

    def __init__(
        self,
        specs: list[XSpec],
        execmodel: ExecModel,
        begin: Callable[[XSpec, Callable[[str], Gateway]], Gateway],
        find: Callable[[str], Gateway],
    ) -> None:
        self._begin_one, self._find_outside = begin, find
        self._execmodel = execmodel
        self._answers: Any = execmodel.inbox()  # gets something for each gateway that has one
        self._by_id = {str(spec.id): Start(spec) for spec in specs}
        in_order = gateway_bootstrap.carriers_first(specs)
        self._starts = [self._by_id[str(spec.id)] for spec in in_order]

    @property
    def deadlines(self) -> dict[str, float | None]:
        """Until when each must be ready, by id and ``time.monotonic()``; None for ever."""
        return {start.id: start.deadline for start in self._starts}

    def run(self) -> list[Gateway]:
        """Start them and wait; return the gateways in the order of the specs.

        Raises what comes of the first that fails; ``abandon`` is to follow then.
        """
        try:
            only_waits = self._advance()
            load_codec()  # the workers begin meanwhile
            while not only_waits:
                self._await_answer()
                only_waits = self._advance()
        finally:
            self._end_logins()
        for start in self._starts:  # the others have no more to do than to answer
            if start.gateway is not None and not start.is_ready:
                gateway_bootstrap.wait_ready(start.gateway, start.deadline)
        return [start.gateway for start in self._by_id.values() if start.gateway is not None]

    def abandon(self, forget: Callable[[Gateway], object]) -> None:
        """Kill all workers, after each was forgotten, and wait until they are gone."""
        gateways = [start.gateway for start in self._starts if start.gateway is not None]
        for gateway in gateways:
            forget(gateway)
            gateway._io.kill()
        for gateway in gateways:
            gateway_bootstrap.abandon(gateway)

    def _advance(self) -> bool:
        """Begin what may begin and see what has answered; whether only waiting is left."""
        while not self._answers.empty():
            self._answers.get()
        for start in self._starts:
            if start.gateway is None and self._may_begin(start):
                self._begin(start)
            if start.gateway is not None and not start.is_ready:
                self._look_at(start, start.gateway)
        waiting = [start for start in self._starts if start.gateway is None]
        if waiting and not any(self._moments()):  # they go via each other in a circle
            self._begin(waiting[0])
        return not waiting and all(start.is_ready or not start.address for start in self._starts)

    def _may_begin(self, start: Start) -> bool:
        if start.due > monotonic() or not self._has_its_way(start):
            return False
        return start.address is None or logins.begin(start.address, start)

    def _has_its_way(self, start: Start) -> bool:
        """Whether the gateways of this call that it goes via, if any, are ready."""
        ids = start.spec.via, start.spec.installvia
        return all(self._by_id[id].is_ready for id in ids if id in self._by_id)

    def _begin(self, start: Start) -> None:
        start.tries += 1
        if start.tries == 1:
            start.deadline = gateway_bootstrap.deadline_of(start.spec)
        start.gateway = self._begin_one(start.spec, self._find)
        start.gateway._on_answer = self._on_answer

    def _find(self, id: str) -> Gateway:
        if id not in self._by_id:
            return self._find_outside(id)
        start = self._by_id[id]
        if start.gateway is None or not start.is_ready:
            raise KeyError(id, [start.id for start in self._starts if start.is_ready])
        return start.gateway

    def _on_answer(self) -> None:
        self._answers.put(None)  # in the receiver thread of a gateway

    def _look_at(self, start: Start, gateway: Gateway) -> None:
        """See whether a gateway is ready, or has failed."""
        now = monotonic()
        if not gateway._hello.is_set() and (start.deadline is None or now < start.deadline):
            return
        try:
            gateway_bootstrap.wait_ready(gateway, now)
            start.is_ready = True
        except BootstrapError as exc:
            if start.address is None or not was_refused(exc):
                raise
            start.due = monotonic() + pause_s(start.tries)
            if start.deadline is not None and start.due >= start.deadline:
                raise
            start.gateway = None
        finally:
            self._end_login(start)

    def _await_answer(self) -> None:
        """Wait for the answer of a worker, or for the moment at which there is more to do."""
        first = min(self._moments())
        timeout_s = None if first == NEVER else max(0.0, first - monotonic())
        with suppress(self._execmodel.Empty):
            self._answers.get(True, timeout_s)

    def _moments(self) -> list[float]:
        """Return when, at the latest, those that are not ready are to be looked at again."""
        now = monotonic()
        moments = []
        for start in self._starts:
            if start.gateway is not None:
                if not start.is_ready:
                    moments.append(NEVER if start.deadline is None else start.deadline)
            elif start.due > now:
                moments.append(start.due)
            elif self._has_its_way(start):  # and waits for its turn
                moments.append(now + LOOK_S)
        return moments

    def _end_login(self, start: Start) -> None:
        if start.address is not None:
            logins.end(start.address, start)

    def _end_logins(self) -> None:
        for start in self._starts:
            self._end_login(start)
