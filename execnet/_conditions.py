"""A condition whose lock no interrupt leaves taken: doc/interrupts.rst, "Locks".

Start at ``Condition``.
"""

from __future__ import annotations

import threading


class Condition(threading.Condition):
    """As that of ``threading``, whose ``__enter__`` takes its lock before it returns.

    ``__exit__`` is a slot that holds the lock's own, so leaving is a call in C.
    """

    __slots__ = ("__exit__", "_takes")

    def __init__(self) -> None:
        lock = threading.RLock()
        super().__init__(lock)
        self.__exit__ = lock.__exit__  # type: ignore[method-assign]
        self._takes = iter(lock.acquire, None)  # each step takes the lock

    def __enter__(self) -> bool:
        for taken in self._takes:
            return taken
        return False
