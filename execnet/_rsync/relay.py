"""Copies from one worker to another: their messages pass through the coordinator.

The source behaves as in ``RSync.pull``, the target as in ``RSync.send``.  Each defends itself
against the other; the coordinator only reads what the source reports about the target.  Start at
``relay``.
"""

from __future__ import annotations

import os
import threading
import time

from .._ship.parts import note_loaded, run
from ..gateway_base import ExecnetError
from .far import wire
from .far.messages import FROM_REPORTER, FROM_SOURCE, FROM_TARGET, PATH_MAX, checked
from .pull import name_of, root_of, source_options
from .result import RSyncError, Skipped, TargetResult, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        _Relay(inlet, outlet, place, result, on_sending).run()
        note_loaded(source, "_rsync.far.server")
        note_loaded(target, "_rsync.far.target")
        return result
    finally:
        inlet.close()
        outlet.close()


class Reports:
    """What a source tells of its target, for a result.

    place: of the source.  on_sending: called with the path of each file that is sent.
    """

    def __init__(
        self, place: str, result: TargetResult, on_sending: Callable[[str], object]
    ) -> None:
        self._place = place
        self._result = result
        self._on_sending = on_sending
        self._on_told: dict[str, Callable[..., None]] = {
            "sending": self._on_told_sending,
            "sent": self._on_told_sent,
            "skipped": self._on_told_skipped,
            "planned": self._on_told_planned,
            "ended": self._on_told_ended,
            "failed": self._on_told_failed,
        }
        self.failed: str | None = None  # why a target that the source serves alone has not all

    def take(self, message: object) -> None:
        try:
            _, name, values = checked(message, FROM_REPORTER)
            self._on_told[os.fsdecode(name)](*values)
        except (wire.Violation, KeyError, TypeError, ValueError) as exc:
            raise RSyncError(f"{self._place} broke the protocol: {exc}") from exc

    def _on_told_sending(self, paths: Sequence[bytes]) -> None:
        self._result.files_sent += len(paths)
        for path in paths:
            self._on_sending(os.fsdecode(path))

    def _on_told_sent(self, count: int) -> None:
        self._result.bytes_sent += count

    def _on_told_skipped(self, path: bytes, reason: bytes) -> None:
        text = text_of(reason[: wire.TEXT_MAX])
        self._result.add("skipped", Skipped(os.fsdecode(path[:PATH_MAX]), text))

    def _on_told_planned(self, paths: Sequence[bytes], deleted: Sequence[bytes]) -> None:
        for path in paths:
            self._result.add("planned", os.fsdecode(path))
        for path in deleted:
            self._result.add("planned_deletions", os.fsdecode(path))

    def _on_told_ended(self, unchanged: int, settled: int, deleted: int, *refused: int) -> None:
        self._result.unchanged, self._result.settled, self._result.deleted = (
            unchanged, settled, deleted,
        )  # fmt: skip
        self._result.take_refusals(*refused)

    def _on_told_failed(self, text: bytes) -> None:
        self.failed = f"{self._place}: {text_of(text)}"


class _Relay:
    """Two threads; each hands on what arrives on one of two channels."""

    def __init__(
        self,
        inlet: Channel,
        outlet: Channel,
        place: str,
        result: TargetResult,
        on_sending: Callable[[str], object],
    ) -> None:
        self._inlet, self._outlet = inlet, outlet
        self._place = place
        self._result = result
        self._reports = Reports(place, result, on_sending)
        self._failed: BaseException | None = None

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
        self._result.seconds = time.monotonic() - started

    def _bring(self) -> None:
        """Hand on what the source sends, until it has seen the end of the target."""
        try:
            for message in self._inlet:
                if isinstance(message, tuple) and message[:1] == (wire.TOLD,):
                    self._reports.take(message)
                elif isinstance(message, tuple) and message[:1] == (wire.GONE,):
                    _, code, reason = checked(message, FROM_SOURCE)
                    raise RSyncError(code, f"{self._place}: {text_of(reason)}")
                else:
                    self._outlet.send(message)
            self._inlet.waitclose()
        except wire.Violation as exc:
            raise RSyncError(f"{self._place} broke the protocol: {exc}") from exc
        finally:
            self._outlet.close()

    def _bring_back(self) -> None:
        """Hand on what the target sends, until it ends."""
        try:
            for message in self._outlet:
                self._inlet.send(message)
                if message[0] == wire.FATAL:
                    _, _, code, reason = checked(message, FROM_TARGET)
                    place = f"{self._result.gateway.id}:{self._result.destdir}"
                    raise RSyncError(code, f"{place}: {text_of(reason)}")
            self._outlet.waitclose()
        except (wire.Violation, TypeError, IndexError) as exc:
            self._failed = RSyncError(f"{self._result.gateway.id} broke the protocol: {exc}")
        except (ExecnetError, EOFError, OSError) as exc:
            self._failed = exc
        finally:
            if self._failed is not None:
                self._inlet.close()
