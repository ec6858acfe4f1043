"""The code that a worker which dialled in gets from the coordinator after authentication.

This process keeps the connection, and relays between it and the worker, which is a process of its
own, so that nothing there has seen the key.  If the coordinator says so, that is a connection to
another worker, the *hop* through which the coordinator then reaches this one.  It runs after the
first code of ``command``, is sent together with ``script/socketserver.py`` and keeps to what
Python 2.7 and today's Python both accept.  Start at ``join``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from types import ModuleType
    from typing import Any

ANSWER_S = 99  # how long the coordinator may take to find a place
REACH_S = 3  # how long the way to a hop may take, all its addresses together
HOP = b"hop"  # in the proof to a hop, which has a key for this joiner alone
TEXT_CHARS = 100  # of the facts about this machine
# Launchers of many processes: name, rank, number of processes, and what distinguishes jobs.
LAUNCHERS = (
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
    ("MPI", "PMIX_RANK", "", ("PMIX_NAMESPACE",)),
    ("MPI", "PMI_RANK", "PMI_SIZE", ("PMI_JOBID",)),
    ("Kubernetes", "JOB_COMPLETION_INDEX", "", ("JOB_NAME", "HOSTNAME")),
)


def facts() -> dict[str, Any]:
    """Return what is known about this process and its launcher."""
    found = {"host": _text(socket.gethostname()), "pid": os.getpid()}
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
    wake = int

    def __init__(self) -> None:
        self.cwd = os.getcwd()


def join(conn: socket.socket, base: ModuleType) -> int:
    """Be the worker of a connection until it ends; return the exit status of this process.

    conn: with TLS, after the proof.  base: the module ``script.socketserver``.
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
                base._shut(conn)
                conn.close()
                conn, word = hop, "go"
    except (EnvironmentError, ValueError):
        word, rest = "error", "the coordinator has ended the connection"
    if word != "go":
        sys.stderr.write("execnet join: %s\n" % base.printable(rest.encode("ascii", "replace")))
        return int(word != "late")
    near, far = socket.socketpair()
    return _serve(conn, near, far, base)


def _answer(conn: socket.socket, base: ModuleType) -> tuple[str, str]:
    line = base._read_line(conn, base.clock() + ANSWER_S).decode("ascii", "replace")
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
            return _proved(conn, base.Prover(base.key_of(key)), fingerprint, until, base)
        except (EnvironmentError, ValueError) as exc:
            conn.close()
            error = exc
    raise ValueError("%s port %d: %s" % (" and ".join(words[3:]), port, error))


def _proved(
    conn: socket.socket, prover: Any, fingerprint: bytes, until: float, base: ModuleType
) -> socket.socket:
    import ssl

    is_tls, is_wanted = prover.greeted(base._read_line(conn, until))
    if not (is_tls and is_wanted):
        raise ValueError("no hop greets so")
    context = ssl.SSLContext(getattr(ssl, "PROTOCOL_TLS_CLIENT", ssl.PROTOCOL_SSLv23))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    conn.settimeout(max(0.01, until - base.clock()))
    hop = context.wrap_socket(conn)
    try:
        if base.fingerprint_of(hop.getpeercert(True) or b"") != fingerprint:
            raise ValueError("it has another certificate")
        hop.sendall(prover.answer(fingerprint, HOP) + b"\n")
        prover.proved(base._read_line(hop, until))
        base.keep_alive(hop)
        return hop
    except BaseException:
        hop.close()
        raise


def _serve(conn: socket.socket, near: socket.socket, far: socket.socket, base: ModuleType) -> int:
    has_left = threading.Event()
    relay_class: Any = base.Relay

    class JoinRelay(relay_class):  # type: ignore[misc]
        def _tell_end(self, way: object) -> None:
            if way is self._inwards:
                has_left.set()
            relay_class._tell_end(self, way)

    session = base.Session(Host(), near)
    _pass_signals_on(session.process)
    thread = base._start(JoinRelay(conn, far).run)
    is_told = False
    while not session.has_ended():
        session._over.wait(base.TICK_S)
        if has_left.is_set() and not is_told:
            is_told = True
            session.on_left()
        if base.clock() > session.kill_at:
            session.kill()
    session.end(0)
    thread.join(base.LAST_WORDS_S)
    status: int = session.process.returncode
    return status if status >= 0 else 128 - status


def _pass_signals_on(process: subprocess.Popen[bytes]) -> None:
    """Pass the signals of a batch system on to the worker, and report its end."""

    def pass_on(signum: int, frame: object) -> None:
        try:
            process.send_signal(signum)
        except EnvironmentError:
            pass  # it has just ended

    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
