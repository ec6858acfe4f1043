"""A connection to a service: the gateway of a worker whose process outlives it.

Code runs in threads, at once or one after the other.  Code that does not end with its connection
is an orphan.  This file is shipped; it keeps to what Python 2.7 and today's Python both accept.
Start at ``ServiceGateway``.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque

from ..gateway_base import (
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
    from typing import Any

state: dict[Any, Any] = {}  # the state that code of a service keeps: ``execnet.service.state``
kept: dict[str, dict[str, Any]] = {}  # connections kept for programs, and their descriptions


class ConnectionIO(Popen2IO):
    """The stream of a connection."""

    def __init__(self, sock: Any, execmodel: Any) -> None:
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
        """Go on: code that has not ended is an orphan."""
        gateway.is_given_up = True
        gateway.service.turns.wake()


class Running(object):
    """Code that runs in a thread, or waits for its turn."""

    def __init__(self, gateway: Any, function: Any, arguments: Any) -> None:
        self.gateway = gateway
        self.ident = get_ident()
        self.since = time.time()
        self.waits = False
        self.has_turn = _Flag(gateway.execmodel)
        is_code = function == gateway.executetask
        self.code = _described(arguments[0][1]) if is_code else "functions that are called"


def _described(task: Any) -> str:
    source, file_name, call_name = task[:3]
    if file_name:
        return str(text_of("%s of %s" % (call_name or "the module", file_name)))
    lines = [text_of(line.strip()) for line in source.strip().split("\n")]
    return "".join([lines[0][:80], " ..." if len(lines) > 1 else ""])


def text_of(said: Any) -> Any:
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

    def _perform(self, reply: Any) -> None:
        running = Running(self._gateway, *reply.task[:2])
        try:
            try:
                self._run_noted(running, reply)
            finally:
                self._forget(running)
        except KeyboardInterrupt:  # its gateway has ended, so there is nobody to tell
            self._finished(reply)
            self._forget(running)

    def _run_noted(self, running: Running, reply: Any) -> None:
        gateway, service = self._gateway, self._gateway.service
        # This comes first: an end that misses the thread comes before our check for the end.
        reply.ident = running.ident
        service.running[running.ident] = running
        if gateway.one_at_a_time:
            service.turns.take(running)
        if gateway.is_over:
            raise KeyboardInterrupt
        if gateway.route is not None:
            service.routes[running.ident] = gateway.route
        super(ServicePool, self)._perform(reply)

    def _forget(self, running: Running) -> None:
        service = self._gateway.service
        for file in service.files:
            file.flush()
        service.routes.pop(running.ident, None)
        service.running.pop(running.ident, None)
        service.turns.leave(running)


class ServiceGateway(WorkerGateway):
    """A connection to a service: it ends like a worker, but the process goes on."""

    def __init__(
        self, io: Any, id: str, _startcount: int, service: Any, pid: int, one_at_a_time: bool
    ) -> None:
        super(ServiceGateway, self).__init__(io, id, _startcount, service.process)
        self.service = service
        self._execpool = ServicePool(self)
        self.state = state
        self.pid = pid  # of the program at the other end, 0 if unknown
        self.since = time.time()
        self.one_at_a_time = one_at_a_time
        self.is_over = self.is_given_up = False
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

    def forward(self, lines: Any, is_patient: bool) -> None:
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
        self.service.turns.wake()
        super(ServiceGateway, self)._on_stream_end()

    def _on_silence(self, reason: str) -> None:
        self._writer.fail(reason)
        self._io.hang_up()  # the receiver thread then does the rest

    def stop(self) -> None:
        """End it because the service ends; the other side learns why."""
        self._say_goodbye(1, "its service was stopped")
        self._writer.close_soon()
        self._io.hang_up(socket.SHUT_RD)
