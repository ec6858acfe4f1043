"""``compress=yes`` beside ``ssh -C`` over a slow link: neither direction takes longer.

A real sshd, in a network namespace of its own; the queueing discipline tbf makes the rate of the
link.  What is sent is the source of this repository, in items of two sizes.  Each direction has the
link to itself.  It is for Linux and root, with the programs ip, tc, nft, ssh and sshd.  The exit
status is 1 if ``compress=yes`` takes longer than ``-C`` by more than it may.

The congestion control of TCP is cubic, unless told otherwise.  BBR, which some machines have, stops
for a fifth of a second every ten seconds, now in one way's turn and now in the other's.
"""

from __future__ import annotations

import argparse
import getpass
import itertools
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "testing" / "kit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "programs"))

from _sshd import CLIENT, HOST, SERVER
from slow_net import THERE, SlowNet

import execnet

ROOT = Path(__file__).resolve().parents[2]
PORT = 2222
START_S = 20.0
OURS, THEIRS = "compress=yes", "-C"
WAYS = {"plain": "", THEIRS: "//ssh_compression=yes", OURS: "//compress=yes"}
SIZES = 10_000, 1 << 20
WORKER = """
items = []
for item in channel:
    if item is None:
        channel.send(len(items))
        channel.receive()
        for item in items:
            channel.send(item)
        items = []
    else:
        items.append(item)
"""


class Trip(NamedTuple):
    """What it takes to send all items in one direction."""

    seconds: float
    carried: float  # bytes, with all headers


@contextmanager
def sshd_over_there(net: SlowNet, folder: Path) -> Iterator[Path]:
    """Run an sshd at the other end of a link; yield the config that leads to it."""
    for name in "host_key", "user_key":
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"[{THERE}]:{PORT} {(folder / 'host_key.pub').read_text()}")
    words = {"port": PORT, "folder": folder, "host": HOST, "user": getpass.getuser()}
    for name, text in (("sshd_config", SERVER), ("ssh_config", CLIENT)):
        text = text.format(**words).replace("127.0.0.1", THERE)
        (folder / name).write_text(text.replace("PidFile none", f"PidFile {folder}/pid"))
    os.makedirs("/run/sshd", 0o755, exist_ok=True)
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
    with socket.create_connection((THERE, net.port)) as login:
        line = f"exec {program} -D -f {folder}/sshd_config"
        login.sendall(line.encode().hex().encode() + b"\n")
        deadline = time.monotonic() + START_S
        while not (folder / "pid").exists():
            assert time.monotonic() < deadline, "the sshd did not start"
            time.sleep(0.05)
        try:
            yield folder / "ssh_config"
        finally:
            with suppress(ProcessLookupError):
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


def source(size: int) -> bytes:
    """Return so many bytes of this repository's files, in the order of their names, maybe twice."""
    paths = sorted([*ROOT.glob("execnet/**/*.py"), *ROOT.glob("testing/**/*.py")])
    data = b"".join(path.read_bytes() for path in paths)
    return (data * (size // len(data) + 1))[:size]


def carried() -> tuple[int, int]:
    """Return how many bytes have gone over the link so far, there and back."""
    words = Path("/proc/self/net/dev").read_text().partition("slow:")[2].split()
    return int(words[8]), int(words[0])


def measure(channel: execnet.Channel, items: list[bytes]) -> list[Trip]:
    """Return what it takes to send items to the worker, and back."""
    marks = [(time.monotonic(), carried())]
    for item in items:
        channel.send(item)
    channel.send(None)
    assert channel.receive() == len(items)
    marks.append((time.monotonic(), carried()))
    channel.send(None)
    assert [channel.receive() for _ in items] == items
    marks.append((time.monotonic(), carried()))
    return [
        Trip(end - began, after[way] - before[way])
        for way, ((began, before), (end, after)) in enumerate(itertools.pairwise(marks))
    ]


def tell(what: str, size: int, trips: dict[str, list[Trip]]) -> float:
    """Print what was measured of one direction; return the ratio that counts."""
    medians = {
        name: Trip(*map(statistics.median, zip(*trips[name], strict=True))) for name in trips
    }
    rates = [f"{name} {size / median.seconds / 1e6:.2f} MB/s" for name, median in medians.items()]
    ours, theirs = medians[OURS], medians[THEIRS]
    ratio = ours.seconds / theirs.seconds
    each = [a.seconds / b.seconds for a, b in zip(trips[OURS], trips[THEIRS], strict=True)]
    print(f"{what}: {', '.join(rates)}; {ratio:.2f} of the time of {THEIRS}")
    print(f"    {ours.carried / theirs.carried:.3f} of its bytes; its time in each round:", end="")
    print("", *[f"{one:.3f}" for one in each], flush=True)
    return ratio


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=float, default=8.0, help="each way (8)")
    parser.add_argument("--rate", default="10mbit", help="of the link (10mbit)")
    parser.add_argument("--delay", type=float, default=0.01, help="each way, in s (0.01)")
    parser.add_argument("--congestion", default="cubic", help="control of TCP (cubic)")
    parser.add_argument("--rounds", type=int, default=3, help="whose medians count (3)")
    parser.add_argument("--most", type=float, default=1.03, help="times what -C takes (1.03)")
    options = parser.parse_args()
    if sys.platform != "linux" or os.getuid():
        parser.error("it makes network namespaces, which takes Linux and root")
    data, held = source(int(options.mb * 1e6)), True
    with (
        closing(SlowNet(options.delay, options.rate, 0, options.congestion)) as net,
        tempfile.TemporaryDirectory() as folder,
        sshd_over_there(net, Path(folder)) as config,
        execnet.Group() as group,
    ):
        spec = f"ssh={HOST}//ssh_config={config}//python={sys.executable}"
        ways = {
            name: group.makegateway(spec + more).remote_exec(WORKER) for name, more in WAYS.items()
        }
        for size in SIZES:
            items = [data[start : start + size] for start in range(0, len(data), size)]
            took: dict[str, list[list[Trip]]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, channel in ways.items():
                    took[name].append(measure(channel, items))
            for number, way in enumerate(("to the worker", "from the worker")):
                trips = {name: [both[number] for both in took[name]] for name in ways}
                held &= tell(f"{size} bytes {way}", len(data), trips) <= options.most
        for channel in ways.values():
            channel.close()
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
