"""Programs that start joiners: srun, mpirun, a script.

Start at ``Launcher``.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from .._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

END_S = 0.5  # for those told to end, until they are killed


class Launcher:
    """A program that starts joiners; any thread may call.

    words: the command.  key: for joiners, in the variable ``variable`` of its environment; None if
    they find it elsewhere.  on_end: called in a thread when it has ended.  Its stderr is ours, its
    stdin is empty.  Ctrl-C on the terminal does not reach it, only the program that waits for it.
    """

    def __init__(
        self, words: Sequence[str], variable: str, key: bytes | None, on_end: Callable[[], object]
    ) -> None:
        import os
        import subprocess

        environment = dict(os.environ)
        if key is not None:
            environment[variable] = key.hex()
        self.name = words[0]
        self._process = subprocess.Popen(
            list(words), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._on_end = on_end
        self._thread = threading.Thread(target=self._wait, name="execnet-launcher", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there can be no more threads
            self._process.kill()
            self._process.wait()
            raise

    def _wait(self) -> None:
        self._process.wait()
        self._on_end()

    def failure(self) -> str:
        """Return how it failed, "" if it did not."""
        status = self._process.poll()
        if not status:
            return ""
        how = f"signal {-status} has ended it" if status < 0 else f"its exit status is {status}"
        return f"{self.name} has failed, {how}"

    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self._process.poll() or 0) < 0

    def has_ended(self, deadline: float) -> bool:
        """Whether it has ended by the deadline, as ``time.monotonic()``."""
        self._thread.join(max(0.0, deadline - monotonic()))
        return not self._thread.is_alive()

    def stop(self, how: str) -> None:
        """End it: "terminate" asks, "kill" does not."""
        with suppress(OSError):  # it has just ended
            getattr(self._process, how)()


def end_all(launchers: list[Launcher], deadline: float) -> None:
    """Wait until all have ended, as they do after their last joiner; then end the rest."""
    left = [one for one in launchers if not one.has_ended(deadline)]
    for how in "terminate", "kill":
        for launcher in left:
            launcher.stop(how)
        deadline = monotonic() + END_S
        left = [one for one in left if not one.has_ended(deadline)]
