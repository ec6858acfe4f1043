"""The command line as its users run it: in processes of its own, of which none may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from processes import processes_with
from tools import BOUND_S, ROOT

TOKEN = "EXECNET_TEST_CLI_TOKEN"
GONE_S = 5.0  # for the last traces of processes that were ended
EXECNET = [sys.executable, "-m", "execnet"]
# Whatever the signals of the test's own process are set to, the command starts as from a shell.
WITH_SIGNALS = """\
import os, signal, sys
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def wait_until(condition: Callable[[], object], bound_s: float = BOUND_S) -> bool:
    """Poll the condition until it holds; tell whether it did within the bound."""
    deadline = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Shell:
    """Runs commands in a folder of the test's, each in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self.mark = f"{TOKEN}={self.token}"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *args: str, **variables: str) -> subprocess.Popen[str]:
        """Start ``execnet`` with these arguments."""
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_SIGNALS, *EXECNET, *args],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), TOKEN: self.token, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(
        self, *args: str, input: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``execnet`` to its end, which leaves nothing running."""
        process = self.start(*args, **variables)
        stdout, stderr = process.communicate(input, timeout=BOUND_S)
        assert self.nothing_is_left()
        return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)

    def nothing_is_left(self) -> bool:
        return wait_until(lambda: not processes_with(self.mark), GONE_S)

    def finish(self) -> None:
        """Fail if anything is left, and end it."""
        left = [] if self.nothing_is_left() else processes_with(self.mark)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(BOUND_S)
            for file in process.stdin, process.stdout, process.stderr:
                if file is not None:
                    file.close()
        assert commands == [], "these processes were left running"

    def script(self, name: str, text: str) -> str:
        """Write a program for ``python=``, and return its path."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def never_answers(self) -> str:
        """Return a spec of an interpreter that writes a file ``starting``, and no more."""
        return f"popen//python={self.script('silent', 'touch starting; exec sleep 600')}"

    def tells(self) -> str:
        """Return a spec of an interpreter that writes a file ``was-started``, and works."""
        command = f'touch was-started; exec {sys.executable} "$@"'
        return f"popen//id=teller//python={self.script('tells', command)}"

    def wait_for_file(self, name: str) -> None:
        assert wait_until((self.folder / name).exists), f"no file {name!r}"
