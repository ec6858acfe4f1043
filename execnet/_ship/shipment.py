"""What is sent to an interpreter that has nothing but itself.

One line makes it a worker that can say hello; the rest of the shipped module follows in a
frame of its own, before anything that is asked of the worker.  Start at ``boot_code``.
"""

from __future__ import annotations

from functools import lru_cache

from . import parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MODULE = "gateway_base"
FIRST_PACKET_MAX = 14 * 1024  # bytes of the line: the first flight of a TCP connection

# The line has to be short: p packed source, w what asks for it as it is where there is no
# zlib, f file name, o options, k the connection of a server that executes it; i in, t out, m
# module, d digits, s source, q the path of modules, which has no working folder meanwhile.  A
# module has no ``__spec__`` rather than None there: of that CPython 3.15 warns when it writes a
# traceback.
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
# Released socket servers execute the line with a name for the connection.  The processes of ours
# have it as stdin and stdout, and set the other name.  No cycle may keep the connection: it would
# stay open until a garbage collection.
_START_OR_SERVE = """\
if k:
  n={}
  exec(compile(%r.replace("~","\\n"),"<execnet socket server>","exec"),n)
  n["start_in_server"](m,k,o)
 else:
  m.start_worker(**o)"""
# There are no greenlets in such a server, and no room for both in the line.
_START_OR_REFUSE = """\
if k:
  k.sendall(o["marker"]+m._frame_of({"error":"the server has threads, no greenlets"}))
 else:
  m.start_worker(**o)"""
_CONNECTION = """,None if globals().get("in_own_process") else globals().get("clientsock")"""

# The lines that cut the module: what a worker of greenlets needs to say hello, and what all can do
# without until then.
CUT_BEFORE_GREENLETS = f"# {'=' * 64} after hello, but for"
CUT = f"# {'=' * 64} after hello, for all"
FEATURES = (
    "calls",
    "codec",
    "codecs",
    "defined",
    "direct",
    "files",
    "idle",
    "interrupts",
    "pulse",
    "window",
)


class Shipment:
    """``gateway_base`` in two parts, for workers of one kind.

    packed, deflated: the first part, as it is in the first line and as it is told to ``zlib``.
    rest, compiled_rest: the second, deflated and as the Python that this is has compiled it,
    which takes three times as many bytes.
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
    sources, compiled = {}, {}
    for name in FEATURES:
        name = f"_features.{name}"
        text, file_name = parts.lowered(name), parts.file_of(name)
        sources[name] = file_name, text
        code = compile(text, file_name, "exec", 0, True, 0)
        compiled[name] = file_name, marshal.dumps(code)
    sent = "\n_sent_parts.update({})".format
    code = compile(rest + sent(compiled), parts.file_of(MODULE), "exec", 0, True, 0)
    rest += sent(ascii(sources))
    return pack(first), deflate(first), deflate(rest), b"m" + marshal.dumps(code)


@lru_cache(maxsize=2)
def _shipment(greenlets: bool) -> Shipment:
    modules = [MODULE, "_ship.lower", "_ship.shipment", *(f"_features.{name}" for name in FEATURES)]
    made_of = [*map(parts.source_of, modules), parts.file_of(MODULE)]
    kind = "shipment-greenlets" if greenlets else "shipment"
    return Shipment(*parts.kept(MODULE, kind, made_of, lambda: _make(greenlets)))


def shipment_for(execmodel: str) -> Shipment:
    """Return what is sent to workers of an execution model; it is made once."""
    return _shipment(_has_greenlets(execmodel))


def _has_greenlets(execmodel: str) -> bool:
    return execmodel in ("gevent", "eventlet")


def wanted(marker: bytes) -> bytes:
    """Return what an interpreter without zlib writes, to be sent the source as it is."""
    return marker.rstrip() + b"?"


@lru_cache(maxsize=2)
def _start_or_serve(greenlets: bool) -> str:
    if greenlets:
        return _START_OR_REFUSE
    lines = parts.lowered("_transports.far_socket").split("\n")
    return _START_OR_SERVE % "~".join(filter(None, lines))  # "\n" would be escaped twice


def boot_code(options: Mapping[str, Any], in_server: bool = False) -> str:
    """Return the code that makes an interpreter a worker.

    options: the arguments of ``gateway_base.start_worker``.  in_server: it may be a socket server
    that executes the code itself.
    """
    code = _BOOT.format(
        start=_start_or_serve(_has_greenlets(options["execmodel"])) if in_server else _START,
        connection=_CONNECTION if in_server else "",
        packed=shipment_for(options["execmodel"]).packed,
        wanted=wanted(options["marker"]).decode("ascii"),
        file_name=parts.file_of(MODULE),
        options=dict(options, rest=True),
    )
    return code + "del boot" if in_server else code
