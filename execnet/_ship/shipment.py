"""What is sent to a bare interpreter in order to make it a worker.

One line makes it a worker that can say hello; the rest of the shipped module follows in a frame
of its own, before any request.  Start at ``boot_code``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..gateway_base import FEATURE_PARTS
from . import parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MODULE = "gateway_base"
FIRST_PACKET_MAX = 14 * 1024  # bytes of the line: the first flight of a TCP connection

# The line has to be short.  p: packed source; w: the request for unpacked source, if there is no
# zlib; f: file name; o: options; k: the connection, in a server that executes the line; i: in;
# t: out; m: module; d: digits; s: source; q: the module search path, from which the working folder
# is missing meanwhile.  Modules lose their ``__spec__``, since CPython 3.15 warns of one that is
# None when it writes a traceback.
_BOOT = """\
def boot(p,w,f,o,k=None):
 import sys
 q=sys.path
 sys.path=[e for e in q if e]
 import struct
 def n(n):
  m=sys.modules[n]=type(sys)(n)
  vars(m).pop("__spec__",0)
  return m
 n("_execnet").__path__=[]
 m=n("_execnet.gateway_base")
 m.__file__=f
 try:
  import zlib
  d=[ord(c)-40 for c in p.replace("!","\\\\")]
  s=zlib.decompress(struct.pack(">%dI"%(len(d)//5),*[
   (((d[i]*85+d[i+1])*85+d[i+2])*85+d[i+3])*85+d[i+4] for i in range(0,len(d),5)]))
 except ImportError:
  i,t=k and (k.makefile("r"),k.makefile("w")) or (sys.stdin,sys.stdout)
  t.write(w)
  t.flush()
  s=eval(i.readline())
 exec(compile(s,f,"exec"),m.__dict__)
 sys.path=q
 {start}
boot("{packed}",{wanted!r},{file_name!r},{options!r}{connection})
"""
_START = "m.start_worker(**o)"
# Released socket servers execute the line with a name for the connection.  The processes of our
# server have the connection as stdin and stdout, and set the other name.  No cycle may refer to the
# connection: it would stay open until a garbage collection.
_START_OR_SERVE = """\
if k:
  n={}
  exec(compile(%r.replace("~","\\n"),"<execnet socket server>","exec"),n)
  n["start_in_server"](m,k,o)
 else:
  m.start_worker(**o)"""
# Such a server has no greenlets and no supervisor, for which the line has no room as well.
_START_OR_REFUSE = """\
if k:
  k.sendall(o["marker"]+m._frame_of({"error":"the server %s"}))
 else:
  m.start_worker(**o)"""
_CONNECTION = """,None if globals().get("in_own_process") else globals().get("clientsock")"""

# The lines at which the module is cut: before what loads a part, which only a worker with greenlets
# needs in order to say hello, and before what no worker needs until then.
CUT_BEFORE_GREENLETS = f"# {'=' * 64} after hello, but for"
CUT = f"# {'=' * 64} after hello, for all"
GREENLETS = "_features.greenlets"
START = "_features.start"  # which makes the module, of which it has the names, a worker


class Shipment:
    """``gateway_base`` in two parts, for workers of one kind.

    packed, deflated: the first part, as text for the first line and as a zlib stream.
    rest, compiled_rest: the second part, deflated, and compiled by this version of Python, which
    takes three times as many bytes.
    """

    def __init__(self, packed: str, deflated: bytes, rest: bytes, compiled_rest: bytes) -> None:
        self.packed = packed
        self.rest = rest
        self.compiled_rest = compiled_rest
        self._deflated = deflated

    @property
    def plain_line(self) -> bytes:
        """The line for an interpreter without zlib."""
        return (ascii(_inflated(self._deflated).decode("ascii")) + "\n").encode("ascii")

    @property
    def plain_rest(self) -> bytes:
        """The rest for an interpreter without zlib."""
        return _inflated(self.rest)

    def whole(self) -> str:
        """Return the lowered source of all."""
        first = _inflated(self._deflated).decode("ascii").split("\n")
        rest = self.plain_rest.decode("ascii").split("\n")
        return "\n".join(first + rest[len(first) :])


def _inflated(data: bytes) -> bytes:
    import zlib  # which is seldom needed here

    return zlib.decompress(data)


def _make(greenlets: bool) -> tuple[str, bytes, bytes, bytes]:
    """Return the arguments of a ``Shipment``; takes a tenth of a second."""
    import marshal

    from .lower import cut, deflate, lower, pack

    source = parts.source_of(MODULE)
    first, rest = cut(lower(source), source, CUT if greenlets else CUT_BEFORE_GREENLETS)
    sent = "\n_sent_parts.update({})".format
    first += "exec(compile({},{},'exec'))".format(*map(ascii, _start()))  # its last line is empty
    sources, compiled = {}, {}
    for name in FEATURE_PARTS:
        text, file_name = parts.lowered(name), parts.file_of(name)
        sources[name] = file_name, text
        code = compile(text, file_name, "exec", 0, True, 0)
        compiled[name] = file_name, marshal.dumps(code)
    if greenlets:
        first += sent(ascii({GREENLETS: sources[GREENLETS]})).replace("\n", ";")
    code = compile(rest + sent(compiled), parts.file_of(MODULE), "exec", 0, True, 0)
    rest += sent(ascii(sources))
    return pack(first), deflate(first), deflate(rest), b"m" + marshal.dumps(code)


def _start() -> tuple[str, str]:
    """Return what runs among the names of the module: the source without its imports, its file."""
    source = _OWN_NAMES.sub(lambda found: "\n" * found[0].count("\n"), parts.lowered(START))
    return source, parts.file_of(START)


_OWN_NAMES = re.compile(r"^from \.\.gateway_base import \([^)]*\)", re.M)


@lru_cache(maxsize=2)
def _shipment(greenlets: bool) -> Shipment:
    modules = [MODULE, START, "_ship.lower", "_ship.shipment", *FEATURE_PARTS]
    made_of = [*map(parts.source_of, modules), parts.file_of(MODULE)]
    kind = "shipment-greenlets" if greenlets else "shipment"
    return Shipment(*parts.kept(MODULE, kind, made_of, lambda: _make(greenlets)))


def shipment_for(execmodel: str) -> Shipment:
    """Return what is sent to workers with an execution model; it is made only once."""
    return _shipment(_has_greenlets(execmodel))


def _has_greenlets(execmodel: str) -> bool:
    return execmodel in ("gevent", "eventlet")


def wanted(marker: bytes) -> bytes:
    """Return what an interpreter without zlib writes in order to get the source unpacked."""
    return marker.rstrip() + b"?"


@lru_cache(maxsize=4)
def _start_or_serve(greenlets: bool, resumes: bool) -> str:
    if greenlets:
        return _START_OR_REFUSE % "has threads, no greenlets"
    if resumes:
        return _START_OR_REFUSE % "runs workers in its own process, and resume= needs another one"
    lines = parts.lowered("_transports.far_socket").split("\n")
    # It is in no package there, so its imports are absolute.  "\n" would be escaped twice.
    kept = [line for line in lines if line and not line.startswith("from __future__")]
    return _START_OR_SERVE % "~".join(kept)


def head_of_line() -> str:
    """Return how the code of a worker without greenlets begins; after it come its options."""
    packed = shipment_for("thread").packed
    options = {"execmodel": "thread", "marker": b""}
    before, _, _ = boot_code(options).partition(packed)
    return f'{before}{packed}",'


def boot_code(options: Mapping[str, Any], in_server: bool = False, resumes: bool = False) -> str:
    """Return the code that makes an interpreter a worker.

    options: the arguments of ``start_worker``.  in_server: it may be a socket server
    that executes the code itself.  resumes: whether the worker outlives its connections.
    """
    greenlets = _has_greenlets(options["execmodel"])
    code = _BOOT.format(
        start=_start_or_serve(greenlets, resumes) if in_server else _START,
        connection=_CONNECTION if in_server else "",
        packed=shipment_for(options["execmodel"]).packed,
        wanted=wanted(options["marker"]).decode("ascii"),
        file_name=parts.file_of(MODULE),
        options=dict(options, rest=True),
    )
    return code + "del boot" if in_server else code
