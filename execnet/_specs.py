"""What the keys of a spec mean: one table, in which each is checked and becomes a value.

The syntax is in ``xspec``, how a type reaches an interpreter in ``_transports.table``.  A new key
is a row of ``_ROWS`` and, where it has a value, an attribute of ``Settings``; a test compares the
table with the one in ``doc/specs.rst``.  CONTRIBUTING.rst has the rest.  Start at ``Settings``.
"""

from __future__ import annotations

import os
import sys

from ._clock import monotonic
from ._transports import table as transports_table
from ._transports.table import OLD_TYPES, shell_split_path, split_place
from .gateway_base import WorkerGateway, get_execmodel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._endpoint import Endpoint
    from ._transports.table import Transport
    from .script.socketserver import Address
    from .xspec import XSpec

CONNECT_TIMEOUT_S = 60.0
HEARTBEAT_S = 15.0  # between signs of life, where a network may be cut in between
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
PLACE = "host", "user", "port", "options"
PROOF = "key", "authentication", "bound", "fingerprint"
MAX_ITEM = 1 << 30
PROCESS_KEYS = "chdir", "nice", "umask", "memory", "cpus", "kill", "dont_write_bytecode"
JOINED = "listen"  # the type of workers that dial in
OF_SERVICE = "idle", "one_at_a_time"  # with attach=, for all types
PRESENT = "via", "python", "dont_write_bytecode"  # keys that say how one is started
SILENT_BEATS = 4  # after so many that are missing the other side is given up


# ---------------------------------------------------------------- parsers of values


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("not a number of seconds")
    return seconds


def _is_yes(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("neither yes nor no")
    return value == "yes"


def _some(unit: str) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value)
        if number < 1:
            raise ValueError(f"not a number of {unit} above 0")
        return number

    return parse


def _memory(value: str) -> int:
    from ._ends.limits import bytes_of

    return bytes_of(value)


def _cpus(value: str) -> int | tuple[int, ...]:
    from ._ends.limits import cpus_of

    return cpus_of(value)


def _is_group(value: str) -> bool:
    if value != "group":
        raise ValueError("there is only kill=group")
    if not hasattr(os, "killpg"):
        raise ValueError("there are no process groups on this system")
    return True


def _level(value: str) -> int:
    number = _LEVELS.get(value) or (int(value) if value.isascii() and value.isdigit() else 0)
    if number < 1:
        raise ValueError(f"neither a number above 0 nor one of {', '.join(_LEVELS)}")
    return number


def _name(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("it begins with '-', as options do")
    return value


def _port(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
        raise ValueError("not the number of a port")
    return int(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"neither {' nor '.join(words)}")
        return value

    return parse


def _sha256(value: str) -> str:
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError("not a SHA-256 in hex, in small letters")
    return value


def _modules(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError("it needs names of modules: preload=a,b.c")
    return names


def _imports(value: str) -> tuple[str, ...]:
    """Return names of modules; none for those below the folder of the main program."""
    if value == "True":
        return ()
    try:
        return _modules(value)
    except ValueError:
        raise ValueError("it needs names of modules, or True: imports=a,b.c") from None


def _address(value: str) -> Address:
    from .script.socketserver import parse_address

    return parse_address(value)


def _service_name(value: str) -> str:
    is_name = value.isascii() and all(char.isalnum() or char in "_.-" for char in value)
    if not (is_name and 1 <= len(value) <= 60):
        raise ValueError("not a name of up to 60 letters, digits, '_', '.' and '-'")
    return value


# ---------------------------------------------------------------- the table


class Key:
    """A row: what a key of a spec means.

    takes: its value in words; "" for a key that needs none.  types: the types of specs that it
    is for, none for all.  default: in words, what holds without it.  parse: turns the text after
    ``=`` into a value, and raises ValueError.  meaning: one sentence.  needs: another key,
    without which it means nothing.
    """

    def __init__(
        self,
        name: str,
        takes: str,
        types: tuple[str, ...],
        default: str,
        parse: Callable[[str], object],
        meaning: str,
        needs: str = "",
    ) -> None:
        self.name = name
        self.takes = takes
        self.types = types
        self.default = default
        self.parse = parse
        self.meaning = meaning
        self.needs = needs


ALL: tuple[str, ...] = ()
SSH = "ssh", "vagrant_ssh"

# fmt: off
_ROWS = [
    # the types
    Key("popen", "", ("popen",), "", str, "A child process on this machine."),
    Key("ssh", "a host, after options of ssh", ("ssh",), "", split_place,
        "A host that ssh reaches."),
    Key("vagrant_ssh", "the name of a machine", ("vagrant_ssh",), "", str,
        "A machine of Vagrant, by its name."),
    Key("sudo", "the name of a user", ("sudo",), "", str, "Another user of this machine."),
    Key("docker", "a container, after options of docker exec", ("docker",), "", shell_split_path,
        "A running container of Docker."),
    Key("podman", "a container, after options of podman exec", ("podman",), "", shell_split_path,
        "A running container of Podman."),
    Key("kubectl", "a pod, after options of kubectl", ("kubectl",), "", shell_split_path,
        "A pod of Kubernetes."),
    Key("lxc", "an instance, after options of lxc exec", ("lxc",), "", shell_split_path,
        "A container or virtual machine of LXD."),
    Key("srun", "options of srun", ("srun",), "", shell_split_path, "A job step of Slurm."),
    Key("socket", "host:port, [IPv6 address]:port or unix:/path", ("socket",), "", _address,
        "A socket server."),
    Key("socketservice", "a name", ("socketservice",), "", _service_name,
        "A process of this user on this machine that stays, by its name; it is started if it does "
        "not run."),
    Key(JOINED, "host:port or [IPv6 address]:port", (JOINED,), "", _address,
        "The next worker that dials in at host:port or [IPv6 address]:port of this machine."),
    # options of some types
    Key("host", "a host", ("ssh",), "that of ssh=", _name,
        "The host, for an ssh without a value."),
    Key("user", "a name", ("ssh",), "ssh's own", _name, "The user there.", needs="host"),
    Key("port", "a whole number", ("ssh", "socketservice"), "ssh's own; a Unix socket", _port,
        "The port there; for a service, the port on the loopback interface where it listens.",
        needs="host"),
    Key("options", "options of ssh", ("ssh",), "none", shell_split_path,
        "Options of ssh, split into words as a shell would.", needs="host"),
    Key("ssh_config", "a path", SSH, "ssh's own", str,
        "A config file for ssh, in place of the user's."),
    Key("ssh_persist", "a whole number of seconds", SSH, "not shared", _some("seconds"),
        "Share one connection between the gateways of a host, and keep it for this many seconds "
        "after the last one has ended."),
    Key("share", "yes or no", SSH, "each logs in by itself", _is_yes,
        "yes: one login for all workers of a group at an address."),
    Key("ssh_compression", "yes or no", SSH, "as ssh's config says", _is_yes,
        "yes gives ssh -C, which speeds up a slow link and slows down a fast one."),
    Key("sudo_askpass", "a path", ("sudo",), "no password", str,
        "A program that asks for the password that sudo needs, and prints it."),
    Key("namespace", "the name of a namespace", ("kubectl",), "kubectl's own", str,
        "The pod's namespace."),
    Key("container", "the name of a container", ("kubectl",), "kubectl's own", str,
        "Which container of the pod."),
    Key("idle", "a number of seconds", ("socketservice",), "three hours", _seconds,
        "How long nobody may use a service before it ends, 0 for any time."),
    Key("one_at_a_time", "yes or no", ("socketservice",), "it runs at the same time", _is_yes,
        "yes: the code of all connections with this key runs one after the other."),
    Key("installvia", "the id of a gateway", ("socket",), "", str,
        "The id of a gateway of the group whose worker starts the socket server."),
    Key("key", "a path", ("socket", JOINED), "~/.execnet/key, if it exists", str,
        "The file with the server's key."),
    Key("certificate", "a path", (JOINED,), "made by openssl", str,
        "The file with the certificate by which joiners know this machine, and its private key."),
    Key("authentication", "none or required", ("socket",), "required if there is a key",
        _one_of("none", "required"),
        "required: only a server that has the key gets anything; none: every server does, and "
        "none proves anything."),
    Key("bound", "host:port or [IPv6 address]:port", ("socket",), "the address itself", _address,
        "Where the server listens, if a forwarded port leads to it."),
    Key("fingerprint", "64 hex digits", ("socket",),
        "any certificate, if the server has the key", _sha256,
        "The SHA-256 of the certificate that the server must have."),
    Key("forkserver", "", ("popen",), "not forked", str,
        "Fork the worker from a process that has loaded everything already."),
    Key("preload", "names of modules, joined by commas", ("popen",), "none", _modules,
        "Modules that the template imports.", needs="forkserver"),
    Key("buffers", "shared", ("popen",), "they go through the stream", str,
        "shared: send_bytes uses memory that the worker shares with this process."),
    # for all types
    Key("via", "the id of a gateway", ALL, "run here", str,
        "The id of a gateway of the group whose worker runs the command, or connects."),
    Key("id", "a name", ALL, "gw0, gw1, ...", str,
        "The gateway's id, which no other gateway of the group may have."),
    Key("python", "a command", ALL, "this one for popen, else python3 or python", shell_split_path,
        "The interpreter: a command that is split into words as a shell would."),
    Key("chdir", "a path", ALL, "where it starts", str,
        "The worker's working directory, which is made if it does not exist."),
    Key("nice", "a whole number", ALL, "0", int,
        "A whole number that is added to the worker's niceness."),
    Key("memory", "a number of bytes", ALL, "any number", _memory,
        "How much memory the worker, and each process that it starts, may have."),
    Key("cpus", "a number, or numbers of processors", ALL, "all", _cpus,
        "How many, or which, processors the worker and what it starts may use."),
    Key("env:NAME", "any text", ALL, "", str, "An environment variable; may be given for several."),
    Key("dont_write_bytecode", "", ALL, "they are written", str,
        "The interpreter gets -B, so that it writes no .pyc files."),
    Key("execmodel", "the name of an execution model", ALL, "the group's, thread", get_execmodel,
        "How the worker runs code: thread, main_thread_only, gevent or eventlet."),
    Key("connect_timeout", "a number of seconds", ALL, f"{CONNECT_TIMEOUT_S:g}", _seconds,
        "How long the worker may take to start and answer, 0 for any time."),
    Key("heartbeat", "a number of seconds", ALL,
        f"0 for popen without via, else {HEARTBEAT_S:g}", _seconds,
        "The time between two signs of life, 0 for none."),
    Key("dead_after", "a number of seconds", ALL, "four heartbeats", _seconds,
        "How long the other side may be silent before it is given up."),
    Key("resume", "a number of seconds", ALL, "it ends with its connection", _some("seconds"),
        "How long the worker waits for another connection when its network was lost."),
    Key("attach", "a name", ALL, "a worker that ends with its gateway", _service_name,
        "Use the service of this name over there, which stays, and start it if it does not run."),
    Key("grace", "a number of seconds", ALL, f"{WorkerGateway.grace_s:g}", _seconds,
        "How long code in the worker may go on once the worker was asked to end."),
    Key("kill", "group", ALL, "only the worker ends", _is_group,
        "group: processes that the worker has started are killed when it ends."),
    Key("window", "a number of bytes", ALL, "any number", _some("bytes"),
        "How many bytes may be on their way or unread in a channel before send waits."),
    Key("max_item", "a number of bytes", ALL, "1 GiB; any number for popen with this interpreter",
        _some("bytes"), "The bytes of unfinished items that the worker may send in pieces."),
    Key("compress", "yes or no", ALL, "no", _is_yes,
        "yes: items of 1 KiB and more are compressed if that makes them smaller."),
    Key("imports", "names of modules, joined by commas, or True", ALL, "none", _imports,
        "Modules of this program that the worker can import; True: those in the folder of the "
        "main program."),
    Key("output", "forward or inherit", ALL, "stdout: nowhere",
        _one_of("forward", "inherit"),
        "What becomes of what the worker writes to stdout and stderr."),
    Key("logging", "a level such as INFO, or its number", ALL, "none is sent", _level,
        "Log records of the worker from this level on come to the loggers here."),
]
# fmt: on
KEYS = {row.name: row for row in _ROWS}


# ---------------------------------------------------------------- a spec in values


class Settings:
    """A spec that was checked, its type and transport, and its numbers as such.

    There is one for each worker that is started, made before anything of it is.  Keys that are
    text stay in ``spec``, which gets an id and an execution model later if it has none.  Raises
    ValueError for a spec that can't work.
    """

    def __init__(self, spec: XSpec) -> None:
        self.spec = spec
        self.type = self._find_type()
        self.unknown: list[str] = []  # keys that mean nothing here, and may be a program's own
        self.transport: Transport | None = None  # None: a connection to a socket
        if self.type not in transports_table.CONNECTED:
            self.transport = transports_table.row_of(spec, self.type)
        values = self._read()
        self.is_over_network = self.type not in ("popen", "socketservice") or bool(spec.via)
        self.nice: int = values.get("nice", 0)
        self.memory_bytes: int | None = values.get("memory")
        self.cpus: int | tuple[int, ...] | None = values.get("cpus")  # how many, or which
        timeout_s: float = values.get("connect_timeout", CONNECT_TIMEOUT_S)
        self.connect_timeout_s: float | None = timeout_s or None  # None: for ever
        self.grace_s: float = values.get("grace", WorkerGateway.grace_s)
        usual_s = HEARTBEAT_S if self.is_over_network else 0.0
        self.heartbeat_s: float = values.get("heartbeat", usual_s)
        self.dead_after_s: float = values.get("dead_after", SILENT_BEATS * self.heartbeat_s)
        self.resume_s: float | None = values.get("resume")
        self.attach: str | None = values.get("attach")  # the name of a service over there
        self.window_bytes: int | None = values.get("window")
        self.max_item_bytes: int | None = values.get("max_item")
        if self.max_item_bytes is None and not self.has_source:
            self.max_item_bytes = MAX_ITEM
        self.compresses: bool = values.get("compress", False)
        self.output: str = values.get("output", "")  # or forward, or inherit
        self.logging_level: int | None = values.get("logging")
        self.imports: tuple[str, ...] | None = values.get("imports")  # (): see ``_imports``
        self.shares_buffers: bool = "buffers" in values
        self.kills_group: bool = values.get("kill", False)
        self.is_shared: bool = values.get("share", False)  # starts through a login of others, too
        self.is_login = False  # whether it is nothing but such a login
        # Makes the stream, in place of the transport.
        self.through: Callable[..., Endpoint] | None = None
        # None: an installed server chooses.
        self.address: Address | None = values.get("socket") or values.get(JOINED)
        self.certificate: str | None = values.get("certificate")
        self.idle_s: float | None = values.get("idle")
        self.is_one_at_a_time: bool = values.get("one_at_a_time", False)
        self.service_port: int | None = values.get("port")
        self.preload: tuple[str, ...] = values.get("preload", ())
        self._check_what_goes_together()

    @property
    def id(self) -> str:
        """The gateway's id; not there before a group has given it one."""
        return str(self.spec.id)

    @property
    def has_source(self) -> bool:
        """Whether the worker can import what the coordinator did."""
        if self.type == "socketservice" or self.attach:  # which may be of another version
            return False
        return not self.is_over_network and not self.spec.python

    @property
    def is_in_server(self) -> bool:
        """Whether the worker is run by a server that was there before."""
        return self.type == "socket" and not self.spec.installvia

    @property
    def is_watched(self) -> bool:
        """Whether a process beside the worker tells of its end, which no network shows."""
        if self.transport is None:
            return self.type == JOINED or self.resume_s is not None
        is_near = self.spec.popen or self.transport.is_local
        is_shared = self.is_shared and self.resume_s is None
        return not (is_near or is_shared or self.through or self.attach)

    def deadline(self) -> float | None:
        """Return when a worker that is started now must have answered; None for never."""
        timeout_s = self.connect_timeout_s
        return None if timeout_s is None else monotonic() + timeout_s

    # checks

    def _error(self, text: str) -> ValueError:
        return ValueError(f"spec {self.spec.shown()!r}{text}")

    def _find_type(self) -> str:
        types = transports_table.types_of(self.spec)
        if not types:
            known = transports_table.known_types()
            text = f"no gateway type in spec {self.spec.shown()!r}"
            from ._mistakes import place_meant

            guess = place_meant(self.spec.shown(), known)
            hint = f", did you mean {guess!r}? There" if guess else ", there"
            raise ValueError(f"{text}{hint} are: {', '.join(known)}")
        if len(types) > 1:
            raise self._error(f" has {len(types)} types: {', '.join(types)}")
        return types[0]

    def _read(self) -> dict[str, Any]:
        """Return the values of the keys that have one, in the table and in the spec."""
        values = {}
        for name, text in vars(self.spec).items():
            row = self._row_of(name)
            if text is None or text is False:  # it was taken away
                continue
            if row is None:
                if not name.startswith("_") and name != "env":
                    self.unknown.append(name)
                continue
            if name == "ssh" and ":" in str(text):
                from ._mistakes import host_meant

                if host_meant(str(text)):
                    self.unknown.append(name)
            if row.takes and self._is_missing(name, text):
                or_else = ", or installvia=" if name == "socket" else ""
                raise self._error(f": {name}= needs a value{or_else}: {row.takes}")
            if text is not True and row is KEYS.get(name):  # else it is another distribution's
                try:
                    values[name] = row.parse(text)
                except ValueError as exc:
                    raise self._error(f": {name}={text}: {exc}") from exc
        return values

    def slip(self, name: str, is_sure: bool = False) -> str:
        """Return what is wrong with a key of ``unknown``, and what may be meant by it.

        is_sure: whether it must be very much like a key that is known.  "" if it is like none.
        """
        from ._mistakes import LIKELY, SURE, host_meant, meant

        if name == "ssh":
            guess = host_meant(str(self.spec.ssh))
            return f"ssh={self.spec.ssh}: did you mean {guess!r}?" if guess else ""
        options = self.transport.options if self.transport is not None else ()
        guess = meant(
            name, [key for key in [*KEYS, *options] if key != name], SURE if is_sure else LIKELY
        )
        return f"{name!r} is no key: did you mean {guess!r}?" if guess else ""

    def complaint(self, name: str) -> str:
        """Return why a key of ``unknown`` can't be what anybody wants."""
        row = KEYS.get(name)
        if row is not None and row.needs:
            return f"{name}= needs {row.needs}"
        if row is not None:
            return f"{name}= means nothing with {self.type}="
        return f"there is no key {name!r}"

    def _row_of(self, name: str) -> Key | None:
        """Return what a key means in this spec; None for one that is a program's own."""
        row = KEYS.get(name)
        if name in PLACE and self.type in OLD_TYPES and self.spec.ssh is not True:
            return None  # ssh= says all of it, and such a key is a program's own
        is_of_service = name in OF_SERVICE and vars(self.spec).get("attach") is not None
        if row is not None and (not row.types or self.type in row.types or is_of_service):
            needs = row.needs if self.type in OLD_TYPES else ""
            is_used = not needs or vars(self.spec).get(needs) is not None
            return row if is_used else None
        if name == self.type or (self.transport is not None and name in self.transport.options):
            return Key(name, "as its distribution says", (), "", str, "")
        if row is not None and self.type not in OLD_TYPES and vars(self.spec)[name] is not None:
            raise self._error(f": {name}= is for {row.types[0]}=, not {self.type}=")
        return None

    def _is_missing(self, name: str, text: str | bool) -> bool:
        """Whether a key has no value; that of the type may need none."""
        if text is True and name == self.type:
            if self.type == "ssh":
                return not isinstance(self.spec.host, str)
            if self.transport is None:
                return self.type in ("socket", JOINED) and not self.spec.installvia
            return not self.transport.may_be_bare
        return text is True or text == ""

    def _check_what_goes_together(self) -> None:
        if self.spec.forkserver is not None:
            self._check_forkserver()
        if self.output == "inherit" and not transports_table.can_inherit(self.spec):
            raise self._error(": output=inherit is for popen on this machine only")
        if self.resume_s is not None:
            self._check_resume()
        if self.compresses and self._is_here() and not self.spec.via:
            raise self._error(f": compress= is for connections over a network, not {self.type}=")
        if self.shares_buffers or self.spec.buffers == "shared":
            self._check_buffers()
        if self.type == "socket":
            self._check_proof()
        if self.type == "socketservice":
            self._check_service()
        if self.type == JOINED:
            self._check_joined()
        if self.attach is not None:
            self._check_attach()

    def _is_here(self) -> bool:
        """Whether it is on the machine where it is started."""
        return self.type == "socketservice" or bool(self.transport and self.transport.is_local)

    def _check_resume(self) -> None:
        reason = ""
        if self.attach is not None:
            reason = "not attach=, which makes a new connection to a service that stays anyway"
        elif self._is_here():
            hint = f", so it may be for {self.spec.via} itself" if self.spec.via else ""
            reason = f"not {self.type}=, which has no network in between{hint}"
        elif self.type == "srun":
            reason = "not srun=: Slurm ends a job step with its connection, and all processes of it"
        elif sys.platform == "win32":
            reason = "not on Windows, which passes no connection from process to process"
        elif self.spec.execmodel in ("gevent", "eventlet"):
            reason = "not with greenlets: a thread sees to the connection"
        if reason:
            raise self._error(f": resume= is for connections over a network, {reason}")

    def _check_buffers(self) -> None:
        if (self.spec.buffers, self.type, self.spec.via) != ("shared", "popen", None):
            raise self._error(": there is only buffers=shared, for popen on this machine")
        if not hasattr(os, "memfd_create"):
            raise self._error(f": {sys.platform} has no memfd_create, which buffers=shared needs")

    def _check_proof(self) -> None:
        given = [key for key in PROOF if vars(self.spec).get(key) is not None]
        reason = ""
        if given and self.spec.installvia:
            reason = "an installed server has a key of its own"
        elif isinstance(self.address, str) and set(given) - {"authentication"}:
            reason = "a Unix socket is known by its owner"
        elif self.spec.authentication == "none" and len(given) > 1:
            reason = "authentication=none asks for no proof"
        elif str(self.spec.bound).startswith("unix:"):
            reason = "a Unix socket is not forwarded to"
        if reason:
            words = ", ".join(f"{key}=" for key in given if key != "authentication")
            raise self._error(f": {words or 'authentication='}: {reason}")

    def _check_service(self) -> None:
        if self.spec.via:
            raise self._error(": a service is used on this machine; attach= is for one elsewhere")
        self._check_for_one()
        if sys.platform == "win32":
            raise self._error(": there are no services on Windows, which has no flock")

    def _check_for_one(self) -> None:
        spec = vars(self.spec)
        given = [key for key in PROCESS_KEYS if spec.get(key) is not None]
        given += ["env:"] if self.spec.env else []
        given += ["execmodel"] if spec.get("execmodel") not in (None, "thread") else []
        if given or self.output == "inherit":
            words = ", ".join(key if key == "env:" else f"{key}=" for key in given or ["output"])
            raise self._error(f": {words} would be for the whole service, which others use as well")

    def _check_attach(self) -> None:
        reason = ""
        if self.type == "socketservice":
            reason = "socketservice= names a service already"
        elif self.transport is None:
            reason = f"not {self.type}=: no command is run there that could find a service"
        elif self.type == "srun":
            reason = "not srun=, which ends all processes of a job step with it"
        elif self.spec.forkserver is not None:
            reason = "not forkserver, whose workers are forked here"
        if reason:
            raise self._error(f": attach= is for types that run a command, {reason}")
        self._check_for_one()

    def _check_forkserver(self) -> None:
        if self.spec.forkserver is not True:
            raise self._error(": forkserver has no value, preload= names what it imports")
        if self.is_over_network:
            raise self._error(": forkserver is for popen on this machine only")
        if not hasattr(os, "fork"):
            raise self._error(f": there is no forkserver on {sys.platform}: it has no fork")

    def _check_joined(self) -> None:
        """A worker that dials in is there already, and is only told how to be one."""
        for key in PRESENT:
            if vars(self.spec).get(key) is not None:
                raise self._error(f": {key}= can't be, as nothing starts a worker that dials in")
        if isinstance(self.address, str):
            raise self._error(": workers dial in at host:port")
