"""``execnet top``: what it tells of workers that work, are silent, or have ended."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import stop
from terminals import Terminal
from tools import BOUND_S, MakeGateway, find_python, wait_until

from execnet import _cli
from execnet._cli import far_top, top
from execnet._cli.top import Watched

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and terminals")
CODE = """
import time
def work():
    channel.send(1)
    time.sleep(600)
work()
"""


@pytest.mark.parametrize("version", ["", "2.7"])
def test_it_tells_what_runs(makegateway: MakeGateway, version: str) -> None:
    python = find_python(version) if version else sys.executable
    gateway = makegateway(f"popen//python={python}//grace=0.1")
    channel = gateway.remote_exec(CODE)
    assert channel.receive(BOUND_S) == 1
    watched = Watched(gateway)
    rows = []
    for _ in range(2):
        watched.ask()
        rows.append(watched.look(BOUND_S))
        for item in "a" * 100_000, "b":
            channel.send(item)
    assert rows[1]["state"] == "live"
    assert rows[1]["pid"] == gateway._rinfo().pid
    ((place, seconds),) = rows[1]["executes"]
    assert place == "<remote exec>:5 work"
    assert 0 <= seconds < BOUND_S
    assert 1_000_000 < rows[1]["memory_bytes"] < 1_000_000_000
    assert rows[0]["cpu_percent"] is None
    assert rows[1]["cpu_percent"] >= 0
    assert [row["unread_items"] for row in rows] == [0, 2]
    if sys.platform == "linux":
        assert rows[1]["in_bytes_s"] > 1000
        assert rows[1]["out_bytes_s"] >= 0


def read_all(path: str) -> None:
    open(path).close()


@pytest.mark.parametrize("function", [read_all, "select:select"])
def test_it_tells_which_call_runs(
    makegateway: MakeGateway, tmp_path: Path, function: object
) -> None:
    gateway = makegateway("popen//grace=0.1")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    is_ours = function is read_all
    future = gateway.submit(function, *([str(fifo)] if is_ours else [[], [], []]))
    watched = Watched(gateway)

    def places() -> list[str]:
        watched.ask()
        return [place for place, _ in watched.look(BOUND_S)["executes"]]

    told = "read_all" if is_ours else "select:select"
    assert wait_until(lambda: [place for place in places() if told in place])
    assert len(places()) == 1
    if is_ours:
        fifo.write_bytes(b"")
        future.result(BOUND_S)
        assert places() == []


ECHO = """
for item in channel:
    if item == "buffers":
        buffer = bytearray(300000)
        channel.receive_into(buffer)
        channel.send_bytes(buffer)
    else:
        channel.send(item)
"""


def counts(watched: Watched) -> tuple[float, float]:
    """Return how many items the worker has received and sent, by a new report."""
    watched.ask()
    assert watched.look(BOUND_S)["state"] == "live"
    return watched._last["in_items"], watched._last["out_items"]


def places(watched: Watched) -> list[str]:
    """Return where the worker's code is, by a new report."""
    watched.ask()
    return [place for place, _ in watched.look(BOUND_S)["executes"]]


@pytest.mark.parametrize("version", ["", "2.7"])
def test_it_counts_items_and_calls_of_all_kinds(makegateway: MakeGateway, version: str) -> None:
    python = find_python(version) if version else sys.executable
    gateway = makegateway(f"popen//python={python}")
    channel = gateway.remote_exec(ECHO)
    assert gateway.call(len, "first") == 5
    other = Watched(gateway)
    assert counts(other) == (0, 0)
    at_line_2 = ["<remote exec>:2 <module>"]  # once it has begun; not what reads there for it
    assert wait_until(lambda: places(other) == at_line_2)
    watched = Watched(gateway)
    assert counts(watched) == (0, 0)
    for item in 1, 2, "text", {"a": [1]}, b"x" * 300_000, ["long"] * 50_000:
        channel.send(item)
        channel.receive(BOUND_S)
    channel.send("buffers")
    channel.send(b"x" * 300_000)
    channel.receive(BOUND_S)
    assert [gateway.call(len, text * size) for text, size in (("a", 3), ("b", 5000))] == [3, 5000]
    assert counts(watched) == (10, 9)
    other._channel.close()
    is_counted = "channel.send('counts' in vars(channel.gateway))"
    assert gateway.remote_exec(is_counted).receive(BOUND_S)
    watched.ask()
    assert watched.look(BOUND_S)["out_items_s"] is not None
    watched._channel.close()
    assert wait_until(lambda: not gateway.remote_exec(is_counted).receive(BOUND_S))


def test_it_counts_what_a_thread_reads_itself(makegateway: MakeGateway) -> None:
    """Seen from this side, where nobody else waits, so that a thread may read."""
    gateway: Any = makegateway()
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    gateway.calls = None
    counts = far_top.Counts(gateway)
    assert counts.look() == [0, 0]
    for sent in range(1, 10_000):
        channel.send(sent)
        assert channel.receive(BOUND_S) == sent
        if sent >= 100 and gateway._channelfactory.direct.uses:  # which can be loaded only then
            break
    else:
        raise AssertionError("no thread reads itself")
    assert counts.look() == [sent, sent]
    counts.stop()


def test_it_tells_who_is_silent_and_who_has_ended(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    watched = Watched(gateway)
    pid = gateway._rinfo().pid
    watched.ask()
    assert watched.look(BOUND_S)["state"] == "live"
    stop(pid)
    watched.ask()
    assert watched.look(0.1)["state"] == "silent"
    os.kill(pid, signal.SIGCONT)
    assert watched.look(BOUND_S)["state"] == "live"
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: watched.has_ended)
    row = watched.look(0)
    assert "killed by SIGKILL" in row["last_words"]


@pytest.mark.parametrize("item", [1, {}, {"pid": "x"}, {"tasks": 1, "pid": 1}])
def test_what_is_no_answer_is_dropped(makegateway: MakeGateway, item: object) -> None:
    watched = Watched(makegateway())
    watched._take(item)
    assert watched.look(BOUND_S)["pid"] is None


def test_it_prints_lines_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(["top", "2*popen", "--count", "1"]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith("[gw0] state=live pid=")
    assert second.startswith("[gw1] state=live pid=")
    assert _cli.main(["top", "popen", "--count", "2", "--interval", "0.1", "--json"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["state"] for row in rows] == ["live", "live"]


def test_it_ends_when_no_worker_is_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "far_top", "def run(channel): import os; os._exit(3)")
    assert _cli.main(["top", "popen", "--interval", "0.1"]) == 1
    assert "exit status 3" in capfd.readouterr().out


def test_it_draws_and_shows_stacks_at_a_key(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, tmp_path.name, "top", "popen", "--interval", "60")
    terminals.append(terminal)
    assert "gw0  live" in terminal.until("1-9: stacks, q: quit")
    terminal.type("1")
    assert "execnet" in terminal.until("any key: back")
    terminal.type("x")
    terminal.until("1-9: stacks, q: quit")
    terminal.type("q")
    assert terminal.status() == 0
