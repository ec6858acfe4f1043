"""``share=yes``: several workers of a group on a host start through one connection by ssh.

The connection is a worker as well: it runs no code of the user's and is no member of the group.
It has nothing of the spec but how the host is reached, and ends with the last that started
through it.  Start at ``Connections``.
"""

from __future__ import annotations

from .._specs import Settings
from ..gateway_base import GatewayState, new_lock
from ..xspec import XSpec
from .table import TRANSPORTS, interpreter_words
from .table import address_of as host_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from .._via.stream import ViaIO
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from .logins import Address

    class Leaves(Protocol):
        """What is told that a user of a connection has ended."""

        def leave(self, gateway: Gateway, user: object) -> None: ...


# What a spec says of the connection; all else is said of the worker.
KEYS = (
    "ssh",
    "host",
    "user",
    "port",
    "options",
    "vagrant_ssh",
    "ssh_config",
    "ssh_persist",
    "ssh_compression",
    "via",
    "connect_timeout",
    "heartbeat",
    "dead_after",
)


def settings_of_connection(settings: Settings) -> Settings:
    """Return the spec of the connection that a worker is to start through."""
    given = vars(settings.spec)
    values = [(key, given[key]) for key in KEYS if given.get(key) is not None]
    parts = [key if value is True else f"{key}={value}" for key, value in values]
    spec = XSpec("//".join(parts))
    spec.id = f"shared connection to {_host_of(settings)}"
    spec.execmodel = "thread"
    return Settings(spec)


def _host_of(settings: Settings) -> str | None:
    assert settings.transport is not None  # only what ssh reaches is shared
    return host_of(settings.spec, settings.transport)


class Connections:
    """The shared connections of a group and what uses them; ``_lock`` guards all.

    A user is any object.  A connection that has none any more is told to end, and given to
    nobody from then on.  Any thread may call, receiver threads too: nothing waits here.
    """

    def __init__(self) -> None:
        self._lock = new_lock()
        self._starting: dict[Address, object] = {}  # whoever starts one
        self._refused: set[Address] = set()  # addresses where none can be had
        self._by_address: dict[Address, Gateway] = {}
        self._users: dict[Gateway, set[object]] = {}  # of those that may not have ended

    def gateways(self) -> list[Gateway]:
        """Return all that may not have ended yet."""
        with self._lock:
            return list(self._users)

    def forget(self, gateways: list[Gateway]) -> None:
        """Some have ended, and were waited for."""
        with self._lock:
            for gateway in gateways:
                self._users.pop(gateway, None)

    def claim(self, address: Address, user: object) -> Gateway | None:
        """Return a connection that is used from now on; None if there is none."""
        with self._lock:
            gateway = self._by_address.get(address)
            if gateway is None or gateway._state != GatewayState.LIVE:
                return None
            self._users[gateway].add(user)
            return gateway

    def begin(self, address: Address, owner: object) -> bool:
        """Whether the caller is to start one: nobody else does."""
        with self._lock:
            return self._starting.setdefault(address, owner) is owner

    def add(self, address: Address, gateway: Gateway, user: object) -> None:
        """A connection is ready, and has its first user."""
        with self._lock:
            self._users = {
                other: users for other, users in self._users.items() if users or other.hasreceiver()
            }
            self._users[gateway] = {user}
            self._by_address[address] = gateway

    def end_start(self, address: Address, owner: object) -> None:
        """The owner's start of a connection is over, whether it came to one or not."""
        with self._lock:
            if self._starting.get(address) is owner:
                del self._starting[address]

    def refuse(self, address: Address) -> None:
        """There can be none at an address: each worker has to log in."""
        with self._lock:
            self._refused.add(address)

    def is_refused(self, address: Address) -> bool:
        """Whether each worker has to log in there."""
        return address in self._refused

    def leave(self, gateway: Gateway, user: object) -> None:
        """A user has ended; a second time does nothing."""
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


def way_through(
    connections: Leaves, connection: Gateway, user: object
) -> Callable[[Settings, ExecModel], ViaIO]:
    """Return what has a connection's worker start the interpreter of a spec, over a stream.

    user: leaves the connection when the stream has ended.
    """

    def create_io(settings: Settings, execmodel: ExecModel) -> ViaIO:
        from .._via.stream import ViaIO

        executable = connection._rinfo().executable
        words = interpreter_words(settings.spec, TRANSPORTS["popen"], executable)
        if words[0].startswith("~"):  # which a shell understands
            from .ssh import for_shell  # with hashlib, not for every group

            words = ["sh", "-c", f"exec {for_shell(words)}"]
        request: dict[str, object] = {
            "args": words,
            "address": None,
            "stderr": True,
            "timeout": None,
        }
        request["leads_group"] = settings.kills_group
        host = _host_of(settings)
        return ViaIO(connection, request, words, host, execmodel, on_gone=leave)

    def leave() -> None:
        connections.leave(connection, user)

    return create_io
