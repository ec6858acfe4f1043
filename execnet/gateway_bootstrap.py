"""A stream and a spec become a gateway: the first line, the marker, the hello.

Start at ``bootstrap``.  What the far side does with the line is ``start_worker`` in
``gateway_base``.
"""

from __future__ import annotations

import os

from ._clock import monotonic
from ._transports import table as transports_table
from .gateway import Gateway
from .gateway_base import CODECS, GatewayState, get_execmodel
from .gateway_io import BootstrapError, shell_split_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .xspec import XSpec

CONNECT_TIMEOUT_S = 60.0

# Run by the worker's interpreter.  It imports from where the coordinator has it, and leaves
# ``sys.path`` as it was.
_BY_IMPORT = """\
def boot(options):
    import sys
    path, sys.path = sys.path, [{folder!r}] + [entry for entry in sys.path if entry]
    from execnet.gateway_base import start_worker
    sys.path = path
    start_worker(**options)
boot({options!r})
"""


def check_spec(spec: XSpec) -> None:
    """Raise ValueError for a spec that can't work, before anything is started for it."""
    _check_type(spec)
    for key in _NEED_A_VALUE:
        value = getattr(spec, key)
        if value is True or value == "":
            raise ValueError(f"spec {str(spec)!r}: {key}= needs a value")
    for key, kind in _VALUES:
        _check_value(spec, key, kind)
    if spec.forkserver is not None:
        from ._forkserver import stream as forkserver_stream

        forkserver_stream.check_spec(spec)
    if spec.output == "inherit" and not transports_table.can_inherit(spec):
        raise ValueError(f"spec {str(spec)!r}: output=inherit is for popen on this machine only")


def _check_type(spec: XSpec) -> None:
    """Raise ValueError unless a spec has one type, with a value, and options of that type."""
    types = transports_table.types_of(spec)
    if not types:
        known = ", ".join(transports_table.known_types())
        raise ValueError(f"no gateway type in spec {str(spec)!r}, there are: {known}")
    if len(types) > 1:
        raise ValueError(f"spec {str(spec)!r} has {len(types)} types: {', '.join(types)}")
    if types == ["socket"]:
        if spec.socket == "" or (spec.socket is True and not spec.installvia):
            raise ValueError(f"spec {str(spec)!r}: socket= needs a value, or installvia=")
        return
    row = transports_table.transport_of(spec)
    value = getattr(spec, row.key)
    if value == "" or (value is True and not row.may_be_bare):
        raise ValueError(f"spec {str(spec)!r}: {row.key}= needs a value")
    _check_options(spec, row)


def _check_options(spec: XSpec, row: transports_table.Transport) -> None:
    for key in row.options:
        if getattr(spec, key) is True or getattr(spec, key) == "":
            raise ValueError(f"spec {str(spec)!r}: {key}= needs a value")
    if "share" in row.options:  # else it may be a program's own
        _check_value(spec, "share", _yes_or_no)
    for other in transports_table.TRANSPORTS.values():
        for key in set(other.options) - set(row.options):
            if getattr(spec, key) is not None and row.key not in transports_table.OLD_TYPES:
                raise ValueError(f"spec {str(spec)!r}: {key}= is for {other.key}=, not {row.key}=")


def _check_value(spec: XSpec, key: str, kind: Any) -> None:
    value = getattr(spec, key)
    if value is not None and value is not True:  # some keys may be bare
        try:
            kind(value)
        except ValueError as exc:
            raise ValueError(f"spec {str(spec)!r}: {key}={value}: {exc}") from exc


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("not a number of seconds")
    return seconds


def _lifetime(value: str) -> int:
    seconds = int(value)
    if seconds <= 0:
        raise ValueError("not a number of seconds above 0")
    return seconds


def _yes_or_no(value: str) -> None:
    if value not in ("yes", "no"):
        raise ValueError("neither yes nor no")


def _window(value: str) -> None:
    if int(value) < 1:
        raise ValueError("not a number of bytes above 0")


def _group_only(value: str) -> None:
    if value != "group":
        raise ValueError("there is only kill=group")
    if not hasattr(os, "killpg"):
        raise ValueError("there are no process groups on this system")


def _output(value: str) -> None:
    if value not in ("forward", "inherit"):
        raise ValueError("neither forward nor inherit")


_NEED_A_VALUE = (
    "id",
    "python",
    "chdir",
    "execmodel",
    "nice",
    "connect_timeout",
    "grace",
    "kill",
    "heartbeat",
    "dead_after",
    "window",
    "via",
    "output",
)
_VALUES = [
    ("python", shell_split_path),
    ("execmodel", get_execmodel),
    ("nice", int),
    ("connect_timeout", _seconds),
    ("grace", _seconds),
    ("kill", _group_only),
    ("heartbeat", _seconds),
    ("dead_after", _seconds),
    ("window", _window),
    ("output", _output),
    ("ssh", transports_table.split_place),
    ("ssh_persist", _lifetime),
    ("ssh_compression", _yes_or_no),
    *((key, shell_split_path) for key in ("docker", "podman", "kubectl", "lxc", "srun")),
]


def worker_options(spec: XSpec, marker: bytes, stdout: int | None = None) -> dict[str, Any]:
    """Return the arguments of the worker's ``start_worker``.

    stdout: the number of a descriptor that it has, for its own stdout.
    """
    options: dict[str, Any] = {
        "id": f"{spec.id}-worker",
        "marker": marker,
        "execmodel": spec.execmodel,
        "codecs": CODECS,
        # As bytes, since text in Python 2 and in a C locale of old means something else.
        "chdir": spec.chdir and os.fsencode(spec.chdir),
        "nice": int(spec.nice or 0),
        "grace": None if spec.grace is None else float(spec.grace),
        "kill": spec.kill,
        "env": {os.fsencode(name): os.fsencode(value) for name, value in spec.env.items()},
    }
    if stdout is not None:
        options["stdout"] = stdout
    if spec.popen:  # elsewhere stderr is captured, or the server's own
        options["faults"] = True if has_source(spec) else _lowered("_ends.far_faults")
    elif not (spec.socket or spec.share == "yes" or transports_table.transport_of(spec).is_local):
        options["watcher"] = _lowered("_ends.far_watcher")  # no end shows through a network
    return options


def _lowered(name: str) -> str:
    from ._ship.parts import lowered  # a worker that imports what it needs does without

    return lowered(name)


def first_line(spec: XSpec, marker: bytes, stdout: int | None = None) -> bytes:
    """Return the line that makes an interpreter a worker; ``stdout`` as above."""
    options = worker_options(spec, marker, stdout)
    if has_source(spec):
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # it may be a zip
        code = _BY_IMPORT.format(folder=folder, options=options)
    else:
        from ._ship.shipment import boot_code

        code = boot_code(options, in_server=bool(spec.socket and not spec.installvia))
    return (ascii(code) + "\n").encode("ascii")


def has_source(spec: XSpec) -> bool:
    """Whether the worker of a spec can import what the coordinator did."""
    return bool(spec.popen and not spec.python and not spec.via)


def start(io: Any, spec: XSpec) -> Gateway:
    """Send the first line and return the gateway at once; ``wait_ready`` comes next."""
    marker = b"\0execnet\0" + os.urandom(8).hex().encode() + b"\n"
    line, shipment = b"", None
    if hasattr(io, "boot"):  # what it starts has the source already
        io.boot(worker_options(spec, marker))
    else:
        line = first_line(spec, marker, getattr(io, "stdout_fd", None))
        if not has_source(spec):
            from ._ship.shipment import shipment_for

            shipment = shipment_for(str(spec.execmodel))
    try:
        gateway = Gateway(io, spec, marker, shipment)
    except RuntimeError as exc:
        raise BootstrapError(f"{spec.id} could not be started: {exc}") from exc
    if line:
        gateway._writer.post(line, b"")
        if gateway._writer.no_thread:
            abandon(gateway)
            text = f"{spec.id} could not be started: no thread could be started for its first line"
            raise BootstrapError(f"{text}: {gateway._writer.no_thread}")
    return gateway


def wait_ready(gateway: Gateway, deadline: float | None) -> None:
    """Wait until the worker has said hello.

    deadline: by ``time.monotonic()``; None waits for ever.  Raises ``BootstrapError`` if it
    did not, with nothing left running.
    """
    try:
        gateway._hello.wait(None if deadline is None else max(0.0, deadline - monotonic()))
        if gateway._state == GatewayState.LIVE and "error" not in gateway._hello_info:
            gateway._io.worker_pid = gateway._hello_info.get("pid")
            return
    except BaseException:
        abandon(gateway)
        raise
    in_time, status = gateway._hello.is_set(), gateway.exitcode  # before we end it
    is_connecting = not in_time and _is_connecting(gateway)
    abandon(gateway)
    raise _failure(gateway, in_time, status, is_connecting)


def _is_connecting(gateway: Gateway) -> bool:
    try:
        from ._ends.failure import is_connecting
    except (ImportError, OSError):  # no descriptor is left to read it by
        return False
    popen = getattr(gateway._io, "popen", None)
    return bool(gateway.spec.ssh and popen and is_connecting(popen.pid))


def _failure(
    gateway: Gateway, in_time: bool, status: int | None, is_connecting: bool
) -> BootstrapError:
    try:
        from ._ends.failure import failure_of
    except (ImportError, OSError):
        args = getattr(gateway._io, "args", [])
        return BootstrapError(f"{gateway.id} could not be started: {gateway._error}", args, status)
    return failure_of(gateway, in_time, status, is_connecting, timeout_of(gateway.spec))


def abandon(gateway: Gateway) -> None:
    """Kill a worker that was not got ready, and wait until it is gone."""
    gateway._writer.fail("the gateway was abandoned")
    gateway._io.kill()
    gateway._io.wait()
    gateway.join()


def deadline_of(spec: XSpec) -> float | None:
    """Return when a worker that is started now must have answered; None for never."""
    timeout_s = timeout_of(spec)
    return None if timeout_s is None else monotonic() + timeout_s


def timeout_of(spec: XSpec) -> float | None:
    """Return how many seconds a worker has to answer; None for ever."""
    if spec.connect_timeout is None:
        return CONNECT_TIMEOUT_S
    return float(spec.connect_timeout) or None


def carriers_first(specs: list[XSpec]) -> list[XSpec]:
    """Return the specs, those that others of them go via, or are installed via, in front."""
    by_id = {spec.id: spec for spec in specs}

    def depth(spec: XSpec) -> int:
        carriers = [by_id[id] for id in (spec.via, spec.installvia) if id in by_id]
        seen = 0
        while carriers and seen <= len(specs):  # more: they go in a circle
            seen += 1
            below = [(carrier.via, carrier.installvia) for carrier in carriers]
            carriers = [by_id[id] for ids in below for id in ids if id in by_id]
        return seen

    return sorted(specs, key=depth)
