"""What the subcommands share: the job runs in a thread, and the main thread watches over it.

A signal must reach a worker that is just being started as surely as one that is running.  So no
signal raises anything inside the code that starts workers: the job has a thread of its own, and the
main thread only waits for the end of the job, a signal or the time-out.  Whichever comes first, all
workers are ended after it.  Start at ``supervise``.
"""

from __future__ import annotations

import atexit
import errno
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from .._ship.source import source_to_send
from .._specs import Settings
from ..gateway import Gateway
from ..gateway_base import ISPYPY, Channel, ExecnetError, new_lock
from ..gateway_io import BootstrapError
from ..multi import Group
from ..xspec import XSpec
from . import early

if TYPE_CHECKING:
    from ..gateway_bootstrap import Through

Result = TypeVar("Result")
Handler = Callable[[int, FrameType | None], object] | int | None  # of a signal

STATUS_FAILED = 1
STATUS_USAGE = 2
STATUS_TIMEOUT = 124  # as with ``timeout(1)``
STATUS_SIGNAL = 128  # plus its number, as in shells
STATUS_STDOUT_CLOSED = STATUS_SIGNAL + 13  # as if ended by SIGPIPE

END_S = 5.0  # how long a worker may take to end when its code is done
STOP_S = 3.0  # how long code may take to clean up after an interrupt
KILL_S = 2.0  # how long a killed process may take to disappear
SAY_S = 1.0  # how long writing the last message may take
WAIT_S = 3600.0  # how long the main thread waits at a time; systems may limit it

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class CommandError(Exception):
    """Why the command can't do its work, for its user; ``status`` is the exit status."""

    def __init__(self, text: str, status: int = STATUS_USAGE) -> None:
        super().__init__(text)
        self.status = status


class _Stopped(Exception):
    """The job was overtaken by a signal, the time-out or the end of stdout."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


# ---------------------------------------------------------------- output


class Output:
    """Writes lines to stdout or stderr, those of one call together; any thread may call.

    It bypasses the stream's buffer: so a thread that waits for a reader holds no lock that the
    interpreter needs in order to end.  ``_lock`` keeps the lines of one call together.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        buffer = getattr(stream, "buffer", None)
        self._raw = getattr(buffer, "raw", buffer)
        self._lock = new_lock()
        self.closed = False  # True: everything from now on is dropped

    def write(self, text: str, prefix: str = "") -> None:
        """Write the lines of a text, each after the prefix; OSError if that fails."""
        lines = text.removesuffix("\n").split("\n")
        data = "".join(f"{prefix}{line}\n" for line in lines)
        view = memoryview(data.encode(self._encoding, "backslashreplace"))
        with self._lock:
            while view and not self.closed:
                if self._raw is None:
                    raise OSError(errno.EBADF, "it is not open")
                written = self._raw.write(view)
                if written is None:  # somebody set the stream to non-blocking
                    select.select([], [self._raw], [])
                view = view[written or 0 :]


# ---------------------------------------------------------------- workers


class WatchedGroup(Group):
    """A group that another thread can stop at any moment, even while it is starting.

    ``_gate`` guards ``_started`` and ``_stopping``: ``stop`` finds every worker that passed it.
    """

    def __init__(self) -> None:
        self._gate = new_lock()
        self._started: list[Gateway] = []
        self._stopping = False
        super().__init__()

    def _on_unknown(self, settings: Settings) -> None:
        """Refuse unknown keys: on the command line, no program has keys of its own."""
        for name in settings.unknown:
            text = settings.slip(name) or settings.complaint(name)
            raise ValueError(f"spec {settings.spec.shown()!r}: {text}")

    def _start(
        self, settings: Settings, find: Callable[[str], Gateway], through: Through | None
    ) -> Gateway:
        with self._gate:
            if self._stopping:
                raise BootstrapError(f"{settings.id} was not started, since the command is ending")
            try:
                gateway = super()._start(settings, find, through)
            except ValueError as exc:
                raise ValueError(f"spec {str(settings.spec)!r}: {exc}") from exc
            self._started.append(gateway)
        return gateway

    def start_all(self, specs: Sequence[XSpec]) -> list[Gateway]:
        """Start workers, all at once; ``CommandError`` with none left if that fails."""
        try:
            return self.makegateways(specs)
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        except (ExecnetError, OSError, ImportError) as exc:
            raise CommandError(str(exc), STATUS_FAILED) from exc

    def kill(self) -> None:
        """Kill all workers at once; does not wait, and may be called from a signal handler."""
        for gateway in list(self._started):
            gateway.endpoint.kill()

    def stop(self, grace_s: float, busy: Collection[str] = ()) -> list[str]:
        """End all workers without asking, and return the ids of those that are still running.

        busy: the ids of those whose code is interrupted and has ``grace_s`` seconds to clean up;
        the others are killed at once.
        """
        self._stop_listening()  # a spec that waits for a worker to dial in holds the gate
        passed = self._gate.acquire(True, STOP_S)  # otherwise the system hangs while starting one
        self._stopping = True
        if passed:
            self._gate.release()
        gateways = list(self._started)
        for gateway in gateways:
            if gateway.id in busy:
                gateway.writer.close_soon()
            else:
                gateway.endpoint.kill()
        _wait_until_gone(gateways, grace_s)
        self.kill()
        atexit.unregister(self._cleanup_atexit)  # this would wait for threads that wait for stdout
        return [gateway.id for gateway in _wait_until_gone(gateways, KILL_S)]


def _wait_until_gone(gateways: Sequence[Gateway], timeout_s: float) -> list[Gateway]:
    """Wait until processes end; return the gateways whose process has not ended."""
    deadline = time.monotonic() + timeout_s
    waited = [gateway for gateway in gateways if gateway.endpoint.poll_until(deadline) is None]
    # If a hop was killed, the workers that are reached through it end too, in a way unknown here.
    return [gateway for gateway in waited if not gateway.endpoint.has_ended()]


def run_there(
    gateway: Gateway,
    what: str,
    code: ModuleType,
    /,
    channel: Channel | None = None,
    **arguments: object,
) -> Channel:
    """Run a module of ours in a worker; return its channel.

    what: describes it in errors.  code: has a function ``run(channel, **arguments)``.  channel: to
    be used instead of a new one.
    """
    text, file_name, _ = source_to_send(code, gateway.has_old_python())
    return gateway.execute_source(what, text, file_name, "run", arguments, channel)


# ---------------------------------------------------------------- the watch


class Session:
    """The objects of a job, and what the main thread watches.

    ``pending`` has the ids of gateways with running code, which is interrupted before they are
    killed; the job maintains it.  ``_events`` gets what the main thread waits for, and a byte on
    the socket wakes it up: a signal just before the wait begins writes to the socket and so ends
    the wait, while it would not end a wait for a lock.
    """

    def __init__(self, group: WatchedGroup) -> None:
        self.group = group
        self.out = Output(sys.stdout)
        self.err = Output(sys.stderr)
        self.pending: dict[str, None] = {}
        self.stopping = threading.Event()
        self._events: deque[tuple[str, object]] = deque()
        self._wakeup, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._signal: int | None = None

    def close(self) -> None:
        """Close the sockets; nothing is waited for any more."""
        self._wakeup.close()
        self._waker.close()

    def wakeup_fd(self) -> int:
        """Return the descriptor for ``signal.set_wakeup_fd``."""
        return self._waker.fileno()

    def _post(self, kind: str, value: object) -> None:
        self._events.append((kind, value))
        with suppress(OSError):  # it is full and wakes the thread anyway, or nobody waits any more
            self._waker.send(b"\0")

    def stdout_failed(self, error: OSError) -> None:
        """End the command: nobody reads its output."""
        self.out.closed = True
        self._post("stdout", error)

    def on_signal(self, number: int, frame: object = None) -> None:
        """End the command; a second signal does not wait for code to clean up."""
        if self._signal is not None:
            self.group.kill()
        self._signal = number

    def run(self, job: Callable[[], Result], deadline: float | None) -> Result:
        """Run a job in a thread of its own; return what it returns or raise what it raises.

        Raises ``_Stopped`` if something else comes first; the job's thread is then abandoned.
        """
        threading.Thread(target=self._perform, args=(job,), daemon=True).start()
        kind, value = self._next_event(deadline)
        if self._signal is not None:  # it may also be why the job ended
            raise _Stopped(STATUS_SIGNAL + self._signal, _describe_signal(self._signal))
        if kind == "raised":
            raise value
        if kind == "timeout":
            raise _Stopped(STATUS_TIMEOUT)
        if kind == "stdout":
            raise _stdout_stopped(value)
        result: Result = value
        return result

    def _perform(self, job: Callable[[], object]) -> None:
        try:
            self._post("returned", job())
        except BaseException as exc:
            self._post("raised", exc)

    def _next_event(self, deadline: float | None) -> tuple[str, Any]:
        while not self._events and self._signal is None:
            left = WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return "timeout", None
            self._wakeup.settimeout(min(left, WAIT_S))
            with suppress(TimeoutError):
                self._wakeup.recv(4096)
        return self._events.popleft() if self._events else ("signal", self._signal)

    def end(self, deadline: float | None) -> None:
        """End workers whose code is done."""
        end_s = END_S if deadline is None else min(END_S, max(0.0, deadline - time.monotonic()))
        try:
            self.run(lambda: self.group.terminate(end_s), time.monotonic() + end_s + KILL_S)
        except _Stopped as stopped:
            if stopped.status != STATUS_TIMEOUT:
                raise
        self.stop(0.0)

    def stop(self, grace_s: float) -> None:
        """End all workers, and report those that can't be ended."""
        self.out.closed = True
        self.stopping.set()
        left = self.group.stop(grace_s, list(self.pending))
        if left:
            self.say(f"could not end {', '.join(left)}")

    def say(self, text: str) -> None:
        """Write a line to stderr, even if another thread is stuck there."""
        thread = threading.Thread(target=_write_or_not, args=(self.err, text), daemon=True)
        thread.start()
        thread.join(SAY_S)


def _write_or_not(output: Output, text: str) -> None:
    with suppress(OSError):  # there is nowhere left to report it
        output.write(text)


def _describe_signal(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def _stdout_stopped(error: OSError) -> _Stopped:
    if isinstance(error, BrokenPipeError):  # the reader has enough, like ``head``
        return _Stopped(STATUS_STDOUT_CLOSED)
    return _Stopped(STATUS_FAILED, f"can't write to stdout: {error.strerror}")


def _is_ignored(number: int) -> bool:
    """Whether a signal is ignored; PyPy does not know of those that it was started to ignore."""
    if not ISPYPY:
        return signal.getsignal(number) == signal.SIG_IGN
    from ..script.socketserver import is_ignored

    return is_ignored(number)


@contextmanager
def _signals_go_to(session: Session) -> Iterator[None]:
    """Handle the signals that would end the process, except those that it ignores.

    SIGCHLD is not ignored meanwhile: workers inherit that, and learn no program's exit status then.
    """
    before: dict[int, Handler] = {}
    former_fd = None
    try:
        if threading.current_thread() is threading.main_thread():
            former_fd = signal.set_wakeup_fd(session.wakeup_fd(), warn_on_full_buffer=False)
            for name in SIGNALS:
                number = signal.Signals.__members__.get(name)
                if number and signal.getsignal(number) is not None and not _is_ignored(number):
                    before[number] = signal.signal(number, session.on_signal)
            child = signal.Signals.__members__.get("SIGCHLD")
            if child and _is_ignored(child):
                before[child] = signal.signal(child, signal.SIG_DFL)
            if early.noted:  # the exception was lost, or it would have ended this process
                session.on_signal(signal.SIGINT)
        yield
    finally:
        for caught, former in before.items():
            signal.signal(caught, former)
        if former_fd is not None:
            signal.set_wakeup_fd(former_fd)
        session.close()


def supervise(
    name: str,
    job: Callable[[Session], int],
    timeout_s: float | None = None,
    group: WatchedGroup | None = None,
) -> int:
    """Run a job with workers and return the exit status, with no worker left.

    name: the subcommand, for messages.  job: called with a ``Session``, whose ``group`` it uses, in
    a thread of its own; returns the exit status.  timeout_s: for everything.  group: one of a
    special kind, if the job needs it.  Raises ``CommandError`` and what the job raises.
    """
    session = Session(WatchedGroup() if group is None else group)  # an empty group is false
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with _signals_go_to(session):
        try:
            status: int = session.run(lambda: job(session), deadline)
            session.end(deadline)
        except _Stopped as stopped:
            text = str(stopped)
            if stopped.status == STATUS_TIMEOUT:
                text = f"time-out, {timeout_s:g} s have passed: {_describe_work(session)}"
            session.stop(STOP_S)
            if text:
                session.say(f"execnet {name}: {text}")
            return stopped.status
        except BaseException:
            session.stop(0.0)
            raise
    return status


def _describe_work(session: Session) -> str:
    pending = list(session.pending)
    if pending:
        return f"{', '.join(pending)} did not finish"
    return "the workers were still starting"
