"""Socket servers that tests start: copies of the script, where no execnet is installed."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from processes import children_of, is_reaped
from tools import BOUND_S, clean_environment

from execnet.script import socketserver

SCRIPTS = Path(socketserver.__file__).parent
NOBODY = 65534


def connect(address: str) -> socket.socket:
    """Return a plain connection to a server."""
    place = socketserver.parse_address(address)
    if isinstance(place, tuple):
        return socket.create_connection(place, BOUND_S)
    conn = socket.socket(socket.AF_UNIX)
    conn.settimeout(BOUND_S)
    conn.connect(place)
    return conn


def read_to_end(conn: socket.socket) -> bytes:
    """Return what still comes; that the other side is gone is an end, too.

    A reset tells of something that was not read there, and reading TLS may have to write.
    """
    data = b""
    try:
        while more := conn.recv(65536):
            data += more
    except (ConnectionResetError, BrokenPipeError):
        pass
    return data


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback interface."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Server:
    """A running server; ``address`` is where it says that it listens."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        assert popen.stdout is not None
        words = popen.stdout.readline().split()
        if words[:2] == ["clients", "need"]:  # the second line of one that has ended
            words = popen.stdout.readline().split()
        assert words[:2] == ["listening", "on"], (words, popen.wait(BOUND_S))
        self.address = words[2]

    def processes(self) -> list[int]:
        """Return the processes that it has started and that have not ended."""
        return sorted(children_of(self.popen.pid))

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit status, after which its processes are gone."""
        processes = self.processes()
        self.popen.send_signal(signum)
        status = self.popen.wait(BOUND_S)
        if signum != signal.SIGKILL:
            assert [pid for pid in processes if not is_reaped(pid)] == []
        return status


class Servers:
    """Starts servers with a copy of the script in a folder; ends them on the way out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for popen in self._started:
            popen.terminate()
        for popen in self._started:
            popen.wait(BOUND_S)
            assert popen.stdout is not None
            popen.stdout.close()

    def popen(self, script: str, *args: str, python: str = sys.executable) -> subprocess.Popen[str]:
        """Start a copy of a script, whose stdout is a pipe."""
        for path in SCRIPTS.glob("*.py"):
            shutil.copy(path, self.folder / path.name)
        environment = clean_environment()
        del environment["PYTHONPATH"]
        popen = subprocess.Popen(
            [python, str(self.folder / script), *args],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )
        self._started.append(popen)
        return popen

    def start(self, address: str = ":0", *options: str, python: str = sys.executable) -> Server:
        """Start a server and wait until it listens."""
        return Server(self.popen("socketserver.py", address, *options, python=python))


class InProcess:
    """A server in a thread of the tests' own process, whose module can be changed."""

    def __init__(self) -> None:
        self.server = socketserver.Server(socketserver.listen(("127.0.0.1", 0)))
        self.address = socketserver.format_address(self.server.address)
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()


# It says what each client has sent, as far as that is a line, or to its end.
LISTENS = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
listener.listen()
print("listening", flush=True)
while True:
    with listener.accept()[0] as conn:
        line = conn.makefile("rb").readline()
        print(line, flush=True)
"""


class OthersServer:
    """A process of another user, which listens at a path."""

    def __init__(self, path: str) -> None:
        self.address = f"unix:{path}"
        command = [sys.executable, "-c", LISTENS, path, str(NOBODY)]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._said() == "listening"

    def _said(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def heard(self) -> bytes:
        """Return what the next client has sent before it went."""
        line: bytes = literal_eval(self._said())
        return line


Serve = Callable[..., Server]
