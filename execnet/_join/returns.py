"""Joiners that come back: with ``resume=``, one dials in again when its connection was lost.

The coordinator gives each such joiner a key that leads to nothing but its own worker.  Whoever has
the group's key can't take up a worker of somebody else, and whoever has a worker's key can't join.
What comes over a new connection is a login, as in ``_resume.logins``.  Start at ``Return``.
"""

from __future__ import annotations

import os

from .._clock import monotonic
from .._conditions import Condition
from .._resume.logins import Unreachable, discard
from .._resume.near import ResumeIO, check_models
from .._resume.ways import Maker, PassedWay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..gateway_base import ExecModel
    from .facts import Facts
    from .visitor import Connection

    StreamOver = Callable[[Connection], Endpoint]

LOOK_S = 0.5  # how often a thread that waits for a joiner looks whether somebody waits for that


class Return(Maker):
    """A joiner that may come back; makes connections of it.

    connection: its first one.  stream_over: makes a stream of a connection.  on_end: called when it
    can't come back any more.  ``_changed`` guards what follows it; any thread may call.
    """

    is_awaited = True

    def __init__(
        self,
        facts: Facts,
        connection: Connection,
        stream_over: StreamOver,
        on_end: Callable[[], object],
    ) -> None:
        super().__init__(lambda: self._way(connection), self._anew)
        self.key = os.urandom(32)
        self._facts = facts
        self._stream_over, self._on_end = stream_over, on_end
        self._changed = Condition()
        self._io: ResumeIO | None = None
        self._used: PassedWay | None = None  # over the last connection that was taken
        self._came: Connection | None = None  # the connection that nobody has taken yet
        self._waiting = 0  # how many threads wait for one
        self._is_leaving = False  # whether nobody will wait any more
        self._is_over = False

    def stream(self, settings: Settings, execmodel: ExecModel) -> ResumeIO:
        """Return the stream of the joiner's worker, over its first connection."""
        check_models(settings, execmodel)
        self._io = ResumeIO(settings, execmodel, self)
        self._io.facts = self._facts.shown()
        return self._io

    def come(self, connection: Connection) -> None:
        """Take a connection of the joiner, after the proofs; never waits.

        The one before is not used any more, as the joiner has one at a time.
        """
        with self._changed:
            dropped, used = self._came, self._used
            if self._is_over:
                dropped = connection
            else:
                self._came = connection
            self._changed.notify_all()
        if dropped is not None:
            dropped.close()
        if dropped is connection:
            return
        if self._io is not None:
            self._io.on_silence("its joiner has dialled in again")
        if used is not None:  # a login over it would wait for an answer
            used.kill()

    def _way(self, connection: Connection) -> PassedWay:
        self._used = PassedWay(self._stream_over(connection))
        return self._used

    def _anew(self, deadline: float, is_over: Callable[[], bool]) -> PassedWay:
        """Wait for the joiner; it comes back once it has no connection any more."""
        used, self._used = self._used, None
        if used is not None:
            used.kill()
        try:
            while True:
                way = self._way(self._next(deadline, is_over))
                # By now another may have come, or a login that kills the worker needs the joiner.
                if is_over():
                    way.kill()
                elif self._came is not None:
                    discard(way)
                    continue
                return way
        finally:
            self._end()

    def _next(self, deadline: float, is_over: Callable[[], bool]) -> Connection:
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    left_s = deadline - monotonic()
                    if self._is_over or left_s <= 0 or is_over():
                        raise Unreachable("its joiner has not dialled in again")
                    if self._came is not None:
                        connection, self._came = self._came, None
                        return connection
                    self._changed.wait(min(LOOK_S, left_s))
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """Let it not come back, unless a login that kills its worker waits for it."""
        with self._changed:
            self._is_leaving = True
        self._end()

    def _end(self) -> None:
        with self._changed:
            if self._is_over or self._waiting or not self._is_leaving:
                return
            self._is_over = True
            came, self._came = self._came, None
        if came is not None:
            came.close()
        self._on_end()

    def disown(self) -> None:
        """In a forked process: the connection is the parent's."""
        if self._came is not None:
            self._came.close()
