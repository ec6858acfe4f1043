"""What the tests of the command line share: a shell that leaves nothing running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import FakeSsh
from shell import Shell


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
