"""The template of ``popen//forkserver``: a process with one thread that forks workers.

It is imported, or shipped as source to any interpreter from 3.6 on.  The control socket is its
stdin.  Each message there is a ``HEADER`` (kind, token, number), followed by that many bytes for
``FORK`` and ``BROKEN``; descriptors travel with the header of ``FORK``.  The template ends when the
socket does.

Most of the time of a fork goes into its first writes to shared pages of memory.  So one child is
kept in reserve, the spare, which has done that already.  Start at ``run``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import gc
import marshal
import os
import select
import signal
import socket
import struct
import sys
import threading
from array import array
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

    Changes = dict[bytes, "bytes | None"]
    Fields = tuple[dict[str, Any], tuple[str, ...], Changes]

# The format of an order: it crosses between Pythons, and has only plain builtins.
MARSHAL_VERSION = 2
HEADER = struct.Struct("!BiI")
FORK, KILL = 1, 2  # to the template; number: bytes that follow
READY, BROKEN = 3, 4  # from it, once; number: its pid, or bytes that follow
FORKED, FAILED = 5, 6  # number: the worker's pid; the error's
EXITED, KILLED = 7, 8  # number: exit status; signal
START = "_features.start"  # what makes a forked process a worker
MAX_FDS = 4
QUIET_MS = 3  # without orders, before a spare is forked, which would compete with running workers
NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}

# What workers load at their first task, or at their end.
USUAL_MODULES = "linecache", "pickle", "queue", "traceback"


class Order:
    """What a forked process should become; it owns ``fds`` now."""

    def __init__(self, payload: bytes, fds: list[int]) -> None:
        self.payload = payload
        self.fds = fds


class Template:
    """Takes orders, and reports what becomes of its children.

    There is only one thread.  It never waits for the coordinator to read.
    """

    def __init__(self, control: socket.socket, rehearse: Callable[[], object]) -> None:
        self._control = control
        self._rehearse = rehearse  # what a worker does at its start, without side effects
        self._tokens: dict[int, int] = {}  # by pid, for children that were not reaped yet
        self._spare: tuple[int, socket.socket] | None = None  # its pid, and the socket to it
        self._has_spares = True
        self._is_full = False  # some received descriptors found no place
        self._news = b""  # not sent yet
        self._wakeup, self._waker = os.pipe()  # reports signals
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def serve(self) -> Order:
        """Serve requests; returns only in the forked processes."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while True:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if self._news else 0))
            wants_spare = self._has_spares and self._spare is None
            ready = dict(poll.poll(QUIET_MS if wants_spare else None))
            if not ready:
                order = self._fork_spare()
                if order is not None:
                    return order
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if ready.get(self._control.fileno(), 0) & ~select.POLLOUT:
                order = self._take_order()
                if order is not None:
                    return order
            self.tell()

    def tell(self, kind: int = 0, token: int = 0, number: int = 0) -> None:
        """Send a message, if one is given, and the waiting ones, as far as they go."""
        if kind:
            self._news += HEADER.pack(kind, token, number)
        try:
            while self._news:
                sent = self._control.send(self._news, socket.MSG_DONTWAIT)
                self._news = self._news[sent:]
        except BlockingIOError:
            pass
        except OSError:
            os._exit(0)  # the coordinator is gone

    def _reap(self) -> None:
        if self._spare is not None and os.waitpid(self._spare[0], os.WNOHANG)[0]:
            self._drop_spare()
            self._has_spares = False  # the next one might end just the same
        for pid, token in list(self._tokens.items()):  # only our own children are ours to reap
            pid, status = os.waitpid(pid, os.WNOHANG)
            if pid:
                del self._tokens[pid]
                if os.WIFSIGNALED(status):
                    self.tell(KILLED, token, os.WTERMSIG(status))
                else:
                    self.tell(EXITED, token, os.WEXITSTATUS(status))

    def _take_order(self) -> Order | None:
        fds: list[int] = []
        header = self._receive(HEADER.size, fds)
        kind, token, size = HEADER.unpack(header)
        payload = self._receive(size)
        if kind == FORK:
            return self._fork(token, payload, fds)
        for pid in [pid for pid in self._tokens if self._tokens[pid] == token]:
            os.kill(pid, signal.SIGKILL)
        return None

    def _receive(self, size: int, fds: list[int] | None = None) -> bytes:
        data = b""
        while len(data) < size:
            try:
                if fds is None:
                    more = self._control.recv(size - len(data))
                else:
                    space = socket.CMSG_SPACE(MAX_FDS * 4)
                    more, found, flags, _ = self._control.recvmsg(size - len(data), space)
                    self._is_full |= bool(flags & socket.MSG_CTRUNC)
                    for _, _, packed in found:
                        fds += struct.unpack(f"{len(packed) // 4}i", packed)
            except OSError:
                more = b""
            if not more:
                os._exit(0)  # the coordinator is gone
            data += more
        return data

    def _fork(self, token: int, payload: bytes, fds: list[int]) -> Order | None:
        try:
            if self._is_full:
                self._is_full = False
                raise OSError(errno.EMFILE, "")
            pid = self._use_spare(payload, fds) or _fork_quietly()
        except OSError as exc:
            self.tell(FAILED, token, exc.errno or 0)
        else:
            if pid == 0:
                self._leave()
                return Order(payload, fds)
            self._tokens[pid] = token
            self.tell(FORKED, token, pid)
        for fd in fds:
            os.close(fd)
        return None

    def _use_spare(self, payload: bytes, fds: list[int]) -> int:
        """Hand an order to the spare; return its pid, 0 if there is none."""
        if self._spare is None:
            return 0
        pid, way = self._spare
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
        data = HEADER.pack(FORK, 0, len(payload)) + payload
        try:
            sent = way.sendmsg([data], ancillary)  # in one piece, unless it is long
            if sent < len(data):
                way.sendall(data[sent:])
        except OSError:  # it has ended, and will be reaped
            return 0
        self._drop_spare()
        return pid

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare[1].close()
            self._spare = None

    def _fork_spare(self) -> Order | None:
        """Fork a child that waits for an order; returns that, in the child."""
        ours, theirs = socket.socketpair()
        try:
            pid = _fork_quietly()
        except OSError:
            self._has_spares, pid = False, -1
        if pid:
            theirs.close()
            self._spare = pid, ours
            if pid < 0:
                self._drop_spare()
            return None
        ours.close()
        self._leave()
        self._control = theirs
        try:
            self._rehearse()
        except Exception:  # it takes no more orders; one that has come is carried out unprepared
            theirs.shutdown(socket.SHUT_RD)
        fds: list[int] = []
        _, _, size = HEADER.unpack(self._receive(HEADER.size, fds))
        order = Order(self._receive(size), fds)
        os.close(theirs.detach())
        return order

    def _leave(self) -> None:
        """In a child: keep nothing of the template's."""
        signal.set_wakeup_fd(-1)
        os.close(self._control.detach())
        os.close(self._wakeup)
        os.close(self._waker)


def _fork_quietly() -> int:
    """Fork; C libraries may have started threads, about which Python warns since 3.12."""
    if sys.version_info < (3, 12):
        return os.fork()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


# ---------------------------------------------------------------- the start


def run(base: ModuleType, preload: Sequence[str]) -> None:
    """Be a template; in the processes that it forks, be a worker.

    base: the module ``gateway_base``.  preload: names of modules to import.
    """
    before = _handlers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's business
    control = _take_control()
    problem = _import_all(preload)
    if problem:
        text = problem.encode("utf-8", "replace")
        control.sendall(HEADER.pack(BROKEN, 0, len(text)) + text)
        return
    for name in base.FEATURE_PARTS:
        base.load_part(name)
    now = _handlers()
    changed = {number: handler for number, handler in before.items() if now[number] != handler}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    changed.update({number: before[number] for number in (signal.SIGINT, signal.SIGCHLD)})
    template = Template(control, lambda: rehearse(base))
    gc.collect()
    if hasattr(gc, "freeze"):  # so that no collection writes to shared pages
        gc.freeze()
    template.tell(READY, 0, os.getpid())
    order = template.serve()
    options = become_worker(base, order, changed)
    base.load_part(START).start_worker(**options)


def _handlers() -> dict[int, object]:
    """Return the handlers of all signals, as far as Python knows."""
    return {number: _signal.getsignal(number) for number in range(1, signal.NSIG)}


def _take_control() -> socket.socket:
    """Return the socket that is stdin, and leave null devices in place of stdio."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # the coordinator had no stderr
        null = os.dup(null)
    control = socket.socket(fileno=os.dup(0))
    os.dup2(null, 0)
    os.close(null)
    return control


def _import_all(preload: Sequence[str]) -> str:
    """Import what workers need; return in words what failed, "" if nothing did."""
    for name in (*USUAL_MODULES, *preload):
        try:
            __import__(name)
        except BaseException:
            import traceback

            text: str = traceback.format_exc()
            return f"preload: module {name!r} can't be imported:\n{text}"
    threads = ", ".join(thread.name for thread in threading.enumerate()[1:])
    return f"preload: a module started threads, which no fork has: {threads}" if threads else ""


# ---------------------------------------------------------------- the worker


def become_worker(base: ModuleType, order: Order, handlers: dict[int, object]) -> dict[str, Any]:
    """Make a forked process look like a fresh interpreter; return the worker's options."""
    fields: Fields = marshal.loads(order.payload)
    options, names, changes = fields
    for index, name in enumerate(names):
        fd = order.fds[index]
        if name in NUMBERS:
            os.dup2(fd, NUMBERS[name])
        else:
            with suppress(OSError):  # the current folder may be one that we may not enter
                os.fchdir(fd)
        os.close(fd)
    _change_environment(changes)
    for number, handler in handlers.items():
        if handler is not None:  # otherwise Python did not set it
            _signal.signal(number, handler)  # without the enums, whose memory is still shared
    sys.argv = ["-c"]
    _renew_seeds()
    _renew_trace(base)
    return options


def rehearse(base: ModuleType) -> None:
    """Do once, on null devices, what a worker does at its start."""
    if base.DEBUG:
        return  # it would leave traces
    options = {"id": "", "marker": b"", "execmodel": "thread", "codecs": base.CODECS}
    marshal.loads(marshal.dumps((options, ("stdin",), {}), MARSHAL_VERSION))
    io = base.init_popen_io(base.get_execmodel("thread"))
    gateway = base.WorkerGateway(io, "")
    hello = base.loads_internal(base.dumps_internal(base._describe_process()))
    gateway._send(base.Message.HELLO, 0, base.dumps_internal(hello))
    thread = threading.Thread(target=gateway._channelfactory.new)
    thread.start()
    thread.join()
    exec(compile("import sys\n", "<remote exec>", "exec", 0, True), {})
    io.close_write()
    io.close_read()


def _change_environment(changes: Changes) -> None:
    for name, value in changes.items():
        if value is not None:
            os.environb[name] = value
        elif name in os.environb:
            del os.environb[name]
    if b"TZ" in changes:
        import time

        time.tzset()


def _renew_seeds() -> None:
    """Seed the existing random generators again."""
    names = ["numpy.random"]
    if sys.version_info < (3, 7):
        names.append("random")
    for name in names:
        seed = getattr(sys.modules.get(name), "seed", None)
        if seed is not None:
            seed()


def _renew_trace(base: Any) -> None:
    """Write a worker's trace to a file of its own."""
    if hasattr(base, "fn"):
        base.fn, base._tracefile = base._open_trace()
