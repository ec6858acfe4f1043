"""How workers on every Python end, and how their end is noticed."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from interpreters import Interpreter
from processes import is_gone
from tools import BOUND_S, Resources, run_python, wait_until
from workers import ECHO, ask

from execnet import Gateway, Group, WorkerDied

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pids are POSIX's")

# Runs until it is interrupted, then says so in a file.
BUSY = """
import time
path = channel.receive()
channel.gateway.grace_s = channel.receive()
try:
    channel.send('busy')
    while True:
        time.sleep(0.02)
except KeyboardInterrupt:
    open(path, "w").write("interrupted")
    raise
"""
STUBBORN = """
import time
channel.gateway.grace_s = channel.receive()
while True:
    try:
        channel.send('busy')
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


class TestAnOrderlyEnd:
    def test_exit_ends_an_idle_worker(
        self, fresh: Gateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        pid = fresh._rinfo().pid
        assert ask(fresh, "channel.send(1)") == 1
        fresh.exit()
        fresh.join(BOUND_S)
        assert not fresh.hasreceiver()
        wait_until(lambda: is_gone(pid))
        assert capfd.readouterr().err == ""

    def test_what_a_worker_sends_in_its_grace_arrives(self, fresh: Gateway) -> None:
        channel = fresh.remote_exec("channel.send(1)\nfor x in channel: pass\nchannel.send('bye')")
        assert channel.receive(BOUND_S) == 1
        fresh.exit()
        assert channel.receive(BOUND_S) == "bye"
        fresh.join(BOUND_S)

    def test_code_that_runs_on_is_interrupted(
        self, group: Group, fresh: Gateway, tmp_path: Path
    ) -> None:
        channel = fresh.remote_exec(BUSY)
        channel.send(str(tmp_path / "said"))
        channel.send(0.2)
        assert channel.receive(BOUND_S) == "busy"
        pid = fresh._rinfo().pid
        started = time.monotonic()
        group.terminate(timeout=BOUND_S)
        assert time.monotonic() - started < BOUND_S / 2
        assert (tmp_path / "said").read_text() == "interrupted"
        assert is_gone(pid)

    def test_code_that_cannot_be_interrupted_is_ended(self, group: Group, fresh: Gateway) -> None:
        channel = fresh.remote_exec(STUBBORN)
        channel.send(0.1)
        assert channel.receive(BOUND_S) == "busy"
        pid = fresh._rinfo().pid
        started = time.monotonic()
        group.terminate(timeout=BOUND_S)
        assert time.monotonic() - started < BOUND_S / 2
        assert is_gone(pid)

    def test_what_does_not_end_in_time_is_killed(self, group: Group, fresh: Gateway) -> None:
        channel = fresh.remote_exec(STUBBORN)
        channel.send(60)
        assert channel.receive(BOUND_S) == "busy"
        pid = fresh._rinfo().pid
        started = time.monotonic()
        group.terminate(timeout=0.1)
        assert time.monotonic() - started < 5
        assert is_gone(pid)

    @pytest.mark.filterwarnings("ignore:worker .* did not end in time:ResourceWarning")
    def test_a_worker_ends_in_the_middle_of_sending(self, group: Group, fresh: Gateway) -> None:
        code = "channel.gateway.grace_s = 0.1\nwhile True: channel.send(b'x' * (3 << 20))"
        channel = fresh.remote_exec(code)
        assert len(channel.receive(BOUND_S)) == 3 << 20
        pid = fresh._rinfo().pid
        fresh.exit()
        if fresh._rinfo().version_info[0] == 2:  # it may have to be killed: ISSUES.txt, 132
            group.terminate(5.0)
        wait_until(lambda: is_gone(pid))
        fresh.join(BOUND_S)

    def test_a_worker_ends_in_the_middle_of_receiving(self, group: Group, fresh: Gateway) -> None:
        channel = fresh.remote_exec("for item in channel: pass")
        for _ in range(5):
            channel.send(b"x" * (3 << 20))
        pid = fresh._rinfo().pid
        group.terminate(timeout=BOUND_S)
        assert is_gone(pid)

    def test_threads_of_the_code_do_not_hold_it(self, group: Group, fresh: Gateway) -> None:
        code = """
import threading, time
thread = threading.Thread(target=time.sleep, args=(60,))
thread.daemon = True
thread.start()
channel.send(1)
"""
        assert ask(fresh, code) == 1
        started = time.monotonic()
        group.terminate(timeout=BOUND_S)
        assert time.monotonic() - started < BOUND_S / 2

    def test_nothing_is_left_of_a_gateway(self, python: Interpreter) -> None:
        before = Resources.now()
        group = Group([python.spec])
        assert ask(group[0], "channel.send(1)") == 1
        group.terminate(timeout=BOUND_S)
        before.assert_nothing_new()


class TestADeath:
    @pytest.mark.parametrize(
        ("way", "status", "text"),
        [
            ("os._exit(3)", 3, "exit status 3"),
            ("os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ],
    )
    def test_it_ends_what_waits_behind_what_came(
        self, fresh: Gateway, way: str, status: int, text: str
    ) -> None:
        waiting = fresh.newchannel()
        channel = fresh.remote_exec(f"import os; channel.send(b'x' * 100000); {way}")
        assert len(channel.receive(BOUND_S)) == 100_000
        for wait in waiting.receive, channel.receive, waiting.waitclose:
            with pytest.raises(WorkerDied, match=text) as caught:
                wait(BOUND_S)
            assert caught.value.exitcode == status
        with pytest.raises(OSError, match="send"):
            waiting.send(1)
        assert not fresh.hasreceiver()

    def test_one_from_outside_is_noticed_by_a_callback(self, fresh: Gateway) -> None:
        items: list[object] = []
        channel = fresh.remote_exec(ECHO)
        channel.setcallback(items.append, endmarker="end")
        channel.send(1)
        wait_until(lambda: items)
        os.kill(fresh._rinfo().pid, signal.SIGKILL)
        wait_until(lambda: len(items) > 1)
        assert items == [1, "end"]

    def test_it_is_noticed_behind_a_child_that_lives_on(self, fresh: Gateway) -> None:
        code = """
import os, time
pid = os.fork()
if not pid:
    time.sleep(60)
    os._exit(0)
channel.send(pid)
os._exit(5)
"""
        channel = fresh.remote_exec(code)
        child = channel.receive(BOUND_S)
        try:
            with pytest.raises(WorkerDied, match="exit status 5"):
                channel.receive(BOUND_S)
        finally:
            os.kill(child, signal.SIGKILL)


SENDING = "channel.send('busy')\nwhile True: channel.send(b'x' * 100000)"
WAITING = "channel.send('busy')\nchannel.receive()"

# Makes gateways whose workers are busy, says their pids, and ends in one of the ways.
COORDINATOR = """
import os, sys, execnet
spec, said, how = sys.argv[1:4]
gateways = [execnet.makegateway(spec) for code in sys.argv[4:]]
channels = []
for gateway, code in zip(gateways, sys.argv[4:]):
    channel = gateway.remote_exec(code)
    if "path" in code: channel.send(said)
    if "grace_s" in code: channel.send(0.1 if "pass" in code else 5)
    assert channel.receive(10) == "busy"
    channels.append(channel)
print(*[gateway._rinfo().pid for gateway in gateways])
sys.stdout.flush()
exec(how)
"""


class TestTheCoordinatorsDeath:
    @pytest.mark.parametrize("way", ["os.kill(os.getpid(), 9)", "os._exit(0)"])
    def test_it_interrupts_a_busy_worker_and_ends_them_all(
        self, python: Interpreter, tmp_path: Path, way: str
    ) -> None:
        said = tmp_path / "said"
        codes = [BUSY, STUBBORN, SENDING, WAITING]
        ended = run_python(COORDINATOR, python.spec, str(said), way, *codes)
        pids = [int(word) for word in ended.stdout.split()]
        assert len(pids) == 4
        for pid in pids:
            wait_until(functools.partial(is_gone, pid))
        assert said.read_text() == "interrupted"
        assert ended.stderr == ""

    def test_a_program_that_just_ends_leaves_no_worker_and_says_nothing(
        self, python: Interpreter
    ) -> None:
        ended = run_python(COORDINATOR, python.spec, "", "", WAITING, SENDING)
        assert all(is_gone(int(pid)) for pid in ended.stdout.split())
        assert ended.stderr == ""
        assert ended.returncode == 0
