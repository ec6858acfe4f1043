"""Services on every Python: the source is sent once, and nothing has to be installed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from interpreters import Interpreter, found
from models import GREENLET_MODELS, need_model
from tools import BOUND_S, MakeGateway, wait_until

from execnet import Group, service

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

COUNT = """
state = channel.gateway.state
state["count"] = state.get("count", 0) + 1
channel.send(state["count"])
print("printed")
"""


@pytest.mark.parametrize("python", found(), ids=str)
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


class TestCommand:
    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "execnet", "service", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def test_it_says_what_would_be_lost_before_it_ends_anything(
        self, home: Path, makegateway: MakeGateway
    ) -> None:
        import json

        gateway = makegateway("socketservice=work")
        gateway.remote_exec(COUNT).receive(BOUND_S)
        busy = gateway.remote_exec("channel.receive()")
        assert "work" in self.run("list").stdout
        wait_until(lambda: self.run("logs", "work").stdout == "printed\n")
        told = json.loads(self.run("status", "work", "--json").stdout)
        assert told["clients"][0]["pid"] == os.getpid()
        refused = self.run("stop", "work")
        assert refused.returncode == 1
        for lost in "state['count']", "channel.receive()", f"process {os.getpid()}":
            assert lost in refused.stderr
        assert not busy.isclosed()
        assert self.run("stop", "work", "--force").returncode == 0
        assert self.run("list").stdout == ""
        assert "no service 'work' runs" in self.run("status", "work").stderr
        clean = [sys.executable, "-m", "execnet", "clean"]
        assert "a service that has ended" in subprocess.check_output(clean, text=True)
        assert list((home / "services").iterdir()) == []
