"""A connection that is cut again and again while items go both ways: nothing is lost or doubled.

The command of ``ssh`` runs here behind a relay that ends after a random number of bytes, in each
connection anew, also while that is being made.  Half of the items go to code that receives, half
to callbacks.  Before that, round trips over such a relay that holds bytes back are measured.  With
``--network``, all of it goes by TCP between two network namespaces, over a link that is slow and
loses packets; that is for Linux and root, with the programs ip, tc and nft.  The exit status is 1
if an item was another one, something stayed, a round trip over a slow link cost more than it
may, or there were fewer cuts than asked for.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "testing" / "kit"))

from cut_links import CutLink, exchange, supervisor_of
from processes import is_gone
from slow_net import SlowNet

import execnet

BOOT_BYTES = 200_000  # so many pass before the first cut, as a start is not what is shown
ITEM_SIZES = 10, 1000, 30_000, 200_000
RESUME_S = 600
END_S = 20.0


def sizes_of(mib: float, draw: random.Random) -> list[int]:
    """Return the sizes of items that make so many MiB each way, over two channels."""
    sizes, left = [], int(mib * (1 << 20)) // 2
    while left > 0:
        sizes.append(draw.choice(ITEM_SIZES))
        left -= sizes[-1]
    return sizes


def run(options: argparse.Namespace, folder: Path, address: str) -> bool:
    """Do it once; whether it held."""
    draw = random.Random(options.seed)
    most = int(2 * options.mib * (1 << 20) * 2 / max(1, options.cuts))
    link = CutLink(folder, address)
    link.set_cuts([BOOT_BYTES, *(draw.randrange(1, max(2, most)) for _ in range(options.cuts - 1))])
    states: list[str] = []
    began = time.monotonic()
    with execnet.Group() as group:
        group.on_state(lambda gateway, state: states.append(state))
        gateway = group.makegateway(f"ssh=host//python={options.python}//resume={RESUME_S}")
        pid = gateway._rinfo().pid
        processes = pid, supervisor_of(pid)
        try:
            exchange(gateway, sizes_of(options.mib, draw), RESUME_S)
        except (AssertionError, OSError, EOFError) as exc:
            print(f"seed {options.seed}, after {link.runs()} connections: {exc!r:.1000}")
            return False
        cuts = min(options.cuts, link.runs() - 1)  # the end may take a login as well
    deadline = time.monotonic() + END_S
    while not all(map(is_gone, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    stays = [pid for pid in processes if not is_gone(pid)]
    print(
        f"{cuts} of {options.cuts} cuts, {options.mib:g} MiB each way, in "
        f"{time.monotonic() - began:.0f} s: resumed {states.count('resumed')} times, nothing lost "
        f"or doubled, {len(stays)} processes stayed"
    )
    return not stays and cuts == options.cuts


def compare(options: argparse.Namespace, folder: Path, address: str) -> bool:
    """Measure round trips over a slow link, with and without ``resume=``; whether that holds."""
    link = CutLink(folder, address)
    held = True
    for delay_s in (options.delay,) if address else (0.0, options.delay):
        link.set_delay(0.0 if address else delay_s)
        with execnet.Group() as group:
            spec = f"ssh=host//python={options.python}"
            gateways = group.makegateways([spec, f"{spec}//resume={RESUME_S}"])
            channels = [one.remote_exec("for x in channel: channel.send(x)") for one in gateways]
            tries = options.trips if delay_s else 10 * options.trips
            trips: list[list[float]] = [[], []]
            for number in range(2 * tries):  # by turns
                began = time.perf_counter()
                channels[number % 2].send(number)
                assert channels[number % 2].receive(END_S) == number
                trips[number % 2].append(time.perf_counter() - began)
        without, with_it = (1000 * statistics.median(one) for one in trips)
        more = 100 * (with_it / without - 1)
        print(
            f"a round trip over a link of {1000 * delay_s:g} ms each way: {without:.3f} ms, with "
            f"resume= {with_it:.3f} ms, {more:+.1f} %"
        )
        held &= not delay_s or more <= options.may_cost
    return held


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=1000, help="(1000)")
    parser.add_argument("--trips", type=int, default=100, help="round trips to measure (100)")
    parser.add_argument("--delay", type=float, default=0.01, help="of the slow link, in s (0.01)")
    parser.add_argument("--network", action="store_true", help="use network namespaces")
    parser.add_argument("--rate", default="100mbit", help="of that network (100mbit)")
    parser.add_argument(
        "--loss", type=float, default=0.1, metavar="PERCENT", help="of its packets (0.1)"
    )
    parser.add_argument("--mib", type=float, default=64.0, help="each way (64)")
    parser.add_argument(
        "--may-cost", type=float, default=5.0, metavar="PERCENT", help="of a slow round trip (5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--python", default=sys.executable, help="of the worker (this one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        network = SlowNet(options.delay, options.rate, options.loss) if options.network else None
        address = network.address if network is not None else ""
        try:
            held = compare(options, Path(folder), address)
            return int(not (run(options, Path(folder), address) and held))
        finally:
            if network is not None:
                network.close()


if __name__ == "__main__":
    sys.exit(main())
