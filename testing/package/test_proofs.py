"""What ``python -m benchmarks`` shows and does not measure: little of each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from services import need
from tools import IS_THOROUGH

from benchmarks._environments import ROOT
from benchmarks._proofs import PROOFS
from benchmarks.proofs import fuzz, soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read Linux's /proc")


def can_make_networks() -> bool:
    """Whether this user can, and the programs are there."""
    programs = all(shutil.which(name) for name in ("ip", "tc"))
    return os.getuid() == 0 and programs and os.access("/dev/net/tun", os.W_OK)


def prove(*arguments: object, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def test_faults_tells_how_many_and_which_seeds() -> None:
    done = prove("faults", 20, "--count", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 faults, seeds 20 to 24, in ")
    assert ": 0 bad" in done.stdout


@pytest.mark.skipif(not can_make_networks(), reason="makes network namespaces")
def test_a_tree_is_measured_beside_a_flat_group() -> None:
    bounds = "--times", 0, "--copies", 100  # a busy machine sends packets again
    done = prove("tree", "--hops", 1, "--each", 2, "--mb", 0.5, *bounds)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(\w+): 3 workers in .* MB; (.*) copies", done.stdout, re.M)
    copies = {kind: float(text) for kind, text in found}
    assert 1 < copies["tree"] < copies["flat"]
    assert copies["flat"] > 3


@pytest.mark.skipif(not can_make_networks(), reason="makes network namespaces")
def test_what_is_compressed_is_measured_beside_ssh() -> None:
    for program, package in ("ssh", "openssh-client"), ("nft", "nftables"):
        need(program, package)
    need("sshd", "openssh-server")
    done = prove("compress", "--mb", 0.2, "--rounds", 1, "--most", 100)  # a busy machine
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" of the time of -C") == done.stdout.count(" of its bytes") == 4


def test_hostile_peers_disturb_nothing_else() -> None:
    done = prove("hostile", "--count", 50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 hostile sessions in ")
    assert ": 0 bad, " in done.stdout


@pytest.mark.parametrize("name", fuzz.SUBJECTS)
def test_what_is_fuzzed_holds_for_the_inputs_that_it_begins_with(name: str) -> None:
    try_one, inputs = fuzz.SUBJECTS[name]()
    for data in [b"", *inputs]:
        try_one(data)
    assert inputs


def test_interrupts_are_taken_in_all_ways() -> None:
    done = prove("interrupts", "--count", 160)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r" interrupts, 0 of \d+ ways failed\n$", done.stdout)


def test_a_loop_loses_nothing_and_holds_gateways_in_one_thread() -> None:
    done = prove("aio", "--cancelled", 300, "--gateways", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("300 cancelled receives, ")
    assert "3 idle gateways in one loop: 3 answered, 1 thread, " in done.stdout


def test_nothing_is_lost_over_a_connection_that_is_cut() -> None:
    size = ["--cuts", 3, "--mib", 0.5, "--trips", 5, "--delay", 0.05]
    done = prove("resume", *size, "--may-cost", 900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 cuts, " in done.stdout
    assert "nothing lost or doubled, 0 processes stayed" in done.stdout


def test_fewer_cuts_than_asked_for_prove_nothing() -> None:
    size = ["--cuts", 1, "--mib", 0.00001, "--seed", 2, "--trips", 1, "--delay", 0.01]
    done = prove("resume", *size, "--may-cost", 90_000)  # it sends 10 bytes
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 1 cuts, " in done.stdout


def test_many_gateways_are_sent_one_copy_and_end_in_time() -> None:
    done = prove("many", "--gateways", 5, "--mib", 0.2, "--timeout", 0.2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 gateways: ")
    assert " 0 wrong\nterminate(0.2) with 1 that are stuck: " in done.stdout


@pytest.mark.skipif(
    not (IS_THOROUGH and sys.platform == "linux" and os.geteuid() == 0),
    reason="only root can make networks, and only a thorough run has the time",
)
def test_nothing_is_lost_over_a_slow_and_lossy_network_that_is_cut() -> None:
    for program, package in ("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"):
        need(program, package)
    size = ["--cuts", 3, "--mib", 0.3, "--trips", 10, "--loss", 0.5]
    done = prove("resume", "--network", *size, "--may-cost", 900, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost or doubled, 0 processes stayed" in done.stdout


@pytest.mark.skipif(not IS_THOROUGH, reason="the logins take long")
def test_a_warm_factory_saves_logins() -> None:
    need("sshd", "openssh-server")
    size = ["--count", 1, "--pause", 0, "--gateways", 3]
    done = prove("factory", *size, "--share", 100, "--attach", 10_000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n3 gateways: 1 login\n" in done.stdout


def test_of_many_gateways_nothing_stays() -> None:
    done = prove("soak", "--gateways", 30, "--at-once", 10)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("20 gateways: ")
    assert done.stdout.endswith("nothing grew\n")


@pytest.mark.parametrize("options", [[], ["--share"]] if IS_THOROUGH else [[]])
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
    done = prove("window", "--mib", 60, "--window", 0, "--pause", 0.4)
    assert done.returncode == 1, done.stdout + done.stderr


def test_they_are_in_the_list() -> None:
    done = prove("--list")
    assert done.returncode == 0, done.stderr
    for name, (title, script) in PROOFS.items():
        assert f"{name}: {title}\n" in done.stdout
        assert (ROOT / script).exists()
