"""Whatever is killed while an environment is made: the next call makes a whole one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from deploy_faults import LADDERS, one_round
from tools import some_of

SEEDS = range(100, 100 + some_of(50, 0.06))


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in Linux's /proc")
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_half_made_is_used(seed: int, tmp_path: Path) -> None:
    one_round(seed, tmp_path, LADDERS[0])
