"""What happens to a tree: steps, each a function of the tree's root and a few small numbers.

A list of them can be shortened by Hypothesis, or drawn by chance. Start at ``STEPS``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from execnet._rsync.far.wire import SMALL_MAX

NAMES = [b"a", b"b", b"\xff\xfe", b"new\nline", b"x" * 255, b" ", b"-", "ä".encode(), b"..."]
SIZES = [0, 1, 100, SMALL_MAX, SMALL_MAX + 1, 100_000, (1 << 20) + 3]
LINKS = [b"a", b"../b", b"nowhere", b"/etc/passwd", b".", b"..", b"../../x", b"a/../b"]
MODES = [0o000, 0o400, 0o644, 0o755, 0o777, 0o070, 0o4755, 0o2755]

Step = tuple[int, int, int, int]  # which step, and three numbers for it


def directories(root: bytes) -> list[bytes]:
    """Return the directories of a tree, sorted, three levels deep."""
    found = [root]
    for directory in found:
        if directory.count(b"/") - root.count(b"/") < 3:
            names = sorted(os.listdir(directory))
            paths = [os.path.join(directory, name) for name in names]
            found += [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
    return found


def place(root: bytes, number: int) -> bytes:
    """Return a path in a tree; there may be something or nothing."""
    found = directories(root)
    directory = found[number % len(found)]
    return os.path.join(directory, NAMES[number // 7 % len(NAMES)])


def some_file(root: bytes, number: int) -> bytes | None:
    found = [
        os.path.join(directory, name)
        for directory in directories(root)
        for name in sorted(os.listdir(directory))
        if os.path.isfile(os.path.join(directory, name))
        and not os.path.islink(os.path.join(directory, name))
    ]
    return found[number % len(found)] if found else None


def remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def set_time(path: bytes, number: int) -> None:
    """Set a time that no other step sets: what changed has a time of its own."""
    set_time.count += 1  # type: ignore[attr-defined]
    time = (1_600_000_000 + number) * 10**9 + set_time.count  # type: ignore[attr-defined]
    os.utime(path, ns=(time, time), follow_symlinks=False)


set_time.count = 0  # type: ignore[attr-defined]


def write(root: bytes, where: int, size: int, fill: int) -> None:
    path = place(root, where)
    remove(path)
    content = bytes([fill % 256, fill // 256 % 256, where % 256]) * (
        SIZES[size % len(SIZES)] // 3 + 1
    )
    with open(path, "wb") as file:
        file.write(content[: SIZES[size % len(SIZES)]])
    set_time(path, fill)


def make_directory(root: bytes, where: int, mode: int, time: int) -> None:
    path = place(root, where)
    remove(path)
    os.mkdir(path)
    os.chmod(path, MODES[mode % len(MODES)] | 0o700)


def link(root: bytes, where: int, text: int, absolute: int) -> None:
    path = place(root, where)
    remove(path)
    target = LINKS[text % len(LINKS)]
    if absolute % 3 == 0:
        target = os.path.join(root, target.lstrip(b"/."))
    os.symlink(target, path)


def hard_link(root: bytes, where: int, other: int, _: int) -> None:
    source, path = some_file(root, other), place(root, where)
    if source is not None and not source.startswith(path):
        remove(path)
        os.link(source, path)


def change_byte(root: bytes, which: int, offset: int, value: int) -> None:
    path = some_file(root, which)
    if path is not None and os.path.getsize(path):
        with open(path, "r+b") as file:
            file.seek(offset * 997 % os.path.getsize(path))
            file.write(bytes([value % 256]))
        set_time(path, value)


def append(root: bytes, which: int, size: int, fill: int) -> None:
    path = some_file(root, which)
    if path is not None:
        with open(path, "ab") as file:
            file.write(bytes([fill % 256]) * (size % 50_000))
        set_time(path, fill)


def cut(root: bytes, which: int, size: int, time: int) -> None:
    path = some_file(root, which)
    if path is not None:
        os.truncate(path, size * 991 % (os.path.getsize(path) + 1))
        set_time(path, time)


def stretch(root: bytes, which: int, size: int, time: int) -> None:
    path = some_file(root, which)
    if path is not None:
        os.truncate(path, os.path.getsize(path) + size * 10_000)
        set_time(path, time)


def touch(root: bytes, which: int, time: int, _: int) -> None:
    path = some_file(root, which)
    if path is not None:
        set_time(path, time)


def change_mode(root: bytes, which: int, mode: int, of_directory: int) -> None:
    if of_directory % 2:
        found = directories(root)
        os.chmod(found[which % len(found)], MODES[mode % len(MODES)] | 0o700)
    else:
        path = some_file(root, which)
        if path is not None:
            os.chmod(path, MODES[mode % len(MODES)])


def take_away(root: bytes, where: int, _: int, __: int) -> None:
    remove(place(root, where))


def rename(root: bytes, which: int, where: int, _: int) -> None:
    source, path = some_file(root, which), place(root, where)
    if source is not None and source != path and not source.startswith(path + b"/"):
        remove(path)
        os.rename(source, path)


STEPS: list[Callable[[bytes, int, int, int], None]] = [
    write, write, make_directory, link, hard_link, change_byte, append, cut, stretch, touch,
    change_mode, take_away, rename,
]  # fmt: skip


def make_readable(root: Path) -> None:
    """Let the owner of all files read them: a mode stops an ordinary user, though not root."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o400)


def take(root: Path, chosen: list[Step], first_time: int | None = None) -> None:
    """Take steps; one that modes forbid an ordinary user is left out.

    first_time: with the same one, the same steps set the same times.
    """
    if first_time is not None:
        set_time.count = first_time  # type: ignore[attr-defined]
    for which, *arguments in chosen:
        with suppress(PermissionError):
            STEPS[which](os.fsencode(root), *arguments)
