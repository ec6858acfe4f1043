"""A connection to a service: the gateway of a worker whose process outlives it.

Code runs in threads, at once or one after the other.  Code that does not end with its connection
is an orphan.  This file is shipped; it keeps to what Python 2.7 and today's Python both accept.
Start at ``ServiceGateway``.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque

from ..gateway_base import (
    BaseGateway,
    GatewayState,
    Popen2IO,
    Process,
    WorkerGateway,
    WorkerPool,
    _Flag,
    get_ident,
    load_part,
    new_lock,
)
from . import far_log
from .far_log import keep_from_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ..gateway_base import Channel, ExecModel, Reply, Task
    from .far_find import Said

    class Party(Protocol):
        """Whose code it is: the gateway of a connection, or the client of a session."""

        id: str
        is_over: bool
        is_given_up: bool
        is_left: bool

    class Host(Protocol):
        """What runs code: ``far.Service``."""

        process: ServiceProcess
        turns: Turns
        files: list[far_log.Router]
        running: dict[int, Execution]
        routes: dict[int, far_log.Sink]
        ended: deque[Running]
        clients: set[ServiceGateway]

        def tasks(self) -> list[Said]: ...
        def call_in_main(self, function: Callable[[], object]) -> None: ...

state: dict[Any, Any] = {}  # the state that code of a service keeps: ``execnet.service.state``
kept: dict[str, Said] = {}  # connections kept for programs, and their descriptions


LAST_CHARS, LAST_ITEMS = 200, 20  # of the last item that a task has sent, as it is shown


class ConnectionIO(Popen2IO):
    """The stream of a connection."""

    def __init__(self, sock: socket.socket, execmodel: ExecModel) -> None:
        self._sock = sock
        fds = [os.dup(sock.fileno()), os.dup(sock.fileno())]
        for fd in fds:
            keep_from_children(fd)
        outfile, infile = execmodel.fdopen(fds[0], "wb"), execmodel.fdopen(fds[1], "rb")
        super(ConnectionIO, self).__init__(outfile, infile, execmodel)

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """End the connection, and any waits for it on either side."""
        try:
            self._sock.shutdown(how)
        except EnvironmentError:
            pass  # the other side did it first

    def close_write(self) -> None:
        """Close for writing, so that the other side reads the end."""
        self.hang_up(socket.SHUT_WR)
        super(ConnectionIO, self).close_write()

    def close_read(self) -> None:
        """Read no more."""
        self.hang_up(socket.SHUT_RD)
        super(ConnectionIO, self).close_read()


class ServiceProcess(Process):
    """Lets the process go on when a gateway has ended, whatever its code does."""

    def interrupt_main(self) -> None:
        """Do nothing: no code of a gateway runs there."""

    def end(self, gateway: Any) -> None:
        """Go on: code that has not ended is an orphan, which is interrupted once more.

        Python ignores an interrupt in a callback, such as the one that ends each import.
        """
        gateway.is_given_up = True
        gateway.service.turns.wake()
        gateway.interrupt_left()


class Execution(object):
    """Code that a service runs: what its reports tell of it."""

    gateway: Party
    ident: int  # of its thread
    since: float
    until: float | None = None  # None: it has not ended
    waits = False  # whether others have the turn
    code = ""  # in words
    error: str | None = None  # the last line of what it raised

    def show_last(self) -> str | None:
        """Return a line about the last item that it has sent; None if there is none."""
        return None

    def stop(self) -> None:
        """End it, since the service ends; code of a connection ends with that."""


class Running(Execution):
    """A task: code that runs in a thread, or waits for its turn, or has ended."""

    def __init__(
        self, gateway: ServiceGateway, function: Callable[..., object], arguments: Any
    ) -> None:
        self.gateway: ServiceGateway = gateway
        self.ident = get_ident()
        self.since = time.time()
        self.has_turn = _Flag(gateway.execmodel)
        self.last: object = _NOTHING  # the last item that it has sent, if it is attached
        self.last_text: str | None = None  # the same as a line, once it has ended
        is_code = function == gateway.executetask
        self.code = _described(arguments[0][1]) if is_code else "functions that are called"
        self._channel = arguments[0][0] if is_code and gateway.goes_on else None
        if self._channel is not None:
            vars(self._channel)["send"] = self._noting(self._channel.send)

    def _noting(self, send: Callable[[object], None]) -> Callable[[object], None]:
        def noting_send(item: object) -> None:
            self.last = item
            send(item)

        return noting_send

    def end(self) -> bool:
        """Note the end, from which on no item is kept, only a line about it; False if it was."""
        if self.until is not None:
            return False
        self.until = time.time()
        if self._channel is not None:
            vars(self._channel).pop("send", None)
            self._channel = None
        self.last_text, self.last = self.show_last(), _NOTHING
        return True

    def show_last(self) -> str | None:
        """Return a line about the last item that it has sent; None if there is none."""
        return self.last_text if self.last is _NOTHING else _shown(self.last)


_NOTHING = object()


def _shown(item: object) -> str:
    """Return a line about an item; takes no time for large ones, and calls no code of users."""
    try:
        line = _line_of(item, 3)
    except Exception:  # code changes it at the moment
        line = "<%s>" % type(item).__name__
    return line if len(line) <= LAST_CHARS else line[:LAST_CHARS] + "..."


def _line_of(item: Any, levels: int) -> str:
    kind = type(item)
    if kind in (type(None), bool, float, complex):
        return repr(item)
    if kind in (int, type(1 << 63)):
        bits = item.bit_length()
        return repr(item) if bits < 1000 else "<a number of %d bits>" % bits
    if kind in (bytes, type("".encode("ascii").decode("ascii"))):
        rest = len(item) - LAST_CHARS
        return repr(item[:LAST_CHARS]) + (" and %d more" % rest if rest > 0 else "")
    if kind not in _BRACKETS:
        return "<%s>" % kind.__name__
    if len(item) > LAST_ITEMS or not levels:
        return "<%s of %d>" % (kind.__name__, len(item))
    pairs = item.items() if kind is dict else [(one,) for one in item]
    told = [": ".join([_line_of(one, levels - 1) for one in pair]) for pair in list(pairs)]
    begins, ends = _BRACKETS[kind]
    return begins + ", ".join(told) + ("," if kind is tuple and len(told) == 1 else "") + ends


_BRACKETS: dict[type[object], tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("set([", "])"),
    frozenset: ("frozenset([", "])"),
}


def told_of(task: Execution) -> Said:
    """Return the report of a task."""
    gateway, last = task.gateway, task.show_last()
    told: Said = {
        "client": text_of(gateway.id),
        "code": task.code,
        "since": task.since,
        "until": task.until,
        "waits": task.waits,
        "orphan": gateway.is_given_up or gateway.is_left,
        "last": None if last is None else text_of(last),
        "error": None if task.error is None else text_of(task.error),
    }
    if told["orphan"] and task.until is None:
        running = load_part("_features.running")
        stack = running.plain_stack(sys._current_frames().get(task.ident))
        told["stack"] = text_of("".join(stack))
    return told


def _described(task: Task) -> str:
    source, file_name, call_name = task[:3]
    if file_name:
        return text_of("%s of %s" % (call_name or "the module", file_name))
    lines = [text_of(line.strip()) for line in source.strip().split("\n")]
    return "".join([lines[0][:80], " ..." if len(lines) > 1 else ""])


def text_of(said: str | bytes) -> str:
    """Return text of this Python, or text that was sent as bytes, as text."""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said


class Turns(object):
    """Turns of code that has to run one at a time; ``_lock`` guards the queue.

    Code of an abandoned gateway has no turn any more, though it may keep running.
    """

    def __init__(self) -> None:
        self._lock = new_lock()
        self._queue: deque[Running] = deque()  # the first has the turn

    def take(self, running: Running) -> None:
        """Wait for the turn, or the end of the gateway.  ``leave`` follows."""
        running.waits = True
        with self._lock:
            self._queue.append(running)
            self._advance()
        running.has_turn.wait()
        running.waits = False

    def leave(self, running: Running) -> None:
        """Give the turn to the next."""
        with self._lock:
            if running in self._queue:
                self._queue.remove(running)
            self._advance()

    def wake(self) -> None:
        """Note that a gateway has ended, or was abandoned."""
        with self._lock:
            for running in self._queue:
                if running.gateway.is_over:
                    running.has_turn.set()
            self._advance()

    def _advance(self) -> None:  # holds _lock
        while self._queue and self._queue[0].gateway.is_given_up:
            self._queue.popleft()
        if self._queue:
            self._queue[0].has_turn.set()


class ServicePool(WorkerPool):
    """Runs all code of a connection, in threads of their own, and notes what runs."""

    def __init__(self, gateway: ServiceGateway) -> None:
        super(ServicePool, self).__init__(gateway.execmodel)
        self._gateway = gateway

    def _perform(self, reply: Reply) -> None:
        running = Running(self._gateway, *reply.task[:2])
        try:
            try:
                self._run_noted(running, reply)
            finally:
                self._forget(running)
        except KeyboardInterrupt:  # its gateway has ended, so there is nobody to tell
            self._leave(running, reply)

    def _leave(self, running: Running, reply: Reply) -> None:
        try:
            self._finished(reply)
            self._forget(running)
        except KeyboardInterrupt:  # the second one, and last
            self._finished(reply)
            self._forget(running)

    def _run_noted(self, running: Running, reply: Reply) -> None:
        gateway, service = self._gateway, self._gateway.service
        # This comes first: an end that misses the thread comes before our check for the end.
        reply.ident = running.ident
        service.running[running.ident] = running
        if gateway.one_at_a_time:
            service.turns.take(running)
        if gateway.is_over:
            running.error = "it did not begin: its connection had ended"
            raise KeyboardInterrupt
        if gateway.route is not None:
            service.routes[running.ident] = gateway.route
        super(ServicePool, self)._perform(reply)

    def _forget(self, running: Running) -> None:
        service = self._gateway.service
        for file in service.files:
            file.end_code()
        service.routes.pop(running.ident, None)
        if running.end() and running.gateway.is_left:
            service.ended.append(running)
        service.running.pop(running.ident, None)
        service.turns.leave(running)


class ServiceGateway(WorkerGateway):
    """A connection to a service: it ends like a worker, but the process goes on."""

    def __init__(
        self,
        io: ConnectionIO,
        id: str,
        _startcount: int,
        service: Host,
        pid: int,
        one_at_a_time: bool,
        goes_on: bool,
    ) -> None:
        super(ServiceGateway, self).__init__(io, id, _startcount, service.process)
        self.service = service
        self.goes_on = goes_on  # whether code outlives a lost connection
        self._execpool = ServicePool(self)
        self.state = state
        self.pid = pid  # of the program at the other end, 0 if unknown
        self.since = time.time()
        self.one_at_a_time = one_at_a_time
        self.is_over = self.is_given_up = self.is_left = False
        self.route: far_log.Route | None = None  # where its output goes
        self._forwarder: Any = None

    def serve(self) -> None:
        """Serve the connection until it ends."""
        self._go("hello")
        self.service.clients.add(self)
        try:
            self._run_receiver()
        finally:
            self.service.clients.discard(self)
            self._end_output()

    def forward(self, lines: Channel, is_patient: bool) -> None:
        """Send the output of its code over a channel, like ``_output.far``."""
        output_far = load_part("_output.far")
        lines._strconfig = (False, False)
        pipes = [output_far.Pipe(number, replaces=False) for number in (1, 2)]
        self._forwarder = output_far.Forwarder(lines, is_patient, pipes)
        self._forwarder.start()
        self.route = far_log.Route(pipes[0].write_fd, pipes[1].write_fd)
        self.before_close = self._end_output

    def _end_output(self) -> None:
        """Send the output so far; from now on, output of an orphan goes to the log."""
        forwarder, self._forwarder = self._forwarder, None
        if self.route is not None:
            self.route.close()
        if forwarder is not None:
            forwarder.finish()

    def _on_stream_end(self) -> None:
        self.is_over = True
        self.is_left = self.goes_on and self._state != GatewayState.CLOSING
        self.service.turns.wake()
        if self.is_left:  # without a goodbye, and the code may go on
            self._execpool.trigger_shutdown()
            BaseGateway._on_stream_end(self)
        else:
            super(ServiceGateway, self)._on_stream_end()

    def _status(self) -> Said:
        """Return what a STATUS message is answered with: also what runs in the whole service."""
        status = super(ServiceGateway, self)._status()
        status["tasks"] = self.service.tasks()
        return status

    def _execute_and_describe(self, item: tuple[Channel, Task]) -> str | None:
        """Execute a task, and note what it raised."""
        error = super(ServiceGateway, self)._execute_and_describe(item)
        running = self.service.running.get(get_ident())
        if running is not None and error is not None:
            running.error = error.strip().split("\n")[-1]
        return error

    def fds(self) -> list[int]:
        """Return the descriptors of its connection that are open."""
        files = self._io.outfile, self._io.infile
        return [file.fileno() for file in files if not file.closed]

    def is_busy(self) -> bool:
        """Whether code runs that came over it."""
        return self._execpool.active_count() > 0

    def interrupt_left(self) -> None:
        """Interrupt code that goes on although its connection was lost."""
        load_part("_features.running").interrupt_pool(self._execpool, self.process.main_ident)

    def _on_silence(self, reason: str) -> None:
        self._writer.fail(reason)
        self._io.hang_up()  # the receiver thread then does the rest

    def stop(self) -> None:
        """End it because the service ends; the other side learns why."""
        self._say_goodbye(1, "its service was stopped")
        self._writer.close_soon()
        self._io.hang_up(socket.SHUT_RD)
