"""Whether a worker through which others are reached still shows signs of life.

Its network may be lost, and nobody has noticed yet; then whoever needs it for the end of another
worker would wait for nothing.  Start at ``ask``.
"""

from __future__ import annotations

from .._clock import monotonic
from ..gateway_base import Message, _Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._endpoint import Endpoint, Request
    from .._inside import Inside

SILENT_S = 0.7  # how long nothing at all may come from a worker that was asked


class Asked:
    """A request to a worker, which its receiver thread answers; any thread may look."""

    def __init__(self, gateway: Inside) -> None:
        self._io = gateway.endpoint
        self._asked_at = monotonic()
        self._answered = _Flag(gateway.execmodel)
        try:
            channel = gateway.newchannel()
            channel.setcallback(lambda item: self._answered.set(), endmarker=None)
        except OSError:  # it has ended, which others tell
            self._answered.set()
        else:
            gateway.post_message(Message.STATUS, channel.id)

    def is_answered(self) -> bool:
        """Whether the answer has come, or the worker has ended."""
        return self._answered.is_set()

    def is_silent(self) -> bool:
        """Whether there is no answer, and nothing has come for longer than one may take."""
        return not self.is_answered() and monotonic() >= self._silent_at()

    def _silent_at(self) -> float:
        # Not every stream notes when something comes; a long transfer may delay the answer.
        return max(self._asked_at, self._io.read_at) + SILENT_S

    def wait(self, deadline: float, is_hurried: bool) -> bool:
        """Wait for the answer until the deadline; return whether it has come.

        is_hurried: wait no longer once the worker is silent.
        """
        while not self.is_answered():
            until = min(deadline, self._silent_at()) if is_hurried else deadline
            left_s = until - monotonic()
            if left_s <= 0:
                return False
            self._answered.wait(left_s)
        return True


def ask(gateway: Any) -> Request:
    """Ask a worker, and those that it is reached through; return the request that is under way.

    While one has no answer, there is no other.
    """
    io: Endpoint = gateway.endpoint
    ask_on_way(io)
    asked = io.asked
    if asked is None or asked.is_answered():
        asked = io.asked = Asked(gateway)
    return asked


def ask_on_way(io: Endpoint) -> None:
    """Ask all workers that the worker of a stream is reached through."""
    for gateway in io.carrier, io.starter:
        if gateway is not None:
            ask(gateway)
