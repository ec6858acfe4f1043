"""``RSync.pull``: the coordinator is the target, a worker the source.

What the worker needs for that is several modules, which are sent to it one by one.  What
writes here is ``rsync_remote``, the same code that writes at the targets of ``RSync.send``.
Start at ``pull``.
"""

from __future__ import annotations

import os
import struct
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from . import rsync_remote as remote
from ._rsync_result import Progress, RSyncError, Skipped, TargetResult
from ._ship import lower

# In the order in which they import each other.
_PARTS = ("wire", "links", "tree", "blocks", "standin", "watcher", "pump", "server")

# What a worker does first: take the modules, as parts of a package that is on no disk.
_LOADER = """
import sys
package = type(sys)("_execnet_rsync")
package.__path__ = []
sys.modules[package.__name__] = package
for name, file_name, source in channel.receive():
    module = type(sys)(str(package.__name__ + "." + name))
    module.__package__ = package.__name__
    module.__file__ = file_name
    sys.modules[module.__name__] = module
    exec(compile(source, file_name, "exec"), module.__dict__)
    setattr(package, str(name), module)
package._rsync_server.serve(channel)
"""

# What a source that lies can make ``Target`` stumble over.
_LIES = (
    remote.Violation, TypeError, ValueError, KeyError, IndexError, AttributeError, struct.error,
)  # fmt: skip


def pull(
    gateway: Any,
    remote_dir: str | os.PathLike[str],
    local_dir: str | os.PathLike[str],
    *,
    delete: bool,
    dry_run: bool,
    progress: Progress | None,
) -> TargetResult:
    """Do what ``RSync.pull`` promises."""
    channel = gateway.remote_exec(_LOADER)
    try:
        channel.reconfigure(py2str_as_py3str=False)
        channel.send([_part(name) for name in _PARTS])
        channel.send(os.fsencode(remote_dir))
        place = f"{gateway.id}:{os.fsdecode(remote_dir)}"
        root, *rest = channel.receive()
        if root is None:
            raise RSyncError(rest[0], f"{place}: {rest[1].decode('utf-8', 'replace')}")
        costs = {os.fsdecode(name): cost for name, cost in rest[0].items()}  # bytes in Python 2
        options = {"dest": os.fsencode(local_dir), "root": root, "hashes": costs}
        options |= {"delete": delete, "dry_run": dry_run}
        result = TargetResult(gateway, os.fsdecode(local_dir))
        started = time.monotonic()
        try:
            _LocalTarget(channel, options, result, progress).run(channel.receive)
        except _LIES as exc:
            raise RSyncError(f"{place} broke the protocol: {exc!r}") from exc
        result.seconds = time.monotonic() - started
        return result
    finally:
        channel.close()


def _part(name: str) -> tuple[str, str, str]:
    module = import_module(f"{__package__}._rsync_{name}")
    file_name = str(module.__file__)
    return f"_rsync_{name}", file_name, lower(Path(file_name).read_text(encoding="utf-8"))


class _LocalTarget(remote.Target):
    """A target in this process, which fills in a result.  Belongs to the thread of ``pull``."""

    def __init__(
        self, channel: Any, options: dict[str, Any], result: TargetResult, progress: Progress | None
    ) -> None:
        self._channel = channel
        self._result = result
        self._progress = progress
        self._done_bytes = 0
        super().__init__(self._on_sent, options)

    def _on_sent(self, message: Any) -> None:
        """Let the source have a message, and take for the result what is meant for it."""
        self._to_source(message)
        if message[0] == remote.END:
            _, self._result.unchanged, self._result.settled, self._result.deleted = message
        elif message[0] == remote.FATAL:
            _, _, code, reason = message
            raise RSyncError(code, f"{self._result.destdir}: {reason.decode('utf-8', 'replace')}")

    def _to_source(self, message: Any) -> None:
        try:
            self._channel.send(message)
        except OSError:
            self._channel.waitclose()  # raises what the source ended with
            raise

    def skip(self, entry: Any, reason: bytes) -> None:
        self._skip(remote.path_of(entry[0], entry[2]), reason)

    def _skip(self, path: bytes, reason: bytes) -> None:
        skipped = Skipped(os.fsdecode(path), reason.decode("utf-8", "replace"))
        self._result.skipped.append(skipped)

    def plan(self, entry: Any) -> None:
        self._result.planned.append(os.fsdecode(remote.path_of(entry[0], entry[2])))

    def plan_deletion(self, path: bytes) -> None:
        self._result.planned_deletions.append(os.fsdecode(path))

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        self._skip(path, reason)

    def _on_fail(self, number: int, reason: bytes) -> None:
        known = self._unlinked.get(number) or (self._pending and self._pending[0][0][::2])
        if known and number != self._refused:
            self._skip(remote.path_of(*known[:2]), reason[: remote.TEXT_MAX])
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
            path = os.fsdecode(remote.path_of(entry[0], entry[2]))
            done = self._done_bytes + min(partly, entry[4])
            self._progress(max(self._total, done), done, path)
