"""Copies from one worker to another: their messages pass through the coordinator.

The source behaves as in ``RSync.pull``, the target as in ``RSync.send``.  Each defends itself
against the other.  The coordinator hands on nothing that is malformed, and nothing that its user's
rules leave out; what the source reports about the target goes into the result.  Start at ``relay``.
"""

from __future__ import annotations

import os
import threading
import time

from .._ship.parts import note_loaded, run
from ..gateway_base import ExecnetError
from .far import wire
from .far.messages import FROM_SOURCE, FROM_TARGET, checked
from .pull import name_of, root_of, source_options
from .reports import Announcements, Reports
from .result import RSyncError, TargetResult, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway import Gateway
    from ..gateway_base import Channel
    from .far.wire import Options, Rule, Wishes


def relay(
    source: Gateway, path: bytes, target: Gateway, dest: bytes, wishes: Wishes, rules: list[Rule],
    on_sending: Callable[[str], object],
) -> TargetResult:  # fmt: skip
    """Copy a path from one worker to another worker; return the result.

    wishes: options of the target and of the source.  on_sending: called with the path of each file
    that is sent, in any thread.  Raises ``RSyncError`` if the source does not exist or the target
    cannot write any more, and any other error that either worker fails with.
    """
    place = f"{source.id}:{os.fsdecode(path)}"
    inlet, outlet = run(source, "_rsync.far.server"), run(target, "_rsync.far.target")
    try:
        inlet.send((path, None, rules, source_options(wishes, reports=True)))
        root, costs, where = root_of(inlet.receive(), place, path)
        options: Options = {
            **wishes, "dest": dest, "root": root, "hashes": costs, "source": where,
            "is_left_out": False, "asks": False, "expanduser": True,
            "name": name_of(source, os.fsdecode(path)),
            "rules": [] if wishes["delete_excluded"] else rules,
        }  # fmt: skip
        outlet.send(options)
        result = TargetResult(target, os.fsdecode(dest))
        reports = Reports(place, result, on_sending, wishes["dry_run"], rules)
        # a single file that was asked for is sent whatever the rules say
        announced = Announcements(rules) if rules and root[0] == wire.DIRECTORY else None
        _Relay(inlet, outlet, place, result, reports, announced).run()
        note_loaded(source, "_rsync.far.server")
        note_loaded(target, "_rsync.far.target")
        return result
    finally:
        inlet.close()
        outlet.close()


class _Relay:
    """Two threads; each hands on what arrives on one of two channels."""

    def __init__(
        self,
        inlet: Channel,
        outlet: Channel,
        place: str,
        result: TargetResult,
        reports: Reports,
        announced: Announcements | None,
    ) -> None:
        self._inlet, self._outlet = inlet, outlet
        self._place = place
        self._result = result
        self._reports = reports
        self._announced = announced
        self._failed: Exception | None = None  # of the thread that brings back

    def run(self) -> None:
        started = time.monotonic()
        back = threading.Thread(target=self._bring_back, daemon=True)
        back.start()
        error: BaseException | None = None
        try:
            self._bring()
        except (ExecnetError, EOFError, OSError) as exc:
            error = exc
        back.join()
        if self._failed is not None or error is not None:
            raise self._failed or error  # type: ignore[misc]
        self._reports.end()
        self._result.seconds = time.monotonic() - started

    def _bring(self) -> None:
        """Hand on what the source sends, until it has seen the end of the target."""
        try:
            for message in self._inlet:
                if isinstance(message, tuple) and message[:1] == (wire.TOLD,):
                    self._reports.take(message)
                else:
                    self._hand_on(message)
            self._inlet.waitclose()
        except wire.Violation as exc:
            raise RSyncError(f"{self._place} broke the protocol: {exc}") from exc
        finally:
            self._outlet.close()

    def _hand_on(self, message: object) -> None:
        """Hand a message on to the target, which checks those that are pieces of a file."""
        if not isinstance(message, bytes):
            parts = checked(message, FROM_SOURCE)
            if parts[0] == wire.GONE:
                raise RSyncError(parts[1], f"{self._place}: {text_of(parts[2])}")
            if self._announced is not None:
                self._announced.check(parts)
        self._outlet.send(message)

    def _bring_back(self) -> None:
        """Hand on what the target sends, until it ends."""
        try:
            for message in self._outlet:
                parts = checked(message, FROM_TARGET)
                self._inlet.send(message)
                if parts[0] == wire.FATAL:
                    _, _, code, reason = parts
                    place = f"{self._result.gateway.id}:{self._result.destdir}"
                    raise RSyncError(code, f"{place}: {text_of(reason)}")
            self._outlet.waitclose()
        except wire.Violation as exc:
            self._failed = RSyncError(f"{self._result.gateway.id} broke the protocol: {exc}")
        except Exception as exc:  # ``run`` raises it
            self._failed = exc
        finally:
            if self._failed is not None:
                self._inlet.close()
