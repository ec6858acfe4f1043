"""What the tests of the core share: a project whose modules travel."""

from __future__ import annotations

from pathlib import Path

import pytest
from import_projects import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A folder that this program imports from; there is nothing in it yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return Project(folder)
