"""A queue in Python: for a Python that has none in C, or where waits have to end in time.

Start at ``timed_inbox``.
"""

from __future__ import annotations

from ..gateway_base import PY2, ExecModel, _import, _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

    from ..gateway_base import Inbox
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

_Empty = ExecModel().Empty  # now, as nothing may be left to import it from when a wait ends


def timed_inbox(execmodel: ExecModel) -> Inbox:
    """Return a queue whose waits with a timeout end, and at once when an item comes."""
    return OwnInbox() if execmodel.has_main_thread and not PY2 else execmodel.inbox()


class OwnInbox(object):
    """A queue without a bound; an interrupt leaves none of its locks taken."""

    def __init__(self) -> None:
        self._items: deque[object] = deque()
        self._arrived = _thread.allocate_lock()  # free when something has come
        self.put_nowait = self.put

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return not self._items

    def put(self, item: object) -> None:
        self._items.append(item)
        self._wake()

    def _wake(self) -> None:
        try:
            self._arrived.release()
        except RuntimeError:  # it is free
            pass

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        time = _import("time")
        deadline = None if timeout is None else time.time() + timeout
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                pass
            left = -1 if deadline is None else deadline - time.time()
            if not block or (deadline is not None and left <= 0):
                raise _Empty
            try:
                block = self._arrived.acquire(True, left)  # False: a clock may stand still
            finally:
                if self._items:  # there may be something for another one, too
                    self._wake()
