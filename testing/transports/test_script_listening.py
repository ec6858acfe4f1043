"""Where the socket server listens, and for whom."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest
from socketservers import SCRIPTS, Serve, Servers, connect, has_ipv6
from tools import MakeGateway, run
from workers import GETPID, ask

from execnet.script import socketserver


class TestParseAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("host:1", ("host", 1)),
            (":8888", ("127.0.0.1", 8888)),
            ("8888", ("127.0.0.1", 8888)),
            ("0.0.0.0:0", ("0.0.0.0", 0)),
            ("[::1]:65535", ("::1", 65535)),
            ("[::]:8888", ("::", 8888)),
            ("unix:/a/b", "/a/b"),
            ("unix:c:1", "c:1"),
        ],
    )
    def test_it_understands(self, text: str, address: socketserver.Address) -> None:
        assert socketserver.parse_address(text) == address
        assert socketserver.parse_address(socketserver.format_address(address)) == address

    @pytest.mark.parametrize(
        "text", ["", "host", "host:", "host:x", "host:65536", "host:-1", "::1:8888", "unix:"]
    )
    def test_it_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not host:port"):
            socketserver.parse_address(text)


class TestListening:
    def test_port_0_prints_the_real_port(self, serve: Serve) -> None:
        host, port = socketserver.parse_address(serve(":0").address)
        assert host == "127.0.0.1"
        assert int(port) > 0

    def test_without_a_host_only_the_loopback_interface_is_served(self, serve: Serve) -> None:
        port = serve(":0").address.rpartition(":")[2]
        with pytest.raises(ConnectionRefusedError):
            connect(f"127.0.0.2:{port}")

    def test_all_interfaces_are_served_when_asked(self, serve: Serve) -> None:
        server = serve("0.0.0.0:0", "--no-authentication")
        assert server.address.startswith("0.0.0.0:")
        connect(server.address.replace("0.0.0.0", "127.0.0.2")).close()

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback interface here")
    def test_ipv6(self, serve: Serve, makegateway: MakeGateway) -> None:
        server = serve("[::1]:0")
        assert server.address.startswith("[::1]:")
        gateway = makegateway(f"socket={server.address}")
        assert ask(gateway, GETPID) == gateway._rinfo().pid
        assert gateway.remoteaddress == server.address

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback interface here")
    def test_all_of_ipv6_includes_ipv4(self, serve: Serve) -> None:
        port = serve("[::]:0", "--no-authentication").address.rpartition(":")[2]
        for host in "[::1]", "127.0.0.1":
            connect(f"{host}:{port}").close()

    def test_a_port_that_is_taken_is_named(self, serve: Serve, servers: Servers) -> None:
        address = serve().address
        refused = run([sys.executable, str(servers.folder / "socketserver.py"), address])
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"can't listen at {address}: ")

    def test_an_address_that_is_none_is_named(self) -> None:
        refused = run([sys.executable, str(SCRIPTS / "socketserver.py"), "what"])
        assert refused.returncode == 1
        assert "can't listen at what: 'what' is not host:port" in refused.stderr


class TestListeningAtAPath:
    def test_the_path_is_for_its_owner_only_and_goes_at_the_end(
        self, serve: Serve, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        path = tmp_path / "socket"
        server = serve(f"unix:{path}")
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(makegateway(f"socket={server.address}"), "channel.send(1)") == 1
        assert server.stop() == 0
        assert not path.exists()

    def test_the_permissions_are_narrow_before_anybody_can_connect(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "socket"
        modes: list[int] = []

        class Spy(socket.socket):
            def listen(self, *args: int) -> None:
                modes.append(stat.S_IMODE(path.stat().st_mode))
                super().listen(*args)

        monkeypatch.setattr(socketserver.socket, "socket", Spy)
        before = os.umask(0)
        try:
            socketserver.listen(str(path)).close()
            assert os.umask(0) == 0, "it was put back"
        finally:
            os.umask(before)
        assert modes == [0o600]

    def test_a_path_that_a_killed_server_left_is_taken(self, serve: Serve, tmp_path: Path) -> None:
        address = f"unix:{tmp_path / 'socket'}"
        serve(address).stop(signal.SIGKILL)
        assert (tmp_path / "socket").exists()
        connect(serve(address).address).close()

    def test_the_path_of_a_running_server_is_refused(self, serve: Serve, tmp_path: Path) -> None:
        address = f"unix:{tmp_path / 'socket'}"
        serve(address)
        refused = run([sys.executable, str(SCRIPTS / "socketserver.py"), address])
        assert refused.returncode == 1
        assert "can't listen at" in refused.stderr
        connect(address).close()

    def test_a_file_of_another_kind_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        refused = run([sys.executable, str(SCRIPTS / "socketserver.py"), f"unix:{tmp_path}/file"])
        assert refused.returncode == 1
        assert (tmp_path / "file").read_text() == "mine"

    def test_the_path_of_a_later_server_is_not_removed(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        first = serve(f"unix:{path}")
        path.rename(tmp_path / "moved")
        second = serve(f"unix:{path}")
        assert first.stop() == 0
        connect(second.address).close()
