"""The scripts around the socket server: ending it, running it in a loop, a shell, a service."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from interpreters import Interpreter, chosen, found
from processes import wait_reaped
from socketservers import NOBODY, SCRIPTS, OthersServer, Server, Servers, connect, read_to_end
from tools import BOUND_S, clean_environment, run, wait_until

from execnet import Group, WorkerDied
from execnet.script import socketserver


def script(
    name: str, *args: str, python: str = sys.executable, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return run([python, str(SCRIPTS / name), *args], stdin=stdin, timeout_s=2 * BOUND_S)


class TestQuitServer:
    @pytest.mark.parametrize("python", chosen(), ids=str)
    def test_it_ends_the_server_and_its_clients(
        self, python: Interpreter, servers: Servers, group: Group
    ) -> None:
        server = servers.start(python=python.path)
        gateway = group.makegateway(f"socket={server.address}")
        channel = gateway.remote_exec("channel.receive()")
        ended = script("quitserver.py", server.address, python=python.path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        with pytest.raises(ConnectionRefusedError):  # already
            connect(server.address)
        assert server.popen.wait(BOUND_S) == 0
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        wait_reaped(gateway._rinfo().pid)

    def test_a_server_at_a_path(self, servers: Servers, tmp_path: Path) -> None:
        server = servers.start(f"unix:{tmp_path}/socket")
        assert script("quitserver.py", server.address).returncode == 0
        assert not (tmp_path / "socket").exists()
        assert server.popen.wait(BOUND_S) == 0

    def test_a_server_that_is_not_there_is_named(self, servers: Servers) -> None:
        address = servers.start().address
        assert script("quitserver.py", address).returncode == 0
        again = script("quitserver.py", address)
        assert again.returncode == 1
        assert again.stderr.startswith(f"can't end the server at {address}: ")

    @pytest.mark.parametrize("address", ["", "host", "host:port"])
    def test_an_address_that_is_none_is_named(self, address: str) -> None:
        ended = script("quitserver.py", address)
        assert ended.returncode == 1
        assert f"can't end the server at {address}: " in ended.stderr

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n"])
    def test_another_kind_of_server_is_told_from_ours(self, answer: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:

            def serve() -> None:
                with other.accept()[0] as conn:
                    conn.recv(100)
                    conn.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            ended = script("quitserver.py", f"127.0.0.1:{other.getsockname()[1]}")
            thread.join()
        assert ended.returncode == 1
        assert "no socket server" in ended.stderr


class TestLoop:
    def free_address(self) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            return f"127.0.0.1:{free.getsockname()[1]}"

    @pytest.mark.parametrize("python", [found()[0], found()[-1]], ids=str)
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_another_server_comes_when_one_has_ended(
        self, python: Interpreter, signum: int, servers: Servers, capfd: pytest.CaptureFixture[str]
    ) -> None:
        address = self.free_address()
        loop = servers.popen("loop_socketserver.py", address, python=python.path)
        first = Server(loop)
        assert first.address == address
        [before] = first.processes()
        assert script("quitserver.py", address).returncode == 0
        second = Server(loop)  # the next one says so, too
        assert second.address == address
        [after] = second.processes()
        assert before != after
        assert second.stop(signum) == 0
        wait_reaped(before, after)
        assert "the socket server ended with status 0, another one" in capfd.readouterr().err

    @pytest.mark.parametrize("option", ["-h", "--help"])
    def test_help_is_shown_once(self, option: str) -> None:
        shown = script("loop_socketserver.py", option)
        assert shown.returncode == 0
        assert shown.stdout.count("WHOEVER CAN CONNECT CAN RUN CODE") == 1

    def test_a_wrong_argument_ends_it(self) -> None:
        ended = script("loop_socketserver.py", "--nonsense")
        assert ended.returncode == 2
        assert ended.stderr.count("--nonsense") == 1


class TestShell:
    @pytest.mark.parametrize("python", chosen(), ids=str)
    def test_lines_are_executed_there_and_their_output_comes_back(
        self, python: Interpreter, servers: Servers
    ) -> None:
        server = servers.start(python=python.path)
        lines = (
            "import sys\nsys.version_info[:2]\nfor i in 1, 2:\n  print(i * 111)\n\n1 / 0\n6 * 7\n"
        )
        shown = script("shell.py", server.address, python=python.path, stdin=lines)
        assert f"\n>>> >>> {python.version[:2]}\n" in "\n" + shown.stdout.partition("\n")[2]
        assert "111\n222\n" in shown.stdout
        assert "ZeroDivisionError" in shown.stdout
        assert "42\n" in shown.stdout
        assert str(servers.folder) in shown.stdout, "where it runs"
        assert (shown.returncode, shown.stderr) == (0, "")
        wait_until(lambda: server.processes() == [])

    def test_an_open_block_ends_with_the_input(self, servers: Servers) -> None:
        shown = script("shell.py", servers.start().address, stdin="if 1:\n  print('inner')\n")
        assert "inner\n" in shown.stdout
        assert shown.returncode == 0

    def test_it_ends_when_the_other_side_does(self, servers: Servers) -> None:
        server = servers.start()
        with subprocess.Popen(
            [sys.executable, str(SCRIPTS / "shell.py"), server.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as shell:
            assert shell.stdin is not None
            shell.stdin.write("raise SystemExit\n")
            shell.stdin.flush()  # and its end does not come
            assert shell.wait(BOUND_S) == 0

    def test_ctrl_c_ends_it(self, servers: Servers) -> None:
        server = servers.start()
        with subprocess.Popen(
            [sys.executable, str(SCRIPTS / "shell.py"), server.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as shell:
            assert shell.stdout is not None
            shell.stdout.readline()
            shell.send_signal(signal.SIGINT)
            assert shell.wait(BOUND_S) == 130
            assert shell.stderr is not None
            assert shell.stderr.read() == ""
        wait_until(lambda: server.processes() == [])

    def test_a_server_that_is_not_there_is_named(self) -> None:
        ended = script("shell.py", "127.0.0.1:1")
        assert ended.returncode == 1
        assert ended.stderr.startswith("can't connect to 127.0.0.1:1: ")


class TestProofs:
    def test_they_take_the_key(self, servers: Servers, tmp_path: Path) -> None:
        path = tmp_path / "key"
        socketserver.make_key(str(path))
        server = servers.start(":0", "--key", str(path))
        for script in "quitserver.py", "shell.py":
            refused = run([sys.executable, str(SCRIPTS / script), server.address])
            assert refused.returncode == 1
            assert "it asks for a key" in refused.stderr
        command = [sys.executable, str(SCRIPTS / "shell.py"), server.address, "--key", str(path)]
        shown = run(command, stdin="print(6 * 7)\n")
        assert "42" in shown.stdout
        command[1] = str(SCRIPTS / "quitserver.py")
        assert run(command).returncode == 0
        assert server.popen.wait(BOUND_S) == 0

    @pytest.mark.parametrize("python", [found()[0].path, sys.executable], ids=["oldest", "this"])
    def test_with_a_default_key_they_use_and_end_a_server_that_asks_for_none(
        self, servers: Servers, python: str
    ) -> None:
        socketserver.own_key()
        server = servers.start(":0", "--no-authentication")
        shell = [python, str(SCRIPTS / "shell.py"), server.address]
        refused = run(shell, stdin="secret\n")
        assert refused.returncode == 1
        assert "it keeps silent: --no-authentication is for" in refused.stderr
        shown = run([*shell, "--no-authentication"], stdin="print(6 * 7)\n")
        assert "42" in shown.stdout
        quits = [python, str(SCRIPTS / "quitserver.py"), server.address]
        assert run([*quits, "--key", socketserver.default_key()]).returncode == 1, "it is another"
        assert run(quits).returncode == 0
        assert server.popen.wait(BOUND_S) == 0

    def test_without_a_key_the_shell_warns(self, servers: Servers) -> None:
        server = servers.start(":0", "--no-authentication")
        command = [sys.executable, str(SCRIPTS / "shell.py"), server.address]
        shown = run(command, stdin="print(6 * 7)\n")
        assert "42" in shown.stdout
        assert shown.stderr == "it proves nothing, and whoever can connect there can run code\n"

    def test_what_is_typed_goes_to_no_silent_server_of_somebody_else(self) -> None:
        key = socketserver.own_key()
        assert key
        with socket.create_server(("127.0.0.1", 0)) as squatter:
            command = [sys.executable, str(SCRIPTS / "shell.py")]
            command.append(f"127.0.0.1:{squatter.getsockname()[1]}")
            assert run(command, stdin="secret\n").returncode == 1
            with squatter.accept()[0] as conn:
                assert read_to_end(conn) == b""

    @pytest.mark.parametrize("python", [found()[0].path, sys.executable], ids=["oldest", "this"])
    def test_at_a_path_another_users_process_gets_nothing(
        self, others: OthersServer, python: str
    ) -> None:
        for script in "shell.py", "quitserver.py":
            command = [python, str(SCRIPTS / script), others.address]
            refused = run(command, stdin="secret\n")
            assert refused.returncode == 1
            assert f"user {NOBODY} listens there, not this one" in refused.stderr
            assert others.heard() == b""
        run([*command, "--no-authentication"])
        assert others.heard() == b"\0quit\n"

    def test_they_know_a_server_by_its_fingerprint(self, servers: Servers) -> None:
        server = servers.start(":0", "--tls", "--no-authentication")
        assert server.popen.stdout is not None
        words = server.popen.stdout.readline() + server.popen.stdout.readline()
        fingerprint = words.partition("fingerprint=")[2].split()[0]
        command = [sys.executable, str(SCRIPTS / "shell.py"), server.address]
        for options, why in (
            ([], f"it proves nothing: say --fingerprint {fingerprint} if"),
            (["--fingerprint", "0" * 64], "its certificate has another fingerprint"),
        ):
            assert why in run([*command, *options], stdin="secret\n").stderr
        options = ["--fingerprint", fingerprint]
        assert "42" in run([*command, *options], stdin="print(6 * 7)\n").stdout
        command[1] = str(SCRIPTS / "quitserver.py")
        assert run([*command, *options]).returncode == 0
        assert server.popen.wait(BOUND_S) == 0

    def test_no_proof_and_a_key_is_refused(self) -> None:
        for script in "shell.py", "quitserver.py":
            command = [sys.executable, str(SCRIPTS / script), "--no-authentication", "--key", "x"]
            assert "asks for no proof" in run(command).stderr


class TestService:
    def test_without_pywin32_it_says_so(self) -> None:
        ended = script("socketserverservice.py", "install")
        assert ended.returncode == 1
        assert "This needs Windows and pywin32" in ended.stderr

    def test_with_a_stand_in_for_pywin32_it_serves_until_it_is_stopped(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "servicemanager.py").write_text(
            "import sys\n"
            "def LogInfoMsg(text):\n"
            "    sys.stdout.write(text + chr(10))\n"
            "    sys.stdout.flush()\n"
        )
        (tmp_path / "win32service.py").write_text("SERVICE_STOP_PENDING = 3\n")
        (tmp_path / "win32serviceutil.py").write_text(
            "import sys, threading\n"
            "class ServiceFramework(object):\n"
            "    def __init__(self, args): pass\n"
            "    def ReportServiceStatus(self, status): print(status)\n"
            "def HandleCommandLine(cls):\n"
            "    service = cls(sys.argv)\n"
            "    def stop():\n"
            "        sys.stdin.readline()\n"
            "        service.SvcStop()\n"
            "    threading.Thread(target=stop).start()\n"
            "    service.SvcDoRun()\n"
        )
        service = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "socketserverservice.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(PYTHONPATH=str(tmp_path), EXECNET_SOCKETSERVER=":0"),
        )
        with service:
            assert service.stdout is not None
            name, _, address = service.stdout.readline().partition(": ")
            assert name == "execnet socket server"
            host, port = address.strip("()\n").split(", ")
            connect(f"{host.strip(chr(39))}:{port}").close()
            output, _ = service.communicate("stop\n", timeout=BOUND_S)
            assert output == "3\n"
            assert service.returncode == 0
