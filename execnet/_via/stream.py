"""``via=ID``: a stream to a worker that another gateway's worker starts or connects to.

The bytes travel over a channel of that gateway, and nobody looks into them on the way.
``_via.far``, the far half, describes what both ends send.  Start at ``create_io``.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial

from .._clock import monotonic
from .._endpoint import Endpoint, StreamFull, acts_on
from .._errors import BootstrapError, WorkerDied
from .._features.credit import Credit
from .._ship.parts import run, send_parts
from .._transports.table import address_of, command
from ..gateway_base import (
    _HEADER,
    ExecModel,
    Message,
    ProtocolError,
    _Flag,
    _pack_bytes_head,
    dumps_internal,
    opcode,
    printable,
    threads_are_patched,
)
from .blobs import kept_by, send_shared
from .far_forwarder import CHUNK_BYTES, CLOSE, DROP, EOF, WINDOW_BYTES
from .reads import ViaReads
from .writer import ViaWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .._endpoint import LoopEnds
    from .._specs import Settings
    from .._transports.table import Command
    from ..gateway import Gateway
    from ..gateway_base import Channel, Frame, Piece

    Find = Callable[[str], Gateway]

FAR = "_via.far"
END_S = 0.25  # how long a command over there may take to end by itself after its worker
ANSWER_S = 0.5  # how long a kill may take to be answered from there
SILENT_S = 0.25  # the same, if the worker beyond has not answered
STR_IS_BYTES = (False, False)  # Python 2's
STATUS_S = 1.0  # how long the report of an end may come after the end of the stream


class BoundedInbox:
    """The queue of the bytes from the gateway between, whose worker may ignore the window."""

    def __init__(self, items: Any, credit: Credit) -> None:
        self._items = items
        self._credit = credit
        self._parked: list[object] = []  # whoever takes this out has to tell of it
        self._ready: Callable[[Any], object] = id
        self.get, self.empty, self.qsize = items.get, items.empty, items.qsize
        self.put = items.put  # for direct reads, of one item when all are read: one step in C

    def put_nowait(self, item: object) -> None:
        """Take an item, in the receiver thread; ``ProtocolError`` if too much is unread."""
        if type(item) is bytes:
            credit = self._credit
            if self._items.empty():
                credit.sent = credit.taken  # direct reads have counted none of theirs
            if credit.is_exceeded(CHUNK_BYTES):
                raise ProtocolError("more was forwarded than was asked for")
            credit.sent += len(item)
        self._items.put(item)
        if self._parked:
            self.wake()

    def park(self, ready: Callable[[Any], object], whom: object) -> None:
        """Call ``ready(whom)``, once, as soon as there is something to take."""
        self._ready = ready
        self._parked.append(whom)
        if not self._items.empty():
            self.wake()

    def wake(self) -> None:
        """Do that, unless it was done; one step in C, which no interrupt can cut in two."""
        with suppress(IndexError):
            deque(map(self._ready, map(self._parked.pop, (-1,))), 0)


class _Closed(_Flag):
    """That a channel gets no more: its queue, which learns of it without a call, is told."""

    def __init__(self, execmodel: ExecModel, inbox: BoundedInbox) -> None:
        super().__init__(execmodel)
        self._inbox = inbox

    def set(self) -> None:
        try:
            super().set()
        finally:
            self._inbox.wake()


class ViaIO(Endpoint):
    """The stream to a worker that is reached through another gateway.

    via: that gateway.  request: what its worker should do, for ``_via.far``.  args: the same in
    words.  on_gone: called by the thread that has waited for the end.  code: a channel whose other
    end can load parts already; otherwise code is executed for that.  ``_on_news``
    runs in the receiver thread of ``via`` and never waits; one thread reads and one at a time
    writes, as with every stream.
    """

    far = FAR  # the part to run there
    loaded = frozenset([FAR])  # what that loads if it ends well; nothing: the part can be imported

    writer_class = ViaWriter
    small_bytes = 4096
    takes_whole = True

    peer = b""  # host and port of a server, as that machine resolved them
    _has_ended = False  # as ``_ended``
    is_forwarded = False  # whether the far half is at work
    _handing: Any = None  # the piece of a frame that is handed in
    _on_writable: Callable[[], object] | None = None  # of an event loop

    def __init__(
        self,
        via: Gateway,
        request: dict[str, object],
        args: list[str],
        remoteaddress: str | None,
        execmodel: ExecModel,
        on_gone: Callable[[], object] = int,
        code: Channel | None = None,
    ) -> None:
        self.execmodel = execmodel
        self.args = args
        self.remoteaddress = remoteaddress
        self.carrier = self._via = via
        self._on_gone = on_gone
        self._verb = "start it" if request["args"] else f"connect to {remoteaddress}"
        self._ended = _Flag(execmodel)  # the far process has ended, or nobody knows any more
        self._over = _Flag(execmodel)  # it has ended, or was killed
        self._status: int | None = None
        self._reason = ""  # why the stream ended, unless that was in order
        self._stderr = ""
        self._at_end = False  # whether the end was read
        self._closed_read = self._closed_write = False
        self._silent = False  # whether its worker does not answer; it may be stopped
        self._kill_time = 0.0
        self.output = Credit(WINDOW_BYTES)  # from there: receiver thread of ``via``, and reader
        self.input = Credit(WINDOW_BYTES)  # to there: the writing thread, and that receiver thread
        self._room = _Flag(execmodel)  # another one for each wait
        self._arrived: deque[object] = deque()  # for that loop
        self.is_connected = _Flag(execmodel)
        self._data = via.newchannel_as(STR_IS_BYTES)
        self._inbox = BoundedInbox(self._data._items, self.output)
        self._data._set_inbox(self._inbox)
        self._data._receiveclosed = _Closed(via.execmodel, self._inbox)
        self._waiting: dict[object, Any] = {}  # of that gateway: who waits for its receiver thread
        are_threads = execmodel.has_main_thread and via.execmodel.has_main_thread
        self.tells_arrivals = are_threads and not threads_are_patched()
        via.endpoint.carries = True
        # For reports that come even while nobody reads.
        self._news = via.newchannel_as(STR_IS_BYTES)
        self._start(request, code)

    def _start(self, request: dict[str, object], code: Channel | None) -> None:
        self._news.setcallback(self._on_news, endmarker=None)
        # It has to be sent only once; when the code has ended without an error, it has arrived.
        if code is None:
            # Others may be about to send the same.
            code = run(self._via, self.far, not self.loaded, partial(send_shared, carries=True))
        else:
            send_parts(code, self.far)
        self._code = code
        self._code.setcallback(self._on_code_end, endmarker=None)
        self._code.send((self._data, self._news, request))

    # the receiver thread of the gateway that it goes via

    def _on_code_end(self, item: object) -> None:
        if item is not None:  # code of a user may have reported more
            return
        self.is_forwarded = True
        error = self._code._getremoteerror()
        if error is None:
            self._via.known_parts |= self.loaded
        else:
            kind, message = getattr(error, "type_name", None), getattr(error, "message", None)
            why = f"{kind}: {message}" if kind else str(error)
            self._lose(f"{self._via.id} can't start it: {printable(why)}")

    def _on_news(self, item: Any) -> None:
        self._silent = False
        if item is None:
            error = self._news._getremoteerror()
            self.hop = (error.hop if isinstance(error, WorkerDied) else "") or self._via.id
            self._lose(f"{self._via.id}, which it goes via, has ended: {error}")
        elif type(item) is int:
            self.input.taken += item
            self._set_room()
        elif type(item) is bytes:
            self.peer = item
            self.is_connected.set()
        else:
            self._on_end(*item)

    # This lets the thread that waits for the answer read that gateway's stream.
    _on_news.may_be_late = True  # type: ignore[attr-defined]

    def _on_end(self, status: int | None, stderr: bytes, reason: bytes) -> None:
        self._stderr = stderr.decode("utf-8", "replace").strip()
        text = printable(reason.decode("utf-8", "replace"))
        self.could_not_start = bool(text)
        self._finish(status, f"{self._via.id} can't {self._verb}: {text}" if text else "")
        self._close_channels()

    def _lose(self, reason: str) -> None:
        """Note that nothing more will come; what has come can still be read."""
        self._finish(None, reason)
        self._close(self._data)

    def _close_channels(self) -> None:
        if (self._at_end or self._closed_read) and self._ended.is_set():
            self._close(self._data)
            self._close(self._news)

    def _close(self, channel: Channel) -> None:
        """Close a channel; never waits."""
        if not channel.isclosed():
            self._via.post_message(Message.CHANNEL_CLOSE, channel.id)
            self._via.factory._local_close(channel.id)

    def _finish(self, status: int | None, reason: str) -> None:
        if not self._ended.is_set():  # otherwise the channel has ended as well
            self._status, self._reason = status, reason
            self._has_ended = True
            self._ended.set()
            self._over.set()
            self._set_room()

    def _set_room(self) -> None:
        self._room.set()
        if self._on_writable is not None:
            self._on_writable()

    # reading

    def read_some(self, limit: int) -> bytes:
        """Return what has come, in pieces as it came; waits for the first one; b"" at the end.

        Raises EOFError if there is more to say about the end.
        """
        try:
            return self.take(self._data.receive())
        except (EOFError, OSError):  # the gateway between has ended, or this one was given up
            return self.take(EOF)

    def park(self, ready: Callable[[Any], object], whom: object) -> None:
        """Call ``ready(whom)`` when something has come; meanwhile this counts as one who waits."""
        factory = self._via.factory
        if factory.direct is not None:
            self._waiting = factory.direct.waiting
            self._waiting[self] = self._inbox
        factory.take_back()
        self._inbox.park(ready, whom)

    def unpark(self) -> None:
        """Wait no more."""
        self._waiting.pop(self, None)

    def read_kept(self, limit: int) -> bytes:
        """Return what has come; never waits."""
        if self._inbox.empty():
            raise BlockingIOError
        return self.read_some(limit)

    def on_silence(self, reason: str) -> bool:
        """Whether something has come that no thread has had the time to take."""
        return self.is_shared and not self._inbox.empty()

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what to poll and how to read: there is nothing to poll."""
        self._on_writable = int
        return -1, self._read_now, -1

    def tell_loop(
        self, on_readable: Callable[[], object], on_writable: Callable[[], object]
    ) -> None:
        """Call these when something has come, and when there is room."""
        self._on_writable = on_writable

        def on_data(item: object) -> None:
            self._arrived.append(item)
            on_readable()

        self._data.setcallback(on_data, endmarker=EOF)

    def _read_now(self, limit: int) -> bytes:
        if not self._arrived:
            raise BlockingIOError
        return self.take(self._arrived.popleft())

    def why_ended(self) -> str:
        """Return why the stream has ended, unless that was in order."""
        return "" if self._closed_write else self._reason

    def take(self, item: object) -> bytes:
        """Return the bytes that came over the channel; b"" for the end."""
        if type(item) is bytes:
            self.account(len(item))
            return item
        self._at_end = True
        self._close_channels()
        if self._on_writable is None:
            self._explain_end()
        return b""

    def account(self, size: int) -> None:
        """Report to the far side, now and then, how much was taken."""
        self._silent = False
        report = self.output.take(size)
        if report:
            self._post(report)

    def read_within(self, timeout_s: float) -> bytes:
        """As ``read_some``; TimeoutError if nothing comes."""
        return self.take(self._data.receive(timeout_s))

    def direct_reads(self) -> ViaReads:
        """Return what lets other threads read."""
        return ViaReads(self, self._via, self._data)

    def _explain_end(self) -> None:
        if not self._closed_write:  # otherwise it was asked to end, and nobody wants to know why
            self._ended.wait(STATUS_S)
            if self._reason:
                raise EOFError(self._reason)

    def close_read(self) -> None:
        """Read no more; bytes on their way are dropped."""
        if not self._closed_read:
            self._closed_read = True
            self._post(DROP)
            self._close_channels()

    # writing

    def write(self, data: bytes) -> None:
        """Write all of it; waits while too much is on its way."""
        for start in range(0, len(data), CHUNK_BYTES):
            self._await_room()
            piece = data[start : start + CHUNK_BYTES]
            self._via._send_frame(*self._packed(len(piece), [piece]))
            self.input.sent += len(piece)

    def write_some(self, data: bytes) -> int:
        """Write at most ``CHUNK_BYTES`` bytes; an interrupt comes before all or after all.

        Not in a thread that ``may_not_wait``.
        """
        if self._has_ended or not self.input.has_room():
            self._await_room()
        size = len(data)
        head = _pack_bytes_head(Message.CHANNEL_DATA, self._data.id, size + 6, opcode.BYTES, size)
        self._via.writer.send(head, data + opcode.STOP)
        self.input.sent += size  # afterwards: an interrupt must not take room away for ever
        return size

    def wait_writable(self) -> None:
        """Wait until something can be written."""
        self._await_room()

    def hand_in(self, frame: Frame) -> None:
        """Hand in the next piece of a frame and note that, so that no interrupt sends it twice."""
        data, payload, counts = frame[:3]
        start, writer = sum(counts), self._via.writer
        if self._handing is None or self._handing[0] is not frame or self._handing[1] != start:
            self._await_room()
            inner, size = None, len(data) + len(payload)
            # A service, for which nothing is loaded, is on this machine: there is no link to spare.
            if len(frame) > 4 and not start and self.loaded:
                inner = self._using_blob(frame)
            if inner is None:
                end, after = start + CHUNK_BYTES, len(data)
                pieces = [memoryview(data)[start:end]]
                if end > after:
                    pieces.append(memoryview(payload)[max(0, start - after) : end - after])
                size = sum(map(len, pieces))
                inner = writer.frame(*self._packed(size, pieces))
            self._handing = frame, start, inner, size, self.input.sent + size
        _, _, inner, size, sent = self._handing
        if self._via.receives_here:
            writer.post_frame(inner)
        else:
            writer.deliver(inner)
        self.input.sent = sent
        counts[:] = (start + size,)

    def _packed(self, size: int, pieces: Sequence[Piece]) -> tuple[bytes, bytes]:
        """Return a frame that contains so many bytes, copied once; its last byte is a STOP."""
        head = _pack_bytes_head(Message.CHANNEL_DATA, self._data.id, size + 6, opcode.BYTES, size)
        return head, b"".join((*pieces, opcode.STOP))

    def _using_blob(self, frame: Frame) -> Frame | None:
        """Return a frame for a blob that is kept over there; None if there is no room for it."""
        data, (digest, start, end) = frame[0], frame[4]

        def make() -> Frame:
            item = dumps_internal([digest, data[:start], data[end:]])
            header = _HEADER.pack(Message.CHANNEL_DATA, self._data.id, len(item))
            return self._via.writer.frame(header, item)

        return kept_by(self._via).use(digest, data[start:end], self, make)

    def _await_room(self) -> None:
        """Wait while too much is on its way; OSError at the end of the far process."""
        while not self.input.has_room() and not self._ended.is_set():
            if self._on_writable is not None:
                raise StreamFull
            room = self._room = _Flag(self.execmodel)
            if not self.input.has_room() and not self._ended.is_set():
                room.wait()
        if self._ended.is_set():
            raise OSError(self._reason or "the far process has ended")

    def may_not_wait(self) -> bool:
        """Whether this is the receiver thread of a gateway on the way there.

        A callback may send in that thread, which is also the one that would learn of room.
        """
        return acts_on(self._via)

    def can_write_now(self) -> bool:
        """Whether a few KiB can be written without waiting."""
        if self._ended.is_set():
            return True
        return self.input.under_way < WINDOW_BYTES and self._via.endpoint.can_write_now()

    def close_write(self) -> None:
        """Let the far side read the end, after what was written."""
        if not self._closed_write:
            self._closed_write = True
            self._post(CLOSE)

    def _post(self, item: int | tuple[int | None]) -> None:
        """Have an item sent soon; never waits, and never fails."""
        if not self._data.isclosed():
            self._via.post_message(Message.CHANNEL_DATA, self._data.id, dumps_internal(item))

    # the end

    def wait(self) -> int | None:
        """Wait until the far process has ended; return its exit status, None if not known.

        After it was killed this takes only a moment, since the way there may be blocked.
        """
        self._over.wait()
        if not self._ended.is_set():
            limit_s = SILENT_S if self._silent else ANSWER_S
            if (asked := self._via._io.asked) and asked.is_silent():
                limit_s = 0.0
            if not self._ended.wait(max(0.0, self._kill_time + limit_s - monotonic())):
                self._via.endpoint.note_silence()
                self._lose(f"{self._via.id}, which it goes via, does not answer")
        self._on_gone()
        return self._known_status()

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the far process's end until ``time.monotonic()`` reaches the deadline.

        Returns its exit status, negative for a signal; None if it runs on or is not known.
        """
        self._ended.wait(max(0.0, deadline - monotonic()))
        return self._known_status()

    def has_ended(self) -> bool:
        """Whether the far process has ended, or nobody will know any more."""
        return self._ended.is_set()

    def note_silence(self) -> None:
        """Wait less for this worker to report its end; otherwise as the base class."""
        super().note_silence()
        self._silent = True

    def _known_status(self) -> int | None:
        if self._status is None and self._ended.is_set():
            return self.told_status
        return self._status

    def stderr_tail(self) -> str:
        """Return the end of its stderr; "" also if that is not captured."""
        return self._stderr

    def end(self) -> None:
        """End the command over there, whose worker has ended."""
        if not self._ended.wait(END_S):
            self.kill()

    def kill(self) -> None:
        """Have the far process killed; never waits."""
        if not self._over.is_set():
            self._kill_time = monotonic()
            self.told_status = None  # it does not end by itself
            self._post((self.worker_pid,))
            self._over.set()


def create_io(settings: Settings, execmodel: ExecModel, find_gateway: Find | None) -> ViaIO:
    """Have the worker of the gateway ``spec.via`` start what the spec says; return the stream.

    find_gateway: returns the gateway with an id, or raises KeyError, whose second argument is the
    ids that exist.  Raises ValueError if there is none, ``BootstrapError`` if that gateway can't
    start anything any more.
    """
    return create_io_over(settings, execmodel, find(settings.spec.via, find_gateway))


def create_io_over(
    settings: Settings,
    execmodel: ExecModel,
    via: Gateway,
    code: Channel | None = None,
    change: Callable[[Command], Command] | None = None,
    deadline: float | None = None,
) -> ViaIO:
    """Make a gateway's worker start what a spec says; otherwise as ``create_io``.

    code: a channel of the gateway whose other end is ``execnet.service.gatewaymaker``.  change:
    returns the command to be run in place of the spec's.  deadline: for the proofs, as
    ``time.monotonic()``; None for what the spec says.
    """
    try:
        request, args = _request_of(settings, via, change)
        io = ViaIO(via, request, args, _remoteaddress(settings, via), execmodel, code=code)
        if isinstance(settings.address, tuple):
            from .proof import prove

            prove(io, settings, deadline or settings.deadline())
        return io
    except BootstrapError:
        raise
    except (OSError, EOFError) as exc:
        raise BootstrapError(f"can't start anything via {via.id}: {exc}") from exc


def find(id: str, find_gateway: Find | None) -> Gateway:
    """Return the gateway with an id; ValueError if there is none."""
    try:
        if find_gateway is None:
            raise KeyError(id)
        return find_gateway(id)
    except KeyError as exc:
        known = exc.args[1] if len(exc.args) > 1 else []
        ids = ", ".join(known) or "none"
        raise ValueError(f"via={id}: there is no such gateway, there are: {ids}") from None


def _request_of(
    settings: Settings, via: Gateway, change: Callable[[Command], Command] | None = None
) -> tuple[dict[str, object], list[str]]:
    """Return the request to the far half, and the same in words."""
    spec = settings.spec
    request: dict[str, object] = {"args": None, "address": None, "stderr": False, "timeout": None}
    request["leads_group"] = settings.type == "popen" and settings.kills_group
    if settings.transport is None:
        if settings.address is None:
            raise ValueError(f"spec {spec.shown()!r}: socket= needs host:port or unix:path")
        request["address"], request["timeout"] = settings.address, settings.connect_timeout_s
        from .._transports.keys import trusts_others

        request["trusts_others"] = trusts_others(spec)
        return request, [f"socket={spec.socket}"]
    args = command(spec, via._rinfo().executable, settings.transport)
    args = args if change is None else change(args)
    request["args"], request["stderr"] = list(args), args.captures_stderr
    return request, list(args)


def _remoteaddress(settings: Settings, via: Gateway) -> str | None:
    if settings.transport is None:
        return str(settings.spec.socket)
    return address_of(settings.spec, settings.transport) or via.remoteaddress
