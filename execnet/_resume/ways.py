"""What carries a connection of a gateway with ``resume=``: a command, or a stream of another kind.

A maker makes one connection after the other to the same place.  Start at ``over_command``,
``over_socket``, ``over_server_of`` and ``over_gateway``, each of which returns one.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from .._clock import monotonic
from .._endpoint import endpoint_of
from .._ends.asked import ask
from .._ends.terminate import REACH_S
from .._errors import BootstrapError, SecurityWarning, WorkerDied
from .._specs import CONNECT_TIMEOUT_S
from .._transports.ssh import asking_nobody, with_options
from .._transports.surroundings import here
from .._transports.table import Command
from ..gateway_base import LoadError
from .logins import Refused, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .._endpoint import Endpoint
    from .._specs import Settings
    from .._transports.surroundings import Surroundings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel

PIECE_BYTES = 1 << 16
LISTEN_S = 5.0  # how long a server that was started for one connection waits for it
LEAVE_S = 1.0  # how long a thread that passes bytes may take to notice the end


class Maker:
    """Makes connections to the place that a spec names.

    first: makes the first one; raises ``BootstrapError``.  anew: called with when the attempt has
    to be over, as ``time.monotonic()``, and a function that says whether nobody wants it any more;
    raises OSError, ``Unreachable`` or ``Refused``.  carrier: the gateway that they go through.
    starter: the gateway without which there is no further one; ``carrier``, if it is not given.
    """

    name = ""  # of one way among several
    is_awaited = False  # whether the other side connects, and an attempt waits for that
    surroundings: Surroundings | None = None  # of its command, if there is one on the way

    def __init__(
        self,
        first: Callable[[], Any],
        anew: Callable[[float, Callable[[], bool]], Any],
        carrier: Gateway | None = None,
        starter: Gateway | None = None,
    ) -> None:
        self.first = first
        self.anew = anew
        self.carrier = carrier
        self._starter = starter
        if self.starter is not None:  # for a later program, which has to make that one anew
            self.surroundings = here()

    @property
    def starter(self) -> Gateway | None:
        """The gateway that has to take part in making a connection."""
        return self.carrier if self._starter is None else self._starter

    def hop(self) -> str:
        """Return the gateway on the way whose end is this one's, too; "" if there is none."""
        via = self.starter
        if via is None or via.is_live:
            return ""
        error = via.end_error
        return (isinstance(error, WorkerDied) and error.hop) or via.id

    def ways(self, group: Iterable[object] | None, is_late: bool) -> list[Maker]:
        """Return what may make the next connection, in the order in which to try it.

        group: whose gateways may lead there.  is_late: whether half of the time is over.
        """
        return [self]

    def await_answer(self, deadline: float, reach_by: float | None) -> Callable[[], bool]:
        """Wait until the gateway on the way answers; return whether a host is dialled too long.

        reach_by: when a host has to have answered that is dialled from here; None: the deadline.
        Raises ``Unreachable`` at the deadline; if there is no time to lose, as ``reach_by`` tells,
        once the gateway has been silent for a while.
        """
        via = self.starter
        if via is None or not via.is_live or via.endpoint.is_out_of_reach():  # ``anew`` says so
            return lambda: reach_by is not None and monotonic() >= reach_by
        if not ask(via).wait(deadline, is_hurried=reach_by is not None):
            what = "which it goes via" if via is self.carrier else "which starts its server"
            raise Unreachable(f"{via.id}, {what}, does not answer")
        return bool if reach_by is None else _since_first_look(REACH_S)

    def take(self, way: Maker) -> None:
        """Note which of them made the connection in use."""

    def close(self) -> None:
        """Note that no further connection is wanted; never waits."""

    def is_final(self, way: Maker) -> bool:
        """Whether nothing else is to be tried if one of them leads to no such worker."""
        return True

    def why_elsewhere(self) -> str:
        """Return why another way than the spec's is tried; "" if none is."""
        return ""


def _since_first_look(seconds: float) -> Callable[[], bool]:
    """Return what tells whether so many seconds have passed since it was called first."""
    began: list[float] = []

    def is_over() -> bool:
        began[:] = began or [monotonic()]
        return monotonic() - began[0] >= seconds

    return is_over


class Way:
    """A stream to a server or through another gateway, as far as a connection needs it.

    io: the stream.  sock: what its bytes are read from, and written to.  Any thread may call.
    """

    worker_pid: int | None = None

    def __init__(self, io: Endpoint, sock: socket.socket) -> None:
        self.args = io.args
        self.remoteaddress = io.remoteaddress
        self.infile = self.outfile = sock
        self.write_some = sock.send
        self.has_ended, self.poll_until = io.has_ended, io.poll_until
        self.stderr_tail, self.is_connecting = io.stderr_tail, io.is_connecting
        self.is_reached = io.is_reached
        self.why_ended, self.end = io.why_ended, io.end
        self._io = io

    @property
    def could_not_start(self) -> bool:
        """Whether there was never anything that could end."""
        return self._io.could_not_start

    def wait_writable(self) -> None:
        """Return at once: a connection that is not in use yet waits when it is written."""

    def kill(self) -> None:
        """End the connection, and what was started for it; never waits."""
        self._io.worker_pid = self.worker_pid
        self._io.kill()

    def wait(self) -> int | None:
        """Wait for the end of it; return the exit status, where there is one."""
        return self._io.wait()

    def close_write(self) -> None:
        """Let the other side read an end."""
        self._io.close_write()

    def close_read(self) -> None:
        """Close the stream."""
        self._io.close_read()

    def disown(self) -> None:
        """In a forked process: the stream is the parent's."""
        self._io.disown()


class PassedWay(Way):
    """A stream without a descriptor; two threads pass its bytes to and from a pair of sockets.

    Each ends with the stream, or when this side is closed; the one that reads closes the other
    side.  What is lost on the way with a connection is sent again, as on any other.
    """

    def __init__(self, io: Endpoint) -> None:
        near, self._far = socket.socketpair()
        super().__init__(io, near)
        self._near = near
        self._writer = threading.Thread(
            target=self._pass_on, name="execnet-resume-write", daemon=True
        )
        self._reader = threading.Thread(
            target=self._pass_back, name="execnet-resume-read", daemon=True
        )
        try:
            self._writer.start()
            self._reader.start()
        except RuntimeError as exc:  # there can be no more threads
            near.close()
            self._shut(socket.SHUT_RDWR)
            io.discard()
            self._far.close()
            raise BootstrapError(f"no thread could be started for a connection: {exc}") from exc

    def _pass_on(self) -> None:
        with suppress(OSError, EOFError):  # the stream has ended, which the reader meets as well
            while data := self._far.recv(PIECE_BYTES):
                self._io.write(data)
        self._shut(socket.SHUT_RD)

    def _pass_back(self) -> None:
        with suppress(OSError, EOFError, LoadError):  # a killed hop may leave half an item
            while data := self._io.read_some(PIECE_BYTES):
                self._far.sendall(data)
        self._shut(socket.SHUT_WR)
        self._writer.join()
        self._far.close()

    def _shut(self, how: int) -> None:
        with suppress(OSError):
            self._far.shutdown(how)

    def kill(self) -> None:
        """End the connection, and what was started for it; never waits."""
        super().kill()
        self._shut(socket.SHUT_RDWR)

    def close_read(self) -> None:
        """Close the stream, and both threads end."""
        super().close_read()
        self._shut(socket.SHUT_RDWR)
        self._near.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(LEAVE_S)

    def disown(self) -> None:
        """In a forked process, where neither thread runs."""
        super().disown()
        self._near.close()
        self._far.close()


def over_command(
    command: Command,
    execmodel: ExecModel,
    run: Callable[..., Endpoint],
    surroundings: Surroundings | None = None,
) -> Maker:
    """Return what runs a command, which leads to another machine.

    run: called with a command and the execution model; returns a stream.  surroundings: what it is
    run in each time; those of this process as it is now, if not given.
    """
    kept = surroundings or here()
    again = command_of_login(command)
    maker = Maker(
        lambda: endpoint_of(run(kept.put_around(command), execmodel)),
        lambda *limits: endpoint_of(run(kept.put_around(again), execmodel)),
    )
    maker.surroundings = kept
    return maker


def command_of_login(command: Command) -> Command:
    """Return the command of a spec for another run, when nobody may be there to answer."""
    words: list[str] = command
    if command[0] in ("ssh", "vagrant"):  # a shared connection may be lost as well
        words = with_options(asking_nobody(command), ["-o", "ControlPath=none"])
    return Command(words, command.captures_stderr, is_remote=command.is_remote)


def over_socket(settings: Settings, execmodel: ExecModel) -> Maker:
    """Return what dials a socket server, and exchanges the proofs each time."""
    from .. import gateway_socket

    def anew(deadline: float, is_over: Callable[[], bool]) -> Way:
        try:
            return _way_of(gateway_socket.dial(settings, execmodel, deadline, is_over))
        except SecurityWarning as exc:  # warnings are errors
            raise Unreachable(str(exc)) from exc

    return Maker(lambda: _way_of(gateway_socket.create_io(settings, execmodel)), anew)


def _way_of(io: Endpoint) -> Way:
    sock = getattr(io, "sock", None)
    return PassedWay(io) if sock is None else Way(io, sock)


def over_server_of(settings: Settings, execmodel: ExecModel, starter: Gateway) -> Maker:
    """Return what has a gateway's worker start a server for each connection, and dials that.

    Each server has a key of its own, and takes one connection: nobody listens while there is one.
    """
    from .. import gateway_socket

    def make(deadline: float | None, listen_s: float, is_over: Callable[[], bool]) -> Way:
        left_s = None if deadline is None else max(0.001, deadline - monotonic())
        return _way_of(
            gateway_socket.install(starter, settings, execmodel, left_s, listen_s, is_over)
        )

    def anew(deadline: float, is_over: Callable[[], bool]) -> Way:
        _check_lives(starter, "which starts its server")
        # One that can't be dialled keeps the next one from a port that the spec names.
        return make(deadline, min(LISTEN_S, max(0.001, deadline - monotonic())), is_over)

    timeout_s = settings.connect_timeout_s
    return Maker(
        lambda: make(settings.deadline(), timeout_s or CONNECT_TIMEOUT_S, bool),
        anew,
        starter=starter,
    )


def _check_lives(via: Gateway, what: str) -> None:
    """Raise ``Refused`` if a gateway has ended, ``Unreachable`` if it has no connection itself."""
    if not via.is_live:
        raise Refused(f"{via.id}, {what}, has ended: {via.end_error or 'as asked'}")
    if via.endpoint.is_out_of_reach():  # and may keep so much that a request would wait
        raise Unreachable(f"{via.id}, {what}, is out of reach itself")


def over_gateway(settings: Settings, execmodel: ExecModel, via: Gateway) -> Maker:
    """Return what has another gateway's worker run the command, or dial the server."""
    from .._via import stream

    def anew(deadline: float, is_over: Callable[[], bool]) -> Way:
        _check_lives(via, "which it goes via")
        change = command_of_login
        try:
            io = stream.create_io_over(settings, execmodel, via, None, change, deadline)
        except SecurityWarning as exc:  # warnings are errors
            raise Unreachable(str(exc)) from exc
        return PassedWay(io)

    def first() -> Way:
        return PassedWay(stream.create_io_over(settings, execmodel, via))

    return Maker(first, anew, via)
