"""The socket server, standing alone: where it listens, whom it serves and how it ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interpreters import Interpreter, chosen, found
from processes import is_reaped, stop, wait_reaped
from services import script
from socketservers import SCRIPTS, InProcess, Serve, Server, Servers, connect, read_to_end
from tools import BOUND_S, missing, run, wait_until
from workers import GETPID, ask

from execnet import Gateway, Group, WorkerDied
from execnet.script import socketserver

GETCWD = "import os; channel.send(os.getcwd())"


@pytest.fixture
def client(group: Group) -> Callable[[Server], Gateway]:
    """Return a function that connects a gateway to a server."""
    return lambda server: group.makegateway(f"socket={server.address}")


Connect = Callable[[Server], Gateway]


@pytest.mark.parametrize("python", chosen(), ids=str)
class TestOnEveryPython:
    def test_two_clients_at_once_have_processes_of_their_own(
        self, python: Interpreter, serve: Serve, client: Connect, group: Group
    ) -> None:
        server = serve(python=python.path)
        first, second = client(server), client(server)
        assert first._rinfo().version_info[:3] == python.version
        pids = [first._rinfo().pid, second._rinfo().pid]
        assert sorted(pids) == sorted(server.processes())
        waiting = first.remote_exec("channel.send(channel.receive())")
        assert ask(second, GETPID) == pids[1]  # while the first is busy
        waiting.send("x")
        assert waiting.receive(BOUND_S) == "x"
        group.terminate(timeout=5)
        wait_reaped(*pids)
        assert server.stop() == 0

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_ends_it_and_its_processes(
        self, python: Interpreter, serve: Serve, client: Connect, signum: int
    ) -> None:
        server = serve(python=python.path)
        gateway = client(server)
        channel = gateway.remote_exec("channel.receive()")
        assert server.stop(signum) == 0
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        assert is_reaped(gateway._rinfo().pid)

    def test_it_does_not_end_by_a_signal_that_it_is_to_ignore(
        self, python: Interpreter, serve: Serve, client: Connect, group: Group, tmp_path: Path
    ) -> None:
        script(tmp_path / "nohup", f'trap "" HUP; exec {shlex.quote(python.path)} "$@"')
        server = serve(python=str(tmp_path / "nohup"))
        server.popen.send_signal(signal.SIGHUP)
        assert ask(client(server), GETPID) in server.processes()
        group.terminate(timeout=5)
        assert server.stop() == 0

    def test_a_worker_serves_at_the_address_that_it_is_sent(
        self, python: Interpreter, group: Group
    ) -> None:
        worker = group.makegateway(python.spec)
        channel = worker.remote_exec(socketserver)
        channel.send(("127.0.0.1", 0))
        host, port = channel.receive(BOUND_S)
        assert host == "127.0.0.1"
        gateway = group.makegateway(f"socket={host}:{port}")
        assert ask(gateway, "import sys; channel.send(sys.version_info[:2])") == python.version[:2]
        worker.exit()
        worker.join(BOUND_S)
        wait_reaped(gateway._rinfo().pid, worker._rinfo().pid)

    def test_the_help_says_that_who_can_connect_can_run_code(self, python: Interpreter) -> None:
        shown = run([python.path, str(SCRIPTS / "socketserver.py"), "--help"])
        text = " ".join(shown.stdout.split())
        assert "WHOEVER CAN CONNECT CAN RUN CODE" in text
        assert "default :8888. Without a host only this machine can connect" in text
        assert shown.returncode == 0


class TestClients:
    def test_a_killed_one_does_not_disturb_the_other(self, serve: Serve, client: Connect) -> None:
        server = serve()
        first, second = client(server), client(server)
        waiting = first.remote_exec("channel.receive()")
        os.kill(first._rinfo().pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            waiting.receive(BOUND_S)
        wait_reaped(first._rinfo().pid)
        assert ask(second, GETPID) == second._rinfo().pid
        third = client(server)
        assert ask(third, GETPID) == third._rinfo().pid

    def test_the_working_directory_is_not_carried_to_the_next(
        self, serve: Serve, client: Connect, servers: Servers, tmp_path: Path, group: Group
    ) -> None:
        server = serve()
        first = group.makegateway(f"socket={server.address}//chdir={tmp_path / 'new'}")
        assert ask(first, GETCWD) == str(tmp_path / "new")
        assert ask(first, "import os; os.chdir('/'); channel.send(os.getcwd())") == "/"
        assert ask(client(server), GETCWD) == str(servers.folder)

    def test_one_that_says_nothing_costs_no_process(self, serve: Serve, client: Connect) -> None:
        server = serve()
        with connect(server.address):
            assert ask(client(server), GETPID)
            assert len(server.processes()) == 1

    @pytest.mark.parametrize(
        "word", [b"\0nonsense\n", b"\0", b"\0\n", b"\0quit", b"\0quit\r\n", b"\0" + b"x" * 300]
    )
    def test_an_unknown_word_for_the_server_ends_the_connection(
        self, serve: Serve, word: bytes
    ) -> None:
        server = serve()
        with socketserver.connect(server.address, BOUND_S) as conn:
            with contextlib.suppress(OSError):  # it may have ended the connection already
                conn.sendall(word)
                conn.shutdown(socket.SHUT_WR)
            assert read_to_end(conn) == b""
        assert server.processes() == []

    def test_the_request_of_a_web_page_runs_nothing(self, serve: Serve, tmp_path: Path) -> None:
        server = serve(":0", "--no-authentication")
        run_by_page = tmp_path / "run_by_page"
        path = f"(1)if(open({str(run_by_page)!r},'w'))else"
        with connect(server.address) as conn:
            conn.sendall(f"GET /{path} HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode())
            assert read_to_end(conn) == b""
        assert not run_by_page.exists()
        assert server.processes() == []

    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_a_line_that_begins_like_a_string_is_seen_whole_before_anything_starts(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, tls: bool
    ) -> None:
        """A method of a web page's own can be a quote."""
        started = []
        server = in_process.server
        monkeypatch.setattr(server, "start_process", lambda *a: started.append(a[1]))
        if tls:
            pem = socketserver.make_certificate()
            server.certificate, server.greets = socketserver.Certificate(pem), True
        for line in (
            b"' /'if(print(1))else HTTP/1.1\r\nHost: evil.test\r\n\r\n",
            b'" /"if(print(1))else HTTP/1.1\r\nHost: evil.test\r\n\r\n',
            b"'print(1)'\r\n",
            b"'a''print(1)'\n",
            b"'a'+'print(1)'\n",
            b"'''print(1)'''\n",
            b"'print(1)\\'\n",
            b"'print(1)\\\\' '\n",
            b"'print(1)\"\n",
            b"'print(1)' \n",
            b"'\n'\n",
            b"'print(1)'",
            b"'print(1)",
            b"'",
        ):
            assert not socketserver.is_string(line[: line.find(b"\n") + 1 or len(line)])
            if tls and b"\n" not in line:
                continue
            with greeted(in_process.address, tls) as conn:
                conn.sendall(line)
                if b"\n" not in line:
                    conn.shutdown(socket.SHUT_WR)
                assert read_to_end(conn) == b"", line
        assert started == []

    @pytest.mark.parametrize("line", [b"''", b'"\'"', b"'\\''", b"'\\\\'", b"'\\\\\\'\xe9'"])
    def test_one_string_is_one_however_it_is_quoted(self, line: bytes) -> None:
        assert socketserver.is_string(line + b"\n")
        assert not socketserver.is_string(line[:-1] + b"\n")

    def test_a_line_comes_in_pieces_and_what_follows_is_for_the_process(self, serve: Serve) -> None:
        server = serve(":0", "--no-authentication")
        code = "import sys; print(len(" + repr("x" * 300_000) + "), sys.stdin.read())"
        line = repr(code).encode() + b"\nand more"
        with connect(server.address) as conn:
            conn.sendall(line[:1])
            conn.sendall(line[1:100])
            with connect(server.address) as other:  # by then the server has seen the first one
                other.sendall(b"'print(1)'\n")
                assert read_to_end(other).split() == [b"1"]
            assert server.processes() == []
            conn.sendall(line[100:])
            conn.shutdown(socket.SHUT_WR)
            assert read_to_end(conn).split() == [b"300000", b"and", b"more"]

    def test_a_line_without_an_end_is_not_kept(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socketserver, "FIRST_BYTES", 200_000)
        with connect(in_process.address) as conn:
            with contextlib.suppress(ConnectionError):
                conn.sendall(b"'" + b"x" * 10_000_000)
            assert read_to_end(conn) == b""

    def test_nothing_but_a_string_in_quotes_gets_a_process(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = []
        start_process = in_process.server.start_process
        monkeypatch.setattr(
            in_process.server, "start_process", lambda *a: started.append(a) or start_process(*a)
        )
        for first in set(range(256)) - set(b"\0'\""):
            with connect(in_process.address) as conn:
                conn.sendall(bytes([first]) + b"'print(1)'\n")
                assert read_to_end(conn) == b""
        assert started == []
        for quote in "'", '"':
            with connect(in_process.address) as conn:
                conn.sendall(f"{quote}print(1){quote}\n".encode())
                assert read_to_end(conn).split() == [b"1"]
        assert len(started) == 2

    def test_a_fork_that_holds_the_connection_does_not_hide_the_end(
        self, serve: Serve, client: Connect
    ) -> None:
        gateway = client(serve())
        channel = gateway.remote_exec(
            "import os, time\n"
            "pid = os.fork()\n"
            "if not pid: time.sleep(100)\n"
            "channel.send(pid)\n"
            "channel.receive()"
        )
        pid = channel.receive(BOUND_S)
        os.kill(gateway._rinfo().pid, signal.SIGKILL)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        os.kill(pid, signal.SIGKILL)
        wait_reaped(pid)

    def test_what_they_started_ends_with_the_server(self, serve: Serve, client: Connect) -> None:
        server = serve()
        pid = ask(
            client(server),
            "import subprocess; channel.send(subprocess.Popen(['sleep', '100']).pid)",
        )
        server.stop()
        wait_reaped(pid)

    def test_they_outlive_a_killed_server_and_end_with_their_coordinator(
        self, serve: Serve, client: Connect, group: Group
    ) -> None:
        server = serve()
        gateway = client(server)
        server.stop(signal.SIGKILL)
        assert ask(gateway, GETPID) == gateway._rinfo().pid
        group.terminate(timeout=5)
        wait_reaped(gateway._rinfo().pid)

    def test_one_ends_with_its_coordinator(self, serve: Serve, servers: Servers) -> None:
        server = serve()
        code = (
            "import execnet, sys\n"
            f"gateway = execnet.makegateway('socket={server.address}')\n"
            "gateway.remote_exec('channel.receive()')\n"
            "print(gateway._rinfo().pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent.parent)},
        ) as coordinator:
            assert coordinator.stdout is not None
            pid = int(coordinator.stdout.readline())
            assert not is_reaped(pid)
            coordinator.kill()
        wait_reaped(pid)


def greeted(address: str, tls: bool) -> socket.socket:
    """Return a connection that can send its first line."""
    conn = connect(address)
    if not tls:
        return conn
    assert conn.makefile("rb", 0).readline() == b"execnet-auth-1 tls -\n"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(conn)


@pytest.fixture
def in_process(nothing_is_left: None) -> Iterator[InProcess]:
    server = InProcess()
    yield server
    server.stop()


class TestLimits:
    def test_one_that_says_nothing_is_let_go_in_time(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socketserver, "GREETING_S", 0.1)
        start = time.monotonic()
        with connect(in_process.address) as conn:
            assert conn.recv(1) == b""
        assert time.monotonic() - start < 5

    def test_one_that_sends_a_word_byte_by_byte_gets_no_more_time(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socketserver, "GREETING_S", 0.3)
        start = time.monotonic()
        with connect(in_process.address) as conn:
            conn.settimeout(0.05)
            answer = None
            for byte in b"\0" + b"x" * 198:
                with contextlib.suppress(ConnectionError):
                    conn.sendall(bytes([byte]))
                try:
                    answer = conn.recv(1)
                except TimeoutError:
                    continue
                except ConnectionError:
                    answer = b""
                break
        assert answer == b""
        assert time.monotonic() - start < 5

    def test_no_process_is_started_for_one_that_goes_without_a_word(
        self,
        in_process: InProcess,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(socketserver, "INTERPRETER", "/does/not/exist")
        with connect(in_process.address) as conn:
            conn.shutdown(socket.SHUT_WR)
            assert read_to_end(conn) == b""
        in_process.stop()
        assert capfd.readouterr().err == ""

    def test_a_process_that_stays_when_its_client_has_gone_is_killed(
        self, in_process: InProcess, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socketserver, "ENDS_WITHIN_S", 0.1)
        gateway = group.makegateway(f"socket={in_process.address}//authentication=none")
        pid = gateway._rinfo().pid
        stop(pid)
        group.terminate(timeout=0.1)
        wait_reaped(pid)

    def test_a_process_that_cannot_be_started_is_told_and_the_next_served(
        self,
        in_process: InProcess,
        monkeypatch: pytest.MonkeyPatch,
        group: Group,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(socketserver, "INTERPRETER", "/does/not/exist")
            with connect(in_process.address) as conn:
                conn.sendall(b"'1'\n")
                assert read_to_end(conn) == b""
        wait_until(lambda: "/does/not/exist" in capfd.readouterr().err)
        assert (
            ask(
                group.makegateway(f"socket={in_process.address}//authentication=none"),
                "channel.send(1)",
            )
            == 1
        )


class TestWherePipesAreNeeded:
    """As on Windows, where a socket can't be a process's stdin."""

    @pytest.fixture
    def gateway(
        self, in_process: InProcess, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> Gateway:
        monkeypatch.setattr(socketserver, "WINDOWS", True)
        return group.makegateway(f"socket={in_process.address}//authentication=none")

    def test_bytes_come_through_both_ways(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("channel.send(channel.receive())")
        data = os.urandom(3_000_000)
        channel.send(data)
        assert channel.receive(BOUND_S) == data

    def test_the_end_of_the_client_ends_the_process(self, gateway: Gateway, group: Group) -> None:
        pid = gateway._rinfo().pid
        group.terminate(timeout=5)
        wait_reaped(pid)

    def test_the_end_of_the_process_is_seen(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)

    def test_the_end_of_the_server_ends_the_process(
        self, gateway: Gateway, in_process: InProcess
    ) -> None:
        in_process.stop()
        assert is_reaped(gateway._rinfo().pid)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()

    def test_a_process_that_stays_is_killed(
        self, gateway: Gateway, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socketserver, "ENDS_WITHIN_S", 0.1)
        pid = gateway._rinfo().pid
        stop(pid)
        group.terminate(timeout=0.1)
        wait_reaped(pid)


def test_the_scripts_need_no_syntax_that_an_old_python_lacks() -> None:
    oldest = found()[0]
    if oldest.version[0] != 2:
        missing("Python 2.7")
    check = "import sys\nfor path in sys.argv[1:]: compile(open(path).read(), path, 'exec')"
    run([oldest.path, "-c", check, *map(str, SCRIPTS.glob("*.py"))]).check_returncode()
