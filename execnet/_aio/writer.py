"""Writes frames as far as the stream takes them; the rest waits here for the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from .._endpoint import StreamFull, Writer
from .._transports.tls import TlsWriter
from .._via.writer import ViaWriter
from ..gateway_base import FrameWriter, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._endpoint import Endpoint
    from ..gateway_base import Frame, Piece
    from .poller import Polls


class LoopWriter(FrameWriter):
    """The writer of a gateway whose stream never waits; tasks of a loop wait instead.

    Any thread may hand in frames.  When the stream takes more, the loop's thread writes the
    rest.  If the loop does not run (any more), another thread does, as with other gateways.
    """

    def __init__(
        self, io: Endpoint, name: str, loop: asyncio.AbstractEventLoop, poller: Polls, fd: int
    ) -> None:
        super().__init__(io, name)
        self._loop, self._poller, self._fd = loop, poller, fd
        self.loop_ident = 0  # of the thread that the loop runs in, once it has been seen there
        self._polls = False
        self._waiting_tasks: deque[asyncio.Future[None]] = deque()  # one for each waiting task

    def send(self, header: bytes, payload: Piece) -> None:
        """Have a frame written soon, as ``post``; OSError if it can't be.

        It never waits in the loop's thread, which awaits ``room`` before it calls this.
        """
        if self._frames or self._begun:
            if get_ident() != self.loop_ident:
                self._send_from_thread(header, payload)
                return
        elif (
            self._takes_whole
            and len(payload) < self._small_bytes
            and not (self._closing or self._error)
        ):
            # One call, which takes all or nothing, so there is nothing to note.
            try:
                with self._lock:
                    if not self._frames and self._write_some(header + payload):
                        return
            except (OSError, ValueError) as exc:
                self.fail(str(exc))
            finally:
                if self._frames or self._closing:  # handed in while the lock was taken
                    self._flush_queued()
        if self._error is not None or self._closing:
            raise self.refusal_now()
        self.post(header, payload)

    def _send_from_thread(self, header: bytes, payload: Piece) -> None:
        """Wait until it is this frame's turn, and have it written soon."""
        try:
            asyncio.run_coroutine_threadsafe(self.room(), self._loop).result()
            if self._error is not None or self._closing:
                raise self.refusal_now()
            self.post(header, payload)
        finally:
            self._loop.call_soon_threadsafe(self.pass_on)

    def deliver(self, frame: Frame) -> None:
        """Have a frame written soon, as ``post_frame``."""
        self.post_frame(frame)

    def refusal_now(self) -> Exception:
        """Return the error for a frame that can't be sent."""
        return self.refusal(f"cannot send (already closed?): {self._error or 'it was ended'}")

    # the loop's thread

    def is_full(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._frames or self._begun)

    async def room(self) -> None:
        """Wait until no other frame waits to be written, or none can be written any more."""
        if self._error is not None:
            return
        waiter = self._loop.create_future()
        # First queue, then look: a thread that has written everything looks into the queue.
        self._waiting_tasks.append(waiter)
        try:
            if self.is_full() or self._waiting_tasks[0] is not waiter:
                await waiter
        except BaseException:
            if not waiter.cancelled():  # its turn had come, which is now for the next one
                self.pass_on()
            raise
        finally:
            with suppress(ValueError):
                self._waiting_tasks.remove(waiter)

    def pass_on(self) -> None:
        """Let the next task write; called by a task that had its turn, and by the writer."""
        if self.is_full():
            return
        for waiter in self._waiting_tasks:
            if not waiter.done():
                waiter.set_result(None)
                return

    def fail(self, reason: str) -> None:
        """Refuse all frames from now on, and drop those that are waiting."""
        super().fail(reason)
        if get_ident() == self.loop_ident:
            self._wake_all()
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for waiter in self._waiting_tasks:
            if not waiter.done():
                waiter.set_result(None)

    # any thread

    def _flush(self, may_wait: bool = True) -> bool:  # holds _lock
        try:
            done = super()._flush(True)  # in place of waiting it raises
        except StreamFull:
            return False
        if self._waiting_tasks:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.pass_on)
        return done

    def _start_flusher(self) -> None:
        self._flusher_runs = True
        if self._loop.is_running():
            if get_ident() == self.loop_ident:
                self._poll()
                return
            with suppress(RuntimeError):  # it was closed just now
                self._loop.call_soon_threadsafe(self._poll)
                return
        super()._start_flusher()

    def _run_flusher(self) -> None:  # in a thread of its own
        with self._lock:
            self._flusher_runs = False
            while not self._flush() and self._fd >= 0:
                self._io.execmodel.wait_writable(self._fd)
        self._flush_queued()

    def _poll(self) -> None:
        if not self._polls:
            self._polls = True
            if self._fd >= 0:  # else the stream tells by itself
                self._poller.add_writer(self._fd, self.on_writable)

    def on_writable(self) -> None:
        """The stream takes more."""
        if not self._polls:
            return
        self._stop_polling()
        self._flusher_runs = False
        self._flush_queued()
        self.pass_on()

    def _stop_polling(self) -> None:
        if self._polls:
            self._polls = False
            if self._fd >= 0:
                self._poller.remove_writer(self._fd)

    def detach(self) -> None:
        """Let go of the loop: the stream is closed next."""
        self._stop_polling()
        self._wake_all()


class LoopViaWriter(LoopWriter, ViaWriter):
    """The same, where the stream is a channel of another gateway."""


class LoopTlsWriter(LoopWriter, TlsWriter):
    """The same, where the stream has TLS."""


KINDS: dict[type[FrameWriter], type[LoopWriter]] = {
    FrameWriter: LoopWriter,
    Writer: LoopWriter,
    TlsWriter: LoopTlsWriter,
    ViaWriter: LoopViaWriter,
}
