"""Holes that are new, or grow, are holes in the target, and nothing of them is sent."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import Sync, assert_same, make_tree, send
from tools import MakeGateway, missing

from execnet import Gateway, RSync
from execnet._rsync.far import requests, temps

PART = 1 << 20


def write(path: Path, parts: str) -> None:
    """Write a file of parts, each of some data "d" or a hole "-"."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for number, part in enumerate(parts):
            if part != "-":
                file.seek(number * PART)
                file.write((part.encode() + b"%06d!" % number) * (PART // 8))
        file.truncate(len(parts) * PART)
    if path.stat().st_blocks * 512 >= path.stat().st_size and "-" in parts:
        missing("a file system with holes")


def test_data_that_has_moved_is_found_between_holes(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    content, front = os.urandom(4 * PART), os.urandom(5000)
    for root, parts in (
        (dest, [content[:PART], 2 * PART, content[PART:]]),
        (source, [front, content[:PART], 3 * PART, content[PART:], PART]),
    ):
        with open(make_tree(root, {}) / "file", "wb") as file:
            for part in parts:
                file.seek(part, os.SEEK_CUR) if isinstance(part, int) else file.write(part)
            file.truncate()
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert len(front) <= result.bytes_sent < PART // 4
    spare = (dest / "file").stat().st_blocks - (source / "file").stat().st_blocks
    assert spare * 512 < PART // 4


@pytest.mark.parametrize(
    ("old", "new", "sent"),
    [("dddddd", "dd--dd", 0), ("dd-ddd", "d---dd", 0), ("dddd", "dddd--", 0), ("dd", "dd--d", 1),
     ("dddddd", "------", 0), ("d--d", "dddd", 2), ("dddd", "e--d", 1), ("----", "--d-", 1)],
)  # fmt: skip
@pytest.mark.parametrize("can_punch", [True, False])
def test_a_hole_arrives_as_a_hole(
    sync: Sync, gateway: Gateway, tmp_path: Path, old: str, new: str, sent: int, can_punch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not can_punch:
        monkeypatch.setattr(temps, "punch", lambda *_: False)  # has an effect on a pull
    source, dest = tmp_path / "source", tmp_path / "dest"
    write(source / "file", new)
    write(dest / "file", old)
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent == sent * PART
    if can_punch:
        spare = (dest / "file").stat().st_blocks - (source / "file").stat().st_blocks
        assert spare * 512 < PART // 2


def test_three_runs_into_one_new_target_at_once_do_not_disturb_each_other(
    makegateway: MakeGateway, tmp_path: Path
) -> None:
    files = {f"d{n}/e{n % 3}/f{n}": b"%d" % n for n in range(60)}
    source = make_tree(tmp_path / "source", files)
    gateways = [makegateway() for _ in range(3)]
    for number in range(8):
        results: list[Any] = []

        def run(gateway: Gateway, dest: Path, results: list[Any] = results) -> None:
            results.append(send(gateway, source, dest))

        dest = tmp_path / f"new{number}/dest"
        threads = [threading.Thread(target=run, args=(gateway, dest)) for gateway in gateways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [result.ok for result in results] == [True] * 3
        assert_same(source, dest)


def test_a_directory_that_others_change_while_its_time_is_set_gets_it(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source", {"d/a": b"1"})
    set_time, changed, now = requests.set_time, [], time.time_ns()

    def set_and_change(path: Any, mtime: int, **where: Any) -> None:
        set_time(path, mtime, **where)
        if stat.S_ISDIR(os.stat(path, **where).st_mode) and len(changed) < 5:
            set_time(path, now, **where)  # all within a tick of the kernel's clock
            changed.append(path)

    monkeypatch.setattr(requests, "set_time", set_and_change)
    result = RSync.pull(gateway, source, tmp_path / "dest")
    assert result.ok
    assert len(changed) == 5
    assert_same(source, tmp_path / "dest")


@pytest.mark.parametrize("off_ns", [1, 10**9])
def test_a_refused_time_is_reported_however_near_it_is(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_ns: int
) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "d/b": b""})
    set_time = requests.set_time

    def refuse(path: Any, mtime: int, **where: Any) -> None:
        if mtime == requests.ODD_TIME_NS:
            set_time(path, mtime, **where)
        else:
            set_time(path, mtime + off_ns, **where)
            raise PermissionError(1, "no")

    monkeypatch.setattr(requests, "set_time", refuse)
    result = RSync.pull(gateway, source, tmp_path / "dest")
    assert result.refused == {"times": 4}
    assert os.listdir(tmp_path / "dest/d") == ["b"]
