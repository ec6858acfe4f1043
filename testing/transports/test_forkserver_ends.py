"""How workers of ``popen//forkserver`` and their templates end: nothing is left, whoever dies."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkservers import spare_of
from processes import children_of, state_of, stop
from tools import MakeGateway, clean_environment, run_python, threads, wait_until

import execnet
from execnet import BootstrapError, Group, WorkerDied
from execnet._ends import poll
from execnet._forkserver import stream as forkserver_stream
from execnet._forkserver import templates as forkserver_templates
from execnet.gateway_base import ExecModel

pytestmark = [
    pytest.mark.usefixtures("templates"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc"),
]

SPEC = "popen//forkserver"
PIDS = "import os; channel.send((os.getpid(), os.getppid()))"
STUCK = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
channel.send((os.getpid(), os.getppid()))
while True:
    time.sleep(1)
"""


GRACE_S = 5.0  # what a stuck worker takes at least to end by itself
FORKS_AND_ENDS = """
import os, signal
pid = os.fork()
if pid == 0:
    signal.pause()
channel.send((pid, os.getppid()))
channel.receive()
os._exit(7)
"""


def has_ended(pid: int) -> bool:
    return state_of(pid) in ("", "Z")


def pids_of(gateway: execnet.Gateway) -> tuple[int, int]:
    """Return the process ids of a worker and of its template."""
    pids: tuple[int, int] = gateway.remote_exec(PIDS).receive(10)
    return pids


class TestWorker:
    def test_terminate_leaves_none_and_keeps_the_template(self) -> None:
        with Group([SPEC] * 4) as group:
            pids = [pids_of(gateway) for gateway in group]
            template = pids[0][1]
        assert [state_of(pid) for pid, _ in pids] == [""] * 4
        assert state_of(template) not in ("", "Z")
        with Group([SPEC]) as group:
            assert pids_of(group["gw0"])[1] == template

    def test_terminate_ends_one_that_is_stuck(self) -> None:
        group = Group([SPEC])
        gateway = group["gw0"]
        pid, _ = gateway.remote_exec(STUCK).receive(10)
        with pytest.warns(ResourceWarning, match="did not end in time"):
            group.terminate(timeout=0.2)
        assert state_of(pid) == ""

    @pytest.mark.parametrize(
        ("death", "exitcode"),
        [
            ("os._exit(0)", 0),
            ("os._exit(3)", 3),
            ("os.kill(os.getpid(), 9)", -9),
            ("os.kill(os.getpid(), 11)", -11),
        ],
    )
    def test_its_end_is_told_as_that_of_any_worker(
        self, death: str, exitcode: int, makegateway: MakeGateway
    ) -> None:
        channel = makegateway(SPEC).remote_exec(f"import os; channel.send(1); {death}")
        assert channel.receive(10) == 1
        with pytest.raises(WorkerDied) as info:
            channel.receive(10)
        assert info.value.exitcode == exitcode

    def test_its_end_is_told_in_each_execution_model(self, execmodel: ExecModel) -> None:
        with Group([SPEC], execmodel=execmodel.backend) as group:
            channel = group["gw0"].remote_exec("import os; os._exit(4)")
            with pytest.raises(WorkerDied) as info:
                channel.receive(10)
            assert info.value.exitcode == 4

    def test_a_process_that_it_forked_does_not_hide_its_end(self, makegateway: MakeGateway) -> None:
        channel = makegateway(SPEC).remote_exec(FORKS_AND_ENDS)
        grandchild, _ = channel.receive(10)
        try:
            channel.send(None)
            with pytest.raises(WorkerDied) as info:
                channel.receive(10)
            assert info.value.exitcode == 7
        finally:
            os.kill(grandchild, signal.SIGKILL)

    def test_what_it_sent_before_its_end_arrives(self, makegateway: MakeGateway) -> None:
        code = "import os\nfor n in range(1000): channel.send(n)\nos._exit(1)"
        channel = makegateway(SPEC).remote_exec(code)
        assert [channel.receive(10) for _ in range(1000)] == list(range(1000))

    def test_exit_alone_leaves_no_zombie(self, makegateway: MakeGateway) -> None:
        gateway = makegateway(SPEC)
        pid, _ = pids_of(gateway)
        gateway.exit()
        wait_until(lambda: state_of(pid) == "")

    def test_many_ends_that_nobody_asks_for_do_not_block_the_template(self) -> None:
        for _ in range(3):
            with Group([SPEC] * 20) as group:
                group.remote_exec("import os; os._exit(0)")

    def test_one_that_is_refused_leaves_none_of_those_started_with_it(
        self, group: Group, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BootstrapError, match="the worker could not be prepared"):
            group.makegateways([SPEC, SPEC, f"{SPEC}//chdir={tmp_path}/file"])
        assert len(group) == 0

    def test_a_fork_that_fails_is_told_with_its_reason(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A stand-in for the limit of processes, which does not bind every user.
        (tmp_path / "forkless.py").write_text(
            "import errno, os\ndef fork(): raise OSError(errno.EAGAIN, '')\nos.fork = fork\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(BootstrapError, match="can't fork: Resource temporarily unavailable"):
            group.makegateway(f"{SPEC}//preload=forkless")


class TestTemplate:
    def test_when_it_is_killed_its_workers_go_on(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        pid, template = pids_of(gateway)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(template))
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1
        group.terminate(timeout=5)
        wait_until(lambda: has_ended(pid))

    def test_when_it_is_killed_the_next_gateway_gets_a_new_one(self, group: Group) -> None:
        first = group.makegateway(SPEC)
        _, template = pids_of(first)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(template))
        second = group.makegateway(SPEC)
        assert pids_of(second)[1] != template
        assert state_of(template) == ""

    def test_when_it_is_killed_meanwhile_the_gateway_gets_a_new_one(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        boot, killed = forkserver_stream.ForkedIO.boot, []

        def boot_without(io: forkserver_stream.ForkedIO, options: dict[str, Any]) -> None:
            killed.append(io._template.pid)
            os.kill(killed[0], signal.SIGKILL)
            wait_until(lambda: has_ended(killed[0]))
            boot(io, options)

        monkeypatch.setattr(forkserver_stream.ForkedIO, "boot", boot_without)
        assert pids_of(group.makegateway(SPEC))[1] not in killed

    def test_when_it_is_gone_a_stuck_worker_is_ended_all_the_same(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        pid, template = gateway.remote_exec(STUCK).receive(10)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(template))
        with pytest.warns(ResourceWarning, match="did not end in time"):
            group.terminate(timeout=0.2)
        wait_until(lambda: has_ended(pid))

    def test_when_it_is_gone_a_worker_that_dies_is_told_of(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        _, template = pids_of(gateway)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(template))
        channel = gateway.remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied) as info:
            channel.receive(10)
        assert info.value.exitcode is None

    def test_when_it_is_gone_how_a_worker_ended_is_not_made_up(self) -> None:
        group = Group([SPEC, SPEC])
        gateways: list[Any] = list(group)
        (pid, template), _ = map(pids_of, gateways)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(template))
        stop(pid)
        gateways[0].exit()
        os.kill(pid, signal.SIGKILL)
        group.terminate(timeout=10)
        assert gateways[0]._io.wait() is None, "it was asked to end, and was killed"
        assert gateways[0]._io.has_ended()
        assert gateways[1]._io.wait() == 0, "it has told so itself"

    def test_one_that_is_stopped_costs_no_more_than_the_time_that_was_given(
        self, group: Group
    ) -> None:
        _, template = pids_of(group.makegateway(SPEC))
        stop(template)
        started = time.monotonic()
        with pytest.raises(BootstrapError, match="no answer in time"):
            group.makegateway(f"{SPEC}//connect_timeout=0.5")
        assert time.monotonic() - started < 10
        assert state_of(template) == ""
        assert pids_of(group.makegateway(SPEC))[1] != template

    def test_a_module_that_never_ends_its_import_is_given_up_in_time(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "endless.py").write_text("import time\nwhile True: time.sleep(1)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(BootstrapError, match="was not ready in time"):
            group.makegateway(f"{SPEC}//preload=endless//connect_timeout=0.5")

    def test_shutdown_ends_it_and_not_its_workers(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        _, template = pids_of(gateway)
        forkserver_templates.shutdown()
        assert state_of(template) == ""
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1

    def test_the_one_in_reserve_may_die(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        _, template = pids_of(gateway)
        spare = spare_of(gateway)
        os.kill(spare, signal.SIGKILL)
        wait_until(lambda: state_of(spare) == "")
        assert pids_of(group.makegateway(SPEC))[1] == template
        assert state_of(template) == "S"

    def test_one_in_reserve_that_died_is_not_replaced_again_and_again(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "counting.py").write_text(
            "import marshal, os\n"
            "marshal.dumps = None  # its preparation fails\n"
            "original = os.fork\n"
            "def fork():\n"
            "    print('fork', file=open('forks', 'a'))\n"
            "    return original()\n"
            "os.fork = fork\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        spec = f"{SPEC}//preload=counting"
        pid, template = pids_of(group.makegateway(spec))
        forks = tmp_path / "forks"
        wait_until(lambda: forks.read_text().count("fork") == 2)
        wait_until(lambda: children_of(template) == {pid})
        for _ in range(3):
            assert pids_of(group.makegateway(spec))[1] == template
        assert forks.read_text().count("fork") == 5

    def test_one_in_reserve_that_fails_as_it_gets_an_order_serves_it(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "failing.py").write_text(
            "import marshal, os, select\n"
            "def fail(*args):  # once its only socket has something to read\n"
            "    names = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]\n"
            "    links = {name: os.readlink(name) for name in names if os.path.lexists(name)}\n"
            "    fds = [int(n[14:]) for n in links if links[n].startswith('socket:')]\n"
            "    assert fds and select.select(fds, [], [], 30)[0]\n"
            "    raise ValueError\n"
            "marshal.dumps = fail\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        spec = f"{SPEC}//preload=failing"
        pid, template = pids_of(group.makegateway(spec))
        wait_until(lambda: children_of(template) > {pid})
        [spare] = children_of(template) - {pid}
        assert pids_of(group.makegateway(spec)) == (spare, template)

    def test_the_one_in_reserve_ends_with_it(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        _, template = pids_of(gateway)
        spare = spare_of(gateway)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: has_ended(spare))

    def test_no_more_than_eight_are_kept_without_workers(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        busy = [pids_of(group.makegateway(SPEC))[1]]
        idle = []
        for number in range(10):
            monkeypatch.setenv("PYTHON_NUMBER", str(number))  # makes it another template
            with Group([SPEC]) as own:
                idle.append(pids_of(own["gw0"])[1])
        assert [state_of(pid) != "" for pid in busy + idle] == [True, *[False] * 2, *[True] * 8]

    def test_no_thread_of_its_own_waits_for_it(self, group: Group) -> None:
        before = len(threads())
        group.makegateway(SPEC)
        assert len(threads()) <= before + 1  # that of the gateway
        group.terminate(timeout=5)
        wait_until(lambda: len(threads()) == before)

    def test_it_does_not_collect_what_others_started(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "starting.py").write_text(
            "import subprocess, sys\nPROCESS = subprocess.Popen([sys.executable, '-c', ''])\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        gateways = group.makegateways([f"{SPEC}//preload=starting"] * 2)
        code = (
            "import os, starting; channel.send((os.getpid(), os.getppid(), starting.PROCESS.pid))"
        )
        pid, template, started = gateways[0].remote_exec(code).receive(10)
        wait_until(lambda: state_of(started) == "Z")
        gateways[0].exit()
        wait_until(lambda: state_of(pid) == "")
        assert state_of(started) == "Z"
        assert pids_of(group.makegateway(f"{SPEC}//preload=starting"))[1] == template


class TestWithoutPidfd:
    """Old kernels and other systems can't wait for a process that is no child of one's own."""

    @pytest.fixture(autouse=True)
    def no_pidfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def pidfd_open(pid: int, flags: int = 0) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)

    def test_terminate_ends_a_worker_that_is_stuck(self) -> None:
        group = Group([SPEC])
        pid, _ = group["gw0"].remote_exec(STUCK).receive(10)
        started = time.monotonic()
        with pytest.warns(ResourceWarning, match="did not end in time"):
            group.terminate(timeout=0.2)
        assert time.monotonic() - started < GRACE_S
        assert state_of(pid) == ""

    def test_the_end_of_a_worker_is_told(self, makegateway: MakeGateway) -> None:
        channel = makegateway(SPEC).remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied) as info:
            channel.receive(10)
        assert info.value.exitcode == 3

    @pytest.mark.parametrize("template_lives", [True, False])
    def test_a_process_that_it_forked_does_not_hide_its_end(
        self, template_lives: bool, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(poll, "LOOK_MS", 20)
        channel = makegateway(SPEC).remote_exec(FORKS_AND_ENDS)
        grandchild, template = channel.receive(10)
        try:
            if not template_lives:
                os.kill(template, signal.SIGKILL)
                wait_until(lambda: has_ended(template))
            channel.send(None)
            with pytest.raises(WorkerDied) as info:
                channel.receive(10)
            assert info.value.exitcode == (7 if template_lives else None)
        finally:
            os.kill(grandchild, signal.SIGKILL)

    def test_terminate_leaves_none_when_the_template_is_gone(self) -> None:
        group = Group([SPEC, SPEC])
        pids = [gateway.remote_exec(STUCK).receive(10) for gateway in group]
        os.kill(pids[0][1], signal.SIGKILL)
        wait_until(lambda: has_ended(pids[0][1]))
        started = time.monotonic()
        with pytest.warns(ResourceWarning, match="did not end in time"):
            group.terminate(timeout=0.2)
        assert time.monotonic() - started < GRACE_S
        for pid, _ in pids:
            wait_until(lambda pid=pid: has_ended(pid))


PROGRAM = """
import os, signal, sys
import execnet
group = execnet.Group(["popen//forkserver"] * 3)
pids = [gateway.remote_exec("import os; channel.send((os.getpid(), os.getppid()))").receive()
        for gateway in group]
template = pids[0][1]
workers = {str(pid) for pid, _ in pids}
children = f"/proc/{template}/task/{template}/children"
while not (spares := set(open(children).read().split()) - workers):
    pass
print(*workers, *spares, template, flush=True)
"""


class TestCoordinator:
    @pytest.mark.parametrize(
        ("end", "returncode"),
        [
            ("", 0),
            ("raise SystemExit(3)", 3),
            ("group.terminate()", 0),
            ("os._exit(0)", 0),
            ("os.kill(os.getpid(), signal.SIGKILL)", -9),
            ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ],
    )
    def test_when_it_ends_all_end(self, end: str, returncode: int) -> None:
        run = run_python(PROGRAM + end)
        assert run.returncode == returncode
        assert run.stderr == ""
        for pid in map(int, run.stdout.split()):
            wait_until(lambda pid=pid: has_ended(pid))

    def test_an_orderly_end_has_reaped_all_when_it_returns(self) -> None:
        # Its own children at the end: zombies would be there as well.
        check = """
import atexit
def report():
    print("left:", open("/proc/self/task/%d/children" % os.getpid()).read().split())
"""
        run = run_python("import atexit, os\n" + check + "atexit.register(report)\n" + PROGRAM)
        assert run.stdout.splitlines()[1:] == ["left: []"]
        assert run.stderr == ""

    def test_the_last_worker_is_over_when_its_template_is(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its receiver may be the one that ends it, and nobody waits for that one."""
        gateway, seen = group.makegateway(SPEC), []
        release = forkserver_templates.Template.release

        def look_and_release(
            template: forkserver_templates.Template, fork: forkserver_templates.Fork
        ) -> None:
            seen.append(gateway._io._over)
            release(template, fork)

        monkeypatch.setattr(forkserver_templates.Template, "release", look_and_release)
        group.terminate(timeout=5)
        assert seen[0] is False

    def test_the_status_of_workers_is_known_to_the_last(self) -> None:
        # The group is older than the template, so it is ended behind it.
        program = """
import atexit, os, execnet
group = execnet.Group()
def report():
    print(io.wait(), io._status)
atexit.unregister(group._cleanup_atexit)
atexit.register(report)
atexit.register(group._cleanup_atexit)
io = group.makegateway("popen//forkserver")._io
"""
        run = run_python(program)
        assert (run.stdout, run.stderr) == ("0 0\n", "")

    def test_a_fork_of_it_neither_ends_nor_uses_the_template(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)
        _, template = pids_of(gateway)

        def in_child(out: Callable[[str], Any]) -> None:
            with Group([SPEC]) as own:
                _, parent = pids_of(own["gw0"])
                out(f"{parent != template} {os.getppid() != parent}")
            forkserver_templates.shutdown()
            out(f" {has_ended(parent)} {has_ended(template)}")

        assert run_in_fork(in_child) == "True True True False"
        assert pids_of(gateway)[1] == template
        assert pids_of(group.makegateway(SPEC))[1] == template

    def test_a_fork_of_it_that_lives_on_does_not_keep_the_template(self) -> None:
        program = (
            PROGRAM
            + """
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(writer)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    os.read(reader, 1)  # until its parent is gone
    signal.alarm(60)
    signal.pause()
    os._exit(0)
print(open("/proc/self/task/%d/children" % os.getpid()).read(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        )
        run = run_python(program)
        first, second = run.stdout.splitlines()
        pids = [int(word) for word in first.split()]
        [child] = set(map(int, second.split())) - set(pids)
        try:
            for pid in pids:
                wait_until(lambda pid=pid: has_ended(pid))
            assert not has_ended(child)
        finally:
            os.kill(child, signal.SIGKILL)

    def test_what_a_fork_of_it_does_to_a_gateway_reaches_no_worker(self, group: Group) -> None:
        gateway = group.makegateway(SPEC)

        def in_child(out: Callable[[str], Any]) -> None:
            gateway._io.kill()
            gateway._io.wait()
            out("done")

        assert run_in_fork(in_child) == "done"
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1

    def test_a_process_that_it_starts_inherits_nothing_of_it(self, group: Group) -> None:
        import subprocess

        group.makegateway(SPEC)
        code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
        output = subprocess.run(
            [sys.executable, "-c", code],
            close_fds=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=clean_environment(),
        )
        inherited = [int(word) for word in output.stdout.strip("[]\n").split(", ")]
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in inherited if fd > 2]
        assert not [link for link in links if "socket" in link or "pidfd" in link]


def run_in_fork(function: Callable[[Callable[[str], Any]], None]) -> str:
    """Run a function in a forked process; return what it wrote."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function(lambda text: os.write(writer, text.encode()))
        except BaseException as exc:
            os.write(writer, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        output = file.read().decode()
    os.waitpid(pid, 0)
    gc.collect()
    return output
