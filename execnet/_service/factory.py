"""``Group.setlocalfactory``: makes gateways that need a login through a service, which keeps it.

This is the program's half: it makes the service start what a spec says, over a channel of a
connection to the service.  The command of a login is made here, as its transport may be one that
only the program has.  The service's half is ``keeper``.  Start at ``LocalFactory``.
"""

from __future__ import annotations

import os
import shlex
import sys

from .. import gateway_bootstrap
from .._specs import Settings
from .._transports import table
from .._transports.sharing import LOGIN_KEYS, Connections, login_keys, settings_of_connection
from .._transports.ssh import asking_nobody
from .._transports.surroundings import here
from .._via.spare import source_key_of
from .._via.stream import ViaIO
from ..xspec import XSpec, build

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
OVER_SSH = "ssh", "vagrant_ssh"
# An ssh that the command runs (DOCKER_HOST=ssh://...) must not ask in a window.
ASKS_NOBODY = {"SSH_ASKPASS_REQUIRE": "never"}
ANY_TYPE = {"docker": "place"}  # stands for a type that the service may not know


class KeptIO(ViaIO):
    """The stream to a worker that a service starts."""

    far = KEEPER
    loaded: frozenset[str] = frozenset()  # the service can import it


class LocalFactory:
    """The service that makes a group's gateways to places that are reached by a login.

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
        """Whether a spec needs a login that can be shared, so that the service has to make it."""
        if settings.spec.via or settings.resume_s is not None:  # whose connections are its own
            return False
        return settings.transport is not None and settings.transport.serves_many

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
            assert settings.transport is not None
            host = table.address_of(settings.spec, settings.transport)
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
        command, test = _login_of(settings)
        env = {name: text for name, text in os.environ.items() if name not in OF_MOMENT}
        return {
            "args": [settings.type],
            "command": list(command),
            "captures_stderr": command.captures_stderr,
            "test": test,
            "host": _label_of(settings),
            "spec": str(_spec_of(settings)),
            "env": env if settings.type in OVER_SSH else {**env, **ASKS_NOBODY},
            "folder": here().folder,
            "idle": self._idle_s,
            "source": source_key_of(settings),
        }


def _login_of(settings: Settings) -> tuple[table.Command, str]:
    """Return the command of a login, which never prompts, and one that shows whether it works."""
    row = settings.transport
    assert row is not None
    if settings.type in OVER_SSH:
        login = settings_of_connection(settings)
        command = table.command(login.spec, row=row)
        shown = " ".join(word for word in command[:-1] if word != "-T")
        command[:] = asking_nobody(command)
        return command, f"{shown} true"
    # A container may have no interpreter but the one that python= names.
    login = settings_of_connection(settings, "python")
    command = table.command(login.spec, row=row)
    last = table.interpreter_words(login.spec, row, sys.executable)
    way = command[: -len(last)] if command[-len(last) :] == last else command[:-1]
    return command, f"{shlex.join(way)} true"


def _label_of(settings: Settings) -> str:
    """Return what a login is called in reports."""
    spec = settings.spec
    value = vars(spec)[settings.type]
    if settings.type in OVER_SSH:
        return str(spec.host if value is True else value)
    return settings.type if value is True else f"{settings.type}={value}"


def _spec_of(settings: Settings) -> XSpec:
    """Return what the service has to know of a spec: about the login, and about the worker."""
    given = vars(settings.spec)
    names = login_keys(settings) if settings.type in table.TRANSPORTS else list(LOGIN_KEYS)
    keys = {name: given.get(name) for name in (*names, *OF_WORKER)}
    return build(**(keys if settings.type in table.TRANSPORTS else {**ANY_TYPE, **keys}))
