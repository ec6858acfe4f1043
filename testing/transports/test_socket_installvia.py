"""Socket servers that gateways start: ``socket//installvia=ID`` and ``start_via``."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from processes import wait_reaped
from socketservers import connect, has_ipv6, read_to_end
from tools import BOUND_S, MakeGateway, wait_until
from workers import GETPID, ask

import execnet
from execnet import Gateway, Group, gateway_socket
from execnet.gateway_io import BootstrapError
from execnet.gateway_socket import start_via
from execnet.script import socketserver


class TestInstallVia:
    @pytest.fixture
    def carrier(self, makegateway: MakeGateway) -> Gateway:
        return makegateway("popen//id=carrier")

    def test_it_runs_on_the_machine_of_the_other_gateway(
        self, carrier: Gateway, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway("socket//installvia=carrier")
        assert ask(gateway, "import os; channel.send(os.getppid())") == carrier._rinfo().pid
        assert str(gateway.remoteaddress).startswith("127.0.0.1:")

    def test_the_address_may_be_given(self, carrier: Gateway, makegateway: MakeGateway) -> None:
        gateway = makegateway("socket=127.0.0.3:0//installvia=carrier")
        assert str(gateway.remoteaddress).startswith("127.0.0.3:")

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback interface here")
    def test_the_address_may_be_of_ipv6(self, carrier: Gateway, makegateway: MakeGateway) -> None:
        gateway = makegateway("socket=[::1]:0//installvia=carrier")
        assert str(gateway.remoteaddress).startswith("[::1]:")

    def test_nobody_else_can_connect(self, carrier: Gateway, makegateway: MakeGateway) -> None:
        address = str(makegateway("socket//installvia=carrier").remoteaddress)
        wait_until(lambda: refuses(address))

    def test_without_the_key_nobody_gets_in(self, carrier: Gateway, tmp_path: Path) -> None:
        options = {"clients": 1, "key": "1f" * 32, "listen_s": BOUND_S}
        host, port = gateway_socket._install(carrier, None, options, BOUND_S)
        for greeting in b"'channel'\n", b"\0quit\n", b"execnet-auth-1 x y z\n":
            with connect(f"{host}:{port}") as conn:
                assert conn.recv(100).startswith(b"execnet-auth-1 plain ")
                conn.sendall(greeting)
                assert read_to_end(conn).startswith(b"execnet-auth-1 error this server lets in")
        (tmp_path / "key").write_text("1f" * 32)
        (tmp_path / "key").chmod(0o600)
        with socketserver.connect(f"{host}:{port}", BOUND_S, str(tmp_path / "key")) as conn:
            conn.sendall(b"'import os; os.write(1, b\"in\")'\n")
            assert conn.recv(2) == b"in"

    def test_a_server_that_nobody_comes_to_stops_to_listen(self, carrier: Gateway) -> None:
        options = {"clients": 1, "key": "1f" * 32, "listen_s": 0.1}
        host, port = gateway_socket._install(carrier, None, options, BOUND_S)
        wait_until(lambda: refuses(f"{host}:{port}"))

    def test_several_come_through_one_gateway(self, carrier: Gateway, group: Group) -> None:
        gateways = group.makegateways(["socket//installvia=carrier"] * 3)
        assert len({ask(gateway, GETPID) for gateway in gateways}) == 3

    def test_the_carrier_goes_on_working(self, group: Group) -> None:
        carrier = group.makegateway("popen//execmodel=main_thread_only")
        gateway = group.makegateway(f"socket//installvia={carrier.id}")
        assert ask(carrier, GETPID) == carrier._rinfo().pid
        assert ask(gateway, GETPID) == gateway._rinfo().pid

    @pytest.mark.parametrize("model", ["gevent", "eventlet"])
    def test_the_carrier_may_run_greenlets(self, group: Group, model: str) -> None:
        pytest.importorskip(model, exc_type=ImportError)
        carrier = group.makegateway(f"popen//execmodel={model}")
        gateway = group.makegateway(f"socket//installvia={carrier.id}//execmodel=thread")
        assert ask(gateway, GETPID) == gateway._rinfo().pid
        assert ask(carrier, GETPID) == carrier._rinfo().pid

    def test_it_ends_with_its_carrier(self, carrier: Gateway, makegateway: MakeGateway) -> None:
        gateway = makegateway("socket//installvia=carrier")
        carrier.exit()
        carrier.join(BOUND_S)
        wait_reaped(carrier._rinfo().pid, gateway._rinfo().pid)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()

    def test_a_chain_ends_in_time(self, group: Group) -> None:
        group.makegateway("popen//id=a")
        group.makegateway("socket//id=b//installvia=a")
        group.makegateway("socket//id=c//installvia=b")
        pids = [gateway._rinfo().pid for gateway in group]
        start = time.monotonic()
        group.terminate(timeout=5)
        assert time.monotonic() - start < 4
        wait_reaped(*pids)

    def test_an_unknown_gateway_is_named(self, group: Group) -> None:
        with pytest.raises(ValueError, match=r"installvia=nobody: .* no such gateway"):
            group.makegateway("socket//installvia=nobody")

    def test_a_path_can_not_be_installed(self, carrier: Gateway, group: Group) -> None:
        with pytest.raises(ValueError, match="listens at host:port"):
            group.makegateway("socket=unix:/tmp/x//installvia=carrier")

    def test_an_address_that_the_machine_does_not_have_is_named(
        self, carrier: Gateway, group: Group
    ) -> None:
        with pytest.raises(BootstrapError, match=r"carrier can't serve at 192\.0\.2\.1:0"):
            group.makegateway("socket=192.0.2.1:0//installvia=carrier")
        assert len(group) == 1


def refuses(address: str) -> bool:
    """Whether nobody listens at an address."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


class TestStartVia:
    def test_it_serves_until_its_gateway_ends(self, makegateway: MakeGateway, group: Group) -> None:
        carrier = makegateway()
        host, port = start_via(carrier)
        assert host == "127.0.0.1"
        gateways = group.makegateways([f"socket={host}:{port}"] * 2)
        pids = [ask(gateway, GETPID) for gateway in gateways]
        carrier.exit()
        carrier.join(BOUND_S)
        wait_until(lambda: refuses(f"{host}:{port}"))
        wait_reaped(*pids)

    def test_the_address_may_be_given(self, makegateway: MakeGateway) -> None:
        assert start_via(makegateway(), ("127.0.0.2", 0))[0] == "127.0.0.2"

    def test_all_interfaces_are_reached_by_the_machine_s_address(
        self, makegateway: MakeGateway
    ) -> None:
        host, port = start_via(makegateway(), ("0.0.0.0", 0))
        assert host == "127.0.0.1"
        connect(f"127.0.0.2:{port}").close()

    def test_it_says_why_it_cannot_listen(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        error = pytest.raises(BootstrapError, match=r"gw0 can't serve at 127\.0\.0\.1")
        with socket.create_server(("127.0.0.1", 0)) as taken, error:
            start_via(gateway, taken.getsockname())

    def test_it_says_so_when_the_gateway_is_gone(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway.exit()
        gateway.join(BOUND_S)
        with pytest.raises(BootstrapError, match="gw0 can't serve"):
            start_via(gateway)

    @pytest.mark.parametrize(
        ("spec", "remoteaddress", "reached", "listens"),
        [
            ("popen", None, "127.0.0.1", "127.0.0.1"),
            ("ssh=host", "host", "host", "0.0.0.0"),
            ("ssh=-p 22 me@host", "-p 22 me@host", "host", "0.0.0.0"),
            ("ssh=localhost", "localhost", "localhost", "localhost"),
            ("socket=host:1", "host:1", "host", "0.0.0.0"),
            ("socket=[2001:db8::1]:1", "[2001:db8::1]:1", "2001:db8::1", "::"),
            ("socket=127.0.0.1:1", "127.0.0.1:1", "127.0.0.1", "127.0.0.1"),
            ("socket=unix:/x", "unix:/x", "127.0.0.1", "127.0.0.1"),
        ],
    )
    def test_it_listens_where_the_coordinator_can_connect(
        self, spec: str, remoteaddress: str | None, reached: str, listens: str
    ) -> None:
        class StandIn:
            def __init__(self) -> None:
                self.spec = execnet.XSpec(spec)
                self.remoteaddress = remoteaddress

        assert gateway_socket._host_of(StandIn()) == reached
        assert gateway_socket._where_to_listen(reached) == listens
