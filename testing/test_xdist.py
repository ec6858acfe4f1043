"""The released pytest-xdist, unmodified, as a client of this execnet.

A virtual environment of its own gets this checkout and pytest-xdist. The
projects in ``xdist_project.py`` are run there, each in a process whose
descendants are known by a token in their environment: after every run none of
them may be left. Start at ``Environment.run``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xdist_project as projects
from tools import missing, wait_until

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "XDIST_RUN"
# Pytest 9.2 keeps pytest-xdist 3.8 from adding "@group" to node ids, whatever the execnet.
REQUIREMENTS = ["pytest>=8.4,<9.2", "pytest-xdist>=3.8", "pytest-timeout>=2.3"]
# A background job of a shell ignores SIGINT, and so would all that it starts.
WITH_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""

RUN_BOUND_S = 60.0
GONE_BOUND_S = 5.0

pytestmark = [
    pytest.mark.timeout(300),  # the first test also waits for the installation
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
]

Record = dict[str, Any]


def processes_of(token: str) -> list[int]:
    """Return the ids of all processes that have this token in their environment."""
    mark = f"{TOKEN}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def command_of(pid: int) -> str:
    """Return the id and the command line of a process, as far as it is still there."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_text().split(chr(0))}"
    except OSError:
        return f"{pid} (ended)"


@dataclass
class Finished:
    """What a run of pytest left: its exit code, its output, and what was recorded."""

    returncode: int
    output: str
    records: list[Record]

    @property
    def phases(self) -> list[Record]:
        """Return one record for each phase (setup, call, teardown) of each test."""
        return [record for record in self.records if record["kind"] == "phase"]

    @property
    def workers(self) -> set[str]:
        """Return the ids of the workers that sent reports."""
        return {record["worker"] for record in self.phases}

    @property
    def counts(self) -> str:
        """Return the last line of the output, without the time."""
        last = self.output.rstrip().splitlines()[-1]
        return re.sub(r" in [0-9.]+s.*", "", last).strip("= ")

    def outcomes(self) -> dict[str, str]:
        """Return node id -> outcome of the worst phase."""
        outcomes: dict[str, str] = {}
        for record in self.phases:
            if record["outcome"] != "passed" or record["when"] == "call":
                outcomes[record["nodeid"]] = record["outcome"]
        return outcomes

    def results(self) -> dict[str, list[Record]]:
        """Return node id -> all that is known, in its order, but for what cannot be equal."""
        results = defaultdict(list)
        for record in self.records:
            record = dict(record, worker=None, nodeid=re.sub(projects.GROUP, "", record["nodeid"]))
            if record.get("longrepr"):
                record["longrepr"] = re.sub(r"\b0x[0-9a-f]+", "0x", record["longrepr"])
            results[record["nodeid"]].append(record)
        return dict(results)


class Running:
    """A process that was started, and what it starts.

    Only the thread of the test uses it.
    """

    def __init__(self, python: Path, project: Path, *args: str) -> None:
        self.token = uuid.uuid4().hex
        self._outcomes = project.parent / f"{self.token}.outcomes"
        self._output = project.parent / f"{self.token}.output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-c", WITH_SIGINT, python, "-m", "pytest", *args],
                cwd=project,
                env=self._environment(python.parent),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, scripts: Path) -> dict[str, str]:
        """Return the environment less what would change how Python or pytest behave."""
        changes = re.compile("PYTHON|PYTEST|PY_COLORS|FORCE_COLOR|NO_COLOR|COV|EXECNET|CI$|TOX")
        kept = {key: value for key, value in os.environ.items() if not changes.match(key)}
        return {
            **kept,
            TOKEN: self.token,
            "OUTCOMES": str(self._outcomes),
            "COLUMNS": "120",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        }

    def output(self) -> str:
        """Return what was written so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for(
        self, what: str, condition: Callable[[], object], bound_s: float = RUN_BOUND_S
    ) -> None:
        """Wait until the condition holds; fail with what is left running when it does not."""
        try:
            wait_until(condition, bound_s)
        except pytest.fail.Exception:
            left = "\n".join(map(command_of, processes_of(self.token)))
            pytest.fail(f"no {what} in {bound_s} s; running:\n{left}\noutput:\n{self.output()}")

    def wait_for_output(self, text: str, times: int = 1) -> None:
        """Wait until the text was written so many times."""
        self.wait_for(f"{text!r}", lambda: self.output().count(text) >= times)

    def finish(self) -> Finished:
        """Wait for the end, and prove that nothing is left; return what was recorded."""
        self.wait_for("end of the run", lambda: self.process.poll() is not None)
        self.wait_for("end of its processes", lambda: not processes_of(self.token), GONE_BOUND_S)
        lines = self._outcomes.read_text("utf-8").splitlines() if self._outcomes.exists() else []
        return Finished(self.process.returncode, self.output(), [json.loads(s) for s in lines])

    def kill(self) -> None:
        """End whatever is left, so that a failure does not disturb the tests after it."""

        def all_gone() -> bool:
            left = processes_of(self.token)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_until(all_gone, GONE_BOUND_S)
        self.process.wait()


@dataclass
class Environment:
    """A virtual environment with this execnet and the released pytest-xdist."""

    python: Path

    @contextlib.contextmanager
    def start(self, project: Path, *args: str) -> Iterator[Running]:
        """Start pytest; end what is left of it when the block ends."""
        running = Running(self.python, project, *args)
        try:
            yield running
        finally:
            running.kill()

    def run(self, project: Path, *args: str) -> Finished:
        """Run pytest in the folder of the project to its end."""
        with self.start(project, *args) as running:
            return running.finish()


def installed(python: Path, *what: str) -> subprocess.CompletedProcess[str]:
    """Install with pip, whose output tells why not where it cannot."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", *what]
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
    except subprocess.TimeoutExpired as expired:
        return subprocess.CompletedProcess(command, 1, f"{expired}\n{expired.output!r}")


def copy_of_checkout(folder: Path) -> Path:
    """Copy what a build needs, because a build litters the folder that it works on."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    shutil.copytree(ROOT / "execnet", folder / "execnet", ignore=shutil.ignore_patterns("__pyc*"))
    return folder


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


def differences(results: dict[str, list[Record]], expected: dict[str, list[Record]]) -> list[str]:
    """Return one line for each test that has other results than expected."""
    lines = []
    for nodeid in sorted(results.keys() | expected.keys()):
        ours, theirs = results.get(nodeid, []), expected.get(nodeid, [])
        if ours != theirs:
            lines.append(f"{nodeid}: {[record for record in ours if record not in theirs]}")
    return lines


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
