"""``resume=``: a gateway goes on over another connection when one is lost."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cut_links import CutLink, assert_gone, clean, exchange, program_with, supervisor_of
from interpreters import far_sides
from pages import read
from processes import processes_with, state_of, stop
from tools import BOUND_S, ROOT, SOURCE, some_of, wait_until

from execnet import BootstrapError, Gateway, Group, WorkerDied, _cli, _folders
from execnet._resume import far_supervisor, near, records
from execnet._resume.logins import Ended, Session, Unreachable
from execnet._resume.ways import command_of_login
from execnet._ship.shipment import FIRST_PACKET_MAX
from execnet._specs import Settings
from execnet._transports.table import Command
from execnet.gateway_bootstrap import first_line
from execnet.xspec import XSpec

WAITS = "channel.send(1); channel.receive()"


@pytest.fixture
def group(link: CutLink) -> Iterator[Group]:
    """A group whose gateways go over that."""
    with Group() as group:
        yield group


def states_of(group: Group) -> list[str]:
    """Return the list that gets what the group tells."""
    states: list[str] = []
    group.on_state(lambda gateway, state: states.append(f"{gateway.id} {state}"))
    return states


def spec_of(seconds: float, python: str = sys.executable, more: str = "") -> str:
    return f"ssh=host//python={python}//resume={seconds:g}{more}"


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


@pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
def test_all_that_is_sent_comes_once_and_in_order_over_a_link_that_is_cut_at_random_bytes(
    python: str, group: Group, link: CutLink
) -> None:
    draw = random.Random(f"cuts {python}")
    count = some_of(10)
    boot = 40_000  # so many bytes pass before the worker can be found again
    link.set_cuts([boot + 200_000] + [draw.randrange(12_000, 300_000) for _ in range(count)])
    gateway = group.makegateway(spec_of(BOUND_S, python))
    exchange(gateway, [draw.choice((3, 300, 30_000)) for _ in range(40 * count)])
    assert link.runs() > count // 2


def test_over_a_real_ssh_it_goes_on_when_that_is_killed(spec: str) -> None:
    with Group() as group:
        states = states_of(group)
        gateway = group.makegateway(f"{spec}//resume={BOUND_S}//python={sys.executable}")
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        channel.send(1)
        assert channel.receive(BOUND_S) == 1
        gateway._io._carrier.popen.kill()  # type: ignore[attr-defined]
        channel.send(2)
        assert channel.receive(BOUND_S) == 2
        wait_until(lambda: states == ["gw0 lost", "gw0 resumed"])


def test_that_it_was_resumed_is_told_before_it_can_be_lost_again(
    group: Group, link: CutLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    use = near.ResumeIO.use

    def note(self: near.ResumeIO, *args: Any) -> None:
        steps.append("used")
        use(self, *args)

    gateway = group.makegateway(spec_of(BOUND_S))
    channel = gateway.remote_exec("channel.send(channel.receive())")
    monkeypatch.setattr(gateway, "tell_state", steps.append)
    monkeypatch.setattr(near.ResumeIO, "use", note)
    link.cut()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    assert steps == ["lost", "resumed", "used"]


def test_the_job_of_the_page_survives_a_cut_network(link: CutLink, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    page = read(ROOT / "doc" / "resume.rst")
    program.write_text("".join(block.text for block in page if block.language == "python"))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-u", str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as job:
        assert job.stdout is not None
        first = job.stdout.readline()
        link.cut()
        others, errors = job.communicate(timeout=BOUND_S)
    assert (first + others).split("\n") == [f"step {number}" for number in range(5)] + [""]
    assert "gw0 lost\ngw0 resumed\n" in errors


def test_a_login_that_is_made_anew_asks_nobody_and_shares_no_connection() -> None:
    for words in (["ssh", "-C", "h", "sh"], ["vagrant", "ssh", "m", "--", "-C", "sh"]):
        anew = command_of_login(Command(words, is_remote=True))
        place = words.index("-C")
        assert anew[:place] == words[:place]
        assert anew[place : place + 4] == ["-o", "ControlPath=none", "-o", "BatchMode=yes"]
        assert (anew[place + 4 :], anew.is_remote) == (words[place:], True)
    assert command_of_login(Command(["docker", "exec", "c", "sh"])) == ["docker", "exec", "c", "sh"]


def test_a_process_forked_from_the_program_does_not_hold_the_connection(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    child = os.fork()
    if not child:
        os._exit(not gateway._io.connection.is_closed)  # type: ignore[attr-defined]
    assert os.waitpid(child, 0)[1] == 0
    channel = gateway.remote_exec("channel.send(1)")
    assert channel.receive(BOUND_S) == 1


def test_a_silent_connection_is_taken_for_a_lost_one(group: Group, link: CutLink) -> None:
    states = states_of(group)
    gateway = group.makegateway(spec_of(BOUND_S, more="//heartbeat=0.2//dead_after=2"))
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    link.stop()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    wait_until(lambda: states[:2] == ["gw0 lost", "gw0 resumed"])


def test_stderr_and_what_is_sent_without_a_network_break_nothing(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    channel = gateway.remote_exec(
        "import os, sys\n"
        "go, done = channel.receive()\n"
        "while os.path.exists(go): pass\n"
        "for n in range(1000): sys.stderr.write('x' * 1000); channel.send(n)\n"
        "sys.stderr.flush()\n"
        "os.unlink(done)\n"
    )
    go, done = link.flag("go"), link.flag("done")
    channel.send((str(go), str(done)))
    assert gateway.remote_status(BOUND_S).numexecuting == 1
    link.go_down()
    go.unlink()
    wait_until(lambda: not done.exists())
    link.go_up()
    assert [channel.receive(BOUND_S) for _ in range(1000)] == list(range(1000))
    channel.waitclose(BOUND_S)


def test_send_waits_when_8_MiB_are_not_acknowledged(group: Group, link: CutLink) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    channel = gateway.remote_exec("for item in channel: channel.send(len(item))")
    link.go_down()
    sent: list[int] = []

    def send() -> None:
        for number in range(12):
            channel.send(b"x" * (1 << 20))
            sent.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_until(lambda: len(sent) >= 7)
        for _ in range(10):
            gateway._post(12)  # frames that must not wait pass
        assert len(sent) <= 9
    finally:
        link.go_up()
    assert [channel.receive(BOUND_S) for _ in range(12)] == [1 << 20] * 12
    sender.join()


def test_a_worker_that_sends_waits_when_8_MiB_are_not_acknowledged(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(600))
    pid = pid_of(gateway)
    channel = gateway.remote_exec(
        "import os\n"
        "go, sent = channel.receive()\n"
        "while os.path.exists(go): pass\n"
        "for number in range(16):\n"
        "    channel.send(b'x' * (1 << 20))\n"
        "    with open(sent, 'a') as file: file.write('.')\n"
    )
    go, sent = link.flag("go"), link.flag("sent")
    channel.send((str(go), str(sent)))
    assert gateway.remote_status(BOUND_S).numexecuting == 1
    link.go_down()
    go.unlink()
    wait_until(lambda: sent.stat().st_size >= 7)
    wait_until(lambda: state_of(pid) == "S")
    assert sent.stat().st_size <= 9
    link.go_up()
    for _ in range(16):
        assert len(channel.receive(BOUND_S)) == 1 << 20


def test_errors_come_only_when_the_time_is_over_and_then_nothing_is_left(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(1, more="//grace=0.2"))
    pid = pid_of(gateway)
    folder = gateway._io._session.folder  # type: ignore[attr-defined]
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    link.go_down()
    channel.send("kept")
    why = r"(?s)was given up: it was out of reach for 1 s; .*Network"  # which may be its last word
    with pytest.raises(WorkerDied, match=why):
        channel.receive(BOUND_S)
    with pytest.raises(OSError, match="out of reach"):
        channel.send(1)
    assert_gone(pid, supervisor)
    assert not os.path.exists(folder)


def fds_of(pid: int) -> int:
    """Return how many descriptors a process has; 0 for one that is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


@pytest.mark.parametrize("noticed_by", ["the supervisor", "nobody"])
def test_a_worker_that_ended_meanwhile_is_told_with_its_status(
    group: Group, link: CutLink, noticed_by: str
) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    pid = pid_of(gateway)
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    connected = fds_of(supervisor)
    if noticed_by == "nobody":
        link.stop()
        os.kill(pid, signal.SIGKILL)
        # It has told of that over the dead connection, and closed its five descriptors of both.
        wait_until(lambda: fds_of(supervisor) <= connected - 5)
        link.cut()
    else:
        link.go_down()
        wait_until(lambda: fds_of(supervisor) < connected)
        os.kill(pid, signal.SIGKILL)
        link.go_up()
    with pytest.raises(WorkerDied, match=r"SIGKILL.*it ended while it was out of reach") as caught:
        channel.receive(BOUND_S)
    assert caught.value.exitcode == -signal.SIGKILL
    assert_gone(supervisor)


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_who_waits_is_told_of_a_death_while_connected(
    group: Group, link: CutLink, victim: str
) -> None:
    gateway = group.makegateway(spec_of(3600, more="//grace=0.2"))
    pid = pid_of(gateway)
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid)
    folder = gateway._io._session.folder  # type: ignore[attr-defined]
    os.kill(pid if victim == "worker" else supervisor, signal.SIGKILL)
    how = "SIGKILL" if victim == "worker" else "its supervisor ended"
    with pytest.raises(WorkerDied, match=how):
        channel.receive(BOUND_S)
    assert_gone(pid, supervisor)
    assert not os.path.exists(folder)


def test_a_supervisor_that_is_killed_without_a_network_leaves_nothing(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(BOUND_S, more="//grace=0.2"))
    pid = pid_of(gateway)
    folder = gateway._io._session.folder  # type: ignore[attr-defined]
    channel = gateway.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    link.go_down()
    os.kill(supervisor_of(pid), signal.SIGKILL)
    assert_gone(pid)
    assert not os.path.exists(folder)
    link.go_up()
    with pytest.raises(WorkerDied, match="neither it nor its supervisor is there any more"):
        channel.receive(BOUND_S)


def test_what_two_killed_processes_left_is_removed_by_the_next_supervisor(
    group: Group, link: CutLink
) -> None:
    gateway = group.makegateway(spec_of(600, more="//grace=0.2"))
    pid = pid_of(gateway)
    lives = group.makegateway(spec_of(600))
    folder, used = (one._io._session.folder for one in (gateway, lives))  # type: ignore[attr-defined]
    supervisor = supervisor_of(pid)
    for victim in supervisor, pid:
        stop(victim)
    for victim in supervisor, pid:
        os.kill(victim, signal.SIGKILL)
    assert_gone(pid, supervisor)
    assert sorted(os.listdir(folder)) == ["lock", "socket"]
    assert folder not in far_supervisor.left_behind()  # it is too young
    for path in folder, used:
        os.utime(path, (1, 1))
    group.makegateway(spec_of(600))
    wait_until(lambda: not os.path.exists(folder))
    assert os.path.exists(used)
    assert lives.remote_exec("channel.send(1)").receive(BOUND_S) == 1


def test_only_own_folders_that_nobody_holds_are_taken_for_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(far_supervisor, "PLACE", str(tmp_path))
    tmp_path.chmod(0o1777)

    def folder(name: str, mode: int = 0o700, prefix: str = "execnet-resume-") -> Path:
        path = tmp_path / (prefix + name)
        path.mkdir()
        path.chmod(mode)
        (path / "lock").touch()
        os.utime(path, (1, 1))
        return path

    left = folder("left")
    folder("open", 0o755)
    folder("other", prefix="execnet-")
    empty = folder("empty")
    (empty / "lock").unlink()
    os.utime(empty, (1, 1))
    linked = folder("linked")
    (linked / "lock").unlink()
    (linked / "lock").symlink_to(left / "lock")
    os.utime(linked, (1, 1))
    (tmp_path / "execnet-resume-link").symlink_to(left)
    (tmp_path / "execnet-resume-file").touch()
    folder("young")
    os.utime(tmp_path / "execnet-resume-young")
    if os.getuid() == 0:
        os.chown(folder("foreign"), 65534, -1)
    assert far_supervisor.left_behind() == [str(left)]
    tmp_path.chmod(0o777)  # anybody could put something else there
    assert far_supervisor.left_behind() == []
    tmp_path.chmod(0o1777)
    _cli.main(["clean", "--dry-run"])
    assert f"{left}: " in capsys.readouterr().out
    assert far_supervisor.remove_left(str(left))
    assert not left.exists()
    assert not far_supervisor.remove_left(str(left))


def test_where_there_are_no_locks_a_folder_is_never_taken_for_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    far_supervisor.hold(str(tmp_path / "lock"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ends_it", ["its time", "execnet clean"])
def test_a_worker_whose_program_was_killed_ends(link: CutLink, ends_it: str) -> None:
    spec = spec_of(1 if ends_it == "its time" else 600, more="//grace=0.2//env:SECRET=x")
    with program_with(spec) as (program, pid):
        supervisor = supervisor_of(pid)
        (record,) = os.listdir(_folders.resume_folder())
        path = Path(_folders.resume_folder(), record)
        assert (path.stat().st_mode & 0o777, "SECRET" in path.read_text()) == (0o600, False)
        assert list(records.left()) == []
        program.kill()
    if ends_it == "execnet clean":
        assert f"worker gw0 of process {program.pid} on " in clean()
        assert list(records.left()) == []
    assert_gone(pid, supervisor)


def test_a_kill_goes_by_a_login_of_its_own(group: Group, link: CutLink) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    stop(pid)  # so that it does not end as it is asked to
    link.stop()
    gateway._io.kill()
    assert gateway._io.wait() == -signal.SIGKILL
    assert_gone(pid, supervisor)
    assert link.runs() == 2


def test_whoever_has_no_secret_or_comes_late_gets_nothing(group: Group, link: CutLink) -> None:
    gateway = group.makegateway(spec_of(BOUND_S))
    session = gateway._io._session  # type: ignore[attr-defined]
    assert os.stat(session.folder).st_mode & 0o777 == 0o700
    answers = []
    for request in (f"{'0' * 32} kill 0", f"{session.secret} resume 0", "nonsense"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND_S)
            sock.connect(f"{session.folder}/socket")
            sock.sendall(f"{request}\n".encode())
            answers.append(sock.recv(100))
    assert answers == [b"refused the secret is another one\n", b"older\n", b""]
    channel = gateway.remote_exec("channel.send(1)")
    assert channel.receive(BOUND_S) == 1


def test_a_host_that_does_not_know_the_session_was_rebooted_or_is_another_one() -> None:
    session = Session(Settings(XSpec("ssh=host//id=gw0//resume=1")))
    session.place({"boot": "b", "host": "h"})
    rebooted = session.explain_unknown("c", "h")
    assert isinstance(rebooted, Ended)
    assert "rebooted" in str(rebooted)
    assert isinstance(session.explain_unknown("b", "h"), Ended)
    assert isinstance(session.explain_unknown("c", "other"), Unreachable)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("popen", "popen=, which has no network in between$"),
        ("popen//via=gw", "popen=, .*, so it may be for gw itself$"),
        ("sudo=a", "sudo=, which has no network"),
        ("socketservice", "socketservice=, which has no network"),
        ("srun", "srun=: Slurm ends a job step with its connection"),
        ("srun//via=gw", "srun=: Slurm"),
        ("ssh=a//attach=b", "attach=, which makes a new connection"),
    ],
)
def test_what_can_not_be_connected_anew_is_refused(spec: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"resume= is for connections over a network, not {why}"):
        Settings(XSpec(f"{spec}//resume=10"))


def test_a_start_that_is_cut_when_the_worker_is_ready_leaves_nothing(
    group: Group, link: CutLink
) -> None:
    group.makegateway(spec_of(600))
    group.terminate(BOUND_S)
    pieces = link.pieces()
    signs = "".join(sign for sign, _ in pieces)
    ready = signs.index("<", signs.index(">", signs.index("<")))  # after hello, source
    link.set_cuts([0, sum(size for _, size in pieces[:ready]) + 10])
    with pytest.raises(BootstrapError):
        group.makegateway(spec_of(600))
    path = f"PATH={os.environ['PATH']}"
    wait_until(lambda: set(processes_with(path)) <= {os.getpid()})


def test_what_is_sent_before_the_hello_goes_in_one_packet() -> None:
    settings = Settings(XSpec(f"{spec_of(9)}//id=gateway1234//execmodel=thread"))
    assert len(first_line(settings, b"x" * 28)) <= FIRST_PACKET_MAX


def test_greenlets_are_refused(group: Group, link: CutLink) -> None:
    with pytest.raises(ValueError, match="greenlets"):
        group.makegateway(spec_of(10, more="//execmodel=gevent"))
