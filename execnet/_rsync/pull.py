"""``RSync.pull``: the coordinator is the target, a worker the source.

Files are written by ``far.target``, the same code that writes at the targets of ``RSync.send``.
Start at ``pull``.
"""

from __future__ import annotations

import errno
import ntpath
import os
import posixpath
import threading
import time
from typing import Any

from .._ship.parts import note_loaded, run
from ..gateway_base import ExecnetError, _Flag
from .far import target as remote
from .far import wire
from .far.apart import is_place
from .far.messages import PATH_MAX, fits, is_bytes, is_costs, is_count, is_mode, is_time
from .far.places import SEP, path_of
from .far.rules import Rules
from .patterns import Rule
from .push import path_inside, place_here
from .result import Progress, RSyncError, Skipped, TargetResult, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from ..gateway import Gateway
    from ..gateway_base import Channel
    from .far.places import Entry, Named
    from .far.wire import Buffer, Changes, Message, Options, Proof, Root, SourceOptions, Wishes

_WORKER_S = 5.0  # how long after ``timeout`` a worker may leave its input unread


def pull(
    gateway: Gateway,
    remote_dir: str | os.PathLike[str],
    local_dir: str | os.PathLike[str],
    wishes: Wishes,
    rules: list[Rule],
    progress: Progress | None,
    timeout: float | None,
    tell: Callable[[str, Gateway], object] | None = None,
) -> TargetResult:
    """Do what ``RSync.pull`` promises.

    wishes: the options of a ``Target``.  tell: called with the path of each file that arrives, and
    the gateway.
    """
    place = f"{gateway.id}:{os.fsdecode(remote_dir)}"
    if b"\0" in os.fsencode(local_dir):  # else it would be the worker that seems to have erred
        raise ValueError(f"embedded null character in {local_dir!r}")
    channel = run(gateway, "_rsync.far.server")
    try:
        with Deadline(channel, place, timeout):
            inner = _inner(gateway, remote_dir, local_dir)
            sending = source_options(wishes, reports=False)
            channel.send((os.fsencode(remote_dir), inner, rules, sending))
            root, costs, source = root_of(channel.receive(), place, os.fsencode(remote_dir))
            note_loaded(gateway, "_rsync.far.server")
            options: Options = {
                **wishes, "dest": os.fsencode(local_dir), "root": root, "hashes": costs,
                "source": source, "is_left_out": inner is not None, "asks": False,
                "expanduser": wishes["expands"], "name": name_of(gateway, remote_dir),
                "rules": [] if wishes["delete_excluded"] else rules,
            }  # fmt: skip
            result = TargetResult(gateway, os.fsdecode(local_dir))
            started = time.monotonic()
            target = _make_target(channel, place, options, result, progress)
            target.announced_by = Rules(rules) if rules else None
            target.tell = tell
            _receive(target)
            channel.waitclose()  # now the worker is free, even if it does one thing at a time
        result.seconds = time.monotonic() - started
        return result
    finally:
        channel.close()


def source_options(wishes: Wishes, reports: bool) -> SourceOptions:
    """Return the options of a source.  reports: it tells the coordinator what its target does."""
    return {
        "compress": wishes["compress"],
        "most_per_s": wishes["most_per_s"],
        "expands": wishes["expands"],
        "owners": wishes["owners"],
        "reports": reports,
    }


def root_of(
    answer: Any, place: str, path: bytes
) -> tuple[Root, dict[str, float], wire.Place | None]:  # fmt: skip
    """Return (what the source is, the cost of hashes, where it is) from its first answer.

    Raises RSyncError if the source does not exist, or the answer is malformed.
    """
    if fits(answer, (lambda item: item is None, is_count, is_bytes)):
        _, code, reason = answer
        raise RSyncError(code, f"{place}: {text_of(reason[: wire.TEXT_MAX])}")
    kinds = (lambda root: fits(root, (is_count, is_mode, is_time)), is_costs, is_place)
    if not fits(answer, kinds):
        raise RSyncError(f"{place} broke the protocol: its first answer is {answer!r:.200}")
    root, costs, source = answer
    if root[0] != wire.DIRECTORY and path.endswith((b"/", SEP)):
        raise RSyncError(errno.ENOTDIR, f"{place}: {os.strerror(errno.ENOTDIR)}")
    costs = {os.fsdecode(name): cost for name, cost in costs.items()}  # bytes in Python 2
    return root, costs, source


def _make_target(
    channel: Channel, place: str, options: Options, result: TargetResult, progress: Progress | None
) -> _LocalTarget:
    try:
        return _LocalTarget(channel, place, options, result, progress)
    except wire.Violation as exc:  # they have no hash in common
        raise RSyncError(f"{place} broke the protocol: {exc}") from exc


def _receive(target: _LocalTarget) -> None:
    """Let a target work; if the source breaks the protocol, an RSyncError names it."""
    try:
        target.run(target.receive, lambda: remote.next_in(target.channel))
    except wire.TooMuch as exc:
        raise RSyncError(errno.EFBIG, f"{target.source} has {exc}, which is the limit") from exc
    except (ExecnetError, EOFError, OSError):
        raise
    except Exception as exc:
        if exc is target.of_progress:
            raise
        raise RSyncError(f"{target.source} broke the protocol: {exc!r:.500}") from exc


class Deadline:
    """A context that ends with an RSyncError after a time, whatever a worker does.

    A thread then closes the channel, and ends the worker if it has left its input unread.
    """

    def __init__(self, channel: Channel, place: str, timeout: float | None) -> None:
        self._channel = channel
        self._place = place
        self._timeout = timeout
        self._is_over = _Flag(channel.gateway.execmodel)
        self._has_passed = False

    def __enter__(self) -> None:
        if self._timeout is not None and self._timeout < threading.TIMEOUT_MAX:
            self._channel.gateway.execmodel.start(self._wait)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        self._is_over.set()
        if self._has_passed and isinstance(exc, (OSError, EOFError)):
            text = f"{self._place} was not copied within {self._timeout} seconds"
            raise RSyncError(errno.ETIMEDOUT, text) from exc

    def _wait(self) -> None:
        if self._is_over.wait(self._timeout):
            return
        self._has_passed = True
        start = self._channel.gateway.execmodel.start
        start(self._channel.close)  # this may wait as well
        if not self._is_over.wait(_WORKER_S):
            start(self._channel.gateway.endpoint.kill)


def name_of(gateway: Gateway, path: str | os.PathLike[str]) -> bytes:
    """Return the last part of a worker's path."""
    flavour: ModuleType = ntpath if gateway._rinfo().platform == "win32" else posixpath
    name: bytes = flavour.basename(os.fsencode(path).rstrip(b"/"))
    return name


def _inner(
    gateway: Gateway, remote_dir: str | os.PathLike[str], local_dir: str | os.PathLike[str]
) -> bytes | None:
    """Return the path of the target relative to the source, if it is in there."""
    place = place_here(gateway, os.fsencode(remote_dir))
    return path_inside(os.fsencode(local_dir), place) if place else None


class _LocalTarget(remote.Target):
    """A target in this process that fills in a result.  Used by the thread of ``pull``."""

    def __init__(
        self,
        channel: Channel,
        place: str,
        options: Options,
        result: TargetResult,
        progress: Progress | None,
    ) -> None:
        self.channel = channel
        self.source = place
        self.tell: Callable[[str, Gateway], object] | None = None
        self._is_same = False  # what ends now only differs in time or mode
        self.of_progress: BaseException | None = None  # what ``progress`` raised
        self._result = result
        self._progress = progress
        self._done_bytes = 0
        super().__init__(self._on_sent, options)

    def _on_sent(self, message: Message) -> None:
        """Send a message to the source, and note what it means for the result."""
        self._to_source(message)
        if message[0] == wire.END:
            _, self._result.unchanged, self._result.settled, self._result.deleted, *rest = message
            self._result.take_refusals(*rest)
        elif message[0] == wire.FATAL:
            _, _, code, reason = message
            raise RSyncError(code, f"{self._result.destdir}: {text_of(reason)}")

    def _on_gone(self, code: int, reason: bytes) -> None:
        """End because the source is gone."""
        raise RSyncError(code, f"{self.source}: {text_of(reason)}")

    def _to_source(self, message: Message) -> None:
        try:
            self.channel.send(message)
        except OSError:
            self.channel.waitclose()  # raises what the source ended with
            raise

    def receive(self) -> object:
        return self.channel.receive()

    def _check_growth(self, entry: Entry, size: int) -> None:
        if size > wire.may_become(entry[4]):
            raise wire.Violation(f"a file of {size} bytes, announced with {entry[4]}")
        self._announced.grow(max(0, size - entry[4]))

    def skip(self, entry: Named, reason: bytes) -> None:
        self._skip(path_of(entry[0], entry[2]), reason)

    def _skip(self, path: bytes, reason: bytes) -> None:
        text = text_of(reason[: wire.TEXT_MAX])
        self._result.add("skipped", Skipped(os.fsdecode(path[:PATH_MAX]), text))

    def plan(self, entry: Entry) -> None:
        self._result.add("planned", os.fsdecode(path_of(entry[0], entry[2])))

    def plan_deletion(self, path: bytes) -> None:
        self._result.add("planned_deletions", os.fsdecode(path))

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        self._skip(path, reason)

    def _on_fail(self, number: int, reason: bytes) -> None:
        known = self._unlinked.get(number) or (self._pending and self._pending[0][0][::2])
        if known and number != self._refused:
            self._skip(path_of(*known[:2]), reason[: wire.TEXT_MAX])
        super()._on_fail(number, reason)

    def _on_files(
        self, ids: bytes, sizes: bytes, changed: Changes, blob: bytes, is_packed: bool
    ) -> None:
        self._result.files_sent += len(ids) // 8
        self._result.bytes_sent += len(blob)
        super()._on_files(ids, sizes, changed, blob, is_packed)

    def _on_packed(self, number: int, offset: int, size: int, short: bytes) -> None:
        self._result.bytes_sent += len(short) - size  # the rest is counted as a piece
        super()._on_packed(number, offset, size, short)

    def _on_copy(self, number: int, offset: int, old_offset: int, length: int) -> None:
        super()._on_copy(number, offset, old_offset, length)
        if self._pending:
            self._tell_progress(self._pending[0][0], offset + length)

    def _on_same(self, ids: bytes, changed: Changes, proof: Proof) -> None:
        self._is_same = True
        super()._on_same(ids, changed, proof)
        self._is_same = False

    def _on_open(self, number: int, size: int, mode: int, mtime: int, how: int) -> None:
        self._result.files_sent += 1
        super()._on_open(number, size, mode, mtime, how)

    def _on_piece(self, number: int, offset: int, data: Buffer) -> None:
        self._result.bytes_sent += len(data)
        super()._on_piece(number, offset, data)
        if self._pending:
            self._tell_progress(self._pending[0][0], offset + len(data))

    def _end_request(self, is_done: bool) -> None:
        entry = self._pending[0][0]
        super()._end_request(is_done)
        self._done_bytes += entry[4]
        if is_done and self.tell is not None and not self._is_same:
            self.tell(os.fsdecode(path_of(entry[0], entry[2])), self._result.gateway)
        self._tell_progress(entry, 0)

    def _tell_progress(self, entry: Entry, partly: int) -> None:
        if self._progress is not None:
            path = os.fsdecode(path_of(entry[0], entry[2]))
            done = self._done_bytes + min(partly, entry[4])
            try:
                self._progress(max(self._total, done), done, path)
            except Exception as exc:
                self.of_progress = exc
                raise
