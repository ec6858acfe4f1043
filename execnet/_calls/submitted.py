"""Calls that are submitted to one gateway, which runs them one after the other.

Start at ``Submitted.submit``.
"""

from __future__ import annotations

import itertools

from ..gateway_base import _refuse_in_callback
from .future import Future, Teller
from .near import Calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Asked = tuple[Future[Any], Any, tuple[Any, ...], dict[str, Any]]


class Submitted:
    """A lane of one gateway, whose answers come to a callback.

    Any thread may submit; the gateway's receiver thread ends the futures.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._gateway: Any = calls.gateway
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {}  # what was sent and not answered
        self._teller = Teller(self._gateway.execmodel)
        self._lane = calls.new_lane()
        self._lane.setcallback(self._on_answer, endmarker=None)
        self._callback = self._gateway._channelfactory._callbacks.get(self._lane.id)

    def submit(
        self, function: Any, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> Future[Any]:
        """Send a call and return its future; raises as ``Calls.request`` does."""
        gateway = self._gateway
        future: Future[Any] = Future(
            self._teller, gateway.execmodel, lambda: _refuse_in_callback(gateway, function)
        )
        future.begin()
        self._ask(future, function, positional, named)
        return future

    def _ask(
        self,
        future: Future[Any],
        function: Any,
        positional: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        number = next(self._numbers)
        request = self._calls.request(number, function, positional, named)
        self._asked[number] = future, function, positional, named
        self._let_callback_be_late(False)
        self._gateway._channelfactory.take_back()
        try:
            self._calls.send(self._lane.id, request)
        except BaseException:
            self._asked.pop(number, None)
            raise
        if self._lane.isclosed():  # its end came in between, and nothing else will
            self._fail_all()

    def _let_callback_be_late(self, may_be: bool) -> None:
        """Say whether other threads may read the stream although there is a callback."""
        if self._callback is not None:
            self._callback.may_be_late = may_be

    # the receiver thread

    def _on_answer(self, answer: Any) -> None:
        if answer is None:
            self._fail_all()
            return
        asked = None
        if type(answer) is tuple and len(answer) > 1 and type(answer[0]) is int:
            asked = self._asked.pop(answer[0], None)
        if asked is None:
            return  # nothing was asked that this could answer
        if not self._asked:
            self._let_callback_be_late(True)
        future = asked[0]
        if len(answer) == 2:
            future.end(answer[1], None)
            return
        error = self._calls.error_of(answer, asked[1])
        if error is None:
            try:
                self._ask(*asked)
                return
            except Exception as exc:  # it can't be sent as source
                error = exc
        future.end(None, error)

    def _fail_all(self) -> None:
        for number in list(self._asked):
            asked = self._asked.pop(number, None)
            if asked is not None:
                asked[0].end(None, self._calls.end_of_gateway())
