"""What the figures look like: a table for people, a dict that becomes JSON for programs."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._catalog import OURS, Benchmark
from benchmarks._rounds import Row


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def heading(facts: dict[str, Any], rounds: int, scale: float) -> str:
    """Return the lines above the tables."""
    work = "" if scale == 1 else f", {scale:g} of the usual work: no figures to rely on"
    return (
        f"{facts['python']}, {facts['cores']} cores, {facts['processor']}\n"
        f"{facts['system']}, load {facts['load'][0]}\n"
        f"medians of {rounds} round{'s' if rounds > 1 else ''}{work}"
    )


def table(benchmark: Benchmark, rows: Sequence[Row]) -> str:
    """Return one benchmark's table."""
    sense = "more is better" if benchmark.more_is_better else "less is better"
    pinned = ", on one core" if benchmark.pinned and can_pin() else ""
    lines = [f"{benchmark.name}: {benchmark.title} [{benchmark.unit}, {sense}{pinned}]"]
    tail = f"{'p99':>10}" if benchmark.tail else ""
    lines.append(f"  {'':<16}{'median':>10}{tail}  ours is")
    digest = next((row.digest for row in rows if row.peer == OURS), None)
    lines += [f"  {_line(row, digest)}".rstrip() for row in rows]
    return "\n".join(lines)


def can_pin() -> bool:
    """Tell whether this system can keep a process on one core."""
    return hasattr(os, "sched_setaffinity")


def _line(row: Row, digest: str | None) -> str:
    if row.status != "ok":
        return f"{row.peer:<16}{row.status:>10}  {row.reason}"
    cells = f"{row.peer:<16}{_number(median(row.medians)):>10}"
    if row.tails:
        cells += f"{_number(median(row.tails)):>10}"
    if row.ratios:
        cells += f"  {_number(median(row.ratios))} times as fast"
    if digest and row.digest and row.peer != OURS:
        cells += ", same bytes" if row.digest == digest else ", OTHER BYTES"
    return cells


def _number(value: float) -> str:
    """Return three digits or more, none of them below a thousandth."""
    for limit, digits in ((1, 3), (10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def as_data(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """Return one benchmark's figures for JSON: those of the table and of each round."""
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "unit": benchmark.unit,
        "more_is_better": benchmark.more_is_better,
        "pinned": benchmark.pinned and can_pin(),
        "rows": [_row_as_data(row) for row in rows],
    }


def _row_as_data(row: Row) -> dict[str, Any]:
    return {
        "peer": row.peer,
        "status": row.status,
        "reason": row.reason,
        "median": median(row.medians) if row.medians else None,
        "p99": median(row.tails) if row.tails else None,
        "ours_is_times_as_fast": median(row.ratios) if row.ratios else None,
        "rounds": {"medians": row.medians, "p99s": row.tails, "ratios": row.ratios},
        "digest": row.digest,
    }


def document(
    facts: dict[str, Any], rounds: int, scale: float, benchmarks: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all that was measured, and where and how, for JSON."""
    command = ["python", "-m", "benchmarks", *sys.argv[1:]]
    return {
        "command": command,
        "machine": facts,
        "rounds": rounds,
        "scale": scale,
        "benchmarks": benchmarks,
    }
