"""Examines the start of one worker in stages: how long each takes, which one fails, and why.

A shell on the far side prints a word when the login is over, so one login is enough; the rest is
what any gateway goes through.  Start at ``examine``.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._endpoint import Endpoint
from .._ends.handshake import Handshake
from .._errors import BootstrapError, HostNotFound
from .._rsync.result import printable
from .._specs import Settings
from .._transports import table
from .._transports.ssh import options
from ..gateway import Gateway
from ..gateway_base import ExecnetError
from ..xspec import XSpec
from .session import WatchedGroup

if TYPE_CHECKING:
    from ..gateway_bootstrap import Through

REACH_S = 10.0  # how long a host may take to accept a connection
ANSWER_S = 60.0
ROUND_TRIPS = 20
LOAD_BYTES = 1 << 20
NOISE_SHOWN = 60  # characters
FULL_BYTES = 1 << 20  # less than this counts as full

_ECHO = """\
import os, tempfile
def told(path):
    try:
        free = os.statvfs(path)
        free = free.f_bavail * free.f_frsize
    except Exception:
        free = None
    return [path, os.access(path, os.W_OK), free]
try:
    temporary = tempfile.gettempdir()
except Exception:
    temporary = "/tmp"
channel.send([told(os.path.expanduser("~")), told(temporary), told(os.getcwd())])
while 1:
    item = channel.receive()
    channel.send(b"x" * item if isinstance(item, int) else len(item))
"""
_OTHER_HOST = (
    "the way there leads through another host, which can't be reached or can't reach it: examine "
    "the other host first"
)
_ADVICE = [
    (
        "login",
        r"Permission denied \([^)]*(password|keyboard-interactive)",
        "the host accepts none of the keys that it was offered, and would ask for a password: "
        "install a key with ssh-copy-id; ssh -v shows which keys were offered",
    ),
    (
        "login",
        r"stdio forwarding failed|open failed|UNKNOWN port 65535",
        _OTHER_HOST,
    ),
    ("", r"No space left on device", "a disk there is full"),
    ("", r"Read-only file system", "a file system there is read-only"),
]


@dataclass
class Stage:
    """The outcome of one: "ok", "failed" or "skipped"; ``ms`` is None if it is not known."""

    name: str
    state: str
    ms: float | None
    text: str


@dataclass
class Findings:
    """The findings for a spec.

    stages: in order; a failed one comes last.  notes: what works, but may surprise.
    command, answer, advice: for the failed one, what was run, what came back and what to try.
    """

    spec: str
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    answer: str = ""
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(stage.state != "failed" for stage in self.stages)

    def add(self, name: str, seconds: float | None, text: str = "", state: str = "ok") -> None:
        ms = None if seconds is None else round(seconds * 1e3, 3)
        self.stages.append(Stage(name, state, ms, printable(text)))

    def fail(self, name: str, seconds: float | None, text: str, advice: str) -> None:
        self.add(name, seconds, text, "failed")
        self.advice = printable(advice)

    def note(self, text: str) -> None:
        self.notes.append(printable(text))


class ExaminedGroup(WatchedGroup):
    """A group that notes in ``record`` when the parts of a worker's answer arrive."""

    def __init__(self) -> None:
        super().__init__()
        self._kind = self._make
        self.token = b"execnet-doctor-" + os.urandom(4).hex().encode()
        self.record = _Record(self.token)

    def _start(
        self, settings: Settings, find: Callable[[str], Gateway], through: Through | None
    ) -> Gateway:
        self.record = _Record(self.token)
        return super()._start(settings, find, through)

    def _make(self, io: Endpoint, spec: XSpec, handshake: Handshake, settings: Settings) -> Gateway:
        self.record.listen(handshake)  # before the gateway reads
        return Gateway(io, spec, handshake, settings)


class _Record:
    """Listens to a handshake; ``feed`` runs in the receiver thread, all else after it."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._seen = b""
        self._feed: Callable[[bytes], bytes | None] = bytes
        self.begin = time.perf_counter()
        self.login: float | None = None
        self.marker: float | None = None

    def listen(self, handshake: Handshake) -> None:
        self._feed = handshake.feed
        vars(handshake)["feed"] = self.feed

    def feed(self, data: bytes) -> bytes | None:
        now = time.perf_counter()
        self._seen += data
        if self.login is None and self._token in self._seen:
            self.login = now
        after = self._feed(data)
        if after is not None:
            self.marker = now
        return after

    def noise(self, all_of_it: bytes) -> tuple[str, str]:
        """Return what the shell printed before the worker's answer, and what Python printed."""
        before, token, after = all_of_it.partition(self._token)
        parts = [before, after] if token else [b"", all_of_it]
        parts[1] = parts[1].partition(b"\0execnet\0")[0]  # it asks for another source with this
        shell, python = (part.decode("utf-8", "replace").strip() for part in parts)
        return shell, python


def examine(group: ExaminedGroup, spec: XSpec) -> Findings:
    """Start a worker, measure it, and return the findings; the worker keeps running."""
    found = Findings(spec.shown())
    try:
        settings = Settings(spec)
    except ValueError as exc:
        found.fail("spec", None, str(exc), "see what a spec may say: execnet exec --help")
        return found
    if spec.ssh and not spec.via and not _reach(spec, found):
        return found
    is_told = _tell_login(spec, settings, group.token)
    try:
        gateway = group.makegateway(spec)
    except ValueError as exc:
        _explain_value(found, spec, str(exc))
        return found
    except (ExecnetError, OSError, ImportError) as exc:
        _explain(found, settings, group.record, exc, is_told)
        return found
    _tell_start(found, gateway, group.record, is_told)
    try:
        _measure(found, gateway)
    except (ExecnetError, EOFError, OSError) as exc:
        found.fail("round trip", None, str(exc), "the worker has started, and then ended or hung")
    return found


# ---------------------------------------------------------------- before the login


def _reach(spec: XSpec, found: Findings) -> bool:
    """Look up the host of ssh and connect to it, without a login; whether that works."""
    place = table.ssh_place(spec)
    command = ["ssh", "-G", *options(spec, place), *place]
    config = _config_of(command)
    host, port = config.get("hostname"), config.get("port")
    proxy = config.get("proxyjump") or config.get("proxycommand")
    if not host or not port or proxy not in (None, "none"):
        why = f"ssh goes through {proxy}" if proxy else "ssh -G tells no host"
        found.add("name", None, why, "skipped")
        found.add("TCP", None, why, "skipped")
        return True
    begin = time.perf_counter()
    found.command = f"getaddrinfo {host}"
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        advice = "there is no host of this name; it may be misspelt, or known by another name"
        found.answer = str(exc)
        found.fail("name", time.perf_counter() - begin, f"{host}: {exc}", advice)
        return False
    found.add("name", time.perf_counter() - begin, f"{host} is {addresses[0][4][0]}")
    begin = time.perf_counter()
    found.command = f"connect to {host} port {port}"
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except OSError as exc:
        advice = "no ssh server listens there; check the host and the port"
        if not isinstance(exc, ConnectionRefusedError):
            advice = "the host does not answer: it is down, or a firewall drops the packets"
        found.answer = str(exc)
        found.fail("TCP", time.perf_counter() - begin, f"port {port}: {exc}", advice)
        return False
    found.add("TCP", time.perf_counter() - begin, f"port {port}")
    found.command = ""
    return True


def _config_of(command: list[str]) -> dict[str, str]:
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=REACH_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = said.stdout.decode("utf-8", "replace").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def _tell_login(spec: XSpec, settings: Settings, token: bytes) -> bool:
    """Have a shell print the token before it starts the interpreter; return whether one does."""
    row = settings.transport
    if row is None or row.is_local:
        return False
    words = table.interpreter_words(spec, row, sys.executable)
    script = f'echo {token.decode()};exec "$0" "$@"'
    vars(spec)["python"] = shlex.join(["sh", "-c", script, *words])
    return True


# ---------------------------------------------------------------- a start that failed


def _explain_value(found: Findings, spec: XSpec, text: str) -> None:
    advice = "see what a spec may say: execnet exec --help"
    if spec.via and spec.via in text:
        advice = f"via= names a gateway of another SPEC, given before: SPEC//id={spec.via}"
    found.fail("via" if spec.via and spec.via in text else "spec", None, text, advice)


def _explain(
    found: Findings, settings: Settings, record: _Record, error: Exception, is_told: bool
) -> None:
    """Find out which stage failed, from what was printed and how far it got."""
    seconds = time.perf_counter() - record.begin
    cause = str(error).partition("\n")[0].partition("could not be started: ")
    advice = cause[2] or cause[0]
    known = error if isinstance(error, BootstrapError) else BootstrapError("")
    stderr, status, noise = known.stderr, known.exitcode, known.noise
    shell, python = record.noise(noise)
    stage = _stage_of(error, record, is_told, status, stderr)
    if stage in ("name", "TCP") and any(one.state == "skipped" for one in found.stages):
        stage, advice = "login", _OTHER_HOST
    if record.login is not None:
        found.add("login", record.login - record.begin)
        found.add("shell", None, _quoted_noise("it says", shell))
        seconds = time.perf_counter() - record.login
    for where, pattern, text in _ADVICE:
        if where in ("", stage) and re.search(pattern, f"{stderr}\n{error}"):
            advice = text
            break
    if stage == "shell" and not settings.spec.ssh:
        stage = "start"
        advice = f"{settings.type} could not run it, or there is no sh: see its output"
    elif stage == "shell":
        advice = (
            "the login runs something else: a forced command (command= in "
            "authorized_keys, ForceCommand in sshd_config), or a shell that does not understand sh"
        )
    found.command = shlex.join(known.command) or str(error).partition("\nthe command: ")[2]
    said = [stderr, shell, python] if record.login is None else [stderr, python]
    found.answer = "\n".join(
        filter(None, [*said, "" if status is None else f"exit status {status}"])
    )
    found.fail(stage, seconds, advice.partition(";")[0], advice)


def _stage_of(
    error: Exception, record: _Record, is_told: bool, status: int | None, stderr: str
) -> str:
    if record.marker is not None:
        return "hello"
    if is_told and record.login is None:
        if re.search("Could not resolve", stderr):
            return "name"
        if re.search("Connection refused|timed out|No route|unreachable", stderr):
            return "TCP"
        return "login" if isinstance(error, HostNotFound) or status is None else "shell"
    if status in (126, 127) or re.search("SyntaxError|No such file|not found", f"{stderr}{error}"):
        return "interpreter"
    return "bootstrap" if isinstance(error, BootstrapError) else "start"


def _quoted_noise(how: str, text: str) -> str:
    return f"{how} {text[:NOISE_SHOWN]!r}, {len(text)} characters" if text else ""


# ---------------------------------------------------------------- a worker that runs


def _tell_start(found: Findings, gateway: Gateway, record: _Record, is_told: bool) -> None:
    now = time.perf_counter()
    info = vars(gateway._rinfo())
    shell, python = record.noise(gateway.noise)
    if is_told and record.login is not None:
        found.add("login", record.login - record.begin)
        found.add("shell", None, _quoted_noise("it says", shell))
    if shell:
        found.note("the shell prints something at login, which is skipped")
    if python:
        found.note(f"Python prints something at its start, which is skipped: {python[:80]!r}")
    begin = record.login or record.begin
    version = ".".join(map(str, info.get("version_info", ())[:3]))
    name = f"{info.get('executable')}, {info.get('implementation')} {version}"
    marker = record.marker or now
    found.add("interpreter", None, name)
    found.add("bootstrap", marker - begin)
    found.add("hello", now - marker, f"pid {info.get('pid')}, {info.get('platform')}")
    if tuple(info.get("version_info", (3, 9)))[:2] < (3, 8):
        found.note(f"Python {version} uses the classic codec, which is slower")
    if gateway.handshake.is_plain:
        found.note("this Python has no zlib, so the source was sent uncompressed")


def _measure(found: Findings, gateway: Gateway) -> None:
    channel = gateway.remote_exec(_ECHO)
    folders = channel.receive(ANSWER_S)
    durations = []
    for _ in range(ROUND_TRIPS):
        begin = time.perf_counter()
        channel.send(b"")
        channel.receive(ANSWER_S)
        durations.append(time.perf_counter() - begin)
    found.add("round trip", sorted(durations)[ROUND_TRIPS // 2])
    begin = time.perf_counter()
    channel.send(b"x" * LOAD_BYTES)
    channel.receive(ANSWER_S)
    between = time.perf_counter()
    channel.send(LOAD_BYTES)
    channel.receive(ANSWER_S)
    end = time.perf_counter()
    up, down = (LOAD_BYTES / 1e6 / seconds for seconds in (between - begin, end - between))
    found.add("throughput", end - begin, f"{up:.1f} MB/s there, {down:.1f} MB/s back")
    channel.close()
    for path, is_writable, free in _checked(folders):
        if not is_writable:
            found.note(f"{path} is not writable")
        elif free is not None and free < FULL_BYTES:
            found.note(f"the disk of {path} is full")


def _checked(folders: Any) -> list[tuple[str, bool, int | None]]:
    """Return a worker's report of its folders, each once; it may have said anything."""
    try:
        return list({str(path): (str(path), bool(ok), free) for path, ok, free in folders}.values())
    except (TypeError, ValueError):
        return []
