"""``execnet top``: what it tells of workers that work, are silent, or have ended."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from terminals import Terminal
from tools import BOUND_S, MakeGateway, find_python, wait_until

from execnet import _cli
from execnet._cli import top
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
    assert rows[1]["state"] == "live"
    assert rows[1]["pid"] == gateway._rinfo().pid
    ((place, seconds),) = rows[1]["executes"]
    assert place == "<remote exec>:5 work"
    assert 0 <= seconds < BOUND_S
    assert 1_000_000 < rows[1]["memory_bytes"] < 1_000_000_000
    assert rows[0]["cpu_percent"] is None
    assert rows[1]["cpu_percent"] >= 0


def test_it_tells_who_is_silent_and_who_has_ended(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    watched = Watched(gateway)
    pid = gateway._rinfo().pid
    watched.ask()
    assert watched.look(BOUND_S)["state"] == "live"
    os.kill(pid, signal.SIGSTOP)
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
