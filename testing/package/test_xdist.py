"""The released pytest-xdist, unmodified, as a client of this execnet.

A virtual environment of its own gets this checkout and pytest-xdist. The
projects in ``xdist_project.py`` are run there, each in a process whose
descendants are known by a token in their environment: after every run none of
them may be left. Start at ``Environment.run``.
"""

from __future__ import annotations

import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import xdist_project as projects
from xdist_runs import Environment, Finished, differences

pytestmark = [
    pytest.mark.timeout(300),  # the first test also waits for the installation
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
]


@pytest.mark.parametrize("mode", ["load", "loadscope", "loadfile", "loadgroup", "worksteal"])
def test_results_equal_those_of_a_run_without_xdist(
    mode: str, spread: Callable[[str], Finished], baseline: Finished
) -> None:
    run = spread(mode)
    expected = baseline.results()
    assert len(expected) >= 500, baseline.output
    assert run.workers == {"gw0", "gw1", "gw2", "gw3"}, run.output
    assert differences(run.results(), expected) == []
    assert run.counts == baseline.counts
    assert run.returncode == baseline.returncode == 1


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def scope_of(nodeid: str) -> str:
    return nodeid.rsplit("::", 1)[0]


def group_of(nodeid: str) -> str:
    group = re.search(projects.GROUP, nodeid)
    return group[0] if group else nodeid


@pytest.mark.parametrize(
    ("mode", "unit_of"),
    [("loadfile", file_of), ("loadscope", scope_of), ("loadgroup", group_of)],
)
def test_what_belongs_together_runs_on_one_worker(
    mode: str, unit_of: Callable[[str], str], spread: Callable[[str], Finished]
) -> None:
    workers = defaultdict(set)
    nodeids = set()
    for record in spread(mode).phases:
        nodeids.add(record["nodeid"])
        workers[unit_of(record["nodeid"])].add(record["worker"])
    assert len(workers) < len(nodeids)
    assert {unit: names for unit, names in workers.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    "death", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_a_worker_that_dies_fails_only_the_test_that_it_ran(
    death: str, xdist: Environment, project: Callable[[str], Path]
) -> None:
    run = xdist.run(project(projects.DYING.format(death=death)), "-n", "2")
    assert run.returncode == 1, run.output
    expected = {f"test_it.py::test_one[{n}]": "passed" for n in range(20)}
    assert run.outcomes() == {**expected, "test_it.py::test_one[7]": "failed"}
    assert re.search(r"worker 'gw[01]' crashed while running '.*test_one\[7\]'", run.output)
    assert re.search(r"replacing crashed worker gw[01]\n", run.output)


def test_what_replaces_the_only_worker_runs_the_rest(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    run = xdist.run(project(projects.DYING.format(death="os._exit(3)")), "-n", "1")
    assert run.returncode == 1, run.output
    by_worker = defaultdict(set)
    for record in run.phases:
        by_worker[record["worker"]].add(int(record["nodeid"].split("[")[1].rstrip("]")))
    assert by_worker == {"gw0": set(range(8)), "gw1": set(range(8, 20))}


def test_a_worker_that_dies_and_may_not_be_replaced_ends_the_run(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    dying = project(projects.DYING.format(death="os._exit(3)"))
    run = xdist.run(dying, "-n", "2", "--max-worker-restart", "0")
    assert run.returncode == 1, run.output
    assert run.outcomes()["test_it.py::test_one[7]"] == "failed"
    assert "crashed and worker restarting disabled" in run.output


@pytest.mark.parametrize(("option", "most"), [("-x", 1), ("--maxfail=3", 3)])
def test_a_run_stops_after_so_many_failures(
    option: str, most: int, xdist: Environment, project: Callable[[str], Path]
) -> None:
    run = xdist.run(project(projects.FAILING), "-n", "2", option)
    assert run.returncode == 2, run.output
    outcomes = list(run.outcomes().values())
    # each worker stops by itself too, so that another may have added failures meanwhile
    assert most <= outcomes.count("failed") <= 2 * most
    assert len(outcomes) < projects.FAILING_COUNT
    assert f"stopping after {most} failures" in run.output


def test_a_test_that_hangs_is_interrupted_by_a_time_out(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    hanging = project(projects.HANGING_ONCE)
    run = xdist.run(hanging, "-n", "2", "--timeout", "1", "--timeout-method", "signal")
    assert run.returncode == 1, run.output
    expected = {f"test_it.py::test_one[{n}]": "passed" for n in range(10)}
    assert run.outcomes() == {**expected, "test_it.py::test_one[3]": "failed"}
    assert run.workers == {"gw0", "gw1"}, "only the main thread gets the signal"
    assert "Timeout (>1.0s)" in run.output


def test_a_worker_that_a_time_out_ends_is_replaced(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    hanging = project(projects.HANGING_ONCE)
    run = xdist.run(hanging, "-n", "2", "--timeout", "1", "--timeout-method", "thread")
    assert run.returncode == 1, run.output
    expected = {f"test_it.py::test_one[{n}]": "passed" for n in range(10)}
    assert run.outcomes() == {**expected, "test_it.py::test_one[3]": "failed"}
    assert "crashed while running 'test_it.py::test_one[3]'" in run.output


def test_reports_of_5_mb_arrive_whole(xdist: Environment, project: Callable[[str], Path]) -> None:
    run = xdist.run(project(projects.BIG_OUTPUT), "-n", "2", "--show-capture=no", "--tb=no")
    assert run.returncode == 1, run.output
    expected = {"test_passes": ("stdout", "out"), "test_fails": ("stderr", "err")}
    calls = {record["nodeid"]: record for record in run.phases if record["when"] == "call"}
    for test, (stream, word) in expected.items():
        [[title, text]] = calls[f"test_it.py::{test}"]["sections"]
        assert title == f"Captured {stream} call"
        assert len(text) > 5_000_000
        assert text == projects.big_output(word), "compared whole"
    assert calls["test_it.py::test_fails"]["longrepr"].count("x" * 1_000_000) == 1


@pytest.mark.parametrize("whom", ["all", "the coordinator"])
def test_ctrl_c_ends_the_run_and_its_workers(
    whom: str, xdist: Environment, project: Callable[[str], Path]
) -> None:
    hanging = project(projects.HANGING)
    with xdist.start(hanging, "-n", "2") as running:
        running.wait_for("test in each worker", lambda: len(list(hanging.glob("started-*"))) == 2)
        interrupt = os.killpg if whom == "all" else os.kill
        interrupt(running.process.pid, signal.SIGINT)
        run = running.finish()
    assert run.returncode == 2, run.output
    assert "KeyboardInterrupt" in run.output


def test_tx_specs_name_interpreters_and_ids(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    failing = project(projects.FAILING)
    specs = ["--tx", "2*popen//python=python3", "--tx", "popen//id=other"]
    run = xdist.run(failing, "-d", *specs)
    assert run.returncode == 1, run.output
    assert len(run.outcomes()) == projects.FAILING_COUNT
    assert len(run.workers) == 3
    assert "other" in run.workers


def test_a_worker_with_chdir_runs_a_copy_of_the_tests(xdist: Environment, tmp_path: Path) -> None:
    files = {"package/__init__.py": "", "package/test_it.py": projects.PLACE}
    package = projects.write_project(tmp_path / "project", files) / "package"
    far = tmp_path / "far"
    specs = ["--tx", f"popen//chdir={far}", "--rsyncdir", str(package)]
    run = xdist.run(package.parent, "-d", *specs, str(package))
    assert run.returncode == 0, run.output
    [call] = [record for record in run.phases if record["when"] == "call"]
    assert ["Captured stdout call", f"{far}\n"] in call["sections"]
    assert call["outcome"] == "passed"
    assert (far / "package" / "test_it.py").read_text() == projects.PLACE


def test_looponfail_runs_again_after_a_change_until_ctrl_c(
    xdist: Environment, project: Callable[[str], Path]
) -> None:
    changing = project(projects.CHANGING.format(value="wrong"))
    with xdist.start(changing, "--looponfail", "test_it.py") as running:
        running.wait_for_output("waiting for changes")
        assert "1 failed, 1 passed" in running.output()
        (changing / "test_it.py").write_text(projects.CHANGING.format(value="right again"))
        running.wait_for_output("waiting for changes", times=2)
        assert "MODIFIED" in running.output()
        assert "2 passed" in running.output()
        assert running.process.poll() is None
        os.killpg(running.process.pid, signal.SIGINT)
        run = running.finish()
    assert run.returncode == 2, run.output
    assert "Traceback" not in run.output
