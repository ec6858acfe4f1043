"""``attach=NAME``: a gateway to a service at the other end of a login."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter, far_sides
from services import Sshd, free_port, script
from tools import BOUND_S, MakeGateway, error_of, needs_other_threads, wait_until

from execnet import Gateway, Group, RemoteError, WorkerDied, service
from execnet._cli import main
from execnet._folders import HOME_VARIABLE
from execnet._service.far_gateway import LAST_CHARS, _shown
from execnet._specs import Settings
from execnet.xspec import XSpec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

COUNT = """
state = channel.gateway.state
state["count"] = state.get("count", 0) + 1
channel.send(state["count"])
"""
# Code that goes on until another program lets it, and then sends its result.
JOB = """
import threading
go = channel.gateway.state["go"] = threading.Event()
channel.send({"step": 1})
go.wait(60)
channel.send("the result")
"""
PROGRAM = """
import sys, execnet
gateway = execnet.makegateway(sys.argv[1])
print(gateway.remote_exec(sys.argv[2]).receive(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def far(nothing_is_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A real sshd whose logins have a folder of their own for services."""
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        home = Path(folder, "home")
        sshd = Sshd(Path(folder), options=f"SetEnv {HOME_VARIABLE}={home}")
        yield sshd
        sshd.stop()
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setenv(HOME_VARIABLE, str(home))
        for one in service.find_all():
            one.stop()


def run(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["service", *args])
    return status, out.getvalue(), err.getvalue()


def counted(gateway: Gateway) -> int:
    count: int = gateway.remote_exec(COUNT).receive(BOUND_S)
    return count


def killed_program(spec: str) -> str:
    """Run a program that starts the job, and kill it; return what the job sent it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, spec, JOB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        said = program.stdout.readline()
        program.kill()
    return said


def tasks(gateway: Gateway) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = gateway.remote_status(BOUND_S).tasks
    return told


def test_over_a_real_ssh_state_outlives_the_connection(home: Path, far: Sshd) -> None:
    place = f"ssh=loop//ssh_config={far.ssh_config}"
    for count in 1, 2:
        with Group() as group:
            gateway = group.makegateway(f"{place}//attach=work")
            assert counted(gateway) == count
            pid = gateway._rinfo().pid
    assert service.find_all() == []  # the one over there is not in the folder of this test
    told = json.loads(run("list", "--spec", place, "--json")[1])
    assert [(one["service"], one["pid"], one["clients"]) for one in told] == [("work", pid, [])]
    assert run("stop", "work", "--spec", place, "--force") == (0, "", "")


def test_the_command_does_there_what_it_does_here(home: Path, makegateway: MakeGateway) -> None:
    gateway = makegateway("popen//attach=work")
    assert counted(gateway) == 1
    pid = gateway._rinfo().pid
    gateway.exit()
    wait_until(lambda: service.find("work").status()["clients"] == [])
    status, _, refused = run("stop", "work", "--spec", "popen")
    assert (status, "state['count']" in refused) == (1, True)
    restarted = run("restart", "work", "--spec", "popen", "--force", "--json")[1]
    assert json.loads(restarted)["stopped"] == pid
    assert json.loads(run("logs", "work", "--spec", "popen", "--json")[1]) == []
    service.find("work").stop()
    assert "no service 'work' runs there" in run("status", "work", "--spec", "popen")[2]


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_the_command_reaches_one_with_a_port_from_a_worker_that_was_sent_all(
    home: Path, makegateway: MakeGateway, python: Interpreter
) -> None:
    port = free_port()
    gateway = makegateway(f"socketservice//port={port}")
    assert counted(gateway) == 1
    pid, place = gateway._rinfo().pid, python.spec
    told = json.loads(run("status", str(port), "--spec", place, "--json")[1])
    assert (told["pid"], told["state"]) == (pid, ["'count'"])
    status, _, refused = run("restart", str(port), "--spec", place, "--force")
    assert (status, "on its own machine" in refused) == (1, True)
    assert run("stop", str(port), "--spec", place, "--force") == (0, "", "")
    assert service.find_all() == []


def test_code_of_a_killed_program_goes_on_and_is_listed_with_its_last_result(
    home: Path, makegateway: MakeGateway
) -> None:
    spec = "popen//attach=work"
    assert killed_program(spec) == "{'step': 1}\n"
    gateway = makegateway(spec)
    wait_until(lambda: [one["orphan"] for one in tasks(gateway)] == [True])
    (task,) = tasks(gateway)
    assert (task["last"], task["until"], task["error"]) == ("{'step': 1}", None, None)
    assert "go.wait" in run("status", "work")[1] or "in wait" in task["stack"]
    gateway.remote_exec("channel.gateway.state['go'].set()").waitclose(BOUND_S)
    wait_until(lambda: tasks(gateway)[0]["until"])
    task = tasks(gateway)[0]  # those that have ended come first
    assert task["last"] == "'the result'"
    assert task["error"].startswith("OSError: cannot send")
    shown = run("status", "work")[1]
    assert "has ended at" in shown
    assert "sent last: 'the result'" in shown
    assert "the last result of: import threading" in run("stop", "work")[2]


class Hostile:
    def __repr__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ({"step": [1, (2.5,), None, True]}, "{'step': [1, (2.5,), None, True]}"),
        (b"x" * 10**6, "b'xxx"),
        (1 << 10**7, "<a number of 10000001 bits>"),
        (set(range(10**6)), "<set of 1000000>"),
        ([[[[1]]]], "[[[<list of 1>]]]"),
        ({"a": [Hostile()]}, "{'a': [<Hostile>]}"),
        (["y" * 100] * 20, "['yyy"),
    ],
    ids=range(7),
)
def test_the_line_about_a_result_is_short_and_costs_nothing(item: object, line: str) -> None:
    shown = _shown(item)
    assert shown.startswith(line)
    assert len(shown) <= LAST_CHARS + 3
    assert len(shown) > LAST_CHARS or shown == line


@needs_other_threads
def test_code_ends_with_a_gateway_that_says_goodbye(home: Path, makegateway: MakeGateway) -> None:
    gateway = makegateway("popen//attach=work")
    ended = makegateway("popen//attach=work//grace=0.05")
    channel = ended.remote_exec(
        "import time\n"
        "try:\n"
        "    channel.send(1)\n"
        "    while True: time.sleep(0.01)\n"
        "except KeyboardInterrupt:\n"
        "    channel.gateway.state['interrupted'] = True\n"
    )
    assert channel.receive(BOUND_S) == 1
    ended.exit()
    ask = "channel.send(channel.gateway.state.get('interrupted'))"
    wait_until(lambda: gateway.remote_exec(ask).receive(BOUND_S))
    wait_until(lambda: tasks(gateway) == [])


@needs_other_threads
def test_a_stop_interrupts_code_that_goes_on(
    home: Path, makegateway: MakeGateway, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    gateway = makegateway("popen//attach=work")
    channel = gateway.remote_exec(
        "import time\n"
        "try:\n"
        "    channel.send(1)\n"
        "    while True: time.sleep(0.01)\n"
        f"finally: open({str(note)!r}, 'w').close()\n"
    )
    assert channel.receive(BOUND_S) == 1
    gateway._io.kill()  # the login is cut, and nobody said goodbye
    with pytest.raises(WorkerDied):
        channel.receive(BOUND_S)
    running = service.find("work").status
    wait_until(lambda: [one["orphan"] for one in running()["running"]] == [True])
    assert not note.exists()
    service.find("work").stop()
    assert note.exists()


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_items_come_whole_and_the_death_of_the_service_is_told(
    home: Path, makegateway: MakeGateway, python: Interpreter
) -> None:
    spec = f"popen//attach=work//python={shlex.quote(python.path)}"
    gateway = makegateway(spec)
    assert gateway._rinfo().version_info[:2] == python.version[:2]
    assert counted(gateway) == 1
    echo = gateway.remote_exec("for item in channel: channel.send(item)")
    items = [f"{size} ".rjust(size) for size in (1, 70_000, 3_000_000, 5)] * 2
    for item in items:  # while nobody reads, more than fits into pipes and sockets
        echo.send(item)
    assert [echo.receive(BOUND_S) for _ in items] == items
    os.kill(int(gateway._rinfo().pid), signal.SIGKILL)
    with pytest.raises(WorkerDied, match="gw0 died"):
        echo.receive(BOUND_S)
    assert counted(makegateway(spec)) == 1


def test_it_goes_through_another_gateway(home: Path, makegateway: MakeGateway) -> None:
    makegateway("popen//id=hop")
    counts = [counted(makegateway("popen//via=hop//attach=work")) for _ in range(2)]
    assert counts == [1, 2]
    local = makegateway(f"socketservice=work//python={shlex.quote(sys.executable)}")
    assert counted(local) == 3  # it is the one that programs of that machine use


def test_what_is_large_is_compressed_for_each_connection_that_wants_it(
    home: Path, makegateway: MakeGateway
) -> None:
    makegateway("popen//id=near")
    code = "for item in channel: channel.send([item, 'frame' in vars(channel.gateway._writer)])"
    for compress in "yes", "no":
        gateway = makegateway(f"popen//via=near//attach=big//compress={compress}")
        channel = gateway.remote_exec(code)
        for item in b"words " * 1000, os.urandom(5000), "ab" * 1_000_000:
            channel.send(item)
            assert channel.receive(BOUND_S) == [item, compress == "yes"]
        channel.close()


def test_a_process_of_another_user_leaves_the_terminal(
    home: Path, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "sudo", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}", prepend=":")
    gateway = makegateway("sudo=somebody//attach=work")
    assert counted(gateway) == 1
    pid = gateway._io.popen.pid  # type: ignore[attr-defined]
    assert os.getsid(pid) == pid


def test_what_goes_wrong_over_there_is_told(home: Path, group: Group) -> None:
    with pytest.raises(RemoteError):  # code still raises in the way of any gateway
        group.makegateway("popen//attach=work").remote_exec("1/0").waitclose(BOUND_S)
    group.terminate(timeout=5)
    service.find("work").stop()
    (home / "services").chmod(0o755)
    error = error_of(group, "popen//attach=work")
    assert "the service work could not be used: " in str(error)
    assert "others can enter it" in str(error)
    (home / "services").chmod(0o700)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("socketservice=a//attach=b", "names a service already"),
        ("socket=localhost:1//attach=b", "no command is run there"),
        ("srun//attach=b", "ends all processes of a job step"),
        ("popen//forkserver//attach=b", "forked here"),
        ("ssh=h//resume=5//attach=b", "stays anyway"),
        ("ssh=h//attach=b//chdir=/", "chdir= would be for the whole service"),
        ("ssh=h//attach=b//env:A=1", "env: would be for the whole service"),
        ("ssh=h//attach=b//execmodel=main_thread_only", "execmodel= would be for the whole"),
        ("popen//attach=b//output=inherit", "output= would be for the whole service"),
        ("ssh=h//attach=a/b", "not a name of up to 60"),
        ("docker=c//idle=5", "idle= is for socketservice"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(spec: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(XSpec(spec))


def test_times_and_turns_are_those_of_services(home: Path, makegateway: MakeGateway) -> None:
    gateway = makegateway("popen//attach=work//idle=5000//one_at_a_time=yes")
    assert service.find("work").status()["idle"] == 5000
    waits = [gateway.remote_exec("channel.send(channel.receive())") for _ in range(2)]
    wait_until(lambda: sorted(one["waits"] for one in tasks(gateway)) == [False, True])
    for number, channel in enumerate(waits):
        channel.send(number)
    assert [channel.receive(BOUND_S) for channel in waits] == [0, 1]
