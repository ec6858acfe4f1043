"""A stream and a spec become a gateway: the first line, the marker, the hello.

Start at ``bootstrap``.  What the far side does with the line is ``start_worker`` in
``gateway_base``.
"""

from __future__ import annotations

import os
import time

from .gateway import Gateway
from .gateway_base import CODECS, GatewayState, get_execmodel
from .gateway_io import BootstrapError, HostNotFound, command_text, shell_split_path

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
    if not (spec.popen or spec.socket):
        raise ValueError(f"no gateway type in spec {str(spec)!r}, there are: popen, socket")
    for key in "id", "python", "chdir", "execmodel", "nice", "connect_timeout":
        value = getattr(spec, key)
        if value is True or value == "":
            raise ValueError(f"spec {str(spec)!r}: {key}= needs a value")
    for key, kind in ("python", shell_split_path), ("execmodel", get_execmodel), ("nice", int):
        _check_value(spec, key, kind)
    _check_value(spec, "connect_timeout", _seconds)


def _check_value(spec: XSpec, key: str, kind: Any) -> None:
    value = getattr(spec, key)
    if value is not None:
        try:
            kind(value)
        except ValueError as exc:
            raise ValueError(f"spec {str(spec)!r}: {key}={value}: {exc}") from exc


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("not a number of seconds")
    return seconds


def first_line(spec: XSpec, marker: bytes) -> bytes:
    """Return the line that makes an interpreter a worker."""
    options = {
        "id": f"{spec.id}-worker",
        "marker": marker,
        "execmodel": spec.execmodel,
        "codecs": CODECS,
        "chdir": spec.chdir,
        "nice": int(spec.nice or 0),
        "env": spec.env,
    }
    if has_source(spec):
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = _BY_IMPORT.format(folder=folder, options=options)
    else:
        from ._shipment import boot_code

        code = boot_code(options)
    return (ascii(code) + "\n").encode("ascii")


def has_source(spec: XSpec) -> bool:
    """Whether the worker of a spec can import what the coordinator did."""
    return bool(spec.popen and not spec.python and not spec.via)


def start(io: Any, spec: XSpec) -> Gateway:
    """Send the first line and return the gateway at once; ``wait_ready`` comes next."""
    marker = b"\0execnet\0" + os.urandom(8).hex().encode() + b"\n"
    line = first_line(spec, marker)
    shipment = None
    if not has_source(spec):
        from ._shipment import shipment_for

        shipment = shipment_for(str(spec.execmodel))
    try:
        gateway = Gateway(io, spec, marker, shipment)
    except RuntimeError as exc:
        raise BootstrapError(f"{spec.id} could not be started: {exc}") from exc
    gateway._writer.post(line, b"")
    return gateway


def wait_ready(gateway: Gateway, deadline: float | None) -> None:
    """Wait until the worker has said hello.

    deadline: by ``time.monotonic()``; None waits for ever.  Raises ``BootstrapError`` if it
    did not, with nothing left running.
    """
    try:
        gateway._hello.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if gateway._state == GatewayState.LIVE:
            return
        reason = _reason(gateway)
    except BaseException:
        abandon(gateway)
        raise
    abandon(gateway)
    raise (HostNotFound if gateway.exitcode == 255 and gateway.spec.ssh else BootstrapError)(reason)


def _reason(gateway: Gateway) -> str:
    command = command_text(getattr(gateway._io, "args", []))
    text = f"{gateway.id} could not be started by {command or gateway._io!r}: "
    if "error" in gateway._hello_info:
        text += f"the worker could not be prepared:\n{gateway._hello_info['error']}"
    elif not gateway._hello.is_set():
        text += "no answer in time"
    else:
        text += str(gateway._error)
    if gateway.noise:
        text += f"\nit said: {gateway.noise[-2000:].decode('utf-8', 'replace')}"
    return text


def abandon(gateway: Gateway) -> None:
    """Kill a worker that was not got ready, and wait until it is gone."""
    gateway._writer.fail("the gateway was abandoned")
    gateway._io.kill()
    gateway._io.wait()
    gateway.join()


def deadline_of(spec: XSpec) -> float | None:
    """Return when a worker that is started now must have answered; None for never."""
    timeout = CONNECT_TIMEOUT_S if spec.connect_timeout is None else float(spec.connect_timeout)
    return time.monotonic() + timeout if timeout else None
