"""Makes the stream that a spec asks for; itself, those over the pipes of a command.

Which command that is, ``_transports.table`` says; other streams are made in ``gateway_socket``,
``_via.stream``, ``_service.near`` and others.  Start at ``create_io``.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, nullcontext, suppress

from ._clock import monotonic, sleep
from ._endpoint import Endpoint, PipeEndpoint, endpoint_of
from ._ends.fork import stderr_of_children
from ._ends.poll import EndPoll
from ._errors import BootstrapError as BootstrapError
from ._errors import HostNotFound as HostNotFound
from ._errors import command_text as command_text
from ._errors import with_command
from ._specs import Settings
from ._transports import table as transports_table
from ._transports.table import Command
from ._transports.table import popen_bootstrapline as popen_bootstrapline
from ._transports.table import shell_split_path as shell_split_path
from .gateway_base import ExecModel, above_stdio, new_lock, real_select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from ._ends.green_poll import GreenPoll
    from ._ends.watch import EndWatch
    from ._resume.ways import Maker
    from ._transports.surroundings import Surroundings
    from ._transports.table import Transport
    from .gateway import Gateway
    from .xspec import XSpec

    T = TypeVar("T", bound=PipeEndpoint)
else:
    signal = __import__("_signal")  # without ``enum``, which takes long

PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # on Linux; PyPy has no name for it
SPARE_DESCRIPTORS = 6  # while a process is being started
RELAY_DESCRIPTORS = 3  # the same, where its stderr is captured; two of them stay
MORE_DESCRIPTORS = "raise the limit (ulimit -n, or resource.setrlimit) or use fewer gateways"
NO_DESCRIPTOR = errno.EMFILE, errno.ENFILE
END_S = 0.25  # how long a command may take to end by itself after its worker
FIRST_LOOK_S, LAST_LOOK_S = 0.0005, 0.05  # between checks for the end of a process
KILL_S = 2.0  # how long another user's kill may take
GENTLE_S = 0.2  # for ssh to restore the terminal's echo when a prompt is abandoned


def popen_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter on this machine."""
    return _args("popen", spec)


def ssh_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter through ssh."""
    return _args("ssh", spec)


def vagrant_ssh_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter in a vagrant machine."""
    return _args("vagrant_ssh", spec)


def _args(key: str, spec: XSpec) -> list[str]:
    row = transports_table.TRANSPORTS[key]
    return row.make(spec, transports_table.interpreter_words(spec, row, sys.executable))


def _pipe() -> list[int]:
    """Return the two ends of a new pipe, with the largest buffer that a user may have."""
    if sys.platform == "linux":
        import fcntl
    ends = list(map(above_stdio, os.pipe()))
    if sys.platform == "linux":
        with suppress(OSError):  # the user's share of such buffers is used up
            fcntl.fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES)
    return ends


def _pipes(count: int) -> tuple[list[int], list[int | None]]:
    """Return our ends and the other ends of pipes for stdin, stdout and, if count is 3, stderr."""
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for number in range(count):
            read_end, write_end = _pipe()
            ours.append(read_end if number else write_end)
            theirs.append(write_end if number else read_end)
    except OSError:
        close_all(ours + theirs)
        raise
    return ours, [*theirs, *[None] * (3 - count)]


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _needed(settings: Settings) -> int:
    """Return how many descriptors the gateway of a spec uses here while it lives."""
    if settings.spec.via:
        return 0
    if settings.transport is None:
        return 2 if settings.type == "socketservice" else 1
    captures = sys.platform != "win32" and settings.transport.captures_stderr
    pipes = 3 if captures or settings.spec.forkserver else 2
    return pipes + 3 * settings.shares_buffers  # of the file, and of its halves before 3.13


def check_descriptors(specs: list[Settings]) -> None:
    """Raise ``BootstrapError`` if there are too few descriptors for the gateways of specs.

    One gateway finds that out by itself, before anything else is started.
    """
    found = _descriptors() if len(specs) > 1 else None
    if found is None:
        return
    have, limit = found
    needed = [_needed(settings) for settings in specs]
    need = sum(needed) + SPARE_DESCRIPTORS + (RELAY_DESCRIPTORS if max(needed) > 2 else 0)
    if have + need > limit:
        raise BootstrapError(
            f"{len(specs)} gateways need {need} descriptors; {have} of {limit} are in use: "
            + MORE_DESCRIPTORS
        )


def _descriptors() -> tuple[int, int] | None:
    """Return how many descriptors are in use, and how many may be; None if it is not known."""
    try:
        limit = os.sysconf("SC_OPEN_MAX")  # as RLIMIT_NOFILE now is, and needs no import
    except (AttributeError, ValueError, OSError):
        return None
    if limit < 0:  # there is none
        return None
    try:
        return len(os.listdir("/proc/self/fd")), limit
    except OSError as exc:
        return (limit, limit) if exc.errno in NO_DESCRIPTOR else None


def with_advice(exc: OSError | ImportError) -> OSError | ImportError:
    """Return the error of a start; a ``BootstrapError`` if descriptors ran out."""
    texts = [os.strerror(number) for number in NO_DESCRIPTOR]  # an ImportError has no number
    if not any(text in str(exc) for text in texts):
        return exc
    found = _descriptors()
    in_use = f" ({found[0]} of {found[1]} are in use)" if found else ""
    text = f"no descriptor is left{in_use}: {MORE_DESCRIPTORS}; {exc}"
    if isinstance(exc, BootstrapError):
        return type(exc)(text, exc.command, exc.exitcode, exc.stderr, exc.noise)
    return BootstrapError(f"no gateway could be started: {text}")


def end_poll(
    fd: int, io: Endpoint, find_watch: Callable[[], EndWatch | None]
) -> EndPoll | GreenPoll | None:
    """Return an object that waits for a stream and the end of its process; None if impossible."""
    if not io.execmodel.has_main_thread:
        from ._ends.green_poll import GreenPoll

        return GreenPoll(fd, io, io.execmodel)
    return EndPoll(fd, io, find_watch) if hasattr(real_select(), "poll") else None


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process that Ctrl-C in a terminal does not reach.

    The process inherits the signals that this thread blocks; its coordinator decides its fate.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch_children() -> EndWatch | None:
    from ._ends import watch

    return watch.of_children()


class Popen2IOMaster(PipeEndpoint):
    """The stream to a child process, over two pipes.

    args: the command; its stderr is captured if a ``Command`` says so.
    Raises ``BootstrapError`` if it can't be started.
    """

    def __init__(self, args: list[str], execmodel: ExecModel) -> None:
        self.args: list[str] = args
        self._ended = False
        self._status: int | None = None  # None also where nobody can tell
        self._reap_lock = new_lock()
        self._stderr: Any = None
        command = args if isinstance(args, Command) else Command(args)
        captures = command.captures_stderr and sys.platform != "win32"
        passed: list[int] = []
        theirs: list[int | None] = []
        ours: list[int] = []
        try:
            ours, theirs = _pipes(3 if captures else 2)
            if captures:
                from ._ends import stderr

                self._stderr = stderr.capture(ours[2])
            if command.inherits_stdout:
                self.stdout_fd = above_stdio(os.dup(1))
                passed = [self.stdout_fd]
            if not captures:
                theirs[2] = stderr_of_children(execmodel.subprocess.DEVNULL)
            files: dict[str, Any] = dict(zip(("stdin", "stdout", "stderr"), theirs, strict=True))
            with _without_interrupts() if command.is_remote else nullcontext():
                files.update(env=command.env, cwd=command.folder)
                popen = execmodel.subprocess.Popen(args, bufsize=0, pass_fds=passed, **files)
                self.popen: Any = popen
        except BaseException as exc:
            self._discard(ours)
            if isinstance(exc, (OSError, ValueError, RuntimeError, ImportError)):
                text = with_command(f"can't start {args[0]}: {exc}", args)
                raise BootstrapError(text, args) from exc
            raise
        finally:
            close_all([fd for fd in (*theirs, *passed) if fd is not None and fd >= 0])
        outfile, infile = execmodel.fdopen(ours[0], "wb"), execmodel.fdopen(ours[1], "rb")
        super().__init__(outfile, infile, execmodel)
        self._end_poll = end_poll(ours[1], self, _watch_children)

    def _discard(self, ours: list[int]) -> None:
        if self._stderr is None:
            close_all(ours)
        else:  # it owns the third
            close_all(ours[:2])
            self._stderr.close()

    def read_some(self, limit: int) -> bytes:
        """Return available bytes, like the base class; b"" also when the process has ended."""
        if self._end_poll is None:
            return super().read_some(limit)
        return self._end_poll.read(super().read_some, limit)

    def open_end(self) -> int:
        """Return a descriptor that becomes readable when the process ends; -1 if there is none."""
        try:
            return above_stdio(os.pidfd_open(self.popen.pid))
        except (AttributeError, OSError):  # another system, or too many descriptors
            return -1

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._look(wait=False)

    def _look(self, wait: bool) -> bool:
        """Return whether the process has ended; with ``wait``, wait for it.  Notes its exit status.

        ``Popen`` would report 0 if the system does not know the status (any more).
        """
        if self.popen.returncode is not None and not self._ended:
            self._ended, self._status = True, self.popen.returncode
        if not self._ended and self.execmodel.has_main_thread and hasattr(os, "waitid"):
            flags = os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)
            try:
                found = os.waitid(os.P_PID, self.popen.pid, flags)
                if found is None:
                    return False
                exited = found.si_code == os.CLD_EXITED
                self._status = found.si_status if exited else -found.si_status
            except ChildProcessError:  # somebody else asked for it, or SIGCHLD is ignored
                pass
            self._ended = True
        elif not self._ended and self.execmodel.has_main_thread and os.name == "posix":
            self._take_status(wait)
        elif not self._ended:
            self._status = self.popen.wait() if wait else self.popen.poll()
            self._ended = self._status is not None
        if self._ended and self.popen.returncode is None:
            self._reap()
        return self._ended

    def _take_status(self, wait: bool) -> None:
        """Ask for the exit status where that can be done only once, as on macOS and PyPy."""
        (taken,) = map(self._reap_lock.acquire, (wait,))  # doc/interrupts.rst, "Locks"
        try:
            if taken and not self._ended:
                pid, status = os.waitpid(self.popen.pid, 0 if wait else os.WNOHANG)
                if pid:
                    self._status = self.popen.returncode = os.waitstatus_to_exitcode(status)
                    self._ended = True
        except ChildProcessError:  # somebody else asked for it, or SIGCHLD is ignored
            self._ended = True
        finally:
            if taken:
                self._reap_lock.release()

    def _reap(self) -> None:
        """Leave no zombie, and tell ``Popen``, whose own lock an interrupt may leave taken."""
        with self._reap_lock:
            if self.popen.returncode is None:
                with suppress(ChildProcessError):  # done before an interrupt, or by somebody else
                    os.waitpid(self.popen.pid, os.WNOHANG)
                self.popen.returncode = self._status or 0  # None would mean that it still runs

    def close_read(self) -> None:
        """Close the file that is read."""
        if self._end_poll is not None:
            self._end_poll.close()
        super().close_read()

    def kill_group(self) -> None:
        """Kill all processes of the group that a worker under ``kill=group`` leads."""
        if self.worker_pid == self.popen.pid:
            with suppress(OSError):  # none of them are left
                os.killpg(self.popen.pid, signal.SIGKILL)

    def disown(self) -> None:
        """In a forked process: the process and the stream to it are the parent's."""
        if self._end_poll is not None:
            self._end_poll.disown()
        self.close_write()
        self.close_read()
        self.popen.returncode = 0  # it is not ours to wait for
        self._ended, self._status = True, None

    def wait(self) -> int | None:
        """Wait until the process has ended; return its exit status, None if not known."""
        self._look(wait=True)
        self._leave_process()
        return self._status

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the process's end until ``time.monotonic()`` reaches the deadline.

        Returns its exit status, negative for a signal; None if it is still running, or unknown.
        """
        if self.execmodel.has_main_thread:
            delay_s = FIRST_LOOK_S
            while not self.has_ended() and monotonic() < deadline:
                sleep(max(0.0, min(delay_s, deadline - monotonic())))
                delay_s = min(2 * delay_s, LAST_LOOK_S)
        else:
            with suppress(self.execmodel.subprocess.TimeoutExpired):
                self.popen.wait(max(0.0, deadline - monotonic()))
        if self.has_ended():
            self._leave_process()
        return self._status

    def end(self) -> None:
        """End the command after its worker: it may wait for processes that the worker left."""
        if self.poll_until(monotonic() + END_S) is None and not self._carries_others():
            self.kill()

    def _carries_others(self) -> bool:
        """Whether this is an ssh whose connection others share."""
        if self.args[0] != "ssh":
            return False
        subprocess = self.execmodel.subprocess
        try:
            asked = subprocess.Popen(
                ["ssh", "-O", "check", *self.args[1:-1]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError:
            return False
        try:
            answer: bytes = asked.communicate(timeout=KILL_S)[1]
        except subprocess.TimeoutExpired:
            asked.kill()
            answer = asked.communicate()[1]
        return b"pid=%d)" % self.popen.pid in answer

    def _leave_process(self) -> None:
        if self._end_poll is not None:
            self._end_poll.tell()
        if self._stderr is not None:
            self._stderr.close()

    def is_connecting(self) -> bool:
        """Whether this is an ssh whose host has not answered yet; known only on Linux."""
        return self.args[0] == "ssh" and "SYN_SENT" in self._tcp_states()

    def is_reached(self) -> bool:
        """Whether the host has taken the connection, for certain: of ssh only Linux tells."""
        return self.args[0] != "ssh" or "ESTABLISHED" in self._tcp_states()

    def _tcp_states(self) -> set[str]:
        try:
            from ._ends.failure import tcp_states
        except (ImportError, OSError):  # no descriptor is left to read it with
            return set()
        return tcp_states(self.popen.pid)

    def stderr_tail(self) -> str:
        """Return the last output on stderr; "" also if it is not captured."""
        tail: bytes = self._stderr.tail if self._stderr is not None else b""
        return tail.decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """Kill the process unless it has ended, and a worker that it started for us.

        Before the worker has said hello, everything that the process started is killed with it, and
        ssh is asked to end first, as it may have turned off the echo of a terminal.
        """
        if self.has_ended():
            return
        waits = self._kill_below()  # sudo ends after its child, and then leaves no zombie
        with suppress(OSError):  # it belongs to another user, or is gone
            if self.worker_pid is None and sys.platform != "win32":
                self.popen.terminate()
                self.popen.send_signal(signal.SIGCONT)
                waits = True
            if waits and self.poll_until(monotonic() + GENTLE_S) is not None:
                return
            self.popen.kill()

    def _kill_below(self) -> bool:
        """Kill the descendants of our process that belong to us; return whether there were any."""
        if self.worker_pid is None and sys.platform != "win32":
            with suppress(OSError):
                self.popen.send_signal(signal.SIGSTOP)  # it starts no more
        below = _descendants(self.popen.pid)
        if self.worker_pid is not None:  # what a worker started is its own
            below = [pid for pid in below if pid == self.worker_pid]
        denied = []
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except PermissionError:
                denied.append(str(pid))
            except OSError:
                pass
        if denied and "--" in self.args[:5] and self.args[0] == "sudo":
            sudo = self.args[: self.args.index("--") + 1]
            with suppress(OSError, self.execmodel.subprocess.SubprocessError):
                self.execmodel.subprocess.call([*sudo, "kill", "-9", *denied], timeout=KILL_S)
        return bool(below)


def _descendants(pid: int) -> list[int]:
    """Return the known descendants of a process."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
    return found + [below for child in found for below in _descendants(child)]


def _with_memory(settings: Settings, start: Callable[[], T]) -> T:
    """Start a worker, which gets memory beside its pipes where the spec says so."""
    if not settings.shares_buffers:
        return start()
    from ._shared.near import Offer

    memory = Offer()
    try:
        io = start()
    except BaseException:
        memory.close()
        raise
    io.memory = memory
    return io


def _start_command(settings: Settings, execmodel: ExecModel, transport: Transport) -> Endpoint:
    """Run the command that leads to the worker."""
    command = transports_table.command(settings.spec, row=transport)
    io: Any = _with_memory(settings, lambda: Popen2IOMaster(command, execmodel))
    io.remoteaddress = transports_table.address_of(settings.spec, transport)
    return endpoint_of(io)  # a program may have put a class of its own there


def _start_resumable(
    settings: Settings, execmodel: ExecModel, find_gateway: Callable[[str], Gateway] | None
) -> Endpoint:
    """Start a worker that outlives its connections."""
    from ._resume import near

    near.check_models(settings, execmodel)
    if settings.spec.via:
        from ._via.stream import find

        via = find(settings.spec.via, find_gateway)
        return near.ResumeIO(settings, execmodel, _maker_over(settings, execmodel, via))
    if settings.spec.installvia:
        from . import gateway_socket
        from ._resume import ways

        starter = gateway_socket.find(settings.spec.installvia, find_gateway)
        return near.ResumeIO(settings, execmodel, ways.over_server_of(settings, execmodel, starter))
    io = near.ResumeIO(settings, execmodel, _direct_maker(settings, execmodel))
    if settings.transport is not None:
        io.remoteaddress = transports_table.address_of(settings.spec, settings.transport)
    return io


def _maker_over(settings: Settings, execmodel: ExecModel, via: Gateway) -> Maker:
    """Return what makes connections through a gateway, in a tree by other ways after its end."""
    from ._resume import detours, ways

    level = vars(settings.spec).get("_level")
    if level is None or not detours.leads_anywhere(settings):
        return ways.over_gateway(settings, execmodel, via)
    direct = _direct_maker(settings, execmodel)
    return detours.Detours(settings, execmodel, via, level, direct)


def _direct_maker(
    settings: Settings, execmodel: ExecModel, surroundings: Surroundings | None = None
) -> Maker:
    """Return what makes connections from here."""
    from ._resume import ways

    if settings.transport is None:
        return ways.over_socket(settings, execmodel)
    command = transports_table.command(settings.spec, row=settings.transport)
    return ways.over_command(command, execmodel, Popen2IOMaster, surroundings)


def log_in_anew(
    settings: Settings, execmodel: ExecModel, surroundings: Surroundings | None
) -> Endpoint:
    """Run the command of a spec when nobody may be there to answer its questions.

    surroundings: those that the login had which was lost.
    """
    io: Endpoint = _direct_maker(settings, execmodel, surroundings).anew(0.0, bool)
    assert settings.transport is not None
    io.remoteaddress = transports_table.address_of(settings.spec, settings.transport)
    return io


def create_io(
    spec: XSpec,
    execmodel: ExecModel,
    find_gateway: Callable[[str], Gateway] | None = None,
    settings: Settings | None = None,
) -> Endpoint:
    """Start what a spec says; return the stream to it.

    find_gateway: returns the gateway of the group that has an id, for ``via=`` and ``installvia=``;
    raises KeyError.  settings: the parsed values of the spec, if they exist already.
    Raises ``BootstrapError`` if it can't be started, ValueError for a spec that can't work.
    """
    settings = settings or Settings(spec)
    with named(spec):
        if settings.resume_s is not None:
            return _start_resumable(settings, execmodel, find_gateway)
        if spec.via:
            from ._via import stream as via_stream

            return via_stream.create_io(settings, execmodel, find_gateway)
        if settings.type == "socketservice":
            from ._service import near as service_near

            return service_near.create_io(settings, execmodel)
        if settings.transport is None:
            from . import gateway_socket

            return gateway_socket.create_io(settings, execmodel, find_gateway)
        if spec.forkserver:
            from ._forkserver import stream as forkserver_stream

            make = forkserver_stream.create_io
            forked = _with_memory(settings, lambda: make(settings, execmodel, _pipes, end_poll))
            return endpoint_of(forked)
        return _start_command(settings, execmodel, settings.transport)


@contextmanager
def named(spec: XSpec) -> Iterator[None]:
    """Say in the errors of a stream which gateway it was to be for."""
    try:
        yield
    except BootstrapError as exc:
        text = f"{spec.id} could not be started: {exc}"
        raise type(exc)(text, exc.command, exc.exitcode, exc.stderr, exc.noise) from exc
