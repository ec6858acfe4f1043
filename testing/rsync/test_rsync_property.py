"""For all trees, and all changes to them: the copy equals the source, and is then left alone.

What happens to a tree is a list of steps, which Hypothesis can shorten when it shows a defect.
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
from rsync_steps import STEPS, Step, make_readable, set_time, take
from rsync_trees import assert_same, send, snapshot

from execnet import Gateway

SHARED = [HealthCheck.function_scoped_fixture]  # each example makes places of its own

numbers = st.integers(0, 1000)
steps = st.lists(st.tuples(st.integers(0, len(STEPS) - 1), numbers, numbers, numbers), max_size=25)


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
    make_readable(source)
    assert send(gateway, source, dest).ok
    take(source, then)
    make_readable(source)
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
    make_readable(source)
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
