"""What both ends of a gateway have in common, and all that a worker needs.

This file is shipped: its source runs in interpreters that have nothing installed, from
CPython 2.7 on, after docstrings, comments and annotations were taken out.  So it stands
alone, needs the standard library only, and keeps to syntax that Python 2.7 and today's
Python both accept.  It is imported, executed as a script or executed from a string.

It is ordered as a worker lives: what it needs up to its hello, which is sent in the first line;
then what loads a part; then the rest.  ``_ship.shipment`` cuts it at the two lines that say so.
Start at ``Message`` for what crosses the wire, at ``Channel`` for what users hold, at
``WorkerGateway`` for a worker's life, which begins in ``_features.start``.  What a gateway can do
beyond this is in ``_features``.
"""
from __future__ import annotations

import itertools
import os
import stat
import struct
import sys
import weakref
from io import BytesIO

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType, ModuleType, TracebackType
    from typing import IO, Any, Protocol

    Out = Callable[[bytes], None]
    Saver = Callable[[Out, Any], None]
    StrConfig = tuple[bool, bool]
    Task = tuple[Any, ...]  # as ``Message.CHANNEL_EXEC`` carries it
    Do = Callable[[], object]
    Job = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]
    Source = str | bytes | None  # of a part, or compiled and marshalled code
    Piece = bytes | memoryview
    Frame = list[Any]  # see ``FrameWriter``
    WriteAll = Callable[[Sequence[Piece]], int | None]
    PartKey = tuple[int, int | None]  # the id of a channel and the number of an item
    Admits = Callable[[int, int, int], bool]  # code, channel id, payload bytes
    Prepare = Callable[["Channel | _Callback"], object]

    class LockLike(AbstractContextManager[object, None], Protocol):  # threads' or greenlets'
        def acquire(self, blocking: bool = True, timeout: float = -1, /) -> bool: ...
        def release(self) -> None: ...
        def locked(self) -> bool: ...

    class Inbox(Protocol):  # a queue without a bound
        def put(self, item: object, /) -> None: ...
        def put_nowait(self, item: object, /) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None, /) -> Any: ...
        def empty(self) -> bool: ...
        def qsize(self) -> int: ...

    class Reads(Protocol):
        def read(self, size: int, /) -> bytes: ...

    class Writes(Protocol):
        def write(self, data: bytes, /) -> object: ...

    class Stream(Protocol):
        """What a gateway needs of its byte stream; ``Popen2IO`` is one."""

        execmodel: ExecModel
        small_bytes: int
        write_pieces: WriteAll | None

        def write_some(self, data: Piece, /) -> int | None: ...
        def read_some(self, limit: int) -> bytes: ...
        def write(self, data: bytes) -> None: ...
        def can_write_now(self) -> bool: ...
        def wait_writable(self) -> None: ...
        def close_read(self) -> None: ...
        def close_write(self) -> None: ...

    class DirectReads(Protocol):
        """Lets threads that wait for an item read the stream themselves: ``_features.direct``."""

        offered: bool
        served: bool
        uses: int
        chunks: list[bytes]
        waiting: dict[object, Inbox]

        def serve(self, items: Inbox) -> None: ...
        def offer(self) -> None: ...
        def next_chunk(self) -> bytes: ...
        def take_back(self) -> None: ...
        def want(self) -> None: ...
        def decline(self) -> None: ...
        def read_frames(self, code: int, id: int, a: Do, b: Do, c: bytes, /) -> list[bytes]: ...
        def read(self, channel: Channel, items: Inbox, timeout: float | None) -> bool: ...

    class Windows(Protocol):
        """Limits what channels may have on their way: ``_features.window``."""

        def adopt(self, channel: Channel) -> None: ...
        def of(self, id: int) -> int: ...
        def send(self, id: int, size: int, frames: Iterator[tuple[bool, bytes, Piece]]) -> None: ...
        def on_read(self, id: int, size: int) -> None: ...
        def forget(self, id: int) -> None: ...
        def wake(self) -> None: ...
PY2 = sys.version_info[0] == 2
ISPYPY = hasattr(sys, "pypy_version_info")

if sys.version_info[0] >= 3:
    _OSError = OSError
    _TimedOut: Any = __import__("builtins").TimeoutError
else:
    from itertools import imap as map

    # Errors that are raised there can be caught as either type.
    _TimedOut = _OSError = type("OSError", (IOError, OSError), {})
    BlockingIOError = InterruptedError = OSError = EnvironmentError


def _real(name: str, function: str) -> ModuleType:
    """Return a module in C; a new copy, if a greenlet library has replaced that function."""
    module = __import__(name)
    if type(getattr(module, function, None)) is not type(len):
        try:
            spec: Any = module.__spec__
            module = spec.loader.create_module(spec)
            spec.loader.exec_module(module)
        except (ImportError, AttributeError):
            return sys.modules[name]
    return module


_thread = type(sys)("_thread")  # what it had when it was first needed
_thread.__dict__.update(_real("thread" if PY2 else "_thread", "start_new_thread").__dict__)
get_ident: Callable[[], int] = _thread.get_ident
# Some subinterpreters have no daemon threads, so they wait for all their threads to end.
HAS_DAEMON_THREADS: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()

if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``


# ---------------------------------------------------------------- errors


class ExecnetError(Exception):
    """The root of all errors that this package defines."""


class DataFormatError(ExecnetError):
    """An item and its serialized form do not go together."""


class DumpError(DataFormatError):
    """An item, or a part of it, can't be serialized; the text says which part."""


class ProtocolError(ExecnetError, EOFError):
    """The peer sent bytes that are no frame; nothing that follows could be understood."""


class GatewayReceivedTerminate(ExecnetError):
    """The peer ends the gateway in an orderly way."""


sysex = (KeyboardInterrupt, SystemExit)


# ---------------------------------------------------------------- the texts of errors

_FRAME_LINE = '  File "%s", line %d, in %s\n'
_spare_fds: list[int] = []  # at most one, which an import gets if there is no other


def _import(name: str) -> ModuleType:
    """Import a module late, even if no descriptor is left for its file."""
    try:
        return __import__(name)
    except (ImportError, EnvironmentError):
        if not _spare_fds:
            raise
        os.close(_spare_fds.pop())
        try:
            return __import__(name)
        finally:
            _keep_spare_fd()


# Whether this module is one of several: of the package, or of what a worker was sent.
HAS_PARTS = __name__.endswith(".gateway_base")


def geterrortext(exc: object) -> str:
    """Return the text of an exception's traceback, as much of it as possible; never fails.

    exc: an exception, or a tuple (type, value, traceback).
    """
    if type(exc) is tuple:  # an error may be any object, so don't touch it outside of ``try``
        kind, exc, tb = exc
    else:
        kind = exc.__class__ if PY2 else type(exc)
        tb = getattr(exc, "__traceback__", None) or sys.exc_info()[2]
    text = "%s (its text can't be read)" % getattr(kind, "__name__", kind)
    for describe in _full_error_text, _plain_error_text:
        try:
            return describe(kind, exc, _users_part(tb))
        except:  # noqa: E722 - no import, no memory, a late interrupt: it must be told anyway
            pass
    return text


def _users_part(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback without our own frames that come before those of the user's code."""
    found = tb
    while found is not None and found.tb_frame.f_globals is globals():
        found = found.tb_next
    return found or tb  # all are ours where code does not compile


def _full_error_text(kind: type, exc: object, tb: TracebackType | None) -> str:
    limit = _frames_of_user(exc, tb) if kind is DumpError else None
    return "".join(_import("traceback").format_exception(kind, exc, tb, limit))


def _plain_error_text(kind: type, exc: object, tb: TracebackType | None) -> str:
    """Return the text as far as it needs no imports and no files."""
    lines = ["Traceback (most recent call last):\n"] if tb is not None else []
    while tb is not None and len(lines) < 100:
        code = tb.tb_frame.f_code
        lines.append(_FRAME_LINE % (code.co_filename, tb.tb_lineno, code.co_name))
        tb = tb.tb_next
    try:
        text = ("%s: %s" if "%s" % (exc,) else "%s%s") % (kind.__name__, exc)
    except Exception:
        text = "%s (its text can't be read)" % kind.__name__
    return "".join(lines) + text + "\n"


def _decoded(text: str) -> str:
    """Return Python 2's str as text; whatever it holds, it must be readable."""
    if PY2 and isinstance(text, bytes):
        try:
            return text.decode("utf-8")
        except ValueError:
            return text.decode("latin-1")
    return text


# ---------------------------------------------------------------- dumping items
#
# Two codecs share the wire; the first byte of an item tells them apart.  The classic one
# writes the opcodes below (0x40 to 0x54) and reads any.  The fast one, ``_features.codec``, is
# the C pickler (first byte 0x80), for containers of plain builtins between two ends that have it.


def bchr(n: int) -> bytes:
    """Return the one byte with that value."""
    return struct.pack("B", n)


DUMPFORMAT_VERSION = bchr(2)
FOUR_BYTE_INT_MAX = 2147483647


class opcode(object):
    """The opcodes of the dump format, version 2.  All numbers are big-endian."""

    BUILDTUPLE, BYTES, CHANNEL, FALSE, FLOAT, FROZENSET, INT = map(bchr, range(64, 71))
    LONG, LONGINT, LONGLONG, NEWDICT, NEWLIST, NONE, PY2STRING = map(bchr, range(71, 78))
    PY3STRING, SET, SETITEM, STOP, TRUE, UNICODE, COMPLEX = map(bchr, range(78, 85))


_pack_op = struct.Struct("!ci").pack  # an opcode and its number
_pack_int = struct.Struct("!cic").pack  # a whole item that is an int
_pack_float = struct.Struct("!cd").pack
_pack_size = struct.Struct("!i").pack
_SURROGATES = "strict" if PY2 else "surrogatepass"  # Python 2 lets them pass anyway
_DIGITS = 4000  # int <-> str refuses more than 4,300 at once since 3.11


class _Parts(list):  # type: ignore[type-arg]
    """The pieces of an item that is being written; to a pickler, a file."""

    __slots__ = ("gateway",)
    gateway: object  # whose channels may be in it; None: of any; False: of none
    write = list.append


def _refuse(out: Out, item: object) -> None:
    raise DumpError("can't serialize %r" % (type(item),))


def _save_sequence(out: Out, op: bytes, data: bytes) -> None:
    if len(data) > FOUR_BYTE_INT_MAX:
        raise DumpError("can't serialize a string of %d bytes" % len(data))
    out(_pack_op(op, len(data)))
    out(data)


def _int_saver(op: bytes, long_op: bytes) -> Saver:
    def save(out: Out, item: int) -> None:
        if -FOUR_BYTE_INT_MAX <= item + 1 <= FOUR_BYTE_INT_MAX + 1:
            out(_pack_op(op, item))
        else:
            _save_sequence(out, long_op, _decimal(item).encode("ascii"))

    return save


def _save(out: Out, before: bytes, groups: Any, after: bytes) -> None:
    """Write what comes before all items, then each group of items and what comes after it.

    The groups of a dict are its entries, those of a list its items with their index; all
    others are one group.  What is frequent is written here, without a call for each item.
    """
    text, text_heads, int_heads, savers = _TEXT_TYPE, _TEXT_HEADS, _INT_HEADS, _SAVERS
    out(before)
    for group in groups:
        for item in group:
            kind = type(item)
            if kind is text and len(item) < 32:
                data = item.encode("utf-8", "surrogatepass")
                out(text_heads[len(data)])
                out(data)
            elif kind is int and 0 <= item < 128:
                out(int_heads[item])
            elif item is None:
                out(b"L")
            elif kind is bool:
                out(b"R" if item else b"C")
            elif kind is float:
                out(_pack_float(b"D", item))
            else:
                savers.get(kind, _refuse)(out, item)
        out(after)


def _save_list(out: Out, items: list[object]) -> None:
    before = _pack_op(opcode.NEWLIST, len(items))
    ints = _ints_of_list(items) if len(items) > 15 else b""
    _save(out, before + ints, () if ints else enumerate(items), opcode.SETITEM)


_SAVERS: dict[type, Saver] = {
    type(None): lambda out, item: out(opcode.NONE),
    bool: lambda out, item: out(opcode.TRUE if item else opcode.FALSE),
    int: _int_saver(opcode.INT, opcode.LONGINT),
    float: lambda out, item: out(_pack_float(opcode.FLOAT, item)),
    complex: lambda out, item: out(struct.pack("!cdd", opcode.COMPLEX, item.real, item.imag)),
    bytes: lambda out, item: _save_sequence(out, opcode.BYTES, item),
    type(""): lambda out, item: _save_sequence(out, b"N", item.encode("utf-8", "surrogatepass")),
    list: _save_list,
    dict: lambda out, item: _save(out, opcode.NEWDICT, item.items(), opcode.SETITEM),
    tuple: lambda out, item: _save(out, b"", (item,), _pack_op(opcode.BUILDTUPLE, len(item))),
    set: lambda out, item: _save(out, b"", (item,), _pack_op(opcode.SET, len(item))),
    frozenset: lambda out, item: _save(out, b"", (item,), _pack_op(opcode.FROZENSET, len(item))),
}

if sys.version_info[0] == 2:
    _SAVERS[long] = _int_saver(opcode.LONG, opcode.LONGLONG)
    _SAVERS[unicode] = lambda out, item: _save_sequence(out, opcode.UNICODE, item.encode("utf-8"))
    _SAVERS[str] = lambda out, item: _save_sequence(out, opcode.PY2STRING, item)
_CONTAINERS = frozenset([list, tuple, set, frozenset, dict])
_TEXT_TYPE = None if PY2 else str  # whose short items are written without a call
_TEXT_HEADS = [_pack_op(opcode.PY3STRING, size) for size in range(4 * 32)]
_INT_HEADS = [_pack_op(opcode.INT, number) for number in range(128)]


def dumps_internal(obj: object, gateway: object = None, before: bytes = b"") -> bytes:
    """Return an item in the classic format, without a version byte.

    gateway: whose channels it may contain; None: any; False: none.  before: what comes first.
    Raises ``DumpError`` that names the part that can't be serialized.
    """
    if type(obj) is int and -FOUR_BYTE_INT_MAX <= obj <= FOUR_BYTE_INT_MAX:
        return before + _pack_int(opcode.INT, obj, opcode.STOP)
    parts = _Parts((before,))
    parts.gateway = gateway
    try:
        _SAVERS.get(type(obj), _refuse)(parts.append, obj)
        parts.append(opcode.STOP)
        return b"".join(parts)
    except (DumpError, RuntimeError):  # RecursionError is a RuntimeError
        refused = _find_refused(obj, parts)
    raise DumpError(refused)  # out here, so that the traceback does not show the search


HAVE_FAST_CODEC = HAS_PARTS and sys.version_info >= (3, 8) and not ISPYPY
CODECS = ("classic", "fast") if HAVE_FAST_CODEC else ("classic",)


# ---------------------------------------------------------------- frames

_HEADER = struct.Struct("!bii")  # message code, channel id, payload bytes
_PART = struct.Struct("!iB")  # number of the item, whether this is its last piece
_CONTROL_MAX = 1 << 30


class Message(object):
    """A frame: a code, the id of a channel (0 for none) and a payload.

    ``_types`` maps a code to its name and to the handler(message, gateway) that acts on it
    in the receiver thread.  CONTRIBUTING.rst says what a new code needs.
    """

    STATUS = 0  # asks for / no payload; the answer comes as an item of the channel
    RECONFIGURE = 1  # (py2str_as_py3str, py3str_as_py2str) of the gateway or of a channel
    GATEWAY_TERMINATE = 2  # an orderly end
    CHANNEL_EXEC = 3  # (source, file name, function name, keyword arguments[, marshalled code])
    CHANNEL_DATA = 4  # an item
    CHANNEL_CLOSE, CHANNEL_CLOSE_ERROR = 5, 6  # without payload; with the text of a traceback
    CHANNEL_LAST_MESSAGE = 7  # the sender dropped the channel; its callback still receives
    HELLO = 8  # a dict that describes the worker; its first frame
    CHANNEL_DATA_PART = 9  # number of the item, last or not, and a piece of the item
    PING = 12  # a sign of life; with (interval, dead after) the worker gives them as well
    WINDOW = 13  # bytes that a channel, or each new one, may have on their way and unread
    CREDIT = 14  # bytes of a channel that were read
    GOODBYE = 15  # (exit status or None, why, whose it is, what the hello began with)
    STACKS = 11  # asks for the stacks of all threads, answered as STATUS is; or tells them
    SOURCE = 10  # the part of this module that a shipped worker needs only after its hello
    CALL, DEFINE = 16, 17  # a function that is to run, what such functions are made of
    INTERRUPT = 18  # of the code of a channel, or of the call of a lane with that number
    IMPORT, SOURCES = 19, 20  # a worker asks for a module; answers, and what it may ask for
    CODEC, ACK = 21, 22  # what the codec of a channel has, or None; how many bytes were read
    SHARED, RELEASED = 23, 24  # an item in memory that both sides have; a segment to use again
    DEFLATED = 25  # a zlib stream of another frame

    _types: dict[int, tuple[str, Callable[[Message, Any], None]]] = {}
    # For a large frame that is passed on as it comes, in several messages:
    is_first: bool | None = None  # one of them; None: it is no such message
    left = 0  # bytes that are still to come

    def __init__(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        self.msgcode = msgcode
        self.channelid = channelid
        self.data = data

    @staticmethod
    def from_io(io: Reads) -> Message:
        """Read one message from an object that has ``read``; ``EOFError`` if it ends."""
        header = io.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise EOFError("the stream ended within a header: %r" % (header,))
        msgcode, channelid, size = parse_header(header, 0)
        data = io.read(size) if size else b""
        if len(data) < size:
            raise EOFError("the stream ended %d bytes before a message did" % (size - len(data)))
        return Message(msgcode, channelid, data)

    def to_io(self, io: Writes) -> None:
        """Write this message to an object that has ``write``."""
        io.write(_HEADER.pack(self.msgcode, self.channelid, len(self.data)) + self.data)

    def received(self, gateway: BaseGateway) -> None:
        """Act on this message; runs in the receiver thread."""
        self._types[self.msgcode][1](self, gateway)

    def __repr__(self) -> str:
        name = self._types[self.msgcode][0] if self.msgcode in self._types else self.msgcode
        return "<Message %s channel=%d %d bytes>" % (name, self.channelid, len(self.data))


def parse_header(data: bytes, pos: int) -> tuple[int, int, int]:
    """Return (code, channel id, payload bytes); ``ProtocolError`` for what is no header."""
    msgcode, channelid, size = _HEADER.unpack_from(data, pos)
    limit = ITEM_MAX if msgcode in (4, 9) else _CONTROL_MAX
    if msgcode not in Message._types or not 0 <= size <= limit or channelid < 0:
        raise ProtocolError(
            "not a frame: code %d, channel %d, payload of %d bytes, in %r"
            % (msgcode, channelid, size, data[pos : pos + 40])
        )
    return msgcode, channelid, size


# ---------------------------------------------------------------- execution models


class ExecModel(object):
    """How a process runs several things at once, with the same names in all; this one: threads.

    Modules are imported when they are asked for.
    """

    backend = "thread"
    has_main_thread = True  # whether tasks can be handed to the main thread
    _plain_lock: Callable[[], LockLike] = staticmethod(_thread.allocate_lock)
    _modules = {"queue": "Queue" if PY2 else "queue", "get_ident": "thread" if PY2 else "_thread"}

    def __repr__(self) -> str:
        return "<ExecModel %r>" % self.backend

    def _module(self, name: str) -> ModuleType:
        name = self._modules.get(name, name)
        if self.has_main_thread:
            _threading()  # in case that it imports it
        __import__(name)
        return sys.modules[name]

    # The modules with ``Queue`` and ``Empty``, with ``Popen`` and with ``socket``.
    queue = property(lambda self: self._module("queue"))
    subprocess = property(lambda self: self._module("subprocess"))
    socket = property(lambda self: self._module("socket"))

    def get_ident(self) -> int:
        """Return the number of the running thread or greenlet."""
        return int(self._module("get_ident").get_ident())

    def sleep(self, delay: float) -> None:
        """Wait for ``delay`` seconds."""
        self._module("time").sleep(delay)

    def start(self, func: Callable[..., object], args: Sequence[Any] = (), name: str = "") -> None:
        """Run ``func(*args)`` in a thread or greenlet that keeps no process alive."""
        if HAS_DAEMON_THREADS and ("threading" not in sys.modules or threads_are_patched()):
            _thread.start_new_thread(_run_thread, (func, args, name))
            return
        thread = _threading().Thread(target=func, args=args, name=name or None)
        if not HAS_DAEMON_THREADS:
            thread.start()
            return
        thread.daemon = True
        _thread.start_new_thread(_run_starter, (thread,))

    def fdopen(self, fd: int, mode: str, bufsize: int = 1) -> Any:
        """Return a file over a descriptor; a binary one has no buffer unless told otherwise."""
        if "b" in mode:
            return self._open_binary(fd, mode, 0 if bufsize == 1 else bufsize)
        return self._open_text(fd, mode, bufsize)

    def _open_binary(self, fd: int, mode: str, bufsize: int) -> Any:
        return __import__("io").open(fd, mode, bufsize)

    def _open_text(self, fd: int, mode: str, bufsize: int) -> Any:
        return os.fdopen(fd, mode, bufsize)

    def wait_writable(self, fd: int) -> None:
        """Wait until a descriptor takes something, or has failed."""
        select = self._module("select")
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        else:
            select.select([], [fd], [])

    def inbox(self) -> Inbox:
        """Return a new queue without a bound."""
        if _SimpleQueue is None:
            return self.queue.Queue() if PY2 else _own_inbox()
        return _SimpleQueue() if _TIMED_GET_ENDS else _WakingInbox()

    @property
    def Empty(self) -> type[Exception]:
        """What ``get`` of an inbox raises; it is imported before the wait, not during it."""
        # PyPy has been seen with a "_queue" that had nothing in it.
        empty: type[Exception] | None = getattr(sys.modules.get("_queue"), "Empty", None)
        return empty or self.queue.Empty

    def Lock(self) -> LockLike:
        """Return a new lock; ``with`` takes it safely where an interrupt may come."""
        return _with_lock(self._plain_lock())

    def RLock(self) -> LockLike:
        """Return a new reentrant lock."""
        return new_rlock()

    def Event(self) -> Any:
        """Return a new event."""
        return _Flag(self) if threads_are_patched() else _threading().Event()


class MainThreadOnlyExecModel(ExecModel):
    """Threads, but tasks run only in the main thread."""

    backend = "main_thread_only"


_EXEC_MODELS: dict[str, type[ExecModel] | None] = {"eventlet": None, "gevent": None}  # in a part
_EXEC_MODELS.update(thread=ExecModel, main_thread_only=MainThreadOnlyExecModel)


def get_execmodel(backend: str | ExecModel) -> ExecModel:
    """Return the execution model with that name; ``ValueError`` if there is none."""
    if isinstance(backend, ExecModel):
        return backend
    if backend not in _EXEC_MODELS:
        known = ", ".join(sorted(_EXEC_MODELS))
        raise ValueError("unknown execution model %r, there are: %s" % (backend, known))
    kind = _EXEC_MODELS[backend] or load_part("_features.greenlets").MODELS[backend]
    return kind()


# ---------------------------------------------------------------- streams


def _retried(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a read that continues after a signal, as Python 3 does by itself."""
    errno = _import("errno")

    def read_again(size: int) -> bytes:
        while True:
            try:
                return read(size)
            except EnvironmentError as exc:
                if exc.errno != errno.EINTR:
                    raise

    return read_again


class Popen2IO(object):
    """A byte stream over two files: ``outfile`` is written, ``infile`` is read.

    One thread reads and one at a time writes; the gateway sees to both.
    """

    def __init__(self, outfile: Any, infile: Any, execmodel: ExecModel) -> None:
        self.outfile = outfile
        self.infile = infile
        self.execmodel = execmodel
        self._read = getattr(infile, "buffer", infile).read
        if PY2:
            self._read = _retried(self._read)
        self._input: Any = None  # tells whether something can be read
        write = getattr(outfile, "buffer", outfile).write
        self.small_bytes = 0  # smaller frames are best written at once
        self.takes_whole = False  # whether these are written whole or, at an interrupt, not at all
        self.write_some: Callable[[Piece], int | None] = write  # one system call; how much it took
        self.write_pieces: WriteAll | None = None  # the same for several pieces, where it has that
        try:
            fd = outfile.fileno()
            mode = os.fstat(fd).st_mode
        except (OSError, ValueError, AttributeError):  # a buffer in memory, or closed
            self.write_some = lambda data: write(data) or len(data)
            return
        # A call of it is one in C, but for PyPy; ``functools`` itself takes long to import.
        partial = __import__("functools" if ISPYPY else "_functools").partial
        if not execmodel.has_main_thread:
            self.write_some = partial(os.write, fd)
        elif hasattr(os, "writev"):
            self.write_pieces = partial(os.writev, fd)
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                self.small_bytes, self.takes_whole = 4096, stat.S_ISFIFO(mode)  # PIPE_BUF

    def read(self, numbytes: int) -> bytes:
        """Return exactly that many bytes, in as many reads as it takes; else ``EOFError``."""
        data = b""
        while len(data) < numbytes:
            more = self._read(numbytes - len(data))
            if not more:
                raise EOFError("expected %d bytes, got %d" % (numbytes, len(data)))
            data += more
        return data

    def read_some(self, limit: int) -> bytes:
        """Return what is there, up to ``limit`` bytes; waits for some; b"" at the end."""
        return self._read(limit) or b""

    def write(self, data: bytes) -> None:
        """Write all of it."""
        write_all(self, data)

    def wait_writable(self) -> None:
        """Wait until something can be written."""
        self.execmodel.wait_writable(self.outfile.fileno())

    def can_write_now(self) -> bool:
        """Whether a few KiB can be written without waiting."""
        try:
            select = real_select()
            poll = select.poll()
            poll.register(self.outfile.fileno(), select.POLLOUT)
        except (ImportError, AttributeError, OSError, ValueError):
            return True  # not a descriptor, or a system that can't tell
        return bool(poll.poll(0))

    def has_more(self, wait_ms: int) -> bool:
        """Whether something can be read, by now or so many milliseconds later."""
        if self._input is None:
            select = real_select()
            self._input = select.poll()
            self._input.register(self.infile.fileno(), select.POLLIN)
        return bool(self._input.poll(wait_ms))

    def direct_reads(self) -> DirectReads | None:
        """Return what lets other threads read, None for what has no descriptor."""
        try:
            kind: Callable[..., DirectReads] = load_part("_features.direct").DirectReads
            return kind(self.infile.fileno(), self.execmodel)
        except (OSError, ValueError, AttributeError, ImportError):
            return None  # a buffer in memory, or closed

    def close_read(self) -> None:
        """Close the file that is read."""
        self.infile.close()

    def close_write(self) -> None:
        """Close the file that is written; the other side reads its end."""
        self.outfile.close()


def _is_full(error: Exception) -> bool:
    """Whether a stream took nothing only because it is full or, in Python 2, a signal came."""
    errno = _import("errno")
    numbers = errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR
    return isinstance(error, EnvironmentError) and error.errno in numbers


def write_all(io: Stream, data: bytes) -> None:
    """Write bytes to a stream that may take less of them at once."""
    start = 0
    while start < len(data):
        taken: int | None = 0
        try:
            taken = io.write_some(memoryview(data)[start:] if start else data)
        except EnvironmentError as exc:
            if not _is_full(exc):
                raise
        if not taken:
            io.wait_writable()
        start += taken or 0


def _on_source(message: Message, gateway: BaseGateway) -> None:
    raise ProtocolError("source out of place")  # it is read before all other frames


Message._types = {Message.SOURCE: ("SOURCE", _on_source)}  # what a worker knows before it


# ---------------------------------------------------------------- boot

# Whose messages are understood.
FEATURES = "goodbye stacks" + " heartbeat window calls interrupts codecs imports zlib" * HAS_PARTS


def _describe_process() -> dict[str, object]:
    return {
        "executable": _decoded(sys.executable),
        "version_info": tuple(sys.version_info[:5]),
        "platform": sys.platform,
        "cwd": _decoded(_getcwd()),
        "pid": os.getpid(),
    }


def _getcwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody removed it
        return ""


def _signal_module() -> ModuleType:
    """Return ``signal`` without its enums, whose import takes longer than all others."""
    try:
        return __import__("_signal")
    except ImportError:  # Python 2
        return __import__("signal")


def _handle_interrupts(handler: Callable[[int, FrameType | None], object]) -> None:
    signal = _signal_module()
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:  # served in another thread than the main one
        pass


def init_popen_io(execmodel: ExecModel) -> Popen2IO:
    """Take over the descriptors 0 and 1 as a stream, and leave null devices in their place.

    So whatever the worker's code prints or reads cannot disturb the protocol.
    """
    reader, writer = _move_to_null(0, os.O_RDONLY), _move_to_null(1, os.O_WRONLY)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(reader, os.O_BINARY)
        msvcrt.setmode(writer, os.O_BINARY)
    return Popen2IO(execmodel.fdopen(writer, "wb"), execmodel.fdopen(reader, "rb"), execmodel)


def above_stdio(fd: int) -> int:
    """Return a descriptor, or one in its place where it has the number of a standard one.

    In a process that closed those, what others print would go to where ours leads.
    """
    if fd > 2:
        return fd
    try:
        return above_stdio(os.dup(fd))
    finally:
        os.close(fd)


def _move_to_null(fd: int, flags: int) -> int:
    """Return a private duplicate of a descriptor, whose number leads nowhere from now on."""
    moved = above_stdio(os.dup(fd))
    if PY2 and sys.platform != "win32":  # Python 3 does so by itself
        fcntl = _import("fcntl")
        fcntl.fcntl(moved, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    null = os.open(os.devnull, flags)
    os.dup2(null, fd)
    os.close(null)
    return moved


def _hello() -> bytes:
    """Return the first frame of a worker."""
    hello = _describe_process()
    default = "pypy" if ISPYPY else "cpython"  # Python 2 does not say
    hello["implementation"] = getattr(getattr(sys, "implementation", None), "name", default)
    hello.update(codecs=CODECS, features=FEATURES)
    return _frame_of(hello)


def _frame_of(item: object, msgcode: int = Message.HELLO) -> bytes:
    data = dumps_internal(item)
    return _HEADER.pack(msgcode, 0, len(data)) + data


# ================================================================ after hello, but for greenlets
#
# A worker of greenlets is sent this, and the part with their models, in the first line, too.

_FEATURES = "running buffers codec direct credit window pulse calls defined interrupts packed "
_FEATURES += "codecs files idle elsewhere queues greenlets"
FEATURE_PARTS = ["_features." + name for name in _FEATURES.split()] * HAS_PARTS
# What a worker was sent: by the name of each part, its file and its source or compiled code.
_sent_parts: dict[str, tuple[str, Source]] = {}


def load_part(name: str, file_name: str | None = None, source: Source = None) -> ModuleType:
    """Return a module of this package by its name in it, such as ``_features.codec``.

    It is made of the source that was sent, now or earlier, or imported.  Raises ImportError
    where there is neither: this module may run alone.
    """
    if file_name is not None:
        _sent_parts.setdefault(name, (file_name, source))
    full_name = "%s.%s" % (__name__.rpartition(".")[0] if HAS_PARTS else _found_package(), name)
    if name not in _sent_parts:
        _import(full_name)  # also if it is there: another thread may be at it
    elif full_name not in sys.modules:
        _make_module(full_name, *_sent_parts[name])
    return sys.modules[full_name]


def _found_package() -> str:
    """Return a package of this module, which runs alone, and the parts that are found.

    They are beside its file, or in an execnet that is installed.
    """
    package = "_execnet_%x" % id(_sent_parts)
    if package not in sys.modules:
        util = _import("importlib.util").util
        installed = util.find_spec("execnet")
        folders = [os.path.dirname(os.path.abspath(globals().get("__file__", "")))]
        folders += installed.submodule_search_locations if installed else []
        found = [one for one in folders if os.path.isdir(os.path.join(one, "_features"))]
        if not found:
            raise ImportError("%s runs alone, without the rest of execnet" % __name__)
        spec = util.spec_from_loader(package, None, is_package=True)
        spec.submodule_search_locations += found[:1]
        sys.modules[package] = util.module_from_spec(spec)
        base = sys.modules[package + ".gateway_base"] = type(sys)("gateway_base")
        vars(base).update(globals())
    return package


def _make_module(name: str, file_name: str | None, source: Source) -> ModuleType:
    """Make a module, and the packages that it is in; return it."""
    package, _, leaf = str(name).rpartition(".")
    module = type(sys)(str(name))
    module.__dict__.pop("__spec__", None)  # CPython 3.15 warns of one that is None
    if package and package not in sys.modules:
        _make_module(package, None, "")
    if file_name is None:
        module.__path__ = []
        module.__package__ = name
    else:
        module.__file__ = file_name
        module.__package__ = package
    if type(source) is bytes and not PY2:
        code = __import__("marshal").loads(source)
    else:
        code = compile(source, str(file_name), "exec", 0, True) if source else None
    if code:
        exec(code, module.__dict__)
    if package:  # first: Python 2 looks there for a module that it finds loaded
        vars(sys.modules[package]).setdefault(leaf, module)
    module = sys.modules.setdefault(str(name), module)  # unless another thread was faster
    if package:
        setattr(sys.modules[package], leaf, module)
    return module


# ================================================================ after hello, for all

_MAIN = get_ident(), getattr(_thread, "get_native_id", int)()  # the thread that imports this
_thread_names: dict[int, str] = {}  # of threads that ``threading`` knows nothing of


def _threading() -> ModuleType:
    """Return ``threading``, which a worker imports when it has to: its import takes long.

    It takes the thread that imports it for the main one (since 3.13 only its native id).
    """
    if "threading" not in sys.modules and get_ident() != _MAIN[0]:
        find = __import__("_frozen_importlib_external").PathFinder.find_spec
        places = [getattr(one, "places", None) for one in sys.meta_path[:1]]
        spec = find("threading", *places)
        module = __import__("_frozen_importlib").module_from_spec(spec)
        spec.loader.exec_module(module)
        main, lock = module._main_thread, _thread.allocate_lock()
        main._native_id = _MAIN[1]
        if sys.version_info < (3, 13):
            module._active[_MAIN[0]] = module._active.pop(main._ident)
            module._shutdown_locks.discard(main._tstate_lock)
            module._shutdown_locks.add(lock)
            lock.acquire()  # until the interpreter ends
            main._ident, main._tstate_lock = _MAIN[0], lock
        sys.modules.setdefault("threading", module)  # unless another thread was faster
    return _import("threading")


if sys.version_info < (3, 10) or ISPYPY:
    _threading()


def _run_thread(func: Callable[..., object], args: Sequence[object], name: str) -> None:
    _thread_names[get_ident()] = name
    try:
        func(*args)
    finally:
        del _thread_names[get_ident()]


def threads_are_patched() -> bool:
    module = __import__("thread" if PY2 else "_thread")
    return module.start_new_thread is not _thread.start_new_thread


# ---------------------------------------------------------------- tracing

DEBUG = os.environ.get("EXECNET_DEBUG")


def notrace(*msg: object) -> None:
    """Trace nothing."""


trace = notrace

if DEBUG == "2":

    def trace(*msg: object) -> None:
        """Write a line to stderr."""
        sys.stderr.write("[%d] %s\n" % (os.getpid(), " ".join(map(str, msg))))

elif DEBUG:
    import tempfile

    def _open_trace() -> tuple[str, IO[str]]:
        # For this user only, and never a file or a link that somebody else has put there.
        fd, path = tempfile.mkstemp(prefix="execnet-debug-%d-" % os.getpid())
        return path, os.fdopen(fd, "w")

    fn, _tracefile = _open_trace()

    def trace(*msg: object) -> None:
        """Write a line to the trace file."""
        try:
            _tracefile.write(" ".join(map(str, msg)) + "\n")
            _tracefile.flush()
        except ValueError:  # closed: the interpreter ends
            pass


# ---------------------------------------------------------------- errors, as a gateway has them


class LoadError(DataFormatError):
    """Serialized data is not what a serializer wrote."""


class _NoDump(LoadError, EOFError):
    """There is no dump at all; programs expect either error."""


class TimeoutError(ExecnetError, _TimedOut):  # type: ignore[misc]
    """Nothing came in the time that the caller gave."""


class DeadlockError(ExecnetError, RuntimeError):
    """A callback was about to wait for its own gateway, which reads nothing meanwhile."""


class StreamEnded(ExecnetError, EOFError):
    """The peer has said that nothing more will come."""


# Characters that a terminal obeys, except newlines; also those that change the text direction.
_OBEYED = [n for n in range(160) if n < 32 or n > 126] + list(range(0x202A, 0x202F))
_OBEYED += list(range(0x2066, 0x206A))
_ESCAPES = {n: ("\\x%02x" if n < 160 else "\\u%04x") % n for n in _OBEYED if n not in (9, 10)}


def printable(text: str) -> str:
    """Return text from elsewhere, with escapes for control characters."""
    return text if PY2 else text.replace("\r\n", "\n").translate(_ESCAPES)


class RemoteError(ExecnetError):
    """Code on the other side failed; ``formatted`` is the text of its traceback.

    ``type_name`` is the name of the exception's class, ``message`` its ``str()``; both are None
    where the other side gave a text alone.
    """

    def __init__(
        self, formatted: str, type_name: str | None = None, message: str | None = None
    ) -> None:
        super(RemoteError, self).__init__(formatted)
        self.formatted = formatted
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return printable(self.formatted)

    def __repr__(self) -> str:
        return "%s: %s" % (self.__class__.__name__, self)

    def warn(self, whose: str = "") -> None:
        """Write an unasked message to stderr; errors and interrupts are ignored."""
        if self.formatted != INTERRUPT_TEXT:
            try:
                text = repr(self).rstrip().replace("\n", "\n  ")  # no line seems to be another's
                sys.stderr.write("[%d] Warning: unhandled %s%s\n" % (os.getpid(), whose, text))
            except Exception:  # there is no stderr, or it is some object
                pass


if __name__ == "execnet.gateway_base":  # a copy that runs elsewhere can't be imported from
    _errors: list[type[ExecnetError]] = [DataFormatError, DumpError, LoadError, ProtocolError]
    _errors += [ExecnetError, TimeoutError, DeadlockError, RemoteError]
    for _error in _errors:
        _error.__module__ = "execnet"


class _ErrorText(str):
    """The text of an error, together with the name of its type and its message."""

    details: tuple[str, str] | None = None

    def as_error(self, kind: Callable[..., RemoteError] = RemoteError) -> RemoteError:
        return kind("".join((self,)), *(self.details or ()))


def _told(text: str, exc: object) -> _ErrorText:
    """Return the text of an error as it is sent; never fails, whatever the error does."""
    told = _ErrorText(text)
    try:
        message = _decoded(str(exc))
    except UnicodeError:  # Python 2's, of a text that is not ASCII
        message = type(u"")(exc)
    except:  # noqa: E722 - the error may do anything
        message = "its text can't be read"
    kind = exc if type(exc) is type else type(exc)
    kind = exc.__class__ if kind.__name__ == "instance" else kind  # of an old class of Python 2
    told.details = kind.__name__, "".join((message,))
    return told


INTERRUPT_TEXT = "keyboard-interrupted"
MAIN_THREAD_ONLY_DEADLOCK_TEXT = (
    "concurrent remote_exec would cause deadlock for main_thread_only execmodel"
)


def _keep_spare_fd() -> None:
    try:
        if not _spare_fds and not PY2:  # in Python 2, child processes would inherit it
            _spare_fds.append(os.open(os.devnull, os.O_RDONLY))
    except EnvironmentError:
        pass  # there is none, so nothing is lost


def real_select() -> ModuleType:
    """Return ``select`` with the interpreter's own ``poll``."""
    select = sys.modules.get("select")
    if select is None or getattr(getattr(select, "__spec__", None), "_initializing", False):
        select = _import("select")  # waits while another thread imports it: half of it crashes
    if type(getattr(select, "poll", None)) is type(len) or sys.platform == "win32":
        return select
    return _real("select", "poll")


def _frames_of_user(exc: object, tb: TracebackType | None) -> int | None:
    """Return how many frames lead to the code that gave us an item, without our own."""
    shown, limit = 0, None
    while tb is not None and getattr(exc, "__context__", None) is None:
        name = tb.tb_frame.f_globals.get("__name__")
        is_ours = name == __name__ or str(name).endswith(tuple(FEATURE_PARTS))
        shown, limit = shown + 1, limit if is_ours else shown + 1
        tb = tb.tb_next
    return limit


def _dump_text(text: str) -> bytes:
    data = dumps_internal(_decoded("".join((text,))))
    details = getattr(text, "details", None)
    return data + dumps_internal(details) if details else data


# ---------------------------------------------------------------- loading items

_unpack_int4 = struct.Struct("!i").unpack_from
_unpack_size = struct.Struct("!I").unpack_from  # negative sizes are then beyond the end
_unpack_float = struct.Struct("!d").unpack_from


def _decimal(number: int) -> str:
    """Return ``str(number)`` for a number of any size."""
    if number < 0:
        return "-" + _decimal(-number)
    if number.bit_length() < 3 * _DIGITS:
        return str(number)
    half = number.bit_length() * 3 // 20  # about half of its decimal digits
    high, low = divmod(number, 10**half)
    return _decimal(high) + _decimal(low).rjust(half, "0")


def _parse_decimal(digits: bytes) -> int:
    """Return the number that ``_decimal`` wrote; ValueError for anything else."""
    if not digits.isdigit():
        if not digits[1:].isdigit() or digits[:1] != b"-":
            raise ValueError("not a decimal number: %r" % (digits[:40],))
        return -_parse_decimal(digits[1:])
    if len(digits) <= _DIGITS:
        return int(digits)
    first = len(digits) % _DIGITS
    numbers = [int(digits[:first] or b"0")]
    numbers += [int(digits[at : at + _DIGITS]) for at in range(first, len(digits), _DIGITS)]
    power: int = 10**_DIGITS
    while len(numbers) > 1:  # in pairs, so that one power serves a whole round
        if len(numbers) % 2:
            numbers.insert(0, 0)
        numbers = [numbers[at] * power + numbers[at + 1] for at in range(0, len(numbers), 2)]
        power = power * power if len(numbers) > 1 else 0
    return numbers[0]


def _ints_of_list(items: list[object]) -> bytes:
    """Return the bytes for all items of a list of ints at once; nothing for other lists."""
    count = len(items)
    try:
        if set(map(type, items)) != {int}:
            return b""
        flat = itertools.chain.from_iterable(enumerate(items))
        numbers = struct.pack("!%di" % (2 * count), *flat)
    except struct.error:  # one of them needs more than four bytes
        return b""
    data = bytearray(b"F\0\0\0\0F\0\0\0\0P" * count)
    for n in range(8):
        data[1 + n + n // 4 :: 11] = numbers[n::8]
    return bytes(data)


def _save_channel(out: Any, channel: Channel) -> None:
    gateway = out.__self__.gateway
    if gateway is not None and gateway is not channel.gateway:
        raise DumpError("%r belongs to a gateway and can't leave it" % (channel,))
    out(_pack_op(opcode.CHANNEL, channel.id))


def _find_refused(item: object, parts: _Parts) -> str:
    """Return "path: reason" of the part that can't be serialized; without recursion."""
    found: list[tuple[Any, str, tuple[int, ...]]] = [(item, "item", ())]
    for part, path, around in found:  # it grows: level by level
        reason = "contains itself" if id(part) in around else ""
        if type(part) not in _CONTAINERS:
            try:
                _SAVERS.get(type(part), _refuse)(parts.append, part)
            except DumpError as exc:
                reason = str(exc)
        if reason:
            return "%s: %s" % (path, reason)
        if type(part) in _CONTAINERS and len(around) < 100:
            around += (id(part),)
            shown = "%s{%s}" if type(part) in (set, frozenset) else "%s[%s]"
            entries = part.items() if type(part) is dict else enumerate(part)
            for key, value in entries:
                plain = type(key) in (str, bytes) or (type(key) is int and abs(key) < 1 << 64)
                name = repr(key)[:60] if plain else "<%s>" % type(key).__name__
                found.append((value, shown % (path, name), around))
                if type(part) is dict:
                    found.append((key, "%s, key %s" % (path, name), around))
    return "item: nested too deeply"


def dumps(obj: object) -> bytes:
    """Return the dump of an object that consists of builtin types.

    The type must be exactly None, bool, int, float, complex, str, bytes, list, tuple, dict,
    set or frozenset, for the object and all that is in it.  Raises ``DumpError`` naming the
    part that is something else, is nested too deeply or contains itself.
    """
    return dumps_internal(obj, False, DUMPFORMAT_VERSION)


def dump(byteio: Writes, obj: object) -> None:
    """Write ``dumps(obj)`` to a file that takes bytes."""
    byteio.write(dumps(obj))


_SIZES = dict(zip("CJLPQR@BEFGKODT", [0] * 6 + [4] * 7 + [8, 16]))  # bytes after an opcode


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size > 0:
        data = read(min(size, 1 << 20))  # so that a false size does not allocate much
        if not data:
            raise EOFError("%d bytes are missing" % size)
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _read_item(read: Callable[[int], bytes]) -> bytes:
    """Read the bytes of one item, up to its STOP and not a byte more."""
    parts = []
    op = b""
    while op != opcode.STOP:
        op = _read_exactly(read, 1)
        size = _SIZES.get(op.decode("latin-1"))
        parts.append(op)
        if size is None:
            if op[0] not in _STRINGS:
                raise LoadError("unknown opcode %r" % (op,))
            parts.append(_read_exactly(read, 4))
            size = _unpack_int4(parts[-1])[0]
        parts.append(_read_exactly(read, size))
    return b"".join(parts)


def _check_version(version: bytes) -> None:
    if not version:
        raise _NoDump("an empty dump")
    if version != DUMPFORMAT_VERSION:
        raise LoadError("dump format %r, expected %r" % (version, DUMPFORMAT_VERSION))


class Unserializer(object):
    """Reads items in the classic format from a stream that has ``read``.

    ``channel_or_gateway`` makes the channels that an item may contain and gives the default
    of ``strconfig``, the pair (py2str_as_py3str, py3str_as_py2str).
    """

    def __init__(
        self, stream: Reads, channel_or_gateway: object = None, strconfig: StrConfig | None = None
    ) -> None:
        self.stream = stream
        self.channel_or_gateway = channel_or_gateway
        self.strconfig = strconfig

    def load(self, versioned: bool = False) -> Any:
        """Return the next item.

        Raises ``LoadError`` for data that no serializer wrote and ``EOFError`` where the
        stream ends within an item.
        """
        if versioned:
            _check_version(self.stream.read(1))
        data = _read_item(self.stream.read)
        return loads_internal(data, self.channel_or_gateway, self.strconfig)


def load(io: Reads, py2str_as_py3str: bool = False, py3str_as_py2str: bool = False) -> Any:
    """Return the object whose dump comes next in a file that gives bytes.

    py2str_as_py3str: a str that Python 2 dumped becomes text, as latin-1; else it is bytes.
    py3str_as_py2str: on Python 2, text that Python 3 dumped becomes a str, as UTF-8.
    Raises ``LoadError`` or ``EOFError`` for what is not a whole dump.
    """
    return Unserializer(io, None, (py2str_as_py3str, py3str_as_py2str)).load(True)


def loads(bytestring: bytes, py2str_as_py3str: bool = False, py3str_as_py2str: bool = False) -> Any:
    """Return the object that ``dumps`` made these bytes of; options and errors as ``load``."""
    _check_version(bytestring[:1])
    return _parse(bytes(bytestring), 1, (py2str_as_py3str, py3str_as_py2str), None)


def loads_internal(
    bytestring: bytes, channel_or_gateway: object = None, strconfig: StrConfig | None = None
) -> Any:
    """Return the item that ``dumps_internal`` made these bytes of."""
    if strconfig is None:
        strconfig = getattr(channel_or_gateway, "_strconfig", (True, False))
    return _parse(bytestring, 0, strconfig, channel_or_gateway)


def _parse(data: bytes, pos: int, strconfig: StrConfig, holder: object) -> Any:
    stack: list[object] = []
    value: object
    push, pop, constants, strings = stack.append, stack.pop, _CONSTANTS, _STRINGS
    int4, size, text, int_, set_item = _unpack_int4, _unpack_size, _TEXT, _INT, _SETITEM
    try:
        op = data[pos]  # an int, or in Python 2 a str
        while True:
            pos += 1
            if op == text:
                start = pos + 4
                pos = start + size(data, pos)[0]  # beyond the end there is no next opcode
                try:
                    value = data[start:pos].decode()
                except UnicodeDecodeError:  # it has surrogates, or is broken
                    value = strings[op](data[start:pos], strconfig)
            elif op == int_:
                value = int4(data, pos)[0]
                pos += 4
            elif op == set_item:
                value = pop()
                pos -= 1
            elif op in constants:
                value = constants[op]
            elif op == _NEWDICT:
                value = {}
            elif op == _FLOAT:
                value = _unpack_float(data, pos)[0]
                pos += 8
            elif op in strings:
                start = pos + 4
                pos = start + size(data, pos)[0]
                value = strings[op](data[start:pos], strconfig)
            elif op == _STOP:
                (item,) = stack
                return item
            else:
                value, pos = _parse_other(op, data, pos, stack, holder)
            op = data[pos]
            if op != set_item:
                push(value)
                continue
            pos += 1
            key = pop()
            target = stack[-1]
            if type(target) is dict:
                target[key if type(key) is str else _checked_key(key)] = value
            elif type(target) is not list:
                raise LoadError("inconsistent data: an item for %r" % (type(target),))
            elif key == len(target):
                target.append(value)
            else:
                raise LoadError("inconsistent data: item %.40r of a list" % (key,))
            op = data[pos]
    except struct.error:
        raise EOFError("the data ends within an item")
    except (IndexError, TypeError, ValueError, RuntimeError, MemoryError) as exc:
        if pos >= len(data):
            raise EOFError("the data ends within an item")
        raise LoadError("inconsistent data at byte %d: %s" % (pos, exc))


def _checked_key(key: Any) -> object:
    """Return a key that can be hashed: Python crashes on tuples that are nested too deeply."""
    level, depth = [key], 0
    while level and type(level[0]) in (tuple, frozenset):
        level = [p for part in level for p in part if type(p) in (tuple, frozenset)]
        depth += 1
        if depth > _NESTING_MAX:
            raise LoadError("inconsistent data: a key is nested too deeply")
    return key


def _parse_other(op: int, data: bytes, pos: int, stack: list[object], holder: object) -> Any:
    """Handle the less frequent opcodes; return the value and the position after it."""
    number = _unpack_int4(data, pos)[0]
    pos += 4
    if op in _COLLECTIONS:
        first = len(stack) - number
        if not 0 <= first <= len(stack):
            raise LoadError("inconsistent data: %d items out of %d" % (number, len(stack)))
        parts = stack[first:]
        del stack[first:]
        for part in () if op == _BUILDTUPLE else parts:
            _checked_key(part)
        return _COLLECTIONS[op](parts), pos
    if op == _NEWLIST:
        if not 0 <= number * 7 <= len(data) - pos:  # no item takes less than 7 bytes
            raise LoadError("a list of %d items in %d bytes" % (number, len(data) - pos))
        values = _parse_ints(data[pos : pos + 11 * number], number) if number > 7 else []
        return values, pos + 11 * len(values)
    if op == _COMPLEX:
        return complex(*struct.unpack_from("!dd", data, pos - 4)), pos + 12
    if op == _LONGOP:
        return _LONG(number), pos
    gateway = getattr(holder, "gateway", holder)
    factory: Any = getattr(gateway, "_channelfactory", gateway)
    if op == _CHANNEL and factory is not None:
        return factory.new(number), pos
    shown = data[pos - 5 : pos - 4]
    raise LoadError("unknown opcode, or a channel outside of a gateway: %r" % (shown,))


def _parse_ints(data: bytes, count: int) -> list[int]:
    """Return all items of a list of ints at once; [] for other lists."""
    if data[0::11] != b"F" * count or data[5::11] != data[0::11] or data[10::11] != b"P" * count:
        return []
    numbers = struct.unpack("!" + "xixix" * count, data)
    return list(numbers[1::2]) if numbers[0::2] == tuple(range(count)) else []


def _text(data: bytes, strconfig: StrConfig) -> str:
    return data.decode("utf-8", _SURROGATES)


_LONG = type(sys.maxsize + 1)  # Python 2 has a type of its own for large ints
_CONSTANTS: dict[int, bool | None] = dict(zip(b"LRC", (None, True, False)))
_INT, _SETITEM, _STOP, _NEWDICT, _FLOAT = b"FPQJD"
_BUILDTUPLE, _NEWLIST, _COMPLEX, _LONGOP, _CHANNEL = b"@KTGB"
_TEXT = None if PY2 else opcode.PY3STRING[0]  # text that is decoded in any configuration
_STRINGS: dict[int, Callable[[bytes, StrConfig], object]] = {
    opcode.PY3STRING[0]: (lambda data, conf: data if PY2 and conf[1] else _text(data, conf)),
    opcode.BYTES[0]: lambda data, conf: data,
    opcode.PY2STRING[0]: lambda data, conf: data.decode("latin-1") if conf[0] and not PY2 else data,
    opcode.UNICODE[0]: _text,
    opcode.LONGINT[0]: lambda data, conf: _parse_decimal(data),
    opcode.LONGLONG[0]: lambda data, conf: _LONG(_parse_decimal(data)),
}
_COLLECTIONS: dict[int, type] = dict(zip(b"@OE", (tuple, set, frozenset)))


def dumps_fast(item: object, gateway: object = None) -> bytes:
    """Return an item in the fastest format that can hold it."""
    return (_dump_pickled if type(item) in _CONTAINERS else dumps_internal)(item, gateway)


def load_item(data: bytes, channel_or_factory: object, strconfig: StrConfig) -> Any:
    """Return the item that either codec made these bytes of; ``LoadError`` if none did."""
    try:
        if len(data) == 6 and data[:1] == b"F" and data[5:] == b"Q":  # an int
            return _unpack_int4(data, 1)[0]
        if data[:1] == b"A" and data[1:5] == _pack_size(len(data) - 6) and data[-1:] == b"Q":
            return data[5:-1]  # bytes
        if data[:1] == b"\x80":
            return _load_pickled(data)
        return _parse(data, 0, strconfig, channel_or_factory)
    except Exception as exc:  # EOFError too: the frame was whole, no bytes are on their way
        raise LoadError("inconsistent data: %s" % exc)


def _use_fast_codec() -> None:  # with its first item: what it imports takes long
    global _dump_pickled, _load_pickled
    codec = load_part("_features.codec")
    _dump_pickled, _load_pickled = codec.dump_pickled, codec.load_pickled


def _dump_pickled(item: object, gateway: object) -> bytes:
    try:
        _use_fast_codec()
    except Exception:  # it can't be imported any more
        return dumps_internal(item, gateway)
    return _dump_pickled(item, gateway)


def _load_pickled(data: bytes) -> Any:
    _use_fast_codec()
    return _load_pickled(data)


_NESTING_MAX = 1000  # what the recursion limit allows the classic codec
_INT_FRAME = struct.Struct("!biiBiB")  # the same, and an int between INT and STOP
_pack_int_frame = _INT_FRAME.pack
_pack_bytes_head = struct.Struct("!biici").pack  # the same, and what is in front of bytes
PART_BYTES = 1 << 20  # an item larger than this travels in pieces
READ_BYTES = 1 << 18  # what is read at once, if it is there
ITEM_MAX = PART_BYTES + 4096  # so that what is around 1 MiB goes in one
LARGE_BYTES = 1 << 14  # item frames of this size and more are acted on before they are whole


# ---------------------------------------------------------------- frames, as they come


class FrameDecoder(object):
    """Turns bytes, in whatever cut they come, into messages.  Does no I/O.

    If it ``hands_on``, it yields a large frame of an item in the pieces in which it comes.
    admits: gets the header of a frame; if it returns False, the frame is left out.
    """

    def __init__(self, hands_on: bool = False, admits: Admits | None = None) -> None:
        self._admits = admits
        self._chunks: list[bytes] = []  # received and not yet enough for a message
        self._have = 0
        self.missing = _HEADER.size  # how many bytes ``feed`` needs before it yields anything
        self._hands_on = hands_on
        self._header = b""  # of the frame that is passed on in pieces
        self.left = 0  # bytes of it that are still to come

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that these bytes complete.

        Raises ``ProtocolError`` after the last good message.
        """
        if self.left:
            size = min(self.left, len(data))
            yield self._piece(False, data[:size], self.left - size)
            data = data[size:]
            if not data:
                return
        self._chunks.append(data)
        self._have += len(data)
        self.missing -= len(data)
        if self.missing > 0:
            return
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        pos, end, need = 0, len(data), _HEADER.size
        while pos + need <= end:
            msgcode, channelid, size = parse_header(data, pos)
            start = pos + _HEADER.size
            admitted = msgcode == 4 or not self._admits or self._admits(msgcode, channelid, size)
            large = size >= LARGE_BYTES and self._hands_on and msgcode in (4, 9)
            least = _PART.size if large else size
            if end - start < least:
                need = _HEADER.size + least
                break
            if large:
                self._header = data[pos:start]
                pos = min(start + size, end)
                source: Any = data if PY2 else memoryview(data)
                yield self._piece(True, source[start:pos], start + size - pos)
            else:
                pos = start + size
                if admitted:
                    yield Message(msgcode, channelid, data[start:pos])
        rest = data[pos:]
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        self.missing = need - len(rest)

    def _piece(self, is_first: bool, data: bytes, left: int) -> Message:
        message = Message(*_HEADER.unpack(self._header))
        message.is_first, message.data, message.left = is_first, data, left
        self.left = left
        return message

    def pending(self) -> bytes:
        """Return the beginning of the message that is not complete."""
        return self._header if self.left else b"".join(self._chunks)[:40]

    def describe_end(self) -> str:
        """Return the error for a stream that ends here, in words."""
        return "the stream ended" + (" within %r" % (self.pending(),) if self.pending() else "")


def _try_threading() -> None:
    try:
        _threading()
    except Exception:  # it can't be imported any more; threads do without it
        pass


def _run_starter(thread: Any) -> None:
    """Start a thread from one that meets no interrupt, as that could break ``Thread.start``."""
    try:
        thread.start()
    except RuntimeError:  # there can be no more threads, so do it in this one
        _run_thread(thread.run, (), thread.name)


# ---------------------------------------------------------------- locks and queues


class _Lock(object):
    """A lock for ``with`` that no interrupt leaves taken: doc/interrupts.rst, "Locks"."""

    __slots__ = ("__exit__", "_takes", "acquire", "locked", "release")

    def __init__(self, lock: LockLike) -> None:
        self.acquire = lock.acquire
        self.release = lock.release
        self.locked = lock.locked
        self.__exit__ = lock.__exit__
        self._takes = iter(lock.acquire, None)  # each step takes it

    def __enter__(self) -> bool | None:
        for taken in self._takes:
            return taken
        return None


# Until 3.13, ``with`` enters a lock and its block in one step.
_with_lock = _Lock if sys.version_info >= (3, 14) else lambda lock: lock


def new_lock() -> LockLike:
    """Return a new lock for threads; ``with`` takes it safely where an interrupt may come."""
    return _with_lock(_thread.allocate_lock())


def new_rlock() -> LockLike:
    """Return a new reentrant lock for threads, as ``new_lock``."""
    return _with_lock((_threading() if PY2 else _thread).RLock())


_TIMED_GET_ENDS = PY2 or ISPYPY or not (3, 7) <= sys.version_info[:2] < (3, 13)


def _now() -> float:
    """Return the seconds of a clock that nobody sets, and that tests do not replace."""
    time = _import("time")
    has_clocks = hasattr(time, "clock_gettime")  # not on Windows
    seconds: float = time.clock_gettime(time.CLOCK_MONOTONIC) if has_clocks else time.monotonic()
    return seconds


try:
    from _queue import SimpleQueue as _SimpleQueue  # without the rest of ``queue``
except ImportError:
    _SimpleQueue: Any = None  # type: ignore[no-redef]


class _WakingInbox(_SimpleQueue or object):  # type: ignore[misc]
    """A queue whose ``put_nowait`` also wakes threads that wait with a timeout."""

    waits: Any = ()  # the locks that they wait for, each as key and value

    def put_nowait(self, item: object) -> None:
        self.put(item)
        if self.waits:
            wake_timed(self)


def wake_timed(items: Any) -> None:
    """Wake threads that wait with a timeout; after ``put``, which wakes the others."""
    while hasattr(items, "_items"):  # it is within one that counts, or is for buffers
        items = items._items
    waits = getattr(items, "waits", ())
    while waits:
        try:  # one call, which no interrupt cuts in two
            list(map(_thread.LockType.release, map(waits.pop, list(waits))))
        except KeyError:  # a wait has just ended, or another thread was faster
            pass


class _Timed(object):
    """Makes ``map(items.get, timed)`` wait for one item, which is then taken by a single call.

    It has ``get`` wait no more: that of ``SimpleQueue`` may never end (doc/interrupts.rst, "Waits
    with a timeout").  Where another thread takes the item, ``Empty`` comes though ``left`` is > 0.
    """

    def __init__(self, items: Any, timeout: float) -> None:
        self._items, self.left = items, timeout  # seconds

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> bool:
        items, self._items = self._items, None
        if items is None:
            raise StopIteration
        start = now = _now()
        until, wake = now + self.left, _thread.allocate_lock()
        wake.acquire()
        waits = vars(items).setdefault("waits", {})
        waits[wake] = wake
        try:
            while items.empty() and self.left > 0:  # it looks now and then: ``put`` wakes none
                if wake.acquire(True, min(self.left, 0.5, max(0.1, (now - start) / 4))):
                    waits[wake] = wake  # whoever woke this thread has taken it out
                now = _now()
                self.left = until - now
        finally:
            waits.pop(wake, None)
        return False


def _timed(items: Inbox, timeout: float | None) -> Any:
    """Return the arguments of ``map(items.get, ...)`` that take an item within a time."""
    if timeout is None or timeout <= 0 or _TIMED_GET_ENDS or not hasattr(items, "waits"):
        return (timeout is None or timeout > 0,), (timeout and max(timeout, 0),)
    return (_Timed(items, timeout),)


def _own_inbox() -> Inbox:
    """Return a queue for a Python that has none in C."""
    try:
        return load_part("_features.queues").OwnInbox()  # type: ignore[no-any-return]
    except ImportError:  # this module runs all alone
        return __import__("queue").Queue()  # type: ignore[no-any-return]


# ---------------------------------------------------------------- worker pool


class Reply(object):
    """The result, now or later, of a function that a pool runs."""

    def __init__(self, task: Job, execmodel: ExecModel) -> None:
        self.task = task
        self.running = True
        self.started = False
        self.ident = 0  # of the thread that runs it
        self._result: object = None
        self._error: BaseException | None = None
        self._finished = _Flag(execmodel)

    def get(self, timeout: float | None = None) -> Any:
        """Return the function's result or raise its exception, at every call.

        Raises OSError if it has not ended after ``timeout`` seconds.
        """
        self.waitfinish(timeout)
        if self._error is not None:
            raise self._error
        return self._result

    def waitfinish(self, timeout: float | None = None) -> None:
        """Wait until the function has ended; OSError after ``timeout`` seconds."""
        if not self._finished.wait(timeout):
            raise _OSError("not finished after %s seconds: %r" % (timeout, self.task[0]))

    def _run(self) -> None:
        func, args, kwargs = self.task
        try:
            self.ident = get_ident()
            self.started = True
            self._result = func(*args, **kwargs)
        except:  # noqa: E722 - in Python 2 not all that is raised is a BaseException
            self._error = sys.exc_info()[1]

    def _finish(self) -> None:
        self.running = False
        self._finished.set()


class WorkerPool(object):
    """Runs functions at once.

    With ``hasprimary``, one thread (the caller of ``integrate_as_primary_thread``) is the
    pool's primary: a task goes to it whenever it is free, and always under
    ``main_thread_only``.  ``_lock`` guards the sets and flags; any thread may call.
    """

    def __init__(self, execmodel: ExecModel, hasprimary: bool = False) -> None:
        if hasprimary and not execmodel.has_main_thread:
            raise ValueError("%r can't hand tasks to a main thread" % (execmodel,))
        self.execmodel, self.start = execmodel, execmodel.start
        self._running: set[Reply] = set()
        self._lock = execmodel.Lock()
        self._shutting_down = False
        self._idle_events: list[_Flag] = []
        self._hasprimary = hasprimary
        self._primary_only = hasprimary and execmodel.backend == "main_thread_only"
        self._primary_tasks: deque[Reply | None] = deque()  # the first one stays until it has ended
        self._primary_wake = execmodel.inbox()  # gets something after each of them
        self._primary_idle = _Flag(execmodel)  # a new one whenever it is claimed
        self._primary_owner: Reply | None = None  # the task that it was claimed for
        self._primary_ident = 0
        self._primary_idle.set()

    def active_count(self) -> int:
        """Return how many functions have not ended."""
        return len(self._running)

    def idents(self) -> set[int]:
        """Return the threads that run functions now."""
        return {reply.ident for reply in list(self._running)} - {0}

    def spawn(self, func: Callable[..., object], *args: object, **kwargs: object) -> Reply:
        """Run ``func(*args, **kwargs)``; ``ValueError`` after a shutdown was triggered."""
        reply = Reply((func, args, kwargs), self.execmodel)
        with self._lock:
            if self._shutting_down:
                raise ValueError("the pool is shutting down, it takes no more tasks")
            self._running.add(reply)
            to_primary = self._primary_only or self._claim_primary(reply)
            if to_primary:  # in here, so that a shutdown can't come in front of it
                self._primary_tasks.append(reply)
                self._primary_wake.put(None)
        if not to_primary:
            self._start_thread(reply)
        return reply

    def try_spawn_primary(self, func: Callable[..., object], *args: object) -> Reply | None:
        """Run ``func`` in the primary thread, or return None if that is busy."""
        reply = Reply((func, args, {}), self.execmodel)
        with self._lock:
            if self._shutting_down or not self._claim_primary(reply):
                return None
            self._running.add(reply)
            self._primary_tasks.append(reply)
            self._primary_wake.put(None)
        return reply

    def wait_primary_idle(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the primary thread; return whether it is free."""
        return self._primary_idle.wait(timeout)

    def release_primary(self) -> None:
        """Let the primary thread get its next task, as the current one only has to return."""
        with self._lock:
            if self._primary_owner is not None and self._primary_ident == get_ident():
                self._release(self._primary_owner)

    def _claim_primary(self, reply: Reply) -> bool:  # holds _lock
        if not self._hasprimary or self._primary_owner is not None:
            return False
        self._primary_owner = reply
        self._primary_idle = _Flag(self.execmodel)
        return True

    def _release(self, reply: Reply) -> None:  # holds _lock
        if self._primary_owner is reply:
            self._primary_owner = None
            self._primary_idle.set()

    def _start_thread(self, reply: Reply) -> None:
        try:
            _try_threading()  # the task may look at its thread
            self.start(self._perform, (reply,), "execnet-task")
        except BaseException:  # there can be no more threads
            self._finished(reply)
            raise

    def _perform(self, reply: Reply) -> None:
        if not reply.started:  # else an interrupt came after its end
            reply._run()
        with self._lock:
            self._release(reply)
        self._finished(reply)

    def _finished(self, reply: Reply) -> None:
        with self._lock:
            self._running.discard(reply)
            reply._finish()
            if not self._running:
                while self._idle_events:
                    self._idle_events.pop().set()

    def integrate_as_primary_thread(self) -> None:
        """Run the primary's tasks in the calling thread, until the pool is shut down."""
        self._primary_ident = get_ident()
        tasks = self._primary_tasks
        while True:
            try:
                self._primary_wake.get()
                while tasks:
                    if tasks[0] is None:
                        return
                    self._perform(tasks[0])
                    tasks.popleft()
            except KeyboardInterrupt:
                # Ctrl-C in a terminal reaches idle workers too; their coordinator decides
                # what becomes of them.
                self._primary_wake.put(None)

    def trigger_shutdown(self) -> None:
        """Take no more tasks, and release the primary thread when its own are done."""
        with self._lock:
            self._shutting_down = True
        self._primary_tasks.append(None)
        self._primary_wake.put(None)

    def waitall(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds until no function runs; return whether that is so."""
        idle = _Flag(self.execmodel)
        with self._lock:
            if not self._running:
                return True
            self._idle_events.append(idle)
        return idle.wait(timeout)

    def terminate(self, timeout: float | None = None) -> bool:
        """Trigger the shutdown and ``waitall(timeout)``."""
        self.trigger_shutdown()
        return self.waitall(timeout)


# ---------------------------------------------------------------- the writer

JOINED_BYTES = 16384  # a smaller payload is cheaper to copy than to send by itself


def _left(frame: Frame) -> int:
    """Return how many bytes of a frame were not written yet."""
    left: int = len(frame[0]) + len(frame[1]) - sum(filter(None, frame[2]))
    return left


class FrameWriter(object):
    """Puts whole frames on a stream, in the order in which they were handed in.

    Any thread may call.  The thread that holds ``_lock`` writes its own frame and those queued
    meanwhile.  A frame is a list: header, payload, how much each system call took, whether it
    was handed in.  What is done and the note of it are one step, so whoever writes next goes on
    where an interrupt, or a stream that was full, left it: doc/interrupts.rst, "Frames".
    """

    def __init__(self, io: Stream, name: str) -> None:
        self._io = io
        self._name = name
        self._small_bytes = getattr(io, "small_bytes", 0) - _HEADER.size
        self._write_some: Any = getattr(io, "write_some", None) or self._write_whole
        self._write_pieces: Any = getattr(io, "write_pieces", None)
        self._takes_whole: bool = getattr(io, "takes_whole", False)
        self._lock = io.execmodel.Lock()
        self._turn = io.execmodel.Lock()  # whoever holds it and waits for _lock gets that next
        self._begun: Frame | None = None  # the frame that is written without being queued
        self._frames: deque[Frame] = deque()  # the first one may be written in part
        self._flusher_runs = False
        self.no_thread = ""  # why no flusher could be started, if one was to be
        self._closing = self._closed = False
        self._error: str | None = None
        self.refusal: Callable[[str], Exception] = _OSError  # the error once it has failed

    def frame(self, header: bytes, payload: Piece) -> Frame:
        """Return a frame for ``deliver``."""
        if len(payload) < JOINED_BYTES or self._write_pieces is None:
            header, payload = b"".join((header, payload)), b""
        return [header, payload, [], []]

    def send(self, header: bytes, payload: Piece) -> None:
        """Write a frame; returns when the stream has taken it, OSError if it can't."""
        if len(payload) < self._small_bytes and not self._frames:
            try:
                with self._lock:
                    if not (self._frames or self._begun or self._closing or self._error):
                        data = header + payload
                        if self._takes_whole:
                            if self._write_some(data):
                                return
                        else:
                            counts: list[int | None] = []
                            self._begun = [data, b"", counts, [None]]
                            counts += map(self._write_some, (data,))
                            if counts[0] == len(data):
                                self._begun = None
                                return
                            self._flush()
                            if self._error is None:
                                return
            except (OSError, ValueError) as exc:  # ValueError: the file is closed
                if not _is_full(exc):
                    self.fail(str(exc))
            finally:
                if self._frames or self._begun or self._closing:
                    self._flush_queued()
        self.deliver(self.frame(header, payload))

    def deliver(self, frame: Frame) -> None:
        """Send a frame; after an interrupt, a second call does not send it twice."""
        small = len(frame[0]) + len(frame[1]) < self._small_bytes
        if self._error is None and not self._closing:
            try:
                if not self.has(frame):
                    frame[3] += map(self._frames.append, (frame,))
                with self._turn:  # else a busy thread would take ``_lock`` again and again
                    if small:
                        with self._lock:
                            self._flush()
                if not small:
                    with self._lock:
                        self._flush()
            finally:
                self._flush_queued()
        if _left(frame):
            reason = self._error or "the gateway was ended"
            raise self.refusal("cannot send (already closed?): %s" % reason)

    def has(self, frame: Frame) -> bool:
        """Whether a frame was handed in: then it is or will be written, whatever happens."""
        return bool(frame[3])

    def post(self, header: bytes, payload: Piece) -> None:
        """Have a frame written soon; never waits.  For the receiver thread and finalizers."""
        self.post_frame(self.frame(header, payload))

    def post_frame(self, frame: Frame) -> None:
        """Have a frame written soon, as ``post``; a second call does not send it twice."""
        if self._error is None and not self._closing and not self.has(frame):
            frame[3] += map(self._frames.append, (frame,))
            self._flush_queued()

    def close_soon(self) -> None:
        """Close the stream after the frames that are waiting; never waits."""
        self._closing = True
        self._flush_queued()

    def fail(self, reason: str) -> None:
        """Refuse all frames from now on, and drop those that are waiting."""
        if self._error is None:
            self._error = reason
        self._flush_queued()

    def _flush(self, may_wait: bool = True) -> bool:  # holds _lock
        """Write the waiting frames; False if that has to wait and must not."""
        while self._error is None and (self._begun or self._frames):
            frame = self._begun or self._frames[0]
            left = _left(frame)
            if not left or (frame is self._begun and not frame[2]):  # not begun: an interrupt came
                if frame is self._begun:
                    self._begun = None
                else:
                    del self._frames[0]
            elif may_wait or (left <= 4096 and self._io.can_write_now()):
                try:
                    self._advance(frame)
                except (OSError, ValueError) as exc:
                    self.fail(str(exc))
            else:
                return False
        if self._error is not None:
            self._begun = None
            self._frames.clear()
        if self._closing and not self._closed:
            self._error = self._error or "the gateway was ended"
            try:
                self._io.close_write()
            except (OSError, ValueError):  # it is closed then
                pass
            self._closed = True
        return True

    def _advance(self, frame: Frame) -> None:  # holds _lock
        """Write what one system call takes of a frame."""
        header, payload, counts, _ = frame
        start = sum(filter(None, counts)) - len(header)
        write, rest = self._write_some, header[start:] if start < 0 else memoryview(payload)[start:]
        if start < 0 and payload:
            write, rest = self._write_pieces, (rest, payload)
        try:
            counts += map(write, (rest,))
            full = not counts[-1]
        except EnvironmentError as exc:
            full = _is_full(exc)
            if not full:
                raise
        if full:
            self._io.wait_writable()

    def _write_whole(self, data: bytes) -> int:
        """Write to a stream that is not ours and can't say how much it took."""
        try:
            self._io.write(data)
        except (OSError, ValueError):
            raise
        except BaseException:
            self.fail("interrupted in the middle of a frame")
            raise
        return len(data)

    def _has_work(self) -> bool:
        waiting = bool(self._frames or self._begun)
        return waiting or (self._closing and not self._closed)

    def _flush_queued(self) -> None:
        """Write what was left while the lock was taken, or have the flusher wait for it.

        The thread that holds the lock comes here afterwards, so no frame is lost without it.
        """
        try:
            while self._has_work() and not self._flusher_runs:
                (taken,) = map(self._lock.acquire, (False,))  # doc/interrupts.rst, "Locks"
                try:
                    if not taken:
                        return
                    flushed = self._flush(may_wait=False)
                finally:
                    if taken:
                        self._lock.release()
                if not flushed:
                    self._start_flusher()
                    return
        except BaseException:  # an interrupt; nobody else may come here for a long time
            self._start_flusher()
            raise

    def _start_flusher(self) -> None:
        self._flusher_runs = True
        try:
            self._io.execmodel.start(self._run_flusher, (), "execnet-flusher-%s" % self._name)
        except BaseException as exc:
            self._flusher_runs = False
            if not isinstance(exc, RuntimeError):  # there can be no more threads
                raise
            self.no_thread = str(exc)  # what is left goes out with the next frame

    def _run_flusher(self) -> None:
        with self._lock:
            self._flusher_runs = False
            self._flush()
        self._flush_queued()


# Elsewhere a read and the append of its bytes are no single call, or a pipe can't be polled.
CAN_READ_DIRECTLY = HAS_PARTS and not (PY2 or ISPYPY or sys.platform == "win32")


# ---------------------------------------------------------------- channels

NO_ENDMARKER_WANTED = object()
ENDMARKER = object()


class ChannelState(object):
    """The states of a channel, what may be done in each, and how one leads to another.

    A channel only goes forward, in the order in which the states stand here: an event leads to
    its state unless the channel is beyond it.  (The receiver thread may hold a channel that its
    last owner has just dropped.)
    """

    OPEN = "open"
    SEND_ONLY = "send-only"  # the far side dropped it; its callback still takes items
    RECEIVE_CLOSED = "receive-closed"  # the gateway's stream has ended
    CLOSED = "closed"
    DELETED = "deleted"

    ORDER = (OPEN, SEND_ONLY, RECEIVE_CLOSED, CLOSED, DELETED)
    SENDS = frozenset([OPEN, SEND_ONLY])
    RECEIVES = frozenset([OPEN])
    AFTER = {"far_drop": SEND_ONLY, "stream_end": RECEIVE_CLOSED, "close": CLOSED, "drop": DELETED}


def _refusal(gateway: object, text: str) -> Exception:
    """Return the error for a refused send, with the reason if the gateway was lost."""
    error: Any = getattr(gateway, "_error", None)
    if hasattr(error, "as_refusal"):  # a ``WorkerDied``, which only coordinators have
        return error.as_refusal()  # type: ignore[no-any-return]
    return _OSError(text + (": %s" % error if error is not None else ""))


def _refuse_in_callback(gateway: object, waited_for: object) -> None:
    """Raise ``DeadlockError`` in a thread that would have to read what it waits for.

    That is the receiver thread of a gateway, or of one that it goes via.
    """
    link: Any = gateway
    while link is not None:
        reader = getattr(link, "_receiver_ident", None)
        if reader is not None and reader == link._get_ident():
            raise DeadlockError(
                "a callback of %s can't wait for %r: %s reads nothing before it returns"
                % (link.id, waited_for, link.id)
            )
        link = getattr(getattr(link, "_io", None), "carrier", None)


class _Flag(object):
    """An event that is never cleared.

    It has no lock, unlike ``threading.Event``, whose lock an interrupt may leave taken for ever.
    """

    def __init__(self, execmodel: ExecModel) -> None:
        self._execmodel, self._is_set = execmodel, False
        self._tokens = execmodel.inbox()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._tokens.put_nowait(None)
        self._is_set = True  # comes last, as a thread that sees it may end the interpreter

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            timed = _timed(self._tokens, timeout)
            try:
                for token in map(self._tokens.get, *timed):
                    self._tokens.put(token)  # others may be waiting too
                    self._is_set = True
                    wake_timed(self._tokens)
            except self._execmodel.Empty:
                if isinstance(timed[0], _Timed) and timed[0].left > 0:  # another has it
                    return self.wait(timed[0].left)
        return self._is_set


class Channel(object):
    """Carries items to code on the other side of a gateway, and back.

    Any thread may call any method.  ``_lock`` guards the state, and the change from queue to
    callback.
    """

    RemoteError = RemoteError
    TimeoutError = TimeoutError
    _INTERNALWAKEUP = 1000  # nothing wakes up in between; programs look for the name
    _executing = False
    _whose = ""  # what a warning of an error begins with
    _codec: object = None
    # What makes items of other types than builtins; None: nothing does.  See ``_features.codecs``.
    codec: Any = property(
        lambda self: self._codec, lambda self, codec: load_part("_features.codecs").use(self, codec)
    )

    def __init__(self, gateway: Any, id: int, _factory: ChannelFactory | None = None) -> None:
        self.gateway = gateway
        self.id = id
        self._factory: ChannelFactory = _factory or gateway._channelfactory
        self._strconfig: StrConfig = getattr(gateway, "_strconfig", (True, False))
        self._state = ChannelState.OPEN
        self._lock = gateway.execmodel.Lock()
        self._items: Inbox | None = gateway.execmodel.inbox()  # None once there is a callback
        self._arrivals = iter(self._items.get, NO_ENDMARKER_WANTED)
        self._receiveclosed = _Flag(gateway.execmodel)
        self._remoteerrors: list[BaseException] = []

    def __repr__(self) -> str:
        return "<Channel id=%d %s>" % (self.id, self._state)

    def __del__(self) -> None:
        if getattr(self, "_remoteerrors", None) is None or self.gateway is None:  # not fully made
            return
        channels = self._factory._channels
        if channels.get(self.id) is self:  # weak references live on while this runs
            channels.pop(self.id, None)
        try:
            state = self._go("drop")
        except AttributeError:  # the interpreter is being torn down, its modules are empty
            return
        for error in self._remoteerrors:
            if isinstance(error, RemoteError):
                error.warn(self._whose)
        if state in ChannelState.SENDS:
            receives = self._items is None and state == ChannelState.OPEN
            code = Message.CHANNEL_LAST_MESSAGE if receives else Message.CHANNEL_CLOSE
            try:
                self._factory.post(code, self.id)
            except Exception:  # the interpreter is being torn down, or the gateway is gone
                pass

    def _go(self, event: str) -> str:
        """Do a transition and return the previous state."""
        with self._lock:
            before = self._state
            self._state = max(before, ChannelState.AFTER[event], key=ChannelState.ORDER.index)
        if self._state not in ChannelState.RECEIVES and not self._receiveclosed.is_set():
            items = self._items
            try:
                if items is not None:
                    items.put(ENDMARKER)
                    wake_timed(items)
            finally:
                self._receiveclosed.set()
        if self._state not in ChannelState.SENDS and self._factory.windows is not None:
            self._factory.windows.wake()
            self._factory.windows.forget(self.id)
        return before

    def _set_inbox(self, items: Inbox) -> None:
        self._items = items
        self._arrivals = iter(items.get, NO_ENDMARKER_WANTED)

    def _count(self, size: int) -> None:
        # Before ``put``: a reader that waits for the next item has to find the size.
        sizes = getattr(self._items, "sizes", None)
        if sizes is not None:
            sizes.append(size)

    def set_window(self, window_bytes: int) -> None:
        """Bound what this channel has on its way and unread, in either direction.

        window_bytes: how many bytes, at least 1.  From then on ``send`` waits until the other
        side has read enough, but never for an item while nothing else is unread, and raises
        OSError if the channel ends meanwhile; in a callback of the gateway ``DeadlockError``.
        """
        if type(window_bytes) is not int or window_bytes < 1:
            raise ValueError("a window is a number of bytes above 0, not %r" % (window_bytes,))
        self.gateway._send(Message.WINDOW, self.id, dumps_internal(window_bytes))
        Message(Message.WINDOW, self.id, dumps_internal(window_bytes)).received(self.gateway)

    # sending

    def send(self, item: object) -> None:
        """Send an item; returns when the stream has taken it, not when it was received.

        It waits as long as the other side's process neither reads nor ends; in a callback of
        the gateway it never does.  What ends the gateway, in whatever thread, ends the wait.
        item: None, bool, int, float, complex, str, bytes, a list, tuple, dict, set or
        frozenset of these, or channels of this gateway anywhere in it.
        Raises ``DumpError`` for anything else, OSError if the channel can't send any more,
        ``DeadlockError`` in a callback if its window is full.
        """
        if self._state not in ChannelState.SENDS:
            raise _refusal(self.gateway, "cannot send to %r of %r" % (self, self.gateway))
        self._factory.send_item(self.id, item)

    def close(self, error: str | None = None) -> None:
        """Close the channel on both sides; the far side gets ``error`` as a RemoteError.

        Raises OSError within the code that the channel was made for: it is closed for it.
        """
        if self._executing:
            raise _OSError("cannot explicitly close channel within remotely executed code")
        if self._go("close") in ChannelState.SENDS:
            code = Message.CHANNEL_CLOSE if error is None else Message.CHANNEL_CLOSE_ERROR
            try:
                self.gateway._send(code, self.id, b"" if error is None else _dump_text(error))
            except OSError:  # the gateway is gone, so the far side is closed as well
                pass
        if self._factory._channels.get(self.id, self) is self:  # else its id was used again
            self._factory._no_longer_opened(self.id)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the code that this channel was made for; does not wait.

        It does nothing if that has ended.  In the main thread of the worker it also ends waiting;
        in other threads what waits in C meets it afterwards, and on PyPy and with greenlets there
        is none.  Raises OSError if the worker is gone, or executes nothing for this side.
        """
        interrupt = getattr(self.gateway, "_interrupt", None)
        if interrupt is None:
            raise _OSError("%r can't be interrupted from this side" % (self,))
        interrupt(self.id)

    def isclosed(self) -> bool:
        """Whether nothing can be sent or received any more, but for items in the queue."""
        return self._state not in ChannelState.SENDS

    def send_bytes(self, buffer: Any) -> None:
        """Send what an object with a buffer holds, such as an array, as an item of bytes.

        Many bytes are not copied: leave them as they are until it returns.  Raises as ``send``,
        TypeError for an object without a buffer, BufferError if its bytes are not in one piece.
        """
        load_part("_features.buffers").send_bytes(self, buffer)

    def new_buffer(self, size: int) -> memoryview:
        """Return memory of ``size`` bytes, whatever is in it, to fill and then to send_bytes.

        With buffers=shared it is not copied then, but becomes the other side's.
        """
        buffers = self._factory.buffers
        shared = None if buffers is None else buffers.shared
        return memoryview(bytearray(size)) if shared is None else shared.new(size)

    # receiving

    def receive_into(self, buffer: Any, timeout: float | None = None) -> int:
        """Put the next item, which has to be bytes, into a buffer, and return their number.

        Waits and raises as ``receive``; ValueError for an item that is larger than the buffer,
        TypeError for one that is not bytes.  The item then stays for the next receive.  Whatever it
        raises, nothing writes to the buffer any more.
        """
        into: Callable[..., int] = load_part("_features.buffers").receive_into
        for size in map(into, (self,), (buffer,), (timeout,)):  # as in ``receive``
            return size
        raise AssertionError("a call returned nothing")

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next item, waiting for it up to ``timeout`` seconds (None: for ever).

        Raises ``TimeoutError``; when all items were taken and the other side closed the
        channel, ``EOFError``, or the ``RemoteError`` that ended it; if the gateway was lost,
        the error that says why; OSError if the channel has a callback; ``DeadlockError`` if a
        callback of the same gateway would have to wait.
        """
        items = self._items
        if items is None:
            raise _OSError("cannot receive(), %r has a callback" % (self,))
        arrivals = self._arrivals
        timed: Any = (None,)
        if timeout is not None:
            timed = _timed(items, timeout)
            arrivals = map(items.get, *timed)
        direct = self._factory.direct
        me: object = None
        waiting: dict[object, Inbox] = {me: items}  # in place of the real one: no jump in the end
        if (
            not (direct and direct.offered and direct.read(self, items, timeout))
            and items.empty()
            and timeout != 0
        ):
            _refuse_in_callback(self.gateway, self)
            if direct:
                me = object()
                waiting = direct.waiting
                waiting[me] = items
        try:
            if me is not None:
                self._factory.take_back()
            # No call and no jump is between the taking of an item and the return, so that no
            # interrupt loses it: doc/interrupts.rst, "Items".
            for item in arrivals:
                if item is not ENDMARKER:
                    return item
                items.put(item)  # others may be waiting too
                wake_timed(items)
                break
        except self.gateway.execmodel.Empty:
            if isinstance(timed[0], _Timed) and timed[0].left > 0:  # another thread was faster
                return self.receive(timed[0].left)
            raise self.TimeoutError("no item after %r seconds from %r" % (timeout, self))
        finally:
            del waiting[me]
        if self._items is None:
            raise _OSError("cannot receive(), %r got a callback meanwhile" % (self,))
        if self._items is not items:  # it got a codec meanwhile, and so another method
            return self.receive(timeout)
        raise self._getremoteerror() or EOFError("%r has no more items" % (self,))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.receive()
        except EOFError:
            raise StopIteration

    next = __next__

    def waitclose(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds until no more items can arrive.

        Raises ``TimeoutError``, the ``RemoteError`` of the code on the other side, the error
        that says why the gateway was lost, or ``DeadlockError`` if a callback of the same
        gateway would have to wait.
        """
        self._factory.take_back()
        if timeout != 0 and not self._receiveclosed.is_set():
            _refuse_in_callback(self.gateway, self)
        if not self._receiveclosed.wait(None if timeout is None else max(timeout, 0)):
            raise self.TimeoutError("%r not closed after %r seconds" % (self, timeout))
        error = self._getremoteerror()
        if error is not None:
            raise error

    def _getremoteerror(self) -> BaseException | None:
        """Remove and return the error that ended the channel; None if there was none."""
        try:
            found = self._remoteerrors[0]
            del self._remoteerrors[0]  # in two steps, as an interrupt after ``pop`` would lose it
            return found
        except IndexError:
            error: BaseException | None = getattr(self.gateway, "_error", None)
            if error is None:
                return None
            try:  # each thread that raises it needs a traceback of its own
                error = _import("copy").copy(error)
            except Exception:  # nothing can be imported any more
                pass
            return error

    def setcallback(
        self, callback: Callable[[Any], object], endmarker: object = NO_ENDMARKER_WANTED
    ) -> None:
        """Have ``callback(item)`` called for every item, those in the queue at once.

        callback: runs in the gateway's receiver thread; if it raises, the channel closes
        and both sides get the error.  endmarker: passed to it once, after the last item.
        Raises OSError if there is a callback already.
        """
        _try_threading()  # the callback may look at its thread
        items = self._items
        entry = _Callback(callback, endmarker, self)
        well = True
        while items is not None:
            with self._lock:
                if self._items is None:
                    break
                item = self._take_queued(items) if well else ENDMARKER
                if item is ENDMARKER:  # from now on items go to the callback
                    self._items = None
                    if not self._receiveclosed.is_set():
                        self._factory._callbacks[self.id] = entry
                    items.put(ENDMARKER)  # for whoever waits in receive()
                    wake_timed(items)
            if item is ENDMARKER:
                self._factory.take_back()
                if self._receiveclosed.is_set():
                    self._factory._no_longer_opened(self.id)
                    entry.finish()
                return
            well = self._factory.call(self.id, entry, item)
        raise _OSError("%r has a callback already" % (self,))

    def _take_queued(self, items: Inbox) -> object:
        try:
            return items.get(False)
        except self.gateway.execmodel.Empty:  # or somebody in receive() was faster
            return ENDMARKER

    def makefile(self, mode: str = "w", proxyclose: bool = False) -> Any:
        """Return a file over this channel.

        mode: "w" sends what is written, "r" reads the items' text one after the other.
        proxyclose: closing the file closes the channel.  Other modes: ValueError.
        """
        if mode not in ("w", "r"):
            raise ValueError("mode %r is not available, it must be 'w' or 'r'" % (mode,))
        return load_part("_features.files").KINDS[mode](channel=self, proxyclose=proxyclose)

    def reconfigure(self, py2str_as_py3str: bool = True, py3str_as_py2str: bool = False) -> None:
        """Set how strings between Python 2 and 3 are read, on both sides of this channel.

        py2str_as_py3str: Python 2's str is read as text (latin-1) by Python 3, else as bytes.
        py3str_as_py2str: Python 3's str is read as str (UTF-8) by Python 2, else as unicode.
        """
        strconfig = (py2str_as_py3str, py3str_as_py2str)
        self._factory.prepare(self.id, lambda holder: setattr(holder, "_strconfig", strconfig))
        self.gateway._send(Message.RECONFIGURE, self.id, dumps_internal(strconfig))


_SAVERS[Channel] = _save_channel


class _Callback(object):
    """A channel's callback; outlives the channel object.

    ``_turn`` is held while the callback runs, so the endmarker overtakes no item: whoever
    holds it when the end comes passes the endmarker after its own call.
    """

    def __init__(self, callback: Callable[..., object], endmarker: Any, channel: Channel) -> None:
        self._callback = callback
        self._endmarker = endmarker
        self._strconfig = channel._strconfig
        self._turn = channel.gateway.execmodel.Lock()
        self._ended = False
        # True for some milliseconds, while another thread may read and does not.
        self.may_be_late: bool = getattr(callback, "may_be_late", False)

    def __call__(self, item: object) -> None:
        try:
            with self._turn:
                if not self._ended:
                    self._callback(item)
        finally:
            if self._ended:
                self.finish()

    def finish(self) -> None:
        """Pass the endmarker, the first time."""
        self._ended = True
        if not self._turn.acquire(False):
            return  # whoever holds it looks at ``_ended`` afterwards
        try:
            endmarker, self._endmarker = self._endmarker, NO_ENDMARKER_WANTED
            if endmarker is not NO_ENDMARKER_WANTED:
                self._callback(endmarker)
        finally:
            self._turn.release()


class ChannelFactory(object):
    """The channels of one gateway.

    ``_channels`` is weak: a channel lives as long as somebody holds it.  ``_callbacks``
    keeps those that still receive.  ``lock`` guards the making of channels.
    """

    _keeps_freed = False  # whether this process was told to
    load_item = staticmethod(load_item)  # for a peer that may mean harm: one that looks first

    def __init__(self, gateway: BaseGateway, startcount: int = 1) -> None:
        self._channels: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()
        self._callbacks: dict[int, _Callback] = {}
        self.parts: dict[PartKey, tuple[bytes, BytesIO]] = {}
        self.coming_part: tuple[PartKey, int] = (0, None), 0  # and 1 if it is the last
        self.max_item: int | None = None  # bytes of all items of which some pieces have come
        self._early: dict[int, list[Prepare]] = {}  # prepares channels that have not come yet
        self.arrived: deque[int] = deque(maxlen=10000)  # ids that the peer gave, the last ones
        self._item_numbers = itertools.count(1)
        self.lock = new_rlock()  # held only for moments, so it will do for greenlets as well
        self.gateway = gateway
        self.count = startcount
        self.finished = False
        self.fast = False  # whether both ends have the fast codec
        self.direct: DirectReads | None = None
        self.windows: Windows | None = None
        self.buffers: Any = None  # those that large items may go to: ``_features.buffers``
        self.post: Callable[..., None] = getattr(gateway, "_post", gateway._send)
        self._send_frame: Callable[..., None] = getattr(gateway, "_send_frame", self._send_message)
        self._make_channel: Callable[..., Channel] = getattr(gateway, "_make_channel", Channel)

    def new(self, id: int | None = None) -> Channel:
        """Return the channel with that id, which is made if there is none."""
        with self.lock:
            if self.finished:
                raise _refusal(self.gateway, "connection already closed: %r" % (self.gateway,))
            if id is None:
                id = self.count
                self.count += 2
            channel = self._channels.get(id)
            if channel is None:
                channel = self._channels[id] = self._make_channel(self.gateway, id, self)
                if (id ^ self.count) & 1:
                    self.arrived.append(id)
                for prepare in self._early.pop(id, ()):
                    prepare(channel)
                if self.windows is not None:
                    self.windows.adopt(channel)
            return channel

    def prepare(self, id: int, prepare: Prepare) -> None:
        """Pass what takes the items of a channel, itself or its callback, to a function."""
        holders = [holder for holder in (self._channels.get(id), self._callbacks.get(id)) if holder]
        for holder in holders:
            prepare(holder)
        if not holders:
            self._early.setdefault(id, []).append(prepare)  # the item that brings it is on its way

    def channels(self) -> list[Channel]:
        """Return the channels that somebody holds."""
        # Not ``values()``, which an interrupt may leave at work: no channel was forgotten then.
        found = [ref() for ref in self._channels.valuerefs()]
        return [channel for channel in found if channel is not None]

    def send_item(self, id: int, item: object) -> None:
        """Send an item over the channel with that id, a large one in pieces."""
        # What the rest would come to, for what is often sent: 4 is CHANNEL_DATA, 70 is INT.
        if type(item) is int and -(1 << 31) < item < 1 << 31 and self.windows is None:
            self._send_frame(_pack_int_frame(4, id, 6, 70, item, 81), b"")
            return
        if type(item) is bytes and len(item) < 16384 and self.windows is None and not PY2:
            head = _pack_bytes_head(4, id, len(item) + 6, opcode.BYTES, len(item))
            self._send_frame(head, item + opcode.STOP)
            return
        if type(item) is bytes and READ_BYTES <= len(item) <= FOUR_BYTE_INT_MAX and not PY2:
            # From the user's object to the descriptor: its opcodes go in pieces of their own.
            pieces = [_pack_op(opcode.BYTES, len(item)), item, opcode.STOP]
        else:
            data = (dumps_fast if self.fast else dumps_internal)(item, self.gateway)
            if len(data) <= ITEM_MAX and self.windows is None:
                self.gateway._send(Message.CHANNEL_DATA, id, data)
                return
            pieces = [data]
        if self.windows is not None:
            self.windows.send(id, sum(map(len, pieces)), self.frames_of(id, pieces))
        else:
            for _, header, payload in self.frames_of(id, pieces):
                self._send_frame(header, payload)

    def frames_of(self, id: int, pieces: Sequence[Piece]) -> Iterator[tuple[bool, bytes, Piece]]:
        """Yield the frames of an item: whether it is the last, header, payload."""
        if len(pieces) == 1 and len(pieces[0]) <= ITEM_MAX:
            yield True, _HEADER.pack(Message.CHANNEL_DATA, id, len(pieces[0])), pieces[0]
            return
        with self.lock:
            number = next(self._item_numbers) & FOUR_BYTE_INT_MAX
        for piece in pieces:
            view = piece if PY2 else memoryview(piece)
            for start in range(0, len(piece), PART_BYTES):
                last = piece is pieces[-1] and start + PART_BYTES >= len(piece)
                part, prefix = view[start : start + PART_BYTES], _PART.pack(number, last)
                size = len(prefix) + len(part)
                yield last, _HEADER.pack(Message.CHANNEL_DATA_PART, id, size) + prefix, part

    def _send_message(self, header: bytes, payload: Piece) -> None:
        """Send a frame through a gateway that takes no frames."""
        msgcode, channelid, _ = _HEADER.unpack_from(header)
        data = b"".join((header[_HEADER.size :], payload))
        self.gateway._send(msgcode, channelid, data)

    def take_back(self) -> None:
        """Make the receiver thread read, if it has left that to others."""
        if self.direct is not None:
            self.direct.take_back()

    # called in the receiver thread

    def _local_receive_part(self, message: Message) -> None:
        """Put what came of a large item where it stays: a stream gives away its own bytes."""
        id, data = message.channelid, message.data
        if message.is_first is not False:
            number, last = None, 1
            if message.msgcode == Message.CHANNEL_DATA_PART:
                number, last = _PART.unpack_from(data)
                data = data[_PART.size :]
            key = id, number
            self.coming_part = key, last
            if id not in self._callbacks and self._channels.get(id) is None:
                self.parts.pop(key, None)  # nobody waits for it
            elif key not in self.parts:
                # glibc keeps freed memory for reuse up to twice the largest block so far; new
                # pages would cost several times as much as all the copying.
                ChannelFactory._keeps_freed = ChannelFactory._keeps_freed or bool(bytes(1 << 22))
                head = bytes(data[:5]) if data[:1] == opcode.BYTES else b""
                data = data[len(head) :]
                self.parts[key] = head, self.buffers.begin(id, head) if self.buffers else BytesIO()
        key, last = self.coming_part
        head, stream = self.parts.get(key, (b"", None))
        if stream is None:
            return
        stream.write(data)
        if self.max_item is not None and (
            len(self.parts) > 1000
            or sum([part.tell() for _, part in self.parts.values()]) > self.max_item
        ):
            raise ProtocolError("pieces of items take more than max_item=%d" % self.max_item)
        if last and not message.left:
            self.parts.pop(key, None)
            size = stream.tell() - 1
            if len(head) == 5 and _unpack_int4(head, 1)[0] == size and data[-1:] == opcode.STOP:
                stream.truncate(size)
                callback, channel = self._callbacks.get(id), self._channels.get(id)
                item = stream.getvalue()
                if item is not None:  # else whoever waits has it in its own buffer
                    self.deliver(id, callback, channel, item, size + 6)
            else:  # nothing but bytes begins with their opcode, except a tuple
                self._local_receive(id, head + stream.getvalue() if head else stream.getvalue())

    def _local_receive(self, id: int, data: bytes) -> None:
        callback = self._callbacks.get(id)
        channel = None if callback else self._channels.get(id)
        owner = callback or channel
        if owner is None:
            return  # it was closed or dropped here while the item was on its way
        try:
            item = self.load_item(data, self, owner._strconfig)
        except Exception as exc:
            self._fail_channel(id, exc)
            return
        self.deliver(id, callback, channel, item, len(data))

    def deliver(
        self, id: int, callback: _Callback | None, channel: Channel | None, item: object, size: int
    ) -> None:
        if channel is not None:
            with channel._lock:
                items = channel._items
                if items is not None:
                    if channel._state in ChannelState.RECEIVES:
                        if self.windows is not None:
                            channel._count(size)
                        if self.direct and self.direct.waiting:
                            self.direct.serve(items)
                        items.put_nowait(item)
                    return
            callback = self._callbacks.get(id)
        if callback is not None:
            self.call(id, callback, item)
            if self.windows is not None and self.windows.of(id):
                self.windows.on_read(id, size)

    def call(self, id: int, callback: _Callback, item: object) -> bool:
        """Pass an item to a callback, whose error closes the channel; whether there was none."""
        try:
            callback(item)
        except KeyboardInterrupt:  # meant for the thread, not for the channel
            raise
        except:  # noqa: E722 - in Python 2 not all that is raised is a BaseException
            exc: Any = sys.exc_info()[1]
            self.gateway._trace("callback failed", id, exc)
            self._fail_channel(id, exc)
            return False
        return True

    def _fail_channel(self, id: int, exc: BaseException) -> None:
        text = _told(geterrortext(exc), exc)
        self.post(Message.CHANNEL_CLOSE_ERROR, id, _dump_text(text))
        self._local_close(id, exc if isinstance(exc, LoadError) else text.as_error())

    def _local_close(self, id: int, remoteerror: BaseException | None = None) -> None:
        """Close a channel without a message: the other side has closed it, or knows."""
        channel = self._channels.pop(id, None)  # before waiting threads are woken up
        if channel is None:
            if isinstance(remoteerror, RemoteError):
                remoteerror.warn()
        else:
            if remoteerror is not None:
                channel._remoteerrors.append(remoteerror)
            channel._go("close")
        self._no_longer_opened(id)

    def _far_drop(self, id: int) -> None:
        channel = self._channels.get(id)
        if channel is not None:
            channel._go("far_drop")
        self._no_longer_opened(id, forget=False)

    def _no_longer_opened(self, id: int, forget: bool = True) -> None:
        """Forget a channel that gets no more items, and tell its callback."""
        if forget:
            self._channels.pop(id, None)
        for key in [key for key in list(self.parts) if key[0] == id]:
            self.parts.pop(key, None)
        callback = self._callbacks.pop(id, None)
        if callback is not None:
            try:
                callback.finish()
            except KeyboardInterrupt:
                raise
            except:  # noqa: E722 - as in ``call``
                self.gateway._trace("callback failed at the endmarker", id, sys.exc_info()[1])

    def _finished_receiving(self, event: str = "stream_end") -> None:
        """End all waits for items, as no more will come."""
        with self.lock:
            self.finished = True
        for channel in self.channels():
            channel._go(event)
            self._no_longer_opened(channel.id, forget=event == "stream_end")
        for id in list(self._callbacks):
            self._no_longer_opened(id)


# ---------------------------------------------------------------- gateways


def _answer(message: Message, gateway: BaseGateway, item: object) -> None:
    gateway._post(Message.CHANNEL_DATA, message.channelid, dumps_internal(item))
    gateway._post(Message.CHANNEL_CLOSE, message.channelid)


def _running() -> ModuleType | None:
    """Return the part that interrupts what runs; None where this module runs all alone."""
    try:
        return load_part("_features.running")
    except Exception:
        return None


def _stacks() -> str:
    running = _running()
    missing = "no stacks: a part of execnet can't be loaded"
    return _decoded(running.format_stacks()) if running else missing


def _on_stacks(message: Message, gateway: BaseGateway) -> None:
    if message.data:
        _check_text(message.data, len(message.data) - 1)
        gateway._stacks = loads_internal(message.data, None, (True, False))
    else:
        _answer(message, gateway, _stacks())


def _on_reconfigure(message: Message, gateway: BaseGateway) -> None:
    py2str_as_py3str, py3str_as_py2str = loads_internal(message.data)
    strconfig = bool(py2str_as_py3str), bool(py3str_as_py2str)
    if message.channelid:
        factory = gateway._channelfactory
        factory.prepare(message.channelid, lambda holder: setattr(holder, "_strconfig", strconfig))
    else:
        gateway._strconfig = strconfig


def _on_terminate(message: Message, gateway: BaseGateway) -> None:
    gateway.is_hurried = bool(message.data)
    raise GatewayReceivedTerminate(gateway.id)


def _on_exec(message: Message, gateway: BaseGateway) -> None:
    channel = gateway._channelfactory.new(message.channelid)
    gateway._local_schedulexec(channel, loads_internal(message.data, gateway, (True, True)))


def _on_data(message: Message, gateway: BaseGateway) -> None:
    if message.is_first is None:
        gateway._channelfactory._local_receive(message.channelid, message.data)
    else:
        gateway._channelfactory._local_receive_part(message)


def _check_text(data: bytes, end: int) -> int:
    """Return where a text that is an item ends in data; LoadError unless that is before ``end``."""
    size = _unpack_int4(data, 1)[0] if len(data) > 5 else -1
    if data[0] not in _STRINGS or not 0 <= size <= end - 5:
        raise LoadError("no text: %r" % (data[:40],))
    return size + 5


def _on_close_error(message: Message, gateway: BaseGateway) -> None:
    _check_text(message.data, len(message.data) - 1)
    text = loads_internal(message.data, gateway, (True, True))
    if PY2 and not isinstance(text, bytes):
        text = text.encode("utf-8")
    told = _ErrorText(text if isinstance(text, type("")) else repr(text))
    # After the text, which is all that older ends send and take; its head has five bytes.
    more = message.data[_unpack_int4(message.data, 1)[0] + 6 :] if isinstance(text, str) else b""
    if more:
        second = more[_check_text(more, len(more)) :]
        _check_text(second, len(second) - 6)  # which are those of the tuple
        type_name, error_message = loads_internal(more, gateway, (True, True))
        told.details = str(type_name), str(error_message)
    gateway._channelfactory._local_close(message.channelid, told.as_error(gateway.as_error))


def _in_part(name: str, function: str) -> Callable[[Message, Any], None]:
    """Return a handler that is in a part of ``_features``, which is loaded for it."""
    return lambda *told: getattr(load_part("_features." + name), function)(*told)


def _on_sources(message: Message, gateway: BaseGateway) -> None:
    if not message.channelid:  # answers were taken by whoever waited for them
        parts, told = loads_internal(message.data, None, (True, True))
        [load_part(*part) for part in parts][-1].tell(gateway, told)


_HANDLERS = [
    ("STATUS", lambda m, gateway: _answer(m, gateway, gateway._status())),
    ("RECONFIGURE", _on_reconfigure),
    ("GATEWAY_TERMINATE", _on_terminate),
    ("CHANNEL_EXEC", _on_exec),
    ("CHANNEL_DATA", _on_data),
    ("CHANNEL_CLOSE", lambda m, gateway: gateway._channelfactory._local_close(m.channelid)),
    ("CHANNEL_CLOSE_ERROR", _on_close_error),
    ("CHANNEL_LAST_MESSAGE", lambda m, gateway: gateway._channelfactory._far_drop(m.channelid)),
    ("HELLO", lambda m, gateway: gateway._on_hello(loads_internal(m.data))),
    ("CHANNEL_DATA_PART", lambda m, gateway: gateway._channelfactory._local_receive_part(m)),
    ("SOURCE", _on_source),
    ("STACKS", _on_stacks),
    ("PING", _in_part("pulse", "on_ping")),
    ("WINDOW", _in_part("window", "on_window")),
    ("CREDIT", _in_part("window", "on_credit")),
    ("GOODBYE", lambda m, gateway: gateway._on_goodbye(m.data)),
    ("CALL", _in_part("calls", "on_call")),
    ("DEFINE", _in_part("calls", "on_define")),
    ("INTERRUPT", _in_part("interrupts", "on_interrupt")),
    ("IMPORT", lambda m, gateway: gateway._on_import(m)),
    ("SOURCES", _on_sources),
    ("CODEC", _in_part("codecs", "on_codec")),
    ("ACK", lambda m, gateway: gateway._io.on_ack(m)),
    ("SHARED", lambda m, gateway: gateway._channelfactory.buffers.shared.on_item(m)),
    ("RELEASED", lambda m, gateway: gateway._channelfactory.buffers.shared.on_released(m)),
    ("DEFLATED", _in_part("deflate", "on_deflated")),
]
Message._types = dict(enumerate(_HANDLERS))


class GatewayState(object):
    """The states of a gateway: ``live`` until its stream ends, and ``closing`` from ``exit()``."""

    STARTING = "starting"
    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"  # ended as asked
    LOST = "lost"  # ended otherwise

    TRANSITIONS = {
        STARTING: {"hello": LIVE, "exit": CLOSING, "end": LOST},
        LIVE: {"hello": LIVE, "exit": CLOSING, "end": LOST},
        CLOSING: {"hello": CLOSING, "exit": CLOSING, "end": CLOSED},
        CLOSED: {"exit": CLOSED},
        LOST: {"exit": LOST},
    }


class BaseGateway(object):
    """One end of a gateway: a stream, its receiver thread, and the channels over it."""

    # Seldom set, so of the class: CPython reads an object of more than 30 attributes slowly.
    _stacks = ""  # the last stacks that the peer has sent
    is_hurried = False  # whether executions get no time to finish at the end
    as_error: Callable[..., RemoteError] = RemoteError  # makes the errors that the peer sends

    def __init__(self, io: Any, id: str, _startcount: int = 2) -> None:
        self._io = io
        self.id = id
        self.execmodel: ExecModel = io.execmodel
        self._strconfig: StrConfig = (True, False)
        self._state = GatewayState.STARTING
        self._error: BaseException | None = None
        self._heard = 0  # changes whenever something comes
        self._reading = False  # whether the receiver thread waits for something
        self._writer: FrameWriter = getattr(io, "writer_class", FrameWriter)(io, id)
        self._get_ident = get_ident if io.execmodel.has_main_thread else io.execmodel.get_ident
        self._receiver_ident: int | None = None
        self._receiver_done = _Flag(self.execmodel)
        self._answers_pings = False  # as there is no thread to send any
        self._to_load: list[str] | None = None  # modules, while nothing comes; None: not yet known
        self._channelfactory = ChannelFactory(self, _startcount)

    def __repr__(self) -> str:
        state = "receive-live" if self.hasreceiver() else "not-receiving"
        words = self.__class__.__name__, self.id, state, self.execmodel.backend
        count = len(self._channelfactory.channels())
        return "<%s id=%r %s, %s model, %d active channels>" % (words + (count,))

    def _trace(self, *msg: object) -> None:
        trace(self.id, *msg)

    def _go(self, event: str) -> None:
        self._state = GatewayState.TRANSITIONS[self._state][event]

    def _send(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        """Send a frame; in the receiver thread, which must go on reading, without waiting."""
        self._send_frame(_HEADER.pack(msgcode, channelid, len(data)), data)

    def _send_frame(self, header: bytes, payload: Piece) -> None:
        """Send a frame whose first bytes may be with its header already; as ``_send``."""
        if self._get_ident() == self._receiver_ident:
            self._writer.post(header, payload)
        else:
            self._writer.send(header, payload)

    def _post(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        """Have a frame sent soon; never waits and never fails."""
        self._writer.post(_HEADER.pack(msgcode, channelid, len(data)), data)

    def _status(self) -> dict[str, object]:
        """Return what a STATUS message is answered with."""
        count, model = len(self._channelfactory._channels), self.execmodel.backend
        return dict(_describe_process(), numchannels=count, numexecuting=0, execmodel=model)

    def _on_hello(self, hello: dict[str, Any]) -> None:
        self._go("hello")
        self._channelfactory.fast = "fast" in hello["codecs"] and HAVE_FAST_CODEC
        self._enable_direct_reads()

    _on_goodbye: Any = None  # only workers send one
    _on_import: Any = None  # only workers ask
    _on_silence: Callable[[str], object] = id  # ends a gateway whose peer gives no sign of life
    _on_cut_frame: Callable[[bytes], object] = id  # gets what was read last, if it is cut or bad
    _load_while_idle: Callable[[], object] = int  # only a worker has something to load
    _admits: Admits | None = None  # which frames the peer may send; None: any

    def _local_schedulexec(self, channel: Channel, sourcetask: Task) -> None:
        channel.close("execution is not allowed on this side")

    def newchannel(self) -> Channel:
        """Return a new channel, which the other side does not know yet."""
        return self._channelfactory.new()

    def hasreceiver(self) -> bool:
        """Whether the receiver thread is running."""
        return self._state not in (GatewayState.CLOSED, GatewayState.LOST)

    def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds (None: for ever) until the receiver thread has ended.

        Raises ``DeadlockError`` in a callback, which that thread runs.
        """
        _refuse_in_callback(self, self)
        self._channelfactory.take_back()
        self._receiver_done.wait(timeout)

    def _initreceive(self) -> None:
        self.execmodel.start(self._run_receiver, (), "execnet-receiver-%s" % self.id)

    def _run_receiver(self) -> None:
        self._receiver_ident = self._get_ident()
        try:
            self._receive_until_end()
        except GatewayReceivedTerminate:
            self._trace("received terminate")
            self._go("exit")
        except BaseException as exc:  # threads that wait on a channel get it
            self._trace("receiving ended", repr(exc))
            self._error = exc
        try:
            self._on_stream_end()
        finally:
            self._receiver_ident = None  # another thread may get the same
            self._receiver_done.set()

    def _receive_until_end(self, data: bytes = b"") -> None:
        """Act on all messages, beginning with those in ``data``; ends with an exception."""
        decoder = self._decoder = FrameDecoder(True, self._admits)
        while True:
            limit = self._act_on(data)  # first, as it may change what reads
            if decoder.left and self._channelfactory.buffers:
                self._channelfactory.buffers.fill(decoder)
            data = self._next_data(limit, decoder)
            if not data:
                raise EOFError(decoder.describe_end())

    def _act_on(self, data: bytes) -> int:
        """Act on the messages that these bytes complete; return how much to read next."""
        decoder, receive_item = self._decoder, self._channelfactory._local_receive
        try:
            for message in decoder.feed(data):
                if message.msgcode == 4 and message.is_first is None:  # as nearly all are
                    receive_item(message.channelid, message.data)
                else:
                    message.received(self)
        except (GatewayReceivedTerminate, StreamEnded):
            raise
        except Exception as exc:
            self._on_cut_frame(data)
            raise ProtocolError("%s sent what can't be understood: %s" % (self.id, exc))
        if decoder.left or decoder._have:
            self._on_cut_frame(data)
        # A large buffer costs more than a small item, so it is used only when much arrives.
        limit = READ_BYTES if len(data) >= 65536 else 65536
        return max(min(max(decoder.left, decoder.missing), PART_BYTES), limit)

    def _enable_direct_reads(self) -> None:
        if self.execmodel.has_main_thread and CAN_READ_DIRECTLY:
            self._channelfactory.direct = getattr(self._io, "direct_reads", lambda: None)()

    def _next_data(self, limit: int, decoder: FrameDecoder) -> bytes:
        direct = self._channelfactory.direct
        if direct is not None:
            if direct.served and not decoder.pending() and self._nobody_else_waits(direct):
                try:
                    direct.offer()
                except ImportError:  # nothing can be imported any more: it reads all itself
                    self._channelfactory.direct = None
            if direct.chunks:
                return direct.next_chunk()
        if self._to_load:
            self._load_while_idle()
        return self._read_some(limit)

    def _nobody_else_waits(self, direct: DirectReads) -> bool:
        callbacks = list(self._channelfactory._callbacks.values())
        return len(direct.waiting) <= 1 and all(callback.may_be_late for callback in callbacks)

    def _read_some(self, limit: int) -> bytes:
        self._heard += 1
        self._reading = True
        try:
            data: bytes = self._io.read_some(limit)
        except (OSError, ValueError) as exc:  # ValueError: the file was closed
            raise EOFError("reading failed: %s" % exc)
        finally:
            self._reading = False
        return data

    def _on_stream_end(self) -> None:
        self._writer.fail("the stream has ended")
        self._go("end")
        self._channelfactory._finished_receiving()
        self._io.close_read()
        self._writer.close_soon()


# ---------------------------------------------------------------- worker

# Who says a goodbye: a worker; a watched one, after which its watcher says one; that watcher.
OF_WORKER, OF_WATCHED, OF_WATCHER = range(3)
STACKS_S = 0.25  # how long executions may go on in an orderly end before their stacks are sent
IDLE_MS = 50  # without anything to read, before a worker loads a module that it may need later


class Process(object):
    """The process of a worker: its main thread, and its end.

    Its gateway asks it.  One that has several gateways, and outlives them, is of another kind.
    """

    before_exit: Callable[[], object] = int  # called where ``atexit`` functions don't run
    main_ident = 0  # of the serving thread, if it executes tasks
    is_interruptible = False  # whether it runs one
    is_meant: Callable[[], bool] | None = None  # whether the next interrupt is for that one

    def take_main_thread(self) -> None:
        """Note that the calling thread is going to execute tasks."""
        self.main_ident = get_ident()
        # Ctrl-C in a terminal reaches idle workers too; their coordinator decides what
        # becomes of them.  A SIGINT that was ignored, as under nohup, interrupts as well.
        _handle_interrupts(self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: object) -> None:
        is_meant, self.is_meant = self.is_meant, None
        if self.is_interruptible and (is_meant is None or is_meant()):
            raise KeyboardInterrupt

    def interrupt_main(self) -> None:
        """Interrupt the task of the main thread."""
        load_part("_features.running").interrupt_main_thread(self.main_ident)

    def end(self, gateway: WorkerGateway) -> None:
        """End, as the code of a gateway does not, or its coordinator is out of reach."""
        self.before_exit()
        os._exit(1)


class WorkerGateway(BaseGateway):
    """The worker's end: executes what arrives, and ends when its coordinator does."""

    grace_s = 5.0  # how long an execution may take to end by itself, and once interrupted
    before_close: Callable[[], object] = int  # called at an orderly end, after executions
    farewell: bytes | None = None  # the end of its goodbye; None: it sends none
    is_watched = False  # whether another process tells of its end
    leave_stream: Callable[[], object] = int  # called before nothing may be written to it
    busy_wait_s = 1.0  # how long a task waits for a main thread that is about to be free
    calls: Any = None  # those that it serves: ``_features.calls``

    def __init__(self, io: Any, id: str, _startcount: int = 2, process: Any = None) -> None:
        super(WorkerGateway, self).__init__(io, id, _startcount)
        self.process: Process = process or Process()
        self._execpool = WorkerPool(self.execmodel, hasprimary=self.execmodel.has_main_thread)

    def serve(self) -> None:
        """Say hello, then execute tasks until the stream ends; the first in this thread."""
        if self.execmodel.has_main_thread:
            self.process.take_main_thread()
        self._go("hello")
        self._initreceive()
        _running()  # while the coordinator is told, as code may leave nothing to import from
        if self.execmodel.has_main_thread:
            self._execpool.integrate_as_primary_thread()
        while not self._receiver_done.is_set():
            try:
                self.join()
            except KeyboardInterrupt:  # too late for the code that it was meant for
                pass

    def _status(self) -> dict[str, object]:
        count = self._execpool.active_count()
        return dict(super(WorkerGateway, self)._status(), numexecuting=count)

    def _local_schedulexec(self, channel: Channel, sourcetask: Task) -> None:
        self._trace("schedule execution on", channel)
        self._expect_code()
        task = (channel, sourcetask)
        channel._executing = True
        try:
            if self.execmodel.backend != "main_thread_only":
                self._execpool.spawn(self.executetask, task)
            elif self._execpool.try_spawn_primary(self.executetask, task) is None:
                self.execmodel.start(self._await_primary, (task,), "execnet-await-main-thread")
        except Exception as exc:  # this does not concern what is running already
            channel._executing = False
            channel.close("no thread could be started in %s to execute it: %s" % (self.id, exc))

    def _expect_code(self) -> None:
        if self._to_load is None:
            self._to_load = [""] if HAS_PARTS and hasattr(self._io, "has_more") else []
        if self._channelfactory.direct is None:
            self._enable_direct_reads()

    def _load_while_idle(self) -> None:
        try:
            idles = self._heard % 64 == 63 or not self._io.has_more(IDLE_MS)  # or never does
            if idles and not __import__("_imp").lock_held():  # whoever has it may keep it for ever
                load_part("_features.idle").load(self)
        except Exception:  # that can't be imported, or it can't be told whether it idles
            self._to_load = []

    def _await_primary(self, task: tuple[Channel, Task]) -> None:
        """Execute a task if the main thread is free in a moment, otherwise refuse it."""
        time = _import("time")
        deadline = time.time() + self.busy_wait_s
        while self._execpool.wait_primary_idle(max(0, deadline - time.time())):
            if self._execpool.try_spawn_primary(self.executetask, task) is not None:
                return  # otherwise another task was faster
        task[0]._executing = False
        task[0].close(MAIN_THREAD_ONLY_DEADLOCK_TEXT)

    def executetask(self, item: tuple[Channel, Task]) -> None:
        """Execute ``(channel, task)``.

        The channel is closed after it, with the text of what it raised.
        """
        channel = item[0]
        error = self._execute_and_describe(item)
        self._execpool.release_primary()
        try:
            self._channelfactory.take_back()
            channel._executing = False
            channel.close(error)
        except BaseException as exc:  # no memory, or a late interrupt: whoever waits must be told
            text = error or "closing %r failed: %s" % (channel, type(exc).__name__)
            self._post(Message.CHANNEL_CLOSE_ERROR, channel.id, _dump_text(text))
            raise

    def _execute_and_describe(self, item: tuple[Channel, Task]) -> str | None:
        """Execute a task; return the text of what it raised, None if it ended well."""
        process, pid = self.process, os.getpid()
        in_main_thread = get_ident() == process.main_ident
        try:
            try:
                process.is_interruptible |= in_main_thread
                self._execute(*item)
                if os.getpid() != pid:
                    _end_fork(None)
            finally:
                process.is_interruptible &= not in_main_thread
        except KeyboardInterrupt:
            process.is_interruptible &= not in_main_thread
            if os.getpid() != pid:
                _end_fork(sys.exc_info()[1])
            return _told(INTERRUPT_TEXT, sys.exc_info()[1])
        except:  # noqa: E722 - as in ``Reply._run``
            error: Any = sys.exc_info()
            if os.getpid() != pid:
                _end_fork(error[1])
            if issubclass(error[0], EOFError) and item[0].gateway._channelfactory.finished:
                return None
            text = geterrortext(error)
            self._trace("execution failed", text)
            return _told(text, error[1])
        return None

    def _execute(self, channel: Channel, task: Task) -> None:
        source, file_name, call_name, kwargs = task[:4]
        namespace: dict[str, Any] = {"channel": channel, "__name__": "__channelexec__"}
        if not file_name and "linecache" in sys.modules:
            _remember_source(source)
        try:
            if len(task) > 4 and not sys.flags.optimize:
                code = sys.modules["marshal"].loads(task[4])
            else:
                text = _marked_as_utf8(source) if PY2 else source
                code = compile(text + "\n", file_name or "<remote exec>", "exec", 0, True)
            exec(code, namespace)
            if call_name:
                namespace[call_name](channel, **(kwargs or {}))
        except Exception:
            if not file_name:
                _remember_source(source)
            raise

    def _on_stream_end(self) -> None:
        """End what runs, then let the main thread go.

        After an orderly end executions have ``grace_s`` to finish by themselves, and can
        send; when the coordinator is gone there is nobody to finish for.
        """
        close = super(WorkerGateway, self)._on_stream_end
        self.leave_stream()
        if self._state == GatewayState.CLOSING:
            self._channelfactory._finished_receiving("far_drop")
            self._let_executions_finish()
            self._end_executions()
            self.before_close()
            self._say_goodbye(0)
            self._writer.close_soon()
            close()
        else:
            self._end_executions(close)

    def _on_silence(self, reason: str) -> None:
        load_part("_features.pulse").end_worker(self, reason)

    def _say_goodbye(self, status: int, reason: str = "") -> None:
        """Tell of the end and the exit status that it will have; nothing is sent after it."""
        if self.farewell is not None:
            whose = OF_WATCHED if self.is_watched else OF_WORKER
            self._post(Message.GOODBYE, 0, dumps_internal((status, reason, whose, self.farewell)))

    def _let_executions_finish(self) -> None:
        self._execpool.trigger_shutdown()
        if not (self.is_hurried or self._execpool.waitall(min(self.grace_s, STACKS_S))):
            self._post(Message.STACKS, 0, _dump_text(_stacks()))
            self._execpool.waitall(self.grace_s - STACKS_S)

    def _end_executions(self, close: Callable[[], object] | None = None) -> None:
        """Interrupt what runs, and exit if it has not ended ``grace_s`` later.

        close: ends the channels if the coordinator is gone. It comes after the interrupts:
            what waits in a channel is to get one of them, no second one while it cleans up.
        """
        self._execpool.trigger_shutdown()
        first_s = min(self.grace_s, STACKS_S)
        running, is_stuck = _running(), False
        if running:
            is_stuck = running.interrupt_all(self, close, first_s)
        elif close is not None:
            close()
        if is_stuck or not self._execpool.waitall(self.grace_s - first_s):
            self._trace("executions did not end, exiting")
            self._say_goodbye(1, "its code did not end")
            self.process.end(self)


def _remember_source(source: str) -> None:
    """Let the traceback show the lines of a source that has no file."""
    try:
        cache = getattr(_import("linecache"), "cache", None)  # None: another thread is importing it
        if cache is not None:
            cache["<remote exec>"] = len(source), None, source.splitlines(True), "<remote exec>"
    except Exception:  # it is shown without its lines then
        pass


def _end_fork(error: BaseException | None) -> None:
    """End a process that remote code forked, and that is at the end of that code.

    Nothing here is its own: not the stream, nor what is in buffers or waits for ``atexit``.
    """
    status = 1
    try:
        code = getattr(error, "code", None) if isinstance(error, SystemExit) else error
        if code is None or isinstance(code, int):
            status = code or 0
        else:
            text: Any = geterrortext(error)
            os.write(2, text if PY2 else text.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(status & 255)


def _marked_as_utf8(source: str) -> str:
    """Return a source that Python 2 reads as UTF-8, whatever it says of its encoding."""
    cookie = r"\A((?:.*\n)?[ \t\f]*#.*?)coding([:=])"
    marked: str = _import("re").sub(cookie, r"\1Coding\2", source, count=1)
    return "\xef\xbb\xbf" + marked


def serve(
    io: Stream, id: str, peer_codecs: Sequence[str] = ("classic",), grace: float | None = None
) -> None:
    """Be a worker: execute what arrives on ``io`` until it ends.

    id: how the worker calls itself in traces.  peer_codecs: what the coordinator can read.
    grace: seconds that executions have at the end.
    """
    io.write(_hello())
    _serve(io, id, peer_codecs, grace)


def _serve(
    io: Stream, id: str, peer_codecs: Sequence[str], grace: float | None,
    kind: Callable[..., WorkerGateway] | None = None, **more: object
) -> None:
    trace("creating workergateway on %r" % (io,))
    gateway = (kind or WorkerGateway)(io=io, id=id, _startcount=2)
    for name in more:
        setattr(gateway, name, more[name])
    gateway._channelfactory.fast = HAVE_FAST_CODEC and "fast" in peer_codecs
    gateway.grace_s = gateway.grace_s if grace is None else grace
    gateway.serve()
