"""A lane: calls of one gateway that run one after the other, with a callback for each answer.

Start at ``Lane.send``.
"""

from __future__ import annotations

import itertools
from contextlib import suppress

from ..gateway_base import _HEADER, ITEM_MAX, GatewayState, LoadError, Message, _left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .._features.codecs import Codec
    from .near import Calls

    class Sink(Protocol):
        """Receives the result of a call; ``Future`` is one."""

        interrupt: Callable[[], object] | None

        def begin(self) -> bool: ...
        def cancel(self) -> object: ...
        def end(self, value: Any, error: BaseException | None) -> object: ...

    class Owner(Protocol):
        """Owns lanes; both methods run in the thread that reads the gateway, and must not wait."""

        def on_answered(self, lane: Lane) -> None: ...
        def on_lost(self, lane: Lane, lost: list[Asked]) -> None: ...


NOTE_S = 1.0  # more than a write takes when nobody reads


class Work:
    """A call to be made, and what receives its result."""

    __slots__ = ("codec", "function", "named", "positional", "retries", "sink")

    def __init__(
        self,
        sink: Sink,
        function: Any,
        positional: tuple[Any, ...],
        named: dict[str, Any],
        retries: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.sink = sink
        self.function = function
        self.positional = positional
        self.named = named
        self.retries = retries  # how often it may run again after its worker died
        self.codec = codec  # of arguments and result

    def end(self, result: Any) -> None:
        """Give the result to whoever asked for it."""
        if self.codec is not None:
            try:
                result = self.codec.load(result)
            except LoadError as exc:
                self.sink.end(None, exc)
                return
        self.sink.end(result, None)


class Asked:
    """A call that one worker was asked to make."""

    __slots__ = ("frame", "was_resent", "work")

    def __init__(self, work: Work, was_resent: bool) -> None:
        self.work = work
        self.was_resent = was_resent  # as source, since the module was missing
        self.frame: list[Any] | None = None  # the one that ends the request

    def was_sent(self) -> bool:
        """Whether the request has left, so that the call may have begun."""
        return self.frame is not None and not _left(self.frame)


class Lane:
    """Calls of one gateway that run one after the other.

    ``asked`` holds requests without an answer so far.  Any thread may send; answers arrive in the
    thread that reads the gateway.
    """

    def __init__(self, calls: Calls, owner: Owner) -> None:
        self.gateway: Any = calls.gateway
        self.asked: dict[int, Asked] = {}
        self.has_ended = False
        self.is_free = False  # whether it has nothing to do; its owner sets this
        self._calls = calls
        self._owner = owner
        self._numbers = itertools.count(1)
        self._channel = calls.new_lane()
        self._channel.setcallback(self._on_answer, endmarker=None)
        self._callback = self.gateway._channelfactory._callbacks.get(self._channel.id)

    def is_live(self) -> bool:
        """Whether calls can be sent."""
        return not self.has_ended and self.gateway._state == GatewayState.LIVE

    def send(self, work: Work) -> None:
        """Send a call; waits while the stream takes nothing.

        Raises what ``Calls.request`` raises, and OSError if the worker is gone.
        """
        number, request = self._prepare(Asked(work, False))
        try:
            self._calls.send(self._channel.id, request)
        except BaseException:
            self.asked.pop(number, None)
            raise
        self._look_for_end()

    def post(self, work: Work, again: bool = False) -> None:
        """Have a call sent soon; never waits.  Raises what ``Calls.request`` raises."""
        asked = Asked(work, again)
        _, request = self._prepare(asked)
        writer, id, size = self.gateway._writer, self._channel.id, len(request)
        if size <= ITEM_MAX:
            asked.frame = writer.frame(_HEADER.pack(Message.CALL, id, size), request)
            writer.post_frame(asked.frame)
        else:
            writer.post(_HEADER.pack(Message.CALL, id, 0), b"")
            for _, header, payload in self.gateway._channelfactory._frames_of(id, [request]):
                asked.frame = writer.frame(header, payload)
                writer.post_frame(asked.frame)
        self._look_for_end()

    def _prepare(self, asked: Asked) -> tuple[int, bytes]:
        number, work = next(self._numbers), asked.work
        given = work.function, work.positional, work.named, work.codec
        request = self._calls.request(number, *given)
        self.asked[number] = asked
        if self._callback is not None:
            self._callback.may_be_late = False  # no other thread may read the stream now
        self.gateway._channelfactory.take_back()
        return number, request

    def _look_for_end(self) -> None:
        if self.has_ended or self._channel.isclosed():  # nothing else will report it
            self._lose_all()

    def interrupt(self, work: Work) -> None:
        """Interrupt a call, if it still runs; never waits."""
        for number, asked in list(self.asked.items()):
            if asked.work is work:
                with suppress(OSError):  # the worker is gone
                    self.gateway._interrupt(self._channel.id, number)

    def close(self) -> None:
        """Give up the lane; nothing more is answered."""
        self.has_ended = True
        self._channel.close()

    def end_of_gateway(self) -> BaseException:
        """Return the error for calls that will never be answered."""
        return self._calls.end_of_gateway()

    # in the thread that reads

    def _on_answer(self, answer: Any) -> None:
        if answer is None:
            self.has_ended = True
            self._lose_all()
            return
        asked = None
        if type(answer) is tuple and len(answer) > 1 and type(answer[0]) is int:
            asked = self.asked.pop(answer[0], None)
        if asked is None:
            return  # this answers nothing that was asked
        work = asked.work
        if len(answer) == 2:
            work.end(answer[1])
        else:
            error = self._calls.error_of(answer, work.function, asked.was_resent)
            if error is None:  # again, as source
                try:
                    self.post(work, again=True)
                    return
                except Exception as exc:  # it can't be sent as source
                    error = exc
            work.sink.end(None, error)
        if not self.asked and self._callback is not None:
            self._callback.may_be_late = True
        self._owner.on_answered(self)

    def _lose_all(self) -> None:
        # A thread that is about to note how much it wrote holds this lock.
        lock = self.gateway._writer._lock
        (taken,) = map(lock.acquire, (True,), (NOTE_S,))
        if taken:
            lock.release()
        lost = [self.asked.pop(number, None) for number in list(self.asked)]
        self._owner.on_lost(self, [asked for asked in lost if asked is not None])
