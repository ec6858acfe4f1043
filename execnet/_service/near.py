"""``socketservice=NAME``: the stream to a service of this user, which is started if necessary.

``far_find`` finds and starts it, ``far`` is its code.  Start at ``create_io``.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

from .._clock import monotonic
from .._ends.poll import EndPoll
from .._errors import AuthenticationError, BootstrapError
from .._ship.loading import code_to_run
from .._ship.parts import PACKAGE
from .._transports.table import TRANSPORTS, interpreter_words
from ..gateway_base import CAN_READ_DIRECTLY, printable, real_select
from ..gateway_socket import SocketIO
from . import far_find
from .far_find import PROTOCOL, ServiceError, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from .._specs import Settings
    from ..gateway_base import ExecModel
    from ..xspec import XSpec
    from .far_find import Prove, Said

IDLE_S = 3 * 3600.0
DEFAULT_NAME = "default"
# The modules that ``_service.far`` needs.
PARTS = (
    *("_service.far_find", "_service.far_log", "_service.far_gateway", "_service.far_session"),
    "_output.far",
)
PORT_PARTS = "script.socketserver", "_service.far_proof"


def name_of(spec: XSpec) -> str:
    """Return the name of the service that a spec means."""
    if isinstance(spec.socketservice, str):
        return spec.socketservice
    return str(spec.port or DEFAULT_NAME)


def want_of(settings: Settings) -> Said:
    """Return what ``far_find.connect`` should find or start."""
    spec = settings.spec
    return {
        "name": name_of(spec),
        "port": settings.service_port,
        "words": interpreter_words(spec, TRANSPORTS["popen"], sys.executable),
        "python": spec.python or sys.executable,
        "idle": IDLE_S if settings.idle_s is None else settings.idle_s,
        "ships": bool(spec.python),
    }


def service_code(ships: bool, port: int | None = None) -> bytes:
    """Return what ``far_find.line_of`` makes the line of a service from."""
    code = code_to_run("_service.far", PARTS + (PORT_PARTS if port else ()), ships)
    return ascii(code).encode("ascii")


def version() -> str:
    """Return the version of execnet, which a service says of itself."""
    return str(sys.modules[PACKAGE].__version__)


def line_for(want: Said) -> bytes:
    """Return the line that turns an interpreter into a service."""
    code = service_code(want["ships"], want["port"])
    return far_find.line_of(code, dict(want, version=version()))


def prover(port: int, deadline: float) -> Prove:
    """Return a function that makes both ends of a connection prove that they have the key."""

    def prove_both(sock: socket.socket) -> None:
        from .._transports.keys import Wish, own_key
        from .._transports.proof import SocketTalk, TurnedAway, prove
        from ..xspec import XSpec

        wish = Wish(XSpec("socketservice"), own_key())
        try:
            prove(SocketTalk(sock), wish, f"port {port}", deadline)
        except TurnedAway as exc:  # for example by a service that is about to end
            raise ConnectionResetError(errno.ECONNRESET, str(exc)) from exc

    return prove_both


def create_io(settings: Settings, execmodel: ExecModel) -> ServiceIO:
    """Connect to the service that a spec means, and start it if it is not running.

    Raises ``BootstrapError`` if that fails, or the service does not match the spec.
    """
    want = want_of(settings)
    args = [f"socketservice={want['name']}"]
    deadline = monotonic() + (settings.connect_timeout_s or far_find.LONGEST_S)
    prove = prover(want["port"], deadline) if want["port"] else int
    try:
        sock, greeting = far_find.connect(want, deadline, line_for, prove)
    except AuthenticationError as exc:
        text = f"{exc}; what listens there is not a service of this user{_holder(want['port'])}"
        raise BootstrapError(text, args) from exc
    except (ServiceError, OSError) as exc:
        holder = _holder(want["port"]) if "ddress already in use" in str(exc) else ""
        raise BootstrapError(f"{printable(str(exc))}{holder}", args) from exc
    try:
        _check_greeting(want, greeting, settings)
        sock = _for_model(sock, execmodel)
        return ServiceIO(sock, execmodel, args[0], greeting, request_of(settings))
    except BaseException as exc:
        sock.close()
        if isinstance(exc, ServiceError):
            raise BootstrapError(str(exc), args) from exc
        raise


def request_of(settings: Settings) -> Said:
    """Return the request for a gateway, which still lacks the options of its worker."""
    return {
        "ask": "gateway",
        "pid": os.getpid(),
        "idle": settings.idle_s,
        "one_at_a_time": settings.is_one_at_a_time,
    }


def _check_greeting(want: Said, greeting: Said, settings: Settings) -> None:
    """Raise ``ServiceError`` for a service that this program can't use as the spec says."""
    reason = ""
    if greeting.get("protocol") != PROTOCOL:
        reason = f"it speaks protocol {greeting.get('protocol')}, and this is {PROTOCOL}"
    elif want["port"] and greeting.get("python") != want["python"]:
        which = "the spec says" if settings.spec.python else "without a word it is"
        reason = f"{which} python={want['python']}"
    elif greeting.get("service") != want["name"]:
        reason = f"the spec says socketservice={want['name']}"
    if reason:
        place = f"port {want['port']}" if want["port"] else f"the name {want['name']}"
        raise ServiceError(
            f"{place} is held by another service, {described(greeting)}: {reason}; "
            f'"execnet service stop" ends it, and says first what would be lost'
        )


def described(greeting: Said) -> str:
    """Describe a service in words, from what it says about itself."""
    version = ".".join(map(str, greeting.get("version_info", ())))
    return printable(
        f"{greeting.get('service')!r} of process {greeting.get('pid')}, execnet "
        f"{greeting.get('version')}, Python {version} ({greeting.get('python')})"
    )


def _holder(port: int | None) -> str:
    """Describe in words which process listens at a port, as far as this user can see."""
    pid = _listener_of(port) if port else None
    if pid is None:
        return ""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        command = "?"
    return printable(f"; process {pid} listens there: {command[:80]}")


def _listener_of(port: int | None) -> int | None:
    inodes = set()
    with suppress(OSError), open("/proc/net/tcp", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                inodes.add(f"socket:[{fields[9]}]")
    with suppress(OSError):
        for pid in filter(str.isdigit, os.listdir("/proc") if inodes else ()):
            with suppress(OSError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                        return int(pid)
    return None


def _for_model(sock: socket.socket, execmodel: ExecModel) -> Any:
    """Return a socket in the form that the greenlets of a model use."""
    if execmodel.has_main_thread:
        return sock
    return execmodel.socket.socket(sock.family, sock.type, 0, sock.detach())


class Pid:
    """A process that is not ours, seen from outside; process ids are reused."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd = -1
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._fd = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """Whether it has ended; a guess if the system has no descriptor for it."""
        if self._fd >= 0:
            poll = real_select().poll()
            poll.register(self._fd, 1)  # POLLIN
            return bool(poll.poll(0))
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def open_end(self) -> int:
        """Return a descriptor that can be read once it has ended; -1 where there is none."""
        return os.dup(self._fd) if self._fd >= 0 else -1

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class ServiceIO(SocketIO):
    """The stream to a service; ``boot`` turns the connection into a gateway's.

    Processes that the service's code forked may hold the connection open, and must not hide the
    service's end, so its process is watched as well.
    """

    needs_boot = True

    def __init__(
        self,
        sock: Any,
        execmodel: ExecModel,
        name: str,
        greeting: Said,
        request: Said,
    ) -> None:
        super().__init__(sock, execmodel, name)
        self.args = [name]
        self.remoteaddress = None
        self.greeting = greeting
        self._request = request
        self._process: Pid | None = None
        self._poll: EndPoll | None = None
        if CAN_READ_DIRECTLY and execmodel.has_main_thread:
            self._process = Pid(greeting["pid"])
            self._poll = EndPoll(sock.fileno(), self._process, lambda: None)

    def boot(self, options: Said) -> None:
        """Ask for a gateway; options: the arguments of ``start_worker``."""
        try:
            say(self._sock, dict(self._request, options=options))
        except OSError as exc:
            raise BootstrapError(f"the service has ended: {exc}", self.args) from exc

    def read_some(self, limit: int) -> bytes:
        """Return available bytes, like the base class; b"" also when the process has ended."""
        if self._poll is None:
            return super().read_some(limit)
        data = self._poll.read(super().read_some, limit)
        if not data:
            self._ended.set()
        return data

    def shared_fd(self) -> int:
        """Return -1: one descriptor does not tell of both ends."""
        return -1

    def open_end(self) -> int:
        """Return a descriptor that can be read once the service has ended; -1: there is none."""
        return -1 if self._process is None else self._process.open_end()

    def close_read(self) -> None:
        """Close the connection, both ways."""
        super().close_read()
        if self._process is not None:
            self._process.close()

    def disown(self) -> None:
        """In a forked process: release the connection, which is the parent's."""
        super().disown()
        if self._process is not None:
            self._process.close()
