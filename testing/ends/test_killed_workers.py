"""What is known of a worker that died or had to be killed, and what goes with it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import is_running, stop
from programs import STUBBORN
from tools import BOUND_S, MakeGateway, run_python, wait_until

import execnet
from execnet import Group, WorkerDied

pytestmark = pytest.mark.usefixtures("coordinator")
posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals on this system")

WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
channel.send(child.pid)
"""


class TestWorkerDied:
    @posix
    def test_it_says_all_that_is_known(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//id=poor")
        channel = gateway.remote_exec("import os; channel.send(os.getpid()); channel.receive()")
        os.kill(channel.receive(), signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"SIGKILL(.|\n)*last asked to exec") as died:
            channel.receive()
        error = died.value
        assert (error.exitcode, error.signal) == (-9, signal.SIGKILL)
        assert (error.id, error.spec) == ("poor", "popen//id=poor")
        assert error.last_asked.startswith("'import os")

    def test_an_exit_status_is_no_signal(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied) as died:
            channel.receive()
        assert (died.value.exitcode, died.value.signal) == (3, None)

    def test_a_function_is_named(self, makegateway: MakeGateway) -> None:
        def die(channel: execnet.Channel) -> None:
            import os

            os._exit(3)

        channel = makegateway().remote_exec(die)
        with pytest.raises(WorkerDied, match="function die"):
            channel.receive()

    @posix
    def test_nobody_sees_the_end_of_the_stream_before_it_is_known_how_the_worker_ended(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = makegateway()
        pid = gateway._rinfo().pid
        channel = gateway.remote_exec("pass")
        channel.waitclose(BOUND_S)
        is_asked, goes_on = gateway.execmodel.Event(), gateway.execmodel.Event()
        poll_until = gateway._io.poll_until

        def poll_late(deadline: float) -> int | None:
            is_asked.set()
            goes_on.wait(BOUND_S)
            return poll_until(deadline)

        monkeypatch.setattr(gateway._io, "poll_until", poll_late)
        os.kill(pid, signal.SIGKILL)
        assert is_asked.wait(BOUND_S)
        channel.waitclose(BOUND_S)
        goes_on.set()
        gateway.join(BOUND_S)
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            channel.waitclose(BOUND_S)

    def test_a_send_afterwards_fails_at_once(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("import os; os._exit(3)")
        gateway.join()
        with pytest.raises(OSError, match="exit status 3"):
            channel.send(1)
        with pytest.raises(OSError, match="exit status 3"):
            gateway.remote_exec("")


class TestStacks:
    def test_they_are_told_while_the_main_thread_is_busy(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("""
def in_a_loop():
    channel.send(1)
    while not channel.isclosed():
        pass
in_a_loop()
""")
        channel.receive()
        stacks = gateway.dump_stacks()
        assert "in in_a_loop" in stacks
        assert "thread MainThread" in stacks
        assert "thread execnet-receiver-" in stacks
        gateway.remote_exec("").waitclose()

    @posix
    def test_a_worker_that_does_not_answer_is_a_time_out(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        pid = gateway._rinfo().pid
        stop(pid)
        with pytest.raises(execnet.TimeoutError):
            gateway.dump_stacks(timeout=0.1)
        os.kill(pid, signal.SIGCONT)

    @posix
    def test_a_group_tells_those_that_it_got(self, group: Group) -> None:
        group.makegateways(["popen//id=well", "popen//id=stopped", "popen//id=dead"])
        stop(group["stopped"]._rinfo().pid)
        os.kill(group["dead"]._rinfo().pid, signal.SIGKILL)
        group["dead"].join()
        stacks = group.dump_stacks(timeout=5)  # which the one that is well needs on a busy machine
        assert "MainThread" in stacks["well"]
        assert "no item after" in stacks["stopped"]
        assert "SIGKILL" in stacks["dead"]


class TestTheWarning:
    def test_it_has_the_stack_of_what_did_not_end(self) -> None:
        group = Group(["popen"])
        group[0].remote_exec(STUBBORN).receive()
        with pytest.warns(ResourceWarning, match=r"worker gw0(.|\n)*in never_ends"):
            group.terminate(timeout=1.0)

    @posix
    def test_without_stacks_it_says_so(self) -> None:
        group = Group(["popen"])
        stop(group[0]._rinfo().pid)
        with pytest.warns(ResourceWarning, match="it told none"):
            group.terminate(timeout=0.1)

    def test_as_an_error_it_does_not_stop_the_end(self) -> None:
        result = run_python(f"""
import warnings, execnet
warnings.simplefilter("error")
group = execnet.Group(["popen", "popen"])
for gateway in group:
    gateway.remote_exec({STUBBORN!r}).receive()
group.terminate(timeout=0.5)
print(len(group))
""")
        assert result.stdout == "0\n"
        assert result.stderr.count("ResourceWarning: worker gw") == 2

    def test_without_asking_nothing_is_printed(self) -> None:
        result = run_python(f"""
import execnet
execnet.makegateway().remote_exec({STUBBORN!r}).receive()
execnet.default_group.terminate(timeout=0.5)
""")
        assert (result.stdout, result.stderr) == ("", "")


class TestContextManager:
    def test_a_gateway_has_ended_behind_its_block(self) -> None:
        group = Group()
        with group.makegateway() as gateway:
            pid = gateway._rinfo().pid
            assert gateway in group
        assert gateway not in group
        assert not is_running(pid)

    def test_an_error_in_the_block_comes_out(self) -> None:
        with pytest.raises(ZeroDivisionError), Group().makegateway():
            raise ZeroDivisionError


@posix
class TestKillGroup:
    @pytest.mark.parametrize("end", ["terminate", "kill", "stubborn"])
    def test_what_the_worker_started_goes_with_it(self, end: str) -> None:
        group = Group(["popen//kill=group"])
        child = group[0].remote_exec(WITH_CHILD).receive()
        assert is_running(child)
        if end == "kill":
            os.kill(group[0]._rinfo().pid, signal.SIGKILL)
        elif end == "stubborn":
            group[0].remote_exec(STUBBORN).receive()
        if end != "kill":
            group.terminate(timeout=0.5)
        wait_until(lambda: not is_running(child))
        group.terminate(timeout=1.0)

    def test_also_when_the_coordinator_is_killed(self) -> None:
        result = run_python(f"""
import os, execnet
gateway = execnet.makegateway("popen//kill=group")
print(gateway.remote_exec({WITH_CHILD!r}).receive(), flush=True)
os.kill(os.getpid(), 9)
""")
        child = int(result.stdout)
        wait_until(lambda: not is_running(child))

    @pytest.mark.parametrize("value", ["all", ""])
    def test_there_is_no_other_kind(self, value: str) -> None:
        with pytest.raises(ValueError, match="kill="):
            Group([f"popen//kill={value}"])


class TestGrace:
    def test_it_is_how_long_an_execution_has_at_the_end(self, tmp_path: Path) -> None:
        group = Group(["popen//grace=0.1"])
        group[0].remote_exec(STUBBORN).receive()
        start = time.monotonic()
        group.terminate(timeout=20.0)
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize("value", ["-1", "x", ""])
    def test_it_is_a_number_of_seconds(self, value: str) -> None:
        with pytest.raises(ValueError, match="grace="):
            Group([f"popen//grace={value}"])
