"""The package ``benchmarks``: its command line, its rounds, and that nothing outlives a program.

No figure is judged here. Only peers of the standard library are run: nothing is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tools
from tools import IS_THOROUGH, missing, wait_until

sys.path.append(str(tools.ROOT))  # the package is not installed

from benchmarks import _report
from benchmarks._catalog import (
    BENCHMARKS,
    OURS,
    PEERS,
    PROGRAMS,
    Benchmark,
    Peer,
    benchmarks_named,
)
from benchmarks._environments import (
    ROOT,
    Environments,
    InstallFailed,
    NotInstalled,
    check_programs,
    variables_for,
)
from benchmarks._processes import ProgramFailed, run_program
from benchmarks._rounds import Row, compare, percentile

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the benchmarks run on POSIX systems")

PEER = {peer.name: peer for peer in PEERS}
LATENCY = next(benchmark for benchmark in BENCHMARKS if benchmark.name == "roundtrip-int")
RATE = next(benchmark for benchmark in BENCHMARKS if benchmark.name == "bulk-send-64k")


def run_benchmarks(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def measure(cache: Path, *arguments: object) -> tuple[str, dict[str, Any]]:
    """Measure a thousandth of the usual work; return the table and what the JSON has."""
    result = cache / "figures.json"
    done = run_benchmarks(
        *("--offline", "--cache", cache, "--json", result, "--scale", 0.001), *arguments
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(result.read_text())


# The command line


def test_a_table_and_the_same_as_json_come_out(tmp_path: Path) -> None:
    peers = ("--peers", "execnet-2.1.2,multiprocessing,pipe")
    table, data = measure(tmp_path, *peers, "--runs", 2, "roundtrip-int")
    [benchmark] = data["benchmarks"]
    rows = {row["peer"]: row for row in benchmark["rows"]}
    assert list(rows) == [OURS, "execnet-2.1.2", "multiprocessing", "pipe"]
    for name in (OURS, "multiprocessing", "pipe"):
        assert rows[name]["status"] == "ok"
        assert 0 < rows[name]["median"] <= rows[name]["p99"]
        assert len(rows[name]["rounds"]["medians"]) == 2
        assert name in table
    assert rows["pipe"]["ours_is_times_as_fast"] > 0
    assert "times as fast" in table
    assert (data["rounds"], data["scale"]) == (2, 0.001)


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    table, data = measure(tmp_path, "--peers", "execnet-2.1.2", "--runs", 1, "dumps-reports")
    [ours, theirs] = data["benchmarks"][0]["rows"]
    assert (ours["status"], theirs["status"]) == ("ok", "skipped")
    assert "--offline" in theirs["reason"]
    assert theirs["reason"] in table


def test_every_program_of_the_standard_library_peers_and_ours_measures(tmp_path: Path) -> None:
    peers = ("--peers", "multiprocessing,futures,forkserver,pipe,pipe-1m")
    starts = ("startup-first", "startup-one", "startup-threads")
    others = ("import", "oneway-*-int", "bulk-*-64k", "dumps-nested", "call", "map")
    _, data = measure(tmp_path, *peers, "--runs", 1, *starts, *others)
    for benchmark in data["benchmarks"]:
        for row in benchmark["rows"]:
            assert row["median"] > 0, (benchmark["name"], row)


def test_every_transport_and_what_passes_at_once_is_measured(tmp_path: Path) -> None:
    names = ("roundtrip-socket", "roundtrip-via", "mixed")
    _, data = measure(tmp_path, "--peers", "tcp", "--runs", 1, *names)
    rows = {benchmark["name"]: benchmark["rows"] for benchmark in data["benchmarks"]}
    assert [row["peer"] for row in rows["roundtrip-socket"]] == [OURS, "tcp"]
    for benchmark, found in rows.items():
        for row in found:
            assert 0 < row["median"] <= row["p99"], (benchmark, row)


def test_tls_is_measured_beside_what_it_is_compared_with(tmp_path: Path) -> None:
    names = [
        f"link-{what}-{how}" for what in ("roundtrip", "bulk") for how in ("tcp", "tls", "ssh")
    ]
    assert [benchmark.name for benchmark in benchmarks_named(["link"])] == names
    if shutil.which("openssl") is None:
        missing("the program openssl")
    _, data = measure(tmp_path, "--peers", OURS, "--runs", 1, "link-roundtrip-tls", "link-bulk-tls")
    assert [benchmark["rows"][0]["status"] for benchmark in data["benchmarks"]] == ["ok", "ok"]


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
@pytest.mark.skipif(not IS_THOROUGH, reason="a quarter of a minute, for a thorough run")
def test_what_is_idle_is_measured(tmp_path: Path) -> None:
    _, data = measure(tmp_path, "--peers", "pipe", "--runs", 1, "idle")
    figures = {
        benchmark["name"]: [row["median"] for row in benchmark["rows"]]
        for benchmark in data["benchmarks"]
    }
    ours, bare = figures["idle-worker"]
    assert 0 < bare < ours < 100
    assert figures["idle-threads"][0] >= 1
    assert figures["idle-descriptors"][0] >= 3
    assert figures["idle-cpu"][0] > 0


@pytest.mark.skipif(not IS_THOROUGH, reason="a quarter of a minute, for a thorough run")
def test_a_start_over_ssh_is_measured(tmp_path: Path) -> None:
    names = ("startup-ssh", "startup-shared-first")
    _, data = measure(tmp_path, "--peers", "pipe", "--runs", 1, *names)
    for benchmark in data["benchmarks"]:
        for row in benchmark["rows"]:
            assert row["status"] == "ok" or row["reason"].startswith("there is no "), row


def test_a_first_start_of_each_kind_is_measured(tmp_path: Path) -> None:
    names = [f"startup-{kind}-first" for kind in ("python", "socket", "via")]
    names += ["startup-python-alone", "startup-python-second"]
    _, data = measure(tmp_path, "--peers", "pipe", "--runs", 1, *names)
    assert sorted(benchmark["name"] for benchmark in data["benchmarks"]) == sorted(names)
    for benchmark in data["benchmarks"]:
        assert all(row["median"] > 0 for row in benchmark["rows"]), benchmark


@pytest.mark.parametrize("what", ["run", "share"] if IS_THOROUGH else ["run"])
def test_pytest_xdist_runs_with_the_execnet_of_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    try:
        import xdist  # noqa: F401
    except ImportError:
        missing("pytest-xdist is measured with it")
    if what == "share" and shutil.which("cc") is None:
        missing("the sampler has a part in C")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, PROGRAMS / "execnet_xdist.py", what, "--scale=0.005"]
    result = run_program(command, os.environ, 60)
    assert 0 < result["samples"][0] < 100


WORK = """
import time

def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))

def wait(seconds):
    time.sleep(seconds)
"""
# A quarter of the time on a processor is the package's, and all of the time that it waits.
PROGRAM = "package.wait(1.2); work(0.9); package.work(0.3)"
SHARED = """
import json, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _share
package = Path("package.d").absolute()
package.mkdir()
(package / "package.py").write_text(sys.argv[2])
variables = dict(os.environ, PYTHONPATH=str(package))
folder = _share.sampled(variables)
Path("main.py").write_text("import package" + sys.argv[2] + sys.argv[3])
subprocess.run([sys.executable, "main.py"], env=variables, check=True)
print(json.dumps({"samples": [_share.percent(folder, package)]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux interrupts the running thread")
def test_a_share_is_one_of_the_time_on_a_processor(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        missing("the sampler has a part in C")
    script = tmp_path / "program.py"
    script.write_text(SHARED)
    result = run_program([sys.executable, script, PROGRAMS, WORK, PROGRAM], os.environ, 60)
    assert 10 < result["samples"][0] < 40  # 25 by some hundred samples


def test_rsync_is_measured_on_this_machine_and_over_ssh(tmp_path: Path) -> None:
    trees = ("rsync-local-tree-eight", "rsync-ssh-tree-touched")
    others = ("rsync-local-file-changed", "rsync-memory-tree")
    _, data = measure(tmp_path, "--peers", "rsync", "--runs", 1, *trees, *others)
    for benchmark in data["benchmarks"]:
        for row in benchmark["rows"]:
            assert row["status"] != "failed", (benchmark["name"], row)
            assert row["status"] == "ok" or row["reason"].startswith("there is no ")
    peers = [[row["peer"] for row in benchmark["rows"]] for benchmark in data["benchmarks"]]
    assert sorted(peers) == [[OURS], *[[OURS, "rsync"]] * 3]


def test_a_peer_whose_program_is_missing_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="there is no rsync here"):
        check_programs("rsync")


def test_an_unknown_benchmark_is_named_with_those_that_there_are() -> None:
    done = run_benchmarks("--list", "roundtrip-int", "nosuch")
    assert done.returncode == 2
    assert "no benchmark is named 'nosuch'" in done.stderr
    assert "roundtrip-int" in done.stderr


def test_an_unknown_peer_is_named_with_those_that_there_are() -> None:
    done = run_benchmarks("--list", "--peers", "pipe,nosuch")
    assert done.returncode == 2
    assert "no peer is named 'nosuch'" in done.stderr
    assert "execnet-2.1.2" in done.stderr


WRONG = "--runs=0", "--runs=1.5", "--scale=nan", "--json=no/such/file", "--folder=no/such"


@pytest.mark.parametrize("wrong", WRONG)
def test_an_option_that_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, wrong: str
) -> None:
    done = run_benchmarks("--offline", "--cache", tmp_path, wrong, "import")
    assert done.returncode == 2
    assert wrong.partition("=")[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_list_tells_who_takes_part_and_runs_nothing() -> None:
    done = run_benchmarks("--list", "oneway-send")
    assert done.returncode == 0
    titles, peers = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    assert all(title.startswith("oneway-send-") for title in titles)
    assert peers[0].split() == ["ours,", "execnet-2.1.2,", "multiprocessing,", "pipe"]
    assert peers[1].split() == ["ours,", "execnet-2.1.2"]  # with callbacks


def test_the_first_parts_of_a_name_and_patterns_name_benchmarks() -> None:
    done = run_benchmarks("--list", "startup", "*-64m")
    names = [line.partition(":")[0] for line in done.stdout.splitlines()[::2]]
    assert {"startup-one", "startup-many", "bulk-send-64m", "bulk-collect-64m"} <= set(names)
    assert all(name.startswith("startup") or "-64m" in name for name in names)


def processes_with(word: Path) -> list[bytes]:
    """Return the command lines that have ``word`` in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            found.append(path.read_bytes())
    return [line for line in found if bytes(word) in line]


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process(tmp_path: Path, number: int) -> None:
    # What is run has this in its command line, and so have the gateways' workers.
    pythons = tmp_path / Environments(tmp_path, offline=True).folder.name
    arguments = ["--offline", "--cache", str(tmp_path), "startup-many"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: len(processes_with(pythons)) > 3)
            process.send_signal(number)
            assert process.wait(20) == 128 + number
        finally:
            process.kill()
    wait_until(lambda: not processes_with(pythons))


# The catalog


def test_every_program_is_of_a_benchmark_and_a_peer() -> None:
    used = {benchmark.program_for(peer) for benchmark in BENCHMARKS for peer in PEERS}
    assert {path for path in PROGRAMS.glob("*.py") if path.name[0] != "_"} == used - {None}


def test_ours_and_the_released_execnet_run_the_same_programs() -> None:
    for benchmark in BENCHMARKS:
        script = benchmark.program_for(PEER[OURS])
        assert script is not None
        wanted = None if "execnet-2.1.2" in benchmark.without else script
        assert benchmark.program_for(PEER["execnet-2.1.2"]) == wanted


def test_a_name_belongs_to_one_benchmark() -> None:
    assert len({benchmark.name for benchmark in BENCHMARKS}) == len(BENCHMARKS)


# Rounds


class Turns:
    """Stands in for the programs: gives the next of each peer's results, or raises it."""

    def __init__(self, **results: list[Any]) -> None:
        self.results = results
        self.taken: list[str] = []

    def __call__(self, benchmark: Benchmark, peer: Peer) -> dict[str, Any]:
        self.taken.append(peer.name)
        result = self.results[peer.name].pop(0)
        if isinstance(result, Exception):
            raise result
        return {"samples": result}


def compare_ours_with_pipe(benchmark: Benchmark, turns: Turns) -> list[Row]:
    rounds = len(turns.results[OURS])
    return compare(benchmark, [PEER[OURS], PEER["pipe"]], rounds, turns)


def test_each_peer_has_its_turn_in_every_round() -> None:
    turns = Turns(ours=[[1.0]] * 3, pipe=[[1.0]] * 3)
    compare_ours_with_pipe(LATENCY, turns)
    assert turns.taken == [OURS, "pipe"] * 3


def test_a_ratio_is_taken_within_a_round() -> None:
    turns = Turns(ours=[[1.0], [10.0], [100.0]], pipe=[[4.0], [5.0], [300.0]])
    ours, pipe = compare_ours_with_pipe(LATENCY, turns)
    assert pipe.ratios == [4.0, 0.5, 3.0]
    assert ours.ratios == []


def test_a_ratio_says_how_many_times_as_fast_ours_is_for_rates_too() -> None:
    _, pipe = compare_ours_with_pipe(RATE, Turns(ours=[[600.0]], pipe=[[1000.0]]))
    assert pipe.ratios == [0.6]


def test_a_peer_that_fails_gets_a_row_that_says_why_and_the_others_go_on() -> None:
    turns = Turns(ours=[[1.0]] * 3, pipe=[[1.0], ProgramFailed("exit code 3: broken")])
    ours, pipe = compare_ours_with_pipe(LATENCY, turns)
    assert turns.taken == [OURS, "pipe", OURS, "pipe", OURS]
    assert len(ours.medians) == 3
    assert (pipe.status, pipe.reason, pipe.medians) == ("failed", "exit code 3: broken", [])
    assert "exit code 3: broken" in _report.table(LATENCY, [ours, pipe])


def test_the_others_have_figures_but_no_ratios_where_ours_failed() -> None:
    turns = Turns(ours=[ProgramFailed("no result within 1 s")], pipe=[[2.0]])
    ours, pipe = compare_ours_with_pipe(LATENCY, turns)
    assert (ours.status, pipe.medians, pipe.ratios) == ("failed", [2.0], [])
    assert "times as fast" not in _report.table(LATENCY, [ours, pipe])


def test_dumps_that_differ_are_told() -> None:
    rows = [Row(name, medians=[1.0], digest=name[0]) for name in (OURS, "other", "execnet")]
    rows[1].digest = rows[0].digest
    _, _, ours, same, different = _report.table(LATENCY, rows).splitlines()
    assert "bytes" not in ours
    assert "same bytes" in same
    assert "OTHER BYTES" in different


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (99, 99), (100, 99), (1000, 990)])
def test_the_99th_percentile_is_not_exceeded_by_99_of_100(count: int, expected: int) -> None:
    assert percentile(range(count, 0, -1), 0.99) == expected


# Programs


def run_code(
    tmp_path: Path, code: str, variables: Mapping[str, str] = os.environ, timeout_s: float = 60
) -> dict[str, Any]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    return run_program([sys.executable, script], variables, timeout_s)


def test_what_a_program_left_running_is_ended(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    # Its other end is closed when the last process that has it is gone.
    descriptor = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run_code(
            tmp_path,
            f"""
            import subprocess, sys
            with open({str(alive)!r}, "wb") as alive:
                subprocess.Popen(["sleep", "90"], stdout=alive)
                alive.write(b"started")
            print('{{"samples": [1]}}')
            """,
        )
        assert result["samples"] == [1.0]
        os.set_blocking(descriptor, True)
        assert os.read(descriptor, 100) == b"started"
        assert os.read(descriptor, 100) == b""
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(90)", "no result within 0.2 s"),
        ("raise ValueError('broken here')", "exit code 1: ValueError: broken here"),
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})", r"signal 9: \(no output\)"),
        ("print('no JSON')", "printed no result: no JSON"),
        ("print('{}')", "printed no result"),
        ("""print('{"samples": []}')""", "printed no samples"),
    ],
)
def test_a_program_that_does_not_measure_fails_with_the_reason(
    tmp_path: Path, code: str, reason: str
) -> None:
    with pytest.raises(ProgramFailed, match=reason):
        run_code(tmp_path, code, timeout_s=0.2 if "sleep" in code else 60)


def test_a_program_that_cannot_be_started_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"did not start: .*nosuch"):
        run_program([tmp_path / "nosuch"], {}, 1)


def test_its_folder_is_where_it_is_asked_for_and_then_removed(tmp_path: Path) -> None:
    code = "import json, os; print(json.dumps({'samples': [1], 'digest': os.getcwd()}))"
    result = run_program([sys.executable, "-c", code], {}, 60, tmp_path)
    assert tmp_path.resolve() in Path(result["digest"]).parents
    assert list(tmp_path.iterdir()) == []


def test_a_program_has_an_empty_folder_and_nothing_that_falsifies_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "EXECNET_DEBUG", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    code = """
        import json, os
        print(json.dumps({"samples": [1], "seen": [os.listdir(), dict(os.environ)]}))
        """
    files, variables = run_code(tmp_path, code, variables_for(PEER["pipe"]))["seen"]
    assert files == []
    assert [name for name in variables if name.startswith(("PYTHON", "EXECNET"))] == []
    assert variables["PATH"] == os.environ["PATH"]


def test_only_ours_is_imported_from_this_tree() -> None:
    exported = {peer.name for peer in PEERS if "PYTHONPATH" in variables_for(peer)}
    assert exported == {OURS, "ours-asyncio"}
    assert variables_for(PEER[OURS])["PYTHONPATH"] == str(ROOT)


# Environments


def test_tools_beside_a_peer_have_an_environment_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}

    def make(self: Environments, home: Path, python: Path, requirements: list[str]) -> None:
        made[home.name] = requirements
        home.mkdir(parents=True)

    monkeypatch.setattr(Environments, "_make", make)
    environments = Environments(tmp_path, offline=False)
    environments.python_for(PEER["execnet-2.1.2"], ("tool<9.2", "other-tool"))
    environments.python_for(PEER[OURS], ("other-tool",))
    assert made == {
        "execnet-2.1.2-tool-other-tool": ["execnet==2.1.2", "tool<9.2", "other-tool"],
        "ours-other-tool": ["other-tool"],
    }


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Environments(tmp_path, offline=True).python_for(PEER["pipe"])
    assert python.exists()
    monkeypatch.delattr(Environments, "_make")
    assert Environments(tmp_path, offline=True).python_for(PEER["pipe"]) == python


def test_an_environment_that_was_not_finished_is_not_used(tmp_path: Path) -> None:
    peer = PEER["execnet-2.1.2"]
    python = Environments(tmp_path, offline=True).folder / peer.name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(NotInstalled):
        Environments(tmp_path, offline=True).python_for(peer)


def test_a_failed_installation_says_why_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(self: Environments, home: Path, *rest: object) -> None:
        tried.append(home.name)
        raise subprocess.CalledProcessError(1, "pip", b"first\nERROR: no such distribution\n")

    monkeypatch.setattr(Environments, "_make", fail)
    environments = Environments(tmp_path, offline=False)
    for _ in range(2):
        with pytest.raises(InstallFailed, match="could not be installed: ERROR: no such"):
            environments.python_for(PEER["rpyc"])
    assert tried == ["rpyc"]
