"""``Group.setlocalfactory``: makes gateways that need a login through a service, which keeps it.

This is the program's half: it makes the service start what a spec says, over a channel of a
connection to the service.  The service's half is ``keeper``.  Start at ``LocalFactory``.
"""

from __future__ import annotations

import os

from .. import gateway_bootstrap
from .._specs import Settings
from .._transports.sharing import LOGIN_KEYS, Connections
from .._via.spare import source_key_of
from .._via.stream import ViaIO
from ..xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._endpoint import Endpoint
    from .._transports.logins import Address
    from ..gateway import Gateway
    from ..gateway_base import ExecModel

    Begin = Callable[[Settings], Gateway]

KEEPER = "_service.keeper"
OF_WORKER = "python", "dont_write_bytecode", "kill"  # what else the service has to know about it
# Variables that differ between programs of one shell, but do not affect how a host is reached.
OF_MOMENT = ("_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST")


class KeptIO(ViaIO):
    """The stream to a worker that a service starts."""

    far = KEEPER
    loaded: frozenset[str] = frozenset()  # the service can import it


class LocalFactory:
    """The service that makes a group's gateways to hosts that need a login.

    The connection to it is one of the group's shared connections, and ends with the last gateway.
    """

    def __init__(
        self, connections: Connections, port: int | None, name: str | None, idle_s: float
    ) -> None:
        parts = ["socketservice" if name is None else f"socketservice={name}"]
        parts += [] if port is None else [f"port={port}"]
        self._text = "//".join(parts)
        Settings(XSpec(self._text))  # it raises for a bad name or port
        self._connections = connections
        self._idle_s = idle_s
        self._address: Address = ("local factory", self._text)

    def takes(self, settings: Settings) -> bool:
        """Whether a spec needs a login, so that the service has to make it."""
        if settings.spec.via or settings.resume_s is not None:  # whose connections are its own
            return False
        return settings.type in ("ssh", "vagrant_ssh")

    def make_io(self, start: Begin, settings: Settings, execmodel: ExecModel) -> Endpoint:
        """Make the service start what a spec says; return the stream.

        start: makes the gateway to the service, if there is none, without waiting for its answer.
        """
        user = object()
        service = self._connected(start, user)

        def leave() -> None:
            self._connections.leave(service, user)

        try:
            request = self._request_of(settings)
            words = [f"{settings.type} of {self._text}"]
            host = str(settings.spec.host or vars(settings.spec)[settings.type])
            return KeptIO(service, request, words, host, execmodel, leave)
        except BaseException:
            leave()
            raise

    def _connected(self, start: Begin, user: object) -> Gateway:
        """Return the connection to the service, and count one more user."""
        service = self._connections.claim(self._address, user)
        if service is not None:
            return service
        spec = XSpec(self._text)
        spec.id, spec.execmodel = f"local factory of process {os.getpid()}", "thread"
        settings = Settings(spec)
        service = start(settings)
        gateway_bootstrap.wait_ready(service, settings.deadline())
        self._connections.add(self._address, service, user)
        return service

    def _request_of(self, settings: Settings) -> dict[str, object]:
        given = dict(vars(settings.spec))
        if given.get("ssh_config"):
            given["ssh_config"] = os.path.abspath(given["ssh_config"])
        names = *LOGIN_KEYS, *OF_WORKER
        values = [(key, given[key]) for key in names if given.get(key) is not None]
        return {
            "args": [settings.type],
            "spec": "//".join(key if value is True else f"{key}={value}" for key, value in values),
            "env": {name: text for name, text in os.environ.items() if name not in OF_MOMENT},
            "folder": os.getcwd(),
            "idle": self._idle_s,
            "source": source_key_of(settings),
        }
