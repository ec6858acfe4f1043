"""Lists what is kept, and removes what nobody uses any more.

This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os
import time

from .flocks import Busy, NoLocks, exclusive
from .places import native, numbers_in, read_marker, root_folder, text_of
from .writing import remove_if_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS = "venvs", "layers", "trees"
LISTED_MAX = 100000


def main(channel: Any) -> None:
    """Answer one request: send the entries that exist, or that were removed."""
    request = channel.receive()
    root = root_folder(request["root"])
    for entry in entries(root):
        if request["prune"]:
            if not _is_wanted(entry, request):
                continue
            if not request["dry_run"] and not _remove(root, entry):
                continue
        channel.send(entry)
    if request["prune"] and not request["dry_run"] and not request["names"]:
        for name in "files", "core":
            _remove_files(os.path.join(root, name), request["unused_s"])


def entries(root: Any) -> Any:
    """Yield a dict for each environment, layer and tree, complete or not."""
    for kind in KINDS:
        try:
            names = sorted(os.listdir(os.path.join(root, kind)))
        except OSError:
            continue
        for name in names[:LISTED_MAX]:
            folder = os.path.join(root, kind, name)
            numbers = numbers_in(folder)
            newest = [number for number in numbers if read_marker(folder, number)][:1]
            for number in numbers:
                yield _entry(kind, name, folder, number, newest == [number])


def _entry(kind: str, name: Any, folder: Any, number: int, is_newest: bool) -> Any:
    marker = read_marker(folder, number) or {}
    path = os.path.join(folder, str(number))
    is_complete = bool(marker) or kind == "trees"
    state = _state(path)
    if not is_complete and state == u"free":
        state = u"incomplete"
    elif not (is_newest or kind == "trees") and state == u"free":
        state = u"replaced"
    return {
        u"kind": text_of(kind), u"folder": text_of(name), u"number": number,
        u"name": text_of(name).rpartition(u"-")[0], u"path": text_of(path), u"state": state,
        u"python": marker.get("python", u""), u"tool": marker.get("tool", u""),
        u"requirements": marker.get("requirements", u""),
        u"used": _last_use(path), u"bytes": _size(path),
    }  # fmt: skip


def _state(path: Any) -> Any:
    """Return "used", "free", or "unknown" where there are no locks."""
    if not os.path.exists(path + ".held"):
        return u"free"
    try:
        os.close(exclusive(path + ".held"))
    except Busy:
        return u"used"
    except (NoLocks, OSError):
        return u"unknown"
    return u"free"


def _last_use(path: Any) -> float:
    times = [0.0]
    for name in (path, path + ".done", path + ".held"):
        try:
            times.append(os.stat(name).st_mtime)
        except OSError:
            pass
    return max(times)


def _size(path: Any) -> int:
    """Return how many bytes a folder takes up."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += status.st_size // max(1, status.st_nlink)
    return total


def _is_wanted(entry: Any, request: Any) -> bool:
    """Whether an entry should be removed."""
    if request["names"] and entry[u"name"] not in request["names"]:
        return False
    if entry[u"state"] in (u"incomplete", u"replaced"):
        return True
    is_old = bool(time.time() - entry[u"used"] >= request["unused_s"])
    return is_old and bool(entry[u"state"] == u"free")


def _remove(root: Any, entry: Any) -> bool:
    """Remove an entry unless it is in use by now; its folder too, if nothing else is in there."""
    folder = os.path.join(root, native(entry[u"kind"]), native(entry[u"folder"]))
    if not remove_if_free(folder, entry[u"number"]):
        return False
    if not numbers_in(folder):
        try:
            lock = exclusive(os.path.join(folder, "lock"))
        except (Busy, NoLocks, OSError):
            return True
        if not numbers_in(folder):
            os.unlink(os.path.join(folder, "lock"))
        os.close(lock)
        try:
            os.rmdir(folder)
        except OSError:  # another one is being made
            pass
    return True


def _remove_files(folder: Any, unused_s: float) -> None:
    """Remove files that were not used for so long: of packages, and what workers are made of."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        try:
            if time.time() - os.stat(path).st_mtime >= unused_s:
                os.unlink(path)
        except OSError:
            pass
