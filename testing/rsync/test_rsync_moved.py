"""Data that moved within a file is found, whatever it is, and what is new costs little more."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rsync_trees import Sync, assert_same, make_tree, send
from services import need

import execnet
from execnet import Gateway, RSync
from execnet._rsync.far import bases, chunks, wire
from execnet._rsync.far.chunks import average_bytes, choose_marks, cut
from execnet._rsync.push import _Service

CONTENTS: dict[str, Callable[[int], bytes]] = {
    "random": lambda size: random.Random(1).randbytes(size),
    "text": lambda size: b"".join(b"%d bottles, %d\n" % (n, n * n) for n in range(size // 15))[
        :size
    ],
    "four letters": lambda size: bytes(random.Random(2).choices(b"ACGT", k=size // 9)) * 9,
}


def write(root: Path, content: bytes) -> None:
    make_tree(root, {"file": content})


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("size", [100_000, 9_000_000])
def test_what_was_put_in_or_taken_out_is_all_that_is_sent(
    sync: Sync, gateway: Gateway, tmp_path: Path, kind: str, size: int
) -> None:
    old, source, dest = CONTENTS[kind](size), tmp_path / "source", tmp_path / "dest"
    half = size // 2
    for new in (b"x" + old, old[1:], old[:half] + b"put in" + old[half:], old[half:] + old[:half]):
        write(source, new)
        write(dest, old)
        os.utime(dest / "file", (5, 5))
        result = sync(gateway, source, dest)
        assert_same(source, dest)
        assert result.bytes_sent < 20 * average_bytes(size)
        assert result.bytes_sent < size // 4


def test_a_byte_in_front_of_a_large_file_costs_little_more_than_with_rsync(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, passed = random.Random(1).randbytes(50_000_000), []

    def send_counted(service: _Service, message: Any) -> None:
        passed.append(len(execnet.dumps(message)))
        plain_send(service, message)

    def receive_counted(service: _Service) -> object:
        message = plain_receive(service)
        passed.append(len(execnet.dumps(message)))
        return message

    plain_send, plain_receive = _Service._send, _Service._receive
    monkeypatch.setattr(_Service, "_send", send_counted)
    monkeypatch.setattr(_Service, "_receive", receive_counted)
    source, dest, other = (tmp_path / name for name in ("source", "dest", "other"))
    write(source, b"x" + old)
    for root in (dest, other):
        write(root, old)
        os.utime(root / "file", (5, 5))
    assert send(gateway, source, dest).ok
    assert (dest / "file").read_bytes() == (source / "file").read_bytes()
    words = ["--archive", "--no-whole-file", "--no-h", "--stats", f"{source}/", f"{other}/"]
    told = subprocess.run(
        [need("rsync", "rsync"), *words], check=True, capture_output=True, text=True
    ).stdout
    theirs = re.findall(r"Total bytes (?:sent|received): (\d+)", told)
    assert sum(passed) <= 1.5 * sum(map(int, theirs))


@pytest.mark.parametrize("content", [b"", b"0123456789\n"])
def test_content_without_any_marks_arrives(
    gateway: Gateway, tmp_path: Path, content: bytes
) -> None:
    old = (content or b"\1") * (400_000 // max(1, len(content)))
    write(tmp_path / "source", b"xyz" + old)
    write(tmp_path / "dest", old)
    assert send(gateway, tmp_path / "source", tmp_path / "dest").ok
    assert_same(tmp_path / "source", tmp_path / "dest")


def test_a_file_with_nothing_in_common_is_sent_once_and_little_of_the_old_one_is_read(
    gateway: Gateway, tmp_path: Path
) -> None:
    size = 24_000_000
    write(tmp_path / "source", random.Random(3).randbytes(size))
    write(tmp_path / "dest", random.Random(4).randbytes(size))
    counter = gateway.remote_exec(COUNT_READS)
    counter.receive()
    result = send(gateway, tmp_path / "source", tmp_path / "dest")
    counter.send(None)
    assert result.bytes_sent == size
    assert counter.receive() < size // 5
    assert_same(tmp_path / "source", tmp_path / "dest")


COUNT_READS = """
import os
read, count = os.read, [0]
def counting(fd, size):
    data = read(fd, size)
    if os.readlink("/proc/self/fd/%d" % fd).endswith("/dest/file"):
        count[0] += len(data)
    return data
os.read = counting
channel.send(None)
channel.receive()
channel.send(count[0])
"""


def test_an_old_file_that_goes_while_its_chunks_are_wanted_does_no_harm(
    tmp_path: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = CONTENTS["random"](1_000_000)
    for moment in ("_on_go", "_on_seek", "_on_copy"):
        write(tmp_path / "source", b"x" + old)
        write(tmp_path / "dest", old[: len(old) // 2] + b"y" + old[len(old) // 2 :])
        handler = getattr(bases.Bases, moment)

        def replace(self: Any, *arguments: Any, handler: Any = handler) -> None:
            if os.path.exists(tmp_path / "dest/file"):
                os.unlink(tmp_path / "dest/file")
            handler(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(bases.Bases, moment, replace)
            assert RSync.pull(gateway, tmp_path / "source", tmp_path / "dest").ok
        assert_same(tmp_path / "source", tmp_path / "dest")


def test_an_old_file_that_is_written_to_meanwhile_is_sent_as_a_whole(
    tmp_path: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = CONTENTS["random"](1_000_000)
    write(tmp_path / "source", b"x" + old)
    write(tmp_path / "dest", old)
    chunks_of = bases.Bases._chunks_of

    def change(self: Any, incoming: Any, is_all: bool) -> Any:
        found = chunks_of(self, incoming, is_all)
        with open(tmp_path / "dest/file", "r+b") as file:
            file.seek(500_000)
            file.write(b"other content")
        return found

    monkeypatch.setattr(bases.Bases, "_chunks_of", change)
    result = RSync.pull(gateway, tmp_path / "source", tmp_path / "dest")
    assert (result.ok, result.bytes_sent > len(old)) == (True, True)
    assert_same(tmp_path / "source", tmp_path / "dest")


pieces = st.lists(st.binary(max_size=40).map(lambda data: data * 50), max_size=30)


@given(pieces, st.integers(1, 5000), st.integers(16, 3000))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_chunks_are_the_content_however_it_comes(
    parts: list[bytes], step: int, average: int
) -> None:
    content = b"".join(parts)
    marks = choose_marks(content, average)
    found = [bytes(chunk) for chunk in cut(parts, marks, average)]
    assert b"".join(found) == content
    assert max(map(len, found), default=0) <= average * 4
    again = [content[start : start + step] for start in range(0, len(content), step)]
    assert all(map(len, found))
    if len(marks[0]) == 1:  # longer ones may overlap with themselves
        assert [bytes(chunk) for chunk in cut(again, marks, average)] == found


def test_blocks_are_as_large_as_the_root_of_the_size() -> None:
    assert [wire.block_bytes(size) for size in (0, 10**6, 50 * 10**6, 2**32, 2**50)] == [
        1024, 1024, 8192, 65536, wire.PIECE_BYTES
    ]  # fmt: skip
    assert chunks.average_bytes(0) // 4 > chunks.MARK_BYTES
