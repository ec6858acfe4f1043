"""A lane: calls of one gateway that run one after the other, with a callback for each answer.

Start at ``Lane.send``.
"""

from __future__ import annotations

import itertools
from concurrent import futures
from contextlib import suppress
from functools import partial

from .._clock import monotonic
from .._endpoint import PipeEndpoint, Writer
from .._errors import WorkerDied
from ..gateway_base import (
    _HEADER,
    ITEM_MAX,
    JOINED_BYTES,
    GatewayState,
    LoadError,
    Message,
    _left,
    new_rlock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .._features.codecs import Codec
    from ..gateway_base import Frame
    from .near import Calls, GatewayLike

    class Sink(Protocol):
        """Receives the result of a call; ``Future`` is one."""

        interrupt: Callable[[], object] | None

        def begin(self) -> bool: ...
        def cancel(self) -> object: ...
        def end(self, value: object, error: BaseException | None) -> object: ...

    class Owner(Protocol):
        """Owns lanes; the methods run in the thread that reads the gateway, and must not wait."""

        def go_on(self, lane: Lane) -> bool: ...
        def on_answered(self, lane: Lane) -> None: ...
        def on_given_back(self, lane: Lane, works: list[Work]) -> None: ...
        def on_lost(self, lane: Lane, lost: list[Asked]) -> None: ...


AHEAD_S = 0.01  # a worker gets no more calls at once than take about that long
AHEAD_MAX = 32
LEAST_S = 0.002  # what takes no longer than that is not shared out once more
PACE_S = 0.02  # what is older than that counts half for the pace of calls, and so on
NOTE_S = 1.0  # more than a write takes when nobody reads


class Work:
    """A call to be made, and what receives its result."""

    __slots__ = ("codec", "function", "is_mapped", "named", "positional", "retries", "sink")

    def __init__(
        self,
        sink: Sink,
        function: object,
        positional: tuple[object, ...],
        named: dict[str, object],
        retries: int = 0,
        codec: Codec | None = None,
        is_mapped: bool = False,
    ) -> None:
        self.sink = sink
        self.function = function
        self.positional = positional
        self.named = named
        self.retries = retries  # how often it may run again after its worker died
        self.codec = codec  # of arguments and result
        self.is_mapped = is_mapped  # one of many, so that nobody waits for the start of this one

    def end(self, result: object) -> None:
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

    __slots__ = ("_end", "_frame", "was_resent", "work")

    def __init__(self, work: Work, was_resent: bool) -> None:
        self.work = work
        self.was_resent = was_resent  # as source, since the module was missing
        self._frame: Frame = []
        self._end = 0

    def goes_with(self, frame: Frame, end: int) -> None:
        """Note how many bytes of a frame have to be written for the request to be sent."""
        self._frame, self._end = frame, end

    def was_sent(self) -> bool:
        """Whether the request has left, so that the call may have begun."""
        return bool(self._frame) and sum(filter(None, self._frame[2])) >= self._end


class Lane:
    """Calls of one gateway that run one after the other.

    ``asked`` holds requests without an answer so far.  Any thread may send; answers arrive in the
    thread that reads the gateway.
    """

    def __init__(self, calls: Calls, owner: Owner) -> None:
        self.gateway = calls.gateway
        self.asked: dict[int, Asked] = {}
        self.has_ended = False
        self.is_free = False  # whether it has nothing to do; its owner sets this
        # How many calls it should have at once, if they may be sent ahead; 0: it is not known yet.
        self.depth = 0
        self.least = 1  # the same, where other lanes may soon have nothing to do
        self.is_exact = _is_exact(self.gateway)
        # Whoever posts holds it, so that requests leave in the order that ``begun`` relies on.
        self.posting = new_rlock()
        self._held: list[tuple[Asked, bytes, bytes]] = []
        self._pace_s = 0.0  # what a call takes
        self._posted_s = 0.0  # when it got something to do
        self._answered = 0  # since then
        self._recalled = 0  # the last number when calls were recalled
        self.calls = calls
        self._owner = owner
        self._numbers = itertools.count(1)
        self._put: Callable[[Frame], bool] | None = None
        writer, write_now = self.gateway._writer, self.gateway._io.write_now
        if type(writer) is Writer and write_now is not None:
            self._put = partial(writer.put_now, write_now)
        self._channel = calls.new_lane()
        self._channel.setcallback(self._on_answer, endmarker=None)
        self._callback = self.gateway.factory._callbacks.get(self._channel.id)

    def is_live(self) -> bool:
        """Whether calls can be sent."""
        return not self.has_ended and self.gateway._state == GatewayState.LIVE

    def send(self, work: Work) -> None:
        """Send a call; waits while the stream takes nothing.

        Raises what ``Calls.request`` raises, and OSError if the worker is gone.
        """
        self.calls.send_modules_of(work.function)
        number, request = self._prepare(Asked(work, False))
        try:
            self.calls.send(self._channel.id, request)
        except BaseException:
            self.asked.pop(number, None)
            raise
        self.look_for_end()

    def post(self, work: Work, again: bool = False) -> None:
        """Have a call sent soon; never waits for the stream.  Raises what ``request`` raises."""
        with self.posting:
            self.hold(work, again)
            self.post_held()
        self.look_for_end()

    def hold(self, work: Work, again: bool = False) -> None:  # holds posting
        """Make the request of a call, to be sent by ``post_held``; raises as ``post``."""
        asked = Asked(work, again)
        _, request = self._prepare(asked)
        size = len(request)
        if size <= ITEM_MAX:
            self._held.append((asked, _HEADER.pack(Message.CALL, self._channel.id, size), request))
            return
        self.post_held()
        writer, id = self.gateway._writer, self._channel.id
        writer.post(_HEADER.pack(Message.CALL, id, 0), b"")
        for _, header, payload in self.gateway.factory.frames_of(id, [request]):
            frame = writer.frame(header, payload)
            asked.goes_with(frame, _left(frame))
            writer.post_frame(frame)

    def post_held(self) -> None:  # holds posting
        """Have the held requests sent soon, together; call ``look_for_end`` after it."""
        writer = self.gateway._writer
        while self._held:
            count = size = 0
            for _, header, request in self._held:
                size += len(header) + len(request)
                if count and size > JOINED_BYTES:
                    break
                count += 1
            held, self._held = self._held[:count], self._held[count:]
            if count == 1:
                frame = writer.frame(*held[0][1:])
            else:
                frame = [b"".join([part for one in held for part in one[1:]]), b"", [], []]
            end = 0
            for asked, header, request in held:
                end += len(header) + len(request)
                asked.goes_with(frame, min(end, _left(frame)))  # it may be deflated
            if self._put is None or frame[1] or not self._put(frame):
                writer.post_frame(frame)

    def _prepare(self, asked: Asked) -> tuple[int, bytes]:
        number, work = next(self._numbers), asked.work
        if not self.asked:
            self._posted_s, self._answered = monotonic(), 0
        given = work.function, work.positional, work.named, work.codec
        request = self.calls.request(number, *given)
        self.asked[number] = asked
        if self._callback is not None:
            self._callback.may_be_late = False  # no other thread may read the stream now
        self.gateway.factory.take_back()
        return number, request

    def look_for_end(self) -> None:
        """Lose all calls if the worker has ended, since they may have come too late for that."""
        if self.has_ended or self._channel.isclosed():  # nothing else will report it
            self._lose_all()

    def measure(self) -> None:
        """Adapt how many calls it should have to what those take that were answered meanwhile."""
        if self._answered:
            taken_s = monotonic() - self._posted_s
            pace_s = max(taken_s / self._answered, 1e-6)
            self._pace_s = min(pace_s, 2 * self._pace_s or pace_s)  # a busy machine delays some
            self.depth = max(1, min(AHEAD_MAX, int(AHEAD_S / self._pace_s)))
            self.least = max(1, min(AHEAD_MAX, int(LEAST_S / self._pace_s)))
            if taken_s > PACE_S:  # forget half of it
                self._posted_s += taken_s / 2
                self._answered //= 2

    def recall(self) -> None:
        """Have calls given back that were sent ahead and have not begun; never waits."""
        last = max(list(self.asked), default=0)
        if len(self.asked) > 1 and last > self._recalled:
            self._recalled = last
            with suppress(OSError):  # the worker is gone, or can't do that
                self.gateway._interrupt(self._channel.id, -1)

    def begun(self, lost: list[Asked]) -> int:
        """Return how many of the calls that were lost may have begun, the first ones.

        A worker tells of a call's end before it begins the next one.  So if all that it has written
        was read, only one of them can have begun.
        """
        sent = sum(asked.was_sent() for asked in lost)
        error = self.gateway._error
        is_exact = self.is_exact and type(error) is WorkerDied and error.exitcode is not None
        return min(sent, 1) if is_exact else sent

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
        return self.calls.end_of_gateway()

    # in the thread that reads

    def _on_answer(self, answer: Any) -> None:
        if answer is None:
            self.has_ended = True
            self._lose_all()
            return
        asked = None
        if type(answer) is tuple and answer:
            if type(answer[0]) is int:
                asked = self.asked.pop(answer[0], None)
            elif len(answer) == 1:
                self._take_back(answer[0])
        if asked is None:
            return  # this answers nothing that was asked
        work = asked.work
        self._answered += 1
        goes_on = False
        if len(answer) == 2:
            goes_on = self._owner.go_on(self)  # before the result wakes another thread
            work.end(answer[1])
        else:
            error = self.calls.error_of(answer, work.function, asked.was_resent)
            if error is None and not work.sink.begin():  # it was cancelled meanwhile
                error = futures.CancelledError()
            if error is None:  # again, as source
                try:
                    self.post(work, again=True)
                    return
                except Exception as exc:  # it can't be sent as source
                    error = exc
            work.sink.end(None, error)
        if not self.asked and self._callback is not None:
            self._callback.may_be_late = True
        if not goes_on:
            self._owner.on_answered(self)

    def _take_back(self, numbers: object) -> None:
        """Have the owner take back calls that have not begun."""
        if type(numbers) is not list or any(type(number) is not int for number in numbers):
            return
        given_back = [self.asked.pop(number, None) for number in numbers]
        works = [asked.work for asked in given_back if asked is not None]
        if works:
            self._owner.on_given_back(self, works)

    def _lose_all(self) -> None:
        # A thread that is about to note how much it wrote holds this lock.
        lock = self.gateway._writer._lock
        (taken,) = map(lock.acquire, (True,), (NOTE_S,))
        if taken:
            lock.release()
        lost = [self.asked.pop(number, None) for number in list(self.asked)]
        self._owner.on_lost(self, [asked for asked in lost if asked is not None])


def _is_exact(gateway: GatewayLike) -> bool:
    """Whether all that the worker wrote is read, whatever its end: it is our child, over pipes."""
    io = gateway.endpoint
    pid = io.popen.pid if isinstance(io, PipeEndpoint) and io.popen else None
    return pid is not None and bool(pid == gateway.handshake.hello.get("pid"))
