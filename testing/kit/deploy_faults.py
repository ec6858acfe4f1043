"""Kills what makes an environment at seeded moments: half made ones are never used.

``python testing/kit/deploy_faults.py --count 50`` makes that many rounds; a seed begins
elsewhere.  As often as ``--pairs`` says, two coordinators make the same one at once.
Start at ``one_round`` and ``one_pair``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
from processes import processes_with
from tools import BOUND_S, SOURCE, wait_until
from wheels import Place, place_with_wheels, use_no_index, version_of

from execnet import Group

TOKEN = "EXECNET_TEST_DEPLOY_TOKEN"
LONGEST_S = 1.2  # what making takes on a machine that has nothing else to do
VICTIMS = "coordinator", "worker", "installer"
LADDERS = ["unpack"], ["venv --without-pip"]

# Makes an environment; says when it begins, and the process ids of itself and of its worker.
COORDINATOR = """
import os, sys
import pytest
from pathlib import Path
from wheels import Place, use_no_index
from execnet import Group

use_no_index(pytest.MonkeyPatch(), [sys.argv[2]])
place = Place.__new__(Place)
place.root, place.wheels = Path(sys.argv[1], "cache"), Path(sys.argv[1], "wheels")
group = Group()
gateway = group.makegateway("popen")
print(os.getpid(), gateway._rinfo().pid, flush=True)
place.create(gateway)
print("made", flush=True)
group.terminate(timeout=5)
"""


def one_round(seed: int, folder: Path, ladder: list[str]) -> str:
    """Kill one process at one moment, then make the environment; return what was done.

    Fails if something half made is used, or anything is left running.
    """
    chance = random.Random(seed)
    place = place_with_wheels(folder)
    victim, delay_s = chance.choice(VICTIMS), chance.uniform(0, LONGEST_S)
    mark = uuid.uuid4().hex
    with coordinator_of(folder, ladder, mark) as process:
        assert process.stdout is not None
        coordinator, worker = map(int, process.stdout.readline().split())
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            killed = _kill(victim, coordinator, worker, mark)
        else:
            killed = "nothing: it was made"
        process.stdout.read()
    wait_until(lambda: not processes_with(f"{TOKEN}={mark}"), BOUND_S)
    _make_again(place, ladder)
    return f"{victim} after {delay_s:.2f} s, {killed}"


def coordinator_of(folder: Path, ladder: list[str], mark: str) -> subprocess.Popen[str]:
    """Start a process that makes the environment; it and its children have a mark."""
    command = [sys.executable, "-c", COORDINATOR, str(folder), ladder[0]]
    paths = [str(Path(__file__).parent), str(SOURCE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), TOKEN: mark}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )


def one_pair(folder: Path, ladder: list[str]) -> str:
    """Have two coordinators make the same environment at once; fails unless they make one."""
    place = place_with_wheels(folder)
    mark = uuid.uuid4().hex
    with coordinator_of(folder, ladder, mark) as one, coordinator_of(folder, ladder, mark) as two:
        said = [process.communicate()[0] for process in (one, two)]
    assert [text.split()[-1:] for text in said] == [["made"], ["made"]], said
    assert [path.name for path in place.root.glob("venvs/*/*.done")] == ["1.done"]
    wait_until(lambda: not processes_with(f"{TOKEN}={mark}"), BOUND_S)
    return "two coordinators, one environment"


def _kill(victim: str, coordinator: int, worker: int, mark: str) -> str:
    pids = {"coordinator": [coordinator], "worker": [worker]}.get(victim)
    if pids is None:
        pids = [p for p in processes_with(f"{TOKEN}={mark}") if p not in (coordinator, worker)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return f"{len(pids)} killed"


def _make_again(place: Place, ladder: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, Group() as group:
        use_no_index(patch, ladder)
        made = place.create(group.makegateway())
        assert (version_of(made, "sid"), version_of(made, "tom")) == ("1.0", "2.0")
        for marker in place.root.glob("venvs/*/*.done"):
            python = marker.with_suffix("") / "bin" / "python"
            subprocess.run([python, "-c", "import sid, tom"], check=True)


def main() -> int:
    """Make many rounds; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.count)
    rounds: list[tuple[str, Callable[[Path, list[str]], str]]]
    rounds = [(f"seed {seed}", partial(one_round, seed)) for seed in seeds]
    rounds += [(f"pair {number}", one_pair) for number in range(options.pairs)]
    bad = 0
    for number, (name, round) in enumerate(rounds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = round(Path(folder), LADDERS[number % len(LADDERS)])
            except (Exception, pytest.fail.Exception) as exc:
                bad += 1
                done = f"BAD: {exc}"
        print(f"{name}: {done}", flush=True)
    print(f"{options.count} kills, {options.pairs} pairs: {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
