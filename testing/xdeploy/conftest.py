"""What tests of environments share: no index is asked, and the fastest tool makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheels import Place, place_with_wheels, use_no_index


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place of the test's own."""
    use_no_index(monkeypatch)
    return place_with_wheels(tmp_path)
