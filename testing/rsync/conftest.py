"""What the tests of RSync share: two trees, and both directions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rsync_trees import Sync, make_tree, pull, send


@pytest.fixture(params=[send, pull], ids=["send", "pull"])
def sync(request: pytest.FixtureRequest) -> Sync:
    """Either direction; what follows holds for both."""
    function: Sync = request.param
    return function


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tree of the module's FILES, or an empty one."""
    return make_tree(tmp_path / "source", getattr(request.module, "FILES", {}))


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Where it is to come; there is nothing yet."""
    return tmp_path / "dest"


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that everyone can reach and write to."""
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path
