"""What a socket server and its client prove to each other before anything for a worker is sent."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from interpreters import Interpreter, chosen
from socketservers import NOBODY, SCRIPTS, OthersServer, Servers, connect, read_to_end
from tools import BOUND_S, run, some_of, wait_until
from workers import ask

import execnet
from execnet import AuthenticationError, BootstrapError, Group, _folders, gateway_socket
from execnet._transports import proof
from execnet._transports.keys import Wish
from execnet._transports.proof import SocketTalk, read_line
from execnet.script import socketserver
from execnet.xspec import XSpec

ONE = "channel.send(1)"


def new_key(path: Path) -> Path:
    socketserver.make_key(str(path))
    return path


@contextmanager
def relay_to(address: str, tap: Callable[[bytes], bytes] = lambda data: data) -> Iterator[str]:
    """Forward a port to a server, as ssh -L does; ``tap`` sees what the server says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(near: socket.socket, far: socket.socket, tap: Callable[[bytes], bytes]) -> None:
            try:
                while data := near.recv(65536):
                    far.sendall(tap(data))
                far.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        def serve() -> None:
            near = listener.accept()[0]
            with near, connect(address) as far:
                far.settimeout(None)
                back = threading.Thread(target=pump, args=(far, near, tap))
                back.start()
                pump(near, far, lambda data: data)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(BOUND_S)


class TestKeys:
    def test_a_new_one_is_for_its_owner_only_and_replaces_none(self, tmp_path: Path) -> None:
        path = new_key(tmp_path / "folder" / "key")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        before = path.read_bytes()
        with pytest.raises(FileExistsError):
            new_key(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["key"]

    @pytest.mark.parametrize("python", chosen(), ids=str)
    def test_the_server_writes_one_on_every_python(
        self, python: Interpreter, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "key")
        command = [python.path, str(SCRIPTS / "socketserver.py"), "--new-key", path]
        assert run(command).returncode == 0
        assert len(socketserver.read_key(path)) == 32
        assert run(command).returncode == 1, "it is there"

    @pytest.mark.parametrize("text", ["", "secret", "1f" * 31, "1f" * 33, "xy" * 32])
    def test_what_could_be_guessed_is_none(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "key"
        path.touch(0o600)
        path.write_text(text)
        with pytest.raises(ValueError, match="32 random bytes in hex"):
            socketserver.read_key(str(path))

    def test_one_that_others_can_read_is_refused_by_both_sides(
        self, servers: Servers, group: Group, tmp_path: Path
    ) -> None:
        server = servers.start()
        path = new_key(tmp_path / "key")
        path.chmod(0o640)
        with pytest.raises(AuthenticationError, match=r"others may read .* chmod 600"):
            group.makegateway(f"socket={server.address}//key={path}")
        refused = servers.popen("socketserver.py", ":0", "--key", str(path))
        assert refused.wait(BOUND_S) == 1

    def test_the_folder_is_the_same_on_both_sides(self) -> None:
        assert _folders.key_file() == socketserver.default_key()


class TestDefaults:
    def test_a_client_of_the_same_user_connects_without_further_ado(
        self, servers: Servers, group: Group
    ) -> None:
        server = servers.start()
        assert ask(group.makegateway(f"socket={server.address}"), ONE) == 1

    def test_anybody_else_is_told_that_a_key_is_needed(
        self, servers: Servers, group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        server = servers.start()
        monkeypatch.setenv("EXECNET_HOME", str(tmp_path / "other"))
        with pytest.raises(AuthenticationError, match="it asks for a key"):
            group.makegateway(f"socket={server.address}")
        new_key(tmp_path / "other" / "key")
        with pytest.raises(AuthenticationError, match="the client has another key"):
            group.makegateway(f"socket={server.address}")
        assert server.processes() == []

    def test_beyond_this_machine_key_and_tls_are_needed(self, servers: Servers) -> None:
        refused = run([sys.executable, str(SCRIPTS / "socketserver.py"), "0.0.0.0:0"])
        assert refused.returncode == 1
        assert "others can connect there: --tls encrypts" in refused.stderr
        servers.start("0.0.0.0:0", "--tls")

    def test_a_key_of_its_own_can_be_named(
        self, servers: Servers, group: Group, tmp_path: Path
    ) -> None:
        path = new_key(tmp_path / "key")
        server = servers.start(":0", "--key", str(path))
        assert ask(group.makegateway(f"socket={server.address}//key={path}"), ONE) == 1
        assert not os.path.exists(_folders.home())

    def test_programs_of_old_go_on(self, group: Group) -> None:
        channel = group.makegateway("popen").remote_exec(socketserver)
        channel.send(("127.0.0.1", 0))
        host, port = channel.receive(BOUND_S)
        assert ask(group.makegateway(f"socket={host}:{port}"), ONE) == 1
        other = gateway_socket.start_via(group[0])
        assert ask(group.makegateway("socket={}:{}".format(*other)), ONE) == 1

    def test_they_go_on_where_no_key_can_be_written(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXECNET_HOME", "/dev/null/home")
        host, port = gateway_socket.start_via(group.makegateway("popen"))
        assert ask(group.makegateway(f"socket={host}:{port}"), ONE) == 1


class TestProofs:
    """Attacks on what both sides say."""

    @pytest.fixture
    def address(self, servers: Servers) -> str:
        return servers.start().address

    def test_a_squatter_gets_nothing(self, group: Group, tmp_path: Path) -> None:
        key = new_key(tmp_path / "key")
        heard = []
        with socket.create_server(("127.0.0.1", 0)) as squatter:

            def serve() -> None:
                for greeting in b"", b"execnet-auth-1 plain " + b"0" * 64 + b"\n":
                    with squatter.accept()[0] as conn:
                        conn.settimeout(BOUND_S)
                        conn.sendall(greeting)
                        data = conn.recv(1000)
                        heard.append(data)
                        if greeting:
                            # Back to the client: its own proof, as that of the server.
                            conn.sendall(b"execnet-auth-1 ok " + data.split()[-1] + b"\n")
                            heard.append(conn.recv(1000))

            thread = threading.Thread(target=serve)
            thread.start()
            spec = f"socket=127.0.0.1:{squatter.getsockname()[1]}//key={key}//env:SECRET=1"
            with pytest.raises(AuthenticationError, match="keeps silent"):
                group.makegateway(f"{spec}//connect_timeout=0.5")
            with pytest.raises(AuthenticationError, match="has not proved that it has the key"):
                group.makegateway(spec)
            thread.join()
        assert heard[0] == heard[2] == b""
        assert heard[1].startswith(b"execnet-auth-1 ")
        assert heard[1].count(b"\n") == 1

    def test_a_relay_to_another_server_of_the_user_is_seen(
        self, group: Group, address: str
    ) -> None:
        refused = pytest.raises(AuthenticationError, match=f"its spec needs bound={address}")
        with relay_to(address) as forwarded, refused:
            group.makegateway(f"socket={forwarded}")

    def test_a_forwarded_port_is_named(self, group: Group, address: str) -> None:
        with relay_to(address) as forwarded:
            gateway = group.makegateway(f"socket={forwarded}//bound={address}")
            assert ask(gateway, ONE) == 1
            group.terminate(timeout=5)

    def test_a_proof_can_not_be_sent_again(self, address: str) -> None:
        key = socketserver.own_key()
        with connect(address) as conn:
            prover = socketserver.Prover(key)
            prover.greeted(conn.makefile("rb").readline().strip())
            line = prover.answer(address.encode()) + b"\n"
            conn.sendall(line)
            assert conn.recv(20).startswith(b"execnet-auth-1 ok")
        with connect(address) as conn:
            conn.sendall(line)
            assert read_to_end(conn).endswith(b"error the client has another key\n")

    def test_the_proof_of_a_server_is_none_of_a_client(self, address: str) -> None:
        with connect(address) as first, connect(address) as second:
            prover = socketserver.Prover(socketserver.own_key())
            prover.greeted(first.makefile("rb").readline().strip())
            second.makefile("rb").readline()
            first.sendall(prover.answer(address.encode()) + b"\n")
            proved = first.recv(1000).split()[-1]
            second.sendall(b" ".join([b"execnet-auth-1", b"0" * 64, address.encode(), proved]))
            second.sendall(b"\n")
            assert b"another key" in read_to_end(second)

    @pytest.mark.parametrize(
        "line",
        [
            b"execnet-auth-2 x y z\n",
            b"'print(1)'\n",
            b"GET / HTTP/1.1\r\n",
            b"\0quit\n",
            b"execnet-auth-1 " + b"0" * 64 + b" \xff \x1b\n",
            b"\n",
            b"x" * 700,
        ],
    )
    def test_what_is_no_proof_gets_a_sentence_and_no_process(
        self, address: str, line: bytes
    ) -> None:
        with connect(address) as conn:
            conn.sendall(line)
            assert b"\nexecnet-auth-1 error " in read_to_end(conn)

    def test_a_server_of_another_version_is_named(self, group: Group) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            spec = f"socket=127.0.0.1:{other.getsockname()[1]}"

            def serve() -> None:
                with other.accept()[0] as conn:
                    conn.sendall(b"execnet-auth-7 \x1b[31m x\n")
                    conn.recv(100)

            thread = threading.Thread(target=serve)
            thread.start()
            match = "speaks execnet-auth-7, and this is a client for execnet-auth-1"
            with pytest.raises(AuthenticationError, match=match):
                group.makegateway(spec)
            thread.join()


class TestTheOtherEndOfAPath:
    def test_that_of_another_user_is_refused_unless_it_is_trusted(
        self, servers: Servers, group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        server = servers.start(f"unix:{tmp_path}/socket")
        monkeypatch.setattr(gateway_socket, "owner_of", lambda sock, path: 12345)
        with pytest.raises(AuthenticationError, match="user 12345 listens there"):
            group.makegateway(f"socket={server.address}//env:SECRET=1")
        assert server.processes() == []
        spec = f"socket={server.address}//authentication=none"
        assert ask(group.makegateway(spec), ONE) == 1

    def test_a_process_of_another_user_gets_nothing_and_never_a_variable(
        self, others: OthersServer, group: Group
    ) -> None:
        group.makegateway("popen//id=between")
        for options in "env:SECRET=1", "", "authentication=none//env:SECRET=1":
            spec = "//".join(filter(None, [f"socket={others.address}", options]))
            with pytest.raises(AuthenticationError, match=f"user {NOBODY} listens there, not this"):
                group.makegateway(spec)
            assert others.heard() == b""
            with pytest.raises(BootstrapError, match=f"user {NOBODY} listens there, not this"):
                group.makegateway(f"{spec}//via=between")
            assert others.heard() == b""
        with pytest.raises(BootstrapError):
            group.makegateway(f"socket={others.address}//authentication=none")
        assert others.heard().startswith(b"'")

    def test_who_it_is_tells_the_system(self, servers: Servers, tmp_path: Path) -> None:
        server = servers.start(f"unix:{tmp_path}/socket")
        with connect(server.address) as conn:
            assert socketserver.owner_of(conn, f"{tmp_path}/socket") == os.geteuid()

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only for root")
    def test_where_the_system_does_not_say_it_is_who_can_have_made_the_socket(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(socket, "SO_PEERCRED")
        monkeypatch.setattr(socketserver, "COMMON_MACHINES", ())
        (tmp_path / "socket").touch()
        os.chown(tmp_path / "socket", NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as conn:
            assert socketserver.owner_of(conn, f"{tmp_path}/socket") == 0
            tmp_path.chmod(0o1777)  # as /tmp
            assert socketserver.owner_of(conn, f"{tmp_path}/socket") == NOBODY


def test_what_comes_with_the_last_line_of_a_proof_is_left_for_whoever_reads_next() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"first\nsecond\nand more")
        talk = SocketTalk(near)
        lines = [read_line(talk, time.monotonic() + BOUND_S) for _ in range(2)]
        assert lines == [b"first", b"second"]
        assert near.recv(100) == b"and more"


def test_a_server_that_stops_in_its_first_line_is_not_taken_for_one_that_keeps_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "SILENT_S", 0.01)
    wish = Wish(XSpec("socket=host:1"), bytes(32))
    wish.key, wish.is_needed = None, False
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"execnet-auth-1 ")
        with pytest.raises(AuthenticationError, match="does not go on with its proof in time"):
            proof.prove(SocketTalk(near), wish, "server", time.monotonic() + 0.1)


class TestBounds:
    def serves_at_once(self, address: str, group: Group) -> None:
        """Fail unless a client with the key is let in within a second, and then has a worker.

        The best of some attempts counts: the machine may do other things just now.
        """
        took = []
        while min(took, default=1) >= 1 and len(took) < 20:
            start = time.monotonic()
            socketserver.connect(address, BOUND_S).close()
            took.append(time.monotonic() - start)
        assert min(took) < 1, took
        gateway = group.makegateway(f"socket={address}")
        assert ask(gateway, ONE) == 1
        gateway.exit()

    def test_those_that_are_many_from_one_address_turn_away_nobody_from_another(
        self, servers: Servers
    ) -> None:
        server = servers.start()
        host, port = socketserver.parse_address(server.address)
        other = "127.0.0.2", 0
        with ExitStack() as stack:
            try:
                first = socket.create_connection((host, port), BOUND_S, other)
            except OSError:
                pytest.skip("this machine has one loopback address")
            stack.enter_context(first)
            prover = socketserver.Prover(socketserver.own_key())
            prover.greeted(first.makefile("rb", 0).readline().strip())
            for _ in range(1000):
                stack.enter_context(connect(server.address)).makefile("rb", 0).read(1)
            first.sendall(prover.answer(server.address.encode()) + b"\n")
            prover.proved(first.makefile("rb", 0).readline().strip())

    def test_thousands_that_say_nothing_keep_nobody_out(
        self, servers: Servers, group: Group
    ) -> None:
        server = servers.start()
        with ExitStack() as stack:
            for _ in range(some_of(5000, 0.12)):
                stack.enter_context(connect(server.address))
            self.serves_at_once(server.address, group)
            tasks = len(os.listdir(f"/proc/{server.popen.pid}/task"))
            assert tasks == 1, "no thread for anybody"
            descriptors = len(os.listdir(f"/proc/{server.popen.pid}/fd"))
            assert descriptors < 64 + 20
        for _ in range(some_of(20_000, 0.1)):
            connect(server.address).close()
        self.serves_at_once(server.address, group)

    def test_few_descriptors_are_enough(
        self, servers: Servers, group: Group, tmp_path: Path
    ) -> None:
        limited = tmp_path / "limited"
        limited.write_text(f'#!/bin/sh\nulimit -n 40\nexec {sys.executable} "$@"\n')
        limited.chmod(0o700)
        server = servers.start(python=str(limited))
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(connect(server.address))
            self.serves_at_once(server.address, group)

    def test_the_deadline_is_for_all_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socketserver, "PROVES_WITHIN_S", 0.3)
        listener = socketserver.listen(("127.0.0.1", 0))
        server = socketserver.Server(listener, key=bytes(32))
        thread = threading.Thread(target=server.run)
        thread.start()
        start = time.monotonic()
        with connect(socketserver.format_address(server.address)) as conn:
            conn.settimeout(0.02)
            while time.monotonic() - start < BOUND_S:
                try:
                    conn.sendall(b"x")
                    if not conn.recv(1000):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        assert time.monotonic() - start < 5
        server.stop()
        thread.join()


class TestSpecs:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ("key", "key= needs a value"),
            ("authentication=maybe", "neither none nor required"),
            ("authentication=none//key=x", "asks for no proof"),
            ("fingerprint=AB", "not a SHA-256"),
            ("bound=here", "is not host:port"),
            ("bound=unix:/x", "not forwarded"),
            ("installvia=x//key=y", "a key of its own"),
        ],
    )
    def test_what_can_not_be_meant_is_refused(self, group: Group, options: str, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            group.makegateway(f"socket=host:1//{options}")

    def test_a_path_has_no_key(self, group: Group) -> None:
        with pytest.raises(ValueError, match="known by its owner"):
            group.makegateway("socket=unix:/x//key=y")

    def test_other_types_have_these_keys_for_themselves(self, group: Group) -> None:
        group.makegateway("popen//key=anything//authentication=mine")


def test_a_hostile_worker_does_not_say_where_to_connect_to(group: Group) -> None:
    """The source and the variables would go there."""

    class Hostile:
        id, spec, remoteaddress = "bad", execnet.XSpec("popen"), None

        def has_old_python(self) -> bool:
            return False

        def execute_source(self, *args: object) -> Hostile:
            return self

        def send(self, item: object) -> None: ...

        def receive(self, timeout: float) -> tuple[str, int]:
            return "203.0.113.1", 4711

        def waitclose(self, timeout: float) -> None: ...

    assert gateway_socket._install(Hostile(), None, {}, 1) == ("127.0.0.1", 4711)


def test_what_somebody_else_says_does_not_reach_the_terminal(group: Group) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            with other.accept()[0] as conn:
                conn.sendall(b"\x1b]0;title\x07\n")
                conn.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AuthenticationError) as caught:
            group.makegateway(f"socket=127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert "\x1b" not in str(caught.value)
    assert "?]0;title?" in str(caught.value)


def test_via_another_gateway_both_sides_prove_it_too(servers: Servers, group: Group) -> None:
    server = servers.start()
    group.makegateway("popen//id=between")
    assert ask(group.makegateway(f"socket={server.address}//via=between"), ONE) == 1
    wait_until(lambda: len(server.processes()) == 1)
    with pytest.raises(AuthenticationError, match="bound="):
        group.makegateway(f"socket={server.address}//via=between//bound=127.0.0.1:1")


def test_the_command_of_a_server_tells_where_the_key_is(servers: Servers) -> None:
    command = [sys.executable, str(SCRIPTS / "socketserver.py"), ":0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert f"key in {_folders.key_file()}".encode() in server.stdout.readline()
        server.terminate()
