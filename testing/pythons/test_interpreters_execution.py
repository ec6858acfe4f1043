"""Code on every Python: where it runs, several at once, how it is interrupted, what it sees."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter
from processes import interrupt_asleep
from tools import BOUND_S, MakeGateway, wait_until
from workers import ask

from execnet import Gateway, RemoteError
from execnet.gateway_base import INTERRUPT_TEXT, MAIN_THREAD_ONLY_DEADLOCK_TEXT

pytest_plugins = ["worker_fixtures"]

# Whether it runs in the main thread, known without ``threading.main_thread``, which 2.7 has not.
IN_MAIN_THREAD = """
import signal
try:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    channel.send(True)
except ValueError:
    channel.send(False)
"""
SLEEP = "import time\nchannel.send('busy')\nwhile True: time.sleep(0.02)"


def sums(channel, *, b=2, a=1):  # type: ignore[no-untyped-def]
    channel.send(a + b)


def plain_sums(channel, a=1, b=2):  # type: ignore[no-untyped-def]
    def add(a, b):  # type: ignore[no-untyped-def]
        return a + b

    for item in channel:
        channel.send((add(a, b), item, __name__))


class TestWhatIsExecuted:
    def test_a_function_with_arguments(self, shared: Gateway) -> None:
        channel = shared.remote_exec(plain_sums, a=5, b=[1][0])
        channel.send("item")
        assert channel.receive(BOUND_S) == (6, "item", "__channelexec__")
        channel.close()

    def test_arguments_of_every_kind_arrive(self, shared: Gateway) -> None:
        def send_back(channel, **kwargs):  # type: ignore[no-untyped-def]
            channel.send(kwargs)

        items = {"a": [1.5, None], "b": {"c": (1, 2)}, "d": "text", "ä_b"[2:]: {1}}
        assert ask(shared, send_back, **items) == items

    def test_a_function_in_newer_syntax_where_it_is_understood(
        self, shared: Gateway, python: Interpreter
    ) -> None:
        if python.version[0] > 2:
            assert ask(shared, sums, a=5) == 7
        else:
            with pytest.raises(RemoteError, match="SyntaxError"):
                ask(shared, sums, a=5)

    def test_a_module_is_executed_as_it_is_now(self, shared: Gateway, tmp_path: Path) -> None:
        path = tmp_path / "module.py"
        module = types.ModuleType("module")
        module.__file__ = str(path)
        for number in 1, 2:
            path.write_text(f"if __name__ == '__channelexec__':\n    channel.send({number})\n")
            assert ask(shared, module) == number

    def test_an_indented_string_with_any_line_ends(self, shared: Gateway) -> None:
        assert ask(shared, "\n    x = 1\n    if x:\n        channel.send(x)  # no newline") == 1
        assert ask(shared, "x = 2\r\nif x:\r\n    channel.send(x)\r\n") == 2

    def test_it_does_not_inherit_the_future_of_this_package(self, shared: Gateway) -> None:
        code = """
import sys
def f(a, b): pass
channel.send((__name__, [name for name in sorted(globals()) if name[:2] != "__"], 1 / 2))
"""
        division = 0 if shared._rinfo().version_info[0] == 2 else 0.5
        expected = ("__channelexec__", ["channel", "f", "sys"], division)
        assert ask(shared, code) == expected

    def test_its_arguments_and_path_are_those_of_python_c(
        self, shared: Gateway, python: Interpreter
    ) -> None:
        code = "import sys, json; print(json.dumps([sys.argv, sys.path]))"
        result = subprocess.run([python.path, "-c", code], capture_output=True, check=True)
        ours = ask(shared, "import sys; channel.send([sys.argv, sys.path])")
        assert ours == json.loads(result.stdout)
        assert ours[0] == ["-c"]

    def test_printing_and_reading_do_not_disturb(self, shared: Gateway) -> None:
        code = """
import os, sys
print("hello" * 1000)
sys.stdout.flush()
os.write(1, b"x" * 100000)
channel.send((sys.stdin.read(), os.read(0, 10).decode(), os.system("echo hello; cat")))
"""
        assert ask(shared, code) == ("", "", 0)


class TestSeveralAtOnce:
    def test_the_first_runs_in_the_main_thread_and_the_others_beside_it(
        self, shared: Gateway
    ) -> None:
        code = IN_MAIN_THREAD + "channel.receive()\nchannel.send(channel.id)"
        channels = [shared.remote_exec(code) for _ in range(4)]
        answers = [channel.receive(BOUND_S) for channel in channels]
        assert answers == [True, False, False, False]
        assert shared.remote_status().numexecuting == 4
        for channel in reversed(channels):
            channel.send(None)
            assert channel.receive(BOUND_S) == channel.id
        for channel in channels:
            channel.waitclose(BOUND_S)

    @pytest.mark.parametrize("end", ["pass", "1 / 0", "import sys; sys.exit(1)"])
    def test_the_main_thread_is_free_again_afterwards(self, shared: Gateway, end: str) -> None:
        for _ in range(3):
            channel = shared.remote_exec(IN_MAIN_THREAD + end)
            assert channel.receive(BOUND_S) is True
            if end == "pass":
                channel.waitclose(BOUND_S)
            else:
                with pytest.raises(RemoteError, match=r"ZeroDivisionError|SystemExit: 1"):
                    channel.waitclose(BOUND_S)

    def test_status_and_answers_come_while_all_are_busy(self, shared: Gateway) -> None:
        channels = [shared.remote_exec("while channel.receive(): pass") for _ in range(3)]
        assert shared.remote_status().numexecuting == 3
        assert shared._rinfo(update=True).pid == shared._rinfo().pid
        for channel in channels:
            channel.send(0)
            channel.waitclose(BOUND_S)

    def test_main_thread_only_refuses_a_second_one(
        self, makegateway: MakeGateway, python: Interpreter
    ) -> None:
        gateway = makegateway(f"{python.spec}//execmodel=main_thread_only")
        code = "channel.gateway.busy_wait_s = 0.05\nchannel.send(channel.receive())"
        first = gateway.remote_exec(code)
        first.send(1)
        assert first.receive(BOUND_S) == 1
        first.waitclose(BOUND_S)
        first, second = gateway.remote_exec(code), gateway.remote_exec(code)
        with pytest.raises(RemoteError, match=MAIN_THREAD_ONLY_DEADLOCK_TEXT):
            second.receive(BOUND_S)
        first.send(2)
        assert first.receive(BOUND_S) == 2
        first.waitclose(BOUND_S)
        assert ask(gateway, IN_MAIN_THREAD) is True


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
class TestInterrupts:
    def test_sigint_ends_the_code_of_the_main_thread(self, shared: Gateway) -> None:
        channel = shared.remote_exec(SLEEP)
        assert channel.receive(BOUND_S) == "busy"
        interrupt_asleep(shared._rinfo().pid)
        with pytest.raises(RemoteError, match=f"^{INTERRUPT_TEXT}$"):
            channel.receive(BOUND_S)
        assert ask(shared, IN_MAIN_THREAD) is True

    def test_sigint_ends_code_that_waits_for_an_item(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send('busy'); channel.receive(); channel.receive()")
        assert channel.receive(BOUND_S) == "busy"
        interrupt_asleep(shared._rinfo().pid)
        if shared._rinfo().version_info[0] == 2:  # nothing wakes up its locks but the item
            channel.send(None)
        with pytest.raises(RemoteError, match=f"^{INTERRUPT_TEXT}$"):
            channel.receive(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1

    def test_code_may_catch_it(self, shared: Gateway) -> None:
        code = (
            "try:\n " + SLEEP.replace("\n", "\n ") + "\nexcept KeyboardInterrupt: channel.send(1)"
        )
        channel = shared.remote_exec(code)
        assert channel.receive(BOUND_S) == "busy"
        interrupt_asleep(shared._rinfo().pid)
        assert channel.receive(BOUND_S) == 1
        channel.waitclose(BOUND_S)

    def test_a_worker_that_idles_is_not_ended_by_it(
        self, shared: Gateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            os.kill(shared._rinfo().pid, signal.SIGINT)
            assert ask(shared, "channel.send(1)") == 1
        assert capfd.readouterr().err == ""

    def test_one_right_behind_the_start_does_no_harm(
        self, fresh: Gateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        os.kill(fresh._rinfo().pid, signal.SIGINT)
        assert ask(fresh, "channel.send(1)") == 1
        assert capfd.readouterr().err == ""


class TestFailures:
    @pytest.mark.parametrize(
        ("code", "text"),
        [
            ("raise ValueError(17)", "ValueError: 17"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("raise KeyboardInterrupt", f"^{INTERRUPT_TEXT}$"),
            ("raise GeneratorExit", "GeneratorExit"),
            ("if", "SyntaxError"),
            ("def f(): f()\nf()", "recursion"),
            ("import no_such_module", "ImportError|ModuleNotFoundError"),
            ("channel.send(1 << channel.receive())", "TypeError"),
        ],
    )
    def test_each_is_a_remote_error_and_the_worker_goes_on(
        self, shared: Gateway, code: str, text: str
    ) -> None:
        channel = shared.remote_exec(code)
        if "receive" in code:
            channel.send("1")
        with pytest.raises(RemoteError, match=text):
            channel.waitclose(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1

    def test_one_that_nobody_asked_for_is_told_on_stderr(
        self, shared: Gateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        channel: Any = shared.remote_exec("channel.send(1); 1 / 0")
        assert channel.receive(BOUND_S) == 1
        wait_until(channel.isclosed)
        del channel
        gc.collect()  # for a coordinator on PyPy
        assert "ZeroDivisionError" in capfd.readouterr().err
