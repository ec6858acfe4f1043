"""A port in front of a socket server, whose connections a test cuts, stops and refuses.

Start at ``CutPort``; ``InstalledPort`` is for servers that a gateway starts.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any

import pytest
from socketservers import connect

from execnet import Gateway, XSpec, gateway_socket
from execnet.script.socketserver import format_address

PIECE_BYTES = 4096
KEPT_BYTES = 1 << 18


class Passage:
    """One connection: what passes both ways, at most so many bytes in all; None for any number."""

    def __init__(self, near: socket.socket, far: socket.socket, left: int | None) -> None:
        self.from_client = b""  # what the client has sent at first
        self._ends = near, far
        self._left = left
        self._lock = threading.Lock()
        self._running = 2
        self._goes_on = threading.Event()
        self._goes_on.set()
        ways = (near, far), (far, near)
        self._threads = [threading.Thread(target=self._pass_on, args=way) for way in ways]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Pass nothing any more, without an end."""
        self._goes_on.clear()

    def cut(self) -> None:
        """End it both ways."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._goes_on.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self._goes_on.wait()
                with self._lock:
                    data = data if self._left is None else data[: self._left]
                    if self._left is not None:
                        self._left -= len(data)
                if source is self._ends[0] and len(self.from_client) < KEPT_BYTES:
                    self.from_client += data
                target.sendall(data)
                if self._left == 0:
                    break
        with self._lock:
            self.cut()
            self._running -= 1
            if not self._running:  # now: what nobody has read takes memory of the system
                for end in self._ends:
                    end.close()


class CutPort:
    """What leads to a server at an address; ``address`` is where to connect to."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.passages: list[Passage] = []
        self._cuts: list[int] = []
        self._is_down = False
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = format_address(self._listener.getsockname())
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> CutPort:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for passage in self.passages:
            passage.cut()
            passage.join()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                with self._lock:
                    self._let_in(near)

    def _let_in(self, near: socket.socket) -> None:
        try:
            if self._is_down:
                raise ConnectionError
            far = connect(self.server)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        left = self._cuts[len(self.passages)] if len(self.passages) < len(self._cuts) else None
        self.passages.append(Passage(near, far, left))

    def set_cuts(self, cuts: list[int]) -> None:
        """Have the first connections cut after so many bytes each."""
        self._cuts = cuts

    def runs(self) -> int:
        """Return how many connections there were."""
        return len(self.passages)

    def cut(self) -> None:
        """Cut the connection in use."""
        self.passages[-1].cut()

    def stop(self) -> None:
        """Have the connection in use pass nothing any more, without an end."""
        self.passages[-1].stop()

    def go_down(self) -> None:
        """Have no connections from now on, until ``go_up``."""
        with self._lock:
            self._is_down = True
            self.cut()

    def go_up(self) -> None:
        """Have connections again."""
        self._is_down = False


class InstalledPort(CutPort):
    """What leads to the servers of ``installvia=``, each time to the one started last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("")
        self.servers: list[str] = []
        install, wish = gateway_socket._install, gateway_socket.Wish

        def install_there(
            gateway: Gateway, at: Any, options: dict[str, object], timeout_s: float
        ) -> tuple[str, int]:
            self.server = format_address(install(gateway, at, options, timeout_s))
            self.servers.append(self.server)
            host, _, port = self.address.rpartition(":")
            return host, int(port)

        def wish_there(spec: XSpec, key: bytes | None = None) -> gateway_socket.Wish:
            found = wish(spec, key)
            found.bound = self.server  # of a forwarded port
            return found

        monkeypatch.setattr(gateway_socket, "_install", install_there)
        monkeypatch.setattr(gateway_socket, "Wish", wish_there)
