"""Streams, as the coordinator's end of a gateway sees them: bytes both ways, and a worker.

A stream has two parts.  Bytes are read by one thread at a time, the gateway's receiver thread or
the one that reads in its place, and written by the one that holds the lock of its
``FrameWriter``.  How the worker ends, and what can be done about it, may be asked by any thread
at any moment, by several at once as well.  Start at ``Endpoint``.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from functools import partial

from .gateway_base import FrameWriter, Popen2IO, _left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO, Any, Protocol, TypeVar

    from .gateway_base import BaseGateway, DirectReads, ExecModel, Frame, WriteAll

    T = TypeVar("T")

    # What an event loop polls for reading, what reads it, and what it polls for writing.
    LoopEnds = tuple[int, Callable[[int], bytes], int]
    # What writes without waiting, and its arguments after the pieces.
    ReadyWay = tuple[Any, ...]
    WriteNow = Callable[[bytes], int]  # all of it, or raises BlockingIOError

    # Gets {}, or what went wrong as ``error``.
    Finish = Callable[[dict[str, str]], object]

    class SharedMemory(Protocol):
        """Memory that a worker of this machine is to have as well."""

        def make(self, gateway: BaseGateway, finish: Finish) -> None: ...
        def close(self) -> None: ...

    class Request(Protocol):
        """A request for a sign of life, which a worker has to answer."""

        def is_answered(self) -> bool: ...
        def is_silent(self) -> bool: ...
        def wait(self, deadline: float, is_hurried: bool) -> bool: ...

    class Carrier(Protocol):
        """A gateway whose worker passes bytes on."""

        id: str
        settings: Any  # a ``_specs.Settings``

        @property
        def endpoint(self) -> Endpoint: ...
        @property
        def receives_here(self) -> bool: ...


_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # 0: the system can't write without waiting


class StreamFull(Exception):
    """A stream that never waits takes nothing now."""


class Writer(FrameWriter):
    """The writer of a gateway of the coordinator: it also writes without waiting."""

    def queue(self, frame: Frame) -> None:
        """Queue a frame, which goes out with ``write_ready``, or with the next one sent."""
        if self._error is None and not self._closing:
            frame[3] += map(self._frames.append, (frame,))

    def put_now(self, write: WriteNow, frame: Frame) -> bool:
        """Write what the stream takes at once of a frame, if nothing else waits for it.

        write: its ``write_now``.  The frame has nothing but a header.  False: nothing was done.
        """
        (taken,) = map(self._lock.acquire, (False,))  # doc/interrupts.rst, "Locks"
        try:
            if not taken or self._has_work() or self._error:
                return False
            frame[2] += map(write, (frame[0],))  # one step
            if _left(frame):
                frame[3] += map(self._frames.append, (frame,))
        except OSError:  # it is full, or is none; or the system can't do that
            return False
        finally:
            if taken:
                self._lock.release()
                if self._has_work():  # the rest, or what was handed in while the lock was taken
                    self._flush_queued()
        return True

    def write_ready(self, way: ReadyWay) -> bool | None:
        """Write as much of what is queued as the stream takes now; return whether that was all.

        way: that of the stream.  None: another thread is writing, or the system can't do it.  In
        the end, call ``go_on``.
        """
        (taken,) = map(self._lock.acquire, (False,))  # doc/interrupts.rst, "Locks"
        try:
            while taken:
                frame = self._begun or (self._frames[0] if self._frames else None)
                was_begun = frame is not None and bool(frame is not self._begun or frame[2])
                if frame is None or not _left(frame) or not was_begun or self._error is not None:
                    if self._flush(may_wait=False):
                        return True
                    continue
                try:
                    self._advance_ready(frame, way)
                except BlockingIOError:
                    return False
                except (OSError, ValueError) as exc:
                    if isinstance(exc, OSError) and exc.errno == errno.EOPNOTSUPP:
                        return None
                    self.fail(str(exc))
        finally:
            if taken:
                self._lock.release()
        return None

    def _advance_ready(self, frame: Frame, way: ReadyWay) -> None:  # holds _lock
        """Write what one system call takes of a frame now."""
        header, payload, counts, _ = frame
        start = sum(filter(None, counts)) - len(header)
        rest = [memoryview(header)[start:], payload] if start < 0 else [memoryview(payload)[start:]]
        write, *more = way
        counts += map(write, (rest,), *[(argument,) for argument in more])

    def go_on(self) -> None:
        """Have what is left written by another thread."""
        self._flush_queued()


def acts_on(gateway: Carrier | None) -> bool:
    """Whether this thread acts on the frames of a gateway, or of one that it goes via."""
    while gateway is not None:
        if gateway.receives_here:
            return True
        gateway = gateway.endpoint.carrier
    return False


class Endpoint(ABC):
    """The base of all streams of the coordinator; what is not abstract has a default.

    A new kind of stream needs the abstract methods, ``execmodel`` and ``write_some``.
    """

    # Set before there is a gateway, and fixed from then on.
    execmodel: ExecModel
    args: Sequence[str] = ()  # the command, or what stands for it in messages
    remoteaddress: str | None = None  # of the worker's host, for one over a network
    carrier: Carrier | None = None  # another one after the end of this, with resume= in a tree
    starter: Carrier | None = None  # of the server that this leads to
    facts: Mapping[str, object] = {}  # what is known of the worker before it says hello
    ask_why: Callable[[], str] | None = None  # what it was started by: why it has ended; may wait
    stdout_fd: int | None = None  # the number by which the worker finds our stdout, if it has it
    has_process = False  # of this machine, whose end ``has_ended`` sees while the stream is open
    needs_boot = False  # ``boot`` starts the worker, in place of a first line
    tells_arrivals = False  # it has ``park``

    # Set by the thread that waits for the worker's hello.
    worker_pid: int | None = None
    # Set by any thread, before the stream ends.
    could_not_start = False  # there was never anything that could end
    kill_by: float | None = None  # when a kill by a login has to be over; set before it
    kills_by_login = False  # so that ``kill`` takes longer than a moment
    told_status: int | None = None  # in a goodbye; used where nothing else tells how it ended
    given_up = ""  # why the worker was, by the stream itself
    # Set by any thread, when others that are reached through the worker are to end.
    asked: Request | None = None
    # Set by its receiver thread: others read and close it, as soon as something comes or it ends.
    is_shared = False
    hop = ""  # the gateway on the way there whose end was this one's, too
    read_at = 0.0  # when something was read last, as ``time.monotonic()``; 0.0 if that is not noted
    carries = False  # whether others go via this one

    @property
    def is_near(self) -> bool:
        """Whether there is certainly no network in between."""
        starter = self.starter
        if starter is not None:  # the server that it has started listens on the same machine
            return starter.endpoint.remoteaddress is None
        return self.remoteaddress is None

    def boot(self, options: dict[str, object]) -> None:
        """Start the worker; called once, before anything is read or written.

        options: the arguments of ``start_worker``.  Raises ``BootstrapError``.
        """

    def on_hello(self, gateway: Any, finish: Finish) -> bool:
        """Whether there is more to be done before the gateway can be used, after its source.

        finish: called then, with an empty dict or with what went wrong as ``error``.
        """
        return False

    def on_silence(self, reason: str) -> bool:
        """Whether the stream sees to it itself that the worker is silent."""
        return False

    # ---------------------------------------------------------------- bytes, written

    writer_class: type[FrameWriter] = Writer
    small_bytes = 0  # a frame below it is best written at once
    takes_whole = False  # such a one goes all or, at an interrupt, not at all
    # One system call, which returns how much it took; for several pieces where the system has one.
    write_some: Callable[[Any], int | None]
    write_pieces: WriteAll | None = None
    # Takes all of a small frame or raises BlockingIOError, where the system can do that.
    write_now: WriteNow | None = None

    def ready_way(self) -> tuple[int, ReadyWay] | None:
        """Return what can be polled for more room, and what writes without waiting.

        That is a function in C and its further arguments; the first is a list of pieces.  It
        returns how much it took, or raises BlockingIOError.  None: there is no such function.
        """
        return None

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write all of it."""

    @abstractmethod
    def wait_writable(self) -> None:
        """Wait until something can be written."""

    @abstractmethod
    def can_write_now(self) -> bool:
        """Whether a few KiB can be written without waiting."""

    @abstractmethod
    def close_write(self) -> None:
        """Let the other side read an end, after what was written.  Twice does no harm."""

    # ---------------------------------------------------------------- bytes, read

    @abstractmethod
    def read_some(self, limit: int) -> bytes:
        """Return what is there, up to ``limit`` bytes; wait for the first, b"" at the end.

        Raises EOFError where there is more to say about the end.
        """

    def direct_reads(self) -> DirectReads | None:
        """Return what lets threads read that wait for an item; None: the receiver alone reads."""
        return None

    def shared_fd(self) -> int:
        """Return a descriptor that can be read when ``read_some`` returns at once; -1 for none.

        Then one thread can wait for many streams.  Before it does, ``read_kept`` has raised.
        """
        return -1

    def park(self, ready: Callable[[T], object], whom: T) -> None:
        """Call ``ready(whom)`` as soon as ``read_some`` returns at once; only once.

        Only where ``tells_arrivals`` is true.  Any thread may call.  ready: a function in C that
        never waits.  This is another way than a descriptor for one thread to wait for many streams.
        """
        raise NotImplementedError

    def unpark(self) -> None:
        """Note that ``ready`` was called, before anything is read."""

    def read_kept(self, limit: int) -> bytes:
        """Return, like ``read_some``, what came by the descriptor before; never waits.

        Raises BlockingIOError if nothing is left of it.
        """
        raise BlockingIOError

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what an event loop polls, None for what can't do so.

        Descriptors of -1 mean that it tells by itself, by ``tell_loop``.  Reads, ``write_some`` and
        ``write_pieces`` raise BlockingIOError, or return None, in place of waiting, and
        ``wait_writable`` raises ``StreamFull``.
        """
        return None

    def tell_loop(
        self, on_readable: Callable[[], object], on_writable: Callable[[], object]
    ) -> None:
        """Call these when there is something to read, and when more can be written, from now on.

        For a stream without descriptors; called in the loop's thread, and so are they.
        """

    def why_ended(self) -> str:
        """Return what is known of the stream's end beside the worker's; "" for nothing."""
        return ""

    def open_end(self) -> int:
        """Return a descriptor that can be read once the worker's process has ended.

        Whoever asked closes it.  -1: the system has none, or there is no process here.
        """
        return -1

    @abstractmethod
    def close_read(self) -> None:
        """Read no more; called by the receiver thread as its last.  Twice does no harm."""

    # ---------------------------------------------------------------- the worker's end

    @abstractmethod
    def wait(self) -> int | None:
        """Wait until the worker has ended and nothing of it is left here.

        Returns its exit status, negative for a signal; None if that is not known.
        """

    @abstractmethod
    def poll_until(self, deadline: float) -> int | None:
        """Wait for the worker's end until ``time.monotonic()`` reaches the deadline.

        Returns as ``wait``; None also if it runs on.
        """

    def has_ended(self) -> bool:
        """Whether the worker is known to have ended, also where its status is not."""
        return self.poll_until(0.0) is not None

    def note_status(self, status: int | None) -> None:
        """Note the exit status that the worker says it will have; called by the receiver thread."""
        self.told_status = status

    @abstractmethod
    def kill(self) -> None:
        """Kill the worker, if it has not ended; waits for moments only."""

    def kill_group(self) -> None:
        """Kill all processes of the group that a worker under ``kill=group`` leads."""

    def end(self) -> None:
        """End what carries the bytes: the worker's process is known to have ended."""

    def note_silence(self) -> None:
        """A worker that is reached through this one was killed, and nothing answers.

        Then this worker is taken for one that runs nothing any more.
        """
        self.worker_pid = None  # so that a kill takes all that this one has started along

    def is_out_of_reach(self, since: float = -1.0) -> bool:
        """Whether there is no connection, or nothing comes over it although something should.

        since: by ``time.monotonic()``; from then on nothing has come. Without it, silence alone
            says nothing.
        """
        return False

    def discard(self) -> None:
        """Kill the worker of a stream that nobody reads, and leave nothing of either."""
        self.kill()
        self.wait()
        self.close_write()
        if not self.is_shared:
            self.close_read()

    def stderr_tail(self) -> str:
        """Return the last that came over stderr; "" also where it is not captured."""
        return ""

    def is_connecting(self) -> bool:
        """Whether it still waits for a host to answer, as far as the system tells."""
        return False

    def is_reached(self) -> bool:
        """Whether the host has taken the connection; only an ssh may still be waiting for that."""
        return True

    def disown(self) -> None:
        """In a forked process: the worker and the stream to it are the parent's."""


class PipeEndpoint(Popen2IO, Endpoint):
    """A stream to a process of this machine, over two pipes."""

    has_process = True
    popen: Any = None  # the process, if it was started as a child of this one
    memory: SharedMemory | None = None  # beside the pipes, where the spec asks for it
    _never_waits = False

    def __init__(self, outfile: IO[bytes], infile: IO[bytes], execmodel: ExecModel) -> None:
        super().__init__(outfile, infile, execmodel)
        if self.takes_whole and _NOWAIT:
            fd = outfile.fileno()
            self.write_now = lambda data: os.pwritev(fd, (data,), -1, _NOWAIT)

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what an event loop polls, None on Windows."""
        if os.name == "nt":  # nothing there polls pipes
            return None
        self._never_waits = True
        read_fd, write_fd = self.infile.fileno(), self.outfile.fileno()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return read_fd, partial(os.read, read_fd), write_fd

    def ready_way(self) -> tuple[int, ReadyWay] | None:
        """Return what can be polled for more room, and what writes without waiting."""
        if not (self.takes_whole and _NOWAIT) or self.outfile.closed:
            return None
        fd = self.outfile.fileno()
        return fd, (partial(os.pwritev, fd), -1, _NOWAIT)

    def on_hello(self, gateway: BaseGateway, finish: Finish) -> bool:
        """Have the worker open the memory, if there is any; whether that is so."""
        if self.memory is not None:
            self.memory.make(gateway, finish)
        return self.memory is not None

    def close_read(self) -> None:
        """Close the file that is read, and the memory."""
        if self.memory is not None:
            self.memory.close()
        super().close_read()

    def wait_writable(self) -> None:
        """Wait until something can be written; ``StreamFull`` if this never waits."""
        if self._never_waits:
            raise StreamFull
        super().wait_writable()


class _Foreign(Endpoint):
    """A stream that is no ``Endpoint``, with the defaults for what it lacks.

    A program may put one in place of ``gateway_io.Popen2IOMaster``, or give one to ``Gateway``.
    """

    def __init__(self, io: Any) -> None:
        self._io = io
        for name in dir(Endpoint):
            if not name.startswith("_") and hasattr(io, name):
                setattr(self, name, getattr(io, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._io, name)

    def write(self, data: bytes) -> None:
        self._io.write(data)

    def wait_writable(self) -> None:
        """Return at once: its ``write`` waits by itself."""

    def can_write_now(self) -> bool:
        return True

    def close_write(self) -> None:
        pass

    def read_some(self, limit: int) -> bytes:
        data: bytes = self._io.read_some(limit)
        return data

    def close_read(self) -> None:
        pass

    def wait(self) -> int | None:
        return None

    def poll_until(self, deadline: float) -> int | None:
        return None

    def kill(self) -> None:
        pass


def endpoint_of(io: object) -> Endpoint:
    """Return a stream as an ``Endpoint``; one of another kind gets what it lacks."""
    return io if isinstance(io, Endpoint) else _Foreign(io)
