"""pytest-xdist end to end: 2,000 empty tests with two workers.

Arguments: ``run`` (the whole run, in seconds), or ``share`` (of the time on a processor of
pytest's process and its workers, what execnet's functions took of it, with what they call of the
standard library; in percent).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import _share
from _measure import Result, Scaled, main

import execnet

TESTS = 2_000
FILES = 20
SAMPLED_RUNS = 3  # of a thousand samples each


def make_tests(folder: Path, count: int) -> None:
    files = min(FILES, count)
    for file in range(files):
        numbers = range(file, count, files)
        tests = (f"def test_{number}():\n    pass\n" for number in numbers)
        (folder / f"test_file_{file}.py").write_text("\n".join(tests))


def environment() -> dict[str, str]:
    """Return the environment of pytest, where an execnet of the tree comes before all others."""
    tree = os.environ.get("PYTHONPATH")
    if tree and not Path(execnet.__file__).is_relative_to(tree):
        raise ImportError(f"{execnet.__file__} is not below {tree}")
    return dict(os.environ)


def run(variables: dict[str, str]) -> float:
    """Return the seconds that a run took; raise when it failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    started = perf_counter()
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
    taken = perf_counter() - started
    if done.returncode or " passed in " not in done.stdout:
        raise RuntimeError(done.stdout[-500:].replace("\n", " "))
    return taken


def share(package: Path) -> float:
    variables = environment()
    folder = _share.sampled(variables)
    run(variables)
    return _share.percent(folder, package)


def measure(scaled: Scaled, what: str) -> Result:
    make_tests(Path.cwd(), scaled(TESTS))
    if what == "run":
        return {"samples": [run(environment())]}
    package = Path(execnet.__file__).parent
    return {"samples": [share(package) for _ in range(scaled(SAMPLED_RUNS))]}


if __name__ == "__main__":
    main(measure)
