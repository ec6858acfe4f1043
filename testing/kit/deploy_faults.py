"""Kills what makes an environment at seeded moments: half made ones are never used.

``python testing/kit/deploy_faults.py --count 50`` makes that many rounds; ``--seed`` begins
elsewhere.  Start at ``one_round``.
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
    command = [sys.executable, "-c", COORDINATOR, str(folder), ladder[0]]
    paths = [str(Path(__file__).parent), str(SOURCE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), TOKEN: mark}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
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
    options = parser.parse_args()
    bad = 0
    for seed in range(options.seed, options.seed + options.count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = one_round(seed, Path(folder), LADDERS[seed % len(LADDERS)])
            except (Exception, pytest.fail.Exception) as exc:
                bad += 1
                done = f"BAD: {exc}"
        print(f"seed {seed}: {done}", flush=True)
    print(f"{options.count} kills: {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
