"""Workers with ``share=yes`` that outlive the login which they share.

When that is lost, the first worker that needs it logs in anew, and the others wait for it.  Each
worker has a supervisor of its own, so it does not end with the login.  Start at ``SharedWays``.
"""

from __future__ import annotations

import time

from .._clock import monotonic
from .._transports.sharing import settings_of_connection, way_through
from .logins import Refused, Unreachable
from .near import ResumeIO, check_models
from .ways import Maker, PassedWay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._specs import Settings
    from .._transports.logins import Address
    from .._transports.sharing import Connections
    from .._transports.surroundings import Surroundings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel

    # Makes a connection that is ready, by a deadline, or until nobody wants it any more.
    LogIn = Callable[[Settings, Surroundings | None, float, Callable[[], bool]], Gateway]

LOOK_S = 0.1  # how often to look for a login that another worker makes


class SharedWays(Maker):
    """Makes connections of one worker through the logins to an address that a group has.

    connection: the login to begin with, which ``user`` has claimed.
    """

    def __init__(
        self,
        connections: Connections,
        address: Address,
        connection: Gateway,
        user: object,
        log_in: LogIn,
    ) -> None:
        super().__init__(lambda: self._way(connection, user), self._anew, connection)
        self._connections, self._address, self._log_in = connections, address, log_in
        self.surroundings = connections.surroundings_of(connection)
        self._settings: Settings | None = None
        self._execmodel: ExecModel | None = None

    def stream(self, settings: Settings, execmodel: ExecModel) -> ResumeIO:
        """Return the stream of the worker."""
        check_models(settings, execmodel)
        self._settings, self._execmodel = settings, execmodel
        return ResumeIO(settings, execmodel, self)

    def hop(self) -> str:
        """Return "": a login that has ended can be made anew."""
        return ""

    def _way(self, connection: Gateway, user: object) -> PassedWay:
        assert self._settings is not None
        assert self._execmodel is not None
        start = way_through(self._connections, connection, user)
        return PassedWay(start(self._settings, self._execmodel))

    def _anew(self, deadline: float, is_over: Callable[[], bool]) -> PassedWay:
        user = object()  # as each connection leaves its login when it has ended
        connection = self._find(user, deadline, is_over)
        try:
            way = self._way(connection, user)
        except BaseException:
            self._connections.leave(connection, user)
            raise
        self.carrier = connection
        return way

    def _find(self, user: object, deadline: float, is_over: Callable[[], bool]) -> Gateway:
        """Return a login that the user has, made now if there is none."""
        assert self._settings is not None
        connections, address = self._connections, self._address
        while True:
            found = connections.claim(address, user)
            if found is not None:
                return found
            if connections.begin(address, user):
                try:
                    found = connections.claim(address, user)
                    if found is None:
                        settings = settings_of_connection(self._settings)
                        try:
                            found = self._log_in(settings, self.surroundings, deadline, is_over)
                        except ValueError as exc:  # what it goes via is not in the group any more
                            raise Refused(str(exc)) from exc
                        connections.add(address, found, user, self.surroundings)
                    return found
                finally:
                    connections.end_start(address, user)
            if is_over() or monotonic() >= deadline:
                raise Unreachable("the login that it shares was not made anew in time")
            time.sleep(LOOK_S)
