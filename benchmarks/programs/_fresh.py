"""Time of a few statements in fresh interpreters: imports, and what a program does first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from _measure import Result, Scaled, milliseconds

TIMED = """\
from time import perf_counter
started = perf_counter()
{timed}
print(perf_counter() - started, flush=True)
{afterwards}
"""


def measure_of(timed: str, afterwards: str = "") -> Callable[[Scaled], Result]:
    """Return a ``measure`` function for the statements ``timed``."""
    source = TIMED.format(timed=timed, afterwards=afterwards)

    def measure(scaled: Scaled) -> Result:
        command = [sys.executable, "-c", source]
        samples = [
            float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(scaled(10))
        ]
        return milliseconds(samples)

    return measure
