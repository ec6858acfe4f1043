"""Waiting for changes below a path, by inotify and by looking again and again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rsync_trees import make_tree
from tools import BOUND_S

from execnet import Gateway
from execnet._rsync.far import changes as module
from execnet._rsync.far.changes import Stop, changes
from execnet._ship.parts import run

FILES = {"a": b"1", "d/b": b"2"}
is_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")


def refuse(*_: object) -> None:
    raise OSError("no inotify here")


@pytest.fixture(params=[pytest.param("inotify", marks=is_linux), "looks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "looks":
        monkeypatch.setattr(module, "_Inotify", refuse)
        monkeypatch.setattr(module, "_LOOK_S", 0.01)
    return str(request.param)


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.close()


def rewrite(root: Path) -> None:
    (root / "a").write_bytes(b"x")
    os.utime(root / "a", (9, 9))


CHANGES: list[Callable[[Path], object]] = [
    rewrite,
    lambda root: (root / "d/b").chmod(0o600),
    lambda root: (root / "d/new").write_bytes(b""),
    lambda root: make_tree(root, {"deep/er/file": b"1"}),
    lambda root: (root / "deep/er/file").write_bytes(b"22"),
    lambda root: (root / "a").rename(root / "d/moved"),
    lambda root: (root / "d/b").unlink(),
]


@pytest.mark.usefixtures("way")
def test_each_change_is_reported(source: Path, stop: Stop) -> None:
    with closing(changes(str(source), stop)) as found:
        next(found)
        next(found)  # now it is watched
        for change in CHANGES:
            change(source)
            next(found)
        stop.set()
        assert list(found) == []


@pytest.mark.usefixtures("way")
def test_a_change_of_a_single_file_is_reported(source: Path, stop: Stop) -> None:
    with closing(changes(str(source / "a"), stop)) as found:
        next(found)
        next(found)
        rewrite(source)
        next(found)


def test_a_watch_without_changes_waits_until_it_is_stopped(
    way: str, source: Path, stop: Stop
) -> None:
    reported: list[object] = []
    is_watched = threading.Event()

    def watch() -> None:
        found = changes(str(source), stop)
        next(found)
        next(found)
        is_watched.set()
        reported.extend(found)

    thread = threading.Thread(target=watch)
    thread.start()
    assert is_watched.wait(BOUND_S)
    if way == "looks":
        thread.join(0.1)  # several looks
        assert thread.is_alive()
    stop.set()
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert reported == []


@is_linux
def test_changes_without_a_pause_are_reported_all_the_same(source: Path, stop: Stop) -> None:
    is_seen, is_late = threading.Event(), threading.Event()

    def write() -> None:
        timer = threading.Timer(BOUND_S / 2, is_late.set)
        timer.start()
        with open(source / "a", "ab", buffering=0) as file:
            while not (is_seen.is_set() or is_late.is_set()):
                file.write(b"x")
        timer.cancel()

    with closing(changes(str(source), stop)) as found:
        next(found)
        next(found)
        writer = threading.Thread(target=write)
        writer.start()
        next(found)
        is_seen.set()
        writer.join()
    assert not is_late.is_set()


@is_linux
def test_without_watches_for_new_directories_it_looks(
    source: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    with closing(changes(str(source), stop)) as found:
        next(found)
        next(found)
        monkeypatch.setattr(module._Inotify, "_add", refuse)
        for change in CHANGES:
            change(source)
            next(found)


def test_a_worker_without_inotify_looks(gateway: Gateway, source: Path) -> None:
    gateway.remote_exec("import sys; sys.platform = 'plan9'").waitclose()
    with closing(run(gateway, "_rsync.far.changes")) as channel:
        channel.send(os.fsencode(source))
        channel.receive(BOUND_S)
        channel.send(True)
        channel.receive(BOUND_S)  # now it is watched
        rewrite(source)
        channel.send(True)
        channel.receive(BOUND_S)
