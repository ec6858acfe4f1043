"""Waits with a timeout that end, where those of ``SimpleQueue`` may not.

On CPython 3.7 to 3.12 its ``get`` waits for ever if its time is over before it has begun to wait,
or when it is woken for nothing: by a signal, or as another thread was faster.
"""

from __future__ import annotations

import time

from ..gateway_base import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHORTEST_S, LONGEST_S = 5e-5, 5e-3  # between two looks
SHARE = 0.05  # of the time that was waited so far


def _now() -> float:
    """Return seconds of a clock that tests do not replace, and nobody sets."""
    if not hasattr(time, "clock_gettime"):
        return time.monotonic()
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Timed(object):
    """Makes ``map(items.get, timed)`` wait for one item, which is then taken by a single call.

    It waits until there is an item or the time is over, and has ``get`` wait no more.  Where
    another thread takes the item first, that raises ``Empty`` though ``left`` is more than 0.
    """

    def __init__(self, items: Any, timeout: float) -> None:
        self.left = timeout  # seconds
        self._items = items
        self._is_over = False

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> bool:
        if self._is_over:
            raise StopIteration
        self._is_over = True
        start, until = _now(), _now() + self.left
        never = _thread.allocate_lock()
        never.acquire()
        while self._items.empty() and self.left > 0:
            pause_s = max(SHORTEST_S, SHARE * (_now() - start))
            never.acquire(True, min(self.left, LONGEST_S, pause_s))
            self.left = until - _now()
        return False

    next = __next__
