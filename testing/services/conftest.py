"""Services of a test's own, which end with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from execnet import Group
from execnet._folders import HOME_VARIABLE
from execnet._service import admin


@pytest.fixture
def home(nothing_is_left: None, own_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path, in which the services of a test are; all of them end with it."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        monkeypatch.setenv(HOME_VARIABLE, os.path.join(folder, "home"))
        yield Path(folder, "home")
        for found in admin.find_all():
            admin.stop(found)


@pytest.fixture
def factory(home: Path) -> Iterator[Group]:
    """A group whose gateways are made by the service "fac"."""
    group = Group()
    group.setlocalfactory(name="fac")
    yield group
    group.terminate(timeout=5)
