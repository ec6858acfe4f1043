"""The result of a call that nobody waits for: a future, as in ``concurrent.futures``.

Its result comes from the thread that reads a gateway, which must not wait: least of all for a lock
that a thread looking at futures may hold.  So another thread, ``Teller``, notifies waiters and runs
callbacks.  Start at ``Future``.
"""

from __future__ import annotations

from concurrent import futures
from concurrent.futures import _base
from contextlib import suppress

from .._conditions import Condition
from .._features.queues import timed_inbox
from ..gateway_base import ExecModel, TimeoutError, _Flag, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, TypeVar

    T = TypeVar("T")

    class _Base(futures.Future[T], Generic[T]):
        """The attributes that the type stubs leave out."""

        _done_callbacks: list[Callable[[Future[T]], object]]

        def _invoke_callbacks(self) -> None: ...

else:
    _Base = futures.Future

LINGER_S = 0.1  # how long a teller waits for more work


class Teller:
    """Runs functions one after the other, in a thread that exists while there are any."""

    def __init__(self, execmodel: ExecModel) -> None:
        self._execmodel = execmodel
        self._inbox = timed_inbox(execmodel)
        self._empty = execmodel.Empty
        self._lock = new_lock()
        self._runs = False

    def tell(self, function: Callable[[], object]) -> None:
        """Have a function run soon; never waits for it."""
        self._inbox.put(function)
        with self._lock:
            if self._runs:
                return
            self._runs = True
        try:
            self._execmodel.start(self._run, (), "execnet-futures")
        except RuntimeError:  # no more threads can be started
            self._run(0)

    def _run(self, linger_s: float = LINGER_S) -> None:
        while True:
            try:
                function = self._inbox.get(True, linger_s) if linger_s else self._inbox.get(False)
            except self._empty:
                with self._lock:
                    if self._inbox.empty():
                        self._runs = False
                        return
                continue
            function()
            del function  # it would keep a future alive


class Future(_Base["T"]):
    """The result of a call that was submitted: a ``concurrent.futures.Future``.

    ``result`` and ``exception`` take no lock, so that an interrupt leaves none taken.  Callbacks
    run in a thread of their own, one after the other.  Whichever thread takes the only item of
    ``_unbegun`` begins the call or cancels it; whichever takes that of ``_unended`` ends it.
    """

    def __init__(self, teller: Teller, execmodel: ExecModel, refuse: Callable[[], object]) -> None:
        super().__init__()
        self._condition = Condition()
        self._teller = teller
        self._refuse = refuse  # raises where the wait would last for ever
        self._unbegun, self._unended = [None], [None]
        self._ended = _Flag(execmodel)
        self._is_cancelled = False
        self.interrupt: Callable[[], object] | None = None  # ends a running call, if it may

    def done(self) -> bool:
        """Whether it was cancelled or has ended."""
        return self._ended.is_set()

    def running(self) -> bool:
        """Whether the call was sent and has not ended."""
        return not self._unbegun and not self._ended.is_set()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._is_cancelled and self._ended.is_set()

    def result(self, timeout: float | None = None) -> T:
        """Return what the function returned, or raise what it raised.

        timeout: seconds to wait, None for as long as it takes.  Raises ``TimeoutError``,
        ``concurrent.futures.CancelledError``, ``WorkerDied`` if the worker died meanwhile,
        ``DeadlockError`` in a callback of the gateway that the answer comes through.
        """
        self._wait(timeout)
        try:
            if self._exception is not None:
                raise self._exception
            return self._result  # type: ignore[return-value]
        finally:
            del self  # the traceback would keep it alive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the function raised, None if it returned; waits like ``result``."""
        self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        if not self._ended.is_set():
            if timeout is None or timeout > 0:
                self._refuse()
            if not self._ended.wait(timeout):
                raise TimeoutError(f"not done after {timeout} seconds")
        if self._is_cancelled:
            raise futures.CancelledError

    def begin(self) -> bool:
        """Note that the call is sent; False if it was cancelled before.  May be called again."""
        if self._unbegun:
            with suppress(IndexError):
                self._unbegun.pop()
        return not self._ended.is_set() and not self._is_cancelled

    def cancel(self) -> bool:
        """Cancel a call that was not sent yet, or, if the executor was asked to, a running one.

        Returns whether it is cancelled.
        """
        interrupt = None
        try:
            self._unbegun.pop()
        except IndexError:
            interrupt = self.interrupt
            if interrupt is None:
                return self.cancelled()
        if self._end(None, None, True):
            self._publish_waiting()
            if interrupt is not None:
                interrupt()
        return self.cancelled()

    def end(self, value: object, error: BaseException | None) -> bool:
        """Give it a result or an error, unless it has one or was cancelled; never waits."""
        if not self._end(value, error, False):
            return False
        (taken,) = map(self._condition.acquire, (False,))
        if taken:
            try:
                taken = not self._waiters
                if taken:
                    self._state = _base.FINISHED
            finally:
                self._condition.release()
        if not taken:
            self._teller.tell(self._publish_waiting)
        elif self._done_callbacks:
            self._teller.tell(self._invoke_callbacks)
        return True

    def _end(self, value: Any, error: BaseException | None, is_cancelled: bool) -> bool:
        try:
            self._unended.pop()
        except IndexError:
            return False
        self._result, self._exception, self._is_cancelled = value, error, is_cancelled
        self._ended.set()
        return True

    def _publish_waiting(self) -> None:
        """Notify threads that wait for several futures, and run the callbacks."""
        with self._condition:
            if self._is_cancelled:
                self._state = _base.CANCELLED_AND_NOTIFIED
            else:
                self._state = _base.FINISHED
            for waiter in self._waiters:
                if self._is_cancelled:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
        self._invoke_callbacks()
