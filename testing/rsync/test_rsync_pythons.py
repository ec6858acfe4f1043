"""RSync with workers of every Python that there is, in both directions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter, chosen
from rsync_trees import Snapshot, assert_same, make_tree, pull, send, snapshot
from tools import MakeGateway

from execnet import Gateway
from execnet._rsync.far.wire import EARLY_BYTES, SMALL_MAX, block_bytes
from execnet._ship import parts

CONTENT = os.urandom(3 << 20)


@pytest.fixture(params=chosen(), ids=str)
def gateway(request: pytest.FixtureRequest, makegateway: MakeGateway) -> Gateway:
    interpreter: Interpreter = request.param
    return makegateway(f"popen//python={interpreter.path}")


@pytest.fixture(params=["send", "pull"])
def sync(request: pytest.FixtureRequest, gateway: Gateway) -> Any:
    """Return a function that synchronises two folders, in one of the directions."""
    if request.param == "pull":
        return lambda source, dest, **options: pull(gateway, source, dest, **options)
    return lambda source, dest, **options: send(gateway, source, dest, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = make_tree(
        tmp_path / "source",
        {"a": b"1", "d/\udcff\n": b"2", "ä": b"", "large": CONTENT, "d/e/f": bytes(SMALL_MAX)},
    )
    (source / "empty").mkdir()
    (source / "d").chmod(0o710)
    (source / "a").chmod(0o604)
    (source / "in").symlink_to(source / "d")
    (source / "out").symlink_to("/etc/passwd")
    os.link(source / "large", source / "same")
    return source


def with_times_of(tree: Snapshot, other: Snapshot) -> Snapshot:
    """Return a tree with the other's times where they differ by 10 microseconds at the most.

    Python 2 reads times as floats and sets them in microseconds; those of links it can't set.
    """
    entries = {}
    for name, (kind, mode, time, content) in tree.entries.items():
        wanted = other.entries[name][2] if name in other.entries else time
        close = kind == "link" or abs(time - wanted) <= 10_000
        entries[name] = kind, mode, wanted if close else time, content
    return Snapshot(entries, tree.hard_links)  # type: ignore[arg-type]


def assert_alike(gateway: Gateway, source: Path, dest: Path) -> None:
    if gateway._rinfo().version_info[0] > 2:
        assert_same(source, dest)
        return
    ours, theirs = snapshot(source), snapshot(dest)
    kind, mode, time, _ = ours.entries[b"in"]
    ours.entries[b"in"] = kind, mode, time, os.fsencode(dest / "d")
    assert with_times_of(theirs, ours) == ours


def test_a_very_large_file_that_changed_arrives(sync: Any, source: Path, tmp_path: Path) -> None:
    """The disk gets it while it is compared, where the system can be asked to."""
    dest, content = tmp_path / "dest", bytearray(CONTENT * (EARLY_BYTES // len(CONTENT) + 1))
    make_tree(dest, {"large": content})
    content[len(content) // 4] ^= 255
    make_tree(source, {"large": content})
    assert sync(source, dest).ok
    assert (dest / "large").read_bytes() == content


def test_a_tree_arrives_and_is_then_left_alone(
    sync: Any, gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    assert sync(source, dest).ok
    assert_alike(gateway, source, dest)
    again = sync(source, dest, delete=True)
    assert (again.files_sent, again.bytes_sent, again.settled, again.deleted) == (0, 0, 0, 0)


def test_what_changed_is_brought_up_to_date(
    sync: Any, gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    sync(source, dest)
    with open(source / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    os.utime(source / "a", (5, 5))
    (source / "ä").unlink()
    (source / "ä").mkdir()
    (source / "out").unlink()
    result = sync(source, dest, delete=True)
    assert result.ok
    assert result.bytes_sent == block_bytes((source / "large").stat().st_size)
    assert_alike(gateway, source, dest)
    content = os.urandom(400_000)
    (source / "large").write_bytes(content)
    sync(source, dest)
    (source / "large").write_bytes(b"moved" + content)
    assert sync(source, dest).bytes_sent < 40_000
    assert_alike(gateway, source, dest)


def test_links_that_stand_in_the_target_are_not_followed(
    sync: Any, gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    outside = make_tree(tmp_path / "outside", {"e/f": b"untouched", "x": b"untouched"})
    before = snapshot(outside)
    dest = make_tree(tmp_path / "dest", {})
    (dest / "d").symlink_to(outside)
    (dest / "a").symlink_to(outside / "x")
    assert sync(source, dest, delete=True).ok
    assert snapshot(outside) == before
    assert_alike(gateway, source, dest)


def test_a_dry_run_changes_nothing(sync: Any, source: Path, tmp_path: Path) -> None:
    plan = sync(source, tmp_path / "dest", dry_run=True)
    assert len(plan.planned) == 11
    assert not (tmp_path / "dest").exists()


def test_a_worker_gets_the_code_for_it_only_once(
    sync: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "source", {"a": b"1"})
    sent: list[Any] = []
    inner = parts.sent_parts
    monkeypatch.setattr(parts, "sent_parts", lambda *args: sent.append(inner(*args)) or sent[-1])
    for number in range(3):
        assert sync(tmp_path / "source", tmp_path / str(number)).ok
    has_source = [{source is not None for _, _, source in found} for found in sent]
    assert has_source == [{True}, {False}, {False}]
