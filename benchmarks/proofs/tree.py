"""A tree beside a flat group, over slow links: the start of workers, and a folder sent to all.

Each hop is a network namespace, as is this program, with a link of its own to a relay that makes
the delay; the queueing discipline tbf makes the rate.  There is no link between a hop and its
workers.  It is for Linux and root, with the programs ip and tc.  The exit status is 1 if the tree
is not faster by as much as it has to be, or sends more copies over this program's link.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "testing" / "kit"))

from star_net import StarNet

import execnet

FILE_BYTES = 20_000  # at most
FOLDERS = 20
END_S = 30.0


def write_tree(folder: Path, size: int) -> int:
    """Write files of so many bytes together, which nothing makes smaller; return the bytes."""
    draw, number, left = random.Random(0), 0, size
    while left > 0:
        path = folder / f"package{number % FOLDERS}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.randbytes(min(left, draw.randrange(100, FILE_BYTES))))
        left -= path.stat().st_size
        number += 1
    return size


def names_in(folder: Path) -> dict[str, int]:
    """Return the sizes of the files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def measure(net: StarNet, specs: list[str], fanout: int, source: Path, size: int) -> float:
    """Start workers and send a folder to all; return how long that took, and print the rest."""
    with tempfile.TemporaryDirectory() as there, execnet.Group() as group:
        began, sent, busy = time.monotonic(), net.sent_bytes(), time.process_time()
        gateways = group.tree(specs, fanout)
        started, start_sent = time.monotonic(), net.sent_bytes()
        rsync = execnet.RSync(source, verbose=False)
        for gateway in gateways:
            rsync.add_target(gateway, f"{there}/{gateway.id}")
        rsync.send()
        ended, all_sent = time.monotonic(), net.sent_bytes()
        expected = names_in(source)
        assert all(names_in(Path(there) / gateway.id) == expected for gateway in gateways)
        kind = "flat" if fanout >= len(specs) else "tree"
        print(
            f"{kind}: {len(specs)} workers in {started - began:.1f} s with "
            f"{(start_sent - sent) / 1e6:.2f} MB, the folder in {ended - started:.1f} s with "
            f"{(all_sent - start_sent) / 1e6:.1f} MB; {(all_sent - sent) / size:.2f} copies, "
            f"{time.process_time() - busy:.1f} s of this program's processor time",
            flush=True,
        )
        copies.append((all_sent - sent) / size)
        group.terminate(END_S)
        return ended - began


copies: list[float] = []  # of the folder, in what each group sent over this program's link


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hops", type=int, default=8, help="(8)")
    parser.add_argument("--each", type=int, default=8, help="workers behind each hop (8)")
    parser.add_argument("--mb", type=float, default=5.0, help="of the folder (5)")
    parser.add_argument("--delay", type=float, default=0.02, help="to a hop, in s (0.02)")
    parser.add_argument("--rate", default="20mbit", help="of each link (20mbit)")
    parser.add_argument("--times", type=float, default=4.0, help="that the tree is faster (4)")
    parser.add_argument("--copies", type=float, help="over this program's link (hops + 1)")
    parser.add_argument("--tree-only", action="store_true", help="do not measure the flat group")
    options = parser.parse_args()
    if sys.platform != "linux" or os.getuid():
        parser.error("it makes network namespaces, which takes Linux and root")
    warnings.simplefilter("ignore", execnet.SecurityWarning)
    net = StarNet(options.hops, options.delay, options.rate)
    try:
        hosts = [f"socket={address}//authentication=none" for address in net.addresses]
        specs = hosts + [host for host in hosts for _ in range(options.each)]
        with tempfile.TemporaryDirectory() as folder:
            size = write_tree(Path(folder), int(options.mb * 1e6))
            tree_s = measure(net, specs, options.hops, Path(folder), size)
            held = copies[0] <= (options.copies or options.hops + 1)
            if not options.tree_only:
                flat_s = measure(net, specs, len(specs), Path(folder), size)
                print(f"the tree is {flat_s / tree_s:.2f} times as fast")
                held &= flat_s / tree_s >= options.times
        return int(not held)
    finally:
        net.close()


if __name__ == "__main__":
    sys.exit(main())
