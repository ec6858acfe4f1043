"""Gateways over a socket: the stream, what specs mean, and servers that gateways start."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import stop, wait_reaped
from socketservers import Server, Servers
from tools import BOUND_S, MakeGateway, Task, error_of, wait_until
from workers import ECHO, GETPID, ask

import execnet
from execnet import AuthenticationError, Group, HostNotFound, WorkerDied, gateway_socket
from execnet.gateway_base import ExecModel, get_execmodel
from execnet.gateway_io import BootstrapError
from execnet.script import socketserver

# The connection is full most of the time, so that signals cut sends short.
SENDS_UNDER_SIGNALS = """
import signal
count = channel.receive()
signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
try:
    for number in range(count):
        channel.send((number, b"x" * (number % 3000)))
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.fixture
def server(tmp_path: Path, nothing_is_left: None) -> Iterator[Server]:
    with Servers(tmp_path) as servers:
        yield servers.start()


@pytest.mark.usefixtures("readers")
class TestGateway:
    def test_it_shows_like_any_other(self, server: Server, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"socket={server.address}//id=far")
        assert repr(gateway) == ("<Gateway id='far' receive-live, thread model, 0 active channels>")
        assert gateway.remoteaddress == server.address
        assert gateway._rinfo().pid in server.processes()

    def test_the_old_name_still_makes_one(self, server: Server) -> None:
        host, port = socketserver.parse_address(server.address)
        with pytest.warns(DeprecationWarning, match="makegateway"):
            gateway = execnet.SocketGateway(str(host), int(port))
        assert ask(gateway, GETPID) in server.processes()
        execnet.default_group.terminate(timeout=5)

    def test_options_of_the_spec_reach_the_worker(
        self, server: Server, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        spec = f"socket={server.address}//chdir={tmp_path}//env:WORD=x y//nice=1"
        code = "import os; channel.send((os.getcwd(), os.environ['WORD'], os.nice(0)))"
        assert ask(makegateway(spec), code) == (str(tmp_path), "x y", os.nice(0) + 1)

    def test_several_are_started_at_once(self, server: Server, group: Group) -> None:
        gateways = group.makegateways([f"socket={server.address}"] * 3)
        assert len({ask(gateway, GETPID) for gateway in gateways}) == 3


@pytest.mark.usefixtures("readers")
class TestExecmodels:
    @pytest.fixture
    def echo(self, server: Server, execmodel: ExecModel) -> Iterator[Any]:
        """A channel whose far end sends back what it gets."""
        group = Group()
        group.set_execmodel(execmodel, "thread")
        gateway = group.makegateway(f"socket={server.address}")
        yield gateway.remote_exec(ECHO)
        group.terminate(timeout=5)
        wait_until(lambda: not server.processes())

    @pytest.mark.parametrize("size", [0, 1, 16383, 16384, 70_000, 5_000_000])
    def test_an_item_comes_back(self, echo: Any, size: int) -> None:
        data = os.urandom(size)
        echo.send(data)
        assert echo.receive(BOUND_S) == data

    def test_much_goes_both_ways_at_once(self, echo: Any, execmodel: ExecModel) -> None:
        items = [bytes([number]) * 1_000_000 for number in range(10)]

        def send_all() -> None:
            for item in items:
                echo.send(item)

        sending = Task(execmodel, send_all)
        assert [echo.receive(BOUND_S) for _ in items] == items
        sending.result()

    def test_the_end_of_the_worker_is_seen(self, echo: Any) -> None:
        os.kill(echo.gateway._rinfo().pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            echo.receive(BOUND_S)

    def test_the_end_is_seen_at_once_by_a_thread_that_reads_directly(self, echo: Any) -> None:
        for number in range(10):
            echo.send(number)
            assert echo.receive(BOUND_S) == number
        killing = threading.Timer(0.05, os.kill, (echo.gateway._rinfo().pid, signal.SIGKILL))
        killing.start()
        start = time.monotonic()
        with pytest.raises(WorkerDied):
            echo.receive(BOUND_S)
        assert time.monotonic() - start < 5
        killing.join()

    def test_a_worker_that_stays_is_left_in_time(
        self, echo: Any, execmodel: ExecModel, server: Server
    ) -> None:
        pid = echo.gateway._rinfo().pid
        stop(pid)
        start = time.monotonic()
        echo.gateway._group.terminate(timeout=0.2)
        assert time.monotonic() - start < 5
        assert not echo.gateway.hasreceiver()
        os.kill(pid, signal.SIGCONT)

    @pytest.mark.parametrize("model", ["main_thread_only", "gevent", "eventlet"])
    def test_workers_have_theirs(self, model: str, server: Server, group: Group) -> None:
        if model != "main_thread_only":
            pytest.importorskip(model, exc_type=ImportError)
        gateway = group.makegateway(f"socket={server.address}//execmodel={model}")
        assert gateway.remote_status().execmodel == model
        assert ask(gateway, "channel.send(channel.receive())", "x" * 100_000) == "x" * 100_000


@pytest.mark.usefixtures("readers")
class TestEnd:
    def test_a_worker_ends_when_it_is_asked_to(self, server: Server, group: Group) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        gateway.exit()
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        wait_reaped(gateway._rinfo().pid)

    def test_terminate_waits_for_what_still_runs(
        self, server: Server, group: Group, tmp_path: Path
    ) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        channel = gateway.remote_exec(
            "channel.send(1)\n"
            "import time; time.sleep(0.3)\n"
            f"open({str(tmp_path / 'done')!r}, 'w').close()"
        )
        channel.receive(BOUND_S)
        group.terminate(timeout=BOUND_S)
        assert (tmp_path / "done").exists()
        wait_until(lambda: server.processes() == [])

    def test_what_runs_too_long_is_interrupted(self, server: Server, group: Group) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        gateway.remote_exec("channel.send(1); import time; time.sleep(100)").receive(BOUND_S)
        start = time.monotonic()
        group.terminate(timeout=0.2)
        assert time.monotonic() - start < 5
        wait_reaped(gateway._rinfo().pid)

    def test_a_worker_that_died_does_not_shorten_the_time_of_others(
        self, server: Server, group: Group, tmp_path: Path
    ) -> None:
        dead, alive = group.makegateways([f"socket={server.address}"] * 2)
        os.kill(dead._rinfo().pid, signal.SIGKILL)
        dead.join(BOUND_S)
        channel = alive.remote_exec(
            "channel.send(1)\n"
            "import time; time.sleep(0.3)\n"
            f"open({str(tmp_path / 'done')!r}, 'w').close()"
        )
        channel.receive(BOUND_S)
        group.terminate(timeout=BOUND_S)
        assert (tmp_path / "done").exists()

    def test_how_a_worker_ended_is_not_made_up(self, server: Server, group: Group) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        channel = gateway.remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied, match="exit status is not known") as caught:
            channel.receive(BOUND_S)
        assert caught.value.exitcode is None
        assert gateway.exitcode is None

    def test_nor_is_it_for_one_that_was_killed_or_given_up(
        self, server: Server, group: Group
    ) -> None:
        spec = f"socket={server.address}"
        gateways: list[Any] = group.makegateways([spec, f"{spec}//heartbeat=0.05//dead_after=0.5"])
        killed, silent = gateways
        channel = silent.newchannel()
        pid = silent._rinfo().pid
        stop(pid)
        with pytest.raises(WorkerDied, match="was given up") as caught:
            channel.receive(BOUND_S)
        os.kill(pid, signal.SIGKILL)
        killed._io.kill()
        assert (caught.value.exitcode, silent.exitcode) == (None, None)
        for gateway in gateways:
            assert gateway._io.wait() is None
            assert gateway._io.has_ended()

    def test_one_that_ends_as_asked_tells_its_status_itself(
        self, server: Server, group: Group
    ) -> None:
        gateway: Any = group.makegateway(f"socket={server.address}")
        group.terminate(timeout=BOUND_S)
        assert gateway._io.wait() == 0

    def test_a_server_that_ends_takes_its_workers_along(self, server: Server, group: Group) -> None:
        channel = group.makegateway(f"socket={server.address}").remote_exec("channel.receive()")
        assert server.stop() == 0
        start = time.monotonic()
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        assert time.monotonic() - start < 5

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
    def test_signals_in_a_worker_that_sends_lose_and_mix_nothing(
        self, server: Server, group: Group
    ) -> None:
        gateway: Any = group.makegateway(f"socket={server.address}")
        gateway._io.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        channel = gateway.remote_exec(SENDS_UNDER_SIGNALS)
        channel.send(count := 10_000)
        for number in range(count):
            assert channel.receive(BOUND_S) == (number, b"x" * (number % 3000))
        channel.waitclose(BOUND_S)

    def test_an_interrupted_sender_leaves_nothing(self, server: Server, group: Group) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        stop(gateway._rinfo().pid)
        channel = gateway.newchannel()
        sending = Task(get_execmodel("thread"), channel.send, b"x" * 50_000_000)
        wait_until(lambda: not gateway._io.can_write_now())
        group.terminate(timeout=0.2)
        with pytest.raises(OSError, match="cannot send"):
            sending.result()
        os.kill(gateway._rinfo().pid, signal.SIGCONT)


class TestFailures:
    def test_a_port_where_nobody_listens(self, group: Group) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        error = error_of(group, f"socket=127.0.0.1:{port}")
        assert isinstance(error, HostNotFound)
        assert isinstance(error, ConnectionRefusedError)  # as socket.connect() raises
        assert error.errno == errno.ECONNREFUSED
        assert f"can't connect to 127.0.0.1:{port}: [Errno 111]" in str(error)
        assert "socketserver.py" in str(error)

    def test_a_path_where_nobody_listens(self, group: Group, tmp_path: Path) -> None:
        error = error_of(group, f"socket=unix:{tmp_path}/none")
        assert isinstance(error, HostNotFound)
        assert f"can't connect to unix:{tmp_path}/none" in str(error)

    @pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70, "a..b"])
    def test_a_host_that_is_not_known(self, group: Group, host: str) -> None:
        error = error_of(group, f"socket={host}:8888")
        assert isinstance(error, HostNotFound)
        assert f"can't connect to {host}:8888" in str(error)

    def test_a_host_that_does_not_answer_is_given_up_in_time(self, group: Group) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            waiting = [socket.create_connection(address)]
            while len(waiting) < 5:  # until the system takes no more of them
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(address)
            start = time.monotonic()
            spec = f"socket=127.0.0.1:{address[1]}//connect_timeout=0.3"
            error = self.fails_beside(group, spec)
            assert time.monotonic() - start < 5
            for sock in waiting:
                sock.close()
        assert isinstance(error, HostNotFound)
        assert "no answer within 0.3 s" in str(error)

    def fails_beside(self, group: Group, spec: str) -> BootstrapError:
        """As ``error_of``, while the test itself opens and closes things."""
        with pytest.raises(BootstrapError) as caught:
            group.makegateway(spec)
        return caught.value

    def test_a_server_that_never_answers_is_given_up_in_time(self, group: Group) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            start = time.monotonic()
            port = silent.getsockname()[1]
            spec = f"socket=127.0.0.1:{port}//connect_timeout=0.3//authentication=none"
            error = error_of(group, spec)
            assert time.monotonic() - start < 5
        assert "no answer in time" in str(error)
        assert f"socket=127.0.0.1:{port}" in str(error)

    @pytest.mark.parametrize("answer", [b"SSH-2.0-something\r\n", b"\0" * 70_000])
    def test_a_server_of_another_kind_is_told_from_ours(self, group: Group, answer: bytes) -> None:
        error, tries = self.error_of_server(group, answer)
        assert answer[:17].decode().replace("\0", "?") in str(error)
        assert tries == 1

    def test_a_server_that_ends_connections_is_tried_some_times(self, group: Group) -> None:
        """As one in a crowd does, by chance."""
        error, tries = self.error_of_server(group, b"")
        assert "ends the connection at once" in str(error)
        assert tries == gateway_socket.TRIES

    def error_of_server(self, group: Group, answer: bytes) -> tuple[AuthenticationError, int]:
        """Return the error at a server that says this and no more, and how often it was asked."""
        asked = []
        with socket.create_server(("127.0.0.1", 0)) as other:

            def serve() -> None:
                while (conn := other.accept()[0]) and not done.is_set():
                    asked.append(conn)
                    with conn, contextlib.suppress(OSError):
                        conn.sendall(answer)
                        conn.shutdown(socket.SHUT_WR)
                        while conn.recv(65536):
                            pass
                conn.close()

            done = threading.Event()
            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(AuthenticationError) as caught:
                group.makegateway(f"socket=127.0.0.1:{other.getsockname()[1]}")
            done.set()
            socket.create_connection(other.getsockname()).close()
            thread.join()
        return caught.value, len(asked)

    @pytest.mark.parametrize("spec", ["socket", "socket=host", "socket=::1:1"])
    def test_an_address_that_is_none_is_refused(self, group: Group, spec: str) -> None:
        with pytest.raises(ValueError, match="socket="):
            group.makegateway(spec)
        assert len(group) == 0


def test_small_frames_are_sent_at_once_and_a_dead_machine_is_noticed(
    server: Server, makegateway: MakeGateway
) -> None:
    sock = makegateway(f"socket={server.address}")._io._sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    between = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
    assert idle + between * sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) <= 300
