"""What ``python -m benchmarks`` shows and does not measure: little of each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from services import need
from tools import IS_THOROUGH

from benchmarks._environments import ROOT
from benchmarks._proofs import PROOFS
from benchmarks.proofs import fuzz, soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read Linux's /proc")


def prove(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_faults_tells_how_many_and_which_seeds() -> None:
    done = prove("faults", 20, "--count", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 faults, seeds 20 to 24, in ")
    assert ": 0 bad" in done.stdout


def test_hostile_peers_disturb_nothing_else() -> None:
    done = prove("hostile", "--count", 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("60 hostile sessions in ")


@pytest.mark.parametrize("name", fuzz.SUBJECTS)
def test_what_is_fuzzed_holds_for_the_inputs_that_it_begins_with(name: str) -> None:
    try_one, inputs = fuzz.SUBJECTS[name]()
    for data in [b"", *inputs]:
        try_one(data)
    assert inputs


def test_interrupts_are_taken_in_all_ways() -> None:
    done = prove("interrupts", "--count", 160)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" interrupts, 0 of 16 ways failed\n")


def test_a_loop_loses_nothing_and_holds_gateways_in_one_thread() -> None:
    done = prove("aio", "--cancelled", 300, "--gateways", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("300 cancelled receives, ")
    assert "3 idle gateways in one loop: 3 answered, 1 thread, " in done.stdout


def test_nothing_is_lost_over_a_connection_that_is_cut() -> None:
    done = prove("resume", "--cuts", 3, "--mib", 0.5, "--trips", 5, "--delay", 0.05)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost or doubled, 0 processes stayed" in done.stdout


def test_of_many_gateways_nothing_stays() -> None:
    done = prove("soak", "--gateways", 30, "--at-once", 10)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("20 gateways: ")
    assert done.stdout.endswith("nothing grew\n")


@pytest.mark.parametrize("options", [[], ["--share"]])
def test_many_workers_over_ssh_come_up_and_nothing_of_them_stays(options: list[str]) -> None:
    need("sshd", "openssh-server")
    size = ["--rounds", 1, "--workers", 12, "--addresses", 3, "--each", 2]
    done = prove("logins", *size, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("none failed, nothing stayed\n")


@pytest.mark.parametrize("what", ["descriptors", "MiB"] if IS_THOROUGH else ["descriptors"])
def test_what_stays_of_a_gateway_is_seen(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[bytes] = []
    opened: list[int] = []

    def run_round(count: int, spec: str) -> None:
        if what == "MiB":
            kept.append(b"x" * (64 << 20))  # more than an allocator keeps for later
        else:
            opened.append(os.open(os.devnull, os.O_RDONLY))

    monkeypatch.setattr(soak, "run_round", run_round)
    monkeypatch.setattr(sys, "argv", ["soak", "--gateways", "30", "--at-once", "10"])
    try:
        assert soak.main() == 1
    finally:
        for fd in opened:
            os.close(fd)
    assert capsys.readouterr().out.endswith(f"grown: {what}\n")


def test_with_a_window_what_is_unread_stays_out_of_memory() -> None:
    done = prove("window", "--mib", 60, "--pause", 0.1)
    assert done.returncode == 0, done.stdout + done.stderr
    directions = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert directions == ["send", "collect"]


def test_without_one_it_does_not() -> None:
    done = prove("window", "--mib", 60, "--window", 0, "--pause", 0.1)
    assert done.returncode == 1, done.stdout + done.stderr


def test_they_are_in_the_list() -> None:
    done = prove("--list")
    assert done.returncode == 0, done.stderr
    for name, (title, script) in PROOFS.items():
        assert f"{name}: {title}\n" in done.stdout
        assert (ROOT / script).exists()
