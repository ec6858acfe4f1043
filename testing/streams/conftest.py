"""What the tests of streams share: what workers write, taken down."""

from __future__ import annotations

import pytest
from written import Written

from execnet import Group


@pytest.fixture
def written(group: Group) -> Written:
    """What the workers of ``group`` write."""
    written = Written()
    group.on_output(written)
    return written
