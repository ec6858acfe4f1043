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
# module, d digits, s source.  A module has no ``__spec__`` rather than None there: of that
# CPython 3.15 warns when it writes a traceback.
_BOOT = """\
def boot(p,w,f,o,k=None):
 import struct,sys
 m=type(sys)("_execnet_gateway_base")
 m.__file__=f
 vars(m).pop("__spec__",0)
 sys.modules[m.__name__]=m
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

# What a worker can say hello without; what needs one of these at once follows as well.
_SENT_AFTER_HELLO = """
    dump dumps load loads loads_internal Unserializer
    _read_exactly _read_item _check_version _SIZES
    _unpack_int4 _unpack_size _unpack_float _idle_picklers
    _parse _parse_other _parse_ints _parse_decimal _checked_key _INT _TEXT _LONG
    _BUILDTUPLE _CONSTANTS _COLLECTIONS _text _STRINGS
    _decimal _find_refused _save_channel _ints_of_list
    _load_fast_codec _StrictPickler _StrictUnpickler _load_pickle _nested_too_deeply
    dumps_fast _refuse_extensions load_item _PICKLED_CONTAINERS _NESTING_MAX
    _Lock _PolledLock _with_lock new_lock new_rlock _Inbox _run_starter JOINED_BYTES _left
    FrameWriter GatewayState BaseGateway WorkerGateway
    Reply WorkerPool FrameDecoder DirectReads CAN_READ_DIRECTLY _Flag ChannelState Channel _Callback
    ChannelFile ChannelFactory Windows _CountedInbox Pulse ENDMARKER NO_ENDMARKER_WANTED _refusal
    _on_reconfigure _on_exec _on_data _on_close_error
    _on_terminate _on_stacks _on_ping _on_window _on_credit
    _answer format_stacks _frames_of_user _plain_stack _keep_spare_fd real_select
    threads_are_patched IDLE_MS _end_fork _try_threading _modules_to_load _LOADED_LATER
    _BROUGHT_ALONG _loading _dump_text _remember_source _interrupt _marked_as_utf8
    _places _interrupt_others
    WorkerDied WorkerGone TimeoutError LoadError RemoteError _ErrorText _told
    MAIN_THREAD_ONLY_DEADLOCK_TEXT INTERRUPT_TEXT
    StreamEnded DeadlockError _refuse_in_callback
    """
_GREENLETS = "GeventExecModel _GreenFile _MAIN _threading _run_thread _thread_names"


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
        texts = _inflated(self._deflated), self.plain_rest
        lines = zip(*(text.decode("ascii").split("\n") for text in texts), strict=True)
        return "\n".join(first or second for first, second in lines)


def _inflated(data: bytes) -> bytes:
    import zlib  # which is seldom needed here

    return zlib.decompress(data)


def _make(names_later: str) -> tuple[str, bytes, bytes, bytes]:
    """Return the arguments of a ``Shipment``; takes a tenth of a second."""
    import ast
    import marshal

    from .lower import deflate, lower, pack, split

    source = parts.source_of(MODULE)
    tree = ast.parse(source)
    first, rest = split(lower(source, tree), frozenset(names_later.split()), tree)
    code = compile(rest, parts.file_of(MODULE), "exec", 0, True, 0)
    return pack(first), deflate(first), deflate(rest), b"m" + marshal.dumps(code)


@lru_cache(maxsize=2)
def _shipment(greenlets: bool) -> Shipment:
    names_later = _SENT_AFTER_HELLO if greenlets else _SENT_AFTER_HELLO + _GREENLETS
    sources = [parts.source_of(name) for name in (MODULE, "_ship.lower", "_ship.shipment")]
    made_of = [*sources, names_later, parts.file_of(MODULE)]
    kind = "shipment-greenlets" if greenlets else "shipment"
    return Shipment(*parts.kept(MODULE, kind, made_of, lambda: _make(names_later)))


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
