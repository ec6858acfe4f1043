"""For all trees, and all changes to them: the copy equals the source, and is then left alone.

What happens to a tree is a list of steps, each a function of the tree's root and a few small
numbers, so that Hypothesis can shorten a list that shows a defect. Start at ``STEPS``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rsync_trees import assert_same, send, snapshot

from execnet import Gateway
from execnet._rsync.far.wire import SMALL_MAX

NAMES = [b"a", b"b", b"\xff\xfe", b"new\nline", b"x" * 255, b" ", b"-", "ä".encode(), b"..."]
SIZES = [0, 1, 100, SMALL_MAX, SMALL_MAX + 1, 100_000, (1 << 20) + 3]
LINKS = [b"a", b"../b", b"nowhere", b"/etc/passwd", b".", b"..", b"../../x", b"a/../b"]
MODES = [0o000, 0o400, 0o644, 0o755, 0o777, 0o070, 0o4755, 0o2755]

SHARED = [HealthCheck.function_scoped_fixture]  # each example makes places of its own

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

numbers = st.integers(0, 1000)
steps = st.lists(st.tuples(st.integers(0, len(STEPS) - 1), numbers, numbers, numbers), max_size=25)


def take(root: Path, chosen: list[Step]) -> None:
    for which, *arguments in chosen:
        STEPS[which](os.fsencode(root), *arguments)


def without_special_bits(root: Path) -> None:
    """Drop the bits of a source that a copy drops, so that the two can be compared."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & (0o1777 if path.is_dir() else 0o777))


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Callable[[], tuple[Path, Path]]]:
    """Return a function that makes a source and names a target, new for each example."""

    def new_places() -> tuple[Path, Path]:
        set_time.count = 0  # type: ignore[attr-defined]
        base = Path(tempfile.mkdtemp(dir=tmp_path))
        (base / "source").mkdir()
        return base / "source", base / "dest"

    yield new_places
    os.chmod(tmp_path, 0o700)


@given(first=steps, then=steps, meanwhile=steps)
@settings(max_examples=60, suppress_health_check=SHARED)
def test_source_and_target_are_equal_and_a_second_run_sends_nothing(
    places: Callable[[], tuple[Path, Path]],
    gateway: Gateway,
    first: list[Step],
    then: list[Step],
    meanwhile: list[Step],
) -> None:
    source, dest = places()
    take(source, first)
    assert send(gateway, source, dest).ok
    take(source, then)
    take(dest, meanwhile)
    assert send(gateway, source, dest, delete=True).ok
    without_special_bits(source)
    assert_same(source, dest)
    before = snapshot(dest)
    again = send(gateway, source, dest, delete=True)
    assert (again.files_sent, again.bytes_sent, again.settled, again.deleted) == (0, 0, 0, 0)
    assert snapshot(dest) == before
    shutil.rmtree(source.parent)


@given(first=steps, then=steps)
@settings(max_examples=30, suppress_health_check=SHARED)
def test_without_delete_all_arrives_for_which_no_full_directory_would_go(
    places: Callable[[], tuple[Path, Path]], gateway: Gateway, first: list[Step], then: list[Step]
) -> None:
    source, dest = places()
    dest.mkdir()
    take(source, first)
    take(dest, then)
    full = {
        path.relative_to(dest)
        for path in dest.rglob("*")
        if path.is_dir() and not path.is_symlink() and os.listdir(path)
    }
    result = send(gateway, source, dest)
    assert (result.error, result.refused) == (None, {})
    without_special_bits(source)
    ours, theirs = snapshot(source).entries, snapshot(dest).entries
    for name, entry in ours.items():
        if entry[0] == "link" and entry[3] is not None and entry[3].startswith(os.fsencode(source)):
            ours[name] = (*entry[:3], os.fsencode(dest) + entry[3][len(os.fsencode(source)) :])
    kept = {os.fsencode(item.path) for item in result.skipped}
    for name in kept:
        assert (Path(os.fsdecode(name)) in full, ours.pop(name)[0] != "directory") == (True, True)
        assert theirs[name][0] == "directory"
    assert {name: theirs[name] for name in ours} == ours
    shutil.rmtree(source.parent)
