"""The released pytest-xdist with workers of ``popen//forkserver``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import xdist_project as projects
from xdist_runs import Environment, Finished, differences

pytestmark = [
    pytest.mark.timeout(300),  # the first test also waits for the installation
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
]


def test_results_equal_those_of_a_run_without_xdist(
    xdist: Environment, big_project: Path, baseline: Finished
) -> None:
    run = xdist.run(big_project, "-d", "--tx", "4*popen//forkserver")
    expected = baseline.results()
    assert len(expected) >= 500, baseline.output
    assert run.workers == {"gw0", "gw1", "gw2", "gw3"}, run.output
    assert differences(run.results(), expected) == []
    assert run.counts == baseline.counts
    assert run.returncode == baseline.returncode == 1


def test_modules_may_be_preloaded(xdist: Environment, project: Callable[[str], Path]) -> None:
    tests = project(
        "import os, sys\n"
        "import pytest\n"
        "LOADED = 'json.decoder' in sys.modules\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_it(n):\n"
        "    assert LOADED\n"
        "    print('forked from', os.getppid())\n"
    )
    run = xdist.run(tests, "-d", "--tx", "2*popen//forkserver//preload=json.decoder,pytest", "-rP")
    assert run.returncode == 0, run.output
    assert len(set(re.findall(r"forked from \d+", run.output))) == 1


def test_a_worker_that_dies_is_replaced(xdist: Environment, project: Callable[[str], Path]) -> None:
    death = "os.kill(os.getpid(), signal.SIGKILL)"
    tests = project(projects.DYING.format(death=death))
    run = xdist.run(tests, "-d", "--tx", "2*popen//forkserver")
    assert run.returncode == 1, run.output
    expected = {f"test_it.py::test_one[{n}]": "passed" for n in range(20)}
    assert run.outcomes() == {**expected, "test_it.py::test_one[7]": "failed"}
    assert re.search(r"worker 'gw[01]' crashed while running '.*test_one\[7\]'", run.output)
