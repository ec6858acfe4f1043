"""``resume=`` for workers that dial in: they dial in again, and nobody else takes them up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shlex
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cut_links import assert_gone, exchange, supervisor_of
from cut_ports import CutPort
from interpreters import far_sides
from processes import stop
from test_join import KEY, Speaker, Start, ended, start  # noqa: F401 - fixtures
from tools import BOUND_S, some_of, wait_in_loop, wait_until

from execnet import Gateway, Group, WorkerDied, aio
from execnet._join.command import ticket_of
from execnet.script import socketserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")

ECHO = "for item in channel: channel.send(item)"
WAITS = "channel.send(1); channel.receive()"
BOOT_BYTES = 60_000  # so many pass before the worker can come back


class Way:
    """A group that listens behind a port which a test cuts."""

    def __init__(self, group: Group, pem: str, start: Start, port: CutPort) -> None:  # noqa: F811
        self.group, self.link = group, port
        self._pem, self._start = pem, start
        self.states: list[str] = []
        self.joiners: list[int] = []
        self.ticket = ""
        group.on_state(lambda gateway, state: self.states.append(f"{gateway.id} {state}"))

    def listen(self, seconds: float = BOUND_S, more: str = "") -> None:
        options = f"resume={seconds:g}{more}"
        self.ticket = self.group.listen("127.0.0.1:0", KEY, self._pem, options=options)
        self.link.server = self.ticket.partition("//")[0]

    def join(self, python: str = sys.executable) -> Gateway:
        """Have another worker dial in."""
        before = len(self.group)
        command = self.group.join_command(via=self.link.address, python=shlex.quote(python))
        self.joiners.append(self._start(command).pid)
        return self.group.wait_for(before + 1, BOUND_S)[-1]

    def make(self, seconds: float = BOUND_S, more: str = "") -> Gateway:
        self.listen(seconds, more)
        return self.join()


@pytest.fixture
def way(group: Group, pem: str, start: Start) -> Iterator[Way]:  # noqa: F811
    with CutPort("") as port:
        yield Way(group, pem, start, port)
        group.terminate(5.0)


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


@pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
def test_all_that_is_sent_comes_once_and_in_order_over_a_link_that_is_cut_at_random_bytes(
    way: Way, python: str
) -> None:
    draw = random.Random(f"cuts {python}")
    count = some_of(10)
    cuts = [draw.randrange(12_000, 300_000) for _ in range(count)]
    way.link.set_cuts([BOOT_BYTES + 200_000, *cuts])
    way.listen()
    exchange(way.join(python), [draw.choice((3, 300, 30_000)) for _ in range(40 * count)])
    assert way.link.runs() > count // 2


def test_a_silent_connection_is_taken_for_a_lost_one(way: Way) -> None:
    gateway = way.make(more="//heartbeat=0.5//dead_after=2")
    channel = gateway.remote_exec(ECHO)
    channel.send(0)
    assert channel.receive(BOUND_S) == 0  # so the worker knows of the heartbeat
    way.link.stop()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    wait_until(lambda: way.states[:2] == [f"{gateway.id} lost", f"{gateway.id} resumed"])


def test_errors_come_only_when_the_time_is_over_and_then_nothing_is_left(way: Way) -> None:
    gateway = way.make(1, "//grace=0.2")
    pid = pid_of(gateway)
    folder = gateway._io._session.folder  # type: ignore[attr-defined]
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    way.link.go_down()
    why = "was given up: it was out of reach for 1 s; its joiner has not dialled in again"
    with pytest.raises(WorkerDied, match=why):
        channel.receive(BOUND_S)
    assert_gone(pid, supervisor, *way.joiners)
    assert not os.path.exists(folder)
    assert way.group._joins is not None
    assert way.group._joins._returns == {}


@pytest.mark.parametrize("victim", ["worker", "supervisor", "joiner"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second connection"])
def test_who_waits_is_told_of_a_death(way: Way, victim: str, is_first: bool) -> None:
    gateway = way.make(5 if victim == "joiner" else BOUND_S, "//grace=0.2")
    pid = pid_of(gateway)
    if not is_first:
        way.link.cut()
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    pids = {"worker": pid, "supervisor": supervisor_of(pid), "joiner": way.joiners[0]}
    os.kill(pids[victim], signal.SIGKILL)
    how = {"worker": "SIGKILL", "supervisor": "its supervisor ended", "joiner": "out of reach"}
    with pytest.raises(WorkerDied, match=how[victim]):
        channel.receive(BOUND_S)
    assert_gone(*pids.values())


def test_it_ends_with_its_group_when_it_is_asked_to(way: Way, start: Start) -> None:  # noqa: F811
    way.listen(600)
    joiner = start(way.group.join_command(via=way.link.address, python=sys.executable))
    (gateway,) = way.group.wait_for(1, BOUND_S)
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    way.link.cut()
    wait_until(lambda: way.states == [f"{gateway.id} lost", f"{gateway.id} resumed"])
    way.group.terminate(BOUND_S)
    assert ended(joiner) == (0, "")
    assert_gone(pid, supervisor)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(ticket_of(way.ticket).address)


@pytest.mark.parametrize("by", ["kill", "terminate"])
def test_a_stopped_worker_is_killed_by_a_connection_for_which_its_joiner_comes_back(
    way: Way, by: str
) -> None:
    gateway = way.make(600)
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    stop(pid)  # so that it does not end as it is asked to
    if by == "kill":
        gateway._io.kill()
        assert gateway._io.wait() == -signal.SIGKILL
    else:
        with pytest.warns(ResourceWarning, match="did not end in time and was killed"):
            way.group.terminate(1.0)
    assert_gone(pid, supervisor, *way.joiners)


def test_terminate_without_a_network_returns_and_warns(way: Way) -> None:
    gateway = way.make(1, "//grace=0.2")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    way.link.go_down()
    wait_until(lambda: way.states == [f"{gateway.id} lost"])
    with pytest.warns(ResourceWarning, match="could not be reached to be killed") as warned:
        way.group.terminate(0.1)
    assert "execnet clean" not in str(warned[0].message)
    assert_gone(pid, supervisor, *way.joiners)


def test_a_start_that_is_cut_leaves_nothing(way: Way, start: Start) -> None:  # noqa: F811
    way.listen(600)
    cuts = 25_000, 30_000, 40_000, 48_000  # earlier, a joiner tries it again itself
    for cut in cuts:
        way.link.set_cuts([0] * way.link.runs() + [cut] + [0] * 9)
        joiner = start(way.group.join_command(via=way.link.address, python=sys.executable))
        with contextlib.suppress(Exception):
            joiner.wait(BOUND_S)
        assert joiner.returncode is not None
    assert list(way.group) == []
    assert way.group._joins is not None
    wait_until(lambda: way.group._joins is None or not way.group._joins._returns)


def test_a_spec_that_waits_gets_one_that_comes_back(
    way: Way,
    pem: str,
    start: Start,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "key").write_text(KEY.hex())
    (tmp_path / "key").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = socketserver.format_address(free.getsockname())
    way.link.server = address
    fingerprint = socketserver.Certificate(Path(pem).read_bytes()).fingerprint.decode()
    ticket = f"{way.link.address}//fingerprint={fingerprint}"
    start(shlex.join([sys.executable, "-m", "execnet", "join", ticket]))
    spec = f"listen={address}//key={tmp_path}/key//certificate={pem}//resume={BOUND_S}"
    gateway = way.group.makegateway(spec)
    way.link.cut()
    channel = gateway.remote_exec(ECHO)
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    capsys.readouterr()


# ---------------------------------------------------------------- attacks


class Returner(Speaker):
    """One that says that it comes back; ``answer`` is what it hears after its proof."""

    def __init__(self, ticket: str, id: str, key: bytes, about: str = "return") -> None:
        known = ticket_of(ticket)
        sock = socket.create_connection(known.address, BOUND_S)
        nonce = sock.makefile("rb", 0).readline().split()[2].decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(sock)
        own = os.urandom(32).hex()
        words = [f"tls {nonce} {about} {id} {own} {known.fingerprint}".encode()]
        proved = socketserver.proof(key, b"client", words).decode()
        self.sock.sendall(f"execnet-auth-1 {own} {known.fingerprint} {proved} {id}\n".encode())
        self.file = self.sock.makefile("rb")
        self.answer = self.file.readline().decode()


def key_of(gateway: Gateway) -> bytes:
    key: bytes = gateway._io._maker.key  # type: ignore[attr-defined]
    return key


def id_of(gateway: Gateway) -> str:
    return str(gateway._rinfo().join_id)


REFUSALS = "error the client has another key\n", "error nobody waits for this joiner"


def test_only_with_the_key_of_a_worker_somebody_comes_back_to_it(way: Way) -> None:
    one = way.make()
    other = way.join()
    channels = [gateway.remote_exec(ECHO) for gateway in (one, other)]
    attempts: list[Callable[[], Returner]] = [
        lambda: Returner(way.ticket, id_of(one), KEY),  # the group's
        lambda: Returner(way.ticket, id_of(one), key_of(other)),
        lambda: Returner(way.ticket, id_of(one), key_of(one), about="join"),
        lambda: Returner(way.ticket, "0" * 64, KEY),
        lambda: Returner(way.ticket, "\u00e9" * 32, KEY),
        lambda: Returner(way.ticket, "", KEY),
    ]
    for attempt in attempts:
        with attempt() as returner:
            assert any(refusal in returner.answer for refusal in REFUSALS), returner.answer
    with Speaker(way.ticket, key_of(one)) as joiner:  # and with that nobody joins
        assert REFUSALS[0] in joiner.answer
    with Speaker(way.ticket, id=id_of(one)) as joiner:
        assert "error a joiner with this id has already come" in joiner.answer
    for channel in channels:
        channel.send(1)
        assert channel.receive(BOUND_S) == 1
    assert way.states == []


def test_a_rank_is_kept_for_a_worker_that_is_out_of_reach(
    way: Way,
    start: Start,  # noqa: F811
) -> None:
    way.listen()
    mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "PMIX_NAMESPACE": "7"}
    start(way.group.join_command(via=way.link.address, python=sys.executable), **mpi)
    (gateway,) = way.group.wait_for(1, BOUND_S)
    way.link.go_down()
    wait_until(lambda: way.states == ["gw0 lost"])
    status, said = ended(start(way.group.join_command(python=sys.executable), **mpi))
    assert (status, said.endswith("rank 3 of MPI job 7 has joined already: gw0\n")) == (1, True)
    way.link.go_up()
    channel = gateway.remote_exec(ECHO)
    channel.send(1)
    assert channel.receive(BOUND_S) == 1


def test_bytes_of_an_earlier_connection_bring_nobody_back(way: Way) -> None:
    gateway = way.make()
    channel = gateway.remote_exec(ECHO)
    way.link.cut()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    for passage in list(way.link.passages):
        with socket.create_connection(ticket_of(way.ticket).address, BOUND_S) as conn:
            conn.sendall(passage.from_client)
            conn.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while conn.recv(65536):
                    pass
    channel.send(2)
    assert channel.receive(BOUND_S) == 2
    assert way.states[2:] == []


def test_one_that_comes_back_and_says_nothing_holds_up_nobody(way: Way) -> None:
    one = way.make()
    other = way.join()
    way.link.go_down()
    for passage in way.link.passages:
        passage.cut()
    wait_until(lambda: len(way.states) == 2)
    with contextlib.ExitStack() as silent:
        for _ in range(70):
            silent.enter_context(Returner(way.ticket, id_of(one), key_of(one)))
        way.link.go_up()
        channel = other.remote_exec(ECHO)
        channel.send(1)
        assert channel.receive(BOUND_S) == 1
        channel = one.remote_exec(ECHO)
        channel.send(2)
        assert channel.receive(BOUND_S) == 2


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc shows all there is")
def test_no_process_of_a_worker_has_a_key(way: Way) -> None:
    gateway = way.make()
    way.link.cut()
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    pid = pid_of(gateway)
    session = gateway._io._session  # type: ignore[attr-defined]
    hidden = [KEY.hex(), key_of(gateway).hex(), session.secret]
    for one in pid, supervisor_of(pid), *way.joiners:
        told = Path(f"/proc/{one}/cmdline").read_text()
        if one == pid:
            told += Path(f"/proc/{one}/environ").read_text()
        assert [key for key in hidden if key in told] == []


# ---------------------------------------------------------------- in a loop


def test_in_a_loop_they_come_back_as_well(pem: str, start: Start) -> None:  # noqa: F811
    states: list[str] = []

    async def main(port: CutPort) -> None:
        async with aio.Group() as group:
            group.on_state(lambda gateway, state: states.append(state))
            ticket = await group.listen("127.0.0.1:0", KEY, pem, options=f"resume={BOUND_S}")
            port.server = ticket.partition("//")[0]
            start(group.join_command(via=port.address, python=sys.executable))
            (gateway,) = await group.wait_for(1, BOUND_S)
            channel = gateway.remote_exec(ECHO)
            for number in range(3):
                port.cut()
                await channel.send(b"x" * 100_000)
                assert await channel.receive(BOUND_S) == b"x" * 100_000
                await wait_in_loop(lambda number=number: states.count("resumed") > number)  # type: ignore[misc]
            assert await gateway.call("operator:add", 1, 2) == 3

    with CutPort("") as port:
        asyncio.run(main(port))
    assert states[:2] == ["lost", "resumed"]
