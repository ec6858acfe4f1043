"""Rounds in which every peer has its turn, and the figures that come of them.

The machine is never the same twice: another load, another clock rate. So a ratio is taken within
a round, between programs that ran one right after the other, and what is told is the median of
the rounds' ratios, not the ratio of two medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks._catalog import OURS, Benchmark, Peer
from benchmarks._environments import InstallFailed, NotInstalled
from benchmarks._processes import ProgramFailed

Run = Callable[[Benchmark, Peer], dict[str, Any]]


@dataclass
class Row:
    """What one peer achieved in one benchmark; without ``status`` "ok" the rounds are empty."""

    peer: str
    status: str = "ok"  # or "failed", "skipped"
    reason: str = ""  # why it is not ok
    medians: list[float] = field(default_factory=list)  # one of each round
    tails: list[float] = field(default_factory=list)  # the 99th percentiles, likewise
    ratios: list[float] = field(default_factory=list)  # how many times as fast ours was, likewise
    digest: str | None = None  # of the output, where that is compared

    def add(self, result: dict[str, Any], tail: bool) -> None:
        """Take one round's result in."""
        self.medians.append(median(result["samples"]))
        if tail:
            self.tails.append(percentile(result["samples"], 0.99))
        self.digest = result.get("digest")

    def give_up(self, status: str, reason: str) -> None:
        """Say why there are no figures; those of earlier rounds are dropped."""
        self.status, self.reason = status, reason
        self.medians, self.tails, self.digest = [], [], None


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least ``share`` of the samples do not exceed."""
    return sorted(samples)[max(0, math.ceil(len(samples) * share) - 1)]


def compare(benchmark: Benchmark, peers: Sequence[Peer], rounds: int, run: Run) -> list[Row]:
    """Run a benchmark with all its peers in turn, ``rounds`` times; return a row for each.

    A peer that cannot do it gets a row that says why, and no further turns.
    """
    contenders = [
        (peer, Row(peer.name)) for peer in peers if benchmark.program_for(peer) is not None
    ]
    for _ in range(rounds):
        for peer, row in contenders:
            if row.status == "ok":
                _take_turn(benchmark, peer, row, run)
    rows = [row for _, row in contenders]
    _add_ratios(rows, benchmark.more_is_better)
    return rows


def _take_turn(benchmark: Benchmark, peer: Peer, row: Row, run: Run) -> None:
    try:
        row.add(run(benchmark, peer), benchmark.tail)
    except NotInstalled as error:
        row.give_up("skipped", str(error))
    except (InstallFailed, ProgramFailed) as error:
        row.give_up("failed", str(error))


def _add_ratios(rows: Sequence[Row], more_is_better: bool) -> None:
    ours = next((row.medians for row in rows if row.peer == OURS), [])
    for row in rows:
        if row.peer != OURS and ours and row.medians:
            pairs = zip(ours, row.medians, strict=True)
            row.ratios = [our / their if more_is_better else their / our for our, their in pairs]
