"""``resume=`` over what is no command of this machine: socket servers, and other gateways."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest import mock

import pytest
from cut_links import CutLink, assert_gone, clean, exchange, program_with, supervisor_of
from cut_ports import CutPort, InstalledPort
from interpreters import far_sides
from processes import is_gone, processes_with, stop
from socketservers import Server, Servers, connect, read_to_end
from tools import BOUND_S, call_in_receiver, missing, run_python, some_of, wait_until

from execnet import BootstrapError, Gateway, Group, LoadError, WorkerDied, gateway_socket
from execnet._ends import terminate
from execnet._resume import near, records, ways
from execnet._ship.shipment import FIRST_PACKET_MAX
from execnet._specs import Settings
from execnet.gateway_bootstrap import first_line
from execnet.xspec import XSpec

WAITS = "channel.send(1); channel.receive()"
BOOT_BYTES = 45_000  # so many pass before the worker can be found again
NOBODY = 65534


class Way:
    """A group, and a way to a worker that a test cuts."""

    def __init__(
        self,
        name: str,
        folder: Path,
        servers: Servers,
        python: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.group = Group()
        self.states: list[str] = []
        self.group.on_state(lambda gateway, state: self.states.append(f"{gateway.id} {state}"))
        self.python = python
        self.link: CutLink | CutPort
        self.server: Server | None = None
        self._after = ExitStack()
        self._spec = f"ssh=host//python={python}"
        if "installed" in name:
            address = "=0.0.0.0:0" if "TLS" in name else ""
            self.link = self._after.enter_context(InstalledPort(monkeypatch))
            self._spec = f"socket{address}//installvia=hop"
            self.group.makegateway(f"popen//python={python}//id=hop")
        elif "socket" in name:
            tls = ["--tls"] if "TLS" in name else []
            path = str(folder / "at") if "unix" in name else ""
            address = f"unix:{path}" if path else ":0"
            self.server = servers.start(address, *tls, python=python)
            port = CutPort(self.server.address)
            self.link = self._after.enter_context(port)
            self._spec = f"socket={port.address}"
            if path:
                self._spec += "//authentication=none"
            elif not tls:
                self._spec += f"//bound={self.server.address}"
        else:
            self.link = CutLink(folder)
        if "via" in name:
            self.group.makegateway("popen//id=hop")
            self._spec += "//via=hop"
        self._after.callback(self.group.terminate, 5.0)

    def spec(self, seconds: float, more: str = "") -> str:
        return f"{self._spec}//resume={seconds:g}{more}"

    def make(self, seconds: float = BOUND_S, more: str = "") -> Gateway:
        return self.group.makegateway(self.spec(seconds, more))

    def close(self) -> None:
        self._after.close()


MakeWay = Callable[..., Way]
WAYS = [
    "socket",
    "socket TLS",
    "socket unix",
    "installed",
    "installed TLS",
    "via",
    "socket via",
]


@pytest.fixture
def make_way(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeWay]:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with ExitStack() as ways:

        def make(name: str, python: str = sys.executable) -> Way:
            if "TLS" in name and shutil.which("openssl") is None:
                missing("the program openssl")
            return ways.enter_context(closing(Way(name, tmp_path, servers, python, monkeypatch)))

        yield make


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, make_way: MakeWay) -> Way:
    return make_way(request.param)


@pytest.fixture
def served(make_way: MakeWay) -> Way:
    return make_way("socket")


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
def test_all_that_is_sent_comes_once_and_in_order_over_a_link_that_is_cut_at_random_bytes(
    python: str, name: str, make_way: MakeWay
) -> None:
    draw = random.Random(f"cuts {python} {name}")
    count = some_of(10)
    way = make_way(name, python)
    cuts = [draw.randrange(12_000, 300_000) for _ in range(count)]
    way.link.set_cuts([BOOT_BYTES + 200_000, *cuts])
    exchange(way.make(), [draw.choice((3, 300, 30_000)) for _ in range(40 * count)])
    assert way.link.runs() > count // 2


def test_a_silent_connection_is_taken_for_a_lost_one(way: Way) -> None:
    gateway = way.make(more="//heartbeat=0.2//dead_after=2")
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
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
    with pytest.raises(WorkerDied, match=r"was given up: it was out of reach for 1 s; ") as caught:
        channel.receive(BOUND_S)
    assert caught.value.hop == ""
    assert_gone(pid, supervisor)
    assert not os.path.exists(folder)


def test_a_worker_that_ended_meanwhile_is_told_with_its_status(way: Way) -> None:
    gateway = way.make()
    pid = pid_of(gateway)
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    connected = len(os.listdir(f"/proc/{supervisor}/fd"))
    way.link.go_down()
    wait_until(lambda: len(os.listdir(f"/proc/{supervisor}/fd")) < connected)
    os.kill(pid, signal.SIGKILL)
    way.link.go_up()
    with pytest.raises(WorkerDied, match=r"SIGKILL.*it ended while it was out of reach") as caught:
        channel.receive(BOUND_S)
    assert caught.value.exitcode == -signal.SIGKILL
    assert_gone(supervisor)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second connection"])
@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_who_waits_is_told_of_a_death_while_connected(
    way: Way, victim: str, is_first: bool
) -> None:
    gateway = way.make(more="//grace=0.2")
    pid = pid_of(gateway)
    if not is_first:
        way.link.cut()
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    os.kill(pid if victim == "worker" else supervisor, signal.SIGKILL)
    how = "SIGKILL" if victim == "worker" else "its supervisor ended"
    with pytest.raises(WorkerDied, match=how):
        channel.receive(BOUND_S)
    assert_gone(pid, supervisor)


def test_it_ends_with_its_group_when_it_is_asked_to(way: Way) -> None:
    gateway = way.make(600)
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    way.link.cut()
    wait_until(lambda: way.states == [f"{gateway.id} lost", f"{gateway.id} resumed"])
    way.group.terminate(BOUND_S)
    assert_gone(pid, supervisor)
    assert list(records.left()) == []


def test_a_kill_goes_by_a_connection_of_its_own(way: Way) -> None:
    gateway = way.make()
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    stop(pid)  # so that it does not end as it is asked to
    way.link.stop()
    gateway._io.kill()
    assert gateway._io.wait() == -signal.SIGKILL
    assert_gone(pid, supervisor)
    assert way.link.runs() == 2


def test_terminate_without_a_network_returns_and_warns(way: Way) -> None:
    gateway = way.make(1, "//grace=0.2")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    way.link.go_down()
    wait_until(lambda: way.states == [f"{gateway.id} lost"])
    with pytest.warns(ResourceWarning, match="could not be reached to be killed") as warned:
        way.group.terminate(0.1)
    assert '"execnet clean" does' in str(warned[0].message)
    assert len(list(records.left())) == 1
    assert_gone(pid, supervisor)


def test_a_start_that_is_cut_leaves_nothing(way: Way) -> None:
    for cut in 100, 16_000, 30_000, 40_000:
        way.link.set_cuts([0] * way.link.runs() + [cut] + [0] * 9)
        with pytest.raises(BootstrapError):
            way.make(600)
    # The server and the hop stay; whatever else there is has gone.
    path = f"PATH={os.environ['PATH']}"
    hops = {pid_of(gateway) for gateway in way.group}
    server = way.server

    def started() -> set[int]:
        stay = {os.getpid(), *hops, *([server.popen.pid] if server else [])}
        return set(processes_with(path)) - stay

    wait_until(lambda: not started())


# ---------------------------------------------------------------- socket servers


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_survives_its_server_and_goes_on_with_the_next_one_there(
    served: Way, servers: Servers, signum: signal.Signals
) -> None:
    assert served.server is not None
    gateway = served.make()
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    served.server.stop(signum)
    servers.start(served.server.address)
    if signum == signal.SIGKILL:  # which ends no connection
        served.link.cut()
    channel.send(2)
    assert channel.receive(BOUND_S) == 2
    wait_until(lambda: served.states[:2] == ["gw0 lost", "gw0 resumed"])


def test_what_a_server_started_ends_with_its_connection(served: Way) -> None:
    assert served.server is not None
    gateway = served.make()
    pid, before = pid_of(gateway), served.server.processes()
    assert len(before) == 1
    assert pid not in before
    served.link.cut()
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    wait_until(lambda: all(is_gone(pid) for pid in before))
    assert len(served.server.processes()) == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: served.server is not None and served.server.processes() == [])


@pytest.mark.parametrize("name", ["socket", "socket TLS"])
def test_bytes_of_an_earlier_connection_open_no_other_one(make_way: MakeWay, name: str) -> None:
    way = make_way(name)
    gateway = way.make()
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    way.link.cut()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    runs = way.link.runs()
    assert isinstance(way.link, CutPort)
    for passage in way.link.passages:
        with connect(way.link.server) as conn:
            conn.sendall(passage.from_client)
            assert b"execnet-auth-1 ok" not in read_to_end(conn)
    channel.send(2)
    assert channel.receive(BOUND_S) == 2
    assert (way.link.runs(), way.states[2:]) == (runs, [])


def test_with_the_key_alone_or_an_earlier_epoch_nobody_takes_a_worker_over(served: Way) -> None:
    gateway = served.make()
    served.link.cut()
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    io = gateway._io
    session = io._session  # type: ignore[attr-defined]
    secret, told = session.secret, []
    for tried, epoch in ("0" * 32, 9), (secret, 1), (secret, 0):
        way = io._maker.anew(time.monotonic() + BOUND_S, bool)  # type: ignore[attr-defined]
        session.secret, session.epoch, kept = tried, epoch, session.epoch
        way.write_some(session.line(b"marker\n", "resume"))
        session.secret, session.epoch = secret, kept
        told.append(read_to_end(way.infile))
        way.kill()
        way.close_write()
        way.close_read()
    refused = b"marker\nrefused the secret is another one\n"
    assert told == [refused, b"marker\nolder\n", b"marker\nolder\n"]
    channel.send(2)
    assert channel.receive(BOUND_S) == 2


def test_no_command_names_the_secret_or_the_folder(served: Way) -> None:
    gateway = served.make()
    served.link.cut()
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    session = gateway._io._session  # type: ignore[attr-defined]
    assert served.server is not None
    pids = [
        os.getpid(),
        pid_of(gateway),
        supervisor_of(pid_of(gateway)),
        *served.server.processes(),
    ]
    for pid in pids:
        told = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
        assert session.secret not in told
        assert session.folder not in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")
def test_another_user_reaches_no_supervisor(served: Way) -> None:
    gateway = served.make()
    session = gateway._io._session  # type: ignore[attr-defined]
    code = f"""
import os, socket
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
folder = {session.folder!r}
for way in lambda: os.listdir(folder), lambda: sock.connect(folder + "/socket"):
    sock = socket.socket(socket.AF_UNIX)
    try:
        way()
        print("in")
    except PermissionError:
        print("out")
"""
    python = getattr(sys, "_base_executable", sys.executable)
    assert run_python(code, python=python).stdout == "out\nout\n"
    os.chmod(session.folder, 0o777)
    os.chmod(f"{session.folder}/socket", 0o777)
    code = code.replace("sock.connect(", "ask(").replace("for way", ASK + "for way")
    code = code.replace("SECRET", session.secret)
    assert run_python(code, python=python).stdout == "in\nb''\nin\n"


ASK = """
def ask(path):
    sock.connect(path)
    try:
        sock.sendall(b"SECRET kill 0\\n")
        print(sock.recv(100))
    except ConnectionError:  # closed unread
        print(b"")
"""


def test_execnet_clean_ends_a_worker_whose_program_was_killed(served: Way) -> None:
    with program_with(served.spec(600)) as (program, pid):
        supervisor = supervisor_of(pid)
        program.kill()
    clean()
    assert list(records.left()) == []
    assert_gone(pid, supervisor)


def test_an_attempt_that_nobody_answers_ends_with_its_gateway(served: Way) -> None:
    gateway = served.make(600, "//grace=0.2//connect_timeout=60")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        crowd = [connect(f"127.0.0.1:{silent.getsockname()[1]}")]  # the next gets no answer
        gateway._io._settings.address = silent.getsockname()  # type: ignore[attr-defined]
        served.link.cut()
        wait_until(lambda: served.states == ["gw0 lost"])
        with pytest.warns(ResourceWarning, match="could not be reached to be killed"):
            served.group.terminate(0.1)
        for conn in crowd:
            conn.close()
    os.kill(supervisor, signal.SIGKILL)
    assert_gone(pid, supervisor)


def test_what_is_sent_before_the_hello_goes_in_one_packet() -> None:
    spec = XSpec("socket=h:1//resume=9//id=gateway1234//execmodel=thread")
    assert len(first_line(Settings(spec), b"x" * 28)) <= FIRST_PACKET_MAX


# ---------------------------------------------------------------- servers that gateways start


def test_each_connection_has_a_server_of_its_own_that_listens_for_nobody_else(
    make_way: MakeWay,
) -> None:
    way = make_way("installed")
    gateway = way.make()
    way.link.cut()
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    assert isinstance(way.link, InstalledPort)
    first, second = way.link.servers
    assert first != second
    for address in first, second:
        with pytest.raises(ConnectionRefusedError):
            connect(address)


@pytest.mark.parametrize("name", ["installed", "installed TLS"])
def test_a_worker_without_the_gateway_that_starts_its_servers_is_a_clear_end(
    make_way: MakeWay, name: str
) -> None:
    way = make_way(name)
    gateway = way.make(1, "//grace=0.2")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    os.kill(pid_of(way.group["hop"]), signal.SIGKILL)
    way.group["hop"].join(BOUND_S)
    way.link.cut()
    why = r"gw0 was given up: hop, which starts its server, has ended: .*SIGKILL"
    with pytest.raises(WorkerDied, match=why) as caught:
        channel.receive(BOUND_S)
    assert caught.value.hop == "hop"
    assert_gone(pid, supervisor)  # when its time is over


# ---------------------------------------------------------------- other gateways


def test_a_hop_that_is_gone_is_a_clear_end(make_way: MakeWay) -> None:
    way = make_way("via")
    gateway = way.make(1, "//grace=0.2")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    os.kill(pid_of(way.group["hop"]), signal.SIGKILL)
    why = r"gw0 was given up: hop, which it goes via, has ended: .*SIGKILL"
    with pytest.raises(WorkerDied, match=why) as caught:
        channel.receive(BOUND_S)
    assert caught.value.hop == "hop"
    assert_gone(pid, supervisor)  # when its time is over


def test_a_hop_that_resumes_itself_is_waited_for(
    make_way: MakeWay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = make_way("socket")
    folder = tmp_path / "beyond"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    beyond = CutLink(folder)
    way.make(more="//id=hop")
    # The hop's server has the PATH of before.
    way.group["hop"].remote_exec(f"import os; os.environ['PATH'] = {os.environ['PATH']!r}")
    python = f"python={sys.executable}"
    gateway = way.group.makegateway(f"ssh=host//{python}//via=hop//resume={BOUND_S}")
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    for number, cut in enumerate([way.link.cut, beyond.cut, way.link.cut]):
        cut()
        channel.send(number)
        assert channel.receive(BOUND_S) == number
    wait_until(lambda: way.states.count("hop resumed") == 2)
    wait_until(lambda: way.states.count(f"{gateway.id} resumed") == 1)


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse what they have no room for")
def test_a_kill_dials_a_host_that_does_not_answer_for_a_moment_only(
    served: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = served.make(600, "//grace=0.2")
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    stop(pid)
    served.link.stop()
    monkeypatch.setattr(near, "LOGIN_S", 2 * BOUND_S)
    monkeypatch.setattr(terminate, "REACH_S", 0.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as clients:
        for _ in range(4):  # the kernel takes no more, and says so to none
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        place = socket.AF_INET, full.getsockname()
        with monkeypatch.context() as patch:
            patch.setattr(gateway_socket, "_places", lambda *args: [place])
            began = time.monotonic()
            with pytest.warns(ResourceWarning, match=r"to be killed \(can't connect"):
                served.group.terminate(0.1)
            assert time.monotonic() - began < BOUND_S
    ((path, told),) = records.left()
    anew = gateway._io._maker.anew  # type: ignore[attr-defined]
    records.end(path, told, lambda *place: lambda deadline: anew(deadline, bool))
    assert_gone(pid, supervisor)


def test_a_kill_does_not_wait_for_a_hop_that_is_out_of_reach_itself(make_way: MakeWay) -> None:
    way = make_way("socket")
    hop = way.make(600, "//id=hop//grace=0.2")
    assert way.server is not None
    spec = f"socket={way.server.address}//via=hop//resume=1//grace=0.2"
    gateway = way.group.makegateway(spec)
    pids = [pid_of(one) for one in (hop, gateway)]
    supervisors = [supervisor_of(pid) for pid in pids]
    way.link.go_down()
    wait_until(lambda: way.states == ["hop lost"])
    with pytest.warns(ResourceWarning, match="hop, which it goes via, is out of reach itself"):
        gateway._io.kill()
    os.kill(supervisors[0], signal.SIGKILL)
    assert_gone(*pids, *supervisors)
    with pytest.warns(ResourceWarning, match="worker hop could not be reached"):
        way.group.terminate(0.1)


def test_in_a_tree_each_connection_is_made_anew(make_way: MakeWay) -> None:
    way = make_way("ssh")
    draw = random.Random("tree")
    way.link.set_cuts([300_000] * 3 + [draw.randrange(60_000, 300_000) for _ in range(6)])
    tree = way.group.tree([way.spec(BOUND_S)] * 3, fanout=1)
    assert [gateway.spec.via for gateway in tree] == [None, "gw0", "gw1"]
    exchange(tree[2], [draw.choice((3, 300, 30_000)) for _ in range(100)])
    assert way.link.runs() > 4


def test_a_callback_of_the_hop_that_sends_beyond_never_waits(make_way: MakeWay) -> None:
    way = make_way("via")
    gateway = way.make()
    beyond = gateway.remote_exec("for item in channel: channel.send(len(item))")
    way.link.go_down()
    for _ in range(9):  # more than what is kept without an answer
        beyond_sends = way.group["hop"].remote_exec("channel.send(b'x' * (1 << 20))")
        item = beyond_sends.receive(BOUND_S)
        done = call_in_receiver(way.group["hop"], lambda _, item=item: beyond.send(item))
        done.waitclose(BOUND_S)
    way.link.go_up()
    assert [beyond.receive(BOUND_S) for _ in range(9)] == [1 << 20] * 9


def test_half_an_item_of_a_killed_hop_ends_the_connection() -> None:
    hop = mock.MagicMock()
    hop.read_some.side_effect = [b"half", LoadError("the data ends within an item")]
    way = ways.PassedWay(hop)
    with closing(way.infile) as sock:
        sock.settimeout(BOUND_S)
        assert read_to_end(sock) == b"half"
    for thread in way._writer, way._reader:
        thread.join(BOUND_S)
        assert not thread.is_alive()
