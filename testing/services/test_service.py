"""``socketservice=``: one process that keeps state, found or started by whoever asks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import is_running
from services import script
from tools import (
    BOUND_S,
    MakeGateway,
    error_of,
    needs_other_threads,
    run_all,
    run_python,
    wait_until,
)

import execnet
from execnet import Gateway, Group, service
from execnet._cli import main
from execnet._service import admin, far_find, near

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

SEEKERS = int(os.environ.get("EXECNET_TEST_SEEKERS", "12"))  # that ask for a service at once

COUNT = """
state = channel.gateway.state
state["count"] = state.get("count", 0) + 1
import os
channel.send((state["count"], os.getpid()))
"""
HOLD = """
import threading
state = channel.gateway.state
state["ran"] = state.get("ran", 0) + 1
channel.send(state["ran"])
channel.receive()
"""
SLEEP_ON = """
import time
for turn in range(10**6):
    try:
        if turn == 0:
            channel.send(None)  # in here, as the interrupt may come before it has returned
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""


def ask(gateway: Gateway, source: str) -> object:
    return gateway.remote_exec(source).receive(BOUND_S)


def status(name: str = "work") -> dict[str, object]:
    return service.find(name).status()


def pid_of(gateway: Gateway) -> int:
    pid: int = gateway._rinfo().pid
    return pid


@pytest.fixture
def work(home: Path, makegateway: MakeGateway) -> Callable[[], Gateway]:
    return lambda: makegateway("socketservice=work")


def test_state_that_one_program_sets_is_read_by_the_next(home: Path) -> None:
    program = (
        "import execnet\n"
        "gateway = execnet.makegateway('socketservice=work')\n"
        "print(gateway.remote_exec('''if 1:\n"
        " from execnet import service\n"
        " service.state[1] = service.state.get(1, 0) + 1\n"
        " channel.send(service.state[1])''').receive())\n"
    )
    results = [run_python(program) for _ in range(2)]
    assert [result.stdout for result in results] == ["1\n", "2\n"]
    assert [result.stderr for result in results] == ["", ""]


def test_many_that_ask_at_once_get_one_service(home: Path) -> None:
    groups, found = [Group() for _ in range(SEEKERS)], []

    def attach(group: Group) -> None:
        found.append(ask(group.makegateway("socketservice=work"), COUNT))

    run_all([lambda group=group: attach(group) for group in groups])  # type: ignore[misc]
    for group in groups:
        group.terminate(timeout=5)
    counts, pids = zip(*found, strict=True)
    assert sorted(counts) == list(range(1, SEEKERS + 1))
    assert len(set(pids)) == 1


def test_one_that_is_killed_while_many_ask_is_started_anew(home: Path) -> None:
    groups = [Group() for _ in range(6)]
    over = threading.Event()

    def attach(group: Group) -> None:
        for _ in range(3):
            with suppress(execnet.WorkerDied, execnet.BootstrapError, OSError):
                ask(group.makegateway("socketservice=work"), COUNT)

    def kill() -> None:
        while not over.wait(0.05):
            for one in service.find_all():
                with suppress(ProcessLookupError):
                    os.kill(one._found[1]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_all([lambda group=group: attach(group) for group in groups])  # type: ignore[misc]
    over.set()
    killer.join()
    for group in groups:
        group.terminate(timeout=5)
    group = Group()
    assert ask(group.makegateway("socketservice=work"), COUNT)
    assert len(service.find_all()) == 1
    group.terminate(timeout=5)


@needs_other_threads
def test_the_end_of_a_client_ends_its_code_alone(work: Callable[[], Gateway], home: Path) -> None:
    stays = work()
    program = (
        "import execnet, os, signal\n"
        "gateway = execnet.makegateway('socketservice=work')\n"
        "code = 'channel.send(1)\\nwhile 1: channel.gateway.execmodel.sleep(0.01)'\n"
        "gateway.remote_exec(code).receive()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python(program).returncode == -signal.SIGKILL
    wait_until(lambda: len(status()["clients"]) == 1)  # type: ignore[arg-type]
    assert status()["running"] == []
    assert ask(stays, COUNT) == (1, pid_of(stays))


def test_code_that_does_not_end_is_an_orphan_that_only_stop_ends(
    home: Path, makegateway: MakeGateway
) -> None:
    stays, leaves = (makegateway("socketservice=work//grace=0.1") for _ in range(2))
    assert ask(leaves, SLEEP_ON) is None
    leaves.exit()
    leaves.join(BOUND_S)
    (told,) = wait_until(lambda: [one for one in status()["running"] if one["orphan"]])  # type: ignore[attr-defined]
    assert "time.sleep" not in told["code"]
    assert "<remote exec>" in told["stack"]
    assert ask(stays, COUNT) == (1, pid_of(stays))
    service.find("work").stop()
    assert service.find_all() == []


@needs_other_threads
def test_code_that_has_just_come_ends_with_its_client(work: Callable[[], Gateway]) -> None:
    for _ in range(30):
        gateway = work()
        gateway.remote_exec("while True: channel.gateway.execmodel.sleep(0.01)")
        gateway._io.kill()
    wait_until(lambda: not status()["clients"])
    assert status()["running"] == []


@needs_other_threads
def test_code_that_did_not_notice_its_interrupt_gets_another_one(
    home: Path, makegateway: MakeGateway
) -> None:
    stays, leaves = (makegateway("socketservice=work//grace=0.1") for _ in range(2))
    code = """
        import time
        try:
            channel.send(None)
            while True: time.sleep(0.01)
        except KeyboardInterrupt:  # as Python does it itself where one comes in a callback
            pass
        while True: time.sleep(0.01)
    """
    assert ask(leaves, code) is None
    leaves.exit()
    leaves.join(BOUND_S)
    wait_until(lambda: status()["running"] == [])
    assert ask(stays, COUNT)[0] == 1


def test_exit_ends_the_connection_and_not_the_service(work: Callable[[], Gateway]) -> None:
    first = work()
    count, pid = ask(first, COUNT)  # type: ignore[misc]
    first.exit()
    first.join(BOUND_S)
    assert ask(work(), COUNT) == (count + 1, pid)


@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_service_is_worker_died_and_a_fresh_start_for_the_next(
    work: Callable[[], Gateway], forks: bool
) -> None:
    gateway = work()
    fork = "import os, time\npid = os.fork()\nif not pid:\n    time.sleep(30)\n    os._exit(0)\n"
    forked = ask(gateway, fork + "channel.send(pid)") if forks else 0
    channel = gateway.remote_exec("channel.receive()")
    old = pid_of(gateway)
    os.kill(old, signal.SIGKILL)
    with pytest.raises(execnet.WorkerDied):
        channel.receive(BOUND_S)
    again = work()
    assert pid_of(again) != old
    if forked:
        os.kill(int(str(forked)), signal.SIGKILL)


def test_a_stopped_service_says_so(work: Callable[[], Gateway]) -> None:
    channel = work().remote_exec("channel.receive()")
    service.find("work").stop()
    with pytest.raises(execnet.WorkerDied, match="its service was stopped"):
        channel.receive(BOUND_S)


def test_one_at_a_time_is_one_after_the_other(home: Path, makegateway: MakeGateway) -> None:
    spec = "socketservice=work//one_at_a_time=yes"
    first, second, free = makegateway(spec), makegateway(spec), makegateway("socketservice=work")
    holder = first.remote_exec(HOLD)
    assert holder.receive(BOUND_S) == 1
    waiter = second.remote_exec(HOLD)
    wait_until(lambda: [one for one in status()["running"] if one["waits"]])  # type: ignore[attr-defined]
    assert ask(free, HOLD) == 2  # who does not say so does not wait
    holder.send(None)
    assert waiter.receive(BOUND_S) == 3
    queued = first.remote_exec(HOLD)
    wait_until(lambda: [one for one in status()["running"] if one["waits"]])  # type: ignore[attr-defined]
    first._io.kill()  # its code that waits is not left behind
    with pytest.raises(EOFError):
        queued.receive(BOUND_S)
    wait_until(lambda: not [one for one in status()["running"] if one["waits"]])  # type: ignore[attr-defined]
    waiter.send(None)
    waiter.waitclose(BOUND_S)


def test_what_is_printed_goes_to_its_connection_or_to_the_log(home: Path, group: Group) -> None:
    lines: list[tuple[str, str, str]] = []
    group.on_output(lambda gateway, stream, line: lines.append((gateway.id, stream, line)))
    for name in "a", "b":
        group.makegateway(f"socketservice=work//output=forward//id={name}")
    silent = group.makegateway("socketservice=work")
    code = "import os, sys\nprint('to %s')\nsys.stderr.write('beside\\n')\nos.system('echo child')"
    for name in "a", "b":
        group[name].remote_exec(code % name).waitclose(BOUND_S)
    silent.remote_exec("print('kept')").waitclose(BOUND_S)
    wait_until(lambda: len(lines) == 4)
    beside = "stderr", "beside"
    told = [(name, *line) for name in "ab" for line in [beside, ("stdout", f"to {name}")]]
    assert sorted(lines) == told
    log = Path(str(status()["log"]))
    wait_until(lambda: log.read_text() == "child\nchild\nkept\n")


def test_the_log_is_two_files_of_a_mebibyte(work: Callable[[], Gateway]) -> None:
    code = "for _ in range(400): print('x' * 9999)"
    work().remote_exec(code).waitclose(BOUND_S)
    log = Path(str(status()["log"]))
    wait_until(Path(f"{log}.1").exists)
    assert all(path.stat().st_size <= 1 << 20 for path in log.parent.glob("log*"))


def test_an_orphan_keeps_it_and_loses_its_turn(home: Path, makegateway: MakeGateway) -> None:
    spec = "socketservice=work//one_at_a_time=yes//grace=0.1"
    leaves, stays = makegateway(spec), makegateway(spec)
    assert ask(leaves, SLEEP_ON) is None
    waiter = stays.remote_exec(HOLD)
    wait_until(lambda: [one for one in status()["running"] if one["waits"]])  # type: ignore[attr-defined]
    leaves.exit()
    assert waiter.receive(BOUND_S) == 1
    (told,) = (one for one in status()["running"] if one["orphan"])  # type: ignore[attr-defined]
    assert not told["waits"]


def test_it_ends_when_nobody_uses_it_and_when_its_record_is_gone(
    home: Path, makegateway: MakeGateway
) -> None:
    first = makegateway("socketservice=idle//idle=0")
    assert status("idle")["idle"] == 0
    first.exit()
    gateway = makegateway("socketservice=idle//idle=0.2")
    makegateway("socketservice=cleaned")
    Path(service.find("cleaned")._found[0], "record").unlink()
    assert [one.name for one in service.find_all()] == ["idle"]
    gateway.exit()
    wait_until(lambda: service.find_all() == [], timeout_s=15)


def test_one_that_has_lost_its_folder_ends_and_leaves_its_successor_alone(
    work: Callable[[], Gateway],
) -> None:
    first = work()
    channel = first.remote_exec("channel.receive()")
    folder = Path(service.find("work")._found[0])
    os.kill(pid_of(first), signal.SIGSTOP)  # it must not notice before there is a successor
    shutil.rmtree(folder)
    second = work()
    os.kill(pid_of(first), signal.SIGCONT)
    assert ask(second, COUNT) == (1, pid_of(second))
    assert pid_of(second) != pid_of(first)
    with pytest.raises(execnet.WorkerDied, match="its service was stopped"):
        channel.receive(BOUND_S)
    wait_until(lambda: not is_running(pid_of(first)))
    assert {"socket", "record"} <= {path.name for path in folder.iterdir()}
    assert ask(work(), COUNT) == (2, pid_of(second))


def test_clean_leaves_one_that_was_started_after_it_looked(
    work: Callable[[], Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    work()
    service.find("work").stop()
    leftovers, pids = admin.leftovers, []

    def look_and_start() -> Iterator[tuple[str, str]]:
        yield from list(leftovers())
        pids.append(pid_of(work()))

    monkeypatch.setattr(admin, "leftovers", look_and_start)
    assert main(["clean"]) == 0
    assert ask(work(), COUNT) == (1, pids[0])


def test_one_that_is_started_during_the_removal_of_its_folder_keeps_it(
    work: Callable[[], Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    work()
    folder = service.find("work")._found[0]
    service.find("work").stop()
    remove, started = os.rmdir, []

    def start_and_remove(path: str) -> None:
        started.append(work())
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", start_and_remove)
        assert admin.remove(folder) is False
    assert ask(work(), COUNT) == (1, pid_of(started[0]))
    assert far_find.try_lock(os.path.join(folder, "absent")) == -1


def test_one_whose_starter_is_killed_before_it_is_ready_serves_the_next(
    home: Path, tmp_path: Path, makegateway: MakeGateway
) -> None:
    os.mkfifo(tmp_path / "go")
    script(tmp_path / "slow", f'read word <{tmp_path}/go\nexec {sys.executable} "$@"')
    spec = f"socketservice=work//python={tmp_path}/slow"
    program = f"import execnet\nexecnet.makegateway({spec!r})"
    starter = subprocess.Popen([sys.executable, "-c", program])
    with open(tmp_path / "go", "w") as go:  # opens when the other side does
        starter.kill()
        starter.wait()
        go.write("go\n")
    (found,) = wait_until(service.find_all)
    assert ask(makegateway(spec), COUNT) == (1, found._found[1]["pid"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        *((key, "whole service") for key in ("chdir=/", "nice=1", "env:A=b", "kill=group")),
        *((key, "whole service") for key in ("execmodel=gevent", "umask=0")),
        ("output=inherit", "popen on this machine"),
        ("via=gw0", "on this machine"),
        ("one_at_a_time=perhaps", "neither yes nor no"),
    ],
)
def test_what_a_service_can_not_have_is_refused(group: Group, more: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        group.makegateway(f"socketservice//{more}")
    with pytest.raises(ValueError, match="letters, digits"):
        group.makegateway("socketservice=a b")


def test_why_it_can_not_start_is_in_the_error(home: Path, group: Group) -> None:
    assert "nosuchpython" in str(error_of(group, "socketservice//python=nosuchpython"))
    assert "ended 3 times" in str(error_of(group, "socketservice//python=true"))


class TestPort:
    def test_it_is_a_service_too(self, home: Path, makegateway: MakeGateway) -> None:
        port = free_port()
        spec = f"socketservice//port={port}"
        assert [ask(makegateway(spec), COUNT)[0] for _ in range(2)] == [1, 2]  # type: ignore[index]
        assert service.find(str(port)).status()["port"] == port

    def test_another_interpreter_and_another_name_are_told_who_has_it(
        self, home: Path, makegateway: MakeGateway
    ) -> None:
        port = free_port()
        pid = pid_of(makegateway(f"socketservice//port={port}"))
        python = f"/usr/bin/env {sys.executable}"
        for spec in f"socketservice//port={port}//python={python}", f"socketservice=a//port={port}":
            with pytest.raises(execnet.BootstrapError, match=f"of process {pid}, execnet 3"):
                makegateway(spec)
        other = free_port()
        makegateway(f"socketservice//port={other}//python={python}")
        with pytest.raises(execnet.BootstrapError, match="without a word it is python="):
            makegateway(f"socketservice//port={other}")

    def test_another_protocol_is_told_who_has_it(
        self, home: Path, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = free_port()
        pid = pid_of(makegateway(f"socketservice//port={port}"))
        monkeypatch.setattr(near, "PROTOCOL", 2)
        said = f"of process {pid}, execnet 3.* it speaks protocol 1, and this is 2; .*service stop"
        with pytest.raises(execnet.BootstrapError, match=said):
            makegateway(f"socketservice//port={port}")

    def test_what_else_listens_there_is_told(self, home: Path, group: Group) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            thread = threading.Thread(target=turn_away, args=(other,))
            thread.start()
            error = error_of(group, f"socketservice//port={other.getsockname()[1]}")
            other.shutdown(socket.SHUT_RDWR)
            thread.join()
        assert f"process {os.getpid()} listens there" in str(error)


def turn_away(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_calls_keep_state_and_print_as_code_does(home: Path, group: Group) -> None:
    lines: list[str] = []
    group.on_output(lambda gateway, stream, line: lines.append(line))
    gateway = group.makegateway("socketservice=work//output=forward")
    assert [gateway.call(add_to_list, number) for number in (1, 2)] == [[1], [1, 2]]
    wait_until(lambda: lines == ["added", "added"])


def add_to_list(number: int) -> list[int]:
    import sys

    kept: list[int] = sys.__dict__.setdefault("execnet_test_kept", [])
    kept.append(number)
    print("added")
    return kept
