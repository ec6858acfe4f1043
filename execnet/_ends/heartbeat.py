"""Sends the heartbeats of all gateways that have one, from a single thread.

Start at ``watch``.  ``_features.pulse`` does the work of each interval.
"""

from __future__ import annotations

import heapq
import itertools

from .._clock import monotonic
from .._conditions import Condition
from ..gateway_base import get_execmodel
from . import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._features.pulse import Pulse


class _Watch:
    """A thread that ends when nothing is left to watch.  ``_changed`` guards the rest."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._due: list[tuple[float, int, Pulse]] = []
        self._numbers = itertools.count()
        self._runs = False
        fork.register(self)

    def add(self, pulse: Pulse) -> None:
        with self._changed:
            self._schedule(pulse)
            if self._runs:
                self._changed.notify()
            else:
                try:
                    get_execmodel("thread").start(self._run, (), "execnet-heartbeat")
                    self._runs = True  # it looks when we release the lock
                except RuntimeError:
                    self._due.clear()
                    raise

    def _schedule(self, pulse: Pulse) -> None:
        due = monotonic() + pulse.interval_s
        heapq.heappush(self._due, (due, next(self._numbers), pulse))

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due:
                    self._runs = False
                    return
                left = self._due[0][0] - monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                pulse = heapq.heappop(self._due)[2]
            if pulse.beat():
                with self._changed:
                    self._schedule(pulse)

    def wake(self) -> None:
        """Drop an ended gateway, so that the thread does not wait for its next beat."""
        with self._changed:
            self._due = [entry for entry in self._due if not entry[2].ended()]
            heapq.heapify(self._due)
            self._changed.notify()

    def _disown(self) -> None:
        self.__init__()  # type: ignore[misc]


_watch = _Watch()


def watch(pulse: Pulse) -> None:
    """Call ``pulse.beat()`` once per interval, until it returns False."""
    _watch.add(pulse)


def look_again() -> None:
    """A gateway has ended; nobody needs to wait for its next beat."""
    _watch.wake()
