"""A worker in an environment that is there, in one round trip and an interpreter's start.

The far side looks the environment up and starts its interpreter in the same step, and the worker
is made of what an earlier one has kept over there, compiled.  Start at ``start``.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import lru_cache
from typing import Any

from .._errors import BootstrapError
from .._ship import parts, shipment
from .._specs import CONNECT_TIMEOUT_S
from .._transports.table import command
from .._via.stream import ViaIO
from ..gateway_base import RemoteError, TimeoutError
from ..xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import Channel, ExecModel

ANSWER_S = 10.0  # how long after the worker the answer may come that was sent before it

# It comes in place of the usual first line: c is the file of the core, d the environment's folder.
_LINE = """\
def boot(f,o):
 import sys,marshal
 c,d=sys.argv[1:]
 del sys.argv[1:]
 def n(n):
  m=sys.modules[n]=type(sys)(n)
  vars(m).pop("__spec__",0)
  return m
 n("_execnet").__path__=[]
 m=n("_execnet.gateway_base")
 m.__file__=f
 with open(c,"rb") as i:s=marshal.load(i)
 exec(s,m.__dict__)
 m.start_worker(chdir=d,**o)
boot({file_name!r},{options!r})
"""


class EnvironmentIO(ViaIO):
    """The stream to such a worker; ``told`` is where the far side says what there is."""

    needs_boot = True

    def __init__(self, gateway: Gateway, wanted: dict[str, Any], execmodel: ExecModel) -> None:
        self.told: Channel = gateway.newchannel()
        args = command(XSpec("popen//python=python"))
        request = {
            **wanted, "told": self.told, "args": list(args), "address": None,
            "stderr": args.captures_stderr, "timeout": None, "leads_group": False,
        }  # fmt: skip
        super().__init__(gateway, request, list(args), gateway.remoteaddress, execmodel)

    def _start(self, request: dict[str, object], code: Channel | None, far: str) -> None:
        via = self._via
        self._news.setcallback(self._on_news, endmarker=None)
        self._code = via.remote_exec(parts.LOADER)
        self._code.reconfigure(py2str_as_py3str=False)
        sent = [] if via.knows_via else parts.sent_parts(via, "_via.far")
        self._code.send(sent + parts.sent_parts(via, "_xdeploy.far.start"))
        self._code.setcallback(self._on_code_end, endmarker=None)
        self._code.send((self._data, self._news, request))

    def boot(self, options: dict[str, object]) -> None:
        """Send the line that makes the interpreter a worker, before anything is known of it."""
        del options["chdir"]
        line = _LINE.format(file_name=parts.file_of(shipment.MODULE), options=options)
        self.write((ascii(line) + "\n").encode("ascii"))


def start(
    gateway: Gateway, id: str, wanted: dict[str, Any], timeout_s: float
) -> tuple[Gateway | None, Any, Channel | None]:
    """Return a worker of an environment, what is known of that, and what holds it until closed.

    wanted: the request to ``far.find``.  timeout_s: how long the start may take.  There is no
    worker if this way does not lead to one: if the environment is not there or does not run, or
    nothing is kept of earlier workers.
    """
    group: Any = gateway._group
    streams: list[EnvironmentIO] = []

    def through(settings: Settings, execmodel: ExecModel) -> EnvironmentIO:
        streams.append(EnvironmentIO(gateway, wanted, execmodel))
        return streams[0]

    spec = XSpec(f"popen//via={gateway.id}//id={id}")
    vars(spec)["connect_timeout"] = f"{min(timeout_s, CONNECT_TIMEOUT_S):f}"
    with suppress(BootstrapError, OSError, EOFError):
        made: Gateway = group._make_through(spec, through)
        del vars(made.spec)["connect_timeout"]
        with suppress(TimeoutError, RemoteError):
            return made, streams[0].told.receive(ANSWER_S), streams[0].told
    found: Any = {}
    for stream in streams:
        with suppress(TimeoutError, RemoteError, EOFError):
            found = stream.told.receive(0)
        stream.told.close()
    return None, found, None


# ---------------------------------------------------------------- what is kept


@lru_cache(maxsize=1)
def _core() -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the source of the core, and of the parts that come with it."""
    source = parts.lowered(shipment.MODULE)
    names = [f"_features.{name}" for name in shipment.FEATURES]
    return source, {name: (parts.file_of(name), parts.lowered(name)) for name in names}


@lru_cache(maxsize=1)
def core_digest() -> str:
    """Return what differs between cores."""
    whole = shipment.shipment_for("thread")
    return hashlib.sha256(whole.packed.encode("ascii") + whole.rest).hexdigest()


def keep_core(made: Gateway, path: str) -> None:
    """Have a worker keep what the next ones are made of; that may fail, at a cost of time only."""
    if made.handshake.hello.get("version_info", (2,))[0] < 3:
        return
    source, others = _core()
    with suppress(OSError, EOFError):
        channel = parts.run(made, "_xdeploy.far.core")
        channel.send((path, parts.file_of(shipment.MODULE), source, others))
