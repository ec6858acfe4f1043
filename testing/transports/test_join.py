"""Workers that dial in: who gets in, what the others are told, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interpreters import far_sides, found
from processes import is_gone
from socketservers import read_to_end
from test_socket_proof import relay_to
from tools import BOUND_S, FORKING, Resources, clean_environment, run_python, wait_until
from workers import ask

import execnet
from execnet import Group, WorkerDied
from execnet._join.command import COMMAND_BYTES, KEY_VARIABLE, ticket_of
from execnet.script import socketserver

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

KEY = bytes(range(32))
ROUNDS, AT_ONCE = "EXECNET_TEST_JOIN_ROUNDS", "EXECNET_TEST_JOINERS"  # 16 and 64 take long
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def ticket(group: Group, pem: str) -> str:
    """Where ``group`` listens, for those that have ``KEY``."""
    return group.listen("127.0.0.1:0", key=KEY, tls=pem)


@pytest.fixture
def start(nothing_is_left: None) -> Iterator[Start]:
    """A function that runs a joiner's command; its stderr is a pipe."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str, key: bytes = KEY, **variables: str) -> subprocess.Popen[str]:
        variables.setdefault(KEY_VARIABLE, key.hex())
        popen = subprocess.Popen(
            shlex.split(command),
            env=clean_environment(**variables),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        started.append(popen)
        return popen

    yield start
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.communicate(timeout=BOUND_S)


def ended(popen: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status of a joiner, and what it has said."""
    said = popen.communicate(timeout=BOUND_S)[1]
    return popen.returncode, said


def command(group: Group, **options: Any) -> str:
    return group.join_command(python=sys.executable, **options)


class Speaker:
    """A joiner of the tests' own, which may lie; ``answer`` is what it hears after its proof."""

    def __init__(self, ticket: str, key: bytes = KEY, id: str = "", word: str = "join ") -> None:
        known = ticket_of(ticket)
        self.id = id or os.urandom(32).hex()
        sock = socket.create_connection(known.address, BOUND_S)
        nonce = sock.makefile("rb", 0).readline().split()[2].decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(sock)
        words = [f"tls {nonce} {word}{self.id} {known.fingerprint}".encode()]
        proved = socketserver.proof(key, b"client", words).decode()
        line = f"execnet-auth-1 {self.id} {known.fingerprint} {proved}\n"
        self.sock.sendall(line.encode())
        self.file = self.sock.makefile("rb")
        self.answer = self.file.readline().decode()

    def say(self, facts: bytes) -> str:
        """Say who this is, after what a joiner is to run; return the answer."""
        assert self.answer.split()[1] == "ok", self.answer
        self.file.read(int(self.answer.split()[2]))
        self.sock.sendall(facts)
        return self.file.readline().decode()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()


class TestJoiner:
    def test_on_every_python_it_is_a_worker_like_others(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        for rank, python in enumerate(found()):
            slurm = {"SLURM_PROCID": str(rank), "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
            start(group.join_command(python=shlex.quote(python.path)), **slurm)
        gateways = group.wait_for(len(found()), BOUND_S)
        assert sorted(gateway.id for gateway in group) == sorted(one.id for one in gateways)
        for gateway in gateways:
            info = gateway._rinfo()
            python = found()[info.rank]
            assert (info.version_info[:3], info.executable) == (python.version, python.path)
            assert (info.host, info.launcher, info.job) == (socket.gethostname(), "Slurm", "17.0")
            assert len(info.join_id) == 64
            assert gateway._rinfo(update=True).rank == info.rank
            text = os.urandom(150_000).hex()
            assert ask(gateway, "channel.send(channel.receive())", text) == text

    @pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc shows all there is")
    def test_the_key_is_gone_before_code_runs(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        joiner = start(command(group))
        (gateway,) = group.wait_for(1, BOUND_S)
        code = """
import os
channel.send([sorted(os.environ), open("/proc/self/environ").read(), os.getppid()])
"""
        names, environment, parent = ask(gateway, code)
        assert KEY_VARIABLE not in names
        assert KEY.hex() not in environment
        shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (parent, joiner.pid)]
        assert [text for text in shown if KEY.hex() in text] == []

    def test_options_of_a_spec_are_for_all(
        self, group: Group, pem: str, start: Start, tmp_path: Path
    ) -> None:
        options = f"chdir={tmp_path}//env:WORD=told//execmodel=main_thread_only//grace=1"
        group.listen("127.0.0.1:0", KEY, pem, options=options)
        start(command(group))
        (gateway,) = group.wait_for(1, BOUND_S)
        code = "import os; channel.send((os.getcwd(), os.environ['WORD']))"
        assert ask(gateway, code) == (str(tmp_path), "told")
        assert gateway.remote_status().execmodel == "main_thread_only"
        assert gateway.spec.listen == gateway._io.args[0].partition("=")[2]

    def test_it_gets_through_what_leads_to_the_coordinator(
        self, group: Group, ticket: str, start: Start, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text(KEY.hex())
        with relay_to(ticket.partition("//")[0]) as via:
            start(command(group, via=via, key=str(tmp_path / "key")))
            group.wait_for(1, BOUND_S)
            group.terminate(timeout=5)

    @pytest.mark.parametrize("key", ["-", None])
    def test_an_installed_execnet_joins_as_well(
        self, group: Group, ticket: str, key: str | None, start: Start
    ) -> None:
        words = [sys.executable, "-m", "execnet", "join", ticket]
        if key is None:
            joiner = start(shlex.join(words))
        else:
            line = f"echo {KEY.hex()} | {shlex.join([*words, '--key', '-'])}"
            joiner = start(shlex.join(["sh", "-c", line]), EXECNET_KEY="no key")
        (gateway,) = group.wait_for(1, BOUND_S)
        assert ask(gateway, f"import os; channel.send({KEY_VARIABLE!r} in os.environ)") is False
        group.terminate(timeout=5)
        assert ended(joiner) == (0, "")


class TestCommand:
    def test_it_is_short_and_tells_no_secret(self, group: Group, ticket: str) -> None:
        for key in (None, "-", "env:MY_KEY", "/etc/execnet/key", "~/key"):
            line = group.join_command(key=key)
            assert len(line) <= COMMAND_BYTES
            assert "\n" not in line
            assert KEY.hex() not in line
            assert shlex.split(line)[:2] == ["python3", "-c"]

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"key": "/long" * 100}, "bytes, more than 1500"),
            ({"via": 'x");import os;("'}, "not the name of a host"),
            ({"key": 'x")or"'}, "use printable ASCII"),
        ],
    )
    def test_what_it_can_not_say_is_refused(
        self, group: Group, ticket: str, options: dict[str, str], error: str
    ) -> None:
        with pytest.raises(ValueError, match=error):
            group.join_command(**options)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"tls": False}, "by its certificate"),
            ({"count": 0}, "admits nobody"),
            ({"options": "popen"}, "has 2 types: popen, listen"),
            ({"options": "id=a"}, "id= can't be for all that join"),
            ({"options": "python=python2"}, "nothing starts a worker that dials in"),
            ({"address": "unix:/tmp/x"}, "host:port"),
            ({"key": b"short"}, "32 random bytes"),
            ({"options": "resume=9", "fanout": 2}, "fanout= is not with resume="),
            ({"options": "resume=9//execmodel=gevent"}, "resume= .*, not with greenlets"),
        ],
    )
    def test_a_group_does_not_listen_so(
        self, group: Group, pem: str, arguments: dict[str, Any], error: str
    ) -> None:
        with pytest.raises(ValueError, match=error):
            group.listen(**{"address": "127.0.0.1:0", "key": KEY, "tls": pem, **arguments})
        with pytest.raises(ValueError, match="is not listening"):
            group.wait_for(1, 0)


@pytest.mark.parametrize("number", range(int(os.environ.get(ROUNDS, "2"))))
def test_many_at_once_leave_nothing_however_often_they_come(pem: str, number: int) -> None:
    many = int(os.environ.get(AT_ONCE, "4"))
    before = Resources.now()
    group = Group()
    group.listen("127.0.0.1:0", KEY, pem, count=many)
    each = f'i=0; while [ $i -lt {many} ]; do PMI_RANK=$i "$@" & i=$((i+1)); done; wait'
    group.launch(["sh", "-c", each, "sh"], python=sys.executable)
    gateways = group.wait_for(many, 10 * BOUND_S)
    pids = [gateway._rinfo().pid for gateway in gateways]
    assert {gateway._rinfo().rank for gateway in gateways} == set(range(many))
    group.terminate(timeout=BOUND_S)
    wait_until(lambda: all(map(is_gone, pids)), BOUND_S)
    before.assert_nothing_new()


TWICE = 'for rank in 0 1; do PMI_RANK=$rank "$@" & done; wait'


class TestLaunch:
    def test_each_task_of_a_launcher_is_a_worker_and_it_ends_with_them(
        self, group: Group, pem: str, tmp_path: Path
    ) -> None:
        done = tmp_path / "done"
        group.listen("127.0.0.1:0", KEY, pem)
        group.launch(["sh", "-c", f"{TWICE}; touch {done}", "sh"], python=sys.executable)
        gateways = group.wait_for(2, BOUND_S)
        assert {gateway._rinfo().rank for gateway in gateways} == {0, 1}
        group.terminate(timeout=BOUND_S)
        assert done.exists()

    def test_one_that_fails_ends_the_wait(self, group: Group, ticket: str) -> None:
        group.launch("sh -c 'exit 3' sh")
        with pytest.raises(execnet.BootstrapError, match=r"0 of 2 .* sh has failed, .* is 3"):
            group.wait_for(2)
        with pytest.raises(FileNotFoundError):
            group.launch("absent-launcher -n 2")

    def test_one_that_stays_is_ended(self, group: Group, ticket: str) -> None:
        group.launch("sh -c 'exec sleep 600'")
        (launcher,) = group._get_joins().launchers
        group.terminate(timeout=0.1)
        assert launcher.failure() == "sh has failed, signal 15 has ended it"


class TestTurnedAway:
    def test_one_with_another_key_is_told_and_named(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        assert ended(start(command(group), key=bytes(32))) == (
            1,
            "execnet join: the client has another key\n",
        )
        with pytest.raises(execnet.TimeoutError, match=r"0 of 1 .* 127.0.0.1: .* another key"):
            group.wait_for(1, 0)

    def test_one_without_a_key_is_told(self, group: Group, ticket: str, start: Start) -> None:
        for line in f"env -u {KEY_VARIABLE} {command(group)}", command(group, key="/absent"):
            status, said = ended(start(line, **{KEY_VARIABLE: "no hex"}))
            assert (status, said.startswith("execnet join: no key: ")) == (1, True)

    def test_one_that_comes_too_late_ends_well_until_there_is_room(
        self, group: Group, pem: str, start: Start
    ) -> None:
        group.listen("127.0.0.1:0", KEY, pem, count=1)
        start(command(group))
        (gateway,) = group.wait_for(1, BOUND_S)
        said = "execnet join: too late: the group has the 1 workers it wants\n"
        assert ended(start(command(group))) == (0, said)
        gateway.exit()
        wait_until(lambda: not gateway.hasreceiver())
        start(command(group))
        assert group.wait_for(1, BOUND_S) != [gateway]

    def test_one_that_comes_twice_is_refused(self, ticket: str) -> None:
        with Speaker(ticket) as first, Speaker(ticket, id=first.id) as second:
            assert first.answer.split()[1] == "ok"
            assert "error a joiner with this id has already come" in second.answer

    def test_a_rank_is_taken_until_its_worker_has_died(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "PMIX_NAMESPACE": "7"}
        first = start(command(group), **mpi)
        (gateway,) = group.wait_for(1, BOUND_S)
        assert (gateway._rinfo().rank, gateway._rinfo().size) == (3, 8)
        status, said = ended(start(command(group), **mpi))
        assert (status, said) == (
            1,
            f"execnet join: rank 3 of MPI job 7 has joined already: {gateway.id}\n",
        )
        first.kill()
        wait_until(lambda: not gateway.hasreceiver())
        start(command(group), **mpi)
        (again,) = group.wait_for(1, BOUND_S)
        assert list(group) == [again]


class TestAttacks:
    def test_a_worker_with_the_key_can_not_pose_as_the_coordinator(
        self, group: Group, ticket: str, start: Start, tmp_path: Path
    ) -> None:
        other = tmp_path / "pem"
        other.write_bytes(socketserver.make_certificate())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(other)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            joiner = start(command(group, via=f"127.0.0.1:{listener.getsockname()[1]}"))
            conn = listener.accept()[0]
            conn.settimeout(BOUND_S)
            conn.sendall(b"execnet-auth-1 tls " + b"0" * 64 + b"\n")
            with context.wrap_socket(conn, server_side=True) as talk:
                try:
                    heard = read_to_end(talk)
                except ssl.SSLError:  # it has ended without a goodbye
                    heard = b""
        assert heard == b""
        status, said = ended(joiner)
        assert (status, said.startswith("execnet join: not the coordinator")) == (1, True)

    def test_a_proof_for_a_socket_server_lets_nobody_in(self, ticket: str) -> None:
        with Speaker(ticket, word="") as speaker:
            assert "error the client has another key" in speaker.answer

    @pytest.mark.parametrize("id", ["\u00e9" * 32, "\x1b" * 64], ids=["bytes", "control"])
    def test_what_is_no_id_is_refused_and_the_door_stays_open(self, ticket: str, id: str) -> None:
        with Speaker(ticket, id=id) as speaker:
            assert speaker.answer.endswith("error a joiner's id is a number in hex\n")
        with Speaker(ticket) as speaker:
            assert speaker.answer.split()[1] == "ok"

    @pytest.mark.parametrize(
        "facts",
        [
            b"x" * 5000 + b"\n",
            b"[" * 500 + b"\n",
            b'{"host": "\\u001b[2J"}\n',
            b'{"rank": -1}\n',
            b'{"rank": 1e999}\n',
            b'{"job": {"a": 1}}\n',
            json.dumps({"host": "x" * 101}).encode() + b"\n",
        ],
    )
    def test_what_no_joiner_says_of_itself_is_refused(
        self, group: Group, ticket: str, facts: bytes
    ) -> None:
        # A connection is reset where more was said than was read.
        with Speaker(ticket) as speaker, contextlib.suppress(ConnectionResetError):
            assert speaker.say(facts).startswith("error ")
        wait_until(lambda: group._get_joins().reasons)
        with pytest.raises(execnet.TimeoutError, match="turned away: 127"):
            group.wait_for(1, 0)

    def test_a_crowd_at_the_door_keeps_no_joiner_out(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        place = ticket_of(ticket).address
        crowd = [socket.create_connection(place) for _ in range(100)]
        try:
            start(command(group))
            group.wait_for(1, BOUND_S)
        finally:
            for conn in crowd:
                conn.close()


class TestEnds:
    def test_of_a_group_ends_joiners_well(self, group: Group, ticket: str, start: Start) -> None:
        joiners = [start(command(group)) for _ in range(2)]
        pids = [ask(one, "import os; channel.send(os.getpid())") for one in group.wait_for(2, 30)]
        group.terminate(timeout=5)
        assert [ended(joiner) for joiner in joiners] == [(0, ""), (0, "")]
        wait_until(lambda: all(map(is_gone, pids)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(ticket_of(ticket).address)

    @pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
    def test_of_a_program_prints_nothing_there(
        self, group: Group, ticket: str, start: Start, python: str
    ) -> None:
        joiner = start(group.join_command(python=shlex.quote(python)))
        (gateway,) = group.wait_for(1, BOUND_S)
        gateway.remote_exec("import os; os.fork() or __import__('time').sleep(1)")
        gateway._io.close_write()  # as when the program has gone
        assert ended(joiner) == (0, "")

    def test_of_a_worker_by_a_signal_is_told_on_both_sides(
        self, group: Group, ticket: str, start: Start
    ) -> None:
        joiner = start(command(group), PMI_RANK="4")
        (gateway,) = group.wait_for(1, BOUND_S)
        channel = gateway.remote_exec("import os; os.kill(os.getpid(), 9)")
        place = rf"worker {gateway.id} \(rank 4 of MPI, on {socket.gethostname()}\) died"
        with pytest.raises(WorkerDied, match=f"{place}, killed by SIGKILL"):
            channel.waitclose(BOUND_S)
        assert gateway.exitcode == -9
        assert ended(joiner)[0] == 128 + 9

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_of_a_joiner_by_a_batch_system_is_told(
        self, group: Group, ticket: str, start: Start, number: signal.Signals
    ) -> None:
        joiner = start(command(group))
        (gateway,) = group.wait_for(1, BOUND_S)
        channel = gateway.remote_exec("import os; channel.send(os.getpid()); channel.receive()")
        pid = channel.receive(BOUND_S)
        joiner.send_signal(number)
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        if number == signal.SIGTERM:
            assert gateway.exitcode == -signal.SIGTERM
        wait_until(lambda: is_gone(pid), BOUND_S)

    def test_of_a_group_does_not_wait_for_joiners_that_say_nothing(
        self, group: Group, ticket: str
    ) -> None:
        with Speaker(ticket) as silent:
            assert silent.answer.split()[1] == "ok"
            group.terminate(timeout=1)

    def test_a_fork_has_no_part_in_it(self, pem: str) -> None:
        code = f"""
import os, execnet, socket
group = execnet.Group()
ticket = group.listen("127.0.0.1:0", key=bytes(32), tls={pem!r})
place = execnet._join.command.ticket_of(ticket).address
pid = os.fork()
if not pid:
    try:
        group.join_command()
    except ValueError as exc:
        print(exc)
    group.terminate(timeout=1)
    os._exit(7)
print(os.waitpid(pid, 0)[1] >> 8)
with socket.create_connection(place) as conn:
    print(conn.recv(100)[:18])
"""
        result = run_python(code, PYTHONUNBUFFERED="1", **FORKING)
        assert result.stderr == ""
        assert result.stdout.splitlines() == [
            "the group is not listening: call its listen() first",
            "7",
            "b'execnet-auth-1 tls'",
        ]


class TestOnJoin:
    def test_it_gets_those_that_are_there_and_those_that_come(
        self, group: Group, ticket: str, start: Start, capsys: pytest.CaptureFixture[str]
    ) -> None:
        start(command(group))
        (first,) = group.wait_for(1, BOUND_S)
        seen = []
        group.on_join(seen.append)
        assert seen == [first]
        arrived = threading.Event()

        def fail_and_go_on(gateway: execnet.Gateway) -> None:
            if gateway is not first:
                arrived.set()
            raise KeyError(gateway.id)

        group.on_join(fail_and_go_on)
        start(command(group))
        assert arrived.wait(BOUND_S)
        wait_until(lambda: not group._get_joins()._threads)
        assert capsys.readouterr().err.count("on_join of gw") == 2

    def test_it_may_end_the_group(self, group: Group, ticket: str, start: Start) -> None:
        over = threading.Event()

        def end(gateway: execnet.Gateway) -> None:
            group.terminate(timeout=5)
            over.set()

        group.on_join(end)
        assert ended(start(command(group)))[0] == 0
        assert over.wait(BOUND_S)
        assert len(group) == 0


def test_a_signal_that_comes_late_does_not_hide_how_a_worker_has_ended() -> None:
    code = """
import os, signal
from execnet._ends import far_watcher

def gone(pid, number):
    raise ProcessLookupError(3, "no such process")

def wait(pid, options, wait=os.waitpid):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return wait(pid, options)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
pid = os.fork()
if not pid:
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(3)
os.kill, os.waitpid = gone, wait
print(far_watcher._wait_for(pid))
"""
    assert run_python(code).stdout == "3\n"
