"""A gateway whose stream an asyncio loop reads.

The whole protocol is that of ``gateway.Gateway``.  ``_on_readable`` feeds it with the bytes that
have come, where other gateways have a thread that waits for them; ``_finish`` is the end.  Whatever
waits for an answer, or for the worker's end, is a coroutine here.
"""

# mypy: disable-error-code="override"
# What waits returns an awaitable here: a gateway is for threads or for a loop, never for both.

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial

from .. import gateway
from .._clock import monotonic
from .._errors import BootstrapError
from ..gateway import EXIT_STATUS_S, RemoteStatus
from ..gateway_base import (
    _HEADER,
    LARGE_BYTES,
    BaseGateway,
    Channel,
    FrameDecoder,
    GatewayState,
    LoadError,
    Message,
    ProtocolError,
    get_ident,
)
from . import channel as channels
from .inbox import Turn
from .threads import in_thread, to_its_end
from .writer import KINDS, LoopTlsWriter, LoopWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn, ParamSpec, TypeVar, overload

    from .._ends.death import Source
    from .._ends.handshake import Handshake
    from .._features.pulse import Pulse
    from .._specs import Settings
    from ..gateway_base import ChannelFactory, Piece
    from ..xspec import XSpec
    from .calls import Calls
    from .poller import Polls

    P = ParamSpec("P")
    T = TypeVar("T")

HEADER_BYTES, unpack_header = _HEADER.size, _HEADER.unpack_from
GRACE_S = 0.02  # how long the stream may stay open after the process has ended
LOOK_S = 1.0  # how often to look for a process's end if the system has no descriptor for it
FORBIDDEN = "a gateway of execnet.aio is used with 'async with' and 'await'"


class Gateway(gateway.Gateway):
    """A worker, seen from an asyncio loop; ``Group.makegateway`` makes it.

    Requests such as ``remote_exec`` are queued without waiting; whatever waits for something is
    awaited.  Only the loop's thread may use it.  Callbacks run in the loop.
    """

    waits_in_loop = True
    _writer: LoopWriter
    _calls: Calls | None

    def __init__(
        self,
        io: Any,
        spec: XSpec,
        handshake: Handshake | None = None,
        settings: Settings | None = None,
        *,
        loop: asyncio.AbstractEventLoop,
        poller: Polls,
    ) -> None:
        self._loop, self._poller = loop, poller
        self._turn = Turn()
        self._has_begun = False  # whether the worker has said its marker
        self._wanted = 65536  # bytes to read next
        self._end_fd = -1  # can be read when the process has ended
        self._is_over = False
        self._drains = False  # whether there may be more to read than polling shows
        self._read_now: Callable[[int], bytes]
        self._then: Callable[[], object] | None = None  # what to do when the process has ended
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self.made_in: dict[int, list[Channel]] = {}  # channels that certain threads have made
        super().__init__(io, spec, handshake, settings)

    def _initreceive(self) -> None:
        kind = KINDS.get(self._io.writer_class)
        ends = self._io.in_loop() if kind is not None else None
        if kind is None or ends is None:
            text = f"{self.id}: execnet.aio can't wait for this kind of stream, execnet.Group can"
            raise BootstrapError(text, self._io.args)
        self._read_fd, self._read_now, write_fd = ends
        self._writer = kind(self._io, self.id, self._loop, self._poller, write_fd)
        self._writer.refusal = self._refusal
        self._drains = kind is LoopTlsWriter
        self._loop.call_soon_threadsafe(self._attach)

    def _make_channel(self, gateway: BaseGateway, id: int, factory: ChannelFactory) -> Channel:
        """Return a new channel for the calling thread, whose calls wait unless it is the loop's."""
        ident = get_ident()
        if ident == self._receiver_ident:
            return channels.Channel(gateway, id, factory)
        channel = Channel(gateway, id, factory)
        if ident in self.made_in:
            self.made_in[ident].append(channel)
        return channel

    # ---------------------------------------------------------------- calls

    def get_calls(self) -> Calls:
        if self._calls is None:
            from .calls import Calls

            self._calls = Calls(self)
        return self._calls

    if TYPE_CHECKING:

        @overload
        async def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
        @overload
        async def call(self, func: str, /, *args: object, **kwargs: object) -> Any: ...
        async def call(self, func: object, /, *args: object, **kwargs: object) -> object: ...

        @overload
        def submit(
            self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
        ) -> asyncio.Future[T]: ...
        @overload
        def submit(self, func: str, /, *args: object, **kwargs: object) -> asyncio.Future[Any]: ...
        def submit(self, func: object, /, *args: object, **kwargs: object) -> object: ...

    else:

        async def call(self, func, /, *args, **kwargs):
            """Call a function in the worker; return its result, raise what it raises.

            As ``execnet.Gateway.call``.  Calls of several tasks run at once.  A call that is
            cancelled goes on in the worker.
            """
            return await self.get_calls().call(func, args, kwargs)

        def submit(self, func, /, *args, **kwargs):
            """Have a function called in the worker; return an ``asyncio.Future``; does not wait.

            As ``execnet.Gateway.submit``: what is submitted to one gateway runs there one after
            the other.  If the future is cancelled, the call goes on in the worker.
            """
            if self._submitted is None:
                from .calls import Submitted

                self._submitted = Submitted(self.get_calls())
            return self._submitted.submit(func, args, kwargs)

    def module(self, name: str) -> NoReturn:
        """Refuse: attributes of a remote module can't be awaited."""
        raise TypeError(f"execnet.aio has no modules: await gateway.call('{name}:FUNCTION')")

    async def forward_imports(
        self, names: Iterable[str], allow: Iterable[str] = (), deny: Iterable[str] = ()
    ) -> None:
        """Let code in the worker import modules of this program; as ``execnet.Gateway``'s."""
        forward = super().forward_imports
        await to_its_end(in_thread(self._loop, forward, names, tuple(allow), tuple(deny)), int)

    async def reload_imports(self) -> list[str]:
        """Read forwarded modules anew; as ``execnet.Gateway.reload_imports``."""
        return await to_its_end(in_thread(self._loop, super().reload_imports), int)

    # ---------------------------------------------------------------- what users wait for

    async def remote_status(self, timeout: float | None = None) -> RemoteStatus:
        """Ask the worker how it is; as ``execnet.Gateway.remote_status``."""
        channel = self.newchannel()
        channel._strconfig = (True, False)
        self._send(Message.STATUS, channel.id)
        status = await channel.receive(timeout)
        if not isinstance(status, dict):
            raise LoadError(f"{self.id} answered {repr(status)[:80]} when asked for its status")
        return RemoteStatus(status)

    async def dump_stacks(self, timeout: float | None = 10.0) -> str:
        """Return the Python stacks of all threads of the worker; as ``execnet.Gateway``'s."""
        stacks: str = await self.ask_stacks().receive(timeout)
        return stacks

    async def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds (None: for ever) until nothing more can come."""
        if not self._receiver_done.is_set():
            if self._ended is None:
                self._ended = self._loop.create_future()
            await asyncio.wait([self._ended], timeout=timeout)

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """End the worker and wait until it is gone; after 10 s, or if cancelled, it is killed."""

        def leave() -> None:
            gateway.Gateway.__exit__(self, kind, error, traceback)

        await to_its_end(in_thread(self._loop, leave), lambda: in_thread(self._loop, self._io.kill))

    def __enter__(self) -> Gateway:
        raise TypeError(FORBIDDEN)

    if TYPE_CHECKING:

        def newchannel(self) -> channels.Channel: ...
        def remote_exec(self, source: Source, **kwargs: object) -> channels.Channel: ...
        def ask_stacks(self) -> channels.Channel: ...

    # ---------------------------------------------------------------- the loop's thread

    def _attach(self) -> None:
        self._receiver_ident = self._writer.loop_ident = get_ident()
        self._reading = True
        if self._read_fd >= 0:
            self._poller.add_reader(self._read_fd, self._on_readable)
        else:
            self._io.tell_loop(self._on_readable, self._writer.on_writable)

    def _send_frame(self, header: bytes, payload: Piece) -> None:
        """Send a frame without waiting, in whatever thread."""
        self._writer.send(header, payload)

    def _enable_direct_reads(self) -> None:
        """The loop reads, nobody else."""

    def _on_readable(self) -> None:
        if self._is_over:
            return
        buffers = self._channelfactory.buffers
        if buffers is not None and self._has_begun and buffers.fill(self._decoder, 0):
            return
        try:
            data = self._read_now(self._wanted)
        except (BlockingIOError, InterruptedError):
            return
        except EOFError as exc:  # it says why
            self._on_end(exc)
            return
        except (OSError, ValueError) as exc:
            self._on_end(EOFError(f"reading failed: {exc}"))
            return
        self._heard += 1
        turn = self._turn
        turn.is_open = self._read_fd >= 0  # else it is within the turn of another gateway
        try:
            id = self._id_of_one(data)
            if id:
                self._channelfactory._local_receive(id, data[HEADER_BYTES:])
            elif self._has_begun and data:
                self._wanted = self._act_on(data)
            else:
                self._begin(data)
            if self._drains:
                self._loop.call_soon(self._on_readable)
        except BaseException as exc:  # whoever waits on a channel is told
            self._on_end(exc)
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                if turn.waiter is not None:
                    turn.waiter.go_on_soon()
                raise
        finally:
            turn.is_open = False
        waiter, turn.waiter = turn.waiter, None
        if waiter is not None:
            waiter.go_on()

    def _id_of_one(self, data: bytes) -> int:
        """Return the channel of an item if these bytes are its frame and no more, as most often."""
        size = len(data) - HEADER_BYTES
        if not (self._has_begun and 0 < size < LARGE_BYTES) or self._channelfactory.windows:
            return 0
        decoder = self._decoder
        if decoder.left or decoder.missing != HEADER_BYTES:  # within another frame
            return 0
        code, id, said = unpack_header(data)
        return id if code == 4 and said == size and id > 0 else 0  # 4 is CHANNEL_DATA

    def _begin(self, data: bytes) -> None:
        """Take what comes up to the worker's marker, or the end."""
        if self._has_begun:
            raise EOFError(self._decoder.describe_end())
        after = self.handshake.feed(data) if self.handshake.marker else data
        if after is None:
            reply = self.handshake.take_reply()
            if reply:
                self._writer.post(reply, b"")
            return
        self._decoder = FrameDecoder(True, self._admits)
        self._has_begun = True
        self._end_fd = self._io.open_end()
        if self._end_fd >= 0:
            self._poller.add_reader(self._end_fd, self._on_process_end)
        elif self._io.has_process:
            self._timer = self._loop.call_later(LOOK_S, self._look_for_end)
        self._wanted = self._act_on(after)

    # ---------------------------------------------------------------- the end

    def _look_for_end(self) -> None:
        if self._io.has_ended():
            self._on_process_end()
        else:
            self._timer = self._loop.call_later(LOOK_S, self._look_for_end)

    def _on_process_end(self) -> None:
        """Note that the process has ended; one that it forked may hold its stream open."""
        self._close_end_fd()
        then, self._then = self._then, None
        if then is not None:
            then()
        elif not self._is_over:
            self._timer = self._loop.call_later(GRACE_S, self._read_the_rest)

    def _read_the_rest(self) -> None:
        heard = self._heard
        self._on_readable()
        if self._is_over:
            return
        if self._heard == heard:
            self._on_end(EOFError("the stream ended"))
        else:
            self._timer = self._loop.call_later(0, self._read_the_rest)

    def _on_end(self, error: BaseException) -> None:
        """Read no more; go on when the process has ended, too, or some time later."""
        if self._is_over:
            return
        self._is_over, self._reading = True, False
        if self._read_fd >= 0:
            self._poller.remove_reader(self._read_fd)
        self._trace("receiving ended", repr(error))
        self._error = error
        died = isinstance(error, EOFError) and self._state != GatewayState.CLOSING
        if isinstance(error, ProtocolError):
            died = self._last_words.has_trace()
        if not died or self._io.has_ended():
            self._finish()
        elif self._end_fd >= 0:
            self._then = self._finish
            self._stop_timer()
            self._timer = self._loop.call_later(EXIT_STATUS_S, self._on_process_end)
        else:
            self._in_thread(self._wait_for_end, then=self._finish)

    def _wait_for_end(self) -> None:
        self._io.poll_until(monotonic() + EXIT_STATUS_S)
        self._ask_why()  # so that the next answer is there at once

    def _in_thread(
        self, function: Callable[..., object], *args: object, then: Callable[[], object]
    ) -> None:
        """Call a function in a thread, then another one in the loop, even if the first failed."""

        def go_on(future: asyncio.Future[object]) -> None:
            future.exception()
            then()

        try:
            in_thread(self._loop, function, *args).add_done_callback(go_on)
        except RuntimeError:  # there can be no more threads
            then()

    def _finish(self) -> None:
        self._stop_timer()
        why = self._io.why_ended()
        if why and isinstance(self._error, EOFError):
            self._error = EOFError(why)
        if isinstance(self._error, ProtocolError) and self._last_words.read_trace(self._read_rest):
            self._error = EOFError("the stream ended")
        if self._last_words.is_certain and not self._io.has_ended():
            # The program that carries the bytes, such as ssh, gets a moment to end.
            self._in_thread(self._io.end, then=self._close)
        else:
            self._close()

    def _read_rest(self, limit: int) -> bytes:
        try:
            return self._read_now(limit)
        except (EOFError, OSError, ValueError):
            return b""

    def _close(self) -> None:
        try:
            self._on_stream_end()
        finally:
            self._receiver_ident = None
            self._receiver_done.set()
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)
            if self._io.has_ended():
                self._close_end_fd()
                self._io.wait()  # so that it leaves no zombie
            elif self._end_fd >= 0:
                self._then = self._io.wait
            else:
                self._in_thread(self._io.wait, then=int)

    def _on_stream_end(self) -> None:
        self._writer.detach()
        super()._on_stream_end()

    def _close_end_fd(self) -> None:
        fd, self._end_fd = self._end_fd, -1
        if fd >= 0:
            self._poller.remove_reader(fd)
            os.close(fd)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---------------------------------------------------------------- any thread

    def refuse_blocking(self) -> None:
        """Raise TypeError: something is about to wait in a thread that must not."""
        if get_ident() not in self.made_in:
            raise TypeError(f"{self.id} belongs to a loop: use what execnet.aio has for it")

    def await_receiver(self) -> None:
        """Wait in a thread until the loop has handled the end of a worker that was waited for.

        If the loop does not run, this does it in its place.
        """
        while not self._receiver_done.wait(LOOK_S if self._loop.is_running() else 0.0):
            if not self._loop.is_running():
                self._error = self._error or EOFError(f"{self.id} was ended")
                for fd in (self._read_fd, self._end_fd):
                    with suppress(Exception):  # the loop is closed, or there is none
                        self._poller.remove_reader(fd)
                if self._end_fd >= 0:
                    os.close(self._end_fd)
                    self._end_fd = -1
                with suppress(Exception):  # what else is missing is nobody's to do
                    BaseGateway._on_stream_end(self)
                self._receiver_done.set()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._close_end_fd)

    def _watch_pulse(self, pulse: Pulse) -> None:
        """Beat in the loop: one that was held up reads what has come before it judges."""

        def beat() -> None:
            if not self._is_over and pulse.beat():
                self._loop.call_later(pulse.interval_s, beat)

        self._loop.call_later(pulse.interval_s, beat)

    def _on_silence(self, reason: str) -> None:
        self._silence = reason
        self._loop.call_soon_threadsafe(partial(self._in_thread, self._io.kill, then=int))
