"""Hosts around one, each a network namespace with a slow link, on Linux and as root.

This process becomes the host in the middle. Every other one runs a socket server. A relay between
their TUN devices makes the delay, and the queueing discipline tbf the rate, which is that of what a
host sends. The file is also the relay. Start at ``StarNet``.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from slow_net import CLONE_NEWNET, IFF_NO_PI, IFF_TUN, TUNSETIFF, _libc, _run

HERE, THERE, PORT = "10.77.0.1", "10.77.{}.1", 8888
PACKET_BYTES = 65536
HOST = 18  # where in a packet the byte of its target's address is that tells hosts apart


def _tun(address: str, rate: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", b"slow", IFF_TUN | IFF_NO_PI))
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{address}/16", "dev", "slow")
    _run("ip", "link", "set", "slow", "up", "txqueuelen", "1000")
    limits = ["burst", "64k", "latency", "200ms"]
    _run("tc", "qdisc", "add", "dev", "slow", "root", "tbf", "rate", rate, *limits)
    return fd


class StarNet:
    """The network; from now on this process, which has one thread, is the host in the middle.

    delay_s: from it to any host, and back.  rate: as tc writes it, such as 20mbit.  ``addresses``
    are those of the servers.  Raises OSError or ``CalledProcessError`` where the system does not
    let it.
    """

    def __init__(self, hosts: int, delay_s: float, rate: str) -> None:
        self.addresses: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        _libc("unshare", CLONE_NEWNET)
        with open("/proc/self/ns/net") as here:
            fds = [_tun(HERE, rate)]
            for number in range(1, hosts + 1):
                _libc("unshare", CLONE_NEWNET)
                fds.append(_tun(THERE.format(number), rate))
                self._serve(f"{THERE.format(number)}:{PORT}")
            _libc("setns", here.fileno(), CLONE_NEWNET)
        words = [sys.executable, str(Path(__file__)), str(delay_s), *map(str, fds)]
        self._processes.append(subprocess.Popen(words, pass_fds=fds, text=True))
        for fd in fds:
            os.close(fd)

    def _serve(self, address: str) -> None:
        words = [sys.executable, "-m", "execnet.script.socketserver", "--no-authentication"]
        server = subprocess.Popen([*words, address], stdout=subprocess.PIPE, text=True)
        self._processes.append(server)
        assert server.stdout is not None
        while "listening on" not in (line := server.stdout.readline()):
            if not line:
                raise OSError(f"no server at {address}: exit status {server.wait()}")
        self.addresses.append(address)

    def sent_bytes(self) -> int:
        """Return how many bytes this host has sent."""
        lines = Path("/proc/self/net/dev").read_text().splitlines()
        return next(int(line.split()[9]) for line in lines if line.split()[0] == "slow:")

    def close(self) -> None:
        """End the programs; the process stays in its namespace."""
        for process in self._processes:
            process.terminate()
            process.wait()


def relay(delay_s: float, fds: list[int]) -> None:
    """Pass packets on to the host that they are for, late."""
    under_way: list[tuple[float, int, bytes]] = []
    number = 0
    poll = select.poll()
    for fd in fds:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    while True:
        left_s = under_way[0][0] - time.monotonic() if under_way else None
        for fd, _ in poll.poll(None if left_s is None else max(0.0, 1000 * left_s)):
            with suppress(BlockingIOError):
                for _ in range(64):
                    number += 1
                    packet = os.read(fd, PACKET_BYTES)
                    heapq.heappush(under_way, (time.monotonic() + delay_s, number, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            packet = heapq.heappop(under_way)[2]
            if packet[0] >> 4 == 4 and packet[HOST] < len(fds):
                with suppress(BlockingIOError):  # its queue is full, so the packet is lost
                    os.write(fds[packet[HOST]], packet)


if __name__ == "__main__":
    relay(float(sys.argv[1]), list(map(int, sys.argv[2:])))
