"""``share=yes``: several workers of a group on a host start through one ssh connection.

The connection is a worker as well, but runs no code of the user and is not a member of the group.
From the spec it has only what says how to reach the host.  It ends with the last worker that
started through it.  Start at ``Connections``.
"""

from __future__ import annotations

from .._specs import KEYS, Settings
from ..gateway_base import new_lock
from ..xspec import build
from .table import TRANSPORTS, interpreter_words
from .table import address_of as host_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .._via.stream import ViaIO
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from .logins import Address
    from .surroundings import Surroundings

    class Leaves(Protocol):
        """What gets told that a user of a connection has ended."""

        def leave(self, gateway: Gateway, user: object) -> None: ...


# What a spec says about the login, beside the keys of its type; everything else is about the worker
# that starts through it.
LOGIN_KEYS = "via", "connect_timeout", "heartbeat", "dead_after"
NOT_LOGIN = ("share",)


def login_keys(settings: Settings) -> list[str]:
    """Return the keys of a spec, given or not, that say how to reach the place of its worker."""
    assert settings.transport is not None
    ours = [row.name for row in KEYS.values() if settings.type in row.types]
    names = dict.fromkeys([settings.type, *ours, *settings.transport.options, *LOGIN_KEYS])
    if settings.type in TRANSPORTS:  # else the names are another distribution's
        for name in NOT_LOGIN:
            names.pop(name, None)
    return list(names)


def settings_of_connection(settings: Settings, *more: str) -> Settings:
    """Return the spec of the connection that a worker is to start through.

    more: further keys that it takes from the worker's spec.
    """
    given = vars(settings.spec)
    spec = build(**{key: given.get(key) for key in (*login_keys(settings), *more)})
    spec.id = f"shared connection to {_host_of(settings)}"
    spec.execmodel = "thread"
    login = Settings(spec)
    login.is_login = True
    return login


def _host_of(settings: Settings) -> str | None:
    assert settings.transport is not None  # only what a command reaches is shared
    return host_of(settings.spec, settings.transport)


class Connections:
    """The shared connections of a group and their users; ``_lock`` guards all of it.

    A user is any object.  A connection that has lost its last user is told to end, and nobody gets
    it from then on.  Any thread may call, even receiver threads: nothing waits here.
    """

    def __init__(self) -> None:
        self._lock = new_lock()
        self._starting: dict[Address, object] = {}  # whoever starts a connection there
        self._refused: set[Address] = set()  # addresses where a connection can't be made
        self._by_address: dict[Address, Gateway] = {}
        self._users: dict[Gateway, set[object]] = {}  # of the connections that may not have ended
        self._surroundings: dict[Gateway, Surroundings | None] = {}  # of the same ones

    def gateways(self) -> list[Gateway]:
        """Return all connections that may not have ended yet."""
        with self._lock:
            return list(self._users)

    def forget(self, gateways: list[Gateway]) -> None:
        """Forget connections that have ended."""
        with self._lock:
            for gateway in gateways:
                self._users.pop(gateway, None)
                self._surroundings.pop(gateway, None)

    def claim(self, address: Address, user: object) -> Gateway | None:
        """Return a connection, which has the user from now on; None if there is none."""
        with self._lock:
            gateway = self._by_address.get(address)
            if gateway is None or not gateway.is_live:
                return None
            self._users[gateway].add(user)
            return gateway

    def begin(self, address: Address, owner: object) -> bool:
        """Whether the caller should start a connection, as nobody else does."""
        with self._lock:
            return self._starting.setdefault(address, owner) is owner

    def add(
        self,
        address: Address,
        gateway: Gateway,
        user: object,
        surroundings: Surroundings | None = None,
    ) -> None:
        """Take a connection that is ready, with its first user and what its command ran in."""
        with self._lock:
            self._users = {
                other: users for other, users in self._users.items() if users or other.hasreceiver()
            }
            self._users[gateway] = {user}
            self._surroundings = {
                other: kept for other, kept in self._surroundings.items() if other in self._users
            }
            self._surroundings[gateway] = surroundings
            self._by_address[address] = gateway

    def surroundings_of(self, gateway: Gateway) -> Surroundings | None:
        """Return what a connection's command was run in, None if no command of ours made it."""
        return self._surroundings.get(gateway)

    def end_start(self, address: Address, owner: object) -> None:
        """Note that the owner's start of a connection is over, successful or not."""
        with self._lock:
            if self._starting.get(address) is owner:
                del self._starting[address]

    def refuse(self, address: Address) -> None:
        """Note that there is no connection at an address: each worker has to log in."""
        with self._lock:
            self._refused.add(address)

    def is_refused(self, address: Address) -> bool:
        """Whether each worker has to log in there."""
        return address in self._refused

    def leave(self, gateway: Gateway, user: object) -> None:
        """Note that a user has ended; a second call does nothing."""
        with self._lock:
            users = self._users.get(gateway, set())
            users.discard(user)
            if not users:
                for address, other in list(self._by_address.items()):
                    if other is gateway:
                        del self._by_address[address]
        if not users:
            gateway.exit()

    def is_used(self, gateway: Gateway) -> bool:
        """Whether somebody still uses a connection."""
        with self._lock:
            return bool(self._users.get(gateway))


def request_of(settings: Settings, connection: Gateway) -> dict[str, Any]:
    """Return what ``_via.far`` at a connection is asked for: the interpreter of a spec."""
    executable = connection._rinfo().executable
    words = interpreter_words(settings.spec, TRANSPORTS["popen"], executable)
    if words[0].startswith("~"):  # which a shell understands
        from .ssh import for_shell  # with hashlib, not for every group

        words = ["sh", "-c", f"exec {for_shell(words)}"]
    return {
        "args": words,
        "address": None,
        "stderr": True,
        "timeout": None,
        "leads_group": settings.kills_group,
    }


def way_through(
    connections: Leaves, connection: Gateway, user: object
) -> Callable[[Settings, ExecModel], ViaIO]:
    """Return the function that has a connection's worker start the interpreter of a spec.

    user: leaves the connection when the stream has ended.
    """

    def create_io(settings: Settings, execmodel: ExecModel) -> ViaIO:
        from .._via.stream import ViaIO

        request = request_of(settings, connection)
        host = _host_of(settings)
        return ViaIO(connection, request, request["args"], host, execmodel, on_gone=leave)

    def leave() -> None:
        connections.leave(connection, user)

    return create_io
