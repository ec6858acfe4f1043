"""The fault harness: what its rounds show of execnet, and that it would notice.

A seed that fails can be had again: ``python testing/kit/faults.py SEED``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import faults
import pytest
from fault_calls import SLACK_S, Calls
from fault_processes import PROCESS_FAULTS
from fault_streams import HEADER, Fault, Lane
from tools import run, some_of

from execnet import Group
from execnet.gateway_base import ChannelFactory, FrameWriter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="faults of POSIX systems")

PROGRAM = Path(faults.__file__)
BLOCK = 125
BLOCKS = some_of(80, 0.025)  # in a thorough run these are 10,000 seeds


@pytest.mark.parametrize("first", range(0, BLOCK * BLOCKS, BLOCK))
def test_every_call_ends_in_time_and_typed_and_nothing_is_left(first: int) -> None:
    for seed in range(first, first + BLOCK):
        outcome = faults.run(seed)
        assert not outcome.violations, str(outcome)


@pytest.mark.parametrize("kind", PROCESS_FAULTS)
def test_so_it_is_with_each_fault_of_a_process(kind: str) -> None:
    for seed in range(3):
        outcome = faults.run(seed, kind)
        assert not outcome.violations, str(outcome)


class TestTheHarness:
    """It is worth something only if it sees what goes wrong."""

    def test_a_seed_can_be_had_again_with_one_command(self) -> None:
        outcome = faults.Outcome(17, "cut", "Fault(...)", violations=["receive hangs"])
        command = str(outcome).rpartition("again: ")[2]
        assert command == "python testing/kit/faults.py 17"
        done = run([sys.executable, str(PROGRAM), *command.split()[2:]])
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("1 faults, seeds 17 to 17, ")

    def test_what_went_wrong_is_told_and_is_its_exit_status(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = faults.Outcome(3, "cut", "Fault(...)", violations=["receive hangs"])
        good = faults.Outcome(2, "cut", "Fault(...)")
        monkeypatch.setattr(faults, "run", lambda seed, kind: bad if seed == 3 else good)
        monkeypatch.setattr(sys, "argv", ["faults.py", "2", "--count", "3"])
        assert faults.main() == 1
        assert "seed 3, Fault(...):\n  receive hangs\n  again: " in capsys.readouterr().out

    def test_an_untyped_error_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def new(self: ChannelFactory, id: int | None = None) -> None:
            raise TypeError("not typed")

        monkeypatch.setattr(ChannelFactory, "new", new)
        assert any("untyped TypeError" in line for line in self.violations())

    def test_a_call_that_takes_too_long_is_seen(self) -> None:
        calls = Calls(exact=True)
        calls.make("fast", 0.0, time.sleep, 0.001)
        calls.make("slow", -SLACK_S, time.sleep, 0.001)
        calls.make("without a bound", None, time.sleep, 0.001)
        assert [line.split()[0] for line in calls.violations] == ["slow"]

    def test_a_call_that_never_ends_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held = threading.Event()
        monkeypatch.setattr(faults, "SLACK_S", 0.1)
        monkeypatch.setattr("fault_calls.WORK", [lambda actor: held.wait()])
        try:
            assert any(line.endswith("<lambda> hangs") for line in self.violations())
        finally:
            held.set()

    def test_a_wrong_item_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(faults.streams.PROGRAMS, "echo", "for item in channel: channel.send(0)")
        monkeypatch.setattr(faults.streams, "ALLOWED", {"for item in channel: channel.send(0)"})
        assert any("echo: 0 in place of" in line for line in self.violations(seeds=30))

    def test_a_descriptor_that_stays_open_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left: list[int] = []
        monkeypatch.setattr(faults, "SLACK_S", 0.1)
        terminate = Group.terminate

        def leak(self: Group, timeout: float | None = None) -> None:
            terminate(self, timeout)
            left.append(os.open(os.devnull, os.O_RDONLY))

        monkeypatch.setattr(Group, "terminate", leak)
        try:
            assert any("left behind: descriptor" in line for line in self.violations())
        finally:
            for fd in left:
                os.close(fd)

    def test_an_error_in_a_thread_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run_flusher(self: object) -> None:
            raise TypeError("nobody gets it")

        def post(self: FrameWriter, header: bytes, payload: bytes) -> None:
            threading.Thread(target=run_flusher, args=(self,)).start()

        monkeypatch.setattr(FrameWriter, "post", post)
        assert any("raised TypeError" in line for line in self.violations())

    def violations(self, seeds: int = 1) -> list[str]:
        """Return what is seen in rounds in which nothing goes wrong by itself."""
        found: list[str] = []
        for seed in range(seeds):
            found += faults.Round(seed, fault=Fault("none")).run().violations
            if found:
                break
        return found


FRAMES = [HEADER.pack(4, 1, 2) + b"ab", HEADER.pack(4, 3, 0), HEADER.pack(4, 5, 3) + b"cde"]


class TestFaults:
    """Each does to a stream what it is called."""

    def after(self, fault: Fault | None, *pieces: bytes) -> bytes:
        lane = Lane(-1, -1, fault)
        for piece in pieces:
            lane.take(piece)
        return bytes(lane._pending)

    @pytest.mark.parametrize(
        ("kind", "after"),
        [("cut", b"012789"), ("double", b"01234563456789"), ("trickle", b"0123456789")],
    )
    def test_of_bytes(self, kind: str, after: bytes) -> None:
        fault = Fault(kind, at=3, size=4)
        assert self.after(fault, b"0123456789") == after
        assert self.after(fault, b"01", b"23456789") == after

    def test_a_cut_goes_on_in_the_next_piece(self) -> None:
        assert self.after(Fault("cut", at=3, size=4), b"01234", b"56789") == b"012789"

    def test_garbled_are_as_many_bytes_as_it_says(self) -> None:
        after = self.after(Fault("garble", at=3, size=4, seed=1), b"0123456789")
        assert (after[:3], after[7:]) == (b"012", b"789")
        assert after[3:7] != b"3456"

    @pytest.mark.parametrize(
        ("kind", "order"), [("drop", [0, 2]), ("repeat", [0, 1, 1, 2]), ("swap", [0, 2, 1])]
    )
    def test_of_frames(self, kind: str, order: list[int]) -> None:
        stream = b"".join(FRAMES)
        after = b"".join(FRAMES[number] for number in order)
        assert self.after(Fault(kind, at=1), stream) == after
        assert self.after(Fault(kind, at=1), *(bytes([byte]) for byte in stream)) == after

    @pytest.mark.parametrize(("kind", "field"), [("code", 0), ("channel", 1), ("size", 2)])
    def test_of_a_header(self, kind: str, field: int) -> None:
        after = self.after(Fault(kind, at=0, seed=5), FRAMES[0])
        changed = [a != b for a, b in zip(HEADER.unpack_from(after), (4, 1, 2), strict=True)]
        assert changed == [number == field for number in range(3)]
        assert after[HEADER.size :] == b"ab"

    def test_a_marker_is_no_frame(self) -> None:
        marker = b"\0execnet\0" + b"0" * 16 + b"\n"
        assert self.after(Fault("drop", at=0), marker + FRAMES[0] + FRAMES[1]) == marker + FRAMES[1]

    @pytest.mark.parametrize("kind", ["close", "stall", "close one way"])
    def test_of_what_comes_behind_nothing_passes(self, kind: str) -> None:
        lane = Lane(-1, -1, Fault(kind, at=3))
        lane.take(b"0123456789")
        held = lane.broken or lane.held_until > time.monotonic()
        assert held or (lane.closing and bytes(lane._pending) == b"012")
