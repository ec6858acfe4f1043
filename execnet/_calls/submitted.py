"""Calls submitted to one gateway, which runs them one after the other.

Start at ``Submitted.submit``.
"""

from __future__ import annotations

from ..gateway_base import LoadError, _refuse_in_callback
from .future import Future, Teller
from .lane import Asked, Lane, Work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .near import Calls


class Owner:
    """Owns the lane of one gateway that is sent calls as they are submitted."""

    def __init__(self, calls: Calls) -> None:
        self._gateway = calls.gateway
        self._lane = Lane(calls, self)

    def go_on(self, lane: Lane) -> bool:
        """Return False: a call is sent when it is submitted."""
        return False

    def on_answered(self, lane: Lane) -> None:
        """Do nothing: nobody waits for that."""

    def on_given_back(self, lane: Lane, works: list[Work]) -> None:
        """Fail calls that the worker gives back, unasked."""
        for work in works:
            work.sink.end(None, LoadError(f"{self._gateway.id} gave a call back"))

    def on_lost(self, lane: Lane, lost: list[Asked]) -> None:
        """Fail all calls that will not be answered."""
        for asked in lost:
            asked.work.sink.end(None, lane.end_of_gateway())


class Submitted(Owner):
    """A lane of one gateway, and the futures of its calls.  Any thread may submit."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._teller = Teller(self._gateway.execmodel)

    def submit(
        self, function: object, positional: tuple[object, ...], named: dict[str, object]
    ) -> Future[Any]:
        """Send a call and return its future; raises what ``Lane.send`` raises."""
        gateway = self._gateway
        future: Future[Any] = Future(
            self._teller, gateway.execmodel, lambda: _refuse_in_callback(gateway, function)
        )
        future.begin()
        self._lane.send(Work(future, function, positional, named, codec=gateway.codec))
        return future
