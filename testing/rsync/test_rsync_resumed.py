"""A transfer that was cut off goes on from there, if that is wanted; what is there is checked."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import Sync, assert_same, make_tree, send
from rsync_units import OPTIONS, unit
from tools import MakeGateway

from execnet import Gateway, RemoteError, RSync
from execnet._rsync.far import messages, pump, temps, wire
from execnet._rsync.far.places import Directory, Places
from execnet._rsync.far.target import Target
from execnet._rsync.far.temps import PREFIX, Incoming, Temps, tag_of

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


def cut_off(
    makegateway: MakeGateway, source: Path, dest: Path, end: str, at: int = SIZE * 4 // 5,
    **options: Any,
) -> None:  # fmt: skip
    gateway = makegateway()
    gateway.remote_exec(END_AT.format(limit=at, end=end)).waitclose()
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


def test_a_single_file_is_continued_and_what_is_left_of_others_stays(
    makegateway: MakeGateway, source: Path, tmp_path: Path, sync: Sync
) -> None:
    dest, large = tmp_path / "dest", source / "d/large"
    cut_off(makegateway, large, dest / "large", "raise ValueError", partial=True)
    other = leave(dest, "other", b"1", 5, 5)
    killed = dest / other.name.replace("-0-0.", f"-{2**22 + 5}-1.")[:-17]
    killed.write_bytes(b"half")
    assert len(left_in(dest)) == 3
    result = sync(makegateway(), large, dest / "large", partial=True)
    assert (result.ok, result.bytes_sent < SIZE * 0.3) == (True, True)
    assert left_in(dest) == [other]
    assert (dest / "large").read_bytes() == large.read_bytes()
    cut_off(makegateway, large, dest / "again", "raise ValueError", partial=True)
    assert sync(makegateway(), large, dest / "again", delete=True).bytes_sent >= SIZE
    assert left_in(dest) == [other]


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


@contextlib.contextmanager
def what_targets_say() -> Iterator[list[Any]]:
    said: list[Any] = []
    inner = messages.checked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pump, "checked", lambda *args: said.append(args[0]) or inner(*args))
        yield said


def test_a_run_that_could_say_goodbye_is_continued_without_reading_the_source_again(
    makegateway: MakeGateway, source: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    with what_targets_say() as said:
        for at in (SIZE * 2 // 3, SIZE // 6):
            cut_off(makegateway, source, dest, "raise ValueError", at, partial=True)
        result = send(makegateway(), source, dest, partial=True)
    codes = [message[0] for message in said]
    assert (codes.count(wire.REST), codes.count(wire.DELTA)) == (2, 0)
    assert (result.ok, result.bytes_sent < SIZE * 0.3) == (True, True)
    assert left_in(dest) == []
    assert_same(source, dest)


# what is left: its checksum, and what is asked for
LEFT = {
    "right": (0, False, [wire.REST]),
    "damaged": (0, True, [wire.REST, wire.DELTA]),
    "wrong sum": (1, False, [wire.REST, wire.DELTA]),
    "no sum": (None, False, [wire.DELTA]),
    "no checksum's number": (2**40, False, [wire.DELTA]),
    "another sum": (wire.CRC_32, False, [wire.REST, wire.DELTA]),
}


@pytest.mark.parametrize("nothing", wire.SUMS_OF_NOTHING.values(), ids=wire.SUMS_OF_NOTHING)
@pytest.mark.parametrize("kind", LEFT)
def test_what_is_there_is_only_kept_if_it_has_its_checksum(
    gateway: Gateway, source: Path, tmp_path: Path, kind: str, nothing: int
) -> None:
    off_by, is_damaged, asked = LEFT[kind]
    found, content = (source / "d/large").stat(), (source / "d/large").read_bytes()
    dest, there = tmp_path / "dest", bytearray(content[: SIZE // 2])
    number = "0" if off_by is None else str(wire.checksum(there, nothing) ^ off_by)
    there[12_345] ^= is_damaged
    path = leave(dest / "d", "large", bytes(there), found.st_size, found.st_mtime_ns)
    path.rename(str(path).replace("-0-0.", f"-0-{number}."))
    with what_targets_say() as said:
        result = send(gateway, source, dest, partial=True)
    assert [message[0] for message in said if message[0] in (wire.REST, wire.DELTA)] == asked
    assert result.ok
    assert SIZE // 2 <= result.bytes_sent < SIZE // 2 + 200_000
    assert_same(source, dest)
    assert left_in(dest) == []


def test_a_full_disk_leaves_what_fits_for_the_next_run(tmp_path: Path) -> None:
    """What was written of a piece in part is not counted in."""
    places, whole = Places(), os.urandom(300_000)
    files = Temps(places)
    root = Directory(0, None, os.fsencode(tmp_path), None, 0)
    fd, temp = files.create(root, 0o600, tag_of(b"x", len(whole), 5))
    incoming = Incoming(fd, temp, None, None, wire.SUMS_OF_NOTHING["adler32"])
    incoming.open(len(whole), 0o600, 5, wire.WHOLE)
    incoming.piece(0, whole[:100_000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temps, "write_all", lambda fd, data: os.write(fd, data[:9]) and fail())
        with pytest.raises(OSError, match="no space"):
            incoming.piece(100_000, whole[100_000:])
    files.sums[temp] = incoming.cut_off()
    incoming.close()
    files.drop_all()
    places.close()
    [left] = left_in(tmp_path)
    assert left.read_bytes() == whole[:100_000]
    assert temps.sum_in(os.fsencode(left.name)) == zlib.adler32(whole[:100_000])


def test_what_cannot_be_cut_to_size_is_left_without_a_checksum(
    makegateway: MakeGateway, source: Path, tmp_path: Path
) -> None:
    dest, gateway = tmp_path / "dest", makegateway()
    code = END_AT.format(limit=SIZE // 2, end="raise ValueError")
    code += "def no(*args): raise OSError(28, 'No space left on device')\nos.ftruncate = no\n"
    gateway.remote_exec(code).waitclose()
    with pytest.raises(RemoteError):
        send(gateway, source, dest, partial=True)
    [left] = left_in(dest)
    assert "-0-0." in left.name
    assert send(makegateway(), source, dest, partial=True).bytes_sent < SIZE * 0.6


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("place", [(temps, "rename"), (Target, "_end_request")])
def test_a_file_that_is_in_place_stays_whole_wherever_the_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: bool, place: Any
) -> None:
    """It ends in a hole, of which nothing has come."""
    owner, name = place
    inner = getattr(owner, name)

    def interrupted(*args: Any) -> None:
        if owner is temps:
            inner(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    options = {"dest": os.fsencode(tmp_path / "dest"), "root": (wire.DIRECTORY, 0o755, 1)}
    said = [
        (wire.LIST, 9, [unit([(b"a", wire.FILE, SIZE)])]),
        (wire.OPEN, 1, SIZE, 0o644, 1, wire.WHOLE),
        wire.PIECE.pack(1, 0) + b"x" * 4096,
        (wire.CLOSE, 1, None),
    ]
    with pytest.raises(KeyboardInterrupt):
        Target([].append, OPTIONS | options | {"partial": partial}).run(iter(said).__next__)
    assert os.listdir(tmp_path / "dest") == ["a"]
    assert (tmp_path / "dest/a").read_bytes() == b"x" * 4096 + bytes(SIZE - 4096)


def fail() -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("has_sum", [True, False])
def test_a_file_that_changes_once_more_is_not_of_the_version_that_was_listed(
    makegateway: MakeGateway, source: Path, tmp_path: Path, has_sum: bool
) -> None:
    large, dest = source / "d/large", tmp_path / "dest"
    found, there = large.stat(), large.read_bytes()[: SIZE // 2]
    path = leave(dest / "d", "large", there, found.st_size, found.st_mtime_ns)
    path.rename(str(path).replace("-0-0.", f"-0-{zlib.adler32(there) * has_sum}."))

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
    now = large.stat()
    assert left.name.endswith(os.fsdecode(tag_of(b"large", now.st_size, now.st_mtime_ns)))
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
