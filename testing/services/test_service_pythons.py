"""Services on every Python: the source is sent once, and nothing has to be installed."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from interpreters import Interpreter, far_sides, found
from models import GREENLET_MODELS, need_model
from tools import BOUND_S, MakeGateway, wait_until

from execnet import Group, WorkerDied, service
from execnet._cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

COUNT = """
state = channel.gateway.state
state["count"] = state.get("count", 0) + 1
channel.send(state["count"])
print("printed")
"""
# The process that it forks stays until it is killed.
FORK = """
import os, time, warnings
warnings.simplefilter("ignore")  # of forks beside threads, since 3.12
pid = {fork}
while not pid:
    time.sleep(10)
channel.send(pid)
channel.receive()
"""


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_a_service_on_each_python(home: Path, group: Group, python: Interpreter) -> None:
    lines: list[str] = []
    group.on_output(lambda gateway, stream, line: lines.append(line))
    spec = f"socketservice//python={shlex.quote(python.path)}"
    gateways = [group.makegateway(f"{spec}//output=forward") for _ in range(2)]
    counts = [gateway.remote_exec(COUNT).receive(BOUND_S) for gateway in gateways]
    assert counts == [1, 2]
    wait_until(lambda: lines == ["printed"] * 2)
    waits = gateways[0].remote_exec("channel.receive()")
    wait_until(lambda: service.find().status()["running"])
    told = service.find().status()
    assert told["version_info"][:2] == python.version[:2]
    assert [one["code"] for one in told["running"]] == ["channel.receive()"]
    assert told["state"][0].endswith("'count'")
    waits.close()
    group.terminate(timeout=5)
    service.find().stop()
    assert service.find_all() == []


@pytest.mark.parametrize("fork", ["os.fork()", "os.forkpty()[0]"])
@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_one_that_was_killed_is_started_anew_though_a_process_that_its_code_forked_goes_on(
    home: Path, makegateway: MakeGateway, python: Interpreter, fork: str
) -> None:
    spec = f"socketservice//python={shlex.quote(python.path)}//connect_timeout={BOUND_S / 2:g}"
    gateway = makegateway(spec)
    channel = gateway.remote_exec(FORK.format(fork=fork))
    forked = channel.receive(BOUND_S)
    try:
        os.kill(gateway._rinfo().pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        assert makegateway(spec).remote_exec(COUNT).receive(BOUND_S) == 1
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_port_on_another_python(home: Path, makegateway: MakeGateway) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    spec = f"socketservice//port={port}//python={shlex.quote(found()[0].path)}"
    counts = [makegateway(spec).remote_exec(COUNT).receive(BOUND_S) for _ in range(2)]
    assert counts == [1, 2]


@pytest.mark.parametrize("execmodel", GREENLET_MODELS)
def test_greenlets_of_a_program_use_one(home: Path, execmodel: str) -> None:
    need_model(execmodel)
    group = Group(execmodel=execmodel)
    assert group.makegateway("socketservice").remote_exec(COUNT).receive(BOUND_S) == 1
    group.terminate(timeout=5)


def run(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([*args])
    return status, out.getvalue(), err.getvalue()


class TestCommand:
    def test_it_says_what_would_be_lost_before_it_ends_anything(
        self, home: Path, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway("socketservice=work")
        gateway.remote_exec(COUNT).receive(BOUND_S)
        busy = gateway.remote_exec("channel.receive()")
        assert "work" in run("service", "list")[1]
        wait_until(lambda: run("service", "logs", "work")[1] == "printed\n")
        told = json.loads(run("service", "status", "work", "--json")[1])
        assert told["clients"][0]["pid"] == os.getpid()
        status, _, refused = run("service", "stop", "work")
        assert status == 1
        for lost in "state['count']", "channel.receive()", f"process {os.getpid()}":
            assert lost in refused
        assert not busy.isclosed()
        started = json.loads(run("service", "restart", "work", "--force", "--json")[1])["started"]
        assert service.find("work").status()["pid"] == started != told["pid"]
        assert service.find("work").status()["state"] == []
        assert run("service", "stop", "work", "--force") == (0, "", "")
        assert run("service", "list")[1] == ""
        assert "no service 'work' runs" in run("service", "status", "work")[2]
        assert "a service that has ended" in run("clean")[1]
        assert list((home / "services").iterdir()) == []
