"""Tells a callback what happens to gateways: ``Group.on_state`` and ``Group.on_respawn``."""

from __future__ import annotations

from .gateway_base import get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Reporter:
    """Calls a callback in a thread that no gateway needs; one call after the other."""

    def __init__(self, callback: Callable[..., object], name: str = "execnet-states") -> None:
        self._callback = callback
        self._name = name  # of the thread
        self._lock = new_lock()  # guards the next two
        self._untold: list[tuple[object, ...]] = []
        self._runs = False

    def tell(self, *what: object) -> None:
        """Have the callback called with these soon."""
        with self._lock:
            self._untold.append(what)
            starts, self._runs = not self._runs, True
        if starts:
            try:
                get_execmodel("thread").start(self._run, (), self._name)
            except RuntimeError:  # no more threads; the next report brings this one along
                with self._lock:
                    self._runs = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._untold:
                    self._runs = False
                    return
                what = self._untold.pop(0)
            try:
                self._callback(*what)
            except BaseException:  # also SystemExit: there is nobody to raise it to
                import traceback

                traceback.print_exc()
