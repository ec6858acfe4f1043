"""What a gateway reaches for others that go via it: a process or a connection.

This file is shipped, see ``_via.far``; it keeps to what Python 2.7 and today's Python both accept.
An owner (``Process``, ``Connection``) has two descriptors and knows when it has ended.
"""

from __future__ import annotations

import os
import signal
import struct
import sys

from ..gateway_base import new_lock, real_select
from .far_loop import ERRORS, IN, Loop, retried, set_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Protocol

    from ..gateway_base import ExecModel

    Request = dict[str, object]  # what to start or to connect to: ``_via.stream`` makes it

    class Waits(Protocol):
        """An event."""

        def wait(self) -> object: ...

    class Owner(Protocol):
        """What a gateway reaches: ``Process`` is one."""

        read_fd: int
        write_fd: int

        @property
        def stderr(self) -> StderrTail | None: ...
        @property
        def open_end(self) -> Callable[[], int] | None: ...
        def kill(self, worker_pid: int | None) -> None: ...
        def close_write(self) -> None: ...
        def status(self) -> int | None: ...
        def wait(self, read_all: Waits) -> tuple[int | None, bytes]: ...

STDERR_S = 0.5  # how long the stderr of a process may take to end after it
STDERR_BYTES = 4096
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # Linux; ``fcntl`` names it since 3.10


class Process(object):
    """A command that runs here, with pipes as its stdin and stdout."""

    def __init__(self, model: ExecModel, request: dict[str, Any]) -> None:
        subprocess = model.subprocess
        self._may_wait = model.has_main_thread
        self.stderr = StderrTail(model) if request["stderr"] else None
        self.leads_group = request.get("leads_group")  # of what must not outlive it
        child_stdin, self.write_fd = pipe()
        self.read_fd, child_stdout = pipe()
        try:
            self._popen = subprocess.Popen(
                command_of(request["args"]),
                bufsize=0,
                stdin=child_stdin,
                stdout=child_stdout,
                stderr=None if self.stderr is None else subprocess.PIPE,
                close_fds=os.name == "posix",  # not the default everywhere
            )
        except BaseException:
            os.close(self.write_fd)
            os.close(self.read_fd)
            raise
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        if self.stderr is not None:
            self.stderr.follow(self._popen.stderr)

    def kill(self, worker_pid: int | None) -> None:
        """Kill the process unless it has ended, and what it started: all, if no worker is known."""
        if worker_pid == self._popen.pid:
            self._kill_group()
        for pid in descendants(self._popen.pid):
            if worker_pid in (None, pid):  # processes that a worker started are not killed
                try:
                    os.kill(pid, signal.SIGKILL)
                except ERRORS:
                    pass
        try:
            self._popen.kill()
        except ERRORS:  # it has ended, or belongs to another user
            pass

    def _kill_group(self) -> None:
        if self.leads_group:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except ERRORS:  # none of them is left
                pass

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._popen.poll() is not None

    def close_write(self) -> None:
        """Do nothing: stdin is a file of its own, which was closed."""

    def open_end(self) -> int:
        """Return a descriptor that can be read once it has ended, -1 if the system has none."""
        return open_end_of(self._popen.pid)

    def status(self) -> int | None:
        """Wait until it has ended; return the exit status, None if nobody knows it."""
        is_known = self._has_status()
        status: int = self._popen.wait()
        self._kill_group()
        return status if status or is_known else None

    def _has_status(self) -> bool:
        """Wait until it has ended; return whether ``Popen``, when it says 0, can know that."""
        if not (self._may_wait and hasattr(os, "waitid")):
            return True
        try:
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        except ERRORS:  # code here ignores SIGCHLD, or has asked for it first
            return False
        return True

    def wait(self, read_all: Waits | None) -> tuple[int | None, bytes]:
        """Wait until it has ended; return the exit status and the end of its stderr."""
        status = self.status()
        return status, b"" if self.stderr is None else self.stderr.last()


class StderrTail(object):
    """Passes the stderr of a process on to ours, and keeps the end of it."""

    def __init__(self, model: ExecModel) -> None:
        self._model = model
        self._lock = new_lock()  # guards what is called
        self._on_over: Callable[[], object] | None = None
        self._file: Any = None
        self._loop: Any = None
        self.tail = b""
        self._over = model.Event()

    def follow(self, file: Any) -> None:
        """Begin to read a file."""
        self._file = file
        if can_poll(self._model):
            self._loop = stderr_loop(self._model)
            self._loop.call(self._watch)
        else:
            self._model.start(self._run, (), "execnet-via-stderr")

    def _watch(self) -> None:
        self._loop.enter()
        self._loop.watch(self._file.fileno(), IN, self._read)

    def _run(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        """Pass on what is there; return whether it goes on."""
        file = self._file
        if self._model.has_main_thread:
            data = retried(os.read, file.fileno(), 4096)
        else:
            data = file.read(1)
        if data:
            self.tail = (self.tail + data)[-STDERR_BYTES:]
            try:
                os.write(2, data)
            except ERRORS:  # ours is closed
                pass
            return True
        if self._loop is not None:
            self._loop.unwatch(file.fileno())
            self._loop.leave()
        file.close()
        with self._lock:
            self._over.set()
            func = self._on_over
        if func is not None:
            func()
        return False

    def when_over(self, func: Callable[[], object] | None) -> None:
        """Call a function at the end of it, in whatever thread; None: call nothing any more."""
        with self._lock:
            self._on_over = func
            is_over = self._over.is_set()
        if is_over and func is not None:
            func()

    def last(self) -> bytes:
        """Return the end of it; does not wait for a forked process that holds it open."""
        self._over.wait(STDERR_S)
        return self.tail


class Connection(object):
    """A connection from here to a socket server."""

    stderr = None
    open_end = None  # it ends when all was read

    def __init__(self, model: ExecModel, request: Request) -> None:
        socket = model.socket
        address = request["address"]
        self.peer = b""  # host and port, which a client's proof contains
        if isinstance(address, tuple):
            host, port = address
            self._socket = socket.create_connection((str(host), port), request["timeout"])
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peer = as_bytes("%s %d" % self._socket.getpeername()[:2])
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(address))
            if not request["trusts_others"]:
                self._check_owner(socket)
        self._shut_write, self._shut_both = socket.SHUT_WR, socket.SHUT_RDWR
        self._socket.settimeout(None)
        self.read_fd, self.write_fd = os.dup(self._socket.fileno()), os.dup(self._socket.fileno())

    def _check_owner(self, socket: ModuleType) -> None:
        """Refuse a process of another user, if the system tells whose it is."""
        peercred = getattr(socket, "SO_PEERCRED", 17 if sys.platform.startswith("linux") else None)
        if peercred is not None:
            found = self._socket.getsockopt(socket.SOL_SOCKET, peercred, struct.calcsize("3i"))
            owner = struct.unpack("3I", found)[1]
            if owner not in (0, os.geteuid()):
                self._socket.close()
                raise EnvironmentError("user %d listens there, not this one" % owner)

    def kill(self, worker_pid: int | None) -> None:
        """Break it off."""
        self._shutdown(self._shut_both)

    def close_write(self) -> None:
        """Let the server read the end."""
        self._shutdown(self._shut_write)

    def _shutdown(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except ERRORS:  # it was reset, or is closed
            pass

    def status(self) -> None:
        """Close it, once the server has ended it; there is no exit status."""
        self._socket.close()

    def wait(self, read_all: Waits) -> tuple[None, bytes]:
        """Wait until the server has ended it; there is no exit status."""
        read_all.wait()
        self.status()
        return None, b""


def can_poll(model: ExecModel) -> bool:
    """Whether one thread can wait for many: not everywhere, and not among greenlets."""
    return model.has_main_thread and hasattr(real_select(), "poll")


_stderr_loop: list[Loop] = []
_lock = new_lock()


def stderr_loop(model: ExecModel) -> Loop:
    """Return the loop that reads what processes say on stderr; it may wait for ours."""
    with _lock:
        if not _stderr_loop:
            _stderr_loop.append(Loop(model, "execnet-via-stderr"))
    return _stderr_loop[0]


def open_end_of(pid: int) -> int:
    """Return a descriptor that can be read once a child has ended, -1 if the system has none."""
    try:
        return os.pidfd_open(pid)  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, EnvironmentError):
        return -1


def pipe() -> tuple[int, int]:
    """Return a new pipe, with the largest buffer that an ordinary user may have."""
    fds = os.pipe()
    if os.name == "posix":
        import fcntl

        for fd in fds:
            set_private(fd)
        if sys.platform.startswith("linux"):
            try:
                fcntl.fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES)
            except ERRORS:  # the user's share of such buffers is used up
                pass
    return fds


def pipe_all(fd: int, data: bytes) -> bool:
    """Write all of something; return whether it was read, or can be."""
    try:
        while data:
            data = data[retried(os.write, fd, data) :]
    except ERRORS:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs in turn; on Linux."""
    found: list[int] = []
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task)) as file:
                found += map(int, file.read().split())
    except ERRORS:
        return []
    return found + [below for child in found for below in descendants(child)]


def command_of(args: list[str]) -> list[bytes] | list[str]:
    """Return a command in the form that this system accepts."""
    return [as_bytes(arg) for arg in args] if os.name == "posix" else args


def as_bytes(text: str | bytes) -> bytes:
    """Return a text as UTF-8; Python 2 may have bytes already."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")
