"""A stream and a spec become a gateway: the first line, the marker, the hello.

Start at ``bootstrap``.  What the far side does with the line is ``start_worker`` in
``gateway_base``.
"""

from __future__ import annotations

import os

from ._clock import monotonic
from .gateway import Gateway
from .gateway_base import CODECS, GatewayState
from .gateway_io import BootstrapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._specs import Settings

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


def worker_options(settings: Settings, marker: bytes, stdout: int | None = None) -> dict[str, Any]:
    """Return the arguments of the worker's ``start_worker``.

    stdout: the number of a descriptor that it has, for its own stdout.
    """
    spec, transport = settings.spec, settings.transport
    options: dict[str, Any] = {
        "id": f"{spec.id}-worker",
        "marker": marker,
        "execmodel": spec.execmodel,
        "codecs": CODECS,
        # As bytes, since text in Python 2 and in a C locale of old means something else.
        "chdir": spec.chdir and os.fsencode(spec.chdir),
        "nice": settings.nice,
        "grace": settings.grace_s,
        "kill": spec.kill,
        "env": {os.fsencode(name): os.fsencode(value) for name, value in spec.env.items()},
    }
    if stdout is not None:
        options["stdout"] = stdout
    if spec.popen:  # elsewhere stderr is captured, or the server's own
        options["faults"] = True if settings.has_source else _lowered("_ends.far_faults")
    elif transport is not None and not (transport.is_local or settings.is_shared):
        options["watcher"] = _lowered("_ends.far_watcher")  # no end shows through a network
    return options


def _lowered(name: str) -> str:
    from ._ship.parts import lowered  # a worker that imports what it needs does without

    return lowered(name)


def first_line(settings: Settings, marker: bytes, stdout: int | None = None) -> bytes:
    """Return the line that makes an interpreter a worker; ``stdout`` as above."""
    options = worker_options(settings, marker, stdout)
    if settings.has_source:
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # it may be a zip
        code = _BY_IMPORT.format(folder=folder, options=options)
    else:
        from ._ship.shipment import boot_code

        code = boot_code(options, in_server=settings.is_in_server)
    return (ascii(code) + "\n").encode("ascii")


def start(io: Any, settings: Settings) -> Gateway:
    """Send the first line and return the gateway at once; ``wait_ready`` comes next."""
    spec = settings.spec
    marker = b"\0execnet\0" + os.urandom(8).hex().encode() + b"\n"
    line, shipment = b"", None
    if io.needs_boot:  # what it starts has the source already
        io.boot(worker_options(settings, marker))
    else:
        line = first_line(settings, marker, io.stdout_fd)
        if not settings.has_source:
            from ._ship.shipment import shipment_for

            shipment = shipment_for(str(spec.execmodel))
    try:
        gateway = Gateway(io, spec, marker, shipment, settings)
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
    is_connecting = not in_time and gateway._io.is_connecting()
    abandon(gateway)
    raise _failure(gateway, in_time, status, is_connecting)


def _failure(
    gateway: Gateway, in_time: bool, status: int | None, is_connecting: bool
) -> BootstrapError:
    try:
        from ._ends.failure import failure_of
    except (ImportError, OSError):
        text = f"{gateway.id} could not be started: {gateway._error}"
        return BootstrapError(text, gateway._io.args, status)
    return failure_of(gateway, in_time, status, is_connecting)


def abandon(gateway: Gateway) -> None:
    """Kill a worker that was not got ready, and wait until it is gone."""
    gateway._writer.fail("the gateway was abandoned")
    gateway._io.kill()
    gateway._io.wait()
    gateway.join()


def carriers_first(specs: list[Settings]) -> list[Settings]:
    """Return the specs, those that others of them go via, or are installed via, in front."""
    by_id = {settings.id: settings.spec for settings in specs}

    def depth(settings: Settings) -> int:
        spec = settings.spec
        carriers = [by_id[id] for id in (spec.via, spec.installvia) if id in by_id]
        seen = 0
        while carriers and seen <= len(specs):  # more: they go in a circle
            seen += 1
            below = [(carrier.via, carrier.installvia) for carrier in carriers]
            carriers = [by_id[id] for ids in below for id in ids if id in by_id]
        return seen

    return sorted(specs, key=depth)
