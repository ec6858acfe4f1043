"""Connects to the servers of several specs at once, in a few threads.

Each takes a few round trips, and one that does not answer must not hold up the others.  Start at
``Dials``.
"""

from __future__ import annotations

from collections import deque

from .. import gateway_io, gateway_socket
from .._features.queues import timed_inbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..gateway_base import ExecModel

THREADS_MAX = 16


class Dial:
    """One connection, or the error that came instead."""

    def __init__(self, settings: Settings, execmodel: ExecModel) -> None:
        self.settings = settings
        self.is_done = False
        self._results = timed_inbox(execmodel)  # what waits there belongs to whoever takes it out
        self._empty = execmodel.Empty

    def end(self, stream: Endpoint | None, error: BaseException | None) -> None:
        """Give the result; called once."""
        self._results.put((stream, error))
        self.is_done = True

    def stream(self, settings: Settings, execmodel: ExecModel) -> Endpoint:
        """Return the stream, or raise the error; may be called once, as ``Through``."""
        stream, error = self._results.get(True, None)
        if error is not None:
            raise error
        assert stream is not None
        return stream  # type: ignore[no-any-return]

    def drop(self) -> None:
        """Close the stream, if it is there and nobody has taken it."""
        try:
            stream, _ = self._results.get(False)
        except self._empty:
            return
        if stream is not None:
            stream.discard()


class Dials:
    """The connections of one call.

    several: specs that name servers.  on_done: called in some thread when there is another result.
    """

    def __init__(
        self, several: list[Settings], execmodel: ExecModel, on_done: Callable[[], object]
    ) -> None:
        self._execmodel = execmodel
        self._on_done = on_done
        self._is_over = False
        dials = [Dial(settings, execmodel) for settings in several]
        self._waiting = deque(dials)
        self._all: dict[str, Dial] = {}
        for _ in dials[:THREADS_MAX]:
            try:
                execmodel.start(self._work, (), "execnet-dial")
            except RuntimeError:  # no more threads can be started
                break
            self._all = {dial.settings.id: dial for dial in dials}

    def find(self, id: str) -> Dial | None:
        """Return the connection for the gateway with an id, None if it is to be made as usual."""
        return self._all.get(id)

    def end(self) -> None:
        """Close all connections that nobody has taken, and make no more."""
        self._is_over = True
        self._waiting.clear()
        for dial in self._all.values():
            dial.drop()

    def _work(self) -> None:
        while True:
            try:
                dial = self._waiting.popleft()
            except IndexError:
                return
            try:
                dial.end(self._connect(dial.settings), None)
            except BaseException as exc:
                dial.end(None, exc)
            if self._is_over:
                dial.drop()
            self._on_done()

    def _connect(self, settings: Settings) -> Endpoint:
        with gateway_io.named(settings.spec):
            return gateway_socket.create_io(
                settings, self._execmodel, is_over=lambda: self._is_over
            )
