"""The code that a worker which dialled in gets from the coordinator after authentication.

This process keeps the connection, and relays between it and the worker, which is a process of its
own, so that nothing there has seen the key.  It runs after the first code of ``command``, is sent
together with ``script/socketserver.py`` and keeps to what Python 2.7 and today's Python both
accept.  Start at ``join``.
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
    from typing import Any

ANSWER_S = 99  # how long the coordinator may take to find a place
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
                end = "-%d" % found["rank"]
                parts = [part[: -len(end)] if part.endswith(end) else part for part in parts[:1]]
            found["job"] = _text(".".join(parts))
            break
    return found


def _text(text: Any) -> Any:
    return "".join(char for char in text if " " <= char <= "~")[:TEXT_CHARS]


class Host(object):
    """The part of a server that a ``Session`` uses."""

    hears_of_ends = False
    wake = int

    def __init__(self) -> None:
        self.cwd = os.getcwd()


def join(conn: Any, base: Any) -> int:
    """Be the worker of a connection until it ends; return the exit status of this process.

    conn: with TLS, after the proof.  base: the module ``script.socketserver``.
    """
    base.keep_alive(conn)
    conn.sendall((json.dumps(facts()) + "\n").encode("ascii"))
    try:
        answer = base._read_line(conn, base.clock() + ANSWER_S).decode("ascii", "replace")
    except (EnvironmentError, ValueError):
        answer = "error the coordinator has ended the connection"
    word, _, rest = answer.partition(" ")
    if word != "go":
        sys.stderr.write("execnet join: %s\n" % base.printable(rest.encode("ascii", "replace")))
        return int(word != "late")
    near, far = socket.socketpair()
    return _serve(conn, near, far, base)


def _serve(conn: Any, near: Any, far: Any, base: Any) -> int:
    has_left = threading.Event()
    relay_class: Any = base.Relay

    class JoinRelay(relay_class):  # type: ignore[misc]
        def _tell_end(self, way: Any) -> None:
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


def _pass_signals_on(process: Any) -> None:
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
