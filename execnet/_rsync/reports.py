"""What a source that is a worker tells the coordinator of its target, which is another worker.

Nothing of it is believed before it was checked.  ``relay`` and ``direct`` use it; start at
``Reports.take``.
"""

from __future__ import annotations

import os

from .far import wire
from .far.messages import (
    FROM_REPORTER,
    PATH_MAX,
    checked,
    fits,
    is_bytes,
    is_count,
    is_paths,
)
from .far.rules import Rules
from .far.wire import DIRECTORY, ROOTED, SYMLINK, Violation
from .result import RSyncError, Skipped, TargetResult, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .far.messages import Kinds
    from .far.wire import Message, Rule

# name of a report -> of what kinds its values are
REPORTS: dict[str, Kinds] = {
    "sending": (is_paths,),
    "sent": (is_count,),
    "skipped": (is_bytes, is_bytes),
    "planned": (is_paths, is_paths),
    "ended": (is_count,) * 7,
    "failed": (is_bytes,),
}


class Reports:
    """Takes the reports about one target into its result.

    place: of the source.  on_sending: called with the path of each file that is sent.
    is_dry, rules: of the run.  is_alone: the source reaches the target without the coordinator,
    and so tells what it fails with as well.
    """

    def __init__(
        self, place: str, result: TargetResult, on_sending: Callable[[str], object], is_dry: bool,
        rules: list[Rule], is_alone: bool = False,
    ) -> None:  # fmt: skip
        self._place = place
        self._result = result
        self._on_sending = on_sending
        self._is_dry = is_dry
        self._rules = Rules(rules) if rules else None
        self._is_alone = is_alone
        self._has_ended = False
        self.failed: str | None = None  # why a target that the source serves alone has not all
        self._on_told: dict[str, Callable[..., None]] = {
            "sending": self._on_told_sending,
            "sent": self._on_told_sent,
            "skipped": self._on_told_skipped,
            "planned": self._on_told_planned,
            "ended": self._on_told_ended,
            "failed": self._on_told_failed,
        }

    def take(self, message: object) -> None:
        """Take one report; RSyncError names the source if it is malformed or out of place."""
        try:
            name, values = self._checked(message)
            self._check_moment(name)
            if self._rules is not None:
                self._check_rules(self._rules, name, values)
        except Violation as exc:
            raise RSyncError(f"{self._place} broke the protocol: {exc}") from exc
        self._on_told[name](*values)

    def end(self) -> None:
        """Note that there are no more; RSyncError if the source has not said how it went."""
        if not self._has_ended and self.failed is None:
            raise RSyncError(f"{self._place} ended before everything was there")

    def _checked(self, message: object) -> tuple[str, Message]:
        _, told, values = checked(message, FROM_REPORTER)
        name = os.fsdecode(told)
        if name not in REPORTS or not fits(values, REPORTS[name]):
            raise Violation(f"not a report: {message!r:.200}")
        return name, values

    def _check_moment(self, name: str) -> None:
        """Refuse what does not belong into this run, or not after what was told before."""
        is_due = {"planned": self._is_dry, "sending": not self._is_dry, "failed": self._is_alone}
        if self._has_ended or not is_due.get(name, True):
            raise Violation(f"{name!r} at a moment at which it has no place")
        if name == "failed" and self.failed is not None:
            raise Violation("it failed twice")

    def _check_rules(self, rules: Rules, name: str, values: Message) -> None:
        for path in values[0] if name in ("sending", "planned") else ():
            # of what is planned we do not know whether it is a directory
            last = rules.leaves_out(path, False)
            last = last and (name == "sending" or rules.leaves_out(path, True))
            parts = path.split(b"/")
            parents = (b"/".join(parts[:count]) for count in range(1, len(parts)))
            if last or any(rules.leaves_out(parent, True) for parent in parents):
                raise Violation(f"it sends what the rules leave out: {path!r:.1000}")

    def _on_told_sending(self, paths: Sequence[bytes]) -> None:
        self._result.files_sent += len(paths)
        for path in paths:
            self._on_sending(os.fsdecode(path[:PATH_MAX]))

    def _on_told_sent(self, count: int) -> None:
        self._result.bytes_sent += count

    def _on_told_skipped(self, path: bytes, reason: bytes) -> None:
        text = text_of(reason[: wire.TEXT_MAX])
        self._result.add("skipped", Skipped(os.fsdecode(path[:PATH_MAX]), text))

    def _on_told_planned(self, paths: Sequence[bytes], deleted: Sequence[bytes]) -> None:
        for path in paths:
            self._result.add("planned", os.fsdecode(path[:PATH_MAX]))
        for path in deleted:
            self._result.add("planned_deletions", os.fsdecode(path[:PATH_MAX]))

    def _on_told_ended(self, unchanged: int, settled: int, deleted: int, *refused: int) -> None:
        self._has_ended = True
        self._result.unchanged, self._result.settled, self._result.deleted = (
            unchanged, settled, deleted,
        )  # fmt: skip
        self._result.take_refusals(*refused)

    def _on_told_failed(self, text: bytes) -> None:
        self.failed = f"{self._place}: {text_of(text[: wire.TEXT_MAX])}"


class Announcements:
    """What a source announces through the coordinator: none of it is what the rules leave out.

    What stands in for a link has the path of the link, as at the target.
    """

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = Rules(rules)
        self._directories: dict[int, bytes] = {0: b""}  # by id
        self._links: dict[int, bytes] = {}  # the same of links, which something may stand in for

    def check(self, message: Message) -> None:
        """Look at a message of a source; raise ``Violation`` for what it should have left out."""
        if message[0] == wire.LIST:
            for unit in message[2]:
                self._check_unit(*unit[:4])
        elif message[0] == wire.INSTEAD:
            _, number, kind, new_number = message[:4]
            path = self._links.pop(number, None)
            if path is None:
                raise Violation(f"kind {kind} in place of entry {number}")
            self._take(new_number, path, kind)

    def _check_unit(self, number: int, first: int, blob: bytes, kinds: bytes) -> None:
        names = blob.split(b"\0") if kinds else []
        if number not in self._directories or len(names) != len(kinds):
            raise Violation(f"entries of directory {number}: {blob!r:.200}")
        here = self._directories[number]
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
            self._take(first + place, here + b"/" + name if here else name, kind)

    def _take(self, number: int, path: bytes, kind: int) -> None:
        if self._rules.leaves_out(path, kind == DIRECTORY):
            raise Violation(f"announced an entry that the rules leave out: {path!r:.1000}")
        if kind == DIRECTORY:
            self._directories[number] = path
        elif kind in (SYMLINK, ROOTED):
            self._links[number] = path
