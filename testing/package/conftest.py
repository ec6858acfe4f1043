"""What the tests of the released pytest-xdist share: an environment with it, and projects."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xdist_project as projects
from pages import stand_in
from tools import missing
from xdist_runs import REQUIREMENTS, Environment, Finished, copy_of_checkout, installed


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, which all workers have if pytest-xdist runs us."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[bool]:
    """Hold the lock of what is made once in a run; tells whether it is there already."""
    import fcntl  # which Windows has not, nor are these tests for it

    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path.exists()


def made_once(path: Path, run: Callable[[], Finished]) -> Finished:
    """Return what a run left, of which there is one for all workers."""
    with one_at_a_time(path) as is_there:
        if not is_there:
            text = json.dumps(dataclasses.asdict(run()))
            path.write_text(text)
    return Finished(**json.loads(path.read_text()))


@pytest.fixture(scope="session")
def xdist(common: Path) -> Environment:
    """Make the one environment of all tests; a skip, or in CI a failure, where it cannot be."""
    folder = common / "xdist"
    python = folder / "venv" / "bin" / "python"
    folder.mkdir(exist_ok=True)
    with one_at_a_time(folder / "made") as is_there:
        if not is_there:
            _make_environment(folder, python)
            (folder / "made").touch()
    return Environment(python)


def _make_environment(folder: Path, python: Path) -> None:
    made = subprocess.run([sys.executable, "-m", "venv", folder / "venv"], capture_output=True)
    if made.returncode:
        missing(f"no virtual environment can be made: {made.stdout!r} {made.stderr!r}")
    tools = installed(python, *REQUIREMENTS)
    if tools.returncode:
        missing(f"pytest-xdist cannot be installed: {tools.stdout}")
    ours = installed(python, str(copy_of_checkout(folder / "checkout")))
    assert ours.returncode == 0, ours.stdout
    [base] = (folder / "venv").glob("lib/*/site-packages/execnet/gateway_base.py")
    assert base.read_bytes() == (folder / "checkout/execnet/gateway_base.py").read_bytes()


@pytest.fixture(scope="session")
def big_project(common: Path) -> Path:
    folder = common / "big"
    folder.mkdir(exist_ok=True)
    with one_at_a_time(folder / "project") as is_there:
        if not is_there:
            projects.write_big_project(folder / "writing").rename(folder / "project")
    return folder / "project"


@pytest.fixture(scope="session")
def baseline(xdist: Environment, big_project: Path, common: Path) -> Finished:
    """The results of the big project without xdist."""
    return made_once(common / "baseline.json", lambda: xdist.run(big_project))


@pytest.fixture(scope="session")
def spread(xdist: Environment, big_project: Path, common: Path) -> Callable[[str], Finished]:
    """Run the big project on four workers, once for each mode."""

    def spread(mode: str) -> Finished:
        words = ("-n", "4", "--dist", mode)
        return made_once(common / f"{mode}.json", lambda: xdist.run(big_project, *words))

    return spread


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], Path]:
    """Write a project that has one file of tests."""
    return lambda text: projects.write_project(tmp_path / "project", {"test_it.py": text})


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, first in the PATH, of the programs that pages run and no machine has to have."""
    folder = tmp_path_factory.mktemp("programs")
    stand_in(folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
