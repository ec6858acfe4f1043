"""The service's half of ``Group.setlocalfactory``: keeps logins and starts workers through them.

A login is an ssh whose worker runs no user code but starts the interpreters of gateways, as with
``share=yes``.  It is made with the environment and in the folder of the program that asks, and kept
for programs with the same ones.  Nobody can be asked for a password here, so a login that needs one
fails at once.  This runs in the service, where the package can be imported.  Start at ``main``.
"""

from __future__ import annotations

import hashlib
import threading
import time

from .. import gateway_bootstrap
from .._errors import BootstrapError
from .._specs import Settings
from .._transports import table
from .._transports.sharing import settings_of_connection, way_through
from .._transports.ssh import asking_nobody
from .._via.far_threads import ThreadedForwarder
from .._via.spare import SpareIO, have_spares, source_key
from ..gateway_base import GatewayState
from ..gateway_io import Popen2IOMaster
from ..xspec import XSpec
from .far_gateway import kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._endpoint import Endpoint
    from .._via.stream import ViaIO
    from ..gateway import Gateway
    from ..gateway_base import Channel, ExecModel
    from .far_find import Said

SMALL_BYTES = 4096
ASKS = "Permission denied", "Host key verification failed"


class Login:
    """A kept login; ``lock`` is held while it is made."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.lock = threading.Lock()
        self.gateway: Gateway | None = None
        self.users: set[object] = set()
        self.timer: threading.Timer | None = None  # runs while it has no users
        self.tries = 0
        self.error: Exception | None = None  # of the last attempt


class Keeper:
    """The logins of this service; ``_lock`` guards the table and the users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logins: dict[str, Login] = {}
        self._idle_s: dict[Gateway, float] = {}

    def claim(self, request: Said, execmodel: ExecModel, user: object) -> Gateway:
        """Return a login, and count its user; simultaneous requests share one attempt."""
        command = command_of(request)
        key = _key_of(command, request)
        with self._lock:
            login = self._logins.setdefault(key, Login(key))
            login.users.add(user)
            tries, timer = login.tries, login.timer
            login.timer = None
        if timer is not None:
            timer.cancel()
        with login.lock:
            gateway = login.gateway
            if gateway is None or gateway._state != GatewayState.LIVE:
                if login.tries != tries and login.error is not None:
                    self._drop(login, user)
                    raise login.error
                gateway = self._make(login, command, request, execmodel, user)
            self._idle_s[gateway] = request["idle"]
            self._tell(login)
            return gateway

    def _make(
        self,
        login: Login,
        command: table.Command,
        request: Said,
        execmodel: ExecModel,
        user: object,
    ) -> Gateway:
        settings = settings_of_connection(Settings(XSpec(request["spec"])))
        login.tries += 1
        try:
            login.error = None
            gateway = gateway_bootstrap.start(
                settings, execmodel, through=lambda settings, model: _start(command, model)
            )
            gateway_bootstrap.wait_ready(gateway, settings.deadline())
        except Exception as exc:
            login.error = _explained(exc, command)
            self._drop(login, user)
            raise login.error from exc
        login.gateway = gateway
        execmodel.start(have_spares, (gateway,), "execnet-spares")
        kept[login.key] = {"host": _host_of(settings), "since": time.time(), "users": 0}
        return gateway

    def _tell(self, login: Login) -> None:
        kept.get(login.key, {})["users"] = len(login.users)

    def _drop(self, login: Login, user: object) -> None:
        with self._lock:
            login.users.discard(user)

    def leave(self, gateway: Gateway, user: object) -> None:
        """Note the end of a user; without users, the login is kept for some time; never waits."""
        with self._lock:
            login = next((one for one in self._logins.values() if user in one.users), None)
            if login is None:
                return
            login.users.discard(user)
            self._tell(login)
            if login.gateway is not gateway:  # it has another user by now
                return
            is_over = gateway._state != GatewayState.LIVE
            if not login.users and not is_over:
                arguments = self._idle_s[gateway], self._end, (login, gateway)
                login.timer = threading.Timer(*arguments)
                login.timer.daemon = True
                login.timer.start()
        if is_over:
            self._end(login, gateway)

    def _end(self, login: Login, gateway: Gateway) -> None:
        with self._lock:
            if login.users and gateway._state == GatewayState.LIVE:
                return
            if login.gateway is gateway:
                login.gateway = None
                kept.pop(login.key, None)
            self._idle_s.pop(gateway, None)
        gateway.exit()


def command_of(request: Said) -> table.Command:
    """Return the command of a login; it never prompts."""
    settings = settings_of_connection(Settings(XSpec(request["spec"])))
    words = table.command(settings.spec, row=settings.transport)
    words[:] = asking_nobody(words)
    words.env, words.folder = request["env"], request["folder"]
    return words


def _key_of(command: table.Command, request: Said) -> str:
    said = repr((list(command), sorted(request["env"].items()), request["folder"]))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _start(command: table.Command, execmodel: ExecModel) -> Endpoint:
    io = Popen2IOMaster(command, execmodel)
    io.remoteaddress = "a host"
    return io


def _host_of(settings: Settings) -> str:
    assert settings.transport is not None
    return str(table.address_of(settings.spec, settings.transport))


def _explained(exc: Exception, command: table.Command) -> Exception:
    """Return an error that says what to do, if ssh would have prompted."""
    if isinstance(exc, BootstrapError) and any(text in str(exc.stderr) for text in ASKS):
        shown = " ".join(word for word in command[:-1] if word not in ("-o", "BatchMode=yes", "-T"))
        first, _, others = str(exc).partition("\n")
        hint = f"a service can ask nobody: see that '{shown} true' works without a question"
        return BootstrapError(f"{first}; {hint}\n{others}", list(command), exc.exitcode, exc.stderr)
    return exc


keeper = Keeper()


# ---------------------------------------------------------------- the bytes of a gateway


class Passage:
    """The worker of a gateway and the stream to it, in the form of processes in ``_via.far``."""

    def __init__(self, io: ViaIO) -> None:
        self._io = io

    def kill(self, worker_pid: int | None) -> None:
        """Kill it unless it has ended."""
        self._io.worker_pid = worker_pid
        self._io.kill()

    def wait(self, read_all: object) -> tuple[int | None, bytes]:
        """Wait for its end; return its exit status and the end of its stderr."""
        status = self._io.wait()
        return status, self._io.stderr_tail().encode("utf-8", "replace")

    def read_some(self, limit: int) -> bytes:
        """Return available bytes; wait for the first; b"" at the end."""
        try:
            return self._io.read_some(limit)
        except EOFError:
            return b""

    def write_now(self, data: bytes) -> int:
        """Return how many bytes went out without waiting."""
        try:
            if len(data) <= SMALL_BYTES and self._io.can_write_now():
                return self._io.write_some(data)
        except OSError:  # errors appear when waiting
            pass
        return 0

    def write(self, data: bytes) -> None:
        """Write all of it."""
        self._io.write(data)

    def close_write(self) -> None:
        """Let it read the end."""
        self._io.close_write()

    def close_read(self) -> None:
        """Read no more."""
        self._io.close_read()


class KeptForwarder(ThreadedForwarder):
    """Forwards between a channel of the program and a worker at a kept login."""

    _stream: Passage | None

    def _open(self) -> Passage:
        user = object()
        gateway = keeper.claim(self._request, self._model, user)
        try:
            settings = Settings(XSpec(self._request["spec"]))
            kind = SpareIO if self._request.get("source") == source_key() else None
            passage = Passage(way_through(keeper, gateway, user, kind)(settings, self._model))
        except BaseException:
            keeper.leave(gateway, user)
            raise
        return passage

    def _open_stream(self) -> Passage:
        passage: Passage = self._owner
        return passage

    def _write_now(self, data: bytes) -> int:
        return 0 if self._stream is None else self._stream.write_now(data)


def main(channel: Channel) -> None:
    """Start what the next item asks for, and forward its bytes; returns at once."""
    data, news, request = channel.receive()
    KeptForwarder(data, news, request).start()
