"""Modes and times where the target refuses them, rounds them, or is asked to leave them alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import assert_same, make_tree, pull, send, snapshot

from execnet import Gateway, RSync

FILES = {"a": b"1", "d/b": b"2", "d/large": bytes(100_000)}
NS = 1_000_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = make_tree(tmp_path / "source", FILES)
    for number, path in enumerate(sorted(source.rglob("*"), reverse=True)):
        path.chmod(0o750 if path.is_dir() else 0o640)
        os.utime(path, ns=(1, 1_500_000_001_123_456_789 + number * 7))
    return source


@pytest.fixture(params=["descriptors", "paths"])
def patch(request: pytest.FixtureRequest, gateway: Gateway, tmp_path: Path) -> Any:
    """A function that runs code in the worker, which reaches files by either means."""
    if request.param == "descriptors":  # what it can do is found out with the first run
        send(gateway, make_tree(tmp_path / "first", {}), tmp_path / "to")

    def run(code: str) -> None:
        gateway.remote_exec(f"import os\nkeep = os.utime, os.chmod, os.fchmod\n{code}").waitclose()

    return run


REFUSE = """
def refuse(*args, **kwargs):
    raise PermissionError(1, "Operation not permitted")
"""
ROUND = """
def rounding(path, ns=None, **kwargs):
    keep[0](path, ns=tuple(item // {grain} * {grain} for item in ns), **kwargs)
os.utime = rounding
"""


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "how", [REFUSE, "def refuse(*args, **kwargs): pass"], ids=["loud", "silent"]
)
@pytest.mark.parametrize("what", ["utime", "chmod"])
def test_a_target_that_refuses_keeps_the_content_and_says_what_it_refused(
    gateway: Gateway, source: Path, dest: Path, patch: Any, what: str, how: str
) -> None:
    (source / "a").chmod(0o666)  # not what a umask leaves
    patch(f"{how}\nos.{what} = refuse")
    result = send(gateway, source, dest)
    assert contents(dest) == FILES
    assert (result.skipped, result.error) == ([], None)
    assert list(result.refused) == [{"utime": "times", "chmod": "modes"}[what]]
    assert not result.ok
    assert send(gateway, source, dest).bytes_sent == 0


@pytest.mark.parametrize("grain", [2 * NS, NS, NS // 100, 100])
def test_times_are_compared_as_coarsely_as_they_are_stored(
    gateway: Gateway, source: Path, dest: Path, patch: Any, grain: int
) -> None:
    patch(ROUND.format(grain=grain))
    assert send(gateway, source, dest).ok
    result = send(gateway, source, dest)
    assert (result.files_sent, result.settled, result.unchanged) == (0, 0, len(FILES))
    found = (source / "a").stat().st_mtime_ns
    (source / "a").write_bytes(b"2")
    os.utime(source / "a", ns=(1, found + grain))
    assert send(gateway, source, dest).files_sent == 1


def test_an_exact_target_is_not_taken_for_a_coarse_one(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    send(gateway, source, dest)
    found = (source / "a").stat().st_mtime_ns
    (source / "a").write_bytes(b"2")
    os.utime(source / "a", ns=(1, found + 1))
    assert send(gateway, source, dest).files_sent == 1


def test_modify_window_makes_near_times_the_same(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    send(gateway, source, dest)
    found = (source / "a").stat().st_mtime_ns
    (source / "a").write_bytes(b"2")
    os.utime(source / "a", ns=(1, found + 3 * NS))
    assert send(gateway, source, dest, modify_window=3).files_sent == 0
    assert RSync.pull(gateway, source, dest, modify_window=3.5).files_sent == 0
    assert send(gateway, source, dest, modify_window=float("inf")).files_sent == 0
    assert send(gateway, source, dest, modify_window=2.999).files_sent == 1
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="negative"):
            send(gateway, source, dest, modify_window=seconds)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("sync", [send, pull])
def test_without_modes_new_files_are_as_any_and_old_ones_keep_theirs(
    gateway: Gateway, source: Path, dest: Path, sync: Any
) -> None:
    make_tree(dest, {"a": b"old", "d/large": b"old"})
    for name, mode in [("a", 0o600), ("d/large", 0o604), ("d", 0o711)]:
        (dest / name).chmod(mode)
    (source / "d/b").chmod(0o777)
    make_tree(source, {"e/f": bytes(100_000)})
    (source / "e").chmod(0o777)
    (source / "e/f").chmod(0o666)
    umask = os.umask(0)
    os.umask(umask)
    assert sync(gateway, source, dest, modes=False).ok
    expected = {
        "a": 0o600, "d/large": 0o604, "d": 0o711, "d/b": 0o777 & ~umask, "e": 0o777 & ~umask,
        "e/f": 0o666 & ~umask,
    }  # fmt: skip
    assert {name: mode_of(dest / name) for name in expected} == expected
    assert sync(gateway, source, dest, modes=False).unchanged == 4
    assert (dest / "a").stat().st_mtime_ns == (source / "a").stat().st_mtime_ns


@pytest.mark.parametrize("sync", [send, pull])
def test_without_times_they_are_not_set_and_the_content_is_compared(
    gateway: Gateway, source: Path, dest: Path, sync: Any
) -> None:
    assert sync(gateway, source, dest, times=False).ok
    assert contents(dest) == FILES
    for name in [*FILES, "d"]:
        assert (dest / name).stat().st_mtime_ns > (source / name).stat().st_mtime_ns + 3 * NS
    times = {name: (dest / name).stat().st_mtime_ns for name in FILES}
    assert sync(gateway, source, dest, times=False).bytes_sent == 0
    assert {name: (dest / name).stat().st_mtime_ns for name in FILES} == times


@pytest.mark.parametrize("sync", [send, pull])
def test_sticky_bits_of_directories_are_kept_and_of_files_are_not(
    gateway: Gateway, source: Path, dest: Path, sync: Any
) -> None:
    (source / "d").chmod(0o1777)
    source.chmod(0o1755)
    (source / "a").chmod(0o1644)
    assert sync(gateway, source, dest).ok
    assert [mode_of(dest / name) for name in ("d", ".", "a")] == [0o1777, 0o1755, 0o644]
    before = snapshot(dest)
    assert sync(gateway, source, dest).ok
    assert snapshot(dest) == before
    (source / "a").chmod(0o644)
    assert_same(source, dest)
