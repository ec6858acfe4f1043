"""A bad network between two hosts that are network namespaces, on Linux and as root.

Delay comes from a relay between two TUN devices, the rate from the queueing discipline tbf, and
loss from nftables, as not every kernel has netem. This process becomes the one host; the other one
takes logins: its server runs what a line says, with the connection as stdin and stdout. The file is
also the programs that it starts. Start at ``SlowNet``.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
HERE, THERE = "10.77.0.1", "10.77.0.2"
PACKET_BYTES = 65536
LOSS = """
table ip slow {{
  chain lossy {{
    type filter hook input priority 0;
    numgen random mod 10000 < {share} drop
  }}
}}
"""


def _libc(call: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _run(*words: str, said: str | None = None) -> None:
    subprocess.run(words, input=said, text=True, check=True)


def _tun(address: str, peer: str, rate: str, loss: float, congestion: str) -> int:
    """Make the namespace's device and what is bad about it; return its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", b"slow", IFF_TUN | IFF_NO_PI))
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", address, "peer", peer, "dev", "slow")
    _run("ip", "link", "set", "slow", "up")
    if congestion:  # by the route, as a namespace may not choose among all of them
        route = [peer, "dev", "slow", "src", address, "congctl", congestion]
        _run("ip", "route", "replace", *route)
    limits = ["burst", "64k", "latency", "200ms"]
    _run("tc", "qdisc", "add", "dev", "slow", "root", "tbf", "rate", rate, *limits)
    _run("nft", "-f", "-", said=LOSS.format(share=round(100 * loss)))
    return fd


class SlowNet:
    """The network; from now on this process, which has one thread, is one of its hosts.

    delay_s: each way.  rate: as tc writes it, such as 100mbit.  loss: percent of the packets, each
    way.  congestion: TCP's congestion control, such as cubic; the default is that of the machine.
    Raises OSError or ``CalledProcessError`` where the system does not let it.
    """

    def __init__(self, delay_s: float, rate: str, loss: float, congestion: str = "") -> None:
        _libc("unshare", CLONE_NEWNET)
        with open("/proc/self/ns/net") as here:
            fds = [_tun(HERE, THERE, rate, loss, congestion)]
            _libc("unshare", CLONE_NEWNET)
            fds.append(_tun(THERE, HERE, rate, loss, congestion))
            server = socket.create_server((THERE, 0))
            self.port: int = server.getsockname()[1]
            self._processes = [self._start("serve", str(server.fileno()), [server.fileno()])]
            server.close()
            _libc("setns", here.fileno(), CLONE_NEWNET)
        self._processes.append(self._start("relay", str(delay_s), fds))
        for fd in fds:
            os.close(fd)

    def _start(self, what: str, argument: str, fds: list[int]) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(Path(__file__)), what, argument, *map(str, fds)]
        return subprocess.Popen(words, pass_fds=fds)

    @property
    def address(self) -> str:
        """Where the other host takes logins, for ``relay.py --login``."""
        return f"{THERE}:{self.port}"

    def close(self) -> None:
        """End both programs; the process stays in its namespace."""
        for process in self._processes:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- the programs


def relay(delay_s: float, fds: list[int]) -> None:
    """Pass packets from each device to the other one, late."""
    under_way: list[tuple[float, int, int, bytes]] = []
    number = 0
    poll = select.poll()
    for fd in fds:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    while True:
        left_s = under_way[0][0] - time.monotonic() if under_way else None
        for fd, _ in poll.poll(None if left_s is None else max(0.0, 1000 * left_s)):
            number += 1
            packet = os.read(fd, PACKET_BYTES)
            target = fds[0] if fd == fds[1] else fds[1]
            heapq.heappush(under_way, (time.monotonic() + delay_s, number, target, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(under_way)
            with suppress(BlockingIOError):  # its queue is full, so the packet is lost
                os.write(target, packet)


def serve(fd: int) -> None:
    """Take logins: run the first line of each with a shell, over its connection."""
    import threading

    def login(conn: socket.socket) -> None:
        with conn:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = b""
            while not line.endswith(b"\n"):
                byte = conn.recv(1)
                if not byte:
                    return
                line += byte
            command = ["/bin/sh", "-c", bytes.fromhex(line.decode()).decode()]
            child = subprocess.Popen(command, stdin=conn, stdout=conn)
        child.wait()

    with socket.socket(fileno=fd) as server:
        while True:
            conn = server.accept()[0]
            threading.Thread(target=login, args=(conn,), daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        relay(float(sys.argv[2]), list(map(int, sys.argv[3:])))
    else:
        serve(int(sys.argv[2]))
