"""Seeded interrupts at random moments, in programs of their own: nothing is lost or stuck.

Runs ``testing/kit/interrupted_program.py`` in all its ways and prints how many interrupts each
took; the exit status is 1 if one of them failed or did not end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "testing" / "kit" / "interrupted_program.py"
# What it does (after "@" through what), and its share of the interrupts.
WAYS = {
    "size=0": 8, "ints": 8, "stream": 8, "timeout": 8, "others": 4, "size=3000": 8,
    "size=300000": 1, "window": 8, "window=40": 8, "window=200000": 1, "ints@socket": 8,
    "window=40@socket": 8, "ints@via": 8, "window=40@via": 8, "size=300000@socket": 1,
    "size=300000@via": 1, "buffer=10": 8, "buffer=300000": 1, "buffer=10@socket": 8,
}  # fmt: skip
LIMIT_S = 900  # for one of them


def run_way(python: list[str], way: str, count: int, seed: int) -> bool:
    """Take so many interrupts in one way; whether nothing went wrong."""
    command = [*python, str(PROGRAM), way, str(count), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{way}: did not end", flush=True)
        return False
    said = done.stdout.strip() if done.returncode == 0 else done.stderr[-2000:]
    print(f"{way}: {said}", flush=True)
    return done.returncode == 0


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20000, help="how many in all (20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (1)")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="(this one)")
    options = parser.parse_args()
    unit = options.count / sum(WAYS.values())
    counts = {way: max(1, round(unit * share)) for way, share in WAYS.items()}
    well = [run_way(options.python, way, count, options.seed) for way, count in counts.items()]
    print(f"{sum(counts.values())} interrupts, {well.count(False)} of {len(well)} ways failed")
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
