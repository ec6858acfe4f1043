"""The coordinator's end of a gateway that outlives its connections.

The first connection is the command of the spec, as without ``resume=``.  When it is lost, the
command is run again, and the program that it starts hands its stdin and stdout over to the worker.
``far_link`` describes what is sent over connections.  Start at ``ResumeIO``.
"""

from __future__ import annotations

import os
import random
import select
import warnings
from contextlib import suppress
from functools import partial

from .._clock import monotonic
from .._endpoint import Endpoint, acts_on
from .._ends.asked import ask
from .._ends.terminate import LOGIN_S, REACH_S
from .._log import WARNING, note
from .._ship import parts
from .._specs import JOINED
from ..gateway_base import (
    Message,
    _Flag,
    dumps_internal,
    get_execmodel,
    loads_internal,
    new_lock,
    printable,
)
from .far_link import BARRIER, Connection, Link, LinkWriter, clock
from .logins import Ended, Login, Rebooted, Refused, Session, Unreachable, discard
from .records import Record, hops_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .._endpoint import LoopEnds
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel, Frame, Piece
    from .ways import Maker

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 30.0  # before an attempt, at least and at most
TURN_S = 2.0  # how long one way of several may take at least
NOT_HERE = 0  # stands for the process id of a worker that runs on another host
PART = "_resume.far_worker"
LOOK_S = 1.0  # how often the link's thread looks for the end of a command, for a loop
CONFIRM_MS = 1000  # how long the news of an end may wait to be confirmed
MARGIN_S = 10.0  # how long after its two times of grace a worker is killed, if its time is over


def check_models(settings: Settings, execmodel: ExecModel) -> None:
    """Raise ValueError for greenlets, on this side or on the other."""
    models = execmodel, get_execmodel(str(settings.spec.execmodel))
    if not all(model.has_main_thread for model in models):
        raise ValueError("resume= is not for greenlets: a thread sees to the connection")


class _Writer(LinkWriter):
    """The writer of a stream that may go through other gateways."""

    _io: ResumeIO

    def frame(self, header: bytes, payload: Piece, blob: object = None) -> Frame:
        """Return a frame, as the base class; what others need as well is not kept on the way."""
        return super().frame(header, payload)

    def deliver(self, frame: Frame) -> None:
        """Send a frame, as the base class; a receiver thread on the way there does not wait."""
        if self._io.may_not_wait():
            self.post_frame(frame)
        else:
            super().deliver(frame)

    def _has_room(self) -> bool:
        """Whether a sender need not wait; the way may change while it does."""
        return super()._has_room() or bool(self._io.may_not_wait())

    def wake(self) -> None:
        """Make all senders that wait look again; two threads may do this at once."""
        with suppress(IndexError):
            super().wake()


class _Carried(Connection):
    """The connection that consists of a command's pipes, or of a socket."""

    def __init__(self, carrier: Any, epoch: int) -> None:
        fds: list[int] = []
        try:
            fds += (os.dup(file.fileno()) for file in (carrier.infile, carrier.outfile))
            super().__init__(fds[0], fds[1], epoch)
        except BaseException:  # there can be no more descriptors
            for fd in fds:
                os.close(fd)
            discard(carrier)
            raise
        self.carrier = carrier

    def has_ended(self) -> bool:
        """Whether the command has ended, whose pipes others may hold open."""
        ended: bool = self.carrier.has_ended()
        return ended


class ResumeIO(Link, Endpoint):
    """The stream to a worker that outlives its connections.

    maker: makes one after the other; its first one is made at once, and raises ``BootstrapError``.
    ``_lock`` guards the state of the session and which command carries it.  Attempts at another
    connection are made in a thread of their own, one at a time.
    """

    kills_by_login = True
    kill_by: float | None = None  # when a kill has to be over, as ``time.monotonic()``
    reach_by: float | None = None  # when its login has to have reached the host; set before it

    writer_class = _Writer
    is_near = False  # whoever asks for this expects a network, wherever the server is

    def __init__(self, settings: Settings, execmodel: ExecModel, maker: Maker) -> None:
        self._settings = settings
        self._id = str(settings.spec.id)
        self._maker = maker
        self._lock = new_lock()
        self._readable: Any = None  # what a loop polls: the bell, and the connection in use
        self._look_at = 0.0  # when to look for the end of the command
        self._carrier = maker.first()
        self.carrier = maker.carrier
        self.starter = maker.starter if maker.carrier is None else None
        self._asked: list[Gateway] = []  # gateways that may lead there from now on
        self.args, self.remoteaddress = self._carrier.args, self._carrier.remoteaddress
        Link.__init__(self, execmodel, _Carried(self._carrier, 0))
        self.is_numbered = False
        self._gateway: Gateway | None = None
        self._on_ready: Callable[[dict[str, Any]], object] | None = None
        self._session: Session | None = None
        self._record: Record | None = None
        self._is_killed = False
        self._status: int | None = None
        self.given_up = ""
        self._gone = _Flag(execmodel)  # the worker has ended, or was given up
        self._pause = _Flag(execmodel)

    # ------------------------------------------------------------ the beginning

    def on_hello(self, gateway: Gateway, finish: Callable[[dict[str, Any]], object]) -> bool:
        """Send what makes the worker one that resumes; in the receiver thread.

        finish: called with what went wrong, or an empty dict, when it has answered.
        """
        settings = self._settings
        assert settings.resume_s is not None
        self._gateway, self._on_ready = gateway, finish
        self._session = Session(settings)
        told = {
            "folder": self._session.folder,
            "secret": self._session.secret,
            "seconds": settings.resume_s,
            "end_s": 2 * settings.grace_s + MARGIN_S,
            "supervisor": parts.lowered("_resume.far_supervisor"),
        }
        item = dumps_internal((parts.sent_parts(gateway, PART), told))
        self.read_bytes = 0  # nothing comes before the worker has what is sent now
        gateway.post_message(Message.SOURCES, 0, item)
        self.writer.post_frame([BARRIER, b"", [], []])
        return True

    def on_ack(self, message: Message) -> None:
        """Act on an ACK frame; the first says on which host the worker runs."""
        if self._on_ready is None:
            super().on_ack(message)
            return
        ready = loads_internal(message.data, None, (True, False))
        finish, self._on_ready = self._on_ready, None
        if "error" in ready:
            self._session = None
            finish({"error": f"resume= is not possible there: {printable(str(ready['error']))}"})
            return
        assert self._session is not None
        self._session.place(ready)
        self._record = self._make_record()
        if self._record is not None:
            self._record.write()
        self._carrier.worker_pid = NOT_HERE
        self.count_ack(message)
        self.is_held = False
        self.bell.ring()
        finish({})

    # ------------------------------------------------------------ in a loop

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what an event loop polls, None without ``epoll``.

        The link's thread writes all the same.
        """
        if not hasattr(select, "epoll"):
            return None
        with self._reading:
            self._readable = select.epoll()
            self._readable.register(self._reader_bell.fd, select.EPOLLIN)
            self._poll(self.connection)
        return self._readable.fileno(), self._read_now, -1

    def start(self, writer: LinkWriter, name: str) -> None:
        """Start the link's thread; once it runs, have it take the frames of another writer."""
        if self._done.is_set():
            super().start(writer, name)
        else:
            self.writer = writer

    def _poll(self, connection: Connection | None) -> None:  # holds _reading
        """Have a loop that reads poll a connection as well."""
        if self._readable is not None and connection is not None and not connection.is_lost:
            self._readable.register(connection.read_fd, select.EPOLLIN)

    def _read_now(self, limit: int) -> bytes:
        """Return the bytes that are there, as ``read_some``; BlockingIOError if there are none."""
        self._reader_bell.take()
        if self.is_over:
            raise EOFError(self.end_text)
        connection = self.connection
        if connection is not None:
            data = self._read(connection, limit)
            if data:
                return data
            if data is not None or connection.is_broken:
                self.lose(connection, "the connection ended")
        raise BlockingIOError

    def lose(self, connection: Connection, why: str) -> None:
        """Give a connection up, as the base class; a loop polls it no more."""
        with self._reading:  # while it is held, nothing is closed
            if self._readable is not None and not connection.is_closed:
                with suppress(OSError, ValueError):  # it was lost before, or all is over
                    self._readable.unregister(connection.read_fd)
        super().lose(connection, why)

    def on_used(self, connection: Connection) -> None:
        """Note that a connection is in use; called in the link's thread."""
        with self._reading:
            self._poll(connection)

    def _await(self, connection: Connection | None, due_s: float | None) -> None:
        """Wait for work, as the base class, and look for the end of the command for a loop."""
        if self._readable is None:
            super()._await(connection, due_s)
            return
        super()._await(connection, LOOK_S if due_s is None else min(due_s, LOOK_S))
        used = self.connection
        if used is not None and clock() >= self._look_at:
            self._look_at = clock() + LOOK_S
            if not used.is_broken and used.has_ended():
                used.is_broken = True  # what has come can still be read
                self._reader_bell.ring()

    # ------------------------------------------------------------ another connection

    def on_lost(self, connection: Connection, why: str) -> None:
        """Begin to make attempts, for as long as the spec says."""
        carrier = self._carrier
        if self._is_killed and self._maker.is_awaited:  # lost for the login that kills the worker
            return
        if not self._is_placed() or self._is_killed or self._has_said_goodbye():
            self.stop(carrier.why_ended() or why)
            return
        try:
            self.execmodel.start(self._reconnect, (carrier, why), f"execnet-resume-{self._id}")
        except RuntimeError as exc:
            self._give_up(f"no thread could be started to connect anew: {exc}")

    def _make_record(self) -> Record | None:
        """Return the record for a later program; None where that would not find the way."""
        assert self._session is not None
        hops = self._hops()
        if hops is None:
            return None
        longest_s = 2 * self._settings.grace_s + MARGIN_S
        return Record(self._session, longest_s, hops, self._maker.surroundings)

    def _hops(self) -> list[str] | None:
        """Return the specs of the gateways on the way there; None if nobody can make it anew."""
        return None if self._settings.type == JOINED else hops_to(self)

    def _is_placed(self) -> bool:
        return self._session is not None and self._session.is_placed

    def _has_said_goodbye(self) -> bool:
        return self._gateway is not None and self._gateway._last_words.status is not None

    def _reconnect(self, carrier: Any, why: str) -> None:
        """Make attempts until there is a connection, the worker has ended or the time is over."""
        session, seconds = self._session, self._settings.resume_s
        assert session is not None
        assert seconds is not None
        ends_at, pause_s, last = monotonic() + seconds, FIRST_PAUSE_S, why
        discard(carrier)
        self._tell_state("lost")
        while not (self.is_over or self._is_killed):
            left_s = ends_at - monotonic()
            if left_s <= 0:
                self.hop = self._maker.hop()
                self._give_up(f"it was out of reach for {seconds:g} s; {last}")
                return
            # Those that lost their connections together do not come back together.
            # A pause ends where other ways are tried from, else it may pass over all that is left.
            next_s = left_s if left_s <= seconds / 2 else left_s - seconds / 2
            self._pause.wait(min(next_s, pause_s * random.uniform(1.0, 2.0)))
            if not self._maker.is_awaited:
                pause_s = min(2 * pause_s, LAST_PAUSE_S / 2)
            try:
                failed = self._try_ways(session, ends_at, seconds)
            except (Ended, Refused) as exc:
                if isinstance(exc, Ended):
                    self._status = exc.status
                else:
                    self.hop = self._maker.hop()
                self._give_up(str(exc), has_ended=isinstance(exc, Ended))
                return
            if failed is None:
                return
            # The last round may have been cut short.
            is_whole = self._maker.is_awaited or monotonic() < ends_at
            if is_whole or (last == why and self._maker.why_elsewhere()):
                last = failed

    def _try_ways(self, session: Session, ends_at: float, seconds: float) -> str | None:
        """Make an attempt by each way; return why all failed, None if no more are wanted.

        Raises ``Ended`` and ``Refused`` if that is final.
        """
        ways = self._ways(is_late=ends_at - monotonic() <= seconds / 2)
        failures = [self._maker.why_elsewhere()]
        for way, deadline in _in_turn(ways, ends_at):
            if self.is_over or self._is_killed:
                return None
            try:
                make = partial(self._make, way, lambda: self.is_over or self._is_killed)
                login = Login(session, make, deadline)
                carrier, peer_read = login.resume(self._keep, self.read_bytes)
                connection = _Carried(carrier, session.epoch)
            except Ended as exc:
                if not isinstance(exc, Rebooted) or self._maker.is_final(way):
                    raise
                failures.append(_told(way, exc))
            except Exception as exc:
                if isinstance(exc, Refused) and self._maker.is_final(way):
                    raise
                failures.append(_told(way, exc))
            else:
                self._maker.take(way)
                self.carrier, self._asked = way.carrier, []
                if way.name:
                    failures[:0] = [f"{self._id} is reached {way.name} from now on"]
                    note("gateway", WARNING, lambda: _joined(failures), self._id)
                self._tell_state("resumed")  # first: once it is used, it can be lost again
                self.use(connection, peer_read)
                return None
        return _joined(failures)

    def _ways(self, is_late: bool) -> list[Maker]:
        """Return by which ways to try it; receiver threads on one of them wait no more."""
        group: Any = None if self._gateway is None else self._gateway._group
        ways = self._maker.ways(group, is_late)
        self._asked = [way.starter for way in ways if way.starter is not None]
        self.writer.wake()
        return ways

    def _make(self, way: Maker, is_over: Callable[[], bool], deadline: float) -> Any:
        """Make another connection, in an attempt that can be ended."""
        return way.anew(deadline, is_over)

    def _keep(self, carrier: Any) -> None:
        """Take a command that makes an attempt; it ends with the stream."""
        carrier.worker_pid = NOT_HERE
        with self._lock:
            self._carrier = carrier
            is_over = self.is_over
        if is_over:
            carrier.kill()

    def _tell_state(self, state: str) -> None:
        if self._gateway is not None:
            self._gateway.tell_state(state)

    def _give_up(self, text: str, has_ended: bool = False) -> None:
        self.given_up = text
        if self._record is not None and not has_ended:
            self._record.leave()
            self._record = None
        self.stop(text)

    # ------------------------------------------------------------ the worker's end

    def stop(self, text: str) -> None:
        """End the stream, and attempts at another connection; never waits."""
        super().stop(text)
        self._pause.set()
        self._gone.set()

    def close_read(self) -> None:
        """End the stream, and close whatever carries it."""
        super().close_read()
        if self._readable is not None:
            self._readable.close()
        with self._lock:
            carrier = self._carrier
        if self.given_up or self._is_killed:
            carrier.kill()  # it may wait for a host that does not answer
        carrier.close_write()
        carrier.close_read()
        self._maker.close()
        if self._record is not None:
            self._record.remove()

    def end(self) -> None:
        """End the command, whose worker has ended, which its supervisor has told."""
        self._confirm()
        self._gone.set()
        self._carrier.end()

    def _confirm(self) -> None:
        """Tell the supervisor that the news of the end has arrived, so that it need not stay."""
        poll, session = select.poll(), self._session
        with self._reading:  # while it is held, nothing is closed
            connection = self.connection
            if session is None or connection is None or connection.is_lost:
                return
            poll.register(connection.write_fd, select.POLLOUT)
            # The supervisor reads what was on the way to the worker.
            if poll.poll(0 if self._readable is not None else CONFIRM_MS):
                with suppress(OSError):
                    os.write(connection.write_fd, session.secret.encode("ascii"))

    def has_ended(self) -> bool:
        """Whether the worker has ended, or was given up."""
        ended: bool = self._gone.is_set() and self._carrier.has_ended()
        return ended

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the worker's end until the deadline, as the base class."""
        if not self._gone.wait(max(0.0, deadline - monotonic())):
            return None
        return self._known_status(self._carrier.poll_until(deadline))

    def wait(self) -> int | None:
        """Wait until the worker has ended or was given up, and nothing of it is left here."""
        self._gone.wait()
        return self._known_status(self._carrier.wait())

    def _known_status(self, status: int | None) -> int | None:
        if self.given_up or self._is_killed:
            status = self._status
        if status is None and self._carrier.has_ended():
            return self.told_status
        return status

    def kill(self) -> None:
        """Kill the worker by a separate login, if it has not ended; waits for 5 s at most.

        If that fails, a ``ResourceWarning`` says so: the supervisor ends the worker later.
        """
        if self._session is None:
            self._carrier.kill()
            self.stop("the worker was killed")
            return
        with self._lock:
            is_first, self._is_killed = not self._is_killed, True
        # A worker whose start was cut off may wait for a connection, and nobody knows of it.
        if not is_first or (self._gone.is_set() and self._is_placed()):
            self._carrier.kill()
            return
        self.told_status = None  # it does not end by itself
        self._pause.set()
        now = monotonic()
        reach_by = now + REACH_S if self.reach_by is None else self.reach_by
        limits = (now + LOGIN_S, reach_by) if self.kill_by is None else (self.kill_by, None)
        try:
            why = self._kill_by_login(self._session, *limits)
            if why:
                record, self._record = self._record or self._make_record(), None
                if record is not None:
                    record.leave()
                self._warn_unreachable(why)
        finally:
            self.stop("the worker was killed")
            self._carrier.kill()

    def _kill_by_login(self, session: Session, deadline: float, reach_by: float | None) -> str:
        """Have the worker killed; return why it may run on, "" if it does not.

        reach_by: when there has to be a sign of a network, from the host or over the connection.
        """
        failures = [self._maker.why_elsewhere()]
        began = monotonic()
        if self._gateway is not None and self._is_placed():
            ask(self._gateway)
        for way, until in _in_turn(self._ways(is_late=True), deadline):
            try:
                is_late = way.await_answer(until, reach_by)
                make = partial(self._make, way, partial(self._is_given_up, is_late, began))
                has_network = partial(self._is_heard, began)
                self._status = Login(session, make, until, reach_by, has_network).kill(bool)
            except Ended as exc:
                if not isinstance(exc, Rebooted) or self._maker.is_final(way):
                    return ""
                failures.append(_told(way, exc))
            except Exception as exc:
                failures.append(_told(way, exc))
            else:
                return ""
        return _joined(failures)

    def _is_given_up(self, is_late: Callable[[], bool], since: float) -> bool:
        """Whether the login that kills the worker is to wait no longer for its host's answer."""
        return self.is_over or (is_late() and not self._is_heard(since))

    def _is_heard(self, since: float) -> bool:
        """Whether something has come over the connection, which tells that there is a network."""
        return self.read_at > since

    def may_not_wait(self) -> bool:
        """Whether this is the receiver thread of a gateway that may be on the way there."""
        return any(map(acts_on, [self.carrier, *self._asked]))

    def is_out_of_reach(self, since: float = -1.0) -> bool:
        is_silent = self.read_at <= since and self.kept_bytes > 0
        return self.connection is None or is_silent

    def _warn_unreachable(self, why: str) -> None:
        seconds = self._settings.resume_s
        text = (
            f"worker {self._id} could not be reached to be killed ({why}); its supervisor ends it "
            f"once it was out of reach for {seconds:g} s"
        )
        if self._hops() is not None:
            text += ', or "execnet clean" does'
        with suppress(Exception):  # warnings are errors
            warnings.warn(text, ResourceWarning, stacklevel=4)

    @property
    def could_not_start(self) -> bool:  # type: ignore[override]
        """Whether the command in use was never started."""
        return bool(self._carrier.could_not_start)

    def stderr_tail(self) -> str:
        """Return the end of what came over the stderr of the connection in use."""
        tail: str = self._carrier.stderr_tail()
        return tail

    def is_connecting(self) -> bool:
        """Whether it still waits for a host to answer, as far as the system tells."""
        waits: bool = self._carrier.is_connecting()
        return waits

    def disown(self) -> None:
        """In a forked process: the worker and the stream to it are the parent's."""
        self.is_over = True
        self._record = None
        for connection in [self.connection, *self._given_up]:  # otherwise the command would not end
            if connection is not None:
                connection.close()
        if self._readable is not None:
            self._readable.close()
        self._gone = _Flag(self.execmodel)
        self._gone.set()
        self._carrier.disown()


def _in_turn(ways: list[Maker], ends_at: float) -> Iterator[tuple[Maker, float]]:
    """Yield ways, each with when its attempt has to be over: they share what time is left."""
    for place, way in enumerate(ways):
        now = monotonic()
        if place and now >= ends_at:
            return
        yield way, min(ends_at, now + max(TURN_S, (ends_at - now) / (len(ways) - place)))


def _told(way: Maker, error: Exception) -> str:
    """Return why an attempt failed; it may lack descriptors, threads, or what led there."""
    is_usual = isinstance(error, (Unreachable, Rebooted, Refused))
    text = str(error) if is_usual else f"{type(error).__name__}: {error}"
    return f"{way.name}: {text}" if way.name else text


def _joined(told: list[str]) -> str:
    return "; ".join(filter(None, told))
