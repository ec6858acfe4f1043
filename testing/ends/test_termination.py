"""How gateways end: asked to, killed, or because the other side is gone. Nothing stays behind.

That no process, thread or descriptor is left is proved behind each test by a fixture; here it is
proved how long it takes, what is delivered before, and who is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models import EXECMODELS, GREENLET_MODELS, need_model
from processes import is_asleep, is_gone, state_of
from tools import (
    BOUND_S,
    MakeGateway,
    Task,
    clean_environment,
    find_python,
    needs_other_threads,
    run_python,
    wait_until,
)

from execnet import Gateway, Group, WorkerDied, XSpec
from execnet._ends import terminate as ends_terminate
from execnet.gateway_base import ISPYPY, ExecModel

TIMEOUT_S = 0.3  # given to terminate() where a worker will not end by itself

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.usefixtures("coordinator"),
]

# What a worker may be busy with; "channel" says when it is.
BUSY = {
    "nothing": "channel.send(1)",
    "receiving": "channel.send(1); channel.receive()",
    "sleeping": "channel.send(1); import time; time.sleep(100)",
    "looping": "channel.send(1)\nwhile True: pass",
    "waiting for a lock": """
        import threading
        lock = threading.Lock()
        lock.acquire()
        channel.send(1)
        lock.acquire()
        """,
    "sending": "channel.send(1)\nwhile True: channel.send(b'x' * 10000)",
    "swallowing interrupts": """
        import time
        channel.send(1)
        while True:
            try:
                time.sleep(100)
            except BaseException:
                pass
        """,
    "ignoring SIGINT": """
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        channel.send(1)
        time.sleep(100)
        """,
    "stopped": "channel.send(1); import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "exiting": "channel.send(1); import os; os._exit(0)",
    "killing itself": "channel.send(1); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "closing its stream": """
        channel.send(1)
        channel.gateway._io.close_write()
        import time
        time.sleep(100)
        """,
}


def keep_busy(gateway: Gateway, what: str) -> Any:
    """Have the worker begin what the name says; return the channel."""
    channel = gateway.remote_exec(BUSY[what])
    assert channel.receive(BOUND_S) == 1
    if what == "sending":
        channel.setcallback(lambda item: None)
    return channel


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class TestTerminate:
    @pytest.mark.parametrize("what", BUSY)
    def test_it_ends_whatever_a_worker_does_within_a_second_of_its_time(
        self, group: Group, what: str
    ) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, what)
        stopwatch = Stopwatch()
        group.terminate(timeout=TIMEOUT_S)
        assert stopwatch.seconds < TIMEOUT_S + 1
        assert len(group) == 0
        assert not gateway.hasreceiver()
        assert gateway._io.popen.returncode is not None

    def test_its_time_is_for_all_workers_together(self, group: Group) -> None:
        for gateway, what in zip(group.makegateways(["popen"] * len(BUSY)), BUSY, strict=True):
            keep_busy(gateway, what)
        stopwatch = Stopwatch()
        group.terminate(timeout=TIMEOUT_S)
        assert stopwatch.seconds < TIMEOUT_S + 1

    @pytest.mark.parametrize("what", ["nothing", "receiving", "sleeping", "looping"])
    def test_it_does_so_in_every_execution_model(self, execmodel: ExecModel, what: str) -> None:
        group = Group(execmodel=execmodel)
        keep_busy(group.makegateway(), what)
        stopwatch = Stopwatch()
        group.terminate(timeout=TIMEOUT_S)
        assert stopwatch.seconds < TIMEOUT_S + 1

    @pytest.mark.parametrize("what", ["nothing", "receiving", "exiting"])
    def test_without_a_time_it_waits_for_workers_to_end_by_themselves(
        self, group: Group, what: str
    ) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, what)
        group.terminate()
        assert gateway._io.popen.returncode == 0

    @pytest.mark.parametrize("what", ["stopped", "ignoring SIGINT"])
    def test_without_a_time_it_kills_those_that_take_longer_than_their_grace(
        self, group: Group, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        monkeypatch.setattr(ends_terminate, "MARGIN_S", 0.2)
        gateways = group.makegateways(["popen//grace=0.1", "popen//grace=0.2"])
        keep_busy(gateways[0], what)
        group.terminate()
        assert gateways[0]._io.popen.returncode in (1, -signal.SIGKILL)
        assert gateways[1]._io.popen.returncode == 0

    def test_without_a_time_it_gives_up_members_of_other_kinds_too(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = group.execmodel.Event()
        monkeypatch.setattr(ends_terminate, "MARGIN_S", -10.0)

        class Member:
            id, spec = "other", XSpec("popen")
            exit = join = int

            class _io:
                wait, kill = ended.wait, ended.set

        group._register(Member)
        group.terminate()
        assert ended.is_set()

    def test_it_ends_a_send_that_waits_for_a_worker_that_does_not_read(self, group: Group) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, "stopped")
        channel = gateway.newchannel()
        sender = Task(group.execmodel, channel.send, b"x" * 10_000_000)
        wait_until(lambda: not gateway._io.can_write_now())
        group.terminate(timeout=TIMEOUT_S)
        with pytest.raises(OSError, match="cannot send"):
            sender.result()

    def test_idle_workers_end_at_once_and_are_not_killed(self, execmodel: ExecModel) -> None:
        group = Group(execmodel=execmodel)
        # Were it to wait for anything, that would be more than any machine takes to end six.
        gateways = group.makegateways(["popen//grace=60"] * 6)
        multi = group.remote_exec("channel.send(1)")
        assert multi.receive_each() == [1] * 6
        del multi
        stopwatch = Stopwatch()
        group.terminate(timeout=60)
        assert [gateway._io.popen.returncode for gateway in gateways] == [0] * 6
        assert stopwatch.seconds < 30

    def test_code_that_is_about_to_end_is_left_to_do_so(self, group: Group, tmp_path: Path) -> None:
        channel = group.makegateway().remote_exec(
            """
            import time
            with open(channel.receive(), "w") as file:
                channel.send(1)
                time.sleep(0.2)
                file.write("done")
            """
        )
        channel.send(str(tmp_path / "file"))
        channel.receive(BOUND_S)
        group.terminate()
        assert (tmp_path / "file").read_text() == "done"

    @pytest.mark.parametrize("in_main_thread", [True, False])
    def test_code_that_goes_on_is_interrupted_after_its_grace(
        self, group: Group, tmp_path: Path, in_main_thread: bool
    ) -> None:
        gateway = group.makegateway()
        blocker = gateway.remote_exec("pass" if in_main_thread else "channel.receive()")
        if in_main_thread:
            blocker.waitclose(BOUND_S)
        channel = gateway.remote_exec(
            """
            import time
            channel.gateway.grace_s = 0.2
            name = channel.receive()
            try:
                channel.send(1)
                time.sleep(100)
            finally:
                with open(name, "w") as file:
                    file.write("cleaned up")
            """
        )
        channel.send(str(tmp_path / "file"))
        channel.receive(BOUND_S)
        stopwatch = Stopwatch()
        group.terminate()
        assert stopwatch.seconds < 3
        if in_main_thread:
            assert (tmp_path / "file").read_text() == "cleaned up"

    def test_code_that_swallows_interrupts_is_ended_after_its_grace(self, group: Group) -> None:
        gateway = group.makegateway()
        gateway.remote_exec("channel.gateway.grace_s = 0.2").waitclose(BOUND_S)
        keep_busy(gateway, "swallowing interrupts")
        stopwatch = Stopwatch()
        group.terminate()
        assert stopwatch.seconds < 3

    def test_it_can_be_called_again_and_by_several_at_once(self, group: Group) -> None:
        for gateway in group.makegateways(["popen"] * 3):
            keep_busy(gateway, "sleeping")
        stopwatch = Stopwatch()
        tasks = [Task(group.execmodel, group.terminate, TIMEOUT_S) for _ in range(4)]
        for task in tasks:
            task.result()
        group.terminate(TIMEOUT_S)
        assert stopwatch.seconds < TIMEOUT_S + 1
        assert len(group) == 0

    def test_all_are_gone_when_each_of_several_callers_returns(self, group: Group) -> None:
        gateways = group.makegateways(["popen"] * 2)
        for gateway in gateways:
            keep_busy(gateway, "ignoring SIGINT")
        left: list[list[int]] = []

        def terminate() -> None:
            group.terminate(TIMEOUT_S)
            left.append([g._io.popen.pid for g in gateways if not is_gone(g._io.popen.pid)])

        tasks = [Task(group.execmodel, terminate) for _ in range(3)]
        for task in tasks:
            task.result()
        assert left == [[], [], []]

    def test_a_callback_of_a_member_may_call_it_meanwhile(self, group: Group) -> None:
        """Then neither waits for the other, though the end of the member waits for its callback."""
        gateway = group.makegateway()
        codes: list[int | None] = []

        def end(item: object) -> None:
            wait_until(lambda: gateway._group is None)  # it was asked to end
            group.terminate()
            codes.append(gateway._io.popen.returncode)

        channel = gateway.remote_exec("channel.send(1); channel.receive()")
        channel.setcallback(end)
        Task(group.execmodel, group.terminate).result()
        assert codes == [0]

    def test_callbacks_of_several_members_may_call_it_at_once(self, group: Group) -> None:
        called: list[object] = []
        ended: list[object] = []

        def end(item: object) -> None:
            called.append(item)
            wait_until(lambda: len(called) == 2)
            group.terminate()
            ended.append(item)

        gateways = group.makegateways(["popen"] * 2)
        for gateway in gateways:
            channel = gateway.remote_exec("channel.send(channel.receive())")
            channel.setcallback(end)
            channel.send(gateway.id)
        wait_until(lambda: len(ended) == 2)
        for gateway in gateways:
            gateway.join(BOUND_S)
        assert len(group) == 0

    def test_what_it_calls_may_call_it(self, group: Group) -> None:
        calls: list[str] = []

        class Member:
            id, spec = "other", XSpec("popen")
            join = int

            class _io:
                wait = int

            @staticmethod
            def exit() -> None:
                calls.append("exit")
                if len(calls) == 1:
                    group.terminate()

        gateway = group.makegateway()
        group._register(Member)
        Task(group.execmodel, group.terminate).result()
        assert calls == ["exit", "exit"]
        assert gateway._io.popen.returncode == 0

    def test_a_group_can_be_used_again(self, group: Group) -> None:
        group.makegateway()
        group.terminate(timeout=BOUND_S)
        assert group.makegateway().remote_exec("channel.send(1)").receive(BOUND_S) == 1

    @pytest.mark.needs_threads("test_greenlets.py has it: frames of greenlets tell nothing here")
    def test_an_interrupt_while_it_waits_leaves_no_worker(self, group: Group) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, "stopped")
        with interrupted_in("terminate"), pytest.raises(KeyboardInterrupt):
            group.terminate()
        assert gateway._io.popen.returncode == -signal.SIGKILL

    def test_who_waits_in_receive_is_told(self, group: Group) -> None:
        channel = group.makegateway().remote_exec("channel.send(1); channel.receive()")
        channel.receive(BOUND_S)
        told: list[BaseException] = []

        def receive() -> None:
            try:
                channel.receive()
            except EOFError as exc:
                told.append(exc)

        task = Task(group.execmodel, receive)
        group.terminate(timeout=BOUND_S)
        task.result()
        assert [type(exc) for exc in told] == [EOFError]


class TestNestedGateways:
    """A worker may be a coordinator, too."""

    @pytest.mark.parametrize("how", ["terminate", "SIGTERM to the worker", "SIGKILL to the worker"])
    def test_what_a_worker_started_ends_with_it(self, group: Group, how: str) -> None:
        gateway = group.makegateway()
        channel = gateway.remote_exec(
            """
            import execnet
            inner = execnet.makegateway("popen")
            channel.send(inner.remote_exec("channel.send(6 * 7)").receive(10))
            channel.send(inner._rinfo().pid)
            """
        )
        assert channel.receive(BOUND_S) == 42
        inner = channel.receive(BOUND_S)
        if how == "terminate":
            group.terminate(timeout=BOUND_S)
        else:
            os.kill(gateway._rinfo().pid, getattr(signal, how.split()[0]))
        wait_until(lambda: is_gone(inner), 5)


class interrupted_in:
    """Sends this process SIGINT once its main thread is in a function of that name."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._is_asleep = is_asleep(os.getpid())
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        wait_until(self._is_there)
        os.kill(os.getpid(), signal.SIGINT)

    def _is_there(self) -> bool:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        names = []
        while frame.f_back is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return self._is_asleep() and self._function in names and names[0] != self._function

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join(BOUND_S)


class TestExit:
    def test_alone_it_leaves_nothing(self, execmodel: ExecModel) -> None:
        gateway = Group(execmodel=execmodel).makegateway()
        process = gateway._io.popen
        gateway.exit()
        gateway.exit()
        gateway.join(BOUND_S)
        wait_until(lambda: process.returncode is not None, sleep=execmodel.sleep)
        assert process.returncode == 0
        assert is_gone(process.pid)

    def test_it_leaves_its_group_at_once(self, group: Group) -> None:
        gateway = group.makegateway()
        gateway.exit()
        assert len(group) == 0
        assert gateway._group is None

    def test_nothing_can_be_sent_behind_it(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("channel.receive()")
        gateway.exit()
        with pytest.raises(OSError, match=r"cannot send|closed"):
            channel.send(1)
        with pytest.raises(OSError, match=r"cannot send|closed"):
            gateway.remote_exec("pass")

    def test_what_was_sent_before_it_arrives(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec(
            """
            with open(channel.receive(), "w") as file:
                for item in channel:
                    file.write("%d\\n" % item)
            """
        )
        channel.send(str(tmp_path / "file"))
        for number in range(1000):
            channel.send(number)
        gateway.exit()
        gateway.join(BOUND_S)
        wait_until(lambda: gateway._io.popen.returncode is not None)
        assert (tmp_path / "file").read_text().split() == [str(n) for n in range(1000)]

    def test_it_does_not_wait(self, group: Group) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, "stopped")
        stopwatch = Stopwatch()
        gateway.exit()
        assert stopwatch.seconds < 1
        gateway.join(timeout=0.05)
        assert gateway.hasreceiver()
        os.kill(gateway._io.popen.pid, signal.SIGCONT)

    def test_a_full_pipe_does_not_make_it_wait(self, group: Group) -> None:
        gateway = group.makegateway()
        channel = gateway.remote_exec("channel.receive()")
        keep_busy(gateway, "stopped")
        sender = Task(group.execmodel, send_and_forget, channel, b"x" * (8 << 20))
        wait_until(lambda: not gateway._io.can_write_now())
        stopwatch = Stopwatch()
        gateway.exit()
        assert stopwatch.seconds < 1
        group.terminate(timeout=TIMEOUT_S)
        sender.result()


def send_and_forget(channel: Any, item: object) -> None:
    with contextlib.suppress(OSError):
        channel.send(item)


class TestAWorkerThatDies:
    @pytest.mark.parametrize(
        ("how", "exitcode", "words"),
        [
            ("os._exit(3)", 3, "exit status 3"),
            ("os._exit(0)", 0, "exit status 0"),
            ("os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
            ("os.abort()", -6, "killed by SIGABRT"),
        ],
    )
    def test_its_end_is_told_to_who_waits(
        self, makegateway: MakeGateway, how: str, exitcode: int, words: str
    ) -> None:
        gateway = makegateway()
        other = gateway.newchannel()
        channel = gateway.remote_exec(f"import os; channel.receive(); {how}")
        channel.send(1)
        for call in channel.receive, channel.waitclose, other.receive, other.waitclose:
            with pytest.raises(WorkerDied, match=f"gw0.*{words}") as caught:
                call(BOUND_S)  # type: ignore[operator]
            assert isinstance(caught.value, EOFError)
            assert caught.value.exitcode == exitcode

    @pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only its stream tells of its end")
    @pytest.mark.parametrize("end", ["by itself", "as it is asked to"])
    def test_a_process_that_it_forked_does_not_hide_its_end(self, group: Group, end: str) -> None:
        channel = group.makegateway().remote_exec(
            """
            import os, time
            child = os.fork()
            if not child:
                time.sleep(100)
                os._exit(0)
            channel.send(child)
            channel.receive()
            os._exit(3)
            """
        )
        child = channel.receive(BOUND_S)
        try:
            if end == "by itself":
                channel.send(1)
                with pytest.raises(WorkerDied, match="exit status 3"):
                    channel.waitclose(BOUND_S)
            watch = Stopwatch()
            group.terminate(timeout=BOUND_S)
            assert watch.seconds < BOUND_S
        finally:
            os.kill(child, signal.SIGKILL)

    def test_what_it_sent_comes_first(self, gw: Gateway) -> None:
        channel = gw.remote_exec(
            """
            import os
            for i in range(50):
                channel.send(i)
            channel.send(b"x" * (3 << 20))
            channel.send("last")
            os._exit(3)
            """
        )
        *numbers, big, last = [channel.receive(BOUND_S) for _ in range(52)]
        assert numbers == list(range(50))
        assert len(big) == 3 << 20
        assert last == "last"
        with pytest.raises(WorkerDied) as caught:
            channel.receive(BOUND_S)
        assert caught.value.exitcode == 3

    def test_data_and_death_right_behind_it_arrive_in_that_order_each_time(
        self, group: Group
    ) -> None:
        group.makegateways(["popen"] * 10)
        multi = group.remote_exec(
            "import os; channel.receive(); channel.send([b'x' * 70000, 7]); os._exit(3)"
        )
        multi.send_each(None)
        assert multi.receive_each() == [[b"x" * 70000, 7]] * 10
        for channel in multi:
            with pytest.raises(WorkerDied) as caught:
                channel.receive(BOUND_S)
            assert caught.value.exitcode == 3

    def test_everyone_who_waits_is_told(self, gw: Gateway) -> None:
        channel = gw.remote_exec("import os; channel.receive(); os._exit(3)")
        others = [gw.newchannel() for _ in range(4)]
        told = gw.execmodel.queue.Queue()

        def wait(call: Callable[[], object]) -> None:
            try:
                told.put(("returned", call()))
            except WorkerDied as exc:
                told.put(("raised", exc.exitcode))

        for call in others[0].receive, others[1].waitclose, others[2].receive, channel.receive:
            gw.execmodel.start(wait, (call,))
        others[3].setcallback(told.put, endmarker="end")
        channel.send(1)
        got = [told.get(timeout=BOUND_S) for _ in range(5)]
        assert sorted(map(str, got)) == ["('raised', 3)"] * 4 + ["end"]

    def test_each_gets_an_error_of_its_own(self, makegateway: MakeGateway) -> None:
        """One for all would hold the frames of everyone who ever got it."""
        channel = makegateway().remote_exec("import os; os._exit(3)")
        errors = []
        for call in channel.receive, channel.receive, channel.waitclose:
            with pytest.raises(WorkerDied) as caught:
                call(BOUND_S)  # type: ignore[operator]
            errors.append(caught.value)
        assert len(set(map(id, errors))) == 3
        assert [error.exitcode for error in errors] == [3, 3, 3]

    def test_sending_to_it_is_refused_afterwards(self, gw: Gateway) -> None:
        channel = gw.remote_exec("import os; os._exit(0)")
        with pytest.raises(WorkerDied):
            channel.waitclose(BOUND_S)
        assert channel.isclosed()
        for call in (lambda: channel.send(1)), gw.newchannel, (lambda: gw.remote_exec("pass")):
            with pytest.raises(OSError):  # noqa: PT011 - the words differ, the class is meant
                call()

    def test_a_send_that_waits_for_room_ends(self, gw: Gateway) -> None:
        channel = gw.remote_exec("import os, signal; channel.send(1); os.kill(os.getpid(), 19)")
        channel.receive(BOUND_S)
        process = gw._io.popen
        ended = gw.execmodel.queue.Queue()

        def send() -> None:
            try:
                channel.send(b"x" * (16 << 20))
            except OSError as exc:
                ended.put(exc)

        gw.execmodel.start(send)
        wait_until(lambda: state_of(process.pid) == "T", sleep=gw.execmodel.sleep)
        gw.execmodel.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        assert isinstance(ended.get(timeout=BOUND_S), OSError)

    def test_it_stays_in_its_group_until_it_is_ended(self, group: Group) -> None:
        gateway = group.makegateway()
        keep_busy(gateway, "exiting")
        gateway.join(BOUND_S)
        assert gateway in group
        gateway.exit()
        assert gateway not in group

    def test_others_go_on(self, group: Group) -> None:
        one, other = group.makegateways(["popen"] * 2)
        keep_busy(one, "killing itself")
        one.join(BOUND_S)
        assert other.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_a_half_sent_item_is_not_delivered(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(
            """
            import os, struct
            channel.send("whole")
            piece = struct.pack("!iB", 7, 0) + b"x" * 100000
            channel.gateway._send(9, channel.id, piece)  # CHANNEL_DATA_PART, not the last
            os._exit(3)
            """
        )
        assert channel.receive(BOUND_S) == "whole"
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)


# Starts a worker per code, says their pids, and stays until it is killed or told to end.
COORDINATOR = """
import json, os, sys, time
import execnet
group = execnet.Group()
pids, channels = [], []
for spec, codes in json.loads(sys.argv[1]):
    gateway = group.makegateway(spec)
    pids.append(gateway._rinfo().pid)
    for code in codes:
        channel = gateway.remote_exec(code)
        channel.receive(10)
        channel.setcallback(lambda item: None)
        channels.append(channel)
print(json.dumps(pids), flush=True)
exec(sys.stdin.readline())
"""


class TestACoordinatorThatDies:
    @pytest.fixture
    def coordinator(self) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[int]]]]:
        processes: list[subprocess.Popen[str]] = []
        workers: list[int] = []

        def start(*works: tuple[str, list[str]]) -> tuple[subprocess.Popen[str], list[int]]:
            process = subprocess.Popen(
                [sys.executable, "-c", COORDINATOR, json.dumps(works)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=clean_environment(PYTHONWARNINGS="ignore"),  # eventlet's, on stderr
            )
            processes.append(process)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()
            workers.extend(json.loads(line))
            return process, workers

        yield start
        for process in processes:
            process.kill()
        for pid in workers:  # only if a test failed
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.communicate()

    def end(self, process: subprocess.Popen[str], how: str) -> str:
        """End the coordinator; return what it and its workers wrote to stderr."""
        assert process.stdin is not None
        if how == "SIGKILL":
            process.kill()
        else:
            process.stdin.write(how + "\n")
            process.stdin.flush()
        process.wait(BOUND_S)
        _, err = process.communicate(timeout=BOUND_S)  # workers have the same stderr
        return err

    @pytest.mark.parametrize("how", ["SIGKILL", "os._exit(0)"])
    def test_its_workers_end_at_once(self, coordinator: Any, how: str) -> None:
        works = ["nothing", "receiving", "sleeping", "looping", "waiting for a lock", "sending"]
        process, workers = coordinator(
            *[("popen", [BUSY[what]]) for what in works],
            ("popen//execmodel=main_thread_only", [BUSY["sleeping"]]),
        )
        stopwatch = Stopwatch()
        err = self.end(process, how)
        wait_until(lambda: all(map(is_gone, workers)), BOUND_S)
        assert stopwatch.seconds < 2
        assert err == ""

    def test_what_runs_in_other_threads_ends_at_once(self, coordinator: Any) -> None:
        works = ["receiving", "sending"]
        if not ISPYPY:  # which can't interrupt them
            works += ["sleeping", "looping", "waiting for a lock"]
        process, workers = coordinator(*[("popen", [BUSY["receiving"], BUSY[w]]) for w in works])
        stopwatch = Stopwatch()
        self.end(process, "SIGKILL")
        wait_until(lambda: all(map(is_gone, workers)), BOUND_S)
        assert stopwatch.seconds < 2

    @needs_other_threads
    def test_finally_blocks_in_other_threads_run(self, coordinator: Any, tmp_path: Path) -> None:
        file = tmp_path / "file"
        code = f"""
            import time
            try:
                channel.send(1)
                while True:
                    time.sleep(0.001)
            finally:
                time.sleep(0.5)
                open({str(file)!r}, "w").write("cleaned up")
            """
        process, _ = coordinator(("popen", [BUSY["receiving"], code]))
        self.end(process, "SIGKILL")
        wait_until(file.exists)
        wait_until(lambda: file.read_text() == "cleaned up")

    def test_idle_workers_of_every_model_end_at_once(self, coordinator: Any) -> None:
        models = [model for model in EXECMODELS if not (ISPYPY and model in GREENLET_MODELS)]
        process, workers = coordinator(
            *[(f"popen//execmodel={model}", ["channel.send(1)"]) for model in models],
            *[
                (f"popen//execmodel={model}", ["channel.send(1); channel.receive()"])
                for model in models
            ],
        )
        stopwatch = Stopwatch()
        err = self.end(process, "SIGKILL")
        wait_until(lambda: all(map(is_gone, workers)), BOUND_S)
        assert stopwatch.seconds < 2
        assert err == ""

    @pytest.mark.parametrize(
        "works",
        [["swallowing interrupts"], ["ignoring SIGINT"], ["receiving", "swallowing interrupts"]],
        ids=["swallowing interrupts", "ignoring SIGINT", "swallowing them in another thread"],
    )
    def test_who_resists_has_the_grace_to_do_so(self, coordinator: Any, works: list[str]) -> None:
        codes = [textwrap.dedent(BUSY[what]) for what in works]
        codes[0] = "channel.gateway.grace_s = 0.3\n" + codes[0]
        process, workers = coordinator(("popen", codes))
        stopwatch = Stopwatch()
        self.end(process, "SIGKILL")
        wait_until(lambda: all(map(is_gone, workers)), BOUND_S)
        assert stopwatch.seconds < 3

    def test_the_finally_blocks_of_its_workers_run(self, coordinator: Any, tmp_path: Path) -> None:
        file = tmp_path / "file"
        code = f"""
            import time
            try:
                channel.send(1)
                time.sleep(100)
            finally:
                open({str(file)!r}, "w").write("cleaned up")
            """
        process, _ = coordinator(("popen", [code]))
        self.end(process, "SIGKILL")
        wait_until(file.exists)
        wait_until(lambda: file.read_text() == "cleaned up")

    def test_what_waits_in_a_channel_has_one_exception_and_cleans_up(
        self, coordinator: Any, tmp_path: Path
    ) -> None:
        def code(file: Path) -> str:
            return f"""
            import time
            try:
                channel.send(1)
                channel.receive()
            except BaseException as exc:
                for i in range(100):
                    time.sleep(0.001)
                open({str(file)!r}, "w").write(type(exc).__name__)
            """

        main, other = tmp_path / "main", tmp_path / "other"
        process, _ = coordinator(("popen", [code(main), code(other)]))
        self.end(process, "SIGKILL")
        wait_until(lambda: main.exists() and other.exists())
        wait_until(lambda: main.read_text() and other.read_text())
        assert main.read_text() == "KeyboardInterrupt"
        if sys.implementation.name == "cpython":
            assert other.read_text() == "KeyboardInterrupt"

    def test_it_ends_workers_that_can_import_nothing_any_more(self, coordinator: Any) -> None:
        code = """
            import _imp, ctypes, threading, traceback
            thread = threading.Thread(target=_imp.acquire_lock)
            thread.start()
            thread.join()
            """
        code = textwrap.dedent(code) + BUSY["receiving"]
        process, workers = coordinator(("popen//grace=0.3", [BUSY["receiving"], code]))
        stopwatch = Stopwatch()
        self.end(process, "SIGKILL")
        wait_until(lambda: all(map(is_gone, workers)), BOUND_S)
        assert stopwatch.seconds < 2

    def test_one_that_ends_in_order_takes_busy_workers_along(self, coordinator: Any) -> None:
        process, workers = coordinator(
            *[("popen", [BUSY[what]]) for what in ("sleeping", "looping", "ignoring SIGINT")]
        )
        stopwatch = Stopwatch()
        err = self.end(process, "sys.exit(0)")
        assert stopwatch.seconds < 3
        assert all(map(is_gone, workers))
        assert err == ""


PROGRAMS = {
    "leaves its gateways as they are": "",
    "terminates them": "execnet.default_group.terminate(1)",
    "exits them": "gw.exit()",
    "has one killed": "os.kill(pid, 9); gw.join(5)",
    "has one killed while it receives": """
ch = gw.remote_exec("channel.receive()")
os.kill(pid, 9)
try: ch.receive(5)
except EOFError: pass
""",
    "has one killed and ends at once": "os.kill(pid, 9)",
    "has one killed and sends to it": """
ch = gw.remote_exec("channel.receive()")
os.kill(pid, 9)
try:
    while True: ch.send(b"x" * 10000)
except OSError: pass
""",
    "has a worker that exits": "gw.remote_exec('import os; os._exit(1)')",
    "has a worker that is busy": """
ch = gw.remote_exec("channel.send(1)\\nwhile True: pass")
ch.receive(5)
""",
    "has a thread that receives": """
ch = gw.remote_exec("channel.receive()")
import threading
def receive():
    try: ch.receive()
    except EOFError: pass
threading.Thread(target=receive, daemon=True).start()
""",
    "has a callback that is being called": """
ch = gw.remote_exec("while True: channel.send(1)")
ch.setcallback(lambda item: None, endmarker=None)
""",
    "has channels that were dropped": """
for i in range(100): gw.remote_exec("channel.send(channel.receive())")
""",
    "keeps channels to its end": """
channels = [gw.remote_exec("channel.send(channel.receive())") for i in range(10)]
items = [gw.newchannel() for i in range(10)]
""",
    "is in a group of its own": """
group = execnet.Group(["popen"] * 2)
group.remote_exec("channel.send(1)").receive_each()
""",
    "forgets its group": """
gws = [execnet.Group().makegateway() for i in range(2)]
del gws
""",
    "ends in a worker thread's time": """
import threading
def use():
    while True:
        try: gw.remote_exec("channel.send(1)").receive(5)
        except (OSError, EOFError): return
threading.Thread(target=use, daemon=True).start()
""",
    "exits with a status": "sys.exit(7)",
}


class TestStderrOfAProgram:
    def program(self, name: str) -> str:
        begin = (
            "import os, sys, execnet\ngw = execnet.makegateway('popen')\npid = gw._rinfo().pid\n"
        )
        return begin + PROGRAMS[name]

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_it_stays_empty_to_the_end_when_the_program(self, name: str) -> None:
        result = run_python(self.program(name), PYTHONWARNINGS="error")
        assert result.stderr == ""
        assert result.returncode == (7 if "status" in name else 0)

    @pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
    @pytest.mark.parametrize(
        "name",
        ["leaves its gateways as they are", "has a worker that is busy", "forgets its group"],
    )
    def test_other_pythons_do_the_same(self, name: str, version: str) -> None:
        result = run_python(self.program(name), python=find_python(version), PYTHONWARNINGS="error")
        assert result.stderr == ""
        assert result.returncode == 0

    @pytest.mark.parametrize("name", ["terminates them", "exits them", "has one killed"])
    def test_development_mode_has_nothing_to_say_either(self, name: str) -> None:
        result = run_python(self.program(name), PYTHONDEVMODE="1", PYTHONWARNINGS="error")
        assert result.stderr == ""

    @pytest.mark.parametrize("model", EXECMODELS)
    def test_no_execution_model_says_anything(self, model: str) -> None:
        need_model(model)
        code = """
import sys, execnet
group = execnet.Group(execmodel=sys.argv[1])
gw = group.makegateway()
first = gw.remote_exec("channel.send(channel.receive())")
assert first.isclosed() is False
first.close()
ch = gw.remote_exec("channel.send(1); channel.receive()")
assert ch.receive(10) == 1
ch.setcallback(lambda item: None)
"""
        result = run_python(code, model, PYTHONWARNINGS="ignore")
        assert result.stderr == ""
        assert result.returncode == 0
