"""Starts workers at once, with few logins at a time to one address, and retries refused logins.

Everything happens in the thread that makes the gateways; answers of workers wake it.  Start at
``Starts.run``.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from . import gateway_bootstrap, gateway_io
from ._clock import monotonic
from ._features.queues import timed_inbox
from ._specs import JOINED
from ._transports.logins import SSH_FAILED, address_of, logins, pause_s, was_refused
from ._transports.sharing import settings_of_connection, way_through
from .gateway_base import HAVE_FAST_CODEC, load_part, threads_are_patched
from .gateway_io import BootstrapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, overload

    from ._specs import Settings
    from ._transports.dials import Dial, Dials
    from ._transports.logins import Address
    from ._transports.sharing import Connections
    from ._transports.surroundings import Surroundings
    from ._tree.method import Group, Grove, OfClass, OfGroup
    from .gateway import Gateway
    from .gateway_base import ExecModel
    from .gateway_bootstrap import Through

NEVER = float("inf")
LOOK_S = 0.1  # how often to check whether another thread's login has made room


class Tree:
    """``tree`` of a group and of the class, which is imported when somebody uses it."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, group: None, kind: type[Group]) -> OfClass[Group]: ...
        @overload
        def __get__(self, group: Grove, kind: type[Grove] | None = None) -> OfGroup: ...

    def __get__(self, group: Any, kind: Any = None) -> Any:
        from ._tree.method import bound

        return bound(group, kind)


class Start:
    """A worker being started; ``gateway`` is None while it waits for its turn."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = settings.id
        # None: it needs no login, and no turn.
        self.address = None if settings.through else address_of(settings.spec)
        # Whether it only takes a connection from here to a server that is there.
        is_elsewhere = settings.through or settings.spec.via or settings.resume_s is not None
        self.has_server = settings.is_in_server and not is_elsewhere
        self.shares = settings.is_shared  # whether it uses the login of others
        self.connection: Gateway | None = None  # through which it has started
        self.is_connection = False  # for those that share it
        self.surroundings: Surroundings | None = None  # of that
        self.is_given_up = False
        self.gateway: Gateway | None = None
        self.is_ready = False
        self.deadline: float | None = None  # known as soon as it has begun
        self.tries = 0
        self.refusal: BootstrapError | None = None  # of its last refused login
        self.due = 0.0  # when the next attempt may begin, as ``time.monotonic()``


class Starts:
    """The workers of one call, from specs with ids to gateways that are ready.

    begin: starts the worker of a spec; gets a function that finds the gateway with another id, and
    one that makes the stream if a shared connection should be used.  find: finds a gateway that is
    not of this call, or raises KeyError.  connections: those of the group.
    """

    def __init__(
        self,
        specs: list[Settings],
        execmodel: ExecModel,
        begin: Callable[..., Gateway],
        find: Callable[[str], Gateway],
        connections: Connections,
    ) -> None:
        self._begin_one, self._find_outside = begin, find
        self._connections = connections
        self._execmodel = execmodel
        self._answers = timed_inbox(execmodel)  # gets something for each gateway that has one
        self._connecting: set[Address] = set()  # to which this call starts a connection now
        self._connected: set[Address] = set()  # to which it has begun one
        self._by_id = {settings.id: Start(settings) for settings in specs}
        in_order = gateway_bootstrap.carriers_first(specs)
        in_order.sort(key=lambda settings: settings.type == JOINED)  # beginning these waits
        self._starts = [self._by_id[settings.id] for settings in in_order]
        self._dials: Dials | None = None  # connects to servers, if there are several
        self._is_cancelled = False

    @property
    def deadlines(self) -> dict[str, float | None]:
        """When each must be ready, by id, as ``time.monotonic()``; None for no limit."""
        return {start.id: start.deadline for start in self._starts}

    def run(self) -> list[Gateway]:
        """Start them and wait; return the gateways in the order of the specs.

        Raises the error of the first that fails; call ``abandon`` then.
        """
        try:
            self._dial()
            only_waits = self._advance()
            _load_features()  # the workers begin meanwhile
            while not only_waits:
                self._await_answer()
                only_waits = self._advance()
        finally:
            self._end_logins()
            if self._dials is not None:
                self._dials.end()
        for start in self._starts:  # the others only have to answer
            if start.gateway is not None and not start.is_ready:
                gateway_bootstrap.wait_ready(start.gateway, start.deadline)
        self._leave_connections()
        return [start.gateway for start in self._by_id.values() if start.gateway is not None]

    def cancel(self) -> None:
        """Have ``run`` fail soon, in its thread; workers that have been begun are killed.

        A connection that is ready may have other users, and stays.
        """
        self._is_cancelled = True
        for start in list(self._starts):
            if start.gateway is not None and not (start.is_connection and start.is_ready):
                start.gateway.endpoint.kill()
        self._answers.put(None)

    def abandon(self, forget: Callable[[Gateway], object]) -> None:
        """Forget and kill all workers, and wait until they are gone.

        A shared connection stays if another call's worker started through it meanwhile.
        """
        begun = [start for start in self._starts if start.gateway is not None]
        workers = [start.gateway for start in begun if start.gateway and not start.is_connection]
        connections = [start.gateway for start in begun if start.gateway and start.is_connection]
        for gateway in workers:
            forget(gateway)
        gateway_bootstrap.abandon(*workers)
        self._leave_connections()
        for start in self._starts:
            if start.connection is not None:
                self._connections.leave(start.connection, start)
        for gateway in connections:
            if not self._connections.is_used(gateway):
                gateway_bootstrap.abandon(gateway)
                self._connections.forget([gateway])

    def _dial(self) -> None:
        servers = [start.settings for start in self._starts if start.has_server]
        # Greenlets wait in another way.
        if len(servers) > 1 and self._execmodel.has_main_thread and not threads_are_patched():
            from ._transports.dials import Dials

            self._dials = Dials(servers, self._execmodel, self._on_answer)

    def _find_dial(self, start: Start) -> Dial | None:
        return None if self._dials is None else self._dials.find(start.id)

    def _advance(self) -> bool:
        """Begin what may begin, and note answers; return whether only waiting is left."""
        while not self._answers.empty():
            self._answers.get()
        if self._is_cancelled:
            raise InterruptedError("the start was cancelled")
        while self._step():
            pass
        waiting = [start for start in self._starts if start.gateway is None]
        if waiting and not any(self._moments()):  # they depend on each other in a circle
            self._begin(waiting[0])
        return not waiting and all(start.is_ready or not start.address for start in self._starts)

    def _step(self) -> bool:
        """Check each once; return whether one has ended, so that others may begin."""
        has_ended = False
        for start in self._starts:  # shared connections are appended meanwhile
            if start.gateway is None and self._may_begin(start):
                self._begin(start)
            if start.gateway is not None and not start.is_ready:
                has_ended |= self._look_at(start, start.gateway)
        self._starts = [start for start in self._starts if not start.is_given_up]
        return has_ended

    def _may_begin(self, start: Start) -> bool:
        if start.due > monotonic() or not self._has_its_way(start):
            return False
        if start.shares and start.address is not None:
            return self._finds_connection(start, start.address)
        dial = self._find_dial(start)
        if dial is not None and not dial.is_done:
            return False
        return start.address is None or logins.begin(start.address, start)

    def _finds_connection(self, start: Start, address: Address) -> bool:
        """Whether there is a connection for a worker; begin one if nobody else does."""
        start.connection = self._connections.claim(address, start)
        if start.connection is not None:
            return True
        is_over = address in self._connected and address not in self._connecting
        if is_over or self._connections.is_refused(address):  # one attempt that failed is enough
            start.shares = False
            return logins.begin(address, start)
        if address not in self._connecting and self._connections.begin(address, self):
            self._connecting.add(address)
            self._connected.add(address)
            from ._transports.surroundings import here

            connection = Start(settings_of_connection(start.settings))
            connection.is_connection = True
            connection.surroundings = here()
            self._starts.append(connection)
        return False

    def _has_its_way(self, start: Start) -> bool:
        """Whether the gateways of this call that it goes via, if any, are ready."""
        ids = start.settings.spec.via, start.settings.spec.installvia
        return all(self._by_id[id].is_ready for id in ids if id in self._by_id)

    def _begin(self, start: Start) -> None:
        start.tries += 1
        if start.tries == 1:
            start.deadline = start.settings.deadline()
        dial = self._find_dial(start)
        through: Through | None = None if dial is None else dial.stream
        if start.connection is not None and start.settings.resume_s is not None:
            from ._resume.shared import SharedWays

            assert start.address is not None
            login = start.address, start.connection, start
            through = SharedWays(self._connections, *login, self._log_in_anew).stream
        elif start.connection is not None:
            through = way_through(self._connections, start.connection, start)
        start.gateway = self._begin_one(start.settings, self._find, through)
        start.gateway.handshake.on_answer = self._on_answer
        if self._is_cancelled:  # before it could be killed
            start.gateway.endpoint.kill()
        if start.settings.type == JOINED:
            start.deadline = start.settings.deadline()  # now that it has dialled in

    def _log_in_anew(
        self,
        settings: Settings,
        surroundings: Surroundings | None,
        deadline: float,
        is_over: Callable[[], bool],
    ) -> Gateway:
        """Make a shared connection in place of a lost one; called after ``run`` has returned."""
        through: Through | None = None
        if not settings.spec.via:
            through = partial(gateway_io.log_in_anew, surroundings=surroundings)
        gateway = self._begin_one(settings, self._find_outside, through)
        answered = gateway.handshake.answered
        while not answered.wait(LOOK_S):
            if is_over() or monotonic() >= deadline:
                break
        gateway_bootstrap.wait_ready(gateway, 0.0)
        return gateway

    def _find(self, id: str) -> Gateway:
        if id not in self._by_id:
            return self._find_outside(id)
        start = self._by_id[id]
        if start.gateway is None or not start.is_ready:
            raise KeyError(id, [start.id for start in self._starts if start.is_ready])
        return start.gateway

    def _on_answer(self) -> None:
        self._answers.put(None)  # in the receiver thread of a gateway

    def _look_at(self, start: Start, gateway: Gateway) -> bool:
        """Note whether a gateway has become ready, or has failed."""
        now, in_time = monotonic(), gateway.handshake.answered.is_set()
        if not in_time and (start.deadline is None or now < start.deadline):
            return False
        try:
            gateway_bootstrap.wait_ready(gateway, now)
            start.is_ready = True
            if start.is_connection and start.address is not None:
                self._connections.add(start.address, gateway, self, start.surroundings)
                self._end_connecting(start.address)
        except BootstrapError as exc:
            if self._goes_on(start, gateway, exc):
                return True
            if in_time or start.refusal is None:
                raise
            raise start.refusal from exc  # it tells more than that time is over
        finally:
            self._end_login(start)
        return True

    def _goes_on(self, start: Start, gateway: Gateway, error: BootstrapError) -> bool:
        """Whether a failed start goes on anyway, in another way or later."""
        if start.address is None:
            return False
        if was_refused(error, start.tries):
            start.refusal = error
            start.due = monotonic() + pause_s(start.tries)
            if start.deadline is not None and start.due >= start.deadline:
                return False
        elif start.is_connection and error.exitcode not in (None, SSH_FAILED):
            # The host was reached, but may only admit a client that python= names.
            self._connections.refuse(start.address)
            self._end_connecting(start.address)
            start.is_given_up = True
        elif start.connection is not None and gateway.endpoint.could_not_start:
            start.connection, start.shares = None, False
        else:
            return False
        start.gateway = None
        return True

    def _await_answer(self) -> None:
        """Wait for the answer of a worker, or for the time of the next action."""
        first = min(self._moments())
        timeout_s = None if first == NEVER else max(0.0, first - monotonic())
        with suppress(self._execmodel.Empty):
            self._answers.get(True, timeout_s)

    def _moments(self) -> list[float]:
        """Return when, at the latest, to check those that are not ready again."""
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

    def _end_connecting(self, address: Address) -> None:
        self._connecting.discard(address)
        self._connections.end_start(address, self)

    def _leave_connections(self) -> None:
        """Release connections held for workers that were still to start through them."""
        for start in self._starts:
            if start.is_connection and start.is_ready and start.gateway is not None:
                self._connections.leave(start.gateway, self)

    def _end_login(self, start: Start) -> None:
        if start.address is not None:
            logins.end(start.address, start)

    def _end_logins(self) -> None:
        for start in self._starts:
            self._end_login(start)
        for address in list(self._connecting):
            self._end_connecting(address)


def _load_features() -> None:
    """Import what items need, as there may be no descriptors left for that later."""
    with suppress(ImportError, OSError):  # it works without them
        load_part("_features.direct")
        if HAVE_FAST_CODEC:
            load_part("_features.codec")
