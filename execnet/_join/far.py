"""The code that a worker which dialled in gets from the coordinator after authentication.

This process keeps the connection, and relays between it and the worker, which is a process of its
own, so that nothing there has seen the key.  If the coordinator says so, that is a connection to
another worker, the *hop* through which the coordinator then reaches this one; or the worker has a
supervisor, and this process dials in again when its connection was lost.  It runs after the first
code of ``command``, is sent together with ``script/socketserver.py`` and keeps to what Python 2.7
and today's Python both accept.  Start at ``join``.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    import subprocess
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from ..script.socketserver import Prover

ANSWER_S = 99  # how long the coordinator may take to find a place
REACH_S = 3  # how long the way to a hop may take, all its addresses together
CODE_BYTES = 1 << 18  # of the line that comes then, at most
DIAL_S = 10  # how long it may take to dial in again, and prove that it is the same joiner
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 30.0  # between two attempts, at first and at most
HOP = b"hop"  # in the proof to a hop, which has a key for this joiner alone
RETURN = b"return"  # in that of a joiner which comes back, with a key for its worker alone
LINE = b"'exec(eval(sys.stdin.readline()))'\n"  # the process reads its own from the connection
TEXT_CHARS = 100  # of the facts about this machine
# Launchers of many processes: name, rank, number of processes, and what distinguishes jobs.
LAUNCHERS = (
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
    ("MPI", "PMIX_RANK", "", ("PMIX_NAMESPACE",)),
    ("MPI", "PMI_RANK", "PMI_SIZE", ("PMI_JOBID",)),
    ("Kubernetes", "JOB_COMPLETION_INDEX", "", ("JOB_NAME", "HOSTNAME")),
)


def facts() -> dict[str, object]:
    """Return what is known about this process and its launcher."""
    found: dict[str, object] = {"host": _text(socket.gethostname()), "pid": os.getpid()}
    for name, rank, size, job in LAUNCHERS:
        if os.environ.get(rank, "").isdigit():
            found.update({"launcher": name, "rank": int(os.environ[rank])})
            if os.environ.get(size, "").isdigit():
                found["size"] = int(os.environ[size])
            parts = [os.environ[part] for part in job if os.environ.get(part)]
            if name == "Kubernetes":  # the name of a pod is that of its job, plus the rank
                end = "-%s" % found["rank"]
                parts = [part[: -len(end)] if part.endswith(end) else part for part in parts[:1]]
            found["job"] = _text(".".join(parts))
            break
    return found


def _text(text: str) -> str:
    return "".join(char for char in text if " " <= char <= "~")[:TEXT_CHARS]


class Host(object):
    """The part of a server that a ``Session`` uses."""

    hears_of_ends = False

    def __init__(self, wake: Callable[[], object] = int) -> None:
        self.cwd = os.getcwd()
        self.wake = wake  # called when a process has ended


def join(
    conn: socket.socket, base: ModuleType, address: tuple[str, int], id: str, fingerprint: str
) -> int:
    """Be the worker of a connection until it ends; return the exit status of this process.

    conn: with TLS, after the proof.  base: the module ``script.socketserver``.  address: host and
    port of the coordinator.  fingerprint: the SHA-256 of its certificate, in hex.
    """
    base.keep_alive(conn)
    known = facts()
    known["address"] = _text(conn.getsockname()[0])
    conn.sendall((json.dumps(known) + "\n").encode("ascii"))
    try:
        word, rest = _answer(conn, base)
        while word == "hop":
            try:
                hop = _connected_to_hop(rest.split(" "), base)
            except (EnvironmentError, ValueError, IndexError) as exc:
                conn.sendall(("unreached %s\n" % _text("%s" % (exc,))).encode("ascii"))
                word, rest = _answer(conn, base)
            else:
                conn.sendall(b"reached\n")
                base.shut(conn)
                conn.close()
                conn, word = hop, "go"
    except (EnvironmentError, ValueError):
        word, rest = "error", "the coordinator has ended the connection"
    if word == "stay":
        knows = id.encode("ascii"), fingerprint.encode("ascii"), base.key_of(rest.encode("ascii"))
        return _stay(conn, Door(base, address, *knows), base)
    if word != "go":
        sys.stderr.write("execnet join: %s\n" % base.printable(rest.encode("ascii", "replace")))
        return int(word != "late")
    near, far = socket.socketpair()
    return _serve(conn, near, far, base)


def _answer(conn: socket.socket, base: ModuleType) -> tuple[str, str]:
    line = base.read_line(conn, base.clock() + ANSWER_S).decode("ascii", "replace")
    word, _, rest = line.partition(" ")
    return word, rest


def _connected_to_hop(words: list[str], base: ModuleType) -> socket.socket:
    """Return a connection to a hop, after the proofs.

    words: a port, the SHA-256 of the certificate and the key, in hex, then hosts.  Nothing is sent
    before the certificate has shown that it is the hop.  Raises EnvironmentError or ValueError if
    it is not reached, IndexError if there are too few words.
    """
    port, fingerprint, key = int(words[0]), words[1].encode("ascii"), words[2].encode("ascii")
    until = base.clock() + REACH_S
    error: Exception | None = None
    for number, host in enumerate(words[3:], 4):
        left_s = (until - base.clock()) / (len(words) - number + 1)
        try:
            conn = socket.create_connection((host, port), max(0.01, left_s))
        except EnvironmentError as exc:
            error = exc
            continue
        try:
            return _proved(conn, base.Prover(base.key_of(key)), fingerprint, until, base, (HOP,))
        except (EnvironmentError, ValueError) as exc:
            conn.close()
            error = exc
    raise ValueError("%s port %d: %s" % (" and ".join(words[3:]), port, error))


def _proved(
    conn: socket.socket,
    prover: Prover,
    fingerprint: bytes,
    until: float,
    base: ModuleType,
    purpose: tuple[bytes, ...],
) -> ssl.SSLSocket:
    """Return the connection with TLS, after the proofs; purpose: a word, and an id to tell."""
    import ssl

    is_tls, is_wanted = prover.greeted(base.read_line(conn, until))
    if not (is_tls and is_wanted):
        raise ValueError("what answers there does not expect a joiner")
    context = ssl.SSLContext(getattr(ssl, "PROTOCOL_TLS_CLIENT", ssl.PROTOCOL_SSLv23))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    conn.settimeout(max(0.01, until - base.clock()))
    hop = context.wrap_socket(conn)
    try:
        if base.fingerprint_of(hop.getpeercert(True) or b"") != fingerprint:
            raise ValueError("it has another certificate")
        hop.sendall(b" ".join((prover.answer(fingerprint, *purpose),) + purpose[1:]) + b"\n")
        prover.proved(base.read_line(hop, until))
        base.keep_alive(hop)
        return hop
    except BaseException:
        hop.close()
        raise


class Door(object):
    """The coordinator's, for a joiner that was let in before."""

    def __init__(
        self, base: ModuleType, address: tuple[str, int], id: bytes, fingerprint: bytes, key: bytes
    ) -> None:
        self._base, self._address = base, address
        self._id, self._fingerprint, self._key = id, fingerprint, key

    def dial(self, is_over: Callable[[], bool]) -> tuple[ssl.SSLSocket, bytes] | None:
        """Return a new connection and the line that has come over it; None if there is none.

        The line is for an interpreter, which does not have to wait for it.
        """
        base = self._base
        try:
            conn = socket.create_connection((self._address[0], self._address[1]), DIAL_S)
        except EnvironmentError:
            return None
        proved: ssl.SSLSocket | None = None
        line = b""
        try:
            until = base.clock() + DIAL_S
            prover = base.Prover(self._key)
            proved = _proved(conn, prover, self._fingerprint, until, base, (RETURN, self._id))
            until = base.clock() + ANSWER_S
            while not line.endswith(b"\n"):
                if not (proved.pending() or select.select([proved], [], [], base.TICK_S)[0]):
                    if is_over() or base.clock() > until:
                        raise ValueError("it does not go on")
                    continue
                proved.settimeout(DIAL_S)
                data = proved.recv(1 << 16)
                if not data or len(line) > CODE_BYTES:
                    raise ValueError("it does not go on")
                line += data
            return proved, line
        except (EnvironmentError, ValueError, select.error):
            (proved or conn).close()
        return None


class Passage(object):
    """A process and the connection that is its stdin and stdout, passed on until either ends.

    wake: called then.  taken: what was read of the connection before.
    """

    def __init__(
        self,
        base: ModuleType,
        wake: Callable[[], object],
        conn: socket.socket,
        taken: bytes = b"",
    ) -> None:
        self.is_lost = False
        self._base, self._wake = base, wake
        self._conn = conn
        near, self._far = socket.socketpair()
        try:
            self.session = base.Session(Host(wake), near, LINE)
            passage = self
            relay_class: Any = base.Relay

            class PassageRelay(relay_class):  # type: ignore[misc]
                def tell_end(self, way: object) -> None:
                    passage.lose()
                    relay_class.tell_end(self, way)

                def run(self) -> None:
                    try:
                        relay_class.run(self)
                    finally:
                        passage.lose()

            self._thread = base.start_thread(PassageRelay(conn, self._far, taken).run)
        finally:
            near.close()  # so that its end can be read when the process has closed the other one

    def lose(self) -> None:
        """Note that nothing passes any more."""
        self.is_lost = True
        self._wake()

    def cut(self) -> None:
        """Pass nothing on any more; the process goes on."""
        for sock in self._far, self._conn:
            self._base.shut(sock)

    def end(self, wait_s: float) -> None:
        """Pass on what is there, after the process has ended, or end it after a while."""
        self._thread.join(wait_s)
        self.cut()
        self.session.end(wait_s)
        self.session.kill()


def _stay(conn: socket.socket, door: Door, base: ModuleType) -> int:
    """Be the joiner of a worker that outlives its connections; return as ``join``."""
    changed = threading.Event()
    first = used = Passage(base, changed.set, conn)
    others: list[Passage] = []
    _pass_signals_on(first.session.process, base)
    has_ended, pause_s = first.session.has_ended, FIRST_PAUSE_S
    while not has_ended():
        if not used.is_lost:
            pause_s = FIRST_PAUSE_S
            changed.wait(base.TICK_S)
            changed.clear()
            continue
        first.session.over.wait(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
        found = None if has_ended() else door.dial(has_ended)
        if found is not None:
            used.cut()
            try:
                used = Passage(base, changed.set, *found)
                others = [one for one in others if not one.session.has_ended()] + [used]
            except (EnvironmentError, RuntimeError, threading.ThreadError):
                found[0].close()  # there can be no more processes, or threads
    for passage in [used] + [one for one in [first] + others if one is not used]:
        passage.end(base.LAST_WORDS_S)
    status: int = first.session.process.returncode
    return status if status >= 0 else 128 - status


def _serve(conn: socket.socket, near: socket.socket, far: socket.socket, base: ModuleType) -> int:
    has_left = threading.Event()
    relay_class: Any = base.Relay

    class JoinRelay(relay_class):  # type: ignore[misc]
        def tell_end(self, way: object) -> None:
            if way is self._inwards:
                has_left.set()
            relay_class.tell_end(self, way)

    session = base.Session(Host(), near, LINE)
    _pass_signals_on(session.process, base)
    thread = base.start_thread(JoinRelay(conn, far).run)
    is_told = False
    while not session.has_ended():
        session.over.wait(base.TICK_S)
        if has_left.is_set() and not is_told:
            is_told = True
            session.on_left()
        if base.clock() > session.kill_at:
            session.kill()
    session.end(0)
    thread.join(base.LAST_WORDS_S)
    status: int = session.process.returncode
    return status if status >= 0 else 128 - status


def _pass_signals_on(process: subprocess.Popen[bytes], base: ModuleType) -> None:
    """Pass the signals of a batch system on to the worker, and report its end."""

    def pass_on(signum: int, frame: object) -> None:
        try:
            process.send_signal(signum)
        except EnvironmentError:
            pass  # it has just ended

    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and not base.is_ignored(number):
            signal.signal(number, pass_on)
