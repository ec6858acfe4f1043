"""``RSync.pull``: the coordinator is the target, a worker the source.

What writes here is ``far.target``, the same code that writes at the targets of ``RSync.send``.
Start at ``pull``.
"""

from __future__ import annotations

import ntpath
import os
import posixpath
import struct
import time
from typing import Any

from .far import target as remote
from .far import wire
from .far.places import path_of
from .far.rules import Rules
from .loader import SOURCE_PARTS, load
from .patterns import Rule
from .push import path_inside, place_here
from .result import Progress, RSyncError, Skipped, TargetResult

# What a source that lies can make ``Target`` stumble over.
_LIES = (
    wire.Violation, TypeError, ValueError, KeyError, IndexError, AttributeError, struct.error,
)  # fmt: skip


def pull(
    gateway: Any,
    remote_dir: str | os.PathLike[str],
    local_dir: str | os.PathLike[str],
    wishes: dict[str, Any],
    rules: list[Rule],
    progress: Progress | None,
) -> TargetResult:
    """Do what ``RSync.pull`` promises.  wishes: ``delete`` and what else is true or false."""
    if wishes["delete"]:
        _check_source_stays(gateway, remote_dir, local_dir)
    channel = load(gateway, SOURCE_PARTS)
    try:
        inner = _inner(gateway, remote_dir, local_dir)
        channel.send((os.fsencode(remote_dir), inner, rules))
        place = f"{gateway.id}:{os.fsdecode(remote_dir)}"
        root, *rest = channel.receive()
        if root is None:
            raise RSyncError(rest[0], f"{place}: {rest[1].decode('utf-8', 'backslashreplace')}")
        costs = {os.fsdecode(name): cost for name, cost in rest[0].items()}  # bytes in Python 2
        options = {"dest": os.fsencode(local_dir), "root": root, "hashes": costs}
        options |= {"delete": wishes["delete"], "dry_run": wishes["dry_run"], "asks": False}
        options |= {"expanduser": False}
        options |= {name: wishes[name] for name in ("modes", "times", "window_ns")}
        options["rules"] = [] if wishes["delete_excluded"] else rules
        options["name"] = _name_of(gateway, remote_dir)
        result = TargetResult(gateway, os.fsdecode(local_dir))
        started = time.monotonic()
        try:
            target = _LocalTarget(channel, place, options, result, progress)
            target.announced_by = Rules(rules) if rules else None
            target.run(channel.receive)
        except _LIES as exc:
            raise RSyncError(f"{place} broke the protocol: {exc!r}") from exc
        channel.waitclose()  # the worker can be asked for other things, one at a time
        result.seconds = time.monotonic() - started
        return result
    finally:
        channel.close()


def _name_of(gateway: Any, path: str | os.PathLike[str]) -> bytes:
    """Return the last part of a worker's path."""
    flavour: Any = ntpath if gateway._rinfo().platform == "win32" else posixpath
    name: bytes = flavour.basename(os.fsencode(path).rstrip(b"/"))
    return name


def _inner(
    gateway: Any, remote_dir: str | os.PathLike[str], local_dir: str | os.PathLike[str]
) -> bytes | None:
    """Return the path of the target below the source, where it is in there."""
    place = place_here(gateway, os.fsencode(remote_dir))
    return path_inside(os.fsencode(local_dir), place) if place else None


def _check_source_stays(
    gateway: Any, remote_dir: str | os.PathLike[str], local_dir: str | os.PathLike[str]
) -> None:
    """Refuse to delete in a directory that the source is in."""
    place = place_here(gateway, os.fsencode(remote_dir))
    if place is not None and path_inside(place, os.fsencode(local_dir)) is not None:
        raise RSyncError(f"{os.fsdecode(local_dir)}: deleting there would remove the source")


class _LocalTarget(remote.Target):
    """A target in this process, which fills in a result.  Belongs to the thread of ``pull``."""

    def __init__(
        self,
        channel: Any,
        place: str,
        options: dict[str, Any],
        result: TargetResult,
        progress: Progress | None,
    ) -> None:
        self._channel = channel
        self._source = place
        self._result = result
        self._progress = progress
        self._done_bytes = 0
        super().__init__(self._on_sent, options)
        self._handlers[wire.GONE] = self._on_gone

    def _on_sent(self, message: Any) -> None:
        """Let the source have a message, and take for the result what is meant for it."""
        self._to_source(message)
        if message[0] == wire.END:
            _, self._result.unchanged, self._result.settled, self._result.deleted, *rest = message
            self._result.take_refusals(*rest)
        elif message[0] == wire.FATAL:
            _, _, code, reason = message
            raise RSyncError(
                code, f"{self._result.destdir}: {reason.decode('utf-8', 'backslashreplace')}"
            )

    def _on_gone(self, code: int, reason: bytes) -> None:
        """End, since the source is not there any more."""
        raise RSyncError(code, f"{self._source}: {reason.decode('utf-8', 'backslashreplace')}")

    def _to_source(self, message: Any) -> None:
        try:
            self._channel.send(message)
        except OSError:
            self._channel.waitclose()  # raises what the source ended with
            raise

    def skip(self, entry: Any, reason: bytes) -> None:
        self._skip(path_of(entry[0], entry[2]), reason)

    def _skip(self, path: bytes, reason: bytes) -> None:
        skipped = Skipped(os.fsdecode(path), reason.decode("utf-8", "backslashreplace"))
        self._result.skipped.append(skipped)

    def plan(self, entry: Any) -> None:
        self._result.planned.append(os.fsdecode(path_of(entry[0], entry[2])))

    def plan_deletion(self, path: bytes) -> None:
        self._result.planned_deletions.append(os.fsdecode(path))

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        self._skip(path, reason)

    def _on_fail(self, number: int, reason: bytes) -> None:
        known = self._unlinked.get(number) or (self._pending and self._pending[0][0][::2])
        if known and number != self._refused:
            self._skip(path_of(*known[:2]), reason[: wire.TEXT_MAX])
        super()._on_fail(number, reason)

    def _on_files(self, ids: bytes, sizes: bytes, changed: Any, blob: bytes) -> None:
        self._result.files_sent += len(ids) // 8
        self._result.bytes_sent += len(blob)
        super()._on_files(ids, sizes, changed, blob)

    def _on_open(self, *arguments: Any) -> None:
        self._result.files_sent += 1
        super()._on_open(*arguments)

    def _on_piece(self, number: int, offset: int, data: Any) -> None:
        self._result.bytes_sent += len(data)
        super()._on_piece(number, offset, data)
        if self._pending:
            self._tell_progress(self._pending[0][0], offset + len(data))

    def _end_request(self, is_done: bool) -> None:
        entry = self._pending[0][0]
        super()._end_request(is_done)
        self._done_bytes += entry[4]
        self._tell_progress(entry, 0)

    def _tell_progress(self, entry: Any, partly: int) -> None:
        if self._progress is not None:
            path = os.fsdecode(path_of(entry[0], entry[2]))
            done = self._done_bytes + min(partly, entry[4])
            self._progress(max(self._total, done), done, path)
