"""Items that have come to a channel, and the tasks that wait for them.

An item leaves the inbox only in the task that returns it, so that cancelling a ``receive`` loses
none.  A task whose item has come goes on at once: see ``Turn``.  Start at ``Inbox``.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque

from ..gateway_base import ENDMARKER, ExecModel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Waiter(asyncio.Future):  # type: ignore[type-arg]
    """What a task awaits: True once it may go on, False if that is because of a deadline.

    It is a future, but one whose task need not go on by way of the loop's queue.  Only one task
    awaits it.  However it is woken, interrupted and cancelled, the task goes on once.
    """

    _task: tuple[Callable[[Waiter], object], contextvars.Context] | None = None

    def add_done_callback(
        self, fn: Callable[[Waiter], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Note how the task goes on; its loop calls this once the task waits."""
        if self.done() or self._task is not None:
            super().add_done_callback(fn, context=context)
        else:
            self._task = fn, contextvars.copy_context() if context is None else context

    def cancel(self, msg: object = None) -> bool:
        """Have the task go on, with a CancelledError; whether it did not know how it would."""
        was_waiting = super().cancel(msg)
        self.go_on_soon()  # also if it was woken and an interrupt came then
        return was_waiting

    def go_on_soon(self) -> None:
        """Let the task go on in the next round of the loop."""
        task, self._task = self._task, None
        if task is not None:
            self.get_loop().call_soon(task[0], self, context=task[1])

    def go_on(self) -> None:
        """Let the task go on until it waits again; from a callback of the loop, as its last."""
        task, self._task = self._task, None
        if task is not None:
            task[1].run(task[0], self)


class Turn:
    """The turn of a gateway in its loop: the callback that reads what has come.

    The first task that gets an item in it goes on as the last step of that callback.  Others go on
    in the next round of the loop, which costs more than half as much as all that asyncio adds to
    a pipe.  Only one does so, since the other descriptors of the loop have their turns, too.
    """

    __slots__ = ("is_open", "waiter")

    def __init__(self) -> None:
        self.is_open = False
        self.waiter: Waiter | None = None  # woken, and not yet gone on


class Inbox:
    """Items that have come and were not taken yet, and the tasks that wait for items.

    Only the loop's thread uses it.  ``put`` wakes one of the tasks, which then looks for an item
    itself.
    """

    __slots__ = ("_turn", "_waiters", "items", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn) -> None:
        self.loop, self._turn = loop, turn
        self.items: list[object] | deque[object] = []  # a deque as soon as there is more than one
        self._waiters: list[Waiter] = []

    def qsize(self) -> int:
        """Return how many items there are."""
        return len(self.items)

    def empty(self) -> bool:
        """Whether there is no item."""
        return not self.items

    def put(self, item: object) -> None:
        """Add an item."""
        if self.items and type(self.items) is list:
            self.items = deque(self.items)
        self.items.append(item)
        if self._waiters:
            self.wake_next()

    put_nowait = put

    def next_is_end(self) -> bool:
        """Whether all items were taken, and no more can come."""
        return bool(self.items) and self.items[0] is ENDMARKER

    def put_back(self, item: object) -> None:
        """Make an item that was taken the next one again."""
        self.items = deque([item, *self.items])
        self.wake_next()

    def get(self, block: bool = False, timeout: float | None = None) -> object:
        """Take the next item; raises ``Empty`` if there is none, as this never waits."""
        if not self.items:
            raise ExecModel().Empty
        return self.items.pop() if type(self.items) is list else self.items.popleft()  # type: ignore[union-attr]

    def wake_next(self) -> None:
        """Wake one task that waits, if there is something for it."""
        if self.items:
            for waiter in self._waiters:
                if not waiter.done():
                    turn = self._turn
                    waiter.set_result(True)
                    if turn.is_open and turn.waiter is None:
                        turn.waiter = waiter
                    else:
                        waiter.go_on_soon()
                    return

    def wake_all(self, _given: object = None) -> None:
        """Wake all tasks that wait, to look whether there is something for them."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(True)
                waiter.go_on_soon()

    async def wait(self, deadline: float | None) -> bool:
        """Wait until there may be an item; False if the deadline, by the loop's clock, is over."""
        waiter = Waiter(loop=self.loop)
        timer = None
        if deadline is not None:
            timer = self.loop.call_at(deadline, _set_late, waiter)
        self._waiters.append(waiter)
        took_turn = False
        try:
            took_turn = bool(await waiter)
            return took_turn
        finally:
            self._waiters.remove(waiter)
            if timer is not None:
                timer.cancel()
            if not took_turn:  # it may have been woken for an item, which is now the next task's
                self.wake_next()


def _set_late(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(False)
        waiter.go_on_soon()
