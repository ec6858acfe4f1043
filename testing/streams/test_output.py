"""``output=forward`` and ``Group.on_output``: what comes, how much of it, and what may not suffer.

On which workers is in ``test_output_workers.py``.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tools import BOUND_S, Task, run_python, wait_until
from written import FORWARD, Written, run_in

from execnet import Gateway, Group
from execnet._output import near
from execnet._output.far import BUFFER_BYTES, LINE_BYTES, WINDOW_BYTES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="commands of POSIX")


class TestForwardedLines:
    def test_come_from_both_streams(self, group: Group, written: Written) -> None:
        gateway = group.makegateway(FORWARD)
        run_in(gateway, "import sys; print('out'); sys.stderr.write('err\\n')")
        group.terminate(BOUND_S)
        assert sorted(written.all) == [("gw0", "stderr", "err"), ("gw0", "stdout", "out")]

    def test_come_while_the_code_runs(self, group: Group, written: Written) -> None:
        channel = group.makegateway(FORWARD).remote_exec("print('now'); channel.receive()")
        wait_until(lambda: written.lines() == ["now"])
        channel.send(None)

    @pytest.mark.parametrize(
        "statement",
        [
            "os.write(1, b'c\\n')",
            "os.system('echo c')",
            "subprocess.call([sys.executable, '-c', 'print(\"c\")'])",
            "subprocess.call('echo c >&2', shell=True, stderr=1)",
            "ctypes.CDLL(None).puts(b'c'); ctypes.CDLL(None).fflush(None)",
        ],
    )
    def test_are_those_of_c_code_and_child_processes_too(
        self, group: Group, written: Written, statement: str
    ) -> None:
        run_in(group.makegateway(FORWARD), f"import ctypes, os, subprocess, sys; {statement}")
        group.terminate(BOUND_S)
        assert written.lines() == ["c"]

    def test_are_whole(self, group: Group, written: Written) -> None:
        channel = group.makegateway(FORWARD).remote_exec(
            "import os\nfor part in channel: os.write(1, part); channel.send(None)"
        )
        for part in [b"on", b"e\ntw", b"o\n"]:
            channel.send(part)
            channel.receive(BOUND_S)
        channel.close()
        group.terminate(BOUND_S)
        assert written.lines() == ["one", "two"]

    def test_the_last_one_needs_no_end(self, group: Group, written: Written) -> None:
        run_in(group.makegateway(FORWARD), "import sys; sys.stdout.write('a\\n\\nb')")
        group.terminate(BOUND_S)
        assert written.lines() == ["a", "", "b"]

    def test_long_ones_are_cut(self, group: Group, written: Written) -> None:
        run_in(group.makegateway(FORWARD), "print('x' * 200000); print('y')")
        group.terminate(BOUND_S)
        assert max(map(len, written.lines())) == LINE_BYTES
        assert "".join(written.lines()) == "x" * 200000 + "y"

    def test_bytes_that_are_no_utf8_are_replaced(self, group: Group, written: Written) -> None:
        run_in(group.makegateway(FORWARD), "import os; os.write(1, b'a\\xff\\xc3\\xa4\\n')")
        group.terminate(BOUND_S)
        assert written.lines() == ["a\ufffdä"]

    def test_text_is_utf8_whatever_the_locale(self, group: Group, written: Written) -> None:
        gateway = group.makegateway(FORWARD + "//env:LC_ALL=C//env:PYTHONIOENCODING=latin-1")
        run_in(gateway, "print('\\xe4\\u20ac\\ud800')")
        group.terminate(BOUND_S)
        assert written.lines() == ["ä€\\ud800"]

    def test_many_workers_are_told_apart(self, group: Group, written: Written) -> None:
        group.makegateways([FORWARD] * 8)
        code = "for i in range(500): print(i)"
        group.remote_exec(code).waitclose()
        group.terminate(BOUND_S)
        for number in range(8):
            lines = [line for id, _, line in written.all if id == f"gw{number}"]
            assert lines == [str(i) for i in range(500)]


class TestCompleteness:
    def test_all_that_was_written_comes_before_terminate_returns(
        self, group: Group, written: Written
    ) -> None:
        run_in(group.makegateway(FORWARD), "for i in range(100000): print(i)")
        group.terminate(BOUND_S)
        assert written.lines() == [str(i) for i in range(100000)]

    def test_code_that_runs_on_at_the_end_is_heard(self, group: Group, written: Written) -> None:
        code = "channel.send(1)\ntry: channel.receive()\nfinally: print('last words')"
        group.makegateway(FORWARD).remote_exec(code).receive(BOUND_S)
        group.terminate(BOUND_S)
        assert written.lines() == ["last words"]

    def test_a_callback_that_is_behind_is_waited_for(self, group: Group, written: Written) -> None:
        def behind(gateway: Gateway, stream: str, line: str) -> None:
            gateway.join(BOUND_S)
            time.sleep(0.1)  # it is slow
            written(gateway, stream, line)

        group.on_output(behind)
        run_in(group.makegateway(FORWARD), "print(1); print(2)")
        group.terminate(BOUND_S)
        assert written.lines() == ["1", "2"]

    def test_a_window_does_not_cut_it(self, group: Group, written: Written) -> None:
        code = "import sys\nchannel.send(1)\ntry: channel.receive()\n"
        code += "finally:\n for i in range(9): print(i); sys.stderr.write('%d\\n' % i)"
        group.makegateway(FORWARD + "//window=1").remote_exec(code).receive(BOUND_S)
        group.terminate(BOUND_S)
        assert written.lines() == written.lines("stderr") == [str(i) for i in range(9)]

    def test_a_program_that_just_ends_prints_all(self) -> None:
        code = "import execnet; gateway = execnet.makegateway('popen//output=forward');"
        code += "gateway.remote_exec('for i in range(20000): print(i)').waitclose()"
        run = run_python(code)
        assert run.stdout.splitlines() == [f"[gw0] {i}" for i in range(20000)]
        assert run.stderr == ""

    @pytest.mark.parametrize("writes", ["", "yes", "echo before"])
    def test_a_child_that_stays_is_not_waited_for(
        self, group: Group, written: Written, writes: str
    ) -> None:
        channel = group.makegateway(FORWARD).remote_exec(
            "import subprocess\nprint('parent')\n"
            "child = subprocess.Popen(channel.receive(), shell=True)\nchannel.send(child.pid)"
        )
        channel.send(f"{writes or ':'}; exec sleep 60")
        pid = channel.receive(BOUND_S)
        channel.waitclose(BOUND_S)
        started = time.monotonic()
        try:
            group.terminate(BOUND_S)
            assert time.monotonic() - started < 5
        finally:
            subprocess.call(["kill", "-9", str(pid)])
            subprocess.call(["pkill", "-9", "-P", str(pid)])
        assert "parent" in written.lines()


class TestReadersThatDoNotRead:
    @pytest.fixture
    def gate(self) -> Iterator[threading.Event]:
        gate = threading.Event()
        yield gate
        gate.set()

    @pytest.fixture
    def blocked(self, group: Group, written: Written, gate: threading.Event) -> Gateway:
        """A gateway whose first line the callback holds until the gate is open."""

        def wait(gateway: Gateway, stream: str, line: str) -> None:
            written(gateway, stream, line)
            assert gate.wait(BOUND_S)

        group.on_output(wait)
        gateway = group.makegateway(FORWARD)
        run_in(gateway, "print('first')")
        wait_until(lambda: written.lines() == ["first"])
        return gateway

    def test_stop_neither_prints_nor_the_protocol(
        self, group: Group, blocked: Gateway, written: Written, gate: threading.Event
    ) -> None:
        run_in(blocked, "for i in range(200000): print('%050d' % i)")
        blocked.remote_exec("channel.send(1)").receive(BOUND_S)
        assert len(written.all) == 1
        gate.set()
        group.terminate(BOUND_S)
        assert any("lines were dropped" in line for line in written.lines())

    def test_every_line_comes_or_is_counted(
        self, group: Group, blocked: Gateway, written: Written, gate: threading.Event
    ) -> None:
        run_in(blocked, "for i in range(100000): print('%050d' % i)")
        gate.set()
        group.terminate(BOUND_S)
        notes = [line.split()[1] for line in written.lines() if "dropped" in line]
        assert sum(map(int, notes)) + len(written.lines()) - len(notes) == 100001
        numbers = [line for line in written.lines() if line.isdigit()]
        assert numbers == sorted(numbers)

    def test_so_does_one_of_code_that_prints_until_the_end(
        self, group: Group, blocked: Gateway, written: Written, gate: threading.Event
    ) -> None:
        blocked.remote_exec(
            "try: channel.receive()\nexcept EOFError:\n"
            "    for i in range(100000): print('%050d' % i)"
        )
        with ThreadPoolExecutor() as pool:
            ending = pool.submit(group.terminate, BOUND_S)
            wait_until(lambda: not blocked.hasreceiver())  # nothing was taken until then
            gate.set()
            ending.result()
        notes = [line.split()[1] for line in written.lines() if "dropped" in line]
        assert sum(map(int, notes)) + len(written.lines()) - len(notes) == 100001

    def test_what_is_kept_is_bounded(
        self, blocked: Gateway, group: Group, written: Written, gate: threading.Event
    ) -> None:
        run_in(blocked, "for i in range(200000): print('%050d' % i)")
        gate.set()
        group.terminate(BOUND_S)
        assert sum(map(len, written.lines())) <= 2 * (BUFFER_BYTES + WINDOW_BYTES)

    def test_terminate_keeps_its_time(
        self, group: Group, blocked: Gateway, gate: threading.Event
    ) -> None:
        started = time.monotonic()
        group.terminate(0.5)
        assert time.monotonic() - started < 5
        assert not blocked.hasreceiver()

    def test_a_slow_one_loses_nothing(self, group: Group, written: Written) -> None:
        def slow(gateway: Gateway, stream: str, line: str) -> None:
            written(gateway, stream, line)
            if len(written.all) % 1000 == 0:
                time.sleep(0.002)

        group.on_output(slow)
        run_in(group.makegateway(FORWARD), "for i in range(40000): print('%050d' % i)")
        group.terminate(BOUND_S)
        assert len(written.lines()) == 40000


class TestCallbacks:
    @pytest.mark.usefixtures("coordinator")
    def test_one_may_end_the_group_when_somebody_else_ends_it(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(near, "DRAIN_S", 1000.0)
        ended: list[str] = []

        def end(gateway: Gateway, stream: str, line: str) -> None:
            wait_until(lambda: not len(group) and not gateway.hasreceiver())
            group.terminate()
            ended.append(line)

        group.on_output(end)
        run_in(group.makegateway(FORWARD), "print(1)")
        Task(group.execmodel, group.terminate).result()
        assert ended == ["1"]

    def test_one_that_raises_is_reported_once_and_the_gateway_goes_on(
        self, group: Group, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls = []

        def fail(gateway: Gateway, stream: str, line: str) -> None:
            calls.append(line)
            raise SystemExit("from the callback")

        group.on_output(fail)
        gateway = group.makegateway(FORWARD)
        run_in(gateway, "print(1); print(2)")
        run_in(gateway, "print(3)")
        group.terminate(BOUND_S)
        assert calls == ["1", "2", "3"]
        assert capsys.readouterr().err.count("SystemExit: from the callback") == 1

    def test_it_may_use_the_gateway(self, group: Group) -> None:
        answers = []

        def ask(gateway: Gateway, stream: str, line: str) -> None:
            answers.append(gateway.remote_exec("channel.send(42)").receive(BOUND_S))

        group.on_output(ask)
        run_in(group.makegateway(FORWARD), "print('ask')")
        wait_until(lambda: answers == [42])

    def test_it_may_end_the_group(self, group: Group) -> None:
        done = threading.Event()

        def end(gateway: Gateway, stream: str, line: str) -> None:
            group.terminate(5)
            done.set()

        group.on_output(end)
        group.makegateway(FORWARD).remote_exec("print('end')")
        assert done.wait(BOUND_S)

    def test_without_one_lines_are_printed_with_the_id(
        self, group: Group, capsys: pytest.CaptureFixture[str]
    ) -> None:
        group.on_output(lambda *args: None)
        group.on_output(None)
        gateway = group.makegateway(FORWARD + "//id=name")
        run_in(gateway, "import sys; print('out'); sys.stderr.write('err\\n')")
        group.terminate(BOUND_S)
        assert capsys.readouterr() == ("[name] out\n", "[name] err\n")

    def test_what_stdout_can_not_show_is_escaped(self) -> None:
        code = "import execnet; group = execnet.Group(['popen//output=forward']);"
        code += "group.remote_exec('print(chr(228))').waitclose(); group.terminate(5)"
        run = run_python(code, PYTHONIOENCODING="ascii")
        assert (run.stdout, run.stderr) == ("[gw0] \\xe4\n", "")
