"""The service's half of ``Group.setlocalfactory``: keeps logins and starts workers through them.

A login is an ssh, or a command that enters a container, whose worker runs no user code but starts
the interpreters of gateways, as with ``share=yes``.  It is made with the command and the
environment and in the folder of the program that asks, and kept for programs with the same ones.
Nobody can be asked for a password here, so a login that needs one fails at once.  This runs in the
service, where the package can be imported.  Start at ``main``.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time

from .. import gateway_bootstrap
from .._errors import BootstrapError
from .._specs import Settings
from .._transports import table
from .._transports.sharing import request_of, settings_of_connection
from .._via.spare import SPARE, have_spares, source_key
from .._via.stream import FAR
from ..gateway_io import Popen2IOMaster
from ..xspec import XSpec
from .far_gateway import kept
from .splice import Splice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._endpoint import Endpoint
    from ..gateway import Gateway
    from ..gateway_base import Channel, ExecModel
    from .far_find import Said

# What programs say that wanted to ask for something, or to have been told before.
_ASKS = re.compile(
    "permission denied|host key verification failed|password|passphrase|passcode|log ?in|logged in"
    "|sign in|authenticat|authoriz|credential|not trusted|no tty|terminal|askpass",
    re.IGNORECASE,
)


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
            if gateway is None or not gateway.is_live:
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
            login.error = _explained(exc, command, request["test"])
            self._drop(login, user)
            raise login.error from exc
        login.gateway = gateway
        execmodel.start(have_spares, (gateway,), "execnet-spares")
        kept[login.key] = {"host": request["host"], "since": time.time(), "users": 0}
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
            is_over = not gateway.is_live
            if not login.users and not is_over:
                arguments = self._idle_s[gateway], self._end, (login, gateway)
                login.timer = threading.Timer(*arguments)
                login.timer.daemon = True
                login.timer.start()
        if is_over:
            self._end(login, gateway)

    def _end(self, login: Login, gateway: Gateway) -> None:
        with self._lock:
            if login.users and gateway.is_live:
                return
            if login.gateway is gateway:
                login.gateway = None
                kept.pop(login.key, None)
            self._idle_s.pop(gateway, None)
        gateway.exit()


def command_of(request: Said) -> table.Command:
    """Return the command of a login; it never prompts."""
    words = table.Command(request["command"], request["captures_stderr"], is_remote=True)
    words.env, words.folder = request["env"], request["folder"]
    return words


def _key_of(command: table.Command, request: Said) -> str:
    said = repr((list(command), sorted(request["env"].items()), request["folder"]))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _start(command: table.Command, execmodel: ExecModel) -> Endpoint:
    io = Popen2IOMaster(command, execmodel)
    io.remoteaddress = "a host"
    return io


def _explained(exc: Exception, command: table.Command, test: str) -> Exception:
    """Return an error that says what to do, if the command would have asked for something.

    test: a command of the user's that shows whether it does.
    """
    if isinstance(exc, BootstrapError) and _ASKS.search(f"{exc.stderr} {exc.noise!r}"):
        first, _, others = str(exc).partition("\n")
        hint = f"a service can ask nobody: see that '{test}' works without a question"
        return BootstrapError(f"{first}; {hint}\n{others}", list(command), exc.exitcode, exc.stderr)
    return exc


keeper = Keeper()


# ---------------------------------------------------------------- the workers of gateways


def main(channel: Channel) -> None:
    """Start what the next item asks for, and pass on its bytes; returns at once."""
    data, news, request = channel.receive()
    user, model = object(), channel.gateway.execmodel

    def find(request: Said) -> tuple[Gateway, str, dict[str, object]]:
        login = keeper.claim(request, model, user)
        try:
            part = SPARE if request.get("source") == source_key() else FAR
            return login, part, request_of(Settings(XSpec(request["spec"])), login)
        except BaseException:
            keeper.leave(login, user)
            raise

    Splice(data, news, request, find, lambda login: keeper.leave(login, user)).start()
