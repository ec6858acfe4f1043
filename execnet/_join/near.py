"""The group's side of workers that dial in: admitting them, listing them, waiting for them.

A thread of ``Door`` checks keys; each joiner with the key gets a thread until its worker is ready,
up to ``AT_ONCE`` at a time.  Start at ``Joins``.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from contextlib import suppress
from functools import partial

from .._clock import monotonic
from .._conditions import Condition
from .._errors import BootstrapError
from .._features.queues import timed_inbox
from .._folders import HOME_VARIABLE, key_file
from .._ship.parts import lowered
from .._transports.keys import own_key
from .._transports.proof import SocketTalk, read_line
from .._transports.tls import TlsIO
from ..gateway_base import Message, TimeoutError, real_select
from ..gateway_socket import ANY_HOST, LOOPBACK, SocketIO
from ..script import socketserver
from .command import KEY_VARIABLE, Ticket
from .facts import Facts, Refused
from .jobs import Jobs
from .launcher import Launcher
from .visitor import Connection, Door, DoorCertificate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Protocol

    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from ..gateway_bootstrap import Through
    from .hops import Hops
    from .returns import Return

    class Makes(Protocol):
        """Makes a gateway from a joiner's stream, and adds it to a group."""

        def __call__(self, through: Through, address: str) -> Gateway: ...

    # And whether its worker outlives its connections.
    Place = tuple[Makes, bool]


AT_ONCE = 32  # joiners that may become workers at the same time; others wait
QUEUE = 1024  # joiners that wait for that
FACTS_S = 10.0  # for a joiner to identify itself
END_S = 5.0  # for threads to see that it is over
REASONS = 5  # kept for the message of a wait that fails


class Joins:
    """The door of a group, and the workers that came in.

    key: a file, or the key itself.  tls: a file with a certificate and its private key, or True
    for one that is made now.  count: how many may be there at once.  place: called for each
    joiner, may wait; gives what makes a gateway of it, and whether that resumes, or raises
    ``Refused``.  fanout: as for ``hops``; None to keep all connections.  ``_changed`` guards all
    lists; any thread may call.
    """

    def __init__(
        self,
        address: str,
        key: str | bytes | None,
        tls: bool | str,
        count: int | None,
        execmodel: ExecModel,
        place: Callable[[], AbstractContextManager[Place]],
        fanout: int | None = None,
    ) -> None:
        self.count = count
        self.gateways: list[Gateway] = []  # those that have joined and were not replaced
        self.secret, self.key_file = _secret_of(key)
        self.launchers: list[Launcher] = []
        self._jobs = Jobs(self.launchers)
        self.reasons: deque[str] = deque(maxlen=REASONS)  # why the last were turned away
        self._place, self._execmodel = place, execmodel
        self._changed = Condition()
        self._hops = None if fanout is None else self._new_hops(fanout)
        self._seen: set[str] = set()  # ids of joiners
        self._returns: dict[str, Return] = {}  # by id, of those that may come back
        self._starting = 0  # joiners that have a place, but are not gateways yet
        self._busy: set[Connection] = set()  # theirs
        self._ranks: dict[object, Gateway | None] = {}  # None: one that is about to join
        self._waiting: deque[tuple[Connection, str]] = deque()
        self._threads: set[threading.Thread] = set()
        self._callback: Callable[[Gateway], object] | None = None
        self._to_call: deque[Gateway] = deque()  # gateways that it has not been called for
        self._is_calling = False
        self._is_over = False
        certificate = DoorCertificate(_certificate(tls))
        self._door = self._open(address, certificate)
        assert isinstance(self._door.address, tuple)
        self.address: tuple[str, int] = self._door.address
        self.ticket = self._ticket_with(certificate)
        self._thread = threading.Thread(target=self._door.run, name="execnet-join", daemon=True)
        self._begin()

    def _new_hops(self, fanout: int) -> Hops:
        from .hops import Hops

        return Hops(fanout, self._execmodel, self._changed)

    def _ticket_with(self, certificate: DoorCertificate) -> Ticket:
        host, port = self.address
        shown = (_own_host(host) if host in ANY_HOST else host), port
        return Ticket(shown, certificate.fingerprint.decode("ascii"))

    def _open(self, address: str, certificate: DoorCertificate) -> Door:
        place = socketserver.parse_address(address)
        if isinstance(place, str):
            raise ValueError(f"{address!r}: joiners connect to host:port")
        socket = socketserver.listen(place)
        told = self._on_proof, self._on_refusal, self._returns.get
        return Door(socket, self.secret, certificate, *told)

    def _begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be started
            self._door.disown()
            raise

    def launch(self, words: Sequence[str]) -> None:
        """Start a launcher; if the key is in no file, it goes into its environment."""
        key = None if self.key_file is not None else self.secret
        launcher = Launcher(words, KEY_VARIABLE, key, self.look_again)
        with self._changed:
            self.launchers.append(launcher)

    def look_again(self) -> None:
        """Have threads in ``wait_for`` see what has changed: a launcher, or whether they wait."""
        with self._changed:
            self._changed.notify_all()

    # ---------------------------------------------------------------- for users

    def live(self) -> list[Gateway]:
        """Return the gateways of those that have joined and have not ended, in order."""
        with self._changed:
            return [gateway for gateway in self.gateways if gateway.hasreceiver()]

    def wait_for(
        self, count: int, timeout: float | None, is_wanted: Callable[[], object]
    ) -> list[Gateway]:
        """Wait until this many are there; an error says how many are, and who was refused.

        is_wanted: whether to go on with it; ``look_again`` has it asked.
        """
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while True:
                found = self.live()
                if len(found) >= count:
                    return found[:count]
                failures = [one.failure() for one in self.launchers if one.failure()]
                left = None if deadline is None else deadline - monotonic()
                if self._is_over or failures or (left is not None and left <= 0):
                    break
                if not is_wanted():
                    raise InterruptedError("nobody waits for workers any more")
                self._changed.wait(left)
            why = ["the group was ended"] if self._is_over else failures or [f"after {timeout} s"]
            what = "; ".join(why)
            text = f"{len(found)} of {count} workers have joined, {what}"
            if self.reasons:
                text += "; turned away: " + "; ".join(self.reasons)
            raise BootstrapError(text) if failures else TimeoutError(text)

    def on_join(self, callback: Callable[[Gateway], object] | None) -> None:
        """Call a callback with each gateway, including those that are there already."""
        with self._changed:
            self._callback = callback
            self._to_call = deque(self.live() if callback is not None else ())
        self._call()

    # ---------------------------------------------------------------- the end

    def stop(self, patience_s: float = 0.0) -> None:
        """Admit nobody any more, not even those that are about to become workers.

        patience_s: how long those may take that are being told so.  Those that were here before may
        come back, so that they can be ended, until ``close``.
        """
        until = monotonic() + patience_s
        with self._changed:
            self._is_over = True
            waiting, self._waiting = list(self._waiting), deque()
            while self._busy and monotonic() < until:
                self._changed.wait(until - monotonic())
            for connection in self._busy:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            if self._hops is not None:
                self._hops.stop()
            self._changed.notify_all()
        for connection, _ in waiting:
            connection.close()
        with self._changed:
            threads = list(self._threads)
        if not self._returns:
            self._door.stop()
            threads.append(self._thread)
        deadline = monotonic() + END_S
        for thread in threads:
            if thread is not threading.current_thread():  # a callback ends the group
                thread.join(max(0.0, deadline - monotonic()))

    def close(self) -> None:
        """Close the door, as all workers have ended."""
        self._door.stop()
        self._thread.join(END_S)

    def disown(self) -> None:
        """In a forked process: the door is the parent's, and its threads are not here."""
        self._door.disown()
        for connection in [*(one for one, _ in self._waiting), *self._busy]:
            connection.close()
        for one in self._returns.values():
            one.disown()

    # ---------------------------------------------------------------- the thread of the door

    def _on_refusal(self, host: str, reason: str) -> None:
        with self._changed:
            self.reasons.append(f"{host}: {reason}")

    def _on_proof(self, connection: Connection, id: str) -> None:
        """Take a joiner that has the key, or tell it why not; never waits."""
        try:
            with self._changed:
                self._reserve(id)
                self._waiting.append((connection, id))
                if len(self._threads) < AT_ONCE:
                    self._start_thread()
        except Refused as exc:
            self._on_refusal(_host_of(connection), str(exc))
            with suppress(OSError):
                connection.send(_line(exc.word, str(exc)))
            connection.close()

    def _start_thread(self) -> None:  # holds _changed: stop() waits for each that is noted
        thread = threading.Thread(target=self._work, name="execnet-join", daemon=True)
        try:
            thread.start()
            self._threads.add(thread)
        except RuntimeError:  # no more threads can be started; the existing ones go on
            if not self._threads:
                self._waiting.pop()[0].close()  # it tries again
                self._starting -= 1

    def _reserve(self, id: str) -> None:  # holds _changed
        if self._is_over:
            raise Refused("the group was ended", "late")
        if id in self._seen:
            raise Refused("a joiner with this id has already come")
        there = len(self.live()) + self._starting
        if self.count is not None and there >= self.count:
            raise Refused(f"too late: the group has the {self.count} workers it wants", "late")
        if len(self._waiting) >= QUEUE:
            raise Refused("too many are joining at the same time")
        self._seen.add(id)
        self._starting += 1

    # ---------------------------------------------------------------- a thread for some joiners

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                connection, id = self._waiting.popleft()
                self._busy.add(connection)
            try:
                self._become_worker(connection, id)
            except Exception as exc:
                self._on_refusal(_host_of(connection), f"{exc}".partition("\n")[0])
                connection.close()
            finally:
                with self._changed:
                    self._busy.discard(connection)
                    self._starting -= 1
                    self._changed.notify_all()
            self._call()

    def _become_worker(self, connection: Connection, id: str) -> None:
        sock = connection.sock
        talk = SocketTalk(sock)
        talk.tls = connection.tls
        code = _code()
        sock.settimeout(FACTS_S)
        talk.write(_line("ok", str(len(code))) + code)
        try:
            facts = Facts(id, read_line(talk, monotonic() + FACTS_S))
            self._take_rank(facts)
        except (Refused, ValueError) as exc:
            self._turn_away(talk, exc)
            raise
        gateway = None
        try:
            with self._place() as place:
                if _has_left(sock):
                    raise ConnectionError("it has left")
                gateway = self._made(place, connection, talk, facts)
        except Refused as exc:
            self._turn_away(talk, exc)
            raise
        finally:
            self._add(gateway, facts)

    def _made(
        self, place: Place, connection: Connection, talk: SocketTalk, facts: Facts
    ) -> Gateway:
        """Make a gateway of a joiner, which waits to hear from where it gets its work."""
        make, resumes = place
        address = socketserver.format_address(self.address)
        host, port = connection.sock.getpeername()[:2]
        name = socketserver.format_address((host, port))
        args = [f"listen={address}", f"joined={name}"]
        hops, gateway = self._hops, None
        node = None if hops is None else hops.find(talk, facts, host, args, name)
        try:
            if node is not None and node.stream is not None:
                through: Through = partial(_through_hop, node.stream, facts)
                connection.close()
            else:
                stream_over = partial(self._stream_over, args, name)
                through = self._through(connection, talk, facts, stream_over, resumes)
            gateway = make(partial(self._through_asked, through, facts), address)
            return gateway
        finally:
            found = None if gateway is not None else self._returns.get(facts.id)
            if found is not None:
                found.close()
            if hops is not None and node is not None:
                hops.settle(node, gateway)

    def _through(
        self,
        connection: Connection,
        talk: SocketTalk,
        facts: Facts,
        stream_over: Callable[[Connection], Endpoint],
        resumes: bool,
    ) -> Through:
        """Tell a joiner to go on; return what makes the stream of its worker."""
        if resumes:
            from .returns import Return

            found = Return(facts, connection, stream_over, lambda: self._returns.pop(facts.id))
            self._returns[facts.id] = found
            talk.write(f"stay {found.key.hex()}\n".encode("ascii"))
            return found.stream
        talk.write(b"go on\n")
        stream = stream_over(connection)
        stream.facts = facts.shown()
        return lambda settings, model: stream

    def _through_asked(
        self, through: Through, facts: Facts, settings: Settings, model: ExecModel
    ) -> Endpoint:
        """Make the stream of a worker, which knows whom to ask why the worker has ended."""
        stream = through(settings, model)
        stream.ask_why = partial(self._jobs.why, facts.shown())
        return stream

    def _stream_over(self, args: list[str], name: str, connection: Connection) -> Endpoint:
        connection.sock.settimeout(None)
        io = SocketIO(connection.sock, self._execmodel, name)
        io.args = args
        return TlsIO(io, connection.tls)

    def _turn_away(self, talk: SocketTalk, why: Exception) -> None:
        word = why.word if isinstance(why, Refused) else "error"
        talk.write(f"{word} {why}\n".encode("ascii", "replace"))

    def _take_rank(self, facts: Facts) -> None:
        """Make sure that nobody else has this rank; one whose worker has ended is replaced."""
        if facts.place is None:
            return
        with self._changed:
            rival = self._ranks.get(facts.place)
            if rival is None and facts.place in self._ranks:
                raise Refused(f"another that is {facts} is about to join")
            self._ranks[facts.place] = None
        if rival is None:
            return
        if _lives(rival):
            with self._changed:
                self._ranks[facts.place] = rival
            raise Refused(f"{facts} has joined already: {rival.id}")
        rival.exit()

    def _add(self, gateway: Gateway | None, facts: Facts) -> None:
        """Note that a joiner has become a worker, or None."""
        with self._changed:
            if facts.place is not None:
                del self._ranks[facts.place]
            if gateway is None:
                return
            if facts.place is not None:
                self._ranks[facts.place] = gateway
            self.gateways = [*self.live(), gateway]
            if self._callback is not None:
                self._to_call.append(gateway)

    def _call(self) -> None:
        """Call the callback for gateways that it has not seen, in one thread at a time."""
        while True:
            with self._changed:
                if self._is_calling or self._is_over or not self._to_call:
                    return
                self._is_calling = True
                gateway, callback = self._to_call.popleft(), self._callback
            try:
                if callback is not None:
                    callback(gateway)
            except Exception:
                import traceback

                print(f"execnet: on_join of {gateway.id} failed", file=sys.stderr)
                traceback.print_exc()
            finally:
                self._is_calling = False


def _lives(gateway: Gateway) -> bool:
    """Whether a worker is alive; if necessary, ask it and wait for one heartbeat."""
    if not gateway.hasreceiver():
        return False
    if gateway.settings.resume_s is not None:  # it may come back until its time is over
        return True
    answers = timed_inbox(gateway.execmodel)
    try:
        # With a callback, since this thread must not wait for a channel of a loop.
        channel = gateway.newchannel()
        channel.setcallback(answers.put, endmarker=None)
        gateway.post_message(Message.STATUS, channel.id)
        if answers.get(True, gateway.settings.heartbeat_s or 1.0) is not None:
            return True
    except (OSError, gateway.execmodel.Empty):
        pass
    gateway.give_up("another with its rank has joined, and it does not answer")
    return False


def _has_left(sock: socket.socket) -> bool:
    """Whether a joiner, which has nothing to say at this point, has closed its connection."""
    poll = real_select().poll()
    poll.register(sock, real_select().POLLIN)
    return bool(poll.poll(0))


def _secret_of(key: str | bytes | None) -> tuple[bytes, str | None]:
    """Return the key itself and the file that has it, None for a key without a file."""
    if isinstance(key, bytes):
        return key if len(key) == 32 else socketserver.key_of(key), None
    if key is None:
        return own_key(), _default_file()
    return socketserver.read_key(key), key


def _default_file() -> str | None:
    """Return where joiners find the default key, in their terms; None if no file has it."""
    if not os.path.lexists(key_file()):
        return None
    return key_file() if HOME_VARIABLE in os.environ else "~/.execnet/key"


def _certificate(tls: bool | str) -> bytes:
    if tls is False:
        raise ValueError("tls= can't be off: joiners know the coordinator by its certificate")
    if tls is True:
        return socketserver.make_certificate()
    with open(tls, "rb") as file:
        return file.read()


def _line(word: str, rest: str) -> bytes:
    text = " ".join([socketserver.VERSION.decode("ascii"), word, rest])
    return text.encode("ascii", "replace") + b"\n"


def _host_of(connection: Connection) -> str:
    try:
        return str(connection.sock.getpeername()[0])
    except OSError:
        return "somebody"


def _own_host(bound: str) -> str:
    """Return the address of this machine on the network towards others."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Addresses for documentation: nothing is sent, only a route is looked up.
        probe.connect(("2001:db8::1" if ":" in bound else "192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "::1" if ":" in bound else LOOPBACK


_LOADER = """\
import base64,sys,zlib
def load(n,t):
 m=type(sys)(n)
 exec(compile(zlib.decompress(base64.b64decode(t)),n,"exec"),m.__dict__)
 return m
base=load("<execnet socket server>","{server}")
far=load("<execnet join>","{far}")
sys.exit(far.join(s,base,d,i,p))
"""


def _code() -> bytes:
    """Return the code that a joiner executes once it has authenticated."""
    import base64
    import zlib

    global _made
    if not _made:
        packed = [
            base64.b64encode(zlib.compress(lowered(name).encode("ascii"), 9)).decode("ascii")
            for name in ("script.socketserver", "_join.far")
        ]
        _made = _LOADER.format(server=packed[0], far=packed[1]).encode("ascii")
    return _made


_made = b""


def _through_hop(stream: Endpoint, facts: Facts, settings: Settings, model: ExecModel) -> Endpoint:
    assert stream.carrier is not None
    vars(settings.spec)["via"] = stream.carrier.id
    stream.facts = facts.shown()
    return stream
