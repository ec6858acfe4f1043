"""joblib and dask run on workers, as the documentation shows, in an environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import read
from services import script
from tools import ROOT, missing, run
from xdist_runs import installed

PRINTED = {
    ("calls", "with_joblib.py"): "45.0\n",
    ("calls", "with_dask.py"): "45.0\n22.5\n",
    ("slurm", "with_slurm.py"): "45.0\n45.0\n",
}
SRUN = """
[ "$1 $2" = "-n 2" ] && shift 2
for rank in 0 1; do SLURM_PROCID=$rank "$@" & done
wait
"""
PROGRAM = """
import joblib, operator
import execnet.joblib

def fails(number):
    return 1 // number

with execnet.Group(["popen"] * 2) as group, joblib.parallel_config("execnet", group=group):
    parallel = joblib.Parallel(return_as="generator")
    print(list(parallel(joblib.delayed(pow)(n, 2) for n in range(5))))
    try:
        joblib.Parallel()(joblib.delayed(operator.floordiv)(1, n) for n in (1, 0, 2))
    except ZeroDivisionError:
        print("no division")
    print([joblib.effective_n_jobs(n) for n in (-1, 1, 2, 9, -2, -9)])
    print(joblib.Parallel(n_jobs=1)(joblib.delayed(abs)(n) for n in (-1, 2)))
try:
    joblib.parallel_config("execnet")
except ValueError as exc:
    print(exc)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with-joblib")
    made = subprocess.run([sys.executable, "-m", "venv", folder], capture_output=True)
    if made.returncode:
        missing(f"no virtual environment can be made: {made.stdout!r} {made.stderr!r}")
    tools = installed(folder / "bin/python", "joblib>=1.3", "dask>=2024")
    if tools.returncode:
        missing(f"joblib and dask cannot be installed: {tools.stdout}")
    return folder / "bin/python"


@pytest.mark.parametrize(("page", "name"), PRINTED)
def test_the_examples_run(page: str, name: str, python: Path, tmp_path: Path) -> None:
    [block] = [b for b in read(ROOT / f"doc/{page}.rst") if b.caption == name]
    program = tmp_path / name
    program.write_text(block.text)
    script(tmp_path / "srun", SRUN)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run([python, str(program)], PYTHONPATH=str(ROOT), PATH=path)
    assert (done.stdout, done.stderr) == (PRINTED[page, name], "")


def test_joblib_gets_results_errors_and_numbers(python: Path) -> None:
    done = run([python, "-c", PROGRAM], PYTHONPATH=str(ROOT))
    assert done.stdout.splitlines() == [
        "[0, 1, 4, 9, 16]",
        "no division",
        "[2, 1, 2, 2, 1, 1]",
        "[1, 2]",
        'joblib.parallel_config("execnet", group=...) needs a group',
    ], done.stderr
