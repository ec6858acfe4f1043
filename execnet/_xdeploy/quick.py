"""A worker in an environment that is there, in one round trip and an interpreter's start.

The far side looks the environment up and starts its interpreter in the same step.  The code that
does so, and what the worker is made of, are kept over there, compiled, since earlier calls.
Start at ``start``.
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
from .._via.stream import FAR, ViaIO
from ..gateway_base import FEATURE_PARTS, RemoteError, TimeoutError
from ..xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import Channel, ExecModel
    from .far.places import FindRequest

ANSWER_S = 10.0  # how long after the worker the answer may come that was sent before it
START = "_xdeploy.far.start"
NEXT = "_rsync.far.target", "_xdeploy.far.use"  # for ``SetupFile``, of the environment's worker

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
 with open(c,"rb") as i:s,p=marshal.load(i)
 exec(s,m.__dict__)
 m._sent_parts.update(p)
 m.load_part({start!r}).start_worker(chdir=d,**o)
boot({file_name!r},{options!r})
"""


class EnvironmentIO(ViaIO):
    """The stream to such a worker; ``told`` is where the far side says what there is."""

    needs_boot = True
    loaded = frozenset([FAR, START])

    def __init__(self, gateway: Gateway, wanted: FindRequest, execmodel: ExecModel) -> None:
        self.told: Channel = gateway.newchannel()
        args = command(XSpec("popen//python=python"))
        request = {
            **wanted, "told": self.told, "args": list(args), "address": None,
            "stderr": args.captures_stderr, "timeout": None, "leads_group": False,
        }  # fmt: skip
        super().__init__(gateway, request, list(args), gateway.remoteaddress, execmodel)

    def _start(self, request: dict[str, object], code: Channel | None) -> None:
        via = self._via
        self._news.setcallback(self._on_news, endmarker=None)
        self._code = via.remote_exec(parts.LOADER)
        self._code.reconfigure(py2str_as_py3str=False)
        if keeps_start(via) and START not in via.known_parts:
            self._code.send(parts.sent_parts(via, "_xdeploy.far.quick"))
            self._code.send((request["root"], request["start"]))
        else:
            self._code.send(parts.sent_parts(via, FAR) + parts.sent_parts(via, START))
        self._code.setcallback(self._on_code_end, endmarker=None)
        self._code.send((self._data, self._news, request))

    def boot(self, options: dict[str, object]) -> None:
        """Send the line that makes the interpreter a worker, before anything is known of it."""
        del options["chdir"]
        line = _LINE.format(
            file_name=parts.file_of(shipment.MODULE), start=shipment.START, options=options
        )
        self.write((ascii(line) + "\n").encode("ascii"))


def start(
    gateway: Gateway, id: str, wanted: FindRequest, timeout_s: float
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
        made.known_parts = frozenset(_next_names())
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


def keeps_start(gateway: Gateway) -> bool:
    """Whether a worker can keep what it was sent: else it has it anyway, or is a Python 2."""
    return not gateway.imports_parts() and _is_python3(gateway)


def _is_python3(gateway: Gateway) -> bool:
    version: tuple[int, ...] = gateway.handshake.hello.get("version_info", (2,))
    return version[0] > 2


def _start_names() -> list[str]:
    names = [*parts.with_imports(START), *parts.with_imports("_via.far")]
    return list(dict.fromkeys(names))


def _next_names() -> list[str]:
    return list(dict.fromkeys(name for part in NEXT for name in parts.with_imports(part)))


@lru_cache(maxsize=1)
def start_digest() -> str:
    """Return what differs between versions of what finds an environment."""
    return _digest("", _start_names())


@lru_cache(maxsize=1)
def core_digest() -> str:
    """Return what differs between cores, with the parts that are kept with them."""
    whole = shipment.shipment_for("thread")
    seen = hashlib.sha256(whole.packed.encode("ascii") + whole.rest)
    return _digest(seen.hexdigest(), _next_names())


def _digest(first: str, names: list[str]) -> str:
    seen = hashlib.sha256(first.encode("ascii"))
    for name in ["_ship.lower", *names]:
        seen.update(parts.source_of(name).encode("utf-8") + b"\0")
    return seen.hexdigest()


def keep_start(gateway: Gateway, path: str) -> Channel | None:
    """Have a worker keep, compiled, what finds an environment and starts its worker."""
    return _keep(gateway, path, "", _start_names())


def keep_core(made: Gateway, path: str) -> Channel | None:
    """Have an environment's worker keep what the next ones are made of."""
    names = [*FEATURE_PARTS, shipment.START, *_next_names()]
    return _keep(made, path, parts.lowered(shipment.MODULE), names)


def _keep(gateway: Gateway, path: str, source: str, names: list[str]) -> Channel | None:
    """Have a worker keep something; return a channel that is closed when it is done.

    Where it can't be kept, that costs the next ones time only.
    """
    if not _is_python3(gateway):
        return None
    sources = {name: (parts.file_of(name), parts.lowered(name)) for name in names}
    with suppress(OSError, EOFError):
        channel = parts.run(gateway, "_xdeploy.far.core")
        channel.send((path, parts.file_of(shipment.MODULE), source, sources))
        return channel
    return None
