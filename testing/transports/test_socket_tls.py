"""TLS between a socket server and its clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import pytest
from interpreters import Interpreter, chosen, found
from processes import wait_reaped
from socketservers import SCRIPTS, Server, Servers, connect
from tools import BOUND_S, Task, find_python, missing, run, wait_until
from workers import ask

from execnet import AuthenticationError, BootstrapError, Group, WorkerDied, gateway_socket
from execnet._transports import keys
from execnet._transports.proof import SocketTalk
from execnet._transports.tls import Tls
from execnet.gateway_base import ExecModel
from execnet.script import socketserver

ECHO = "for item in channel: channel.send(item)"
ONE = "channel.send(1)"


@pytest.fixture(autouse=True)
def openssl() -> None:
    if shutil.which("openssl") is None:
        missing("the program openssl")


@pytest.fixture
def server(servers: Servers) -> Server:
    return servers.start(":0", "--tls")


@pytest.mark.parametrize("python", chosen(), ids=str)
def test_on_every_python_bytes_come_through_and_nothing_is_left(
    python: Interpreter, servers: Servers, group: Group
) -> None:
    server = servers.start(":0", "--tls", python=python.path)
    echo = group.makegateway(f"socket={server.address}").remote_exec(ECHO)
    for size in 0, 1, 16384, 3_000_000:
        text = os.urandom(size // 2).hex()
        echo.send(text)
        assert echo.receive(BOUND_S) == text
    group.terminate(timeout=5)
    wait_until(lambda: server.processes() == [])
    again = group.makegateway(f"socket={server.address}").remote_exec(ECHO)
    assert server.stop() == 0
    with pytest.raises(WorkerDied):
        again.receive(BOUND_S)


@pytest.mark.usefixtures("readers")
class TestStream:
    def test_much_goes_both_ways_at_once(self, server: Server, execmodel: ExecModel) -> None:
        group = Group()
        group.set_execmodel(execmodel, "thread")
        echo = group.makegateway(f"socket={server.address}").remote_exec(ECHO)
        items = [bytes([number]) * 1_000_000 for number in range(10)]
        sending = Task(execmodel, lambda: [echo.send(item) for item in items])
        assert [echo.receive(BOUND_S) for _ in items] == items
        sending.result()
        group.terminate(timeout=5)

    def test_nothing_that_is_sent_is_to_be_read_on_the_way(
        self, server: Server, group: Group
    ) -> None:
        seen = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def pump(near: socket.socket, far: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := near.recv(65536):
                        seen.append(data)
                        far.sendall(data)
                    far.shutdown(socket.SHUT_WR)

            def serve() -> None:
                with listener.accept()[0] as near, connect(server.address) as far:
                    far.settimeout(None)
                    back = threading.Thread(target=pump, args=(far, near))
                    back.start()
                    pump(near, far)
                    back.join()

            thread = threading.Thread(target=serve)
            thread.start()
            # The certificate binds, so that a forwarded port needs no word more.
            spec = f"socket=127.0.0.1:{listener.getsockname()[1]}//env:SECRET=the-secret"
            gateway = group.makegateway(spec)
            assert ask(gateway, "import os; channel.send(os.environ['SECRET'])") == "the-secret"
            group.terminate(timeout=5)
            thread.join()
        assert b"the-secret" not in b"".join(seen)
        assert b"execnet-auth-1 tls " in seen[0]

    def test_a_worker_that_dies_is_seen_though_a_child_holds_its_descriptor(
        self, server: Server, group: Group
    ) -> None:
        gateway = group.makegateway(f"socket={server.address}")
        channel = gateway.remote_exec(
            "import os, time\npid = os.fork()\nif not pid: time.sleep(100)\n"
            "channel.send(pid)\nchannel.receive()"
        )
        child = channel.receive(BOUND_S)
        os.kill(gateway._rinfo().pid, signal.SIGKILL)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        os.kill(child, signal.SIGKILL)
        wait_reaped(child)

    def test_a_client_that_reads_nothing_does_not_hold_up_its_worker_s_input(
        self, server: Server, group: Group
    ) -> None:
        """A pump that waits in a write would."""
        gateway = group.makegateway(f"socket={server.address}")
        echo = gateway.remote_exec(
            "import threading\n"
            "writer = threading.Thread(target=channel.send, args=(bytes(30000000),))\n"
            "writer.start()\n"
            "channel.send(len(channel.receive()))\n"
            "writer.join()"
        )
        echo.send(bytes(20_000_000))
        assert {type(echo.receive(BOUND_S)) for _ in range(2)} == {bytes, int}


class TestWhoItIs:
    def test_another_certificate_in_between_is_seen(self, server: Server, group: Group) -> None:
        """Whoever is in between has a certificate of their own, and passes on what is said."""
        between = socketserver.Certificate(socketserver.make_certificate())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            spec = f"socket=127.0.0.1:{listener.getsockname()[1]}"

            def serve() -> None:
                near, far = listener.accept()[0], connect(server.address)
                near.sendall(far.makefile("rb", 0).readline())
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with between.wrap(near) as tls_near, context.wrap_socket(far) as tls_far:
                    tls_near.do_handshake()
                    tls_far.sendall(tls_near.recv(1000))
                    tls_near.sendall(tls_far.recv(1000))

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(AuthenticationError, match="another certificate: somebody is in"):
                group.makegateway(spec)
            thread.join()

    def test_a_fingerprint_is_enough_where_no_proof_is_asked_for(
        self, servers: Servers, group: Group, tmp_path: Path
    ) -> None:
        pem = socketserver.make_certificate()
        certificate, _, key = pem.partition(b"-----BEGIN EC")
        (tmp_path / "cert").write_bytes(certificate)
        (tmp_path / "cert-key").write_bytes(b"-----BEGIN EC" + key)
        options = ["--tls", "--cert", str(tmp_path / "cert"), "--cert-key"]
        options += [str(tmp_path / "cert-key"), "--no-authentication"]
        server = servers.start(":0", *options)
        der = ssl.PEM_cert_to_DER_cert(certificate.decode())
        spec = f"socket={server.address}//fingerprint={hashlib.sha256(der).hexdigest()}"
        assert ask(group.makegateway(f"{spec}//env:SECRET=1"), ONE) == 1
        with pytest.raises(AuthenticationError, match="it proves nothing: say fingerprint="):
            group.makegateway(f"socket={server.address}")
        with pytest.raises(AuthenticationError, match="has another fingerprint"):
            group.makegateway(f"socket={server.address}//fingerprint={'0' * 64}")

    def test_a_server_without_tls_is_no_server_with_a_fingerprint(
        self, servers: Servers, group: Group
    ) -> None:
        server = servers.start()
        with pytest.raises(AuthenticationError, match="it has no TLS"):
            group.makegateway(f"socket={server.address}//fingerprint={'0' * 64}")


# As lax as the library can be: what is refused then, our server refuses.
LAX = """\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = lax
[lax]
CipherString = ALL:@SECLEVEL=0
MinProtocol = TLSv1
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("python", ["2.7", "3.6", "3.8", sys.executable])
def test_nothing_older_than_tls_1_2_is_spoken(
    servers: Servers, tmp_path: Path, python: str
) -> None:
    (tmp_path / "lax").write_text(LAX)
    path = python if python == sys.executable else find_python(python)
    lax = tmp_path / "python"
    lax.write_text(f'#!/bin/sh\nOPENSSL_CONF={tmp_path}/lax exec {path} "$@"\n')
    lax.chmod(0o700)
    server = servers.start(":0", "--tls", "--no-authentication", python=str(lax))

    def spoken(version: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        with connect(server.address) as conn:
            conn.makefile("rb", 0).readline()
            with context.wrap_socket(conn) as tls:
                return tls.version()

    assert spoken(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        spoken(ssl.TLSVersion.TLSv1_1)


def test_when_its_own_output_has_ended_a_process_still_gets_only_what_was_encrypted() -> None:
    near, far = socket.socketpair()
    outer, inner = socket.socketpair()
    certificate = socketserver.Certificate(socketserver.make_certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    served = certificate.wrap(far)
    greeting = threading.Thread(target=served.do_handshake)
    greeting.start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    near.sendall(outgoing.read())
    while True:
        incoming.write(near.recv(65536))
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
    near.sendall(outgoing.read())
    greeting.join()
    relaying = threading.Thread(target=socketserver.Relay(served, inner).run)
    relaying.start()
    outer.shutdown(socket.SHUT_WR)
    while near.recv(65536):  # until the end of what the process says
        pass
    client.write(b"encrypted")
    near.sendall(outgoing.read() + b"not encrypted")
    near.shutdown(socket.SHUT_WR)
    outer.settimeout(BOUND_S)
    came = b""
    while data := outer.recv(100):
        came += data
    relaying.join()
    near.close()
    outer.close()
    assert came == b"encrypted"


class TestInstalled:
    def test_beyond_loopback_there_is_tls(self, group: Group) -> None:
        group.makegateway("popen//id=first")
        gateway = group.makegateway("socket=0.0.0.0:0//installvia=first")
        assert type(gateway._io).__name__ == "TlsIO"
        assert ask(gateway, "channel.send(channel.receive())", "x" * 1_000_000) == "x" * 1_000_000

    def test_a_server_of_a_gateway_has_it_as_well(self, group: Group) -> None:
        carrier = group.makegateway("popen")
        _, port = gateway_socket.start_via(carrier, ("0.0.0.0", 0))
        channel = carrier.remote_exec(socketserver)
        channel.send(("0.0.0.0", 0))
        for number in port, channel.receive(BOUND_S)[1]:
            gateway = group.makegateway(f"socket=127.0.0.1:{number}")
            assert type(gateway._io).__name__ == "TlsIO"
            assert ask(gateway, ONE) == 1

    def test_where_no_certificate_can_be_made_via_is_named(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keys, "_certificate", lambda: None)
        group.makegateway("popen//id=first//env:PATH=/none")
        with pytest.raises(BootstrapError, match="via= needs no server"):
            group.makegateway("socket=0.0.0.0:0//installvia=first")


@pytest.mark.parametrize("python", [found()[0].path, sys.executable], ids=["oldest", "this"])
def test_the_tools_speak_it(python: str, server: Server) -> None:
    shown = run([python, str(SCRIPTS / "shell.py"), server.address], stdin="print(6 * 7)\n")
    assert "42" in shown.stdout
    assert run([python, str(SCRIPTS / "quitserver.py"), server.address]).returncode == 0
    assert server.popen.wait(BOUND_S) == 0


def test_via_another_gateway_it_is_refused_with_a_reason(server: Server, group: Group) -> None:
    group.makegateway("popen//id=between")
    with pytest.raises(AuthenticationError, match="does not go via= another gateway"):
        group.makegateway(f"socket={server.address}//via=between")


@pytest.mark.parametrize("during", ["handshake", "line"])
def test_what_comes_byte_by_byte_gets_no_more_time(during: str, tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    pem.write_bytes(socketserver.make_certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    near, far = socket.socketpair()
    over = threading.Event()
    with near, far:
        near.settimeout(BOUND_S)
        other, talk = Tls(context), SocketTalk(near)
        if during == "line":
            far.settimeout(BOUND_S)
            greeter = threading.Thread(target=other.begin, args=(far.recv, far.sendall))
            greeter.start()
            talk.begin_tls(BOUND_S)
            greeter.join()
            record = other.sealed(b"x" * 10_000)
        else:
            record = b"\x16\x03\x03\x40\x00" + bytes(1 << 14)

        def drip() -> None:
            for number in range(len(record) - 1):
                if over.wait(0.01):
                    return
                far.sendall(record[number : number + 1])

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                talk.read(0.3) if during == "line" else talk.begin_tls(0.3)
            assert time.monotonic() - began < BOUND_S / 2
        finally:
            over.set()
            thread.join()


def test_the_error_of_one_connection_ends_no_other_one_of_its_thread() -> None:
    certificate = socketserver.Certificate(socketserver.make_certificate())
    (server, ended), (_, goes_on) = _agreed(certificate), _agreed(certificate)
    assert server.read_some(100, lambda size: b"") == b""  # an end that TLS was not told of
    alert = server.outgoing.read()
    assert ended.read_some(100, lambda size: alert) == b""
    with pytest.raises(BlockingIOError):
        goes_on.read_some(100, _nothing_yet)


def _agreed(certificate: socketserver.Certificate) -> tuple[Tls, Tls]:
    """Return both sides of a connection whose TLS has begun."""
    server, client = Tls(certificate._context), Tls()
    for one, other in (client, server), (server, client), (client, server), (server, client):
        with contextlib.suppress(BlockingIOError):
            one.begin(_nothing_yet, other._incoming.write)
    with pytest.raises(BlockingIOError):  # what the server said in the end is no item
        client.read_some(100, _nothing_yet)
    return server, client


def _nothing_yet(size: int) -> bytes:
    raise BlockingIOError
