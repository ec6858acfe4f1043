"""What becomes of the connections of a group's gateways is told: ``Group.on_state``."""

from __future__ import annotations

from ..gateway_base import get_execmodel, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway import Gateway

    Callback = Callable[[Gateway, str], object]


class Teller:
    """Calls a callback in a thread that no gateway needs; one call after the other."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._lock = new_lock()  # guards the next two
        self._untold: list[tuple[Gateway, str]] = []
        self._runs = False

    def tell(self, gateway: Gateway, state: str) -> None:
        """Have it called soon."""
        with self._lock:
            self._untold.append((gateway, state))
            starts, self._runs = not self._runs, True
        if starts:
            try:
                get_execmodel("thread").start(self._run, (), "execnet-states")
            except RuntimeError:  # there can be no more threads; the next one tells of it as well
                with self._lock:
                    self._runs = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._untold:
                    self._runs = False
                    return
                gateway, state = self._untold.pop(0)
            try:
                self._callback(gateway, state)
            except Exception:  # there is nobody to raise it to
                import traceback

                traceback.print_exc()
