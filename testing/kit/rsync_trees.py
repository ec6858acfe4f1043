"""Trees for the tests of RSync: making them, changing them, and walking them independently.

What a tree is, is told by ``snapshot``, which shares no code with what it judges.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from processes import is_gone
from tools import SOURCE, clean_environment, wait_until

from execnet import Gateway, RSync

# What ``snapshot`` says of a path: kind, mode, time in nanoseconds, and content, text of a
# link, or None for a directory.
Entry = tuple[str, int, int, "bytes | None"]


class Snapshot(NamedTuple):
    """A tree: its entries by their path, and the sets of paths that are one file."""

    entries: dict[bytes, Entry]
    hard_links: set[frozenset[bytes]]


def snapshot(root: Path | str) -> Snapshot:
    """Return all that two equal trees have in common; special files are left out."""
    base = os.fsencode(root)
    entries: dict[bytes, Entry] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for path in _paths_below(base):
        found = os.lstat(path)
        name = os.path.relpath(path, base)
        mode = found.st_mode & 0o7777
        if stat.S_ISREG(found.st_mode):
            entries[name] = ("file", mode, found.st_mtime_ns, _content_of(path, mode))
            inodes.setdefault((found.st_dev, found.st_ino), []).append(name)
        elif stat.S_ISDIR(found.st_mode):
            entries[name] = ("directory", mode, found.st_mtime_ns, None)
        elif stat.S_ISLNK(found.st_mode):
            entries[name] = ("link", 0, found.st_mtime_ns, os.readlink(path))
    groups = {frozenset(names) for names in inodes.values() if len(names) > 1}
    return Snapshot(entries, groups)


def _content_of(path: bytes, mode: int) -> bytes:
    if os.access(path, os.R_OK):
        with open(path, "rb") as file:
            return file.read()
    os.chmod(path, 0o400)  # it is ours
    try:
        return _content_of(path, mode)
    finally:
        os.chmod(path, mode)


def _paths_below(base: bytes) -> Iterator[bytes]:
    yield base
    if os.path.isdir(base) and not os.path.islink(base):
        for name in sorted(os.listdir(base)):
            yield from _paths_below(os.path.join(base, name))


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Make files with their directories; return the root."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def send(gateway: Any, source: Path | str, dest: Path | str, **options: Any) -> Any:
    """Synchronise once, quietly; return the result of the one target."""
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, dest, **options)
    result = rsync.send()
    assert result is not None
    return result.targets[0]


def assert_same(source: Path | str, dest: Path | str) -> None:
    """Compare two trees; a link into the source counts as one into the copy."""
    ours, theirs = snapshot(source), snapshot(dest)
    inner, outer = os.fsencode(source), os.fsencode(dest)
    for name, entry in ours.entries.items():
        text = entry[3]
        if entry[0] == "link" and text is not None and text.startswith(inner):
            ours.entries[name] = (*entry[:3], outer + text[len(inner) :])
    assert theirs == ours


Sync = Callable[..., Any]


NOBODY = 65534


def pull(gateway: Gateway, source: Path | str, dest: Path | str, **options: Any) -> Any:
    """Pull with modes and links as they are, as ``send`` does; return the result."""
    return RSync.pull(gateway, source, dest, mask=0, links="as-is", **options)


def forbid_links(gateway: Gateway, what: str = "symlink") -> None:
    """Make a worker one that can make no links, as Windows without the privilege."""
    gateway.remote_exec(
        f"""
        import errno, os
        def refuse(*args, **kwargs):
            raise OSError(errno.EPERM, "A required privilege is not held by the client")
        os.{what} = refuse
        """
    ).waitclose()


def owners_in(root: Path) -> dict[str, tuple[int, int]]:
    """Return who owns what in a tree: (user, group)."""
    found = {str(path.relative_to(root)): path.lstat() for path in [root, *root.rglob("*")]}
    return {name: (one.st_uid, one.st_gid) for name, one in found.items()}


def give_away(*roots: Path, recursive: bool = True) -> None:
    """Have them belong to another user, if we are one who may do that."""
    if os.geteuid() == 0:
        for root in roots:
            for path in [root, *root.rglob("*")] if recursive else [root]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


_DYING = """
import os, signal, sys
sys.path.insert(0, {path!r})
import execnet
class Dying(execnet.RSync):
    count = 0
    def _report_send_file(self, gateway, path):
        self.count += 1
        if self.count == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
gateway = execnet.makegateway()
print(gateway.remote_exec("import os; channel.send(os.getpid())").receive(), flush=True)
rsync = Dying({source!r}, verbose=False)
rsync.add_target(gateway, {dest!r}, **{options!r})
rsync.send()
"""


def sync_and_die(source: Path, dest: Path, moment: int, **options: Any) -> None:
    """Sync in a process that kills itself when it has sent so many files, if there are as many.

    Returns when its worker has ended as well.  options: of ``add_target``.
    """
    program = _DYING.format(
        path=str(SOURCE), moment=moment, source=str(source), dest=str(dest), options=options
    )
    process = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=clean_environment()
    )
    assert process.returncode in (0, -signal.SIGKILL)
    wait_until(lambda: is_gone(int(process.stdout)))
