"""Content is compressed where that is asked for and of use, and keeps to a pace."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from rsync_trees import assert_same, make_tree, pull, send

import execnet.rsync
from execnet import Gateway, RSync
from execnet._rsync.far import sending, wire
from execnet._rsync.far.wire import Violation, unpacked

FILES = {"text": b"the same again\n" * 100_000, "small": b"x" * 9000, "random": os.urandom(900_000)}


def test_content_is_compressed_where_that_makes_it_smaller(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execnet.rsync, "_is_local", lambda gateway: False)
    source = make_tree(tmp_path / "source", FILES)
    for number, sync in enumerate((send, pull)):
        result = sync(gateway, source, tmp_path / f"dest{number}", compress=True)
        assert 900_000 < result.bytes_sent < 960_000
        assert_same(source, tmp_path / f"dest{number}")


def test_nothing_is_compressed_for_this_machine(gateway: Gateway, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", FILES)
    sizes = sum(map(len, FILES.values()))
    assert send(gateway, source, tmp_path / "dest", compress=True).bytes_sent == sizes


def test_what_does_not_shrink_is_seldom_tried(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(execnet.rsync, "_is_local", lambda gateway: False)
    packed = wire.packed
    monkeypatch.setattr(wire, "packed", lambda data: tried.append(len(data)) or packed(data))
    source = make_tree(tmp_path / "source", {"random": os.urandom(9_000_000)})
    send(gateway, source, tmp_path / "dest", compress=True)
    assert len(tried) < 9_000_000 // sending.CHUNK_BYTES // 5


@pytest.mark.parametrize(
    ("short", "size"),
    [(b"", 1), (b"x", 1), (zlib.compress(bytes(10**7)), 100), (zlib.compress(b"1"), 2),
     (zlib.compress(bytes(2**21)), 2**21)],
)  # fmt: skip
def test_content_that_is_not_as_large_as_announced_is_refused(short: bytes, size: int) -> None:
    with pytest.raises(Violation):
        unpacked(short, size)


def test_a_pace_is_kept(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "source", {"a": os.urandom(1_000_000), "b": b"x" * 9000})
    slept: list[float] = []
    monkeypatch.setattr(type(gateway.execmodel), "sleep", lambda self, delay: slept.append(delay))
    now = [0.0]

    def clock() -> float:
        return now[0]

    monkeypatch.setattr(wire, "clock", clock)
    send(gateway, source, tmp_path / "dest", bwlimit=100_000)
    assert max(slept) == pytest.approx(10, rel=0.1)
    slept.clear()
    send(gateway, make_tree(tmp_path / "few", {"a": b"123"}), tmp_path / "other", bwlimit=0.5)
    assert max(slept) == pytest.approx(3)  # a byte a second is the least
    slept.clear()
    assert RSync.pull(gateway, source, tmp_path / "back", bwlimit=float("inf")).ok
    assert slept == []
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="bwlimit must be more than 0"):
            RSync.pull(gateway, source, tmp_path / "dest", bwlimit=value)
