"""What a connection to a service costs, whose code runs where, and what a killed program leaves."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter, far_sides
from processes import is_gone
from tools import BOUND_S, MakeGateway, needs_other_threads, wait_until

from execnet import Gateway, service
from execnet._service import far_find
from execnet._service.far_find import ServiceError
from execnet._specs import Settings
from execnet.gateway_base import ISPYPY
from execnet.xspec import XSpec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

COUNT = """
state = channel.gateway.state
state["count"] = state.get("count", 0) + 1
channel.send(state["count"])
"""
# Notes all source that the process compiles from now on.
NOTE = """
import sys
compiled = channel.gateway.state["compiled"] = []
def note(event, args):
    if event == "compile" and args[0] is not None:
        compiled.append(args[0])
sys.addaudithook(note)
"""
COMPILED = """
compile("'it does note'", "noted", "eval")
channel.send([str(source) for source in channel.gateway.state["compiled"]])
"""
IS_MAIN = "import threading; channel.send(threading.current_thread() is threading.main_thread())"
# An orphan: it goes on when it is interrupted, and notes what its channels do after that.  It is
# one just before its last interrupt, which may come while it takes notes: then it does so again.
GOES_ON = """
import time
state = channel.gateway.state
other = channel.gateway.newchannel()
def result(use):
    try:
        return str(use())
    except Exception as exc:
        return type(exc).__name__
uses = [lambda: channel.send(1), lambda: channel.receive(30), lambda: other.receive(30)]
for turn in range(10**6):
    try:
        if turn == 0:
            channel.send(None)  # in here, as the interrupt may come before it has returned
        while "go" not in state:
            time.sleep(0.005)
        state["said"] = [result(use) for use in uses]
        break
    except KeyboardInterrupt:
        pass
"""
# A program that says when it is in a state, and stays there until it is killed.
PROGRAM = """
import socket, sys
import execnet
spec, path = sys.argv[1:]

def ready(*said):
    print("ready", *said, flush=True)

def gateway(more=""):
    return execnet.makegateway(spec + more)

def connected():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock

{state}
sys.stdin.read()
"""
SLEEPS = "import time\nchannel.send(1)\nwhile True: time.sleep(0.01)"
STATES = {
    "has said nothing": "sock = connected(); ready()",
    "is amid its request": "sock = connected(); sock.sendall(b'\\x08\\0'); ready()",
    "is connected": "one = gateway(); ready()",
    "runs code": f"one = gateway(); one.remote_exec({SLEEPS!r}).receive(); ready()",
    "waits for its turn": f"""
one = gateway("//one_at_a_time=yes")
channel = one.remote_exec({SLEEPS!r})
ready()
""",
    "calls": """
one = gateway()
call = one.submit(exec, "import time\\nwhile True: time.sleep(0.01)")
ready()
""",
    "sends": """
channel = gateway().remote_exec("channel.receive(); channel.send(1); channel.receive(1000)")
channel.send(1)
channel.receive()
ready()
while True: channel.send(b"x" * 100_000)
""",
    "receives": """
channel = gateway().remote_exec("while True: channel.send(b'x' * 100_000)")
channel.receive()
ready()
""",
    "gets output": """
execnet.default_group.on_output(lambda *said: None)
channel = gateway("//output=forward").remote_exec("channel.send(1)\\nwhile True: print('x')")
channel.receive()
ready()
""",
    "has a worker made": """
channel = gateway().remote_exec(execnet.service.gatewaymaker)
inner = execnet.ChannelGateway(channel)
ready(inner.remote_exec("import os; channel.send(os.getpid())").receive())
""",
}
INTERRUPTED = "runs code", "calls", "gets output"  # what ends only so


def ask(gateway: Gateway, source: str) -> Any:
    return gateway.remote_exec(source).receive(BOUND_S)


def status() -> dict[str, Any]:
    return service.find("work").status()


@pytest.mark.skipif(ISPYPY, reason="it tells no audit hook of what it compiles")
def test_a_connection_compiles_nothing_again(home: Path, makegateway: MakeGateway) -> None:
    for spec in "socketservice=work", "popen//attach=far":
        first = makegateway(spec)
        first.remote_exec(NOTE).waitclose(BOUND_S)
        for _ in range(2):
            another = makegateway(spec)
            assert another.remote_status(BOUND_S).numexecuting == 0
            another.exit()
            another.join(BOUND_S)
        compiled = ask(first, COMPILED)
        assert [one for one in compiled if "it does note" in one]
        assert len(compiled) == len(set(compiled))


def test_no_code_runs_in_the_main_thread(home: Path, makegateway: MakeGateway) -> None:
    for more in "", "//one_at_a_time=yes":
        gateway = makegateway(f"socketservice=work{more}")
        assert [ask(gateway, IS_MAIN) for _ in range(2)] == [False] * 2
        assert gateway.call(is_main) is False


def is_main() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_the_channels_of_an_orphan_raise(
    home: Path, makegateway: MakeGateway, python: Interpreter
) -> None:
    spec = f"socketservice=work//grace=0.1//python={shlex.quote(python.path)}"
    stays, leaves = (makegateway(spec) for _ in range(2))
    assert ask(leaves, GOES_ON) is None
    leaves.exit()
    leaves.join(BOUND_S)
    wait_until(lambda: [one["orphan"] for one in status()["running"]] == [True])
    stays.remote_exec("channel.gateway.state['go'] = 1").waitclose(BOUND_S)
    said = "channel.send(channel.gateway.state.get('said'))"
    assert wait_until(lambda: ask(stays, said)) == ["OSError", "EOFError", "EOFError"]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(state, marks=needs_other_threads if state in INTERRUPTED else ())
        for state in STATES
    ],
)
def test_a_killed_program_leaves_a_service_that_goes_on_and_nothing_else(
    home: Path, makegateway: MakeGateway, state: str
) -> None:
    stays = makegateway("socketservice=work//one_at_a_time=yes//idle=0.1")
    holder = stays.remote_exec("channel.send(1); channel.receive()")
    holder.receive(BOUND_S)
    folder = service.find("work")._found[0]
    words = [sys.executable, "-c", PROGRAM.format(state=STATES[state])]
    with subprocess.Popen(
        [*words, "socketservice=work", f"{folder}/socket"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        said = program.stdout.readline().split()
        assert said[:1] == ["ready"]
        if state == "waits for its turn":
            wait_until(lambda: [one for one in status()["running"] if one["waits"]])
        if state == "calls":
            wait_until(lambda: len(status()["running"]) == 2)
        program.kill()
    wait_until(lambda: [one["executing"] for one in status()["clients"]] == [1])
    wait_until(lambda: len(status()["running"]) == 1)
    wait_until(lambda: all(is_gone(int(pid)) for pid in said[1:]))
    holder.send(None)
    holder.waitclose(BOUND_S)
    assert ask(stays, COUNT) == 1
    stays.exit()
    wait_until(lambda: service.find_all() == [])  # which it would not be if it counted another user


class TestSideBySide:
    def test_interpreters(self, home: Path, makegateway: MakeGateway) -> None:
        python = f"/usr/bin/env {sys.executable}"
        specs = ["socketservice=work", f"socketservice=work//python={python}"]
        for count in 1, 2:
            assert [ask(makegateway(spec), COUNT) for spec in specs] == [count] * 2
        with pytest.raises(ServiceError, match="several services are named 'work', say which"):
            service.find("work")
        service.find("work", python).stop()
        assert ask(makegateway(specs[0]), COUNT) == 3

    def test_versions_of_the_protocol(
        self, home: Path, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = makegateway("socketservice=work")
        monkeypatch.setattr(far_find, "PROTOCOL", 2)
        second = makegateway("socketservice=work")
        assert ask(first, COUNT) == ask(second, COUNT) == 1
        assert len(service.find_all()) == 2


def test_stop_returns_when_the_process_is_gone(home: Path, makegateway: MakeGateway) -> None:
    gateway = makegateway("socketservice=work")
    pid = gateway._rinfo().pid
    channel = gateway.remote_exec("channel.send(1); import time; time.sleep(1000)")
    assert channel.receive(BOUND_S) == 1
    service.find("work").stop()
    assert is_gone(pid)


@pytest.mark.parametrize("spec", ["socketservice", "ssh=host//resume=9"])
def test_windows_is_refused_with_a_reason(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="on Windows, which "):
        Settings(XSpec(spec))


@pytest.mark.parametrize("python", [far_sides()[0], far_sides()[-1]], ids=str)
def test_code_may_close_the_descriptors_of_standard_streams(
    home: Path, makegateway: MakeGateway, python: Interpreter
) -> None:
    spec = f"socketservice//python={shlex.quote(python.path)}"
    makegateway(spec).remote_exec("import os; os.closerange(0, 3)").waitclose(BOUND_S)
    writes = "import os; os.write(0, b'0'); os.write(1, b'1'); os.write(2, b'2'); channel.send(1)"
    gateways = [makegateway(spec) for _ in range(2)]
    assert [one.remote_exec(writes).receive(BOUND_S) for one in gateways] == [1, 1]
