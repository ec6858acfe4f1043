"""An executor over the workers of a group, as in ``concurrent.futures``.

Start at ``Executor.submit``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from concurrent import futures

from .._clock import monotonic
from .._features.queues import timed_inbox
from ..gateway_base import (
    ExecnetError,
    TimeoutError,
    _Flag,
    _refuse_in_callback,
    new_lock,
)
from .calling import Calling
from .future import Future, Teller
from .lane import AHEAD_MAX, Asked, Lane, Work
from .near import Mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, ParamSpec, Protocol, TypeVar

    from .._features.codecs import Codec
    from .._imports.library import Library
    from ..gateway_base import ExecModel, Inbox

    Row = tuple[object, ...]  # arguments

    P = ParamSpec("P")
    T = TypeVar("T")

    class GroupLike(Protocol):
        """What an executor needs from its group."""

        _executors: list[Executor]
        _codec: Codec | None

        def _get_library(self) -> Library: ...
        def _awaits_workers(self) -> bool: ...
        @property
        def execmodel(self) -> ExecModel: ...
        def __iter__(self) -> Iterator[Any]: ...


# How long a thread that waits for a result lets more of them come while workers have enough to do:
# waking it for each takes longer than a small call.
PAUSE_S = 0.001
AT_HAND = (list, tuple, range)  # iterables whose items never have to be waited for


class Executor(futures.Executor):
    """Calls functions in the workers of a group, each call in whichever is free.

    Any thread may call.  ``_lock`` guards the lanes, the waiting calls and the counts; nothing is
    sent while it is held.  A call that was sent counts as begun.
    """

    def __init__(
        self,
        group: GroupLike,
        max_per_worker: int = 1,
        imports: Iterable[str] | None = None,
        codec: Codec | None = None,
        retries: int = 0,
        cancel: str | None = None,
    ) -> None:
        for name, number, least in ("max_per_worker", max_per_worker, 1), ("retries", retries, 0):
            if type(number) is not int or number < least:
                raise ValueError(f"{name} is a number from {least} on, not {number!r}")
        self._group = group
        self._max_per_worker = max_per_worker
        if cancel not in (None, "interrupt", "kill"):
            raise ValueError(f"cancel must be 'interrupt', 'kill' or None, not {cancel!r}")
        self._imports = None if imports is None else _checked_imports(group, imports)
        if codec is not None:
            from .._features.codecs import check_codec

            check_codec(codec)
        self._codec = group._codec if codec is None else codec
        self._retries = retries
        self._cancel = cancel
        self._teller = Teller(group.execmodel)
        self._lock = new_lock()
        self._waiting: deque[Work] = deque()
        self._lanes: dict[object, list[Lane]] = {}  # by gateway
        self._free: deque[Lane] = deque()
        self._unfinished = 0
        self._depth = 1  # of a lane that was measured lately, for those that were not
        self._is_shut_down = False
        self._finished: list[_Flag] = []  # of threads that wait for the end of all calls
        self._last_loss: BaseException | None = None  # why a worker was lost, if one was lost
        group._executors.append(self)
        self._meet_new_workers()

    @property
    def _max_workers(self) -> int:
        """How many calls run at once; dask asks the executors of the standard library so."""
        with self._lock:
            return sum(map(len, self._lanes.values())) or 1

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called by the first worker that is free; return its future.

        Arguments as for ``Gateway.call``; whatever that would raise, the future holds.  Raises
        RuntimeError after ``shutdown``, and if the group has no workers.
        """
        self._send_modules_of(fn, 1)
        future: Future[T] = Future(self._teller, self._group.execmodel, self._refuse)
        self._submit(Work(future, fn, args, kwargs, self._retries, self._codec))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator of ``fn(*items)`` for the items of the iterables, in their order.

        timeout: seconds from now after which waiting raises ``TimeoutError``.
        chunksize: how many calls travel in one message, and fail together.  buffersize: how many
        results may be in progress or waiting to be taken; items are then taken from the iterables
        as results are taken.  None asks for all of them at once.
        """
        check_map(chunksize, buffersize)
        self._send_modules_of(fn, None)
        rows = rows_of(iterables, chunksize)
        function = Mapped(fn, chunksize > 1)
        deadline = None if timeout is None else monotonic() + timeout
        asked: deque[_Slot] = deque()
        ready = timed_inbox(self._group.execmodel)

        def ask(*rows: Row) -> None:
            slots = [_Slot(ready) for _ in rows]
            retries, codec = self._retries, self._codec
            pairs = zip(slots, rows, strict=True)
            self._submit(*[Work(s, function, row, {}, retries, codec, True) for s, row in pairs])
            asked.extend(slots)

        first = itertools.islice(rows, buffersize)
        if all(type(one) in AT_HAND for one in iterables):  # all at once
            ask(*itertools.islice(first, AHEAD_MAX * len(self._free)))  # so that the workers begin
            ask(*first)
        for row in first:
            ask(row)
        results = self._results(asked, rows if buffersize else iter(()), ask, ready, deadline)
        return itertools.chain.from_iterable(results) if chunksize > 1 else results

    def _results(
        self,
        asked: deque[_Slot],
        rows: Iterator[Row],
        ask: Callable[[Row], None],
        ready: Inbox,
        deadline: float | None,
    ) -> Iterator[Any]:
        try:
            while asked:
                slot = asked[0]
                if not slot.has_ended:
                    self._refuse()
                    if self._waiting:
                        self._group.execmodel.sleep(PAUSE_S)
                slot.is_awaited = True
                while not slot.has_ended:
                    self._await(ready, deadline)
                asked.popleft()
                for row in itertools.islice(rows, 1):
                    ask(row)
                if slot.error is not None:
                    raise slot.error
                yield slot.value
        finally:
            for slot in asked:
                slot.cancel()
            if asked:
                self._recall()

    def _await(self, ready: Inbox, deadline: float | None) -> None:
        timeout = None if deadline is None else max(0.0, deadline - monotonic())
        try:
            ready.get(True, timeout)
        except self._group.execmodel.Empty:
            raise TimeoutError("no result within the timeout for all") from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the workers stay.

        wait: until all submitted calls have ended.  cancel_futures: cancel those that were not
        sent yet.  Raises ``DeadlockError`` if it would wait in a callback of a worker's gateway.
        """
        with self._lock:
            self._is_shut_down = True
            waiting = list(self._waiting) if cancel_futures else []
        for work in waiting:
            work.sink.cancel()
        self._dispatch()
        if cancel_futures:
            self._recall()
        if wait:
            self._refuse()
            self._wait_finished()
        self._close_if_finished()

    def _wait_finished(self) -> None:
        finished = _Flag(self._group.execmodel)
        with self._lock:
            if not self._unfinished:
                return
            self._finished.append(finished)
        finished.wait()

    def _close_if_finished(self) -> None:
        """Give the lanes back to the gateways once nothing can need them."""
        with self._lock:
            if self._unfinished or not self._is_shut_down:
                return
            lanes = [lane for lanes in self._lanes.values() for lane in lanes]
            self._lanes.clear()
            self._free.clear()
            if self in self._group._executors:
                self._group._executors.remove(self)
        for lane in lanes:
            lane.close()

    def _refuse(self) -> None:
        """Raise ``DeadlockError`` in a callback of a gateway that the wait is for."""
        for gateway in list(self._lanes):
            _refuse_in_callback(gateway, self)

    # requests

    def _send_modules_of(self, function: object, count: int | None) -> None:
        """Send the module of a function to the workers that are to call it first.

        They would have to ask for it otherwise.  count: of calls, None for many.
        """
        for lane in self._lacking(function, count):
            with contextlib.suppress(OSError):  # it has ended, as its calls are going to tell
                lane.calls.send_modules_of(function)

    def _lacking(self, function: object, count: int | None) -> list[Lane]:
        """Return lanes, of those that are next, whose worker was not sent a function's module."""
        with self._lock:
            lanes = list(itertools.islice(self._free, count))
        return [lane for lane in lanes if lane.calls.new_module_of(function)]

    def _submit(self, *works: Work) -> None:
        with self._lock:
            self._admit(len(works))
            self._waiting.extend(works)
            if not self._free:
                return
        self._dispatch()

    def _admit(self, count: int) -> None:  # holds _lock
        """Count calls as submitted; raises RuntimeError if they can't be."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not (self._lanes or self._group._awaits_workers()):
            raise self._no_worker()
        self._unfinished += count

    def on_group_changed(self) -> None:
        """The workers changed; runs in the thread that changed the group."""
        self._meet_new_workers()
        self._dispatch()

    def _meet_new_workers(self) -> None:
        """Make lanes for the workers that have none yet and can be called."""
        new: list[list[Lane]] = []
        for gateway in self._group:
            with self._lock:
                is_known = gateway in self._lanes or self._is_shut_down
                if is_known or not (isinstance(gateway, Calling) and gateway.is_live):
                    continue
                self._lanes[gateway] = []  # so that no other thread makes them as well
            lanes: list[Lane] = []
            try:
                if self._imports is not None:
                    self._forward_imports(gateway, self._imports)
                calls = gateway.get_calls()
                lanes += [Lane(calls, self) for _ in range(self._max_per_worker)]
            except (ExecnetError, OSError):  # it does not support calls, or has just ended
                pass
            with self._lock:
                self._lanes[gateway] = lanes
                lanes[:] = [lane for lane in lanes if not lane.has_ended]
                if not lanes:
                    del self._lanes[gateway]
            new.append(lanes)
        with self._lock:  # interleaved, so that no worker gets two calls while another has none
            for some in itertools.zip_longest(*new):
                for lane in filter(None, some):
                    lane.is_free = True
                    self._free.append(lane)

    def _forward_imports(self, gateway: Any, names: list[str]) -> None:
        gateway.forward_imports(names)

    def _forget(self, gateway: object, lane: Lane) -> None:  # holds _lock
        lanes = self._lanes.get(gateway, [])
        if lane in lanes:
            lanes.remove(lane)
        if not lanes:
            self._lanes.pop(gateway, None)

    def _dispatch(self) -> None:
        """Send waiting calls to free lanes."""
        while self._waiting:
            with self._lock:
                lane = self._take_free() if self._waiting else None
                works = [] if lane is None else self._take_waiting(lane)
                has_future = self._lanes or self._group._awaits_workers()
                lost = [] if has_future else list(self._waiting)
                if lost:
                    self._waiting.clear()
            for one in lost:
                one.sink.end(None, self._no_worker())
                self._count_finished()
            if lane is None:
                return
            if not self._post(lane, *works):
                self._give_back(lane)

    def _take_free(self) -> Lane | None:  # holds _lock
        while self._free:
            lane = self._free.popleft()
            lane.is_free = False
            if lane.is_live():
                return lane
        return None

    def _post(self, lane: Lane, *works: Work) -> bool:
        """Send calls but those that were cancelled; return whether any was sent."""
        count = 0
        with lane.posting:
            for work in works:
                if work.sink.begin():
                    if self._cancel is not None:
                        work.sink.interrupt = functools.partial(self._interrupt, lane, work)
                    try:
                        lane.hold(work)
                        count += 1
                        continue
                    except Exception as exc:  # the function or the arguments can't be sent
                        work.sink.end(None, exc)
                self._count_finished()
            lane.post_held()
        lane.look_for_end()
        return bool(count)

    def _recall(self) -> None:
        """Have calls given back that were sent ahead: nobody wants them, or others have time."""
        for lanes in list(self._lanes.values()):
            for lane in list(lanes):
                lane.recall()

    def _interrupt(self, lane: Lane, work: Work) -> None:
        """End a call that was cancelled, in the thread that did so."""
        if self._cancel == "interrupt":
            lane.interrupt(work)
        elif any(asked.work is work for asked in list(lane.asked.values())):
            lane.gateway.endpoint.kill()

    def _give_back(self, lane: Lane) -> None:
        with self._lock:
            if not lane.asked and not lane.is_free:
                lane.is_free = True
                self._free.append(lane)

    def _count_finished(self) -> None:
        with self._lock:
            self._unfinished -= 1
            is_last = self._is_shut_down and not self._unfinished
            finished = [] if self._unfinished else self._finished
            if not self._unfinished:
                self._finished = []
        for flag in finished:
            flag.set()
        if is_last:
            self._close_if_finished()

    def _no_worker(self) -> RuntimeError:
        error = RuntimeError("the group has no workers that can be called")
        error.__cause__ = self._last_loss
        return error

    # in the threads that read

    def go_on(self, lane: Lane) -> bool:
        """Give the lane its next calls; return whether it has any, and nothing else is to be done.

        The call that was answered still counts as unfinished: the next one is answered by the same
        thread, so that it can't be the last.
        """
        asked = 2 * len(lane.asked)  # more are sent when half of them have ended
        if self._waiting and asked <= self._depth_of(lane) and asked <= self._room(lane):
            self._post_more(lane)
        if not lane.asked:  # there was none, or it failed, or was lost at once
            return False
        with self._lock:
            self._unfinished -= 1
        return True

    def _post_more(self, lane: Lane) -> None:
        """Send a lane its next calls, unless another thread is still about to send it some."""
        (taken,) = map(lane.posting.acquire, (False,))  # doc/interrupts.rst, "Locks"
        try:
            if taken:
                lane.measure()
                self._depth = lane.depth or self._depth
                with self._lock:
                    works = self._take_waiting(lane)
                if works:
                    self._post(lane, *works)
        finally:
            if taken:
                lane.posting.release()

    def _room(self, lane: Lane) -> int:
        """Return how many calls a lane may have at once: its share of what waits, or very few."""
        waiting, free = len(self._waiting), len(self._free)
        if free:  # equal shares, or else the first call of few could hold up all others
            share = -(-waiting // (free + 1))
        else:
            share = max(lane.least, waiting // (len(self._lanes) * self._max_per_worker or 1))
        return max(1, min(self._depth_of(lane), share))

    def _depth_of(self, lane: Lane) -> int:
        return lane.depth or self._depth

    def _take_waiting(self, lane: Lane) -> list[Work]:  # holds _lock
        """Remove and return the calls that a lane should be sent.

        More than one only if they may run again, or if it is known at the worker's end which of
        them began.
        """
        waiting: deque[Work] = self._waiting
        works: list[Work] = []
        if lane.is_live():
            room = self._room(lane) - len(lane.asked)
            while waiting and (room > len(works) or not (works or lane.asked)):
                work = waiting[0]
                is_safe = work.retries or (work.is_mapped and lane.is_exact)
                if (works or lane.asked) and (not is_safe or self._cancel is not None):
                    break
                works.append(waiting.popleft())
        return works

    def on_answered(self, lane: Lane) -> None:
        """Count a call as finished, and give the lane its next one, if there is one."""
        self._count_finished()
        self._give_back(lane)
        self._dispatch()
        if lane.is_free:
            self._recall()

    def on_given_back(self, lane: Lane, works: list[Work]) -> None:
        """Let other lanes have calls that were sent ahead and have not begun."""
        with self._lock:
            self._waiting.extendleft(reversed(works))
        self._give_back(lane)
        self._dispatch()

    def on_lost(self, lane: Lane, lost: list[Asked]) -> None:
        """Run elsewhere the calls that may run again; fail the rest."""
        begun = lane.begun(lost)
        failed = [asked.work for asked in lost[:begun] if not asked.work.retries]
        again = [asked.work for asked in lost if asked.work not in failed]
        for work in again[: begun - len(failed)]:
            work.retries -= 1
        with self._lock:
            self._last_loss = lane.end_of_gateway()
            self._forget(lane.gateway, lane)
            self._waiting.extendleft(reversed(again))
        for work in failed:
            work.sink.end(None, lane.end_of_gateway())
            self._count_finished()
        self._dispatch()


def _checked_imports(group: GroupLike, names: Iterable[str]) -> list[str]:
    from .._imports.library import check_names
    from .._imports.near import check_found

    names = check_names(names, "executor", False)
    check_found(group._get_library(), names)
    return names


class _Slot:
    """Receives the result of a call of ``map``.

    ``ready`` gets an item only if this call is the one being waited for: waking a thread takes
    longer than everything else.
    """

    __slots__ = ("_ready", "error", "has_ended", "interrupt", "is_awaited", "value")

    def __init__(self, ready: Inbox) -> None:
        self._ready = ready
        self.value: object = None
        self.error: BaseException | None = None
        self.has_ended = self.is_awaited = False
        self.interrupt: Callable[[], object] | None = None

    def begin(self) -> bool:
        return not self.has_ended

    def end(self, value: object, error: BaseException | None) -> None:
        self.value, self.error = value, error
        self.has_ended = True
        if self.is_awaited:
            self._ready.put(None)

    def cancel(self) -> None:
        """Keep it from beginning, or end it; nobody waits for it any more."""
        interrupt = None if self.has_ended else self.interrupt
        self.has_ended = True
        if interrupt is not None:
            interrupt()


def check_map(chunksize: int, buffersize: int | None) -> None:
    """Raise ValueError or TypeError for options of ``map``, as those of the standard library."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def rows_of(iterables: tuple[Iterable[object], ...], size: int) -> Iterator[Row]:
    """Yield the arguments of calls that carry those of so many."""
    return chunks(iterables, size) if size > 1 else zip(*iterables)  # noqa: B905 - as ``map``


def chunks(iterables: tuple[Iterable[object], ...], size: int) -> Iterator[Row]:
    """Yield the arguments of calls that carry those of several, by columns.

    A column is a tuple of items; of a range it is its bounds, as a list.
    """
    if len(iterables) == 1:
        if type(iterables[0]) is range:
            left = iterables[0]
            while left:  # which may be longer than ``len`` can tell
                part, left = left[:size], left[size:]
                yield (([part.start, part.stop, part.step],),)
            return
        items = iter(iterables[0])
        while column := tuple(itertools.islice(items, size)):
            yield ((column,),)
        return
    rows = zip(*iterables)  # noqa: B905 - as the built-in map
    while chunk := tuple(itertools.islice(rows, size)):
        yield (tuple(zip(*chunk, strict=True)),)
