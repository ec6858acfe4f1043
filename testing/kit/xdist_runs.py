"""Runs of the released pytest-xdist on this execnet; see ``Environment.run``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xdist_project as projects
from processes import command_of, processes_with
from tools import ROOT, wait_until

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
GONE_BOUND_S = 30.0
Record = dict[str, Any]


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
        self.mark = f"{TOKEN}={self.token}"
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
            left = "\n".join(map(command_of, processes_with(self.mark)))
            pytest.fail(f"no {what} in {bound_s} s; running:\n{left}\noutput:\n{self.output()}")

    def wait_for_output(self, text: str, times: int = 1) -> None:
        """Wait until the text was written so many times."""
        self.wait_for(f"{text!r}", lambda: self.output().count(text) >= times)

    def finish(self) -> Finished:
        """Wait for the end, and prove that nothing is left; return what was recorded."""
        self.wait_for("end of the run", lambda: self.process.poll() is not None)
        self.wait_for("end of its processes", lambda: not processes_with(self.mark), GONE_BOUND_S)
        lines = self._outcomes.read_text("utf-8").splitlines() if self._outcomes.exists() else []
        return Finished(self.process.returncode, self.output(), [json.loads(s) for s in lines])

    def kill(self) -> None:
        """End whatever is left, so that a failure does not disturb the tests after it."""

        def all_gone() -> bool:
            left = processes_with(self.mark)
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


def differences(results: dict[str, list[Record]], expected: dict[str, list[Record]]) -> list[str]:
    """Return one line for each test that has other results than expected."""
    lines = []
    for nodeid in sorted(results.keys() | expected.keys()):
        ours, theirs = results.get(nodeid, []), expected.get(nodeid, [])
        if ours != theirs:
            lines.append(f"{nodeid}: {[record for record in ours if record not in theirs]}")
    return lines
