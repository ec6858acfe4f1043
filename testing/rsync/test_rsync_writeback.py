"""A large file that changed goes to the disk while it is still being compared, and safely."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import Sync, assert_same, make_tree
from rsync_units import OPTIONS, unit
from tools import Task, missing, wait_until

from execnet import Gateway
from execnet._rsync.far import bases, wire, writeback
from execnet._rsync.far.places import write_all
from execnet._rsync.far.target import Target
from execnet._rsync.far.temps import Incoming
from execnet._rsync.far.wire import DIRECTORY, EARLY_BYTES, FILE
from execnet._rsync.far.writeback import STEP_BYTES, WAIT_BEFORE, WRITE, Writeback, syncer
from execnet.gateway_base import get_execmodel

SIZE = EARLY_BYTES + STEP_BYTES // 2
Calls = list[tuple[int, int, int]]
FD = 77  # of no file: nothing here uses it


@pytest.fixture
def answer() -> list[int]:
    """What the system answers: the number of an error, or 0."""
    return [0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, answer: list[int]) -> Calls:
    """What the system is asked for, in this process."""
    calls: Calls = []

    def sync(fd: int, offset: int, length: int, flags: int) -> int:
        calls.append((offset, length, flags))
        return answer[0]

    monkeypatch.setattr(writeback, "syncer", lambda: sync)
    return calls


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much of each file is complete when it begins to be written."""
    starts: list[int] = []
    start = Writeback.start

    def noted(self: Writeback) -> None:
        starts.append(self._end)
        start(self)

    monkeypatch.setattr(Writeback, "start", noted)
    return starts


def make_large(root: Path, change: Callable[[bytearray], object]) -> None:
    """Make a large file; ``change`` alters its content, which is the same each time."""
    content = bytearray(bytes(range(256)) * (SIZE // 256))
    change(content)
    make_tree(root, {"large": bytes(content)})


def leave(content: bytearray) -> None:
    pass


def flip(content: bytearray) -> None:
    content[STEP_BYTES + 5] ^= 255


# one file


def test_only_what_is_complete_is_written_and_nothing_twice(calls: Calls) -> None:
    file = Writeback(FD)
    for end in range(0, 4 * STEP_BYTES, STEP_BYTES // 3):
        file.reach(end)
        if end > 2 * STEP_BYTES:
            file.start()
    file.finish()
    assert calls == [(step * STEP_BYTES, STEP_BYTES, WRITE) for step in range(3)]


def test_nothing_is_written_before_the_start(calls: Calls) -> None:
    file = Writeback(FD)
    file.reach(9 * STEP_BYTES)
    file.finish()
    file.before_change(0, 5)
    assert calls == []


def test_what_changes_waits_if_it_may_be_on_its_way(calls: Calls) -> None:
    file = Writeback(FD)
    file.start()
    file.reach(STEP_BYTES + 100)
    file.finish()
    calls.clear()
    file.before_change(STEP_BYTES - 5, 10)
    file.before_change(STEP_BYTES + 5, 10)
    assert calls == [(STEP_BYTES - 5, 10, WAIT_BEFORE)]


def test_what_did_not_reach_the_disk_is_an_error_when_it_changes(
    calls: Calls, answer: list[int]
) -> None:
    file = Writeback(FD)
    file.start()
    file.reach(STEP_BYTES)
    file.finish()
    answer[0] = 5
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        file.before_change(0, 10)


def test_a_system_that_refuses_is_not_asked_again(calls: Calls, answer: list[int]) -> None:
    answer[0] = 22
    file = Writeback(FD)
    file.start()
    file.reach(3 * STEP_BYTES)
    file.finish()
    file.before_change(0, 10)
    assert calls == [(0, STEP_BYTES, WRITE)]


def test_one_that_gives_up_waits_for_what_it_is_at_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = threading.Event(), threading.Event()
    calls = []

    def sync(fd: int, offset: int, length: int, flags: int) -> int:
        calls.append(offset)
        asked.set()
        answer.wait(60)
        return 0

    monkeypatch.setattr(writeback, "syncer", lambda: sync)
    file = Writeback(FD)
    file.start()
    file.reach(9 * STEP_BYTES)
    asked.wait(60)
    thread = threading.Thread(target=file.give_up)
    thread.start()
    wait_until(lambda: file._wanted == 0)
    assert thread.is_alive()
    answer.set()
    thread.join(60)
    assert calls == [0]
    file.before_change(0, 10)  # of what is written from the beginning again
    assert calls == [0]


def test_a_python_without_ctypes_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert syncer() is None
    file = Writeback(FD)
    file.start()
    file.reach(3 * STEP_BYTES)
    file.finish()
    file.before_change(0, 5)


def test_the_system_takes_a_file_and_refuses_what_is_none(tmp_path: Path) -> None:
    sync = syncer()
    if sync is None:
        missing("sync_file_range")
    with open(tmp_path / "file", "wb") as file:
        file.write(bytes(1000))
        file.flush()
        assert [sync(file.fileno(), 0, 1000, flags) for flags in (WRITE, WAIT_BEFORE)] == [0, 0]
    assert sync(-1, 0, 1000, WRITE) == 9


def test_nothing_is_on_its_way_unnoticed_when_blocks_begin_to_change(
    tmp_path: Path, calls: Calls
) -> None:
    fd = os.open(tmp_path / "new", os.O_CREAT | os.O_RDWR)
    incoming = Incoming(fd, b"new", None, None, 0)
    incoming.set_base(os.fstat(fd), 1024, 0)
    incoming.writeback.start()
    [thread] = [one for one in threading.enumerate() if one.name == "execnet-rsync-writeback"]
    incoming.writeback.reach(STEP_BYTES)
    incoming.open(1024, 0o600, 1, wire.BLOCKS)
    assert not thread.is_alive()
    assert calls == [(0, STEP_BYTES, WRITE)]
    incoming.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX")
def test_wherever_it_is_interrupted_the_thread_can_end(calls: Calls) -> None:
    written, end, left = Writeback(-1), 0, 300
    rng = random.Random(1)
    written.start()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while left:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-4))
                while True:
                    end += STEP_BYTES
                    written.reach(end)
            except KeyboardInterrupt:
                left -= 1
    finally:
        signal.signal(signal.SIGALRM, before)
    Task(get_execmodel("thread"), written.finish).result()
    assert len(calls) > 100


# whole runs; what is noted has an effect on a pull


def test_a_file_is_written_from_the_first_difference_on(
    gateway: Gateway, sync: Sync, source: Path, dest: Path, calls: Calls, starts: list[int],
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_large(source, flip)
    make_large(dest, leave)
    written: list[int] = []

    def note(fd: int, data: Any) -> None:
        if calls:
            written.append(len(calls))  # how often the system was asked before
        write_all(fd, data)

    monkeypatch.setattr("execnet._rsync.far.temps.write_all", note)
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)
    if "pull" in request.node.name:
        assert len(starts) >= 1
        *writes, wait = calls
        assert writes == [(step * STEP_BYTES, STEP_BYTES, WRITE) for step in range(len(writes))]
        assert len(writes) == SIZE // STEP_BYTES
        assert wait[2] == WAIT_BEFORE
        assert wait[0] <= STEP_BYTES + 5 < wait[0] + wait[1]
        assert written[-1] == len(calls)  # what changed was written after that


@pytest.mark.parametrize("size", [0, SIZE, SIZE + 1])
def test_a_file_that_may_turn_out_to_be_the_same_or_replaces_none_is_not(
    gateway: Gateway, source: Path, dest: Path, calls: Calls, sync: Sync, size: int
) -> None:
    make_large(source, leave)
    if size:
        make_large(dest, lambda content: content.append(0) if size > SIZE else None)
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)
    assert bool(calls) == (size > SIZE and sync.__name__ == "pull")


@pytest.mark.parametrize("error", [5, 22])
def test_a_system_that_refuses_does_no_harm(
    gateway: Gateway, source: Path, dest: Path, calls: Calls, sync: Sync, answer: list[int],
    error: int,
) -> None:  # fmt: skip
    answer[0] = error
    make_large(source, flip)
    make_large(dest, leave)
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)


class Noting(Target):
    """A target of a large file that notes of which paths there was a remark."""

    def __init__(self, dest: Path) -> None:
        options = {"dest": os.fsencode(dest), "root": (DIRECTORY, 0o755, 1), **OPTIONS}
        super().__init__(lambda message: None, options)
        self.remarks: list[bytes] = []

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        self.remarks.append(path)


def messages() -> Iterator[Any]:
    """What a source says until it compares a large file, and then nothing any more."""
    yield wire.LIST, 9, [unit([(b"large", FILE, SIZE)])]
    yield (wire.LIST_END,)
    yield wire.GO, 1


def test_what_the_source_says_meanwhile_is_looked_for_and_keeps_its_order(
    dest: Path, calls: Calls, starts: list[int]
) -> None:
    make_large(dest, leave)
    said = [(wire.REMARK, b"a", b"why"), (wire.DIFFERS, 1), (wire.REMARK, b"b", b"why")]
    target = Noting(dest)
    with pytest.raises(StopIteration):
        target.run(messages().__next__, lambda: [said.pop(0)])
    assert 0 < starts[0] < SIZE
    assert target.remarks == [b"a"]
    assert len(said) == 1  # nothing is looked for any more


def test_no_more_is_taken_before_its_turn_than_it_takes(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "EARLY_MAX", 3)
    make_large(dest, leave)
    taken = []

    def look() -> list[Any]:
        taken.append((wire.REMARK, b"a", b"why"))
        return taken[-1:]

    with pytest.raises(StopIteration):
        Noting(dest).run(messages().__next__, look)
    assert len(taken) == 1 + 3  # the first one with the first digests, which are sent unasked


def test_a_source_that_says_so_of_what_is_not_compared_breaks_the_protocol(dest: Path) -> None:
    said = [(wire.LIST, 9, [unit([(b"large", FILE, SIZE)])]), (wire.DIFFERS, 1)]
    with pytest.raises(wire.Violation, match="has no old file"):
        Noting(dest).run(iter(said).__next__)
