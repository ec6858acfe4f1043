"""Turns a spec into a stream and a gateway: the first line, the marker, the hello.

Start at ``start``.  On the far side the line calls ``start_worker`` in ``_features.start``.
"""

from __future__ import annotations

import os

from . import gateway_io
from ._clock import monotonic
from ._endpoint import endpoint_of
from ._ends.handshake import Handshake
from ._specs import Settings
from .gateway import Gateway
from .gateway_base import CODECS
from .gateway_io import BootstrapError
from .gateway_io import HostNotFound as HostNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._endpoint import Endpoint
    from ._ends.handshake import Sent
    from .gateway_base import ExecModel
    from .xspec import XSpec

    Through = Callable[[Settings, ExecModel], Endpoint]  # makes the stream to a worker

# Run by the worker's interpreter.  It imports execnet from the coordinator's place, and leaves
# ``sys.path`` as it was.
_BY_IMPORT = """\
def boot(options):
    import sys
    path, sys.path = sys.path, [{folder!r}] + [entry for entry in sys.path if entry]
    from execnet._features.start import start_worker
    sys.path = path
    start_worker(**options)
boot({options!r})
"""


def worker_options(
    settings: Settings, marker: bytes, stdout: int | None = None
) -> dict[str, object]:
    """Return the arguments of the worker's ``start_worker``.

    stdout: the number of a descriptor that it has, for its own stdout.
    """
    spec = settings.spec
    options: dict[str, object] = {
        "id": f"{spec.id}-worker",
        "marker": marker,
        "execmodel": spec.execmodel,
        "codecs": CODECS,
        # As bytes, since text means something else in Python 2 and in old C locales.
        "chdir": spec.chdir and os.fsencode(spec.chdir),
        "nice": settings.nice,
        "grace": settings.grace_s,
        "kill": spec.kill,
        "env": {os.fsencode(name): os.fsencode(value) for name, value in spec.env.items()},
    }
    if settings.memory_bytes is not None or settings.cpus is not None:
        from ._ends.limits import options_of

        options["limits"] = options_of(settings, _lowered)
    if stdout is not None:
        options["stdout"] = stdout
    if settings.attach is not None:
        return options  # nobody beside a service tells of its end
    if spec.popen:  # otherwise stderr is captured, or belongs to the server
        options["faults"] = True
    elif settings.is_watched:
        resumes = settings.resume_s is not None
        watcher = _lowered("_resume.far_fork" if resumes else "_ends.far_watcher")
        # What starts it, a server or a shared login, ends it with its first connection.
        leaves = settings.type == "socket" or settings.is_shared
        options["watcher"] = watcher + ("\nIN_SERVER = True\n" if leaves else "")
    if settings.type == "sudo":
        options["terminal"] = _lowered("_ends.far_terminal")
    return options


def _lowered(name: str) -> str:
    from ._ship.parts import lowered  # a worker that imports our source does not need it

    return lowered(name)


def first_line(settings: Settings, marker: bytes, stdout: int | None = None) -> bytes:
    """Return the line that turns an interpreter into a worker; ``stdout`` as above."""
    options = worker_options(settings, marker, stdout)
    if settings.attach is not None:
        from ._service.attach import first_line as line_to_attach

        return line_to_attach(settings, worker_options(settings, marker))
    if settings.has_source:
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # it may be a zip
        code = _BY_IMPORT.format(folder=folder, options=options)
    else:
        from ._ship.shipment import boot_code

        resumes = settings.resume_s is not None
        code = boot_code(options, in_server=settings.is_in_server, resumes=resumes)
    return (ascii(code) + "\n").encode("ascii")


def start(
    settings: Settings,
    execmodel: ExecModel,
    find_gateway: Callable[[str], Gateway] | None = None,
    through: Through | None = None,
    kind: Callable[..., Gateway] = Gateway,
) -> Gateway:
    """Start what a spec says; return its gateway at once; call ``wait_ready`` next.

    find_gateway: as for ``gateway_io.create_io``.  through: makes the stream instead of the spec's
    transport.  kind: makes the gateway over it.  Raises the errors of the stream, and
    ``BootstrapError``; then nothing is left.
    """
    through = through or settings.through
    if through is None:
        io = gateway_io.create_io(settings.spec, execmodel, find_gateway, settings)
    else:
        io = through(settings, execmodel)
    return start_over(io, settings, kind)


def start_over(io: Endpoint, settings: Settings, kind: Callable[..., Gateway] = Gateway) -> Gateway:
    """Turn a stream's other end into a worker; like ``start``, which makes the stream."""
    gateway = None
    try:
        marker = b"\0execnet\0" + os.urandom(8).hex().encode() + b"\n"
        line, shipment = b"", None
        if io.needs_boot:  # what it starts already has the source
            io.boot(worker_options(settings, marker))
        else:
            line, shipment = first_line(settings, marker, io.stdout_fd), _shipment_for(settings)
        handshake = Handshake(io.execmodel, marker, shipment)
        if kind is Gateway and (io.tells_arrivals or io.shared_fd() >= 0):
            from ._readers import Gateway as kind
        gateway = kind(io, settings.spec, handshake, settings)
        if line:
            gateway.post_first_line(line)
        return gateway
    except BaseException as exc:
        if gateway is None:
            io.discard()
        else:
            abandon(gateway)
        if isinstance(exc, RuntimeError):  # no more threads can be started
            raise BootstrapError(f"{settings.id} could not be started: {exc}") from exc
        raise


def bootstrap(io: Any, spec: XSpec) -> Gateway:
    """Turn the interpreter at the other end of a stream into a worker; return its gateway.

    io: from ``gateway_io.create_io``, or your own, to what ``popen_bootstrapline`` runs in.  Its
    execution model is the spec's if that has none.  You end the gateway: it is in no group.
    Raises ``BootstrapError`` if the worker does not answer, and then leaves nothing running.
    """
    if spec.execmodel is None:
        spec.execmodel = io.execmodel.backend
    settings = Settings(spec)
    deadline = settings.deadline()
    gateway = start_over(endpoint_of(io), settings)
    wait_ready(gateway, deadline)
    return gateway


def _shipment_for(settings: Settings) -> Sent | None:
    """Return the source for after the hello, for a worker that has none."""
    if settings.has_source:
        return None
    if settings.attach is not None:
        from ._service.attach import Source

        return Source(settings)
    from ._ship.shipment import shipment_for

    return shipment_for(str(settings.spec.execmodel))


def wait_ready(gateway: Gateway, deadline: float | None) -> None:
    """Wait until the worker has said hello.

    deadline: as ``time.monotonic()``; None waits for ever.  Raises ``BootstrapError`` if it did
    not, and leaves nothing running.
    """
    io, handshake = gateway.endpoint, gateway.handshake
    try:
        handshake.answered.wait(None if deadline is None else max(0.0, deadline - monotonic()))
        if gateway.is_live and "error" not in handshake.hello:
            io.worker_pid = handshake.hello.get("pid")
            return
    except BaseException:
        abandon(gateway)
        raise
    in_time, status = handshake.answered.is_set(), gateway.exitcode  # before we end it
    is_connecting = not in_time and io.is_connecting()
    abandon(gateway)
    try:
        from ._ends.failure import failure_of
    except (ImportError, OSError):  # no descriptor is left to read it with
        text = f"{gateway.id} could not be started: {gateway.end_error}"
        raise BootstrapError(text, io.args, status) from None
    facts = gateway.end_error, in_time, status, is_connecting
    raise failure_of(io, gateway.settings, handshake, *facts)


def abandon(*gateways: Gateway) -> None:
    """Kill workers, all at once, and wait until they are gone, with their streams and threads."""
    streams = [gateway.endpoint for gateway in gateways]
    for gateway, io in zip(gateways, streams, strict=True):
        gateway.writer.fail("the gateway was abandoned")
        io.kill()
    for gateway, io in zip(gateways, streams, strict=True):
        io.wait()
        gateway.await_receiver()  # which closes the stream


def carriers_first(specs: list[Settings]) -> list[Settings]:
    """Return the specs, each one after those that it goes via, or is installed via."""
    by_id = {settings.id: settings.spec for settings in specs}

    def depth(settings: Settings) -> int:
        spec = settings.spec
        carriers = [by_id[id] for id in (spec.via, spec.installvia) if id in by_id]
        seen = 0
        while carriers and seen <= len(specs):  # more: they form a circle
            seen += 1
            below = [(carrier.via, carrier.installvia) for carrier in carriers]
            carriers = [by_id[id] for ids in below for id in ids if id in by_id]
        return seen

    return sorted(specs, key=depth)
