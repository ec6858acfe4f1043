"""Traces on demand, and a stderr that is empty without them, however a program ends."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import textwrap
from pathlib import Path

import pytest
from processes import is_reaped
from tools import run_python, wait_until

from execnet import gateway_base

if os.environ.get("EXECNET_DEBUG"):
    pytest.skip("EXECNET_DEBUG is set here as well", allow_module_level=True)

PROGRAM = """
import os
import execnet
gateway = execnet.makegateway("popen")
worker = gateway.remote_exec("import os; channel.send(os.getpid())").receive()
execnet.default_group.terminate()
print(os.getpid(), worker)
"""


def pids_in(ended: subprocess.CompletedProcess[str]) -> list[int]:
    assert ended.returncode == 0, ended.stderr
    return [int(word) for word in ended.stdout.split()]


class TestIntoFiles:
    def test_each_process_writes_its_file(self, tmp_path: Path) -> None:
        ended = run_python(PROGRAM, EXECNET_DEBUG="1", TMPDIR=str(tmp_path))
        coordinator, worker = pids_in(ended)
        assert ended.stderr == ""
        traces = {
            pid: next(tmp_path.glob(f"execnet-debug-{pid}-*")) for pid in (coordinator, worker)
        }
        assert {*tmp_path.iterdir()} == {*traces.values()}
        assert {stat.S_IMODE(path.stat().st_mode) for path in traces.values()} == {0o600}
        assert "creating workergateway" in traces[worker].read_text()
        written = traces[coordinator].read_text()
        assert written
        assert "creating workergateway" not in written

    def test_fn_is_the_path_of_the_file(self, tmp_path: Path) -> None:
        program = """if 1:
            import os
            from execnet import gateway_base
            assert gateway_base.trace is not gateway_base.notrace
            gateway_base.trace("before", 1, None)
            print(gateway_base.fn, os.getpid())
        """
        ended = run_python(program, EXECNET_DEBUG="1", TMPDIR=str(tmp_path))
        path, pid = ended.stdout.split()
        assert path.startswith(str(tmp_path / f"execnet-debug-{pid}-"))
        assert Path(path).read_text() == "before 1 None\n"
        assert ended.stderr == ""

    def test_what_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        program = "from execnet.gateway_base import trace; trace('a\\ud800\\xe9'); trace('b')"
        ended = run_python(program, EXECNET_DEBUG="1", TMPDIR=str(tmp_path), LC_ALL="C")
        assert (ended.returncode, ended.stderr) == (0, "")


class TestOntoStderr:
    def test_each_entry_has_its_process_in_front(self, tmp_path: Path) -> None:
        ended = run_python(PROGRAM, EXECNET_DEBUG="2", TMPDIR=str(tmp_path))
        coordinator, worker = pids_in(ended)
        lines = ended.stderr.splitlines()
        created = [line for line in lines if "creating workergateway" in line]
        assert [line.partition(" ")[0] for line in created] == [f"[{worker}]"]
        prefixes = {line.partition(" ")[0] for line in lines if line.startswith("[")}
        assert prefixes == {f"[{coordinator}]", f"[{worker}]"}
        assert lines[0].startswith("[")
        assert list(tmp_path.iterdir()) == []

    def test_an_entry_is_the_words_one_behind_the_other(self) -> None:
        program = "from execnet.gateway_base import trace; trace('a', 1, None)"
        ended = run_python("import os; print(os.getpid());" + program, EXECNET_DEBUG="2")
        assert ended.stderr == f"[{ended.stdout.strip()}] a 1 None\n"

    def test_what_cannot_be_written_is_no_error(self) -> None:
        program = "from execnet.gateway_base import trace; trace('a\\ud800\\xe9'); trace('b')"
        ended = run_python(program, EXECNET_DEBUG="2", PYTHONIOENCODING="ascii")
        assert ended.returncode == 0
        assert ended.stderr.endswith(" b\n")


class TestNowhere:
    def test_nothing_is_traced_unless_it_is_asked_for(self) -> None:
        assert gateway_base.trace is gateway_base.notrace
        assert gateway_base.notrace("a", 1, None) is None  # type: ignore[func-returns-value]
        assert not hasattr(gateway_base, "fn")

    def test_an_empty_variable_asks_for_nothing(self, tmp_path: Path) -> None:
        ended = run_python(PROGRAM, EXECNET_DEBUG="", TMPDIR=str(tmp_path))
        assert len(pids_in(ended)) == 2
        assert ended.stderr == ""
        assert list(tmp_path.iterdir()) == []


PREPARED = """
import gc, os, signal, sys, threading
import execnet
execnet.set_execmodel(sys.argv[1])
gateways = [execnet.makegateway("popen") for _ in range(2)]
channels = [gateway.remote_exec("import os; channel.send(os.getpid())") for gateway in gateways]
pids = [channel.receive() for channel in channels]
print(*pids, flush=True)
first = gateways[0]

def kill(signum=signal.SIGKILL):
    for pid in pids:
        os.kill(pid, signum)

def receive_until_the_end(channel):
    try:
        channel.receive()
    except EOFError:
        return
    raise AssertionError("something came")

"""
# What a program does with its two workers before it ends, by what that is.
ENDINGS = {
    "they are idle": "",
    "they are terminated": "execnet.default_group.terminate()",
    "one was told to exit": "first.exit()",
    "they were killed": "kill()",
    "they were asked to end": "kill(signal.SIGTERM)",
    "they were killed and noticed": """
        channel = first.remote_exec("channel.receive()")
        kill()
        receive_until_the_end(channel)
    """,
    "they were killed under a callback": """
        ended = first.execmodel.Event()
        channel = first.remote_exec("channel.send(1); channel.receive()")
        channel.setcallback(lambda item: item == "end" and ended.set(), endmarker="end")
        kill()
        assert ended.wait(20)
    """,
    "they were killed and are written to": """
        channels = [first.remote_exec("for item in channel: pass") for _ in range(3)]
        kill()
        try:
            while True:
                channels[0].send(b"x" * 100000)
        except OSError:
            pass
        channels[1].close()
        del channels
        gc.collect()
    """,
    "they were killed and terminated": "kill(); execnet.default_group.terminate(timeout=1)",
    "one ended by itself": """
        receive_until_the_end(first.remote_exec("import os; os._exit(3)"))
    """,
    "they are busy": """
        channel = first.remote_exec("import time; channel.send(1)\\nwhile 1: time.sleep(0.01)")
        channel.receive()
    """,
    "they have sent what nobody received": """
        channel = first.remote_exec("channel.send(1); channel.send('x' * 3000000)")
        channel.receive()
    """,
    "a thread waits for them": """
        channel = first.remote_exec("channel.receive()")
        first.execmodel.start(receive_until_the_end, (channel,))
    """,
    "the program fails in its own way": "os.close(2); raise SystemExit(0)",
}


class TestStderrStaysEmpty:
    @pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
    def test_to_the_end_of_the_program_when(self, ending: str) -> None:
        self.check(ending, "thread")

    @pytest.mark.parametrize("ending", ["they are busy", "they were killed and are written to"])
    def test_in_every_execution_model_when(
        self, execmodel: gateway_base.ExecModel, ending: str
    ) -> None:
        if execmodel.backend != "thread":
            self.check(ENDINGS[ending], execmodel.backend)

    def check(self, ending: str, model: str) -> None:
        """Run a program and prove that it says nothing and leaves nothing running."""
        program = PREPARED + textwrap.dedent(ending)
        ended = run_python(program, model, PYTHONWARNINGS="ignore")
        assert ended.stderr == ""
        for pid in pids_in(ended):
            wait_until(functools.partial(is_reaped, pid))
