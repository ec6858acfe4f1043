"""Lists what is kept, and removes what nobody uses any more.

This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os
import time

from .flocks import Busy, NoLocks, exclusive
from .places import cache_lock, numbers_in, read_marker, text_of
from .quick import native, root_folder
from .writing import remove, remove_if_free, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...gateway_base import Channel
    from .places import KeptEntry, KeptRequest, Marker

KINDS = "venvs", "layers", "trees", "pythons"  # which come last, as environments need them
CACHES = "pip", "uv", "virtualenv", "tools"  # of installers, and installers that were sent
LISTED_MAX = 100000


def main(channel: Channel) -> None:
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


def entries(root: str) -> Iterator[KeptEntry]:
    """Yield a dict for each environment, layer, tree and fetched Python, complete or not.

    One for each cache follows.
    """
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
                entry = _entry(kind, name, folder, number, newest == [number])
                if kind == "pythons" and is_needed(root, folder, number):
                    entry[u"state"] = u"used"
                yield entry
    for name in CACHES:
        path = os.path.join(root, name)
        if os.path.isdir(path):
            used, size = _used_and_size(path)
            yield _dict_of("caches", name, name, 0, path, _state(cache_lock(root)), {}, used, size)


def is_needed(root: str, python_folder: str, python_number: int) -> bool:
    """Whether an environment was made from a fetched Python."""
    start = u" ".join(text_of(os.path.join(python_folder, str(python_number))).split()) + os.sep
    venvs = os.path.join(root, "venvs")
    for name in os.listdir(venvs) if os.path.isdir(venvs) else ():
        folder = os.path.join(venvs, name)
        for number in numbers_in(folder):
            if (read_marker(folder, number) or {}).get("base", u"").startswith(start):
                return True
    return False


def _entry(kind: str, name: str, folder: str, number: int, is_newest: bool) -> KeptEntry:
    marker = read_marker(folder, number) or {}
    path = os.path.join(folder, str(number))
    is_complete = bool(marker) or kind == "trees"
    state = _state(path + ".held")
    if not is_complete and state == u"free":
        state = u"incomplete"
    elif not (is_newest or kind == "trees") and state == u"free":
        state = u"replaced"
    bare = name.rpartition("-")[0]
    used, size = _last_use(path), _used_and_size(path)[1]
    return _dict_of(kind, name, bare, number, path, state, marker, used, size)


def _dict_of(
    kind: str, folder: str, name: str, number: int, path: str, state: str, marker: Marker,
    used: float, size: int,
) -> KeptEntry:  # fmt: skip
    return {
        u"kind": text_of(kind), u"folder": text_of(folder), u"number": number,
        u"name": text_of(name), u"path": text_of(path), u"state": state,
        u"python": marker.get("python", u""), u"tool": marker.get("tool", u""),
        u"requirements": marker.get("requirements", u""), u"used": used, u"bytes": size,
    }  # fmt: skip


def _state(path: str) -> str:
    """Return "used", "free", or "unknown" where there are no locks."""
    if not os.path.exists(path):
        return u"free"
    try:
        os.close(exclusive(path))
    except Busy:
        return u"used"
    except (NoLocks, OSError):
        return u"unknown"
    return u"free"


def _last_use(path: str) -> float:
    times = [0.0]
    for name in (path, path + ".done", path + ".held"):
        try:
            times.append(os.stat(name).st_mtime)
        except OSError:
            pass
    return max(times)


def _used_and_size(path: str) -> tuple[float, int]:
    """Return when a file in a folder was last read or written, and how many bytes all take."""
    used, total = 0.0, 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            used = max(used, status.st_mtime, status.st_atime)
            total += status.st_size // max(1, status.st_nlink)
    return used, total


def _is_wanted(entry: KeptEntry, request: KeptRequest) -> bool:
    """Whether an entry should be removed."""
    is_named = bool(entry[u"kind"] != u"caches" and entry[u"name"] in request["names"])
    if request["names"] and not is_named:
        return False
    if entry[u"state"] in (u"incomplete", u"replaced"):
        return True
    is_old = bool(time.time() - entry[u"used"] >= request["unused_s"])
    # Where it is not known what is in use, the user, who names it, has to know.
    states = (u"free", u"unknown") if is_named else (u"free",)
    return is_old and entry[u"state"] in states


def _remove(root: str, entry: KeptEntry) -> bool:
    """Remove an entry unless it is in use by now; its folder too, if nothing else is in there."""
    if entry[u"kind"] == u"caches":
        return _remove_cache(root, native(entry[u"folder"]))
    folder = os.path.join(root, native(entry[u"kind"]), native(entry[u"folder"]))
    if entry[u"kind"] == u"pythons":
        return _remove_python(root, folder, entry)
    return _remove_numbered(folder, entry)


def _remove_numbered(folder: str, entry: KeptEntry) -> bool:
    if entry[u"state"] == u"unknown":
        remove(folder, entry[u"number"])
    elif not remove_if_free(folder, entry[u"number"]):
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


def _remove_python(root: str, folder: str, entry: KeptEntry) -> bool:
    """Remove a fetched Python unless an environment needs it, or something is being made."""
    try:
        lock = exclusive(cache_lock(root))
    except (Busy, NoLocks, OSError):
        return False
    try:
        return not is_needed(root, folder, entry[u"number"]) and _remove_numbered(folder, entry)
    finally:
        os.close(lock)


def _remove_cache(root: str, name: str) -> bool:
    """Remove a cache unless something is being made; whoever begins meanwhile finds none."""
    path = os.path.join(root, name)
    old = "%s.%d.old" % (path, os.getpid())
    try:
        lock = exclusive(cache_lock(root))
    except (Busy, NoLocks, OSError):
        return False
    try:
        os.rename(path, old)
    except OSError:
        return False
    finally:
        os.close(lock)
    remove_tree(old)
    return True


def _remove_files(folder: str, unused_s: float) -> None:
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
