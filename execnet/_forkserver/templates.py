"""Templates of ``popen//forkserver``: starts them, asks them for workers, and ends them.

There is one for each interpreter command, list of modules to preload, and whatever else decides
what an interpreter imports.  It belongs to this process, not to a group, and ends with it.
The code that runs there is ``_forkserver.far``.  Start at ``template_for``.
"""

from __future__ import annotations

import atexit
import errno
import marshal
import os
import select
import socket
import subprocess
from array import array
from contextlib import suppress

from .._clock import monotonic, sleep
from .._ends import fork as ends_fork
from .._ends.watch import LOOK_S, Bell, EndWatch
from .._errors import BootstrapError, command_text
from ..gateway_base import above_stdio, new_lock
from .boot import first_line
from .far import BROKEN, EXITED, FAILED, FORK, FORKED, HEADER, KILL, KILLED, MARSHAL_VERSION, READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

KEPT = 8  # templates without workers, kept for later gateways
SLICE_S = 0.02  # the longest wait for a report that another thread may have taken
END_S = 1.0  # how long a template may take to end
VARIABLES = (
    "PYTHON",
    "EXECNET",
    "LANG",
    "LC_",
    "PATH",
    "LD_",
)  # variables that decide what is loaded


class TemplateLost(Exception):
    """The template has ended; it will not do what it was asked."""


class Fork:
    """What is known about a worker that a template was asked for.

    The thread with the template's lock fills it in; reading needs no lock.
    """

    def __init__(self, token: int) -> None:
        self.token = token
        self.pid: int | None = None
        self.error = 0  # why there is no worker
        self.ended = False
        self.status: int | None = None  # negative for a signal


class Template:
    """A process that forks workers, seen from the coordinator.

    Any thread may call; ``_lock`` guards the socket and everything that is known.  A thread
    that needs to know something takes in the reports for all; ``_watch`` does so while somebody
    waits for a worker's end.
    """

    def __init__(self, command: list[str], line: bytes, deadline: float) -> None:
        self.command = command
        self.pid = 0
        self.lost = False
        self._lock = new_lock()
        self._forks: dict[int, Fork] = {}
        self._last_token = 0
        self._received = b""
        self._problem = ""
        self._ends_with_last = False
        self._watch: EndWatch | None = None
        self._wake: Bell | None = None  # for its thread
        self._environment = dict(os.environb)
        self._control, theirs = socket.socketpair()
        if self._control.fileno() <= 2:
            self._control = socket.socket(fileno=above_stdio(self._control.detach()))
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=ends_fork.stderr_of_children(subprocess.DEVNULL),
                    bufsize=0,
                )
            except OSError as exc:
                self._control.close()
                text = f"can't start {command_text(command)}: {exc}"
                raise BootstrapError(text, command) from exc
        self._control.setblocking(False)
        try:
            self._start(line, deadline)
        except BaseException:
            self.end(0.0)
            raise
        ends_fork.register(self)

    def _start(self, line: bytes, deadline: float) -> None:
        """Wait until the template has imported what it should."""
        text = f"the template {command_text(self.command)} "
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and that is reported
            self._send_all(line, deadline)
        while not self.pid:
            self.take_news()
            if self._problem:
                raise BootstrapError(
                    text + f"could not be prepared:\n{self._problem}", self.command
                )
            if self.lost:
                status = self._process.returncode
                raise BootstrapError(
                    text + f"ended before it was ready, exit status {status}", self.command, status
                )
            if monotonic() > deadline:
                raise BootstrapError(text + "was not ready in time", self.command)
            self.wait_for_news(SLICE_S)

    def fork(self, options: dict[str, object], fds: dict[str, int], deadline: float) -> Fork:
        """Ask for a worker; returns before it exists.

        options: for ``start_worker``.  fds: its stdio and its folder, by name.  Raises
        ``TemplateLost``; OSError if the template takes nothing until the deadline.
        """
        order = options, tuple(fds), self._changed_environment()
        payload = marshal.dumps(order, MARSHAL_VERSION)
        with self._lock:
            self._take_news()
            if self.lost:
                raise TemplateLost(self.describe_end())
            self._last_token += 1
            fork = self._forks[self._last_token] = Fork(self._last_token)
            try:
                header = HEADER.pack(FORK, fork.token, len(payload))
                self._send_all(header + payload, deadline, list(fds.values()))
            except BaseException as exc:  # it may have received half of it
                self._lose()
                if isinstance(exc, (BrokenPipeError, ConnectionResetError)):
                    raise TemplateLost(self.describe_end()) from exc
                raise
        return fork

    def _changed_environment(self) -> dict[bytes, bytes | None]:
        """Return how our environment differs from the template's."""
        now, then = dict(os.environb), self._environment
        changes: dict[bytes, bytes | None] = dict.fromkeys(then.keys() - now.keys())
        for name, value in now.items():
            if then.get(name) != value:
                changes[name] = value
        return changes

    def kill(self, fork: Fork) -> None:
        """Have its parent kill a worker, since that knows whether it still exists."""
        with self._lock:
            if not self.lost:
                try:
                    header = HEADER.pack(KILL, fork.token, 0)
                    self._send_all(header, monotonic() + END_S)
                except OSError:
                    self._lose()

    def _send_all(self, data: bytes, deadline: float, fds: list[int] | None = None) -> None:
        while data:
            ancillary = []
            if fds:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
            try:
                data = data[self._control.sendmsg([data], ancillary) :]
                fds = None
            except BlockingIOError:
                left = deadline - monotonic()
                if not _wait_for(self._control.fileno(), min(left, SLICE_S), True) and left <= 0:
                    raise TimeoutError("the template takes nothing") from None
            except OSError as exc:
                # Too many descriptors are in transit for one user.
                if exc.errno != errno.ETOOMANYREFS or monotonic() > deadline:
                    raise
                sleep(0.001)

    # reports

    def take_news(self) -> None:
        """Act on the template's reports so far; never waits for more."""
        with self._lock:
            self._take_news()

    def wait_for_news(self, seconds: float) -> None:
        """Wait a moment for reports; another thread may take them first."""
        _wait_for(self._control.fileno(), max(0.0, min(seconds, SLICE_S)))

    def _take_news(self) -> None:  # holds _lock
        while not self.lost:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._received += data
            while len(self._received) >= HEADER.size and self._act():
                pass
            if not data:
                self._lose()

    def _act(self) -> bool:  # holds _lock
        """Act on the first message; False if it is not complete."""
        kind, token, number = HEADER.unpack_from(self._received)
        end = HEADER.size + (number if kind == BROKEN else 0)
        if len(self._received) < end:
            return False
        fork = self._forks.get(token, Fork(0))
        if kind == READY:
            self.pid = number
        elif kind == BROKEN:
            self._problem = self._received[HEADER.size : end].decode("utf-8", "replace")
        elif kind == FORKED:
            fork.pid = number
        elif kind == FAILED:
            fork.error, fork.ended = number, True
        else:
            fork.status = {EXITED: number, KILLED: -number}[kind]
            fork.ended = True
            if self._wake is not None:
                self._wake.ring()
        self._received = self._received[end:]
        return True

    def watch(self) -> EndWatch:
        """Return the watch that reports the ends of workers to the readers of their streams."""
        with self._lock:
            if self._watch is None:
                self._wake = None if self.lost else Bell()
                self._watch = EndWatch(self._wait_for_an_end)
            return self._watch

    def _wait_for_an_end(self) -> None:
        """Wait for new reports, or until another thread has found an end among them."""
        fds: list[int] = []
        with self._lock, suppress(OSError):  # too many open
            if self._wake is not None:
                fds = [above_stdio(os.dup(self._wake.fd)), self._control.fileno()]
        if not fds:  # poll, as nothing reports them any more
            sleep(LOOK_S)
            return
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll())
        os.close(fds[0])
        with self._lock:
            if self._wake is not None and fds[0] in ready:
                self._wake.mute()

    # the end

    def release(self, fork: Fork) -> None:
        """Forget a worker that has ended, or that nobody asks about any more."""
        with self._lock:
            self._forks.pop(fork.token, None)
            if self._ends_with_last and not self._forks:
                self._lose()

    def is_idle(self) -> bool:
        """Whether it has no workers."""
        return not self._forks

    def describe_end(self) -> str:
        """Return in words that the template has ended, and how."""
        return f"the template has ended, exit status {self._process.returncode}"

    def end(self, timeout_s: float = END_S) -> None:
        """End the template, not its workers; kill it after ``timeout_s``, or at once."""
        with self._lock:
            self._lose(timeout_s)

    def end_with_last(self) -> None:
        """End the template as soon as it has no workers."""
        with self._lock:
            self._ends_with_last = True
            if not self._forks:
                self._lose()

    def _lose(self, timeout_s: float = END_S) -> None:  # holds _lock
        if self._wake is not None:
            self._wake.ring()
        self._close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        self.lost = True
        self._control.close()
        if self._wake is not None:
            self._wake.close()
            self._wake = None

    def _disown(self) -> None:
        """In a forked process: the template is the parent's."""
        self._lock = new_lock()
        self._close()
        self._process.returncode = 0  # it is not ours to wait for


def _wait_for(fd: int, seconds: float, writing: bool = False) -> bool:
    """Wait until something can be read, or written; return whether it can."""
    if fd < 0:  # closed by another thread
        return True
    seconds = max(0.0, seconds)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    ready = select.select([] if writing else [fd], [fd] if writing else [], [], seconds)
    return bool(ready[0] or ready[1])


# ---------------------------------------------------------------- all of them


class _Templates:
    """The templates of this process; ``_lock`` guards them, and one starts at a time."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._by_key: dict[object, Template] = {}
        self._registered = False

    def find(self, command: list[str], preload: tuple[str, ...], ship: bool, by: float) -> Template:
        variables = sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES))
        # Its folder decides what a module, or a command without a path, is.
        place = os.getcwd() if preload or not os.path.isabs(command[0]) else ""
        key = (*command, preload, place, *variables)
        with self._lock:
            if not self._registered:
                self._registered = True
                atexit.register(self._end_at_exit)
                ends_fork.register(self)
            template = self._by_key.pop(key, None)
            if template is not None:
                template.take_news()
            if template is None or template.lost:
                self._end_oldest()
                template = Template(command, first_line(preload, ship), by)
            self._by_key[key] = template  # in order of last use
            return template

    def _end_oldest(self) -> None:  # holds _lock
        """Make room for one more; templates with workers do not count."""
        idle = [key for key, template in self._by_key.items() if template.is_idle()]
        for key in idle[: max(0, len(idle) + 1 - KEPT)]:
            self._by_key.pop(key).end()

    def end(self) -> None:
        with self._lock:
            for template in self._by_key.values():
                template.end()
            self._by_key.clear()

    def _end_at_exit(self) -> None:
        # Groups that are older than this are ended after it.
        for template in list(self._by_key.values()):
            template.end_with_last()

    def _disown(self) -> None:
        self._lock = new_lock()
        self._by_key = {}
        self._registered = False


_templates = _Templates()


def template_for(
    command: list[str], preload: tuple[str, ...], ship: bool, deadline: float
) -> Template:
    """Return the template for a command, a running one if there is one.

    command: starts an interpreter that reads its first line as ``popen_bootstrapline`` does.
    ship: whether our source has to be sent.  Raises ``BootstrapError``.
    """
    return _templates.find(command, preload, ship, deadline)


def shutdown() -> None:
    """End all templates and wait until they are gone; their workers keep running."""
    _templates.end()
