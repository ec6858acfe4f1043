"""What the tests of RSync share: two trees, and both directions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
def open_path() -> Iterator[Path]:
    """A folder that everyone can reach and write to.

    It is not below that of pytest, which each other run of pytest makes private again.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path
