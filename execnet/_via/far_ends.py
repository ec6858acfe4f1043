"""What a gateway reaches for others that go via it: a process or a connection.

This file is shipped, see ``_via.far``; it stands alone and keeps to what Python 2.7 and
today's Python both accept.  An owner (``Process``, ``Connection``) has two descriptors and
knows when it has ended; a stream reads and writes the descriptors.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

STDERR_S = 0.5  # how long the stderr of a process may take to end after it
STDERR_BYTES = 4096
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # Linux; ``fcntl`` names it since 3.10
ERRORS = (EnvironmentError, ValueError, select.error)  # ValueError: a file is closed


class Process(object):
    """A command that runs here, with pipes as its stdin and stdout."""

    def __init__(self, model: Any, request: dict[str, Any]) -> None:
        subprocess = model.subprocess
        self._stderr = StderrTail(model) if request["stderr"] else None
        self.leads_group = request.get("leads_group")  # of what must not outlive it
        child_stdin, self.write_fd = pipe()
        self.read_fd, child_stdout = pipe()
        try:
            self._popen = subprocess.Popen(
                command_of(request["args"]),
                bufsize=0,
                stdin=child_stdin,
                stdout=child_stdout,
                stderr=None if self._stderr is None else subprocess.PIPE,
                close_fds=os.name == "posix",  # not the default everywhere
            )
        except BaseException:
            os.close(self.write_fd)
            os.close(self.read_fd)
            raise
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        if self._stderr is not None:
            self._stderr.follow(self._popen.stderr)

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

    def wait(self, read_all: Any) -> tuple[int, bytes]:
        """Wait until it has ended; return the exit status and the end of its stderr."""
        status: int = self._popen.wait()
        self._kill_group()
        return status, b"" if self._stderr is None else self._stderr.last()


class StderrTail(object):
    """Passes the stderr of a process on to ours, and keeps the end of it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tail = b""
        self._over = model.Event()

    def follow(self, file: Any) -> None:
        """Begin to read a file."""
        self._model.start(self._run, (file,), "execnet-via-stderr")

    def _run(self, file: Any) -> None:
        while True:
            data = os.read(file.fileno(), 4096) if self._model.has_main_thread else file.read(1)
            if not data:
                break
            self._tail = (self._tail + data)[-STDERR_BYTES:]
            try:
                os.write(2, data)
            except ERRORS:  # ours is closed
                pass
        file.close()
        self._over.set()

    def last(self) -> bytes:
        """Return the end of it; does not wait for a forked process that holds it open."""
        self._over.wait(STDERR_S)
        return self._tail


class Connection(object):
    """A connection from here to a socket server."""

    def __init__(self, model: Any, request: dict[str, Any]) -> None:
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

    def _check_owner(self, socket: Any) -> None:
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

    def wait(self, read_all: Any) -> tuple[None, bytes]:
        """Wait until the server has ended it; there is no exit status."""
        read_all.wait()
        self._socket.close()
        return None, b""


class PolledStream(object):
    """Two descriptors; waiting for either ends when the process does.

    A process that was forked there may hold the other ends open, which must not hide the end.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        import fcntl

        flags = fcntl.fcntl(write_fd, fcntl.F_GETFL)
        fcntl.fcntl(write_fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        self._read_fd, self._write_fd = read_fd, write_fd
        self._end_fd, self._end_writer = pipe()  # hangs up at the end
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(read_fd, select.POLLIN)
        self._writable.register(write_fd, select.POLLOUT)
        for poll in self._readable, self._writable:
            poll.register(self._end_fd, 0)
        self._drain_bytes = PIPE_BYTES  # how much may still be read after the end
        self._lock = threading.Lock()
        self._users = 2  # how many use the descriptor that hangs up at the end
        self._poll, self._read = self._readable.poll, os.read
        if sys.version_info[0] == 2:
            self._poll = lambda: retried(self._readable.poll)
            self._read = lambda fd, limit: retried(os.read, fd, limit)

    def read_some(self, limit: int) -> bytes:
        """Return the bytes that are there; waits for some; b"" at the end."""
        ready = self._poll()
        if len(ready) > 1 or ready[0][0] == self._end_fd:
            self._drain_bytes -= limit
            if len(ready) == 1 or self._drain_bytes < 0:
                return b""
        return self._read(self._read_fd, limit)

    def write_now(self, data: bytes) -> int:
        """Return how many bytes went out without waiting; an error is raised by the next wait."""
        try:
            return os.write(self._write_fd, data)
        except ERRORS:
            return 0

    def write(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            ready = dict(retried(self._writable.poll))
            if self._end_fd in ready:
                raise EnvironmentError(errno.EPIPE, "it has ended")
            try:
                data = data[os.write(self._write_fd, data) :]
            except EnvironmentError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EINTR):
                    raise

    def on_end(self) -> None:
        """Wake up whoever waits."""
        os.close(self._end_writer)

    def close_read(self) -> None:
        """Close what is read."""
        os.close(self._read_fd)
        self._leave()

    def close_write(self) -> None:
        """Close what is written."""
        os.close(self._write_fd)
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self._end_fd)


class WaitingStream(object):
    """The same for a system that can't poll descriptors, and for greenlets."""

    def __init__(self, stream_class: Any, owner: Any, model: Any) -> None:
        outfile = model.fdopen(owner.write_fd, "wb")
        self._io = stream_class(outfile, model.fdopen(owner.read_fd, "rb"), model)
        self.read_some = self._io.read_some
        self.write = self._io.write
        self.close_read = self._io.close_read
        self.close_write = self._io.close_write

    def write_now(self, data: bytes) -> int:
        """Return 0: nothing can be written without waiting."""
        return 0

    def on_end(self) -> None:
        """Do nothing: a thread that waits reads the end, or fails to write."""


def pipe() -> tuple[int, int]:
    """Return a new pipe, with the largest buffer that an ordinary user may have."""
    fds = os.pipe()
    if os.name == "posix":
        import fcntl

        for fd in fds:  # in Python 2 all our processes would inherit them
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
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


def retried(func: Callable[..., Any], *args: Any) -> Any:
    """Call a function again for as long as a signal interrupts it, as Python 3 does itself."""
    while True:
        try:
            return func(*args)
        except ERRORS as exc:
            if exc.args[:1] != (errno.EINTR,):
                raise


def command_of(args: list[str]) -> list[Any]:
    """Return a command in the form that this system accepts."""
    return [as_bytes(arg) for arg in args] if os.name == "posix" else args


def as_bytes(text: Any) -> bytes:
    """Return a text as UTF-8; Python 2 may have bytes already."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")
