"""Workers that dial in for ``listen=`` specs: each spec gets the next one.

Specs wait in the threads that make gateways, joiners in those of ``Joins``.  Start at
``Wanted.take``.
"""

from __future__ import annotations

import shlex
import sys
from collections import deque
from contextlib import contextmanager, suppress

from .. import gateway_bootstrap
from .._clock import monotonic
from .._conditions import Condition
from .._errors import BootstrapError
from ..script.socketserver import format_address
from .facts import Refused
from .near import Joins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from ..gateway_bootstrap import Through
    from .near import Place

PATIENCE_S = 60.0  # how long a joiner waits for a spec
NOT_WANTED = "the spec no longer waits"
END_S = 2.0  # for joiners that wait to be told that it is over


class _Want:
    """A spec that waits for a worker, and the gateway or the error that it gets."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gateway: Gateway | None = None
        self.error: Exception | None = None

    def is_met(self) -> bool:
        return self.gateway is not None or self.error is not None


class Wanted:
    """A door of a group, and the ``listen=`` specs that wait at it.

    settings: of the first of these specs.  begin: makes a gateway for settings from what makes its
    stream, without waiting for its answer.  Any thread may call.
    """

    def __init__(
        self,
        settings: Settings,
        execmodel: ExecModel,
        begin: Callable[[Settings, Through], Gateway],
    ) -> None:
        self._begin = begin
        self._changed = Condition()  # guards what follows
        self._wants: deque[_Want] = deque()
        self._idle = 0  # joiners that wait
        self._is_over = False
        self._proof = key, certificate = settings.spec.key, settings.certificate
        address = format_address(settings.address or ("", 0))
        self.joins = Joins(address, key, certificate or True, None, execmodel, self._place)
        self._command = f"execnet join {self.joins.ticket}"
        if key is not None:
            self._command += f" --key {shlex.quote(key)}"
        with suppress(Exception):  # there may be no stderr
            print(f"execnet: workers join with: {self._command}", file=sys.stderr)

    def take(self, settings: Settings, is_wanted: Callable[[], bool]) -> Gateway:
        """Wait for the next joiner and return its gateway, which has not answered yet.

        is_wanted: whether to go on with it; ``look_again`` has it asked.  Raises ``BootstrapError``
        if none comes in time, InterruptedError if it is not wanted any more, ValueError for another
        key or certificate than that of the first spec, and what makes a gateway fail.
        """
        if (settings.spec.key, settings.certificate) != self._proof:
            text = "another spec listens at this address, with another key= or certificate="
            raise ValueError(f"spec {settings.spec.shown()!r}: {text}")
        want, deadline = _Want(settings), settings.deadline()
        try:
            with self._changed:
                self._wants.append(want)
                self._changed.notify_all()
                while not want.is_met() and not self._is_over:
                    if not is_wanted():
                        raise InterruptedError(NOT_WANTED)
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0 and want in self._wants:
                        break  # no joiner has begun to become its worker
                    self._changed.wait(None if left is None else max(left, 0.1))
                with suppress(ValueError):
                    self._wants.remove(want)
                if not want.is_met():  # a joiner that has begun is told so
                    want.error = self._failure(settings)
        except BaseException:
            self._give_up(want)
            raise
        if want.gateway is None:
            assert want.error is not None
            raise want.error
        return want.gateway

    def look_again(self) -> None:
        """Have specs that wait see whether they are still wanted."""
        with self._changed:
            self._changed.notify_all()

    def _give_up(self, want: _Want) -> None:
        with self._changed:
            with suppress(ValueError):
                self._wants.remove(want)
            want.error = want.error or InterruptedError(NOT_WANTED)
            gateway = want.gateway
        if gateway is not None:
            gateway_bootstrap.abandon(gateway)

    def _failure(self, settings: Settings) -> BootstrapError:
        why = f"within {settings.connect_timeout_s:g} s" if not self._is_over else "before the end"
        text = f"{settings.id}: no worker has joined {why}; start one with: {self._command}"
        if self.joins.reasons:
            text += "; turned away: " + "; ".join(self.joins.reasons)
        return BootstrapError(text)

    # ---------------------------------------------------------------- threads of joiners

    @contextmanager
    def _place(self) -> Iterator[Place]:
        """Wait for a spec; give what makes its gateway from the stream of a joiner."""
        want = self._next()

        def make(through: Through, address: str) -> Gateway:
            try:
                gateway = self._begin(want.settings, through)
            except Exception as exc:
                want.error = exc
                raise
            with self._changed:
                is_wanted, want.gateway = want.error is None, gateway
            if not is_wanted:
                gateway_bootstrap.abandon(gateway)
            return gateway

        try:
            yield make, want.settings.resume_s is not None
        finally:
            with self._changed:
                if not want.is_met():  # the joiner has left: it is the next one's
                    self._wants.appendleft(want)
                self._changed.notify_all()

    def _next(self) -> _Want:
        deadline = monotonic() + PATIENCE_S
        with self._changed:
            self._idle += 1
            try:
                while not self._wants and not self._is_over:
                    left = deadline - monotonic()
                    if left <= 0:
                        raise Refused("too late: no more workers are wanted", "late")
                    self._changed.wait(left)
                if self._is_over:
                    raise Refused("the group was ended", "late")
                return self._wants.popleft()
            finally:
                self._idle -= 1
                self._changed.notify_all()

    # ---------------------------------------------------------------- the end

    def stop(self) -> None:
        """Admit nobody any more; joiners and specs that wait are told so."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self.joins.stop(END_S)
