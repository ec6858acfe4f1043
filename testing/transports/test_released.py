"""Released versions at the other end of a socket: at their servers, and as clients of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import interrupt_asleep, stop, wait_reaped
from released import NAMES, THAT_SERVE_MANY, Released, ReleasedServer, find_released
from socketservers import SCRIPTS, InProcess, Servers, connect, read_to_end
from tools import BOUND_S, clean_environment, find_python, run, wait_until
from workers import ask

import execnet
from execnet import BootstrapError, Gateway, Group, RemoteError, RSync
from execnet.script import quitserver, socketserver

WHERE = "import os, sys; channel.send((os.getpid(), tuple(sys.version_info[:2])))"
# What the process of a server is like between two clients.
SURROUNDINGS = """\
import os, signal, sys, threading
text = repr((
    os.getcwd(), os.environ.get("NAME"), sys.argv[0][-15:],
    signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    sorted(name for name in list(sys.modules) if name.startswith("_execnet")),
))
clientsock.sendall(text.encode("ascii"))
clientsock.shutdown(2)
"""


@pytest.fixture(params=NAMES)
def released(request: pytest.FixtureRequest) -> Released:
    return find_released(request.param)


Start = Callable[[Released], ReleasedServer]


@pytest.fixture
def start(tmp_path: Path, nothing_is_left: None) -> Iterator[Start]:
    """Return what starts a server of a released version."""
    servers: list[ReleasedServer] = []

    def start(released: Released) -> ReleasedServer:
        servers.append(ReleasedServer(released, tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(params=THAT_SERVE_MANY)
def server(request: pytest.FixtureRequest, start: Start) -> ReleasedServer:
    """A server that serves one client after the other; older ones end after the first."""
    return start(find_released(request.param))


def run_there(server: ReleasedServer, code: str) -> Any:
    """Have a server execute a line, as any client can; return what comes."""
    with connect(server.address) as conn:
        conn.sendall(repr(code).encode() + b"\n")
        return literal_eval(read_to_end(conn).decode())


def is_served(server: ReleasedServer, group: Group) -> None:
    """Fail unless the next client is served, in the same process."""
    with group.makegateway(
        f"socket={server.address}//connect_timeout=10//authentication=none"
    ) as gateway:
        assert ask(gateway, WHERE)[0] == server.popen.pid


class TestTheirServer:
    """Our worker runs in its process, in the thread that serves, and ends neither."""

    def test_what_a_gateway_does_works(
        self, start: Start, released: Released, group: Group
    ) -> None:
        server = start(released)
        gateway = group.makegateway(f"socket={server.address}//authentication=none")
        pid, version = ask(gateway, WHERE)
        assert pid == gateway._rinfo().pid == server.popen.pid
        assert version == tuple(gateway._rinfo().version_info[:2])
        item = {"a": [1, 2.5, None, True, ("\u20ac", 10**30)]}
        assert ask(gateway, "channel.send(channel.receive())", item) == item
        large = "\u20ac" * 1_000_000
        assert ask(gateway, "channel.send(channel.receive())", large) == large
        waiting = gateway.remote_exec("channel.send(channel.receive() + 1)")  # holds its thread
        assert ask(gateway, "channel.send(2)") == 2
        waiting.send(1)
        assert waiting.receive(BOUND_S) == 2
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            gateway.remote_exec("1/0").waitclose(BOUND_S)
        assert gateway.remote_status().pid == pid
        group.terminate(timeout=5)
        if released.serves_one:
            assert server.popen.wait(BOUND_S) == 0
        else:
            is_served(server, group)

    def test_without_a_key_it_gets_the_first_line_after_a_while_with_one_warning(
        self, server: ReleasedServer, group: Group
    ) -> None:
        with pytest.warns(execnet.SecurityWarning, match="proves nothing") as warned:
            gateway = group.makegateway(f"socket={server.address}")
        assert ask(gateway, WHERE)[0] == server.popen.pid
        assert len(warned) == 1

    @pytest.mark.parametrize("own", [True, False])
    def test_with_a_key_nothing_is_sent_to_it(
        self, server: ReleasedServer, group: Group, own: bool
    ) -> None:
        spec = f"socket={server.address}//connect_timeout=1"
        if own:
            socketserver.own_key()
        with pytest.raises(execnet.AuthenticationError, match=r"silent.*authentication=none is"):
            group.makegateway(spec if own else f"{spec}//authentication=required")
        is_served(server, group)

    @pytest.mark.filterwarnings("ignore::execnet.SecurityWarning")
    def test_it_gets_no_variables(self, server: ReleasedServer, group: Group) -> None:
        for way in "authentication=none", "connect_timeout=1":
            with pytest.raises(execnet.AuthenticationError, match="env:"):
                group.makegateway(f"socket={server.address}//{way}//env:SECRET=1")
        is_served(server, group)

    def test_it_has_no_worker_that_outlives_its_connection(
        self, server: ReleasedServer, group: Group
    ) -> None:
        with pytest.raises(execnet.BootstrapError, match="and resume= needs another one"):
            group.makegateway(f"socket={server.address}//authentication=none//resume=9")
        is_served(server, group)

    def test_code_runs_in_the_thread_that_serves(
        self, server: ReleasedServer, group: Group
    ) -> None:
        gateway = group.makegateway(f"socket={server.address}//authentication=none")
        code = "import threading; channel.send(type(threading.current_thread()).__name__)"
        assert ask(gateway, code) == "_MainThread"

    def test_stdout_is_the_servers(self, start: Start, released: Released, group: Group) -> None:
        server = start(released)
        gateway = group.makegateway(f"socket={server.address}//authentication=none")
        gateway.remote_exec("print('printed' + 'there')").waitclose(BOUND_S)
        wait_until(lambda: "printedthere" in server.output())

    def test_many_clients_in_a_row_leave_nothing(
        self, server: ReleasedServer, group: Group
    ) -> None:
        is_served(server, group)
        descriptors = server.descriptors()
        for _ in range(6):
            is_served(server, group)
        wait_until(lambda: server.descriptors() <= descriptors)

    def test_its_surroundings_are_restored(
        self, server: ReleasedServer, group: Group, tmp_path: Path
    ) -> None:
        before = run_there(server, SURROUNDINGS)
        spec = f"socket={server.address}//authentication=none//chdir={tmp_path / 'new'}"
        gateway = group.makegateway(spec)
        code = "import os; os.environ['NAME'] = 'value'; channel.send(os.getcwd()); os.chdir('/')"
        assert ask(gateway, code) == str(tmp_path / "new")
        group.terminate(timeout=5)
        assert run_there(server, SURROUNDINGS) == before == (str(tmp_path), None, *before[2:])
        assert before[3:] == (True, [])

    @pytest.mark.parametrize("wish", ["nice=1", "kill=group", "execmodel=gevent"])
    def test_what_would_be_for_the_whole_process_is_refused(
        self, server: ReleasedServer, group: Group, wish: str
    ) -> None:
        word = "greenlets" if "execmodel" in wish else "would be for the whole server"
        with pytest.raises(BootstrapError, match=word):
            group.makegateway(f"socket={server.address}//authentication=none//{wish}")
        is_served(server, group)

    def test_a_folder_that_cannot_be_made_is_told(
        self, server: ReleasedServer, group: Group
    ) -> None:
        with pytest.raises(BootstrapError, match="could not be prepared"):
            group.makegateway(
                f"socket={server.address}//authentication=none//chdir=/dev/null/folder"
            )
        assert run_there(server, SURROUNDINGS)[1] is None
        is_served(server, group)

    def test_it_outlives_a_killed_coordinator(self, server: ReleasedServer, group: Group) -> None:
        code = f"""
import execnet, os
gateway = execnet.makegateway("socket={server.address}//authentication=none//grace=0.5")
for _ in range(2):  # the thread that serves, and another one
    channel = gateway.remote_exec("channel.send(1); import time; time.sleep(1000)")
    channel.receive()
channel = gateway.remote_exec("channel.send(1); channel.receive()")
channel.receive()
os.kill(os.getpid(), 9)
"""
        assert run([sys.executable, "-c", code]).returncode == -9
        is_served(server, group)

    def test_code_that_goes_on_when_it_is_interrupted_is_interrupted_again(
        self, server: ReleasedServer, group: Group
    ) -> None:
        gateway = group.makegateway(f"socket={server.address}//authentication=none//grace=0.2")
        code = """\
import time
for turn in range(4):
    try:
        if turn == 0:
            channel.send(1)  # in here, as the interrupt may come before it has returned
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""
        channel = gateway.remote_exec(code)
        channel.receive(BOUND_S)
        group.terminate(timeout=10)
        is_served(server, group)

    def test_a_silent_coordinator_is_given_up(self, server: ReleasedServer, group: Group) -> None:
        code = f"""
import execnet, sys
options = "authentication=none//heartbeat=0.2//dead_after=2//grace=0.2"
gateway = execnet.makegateway("socket={server.address}//" + options)
channel = gateway.remote_exec("channel.send(1); import time; time.sleep(1000)")
channel.receive()
print("running", flush=True)
sys.stdin.read()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
        ) as coordinator:
            assert coordinator.stdout is not None
            assert coordinator.stdout.readline() == b"running\n"
            stop(coordinator.pid)
            is_served(server, group)
            coordinator.kill()

    def test_its_users_interrupt_ends_it_and_the_gateway(
        self, server: ReleasedServer, group: Group
    ) -> None:
        gateway = group.makegateway(f"socket={server.address}//authentication=none")
        channel = gateway.remote_exec("channel.send(1); import time; time.sleep(1000)")
        channel.receive(BOUND_S)
        interrupt_asleep(server.popen.pid, 0.02)  # waits for the interpreter last 5 ms
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)
        server.popen.wait(BOUND_S)

    def test_output_is_forwarded_and_given_back(self, server: ReleasedServer, group: Group) -> None:
        lines: list[str] = []
        group.on_output(lambda gateway, name, line: lines.append(line))
        gateway = group.makegateway(f"socket={server.address}//authentication=none//output=forward")
        gateway.remote_exec("print('forwarded')").waitclose(BOUND_S)
        wait_until(lambda: "forwarded" in lines)
        gateway._io.kill()  # not an orderly end
        group.terminate(timeout=5)
        with group.makegateway(f"socket={server.address}//authentication=none") as gateway:
            gateway.remote_exec("print('printed' + 'there')").waitclose(BOUND_S)
            wait_until(lambda: "printedthere" in server.output())

    def test_trees_are_sent_and_other_gateways_go_through_it(
        self, server: ReleasedServer, group: Group, tmp_path: Path
    ) -> None:
        (tmp_path / "from").mkdir()
        (tmp_path / "from" / "file").write_text("x")
        for _ in range(2):  # the modules of the first client are no longer there
            gateway = group.makegateway(f"socket={server.address}//authentication=none//id=first")
            rsync = RSync(str(tmp_path / "from"), verbose=False)
            rsync.add_target(gateway, str(tmp_path / "to"))
            rsync.send()
            assert (tmp_path / "to" / "file").read_text() == "x"
            through = group.makegateway(f"popen//via=first//python={sys.executable}")
            installed = group.makegateway("socket//installvia=first")
            pids = {ask(other, WHERE)[0] for other in (gateway, through, installed)}
            assert len(pids) == 3
            group.terminate(timeout=5)
            wait_reaped(*pids - {server.popen.pid})

    @pytest.mark.parametrize("own", [True, False], ids=["key", "no key"])
    def test_our_quitserver_ends_it(self, start: Start, released: Released, own: bool) -> None:
        server = start(released)
        if own:
            socketserver.own_key()
        quitserver.quit_server(server.address)
        server.popen.wait(BOUND_S)

    def test_our_shell_talks_to_it(self, server: ReleasedServer, group: Group) -> None:
        socketserver.own_key()
        command = [sys.executable, str(SCRIPTS / "shell.py"), server.address]
        assert "it keeps silent" in run(command, stdin="secret\n").stderr
        lines = "import os\nprint(os.getpid() * 3)\n1 / 0\n"
        shown = run([*command, "--no-authentication"], stdin=lines)
        assert f"{server.popen.pid * 3}\n" in shown.stdout
        assert "ZeroDivisionError" in shown.stdout
        assert (shown.returncode, shown.stderr) == (0, "")
        is_served(server, group)


CLIENT = """\
import execnet, sys
for _ in range(2):
    gateway = execnet.makegateway("socket=" + sys.argv[1])
    channel = gateway.remote_exec(
        "import os, sys; print('printed'); sys.stdin.read();"
        "channel.send((os.getpid(), channel.receive(), sys.version_info[0]))"
    )
    channel.send({1: [2.5, None, b"x" * 200000]})
    pid, item, version = channel.receive(20)
    assert pid != int(sys.argv[2])
    assert item == {1: [2.5, None, b"x" * 200000]} or version == 2
    channel.waitclose(20)
    channel = gateway.remote_exec("1/0")
    try:
        channel.waitclose(20)
    except channel.RemoteError:
        assert "ZeroDivisionError" in str(sys.exc_info()[1])
    else:
        assert 0, "no error"
    gateway.exit()
execnet.default_group.terminate(timeout=5)
print("well")
"""
INSTALLING_CLIENT = """\
import execnet, sys
execnet.makegateway("socket=" + sys.argv[1] + "//id=first")
gateway = execnet.makegateway("socket//installvia=first")
assert gateway.remote_exec("channel.send(1)").receive(20) == 1
execnet.default_group.terminate(timeout=5)
print("well")
"""
OWN_CODE = """\
import threading
assert clientsock.getpeername() == address
event, lock, rlock = execmodel.Event(), execmodel.Lock(), execmodel.RLock()
items = execmodel.queue.Queue()
def run(item):
    with lock, rlock:
        items.put((item, execmodel.get_ident()))
    event.set()
execmodel.start(run, ("item",))
event.wait()
execmodel.sleep(0.01)
item, ident = items.get()
read, write = os.pipe()
file = execmodel.fdopen(write, "w")
file.write("text")
file.close()
text = execmodel.fdopen(read, "r").read()
answer = [item, ident == execmodel.get_ident(), execmodel.backend, text,
          execmodel.socket is socket, hasattr(execmodel.subprocess, "Popen")]
def later():
    clientsock.sendall((repr(answer) + "\\n").encode("ascii"))
    clientsock.sendall(clientsock.recv(100))
threading.Thread(target=later).start()
"""


class TestTheirClient:
    """It gets a process of its own, in which it finds the names that its server would give."""

    @pytest.mark.parametrize("python", ["2.7", "3.6", "3.8", "3.11"])
    def test_what_a_gateway_does_works(
        self, released: Released, servers: Servers, python: str
    ) -> None:
        if released.version >= (2,) and python < "3.8":
            pytest.skip(f"workers of {released.version} need a newer Python")
        server = servers.start(":0", "--no-authentication", python=find_python(python))
        printed = released.run(CLIENT, server.address, str(server.popen.pid))
        assert printed == "well\n"
        wait_until(lambda: server.processes() == [])

    def test_it_installs_a_server_of_its_own(self, released: Released, servers: Servers) -> None:
        server = servers.start(":0", "--no-authentication", python=released.python)
        assert released.run(INSTALLING_CLIENT, server.address) == "well\n"

    def test_where_pipes_lead_to_the_process(
        self, released: Released, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on Windows."""
        monkeypatch.setattr(socketserver, "WINDOWS", True)
        monkeypatch.setattr(socketserver, "INTERPRETER", released.python)
        server = InProcess()
        try:
            assert released.run(CLIENT, server.address, str(os.getpid())) == "well\n"
        finally:
            server.stop()

    @pytest.mark.parametrize("windows", [False, True])
    @pytest.mark.parametrize("python", ["2.7", "3.6", sys.executable], ids=["2.7", "3.6", "this"])
    def test_code_of_its_own_has_all_names(
        self, python: str, windows: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = python if python == sys.executable else find_python(python)
        monkeypatch.setattr(socketserver, "WINDOWS", windows)
        monkeypatch.setattr(socketserver, "INTERPRETER", path)
        server = InProcess()
        try:
            with connect(server.address) as conn:
                code = "import os, socket\n" + OWN_CODE
                line, goodbye = repr(code).encode() + b"\n", b"goodbye"
                conn.sendall(line if windows else line + goodbye)
                answer = conn.makefile("rb", 0).readline()
                conn.sendall(goodbye if windows else b"")
                assert read_to_end(conn) == b"goodbye"
        finally:
            server.stop()
        assert literal_eval(answer.decode()) == ["item", False, "thread", "text", True, True]


def test_our_clients_keep_stdin_and_stdout_of_our_server(servers: Servers, group: Group) -> None:
    gateway: Gateway = group.makegateway(f"socket={servers.start().address}")
    code = "import sys; channel.send((sys.argv, 'socket' in sys.modules, sys.stdin.read()))"
    assert ask(gateway, code) == (["-c"], False, "")
