"""A coordinator with 1,000 gateways over sockets: what each takes, a broadcast, and their end.

Prints memory, threads and descriptors for each gateway, how long a broadcast takes and how much
memory, and how long ``terminate(5)`` takes while a tenth of the workers does not end by itself.
The exit status is 1 if one of them answers wrongly, the item was copied more than once, a gateway
has more than two descriptors, those over sockets do not share their threads, or the end takes more
than a second longer than promised.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import execnet

AT_ONCE = 100  # gateways that are started by one call
LATE_S = 1.0  # how much longer it may take
THREADS = 64  # of all gateways over sockets, at most
COPIES = 1.5  # of the item, at most: one, and what else takes memory meanwhile
ECHO = "for item in channel: channel.send(len(item))"
STUCK = "import time; channel.send(None); time.sleep(300)"


def in_status(name: str) -> int:
    """Return a number from this process's status, such as KiB of ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def private_kib() -> int:
    """Return the memory of this process that is its own, in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def held() -> tuple[int, int, int]:
    """Return how many KiB, threads and descriptors this process has."""
    gc.collect()
    return private_kib(), in_status("Threads"), len(os.listdir("/proc/self/fd"))


def serve(path: str) -> None:
    """Fork a worker for each client at a Unix socket; for ever.

    ``execnet/script/socketserver.py`` would start interpreters, and they take most of the time.
    """
    import execnet.gateway_base  # noqa: F401 - its modules are then shared by all workers

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(AT_ONCE)
        print("listening", flush=True)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                os.dup2(client.fileno(), 0)
                os.dup2(client.fileno(), 1)
                client.close()
                line = sys.stdin.readline()
                exec(eval(line), {"__name__": "__main__"})
                os._exit(0)
            client.close()


@contextmanager
def server() -> Iterator[str]:
    """Have a server for as long as the block lasts; return the spec of a worker that it forks."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        command = [sys.executable, __file__, "--serve", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                yield f"socket=unix:{path}"
            finally:
                process.terminate()


def start(group: execnet.Group, count: int, spec: str) -> None:
    """Start so many gateways."""
    while len(group) < count:
        group.makegateways([spec] * min(AT_ONCE, count - len(group)))


def broadcast(channels: execnet.MultiChannel, mib: float) -> tuple[int, float, float]:
    """Send each an item of so many MiB; return wrong answers, seconds, and MiB beside the item."""
    item = [os.urandom(512).hex() for _ in range(int(1024 * mib))]
    channels.send_each(item[:1])  # what it needs is imported then
    channels.receive_each()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = in_status("VmHWM"), time.monotonic()
    channels.send_each(item)
    took_s, grew = time.monotonic() - began, in_status("VmHWM") - before
    answers = channels.receive_each()
    return sum(answer != len(item) for answer in answers), took_s, grew / 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks many", description=__doc__)
    parser.add_argument("--gateways", type=int, default=1000, help="how many (1,000)")
    parser.add_argument("--spec", default="socket", help="socket (default), popen, ...")
    parser.add_argument("--mib", type=float, default=1.0, help="of the broadcast (1)")
    parser.add_argument("--timeout", type=float, default=5.0, help="of the end, in seconds (5)")
    parser.add_argument("--serve", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    warnings.simplefilter("ignore", ResourceWarning)  # of workers that are killed, as expected
    with server() if options.spec == "socket" else nullcontext(options.spec) as spec:
        return run(options.gateways, spec, options.mib, options.timeout)


def run(count: int, spec: str, mib: float, timeout_s: float) -> int:
    """Do all of it; return the exit status."""
    with execnet.Group() as group:
        start(group, 2, spec)
        group.remote_exec(ECHO).close()  # what each needs once is there
    group = execnet.Group()
    before, began = held(), time.monotonic()
    start(group, count, spec)
    took_s = time.monotonic() - began
    kib, threads, fds = (now - then for now, then in zip(held(), before, strict=True))
    print(
        f"{count} gateways: {kib / count:.1f} KiB, {threads / count:.3f} threads and"
        f" {fds / count:.2f} descriptors each ({threads} threads), started in {took_s:.1f} s"
    )
    channels = group.remote_exec(ECHO)
    wrong, took_s, grew = broadcast(channels, mib)
    print(f"a broadcast of {mib:g} MiB: {took_s:.2f} s, {grew:.1f} MiB of memory, {wrong} wrong")
    stuck = [gateway.remote_exec(STUCK) for gateway in list(group)[::10]]
    wrong += sum(channel.receive() is not None for channel in stuck)
    began = time.monotonic()
    group.terminate(timeout_s)
    end_s = time.monotonic() - began
    print(f"terminate({timeout_s:g}) with {len(stuck)} that are stuck: {end_s:.2f} s")
    is_late = end_s > timeout_s + LATE_S
    are_many = threads > THREADS and spec.startswith("socket=")
    is_large = grew > COPIES * mib + 1 or fds > 2 * count + 8 or are_many
    return int(wrong > 0 or is_large or is_late)


if __name__ == "__main__":
    sys.exit(main())
