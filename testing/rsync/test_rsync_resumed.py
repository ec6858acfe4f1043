"""A transfer that was cut off goes on from there, if that is wanted; what is there is checked."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import assert_same, make_tree, send
from tools import MakeGateway

from execnet import Gateway, RemoteError, RSync
from execnet._rsync.far import messages, pump, wire
from execnet._rsync.far.places import Places
from execnet._rsync.far.temps import PREFIX, Temps, tag_of

SIZE = 10 << 20
OLD = {"nothing": None, "another": os.urandom(SIZE), "older": os.urandom(1 << 20)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", {"d/large": os.urandom(SIZE), "d/small": b"1"})


def left_in(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.startswith(os.fsdecode(PREFIX))]


# Ends a worker, or only what it runs, when most of a file was written.
END_AT = """
import os
write, count = os.write, [0]
def ending(fd, data):
    count[0] += len(data)
    if count[0] > {limit}:
        {end}
    return write(fd, data)
os.write = ending
"""


def cut_off(makegateway: MakeGateway, source: Path, dest: Path, end: str, **options: Any) -> None:
    gateway = makegateway()
    gateway.remote_exec(END_AT.format(limit=SIZE * 4 // 5, end=end)).waitclose()
    with contextlib.suppress(EOFError, RemoteError):
        send(gateway, source, dest, **options)
    gateway.exit()


@pytest.mark.parametrize("there", OLD)
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise ValueError"])
def test_a_file_that_was_cut_off_is_continued(
    makegateway: MakeGateway, source: Path, tmp_path: Path, end: str, there: str
) -> None:
    dest, old = tmp_path / "dest", OLD[there]
    if old is not None:
        make_tree(dest, {"d/large": old})
    cut_off(makegateway, source, dest, end, partial=True)
    assert len(left_in(dest)) == 1
    if old is not None:
        assert (dest / "d/large").read_bytes() == old
    result = send(makegateway(), source, dest, partial=True)
    assert (result.ok, result.bytes_sent < SIZE * 0.3) == (True, True)
    assert left_in(dest) == []
    assert_same(source, dest)


def test_what_was_left_goes_when_the_next_run_does_not_want_it(
    makegateway: MakeGateway, source: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    cut_off(makegateway, source, dest, "raise ValueError")
    assert left_in(dest) == []
    cut_off(makegateway, source, dest, "raise ValueError", partial=True)
    assert send(makegateway(), source, dest).bytes_sent > SIZE
    assert left_in(dest) == []
    cut_off(makegateway, source, tmp_path / "other", "raise ValueError", partial=True)
    (source / "d/large").unlink()
    assert send(makegateway(), source, tmp_path / "other", partial=True, delete=True).ok
    assert left_in(tmp_path / "other") == []
    assert_same(source, tmp_path / "other")


def leave(dest: Path, name: str, content: bytes, *version: int) -> Path:
    """Leave something as a run would that is over."""
    left = Temps(Places())._stem_of(0) + b"0" + tag_of(os.fsencode(name), *version)
    path = dest / os.fsdecode(left)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("has_version", [True, False])
@pytest.mark.parametrize("kind", ["all", "garbage", "longer", "shifted", "link", "hard link"])
def test_what_is_there_is_not_trusted(
    gateway: Gateway, source: Path, tmp_path: Path, kind: str, has_version: bool
) -> None:
    dest, found = tmp_path / "dest", (source / "d/large").stat()
    version = (found.st_size, found.st_mtime_ns) if has_version else ()
    content = (source / "d/large").read_bytes()
    contents = {"garbage": os.urandom(SIZE), "longer": content + b"x" * 99, "shifted": content[9:]}
    path = leave(dest / "d", "large", contents.get(kind, content), *version)
    outside = tmp_path / "outside"
    if "link" in kind:
        path.rename(outside)
        path.symlink_to(outside) if kind == "link" else path.hardlink_to(outside)
    result = send(gateway, source, dest, partial=True)
    assert result.ok
    assert (result.bytes_sent < 10) == (kind in ("all", "longer"))
    assert_same(source, dest)
    assert left_in(dest) == []
    if "link" in kind:
        assert outside.read_bytes() == content
        assert outside.stat().st_mtime_ns != (source / "d/large").stat().st_mtime_ns


@pytest.mark.parametrize("name", ["hashlib", "checksum"])
def test_a_checksum_is_enough_for_what_is_of_the_version_that_is_sent(
    gateway: Gateway, source: Path, tmp_path: Path, name: str
) -> None:
    found, content = (source / "d/large").stat(), (source / "d/large").read_bytes()
    dest, damaged = tmp_path / "dest", bytearray(content[: SIZE // 2])
    damaged[12_345] ^= 1
    time_ns = found.st_mtime_ns + (name == "hashlib")
    leave(dest / "d", "large", bytes(damaged), found.st_size, time_ns)
    said = []
    inner = messages.checked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pump, "checked", lambda *args: said.append(args[0]) or inner(*args))
        result = send(gateway, source, dest, partial=True)
    assert [message[3] for message in said if message[0] == wire.DELTA] == [name == "checksum"]
    assert result.ok
    assert SIZE // 2 < result.bytes_sent < SIZE // 2 + 200_000
    assert_same(source, dest)


def test_a_file_that_changes_once_more_is_of_no_version(
    makegateway: MakeGateway, source: Path, tmp_path: Path
) -> None:
    large, dest = source / "d/large", tmp_path / "dest"
    found = large.stat()
    leave(dest / "d", "large", large.read_bytes()[: SIZE // 2], found.st_size, found.st_mtime_ns)

    class Changing(RSync):
        def filter(self, path: str) -> bool:
            if path.endswith("small"):  # what is in the same directory was listed before
                large.write_bytes(os.urandom(SIZE))
            return True

    gateway = makegateway()
    gateway.remote_exec(END_AT.format(limit=SIZE // 2, end="raise ValueError")).waitclose()
    rsync = Changing(source, verbose=False)
    rsync.add_target(gateway, dest, partial=True)
    with pytest.raises(RemoteError):
        rsync.send()
    [left] = left_in(dest)
    assert left.name.endswith("-" * 8)
    assert send(makegateway(), source, dest, partial=True).ok
    assert_same(source, dest)


def test_a_pull_is_continued(makegateway: MakeGateway, source: Path, tmp_path: Path) -> None:
    gateway, dest = makegateway(), tmp_path / "dest"
    pid = gateway.remote_exec("import os; channel.send(os.getpid())").receive()

    def kill(total: int, done: int, current: str) -> None:
        if done > SIZE * 4 // 5:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises((EOFError, OSError)):
        RSync.pull(gateway, source, dest, partial=True, progress=kill)
    result = RSync.pull(makegateway(), source, dest, partial=True)
    assert (result.ok, result.bytes_sent < SIZE * 0.3) == (True, True)
    assert_same(source, dest)
