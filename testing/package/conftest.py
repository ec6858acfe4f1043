"""What the tests of the released pytest-xdist share: an environment with it, and projects."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import xdist_project as projects
from tools import missing
from xdist_runs import REQUIREMENTS, Environment, Finished, copy_of_checkout, installed


@pytest.fixture(scope="session")
def xdist(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Make the one environment of all tests; a skip, or in CI a failure, where it cannot be."""
    folder = tmp_path_factory.mktemp("xdist")
    python = folder / "venv" / "bin" / "python"
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
    return Environment(python)


@pytest.fixture(scope="session")
def big_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return projects.write_big_project(tmp_path_factory.mktemp("big") / "project")


@pytest.fixture(scope="session")
def baseline(xdist: Environment, big_project: Path) -> Finished:
    """The results of the big project without xdist."""
    return xdist.run(big_project)


@pytest.fixture(scope="session")
def spread(xdist: Environment, big_project: Path) -> Callable[[str], Finished]:
    """Run the big project on four workers, once for each mode."""
    return functools.cache(lambda mode: xdist.run(big_project, "-n", "4", "--dist", mode))


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], Path]:
    """Write a project that has one file of tests."""
    return lambda text: projects.write_project(tmp_path / "project", {"test_it.py": text})
