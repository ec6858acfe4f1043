"""What the tests of the command line share: a shell that leaves nothing running."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import processes_with
from services import FakeSsh
from shell import GONE_S, TOKEN, Shell, wait_until
from terminals import Terminal


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.finish()


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    """An ``ssh`` in front of the real one, which does what a test says."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return FakeSsh(tmp_path)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    """The terminals of a test, which leave nothing running."""
    made: list[Terminal] = []
    yield made
    for terminal in made:
        os.close(terminal.fd)
    mark = f"{TOKEN}={tmp_path.name}"
    is_gone = wait_until(lambda: not processes_with(mark), GONE_S)
    for pid in processes_with(mark):
        os.kill(pid, signal.SIGKILL)
    assert is_gone
