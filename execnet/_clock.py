"""The clock that all bounds go by, out of reach of tests that stop or replace ``time``.

They replace what modules hold of ``time``; here it is held in a tuple.
"""

from __future__ import annotations

import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _real_monotonic() -> Callable[[], float]:
    """Return ``time.monotonic`` of the interpreter, also where it was replaced before us."""
    builtin: type = type(len)
    if isinstance(time.monotonic, builtin) or not hasattr(time, "CLOCK_MONOTONIC"):
        return time.monotonic
    return partial(time.clock_gettime, time.CLOCK_MONOTONIC)


_REAL = _real_monotonic(), time.sleep


def monotonic() -> float:
    """Return seconds of a clock that nobody sets, as ``time.monotonic`` does."""
    return _REAL[0]()


def sleep(seconds: float) -> None:
    """Wait so many seconds."""
    _REAL[1](seconds)
