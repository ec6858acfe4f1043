"""A slow link, as a program: ``relay.py OPTIONS -- COMMAND`` runs a command behind it.

Stands alone. What the command reads and writes passes through here, late or in pieces.

--delay S      each piece arrives S seconds after it was sent, as over a long wire
--log FILE     a line for each piece: its direction ("<" is from the command), when, how many
--crowd DIR N  nothing passes before N such programs have started
--trickle N    the command gets its first N bytes a few at a time
--cut N        it ends after N bytes of both directions, as a network does
--chatter TEXT is written first, in place of the command's answer, without a line's end
--login H:P    COMMAND's last word is run by the server of ``slow_net`` at this address
--shell        COMMAND's last word is for a shell, and the others are ignored, as if this was ssh
--apart        with --shell, what it runs is no descendant, as if it was on another machine
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

TRICKLE_BYTES = 37
CUT_STATUS = 255  # as that of ssh


class Budget:
    """How many bytes may still pass, in both directions together; None: any number."""

    def __init__(self, left: int | None) -> None:
        self._left = left
        self._lock = threading.Lock()

    def take(self, data: bytes) -> bytes:
        """Return what of it may pass now."""
        with self._lock:
            if self._left is None:
                return data
            taken = data[: self._left]
            self._left -= len(taken)
            return taken

    def check(self) -> None:
        """End the program if nothing may pass any more."""
        if self._left == 0:
            os._exit(CUT_STATUS)


def main() -> int:
    options = parse()
    if options.chatter:
        os.write(1, options.chatter.encode().decode("unicode_escape").encode("latin-1"))
    if options.crowd:
        wait_for_crowd(options.crowd[0], int(options.crowd[1]))
    budget = Budget(options.cut)
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if options.log else -1
    if options.login:
        sock = log_in(options.login, options.command[-1])
        pass_both(options, budget, log, sock.fileno(), sock.fileno(), lambda: shut(sock))
        return 0
    command = ["/bin/sh", "-c", options.command[-1]] if options.shell else options.command
    if options.apart:
        command = ["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- &', "sh", *command]
    connection = connect_to_itself() if options.shell else None
    pipe, apart = subprocess.PIPE, options.apart
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=apart)
    assert child.stdin is not None
    assert child.stdout is not None
    ends = child.stdin.fileno(), child.stdout.fileno()
    pass_both(options, budget, log, *ends, child.stdin.close)
    status = child.wait()
    del connection
    return status


def connect_to_itself() -> tuple[socket.socket, ...]:
    """Have a TCP connection, as a real ssh has one once its host has answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def log_in(address: str, command: str) -> socket.socket:
    host, _, port = address.partition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(command.encode().hex().encode() + b"\n")
    return sock


def shut(sock: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        sock.shutdown(socket.SHUT_WR)


def pass_both(
    options: argparse.Namespace,
    budget: Budget,
    log: int,
    sink: int,
    source: int,
    on_end: Callable[[], object],
) -> None:
    there = Link(0, sink, ">", options.delay, log, options.trickle, budget)
    back = Link(source, 1, "<", options.delay, log, 0, budget)
    there.start(on_end=on_end)
    back.start()
    back.ended.wait()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--log")
    parser.add_argument("--crowd", nargs=2)
    parser.add_argument("--trickle", type=int, default=0)
    parser.add_argument("--cut", type=int)
    parser.add_argument("--chatter")
    parser.add_argument("--login")
    parser.add_argument("--shell", action="store_true")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def wait_for_crowd(folder: str, count: int) -> None:
    open(os.path.join(folder, str(os.getpid())), "x").close()
    while len(os.listdir(folder)) < count:
        time.sleep(0.005)


class Link:
    """One direction."""

    def __init__(
        self,
        source: int,
        target: int,
        sign: str,
        delay: float,
        log: int,
        trickle: int,
        budget: Budget,
    ) -> None:
        self.budget = budget
        self.source, self.target, self.sign = source, target, sign
        self.delay, self.log, self.trickle = delay, log, trickle
        self.ended = threading.Event()
        self._under_way: queue.Queue[tuple[float, bytes]] = queue.Queue()

    def start(self, on_end: object = None) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._write, args=(on_end,), daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = os.read(self.source, 65536)
            except ConnectionResetError:
                data = b""
            now = time.monotonic()
            if data and self.log >= 0:
                os.write(self.log, f"{self.sign} {now} {len(data)}\n".encode())
            self._under_way.put((now + self.delay, data))

    def _write(self, on_end: object) -> None:
        while True:
            due, data = self._under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                break
            try:
                self._pass_on(data)
            except OSError:
                break
        if callable(on_end):
            on_end()
        self.ended.set()

    def _pass_on(self, data: bytes) -> None:
        while data:
            piece = self.budget.take(data[:TRICKLE_BYTES] if self.trickle > 0 else data)
            sent = os.write(self.target, piece) if piece else 0
            self.budget.check()
            data = data[sent:]
            if self.trickle > 0:
                self.trickle -= sent
                time.sleep(0.0005)


if __name__ == "__main__":
    sys.exit(main())
