"""Programs that change the world around the library: clocks, stderr, warnings, SIGCHLD."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
from tools import BOUND_S, MakeGateway, run_python

from execnet import Group, WorkerDied, XSpec, _clock
from execnet._transports import table as transports_table
from execnet.gateway_base import get_execmodel
from execnet.multi import safe_terminate

# What is stuck in C takes no interrupt, and has to be killed.
STUCK = "import ctypes; channel.send(1); ctypes.PyDLL(None).sleep(60)"
# Replaces what modules hold of ``time`` with what stands still, as freezing libraries do.
FREEZE = """
import sys, time
real = {name: getattr(time, name) for name in ("monotonic", "time", "perf_counter", "sleep")}
def freeze():
    for module in list(sys.modules.values()):
        if module.__name__ in ("threading", "__main__"):
            continue
        for name, value in list(vars(module).items()):
            for fake, true in real.items():
                if value is true:
                    setattr(module, name, (lambda s: None) if fake == "sleep" else (lambda: 1.0))
"""
TERMINATE = f"""
execnet.makegateway().remote_exec({STUCK!r}).receive({BOUND_S})
{{before}}
start = real["monotonic"]()
execnet.default_group.terminate(0.3)
print(real["monotonic"]() - start < 5)
"""


class TestClocks:
    @pytest.mark.parametrize(
        "program",
        [
            FREEZE + "import execnet\n" + TERMINATE.format(before="freeze()"),
            FREEZE + "freeze()\nimport execnet\n" + TERMINATE.format(before=""),
        ],
        ids=["frozen later", "frozen before the import"],
    )
    def test_a_bound_holds_while_they_stand_still(self, program: str) -> None:
        result = run_python(program)
        assert result.stdout == "True\n", result.stderr

    def test_ours_goes_on(self) -> None:
        before = _clock.monotonic()
        _clock.sleep(0.001)
        assert _clock.monotonic() >= before + 0.001


class TestStderr:
    @pytest.mark.parametrize("stderr", ["None", "object()", "Raises()"])
    def test_a_worker_is_killed_though_nobody_can_be_warned(self, stderr: str) -> None:
        result = run_python(
            f"""
import sys, warnings, execnet
class Raises:
    def write(self, text): raise OSError("no")
    flush = write
warnings.simplefilter("error")
execnet.makegateway().remote_exec({STUCK!r}).receive({BOUND_S})
sys.stderr = {stderr}
execnet.default_group.terminate(0.3)
print(len(execnet.default_group), flush=True)
"""
        )
        assert result.stdout == "0\n", result.stderr

    def test_an_error_that_nobody_asked_for_disturbs_nothing(self) -> None:
        result = run_python(
            f"""
import sys, execnet
gateway = execnet.makegateway()
stderr, sys.stderr = sys.stderr, None
gateway.remote_exec("channel.send(1)\\nchannel.receive()\\n1/0").send(None)
print(gateway.remote_exec("channel.send(1)").receive({BOUND_S}))
sys.stderr = stderr
execnet.default_group.terminate(5)
"""
        )
        assert (result.stdout, result.stderr) == ("1\n", "")


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no signal tells of children")
class TestExitStatus:
    IGNORED = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    REAPED = """
def reap(*args):
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
"""

    @pytest.mark.parametrize("first", ["", "vars(os).pop('waitid', None)"], ids=["", "no waitid"])
    @pytest.mark.parametrize("before", [IGNORED, REAPED], ids=["ignored", "reaped"])
    @pytest.mark.parametrize("spec", ["popen", f"popen//python={sys.executable}"])
    def test_one_that_can_not_be_had_is_none(self, first: str, before: str, spec: str) -> None:
        result = run_python(
            f"""
import os, signal, execnet
{first}  # macOS and PyPy have none
gateway = execnet.makegateway({spec!r})
other = execnet.makegateway({spec!r})
{before}
try:
    gateway.remote_exec("import os; os._exit(3)").waitclose({BOUND_S})
except execnet.WorkerDied as error:
    print(error.exitcode in (None, 3))  # 3, if we were faster
print(other.remote_exec("channel.send(1)").receive({BOUND_S}))
execnet.default_group.terminate(5)
print(gateway._io.has_ended(), other._io.has_ended())
if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
    assert (gateway.exitcode, other._io.wait(), other._io.poll_until(0.0)) == (None,) * 3
""",
            PYTHONWARNINGS="always",
        )
        assert result.stdout == "True\n1\nTrue True\n"
        assert result.stderr == ""

    def test_one_that_can_be_had_is_told(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        with pytest.raises(WorkerDied) as caught:
            gateway.remote_exec("import os; os._exit(3)").waitclose(BOUND_S)
        assert caught.value.exitcode == 3

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_forked_process_has_none_of_its_parents_workers(self, group: Group) -> None:
        gateway = group.makegateway()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write_end, repr(gateway._io.wait()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write_end)
        assert os.read(read_end, 100) == b"None"
        os.close(read_end)


def test_members_of_other_kinds_are_killed_where_no_thread_can_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = get_execmodel("thread")
    called: list[str] = []

    def start(func: Callable[..., object], args: object = (), name: str = "") -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(model, "start", start)
    pair = (lambda: called.append("term")), (lambda: called.append("kill"))
    safe_terminate(model, 1.0, [pair, pair])
    assert called == ["kill", "kill"]


def test_the_interpreter_of_a_worker_is_the_one_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/another/python")
    assert transports_table.command(XSpec("popen"))[0] == "/another/python"


class TestPatchedThreads:
    """The core runs on real threads, whatever a greenlet library has made of ``threading``."""

    PATCHES = (
        ("gevent", "from gevent import monkey\nmonkey.patch_all()"),
        ("eventlet", "import eventlet\neventlet.monkey_patch()"),
    )

    @pytest.mark.parametrize(("library", "patch"), PATCHES)
    @pytest.mark.parametrize("spec", ["popen", f"popen//python={sys.executable}//heartbeat=0.1"])
    def test_a_coordinator_that_was_patched_before_it_starts(
        self, library: str, patch: str, spec: str
    ) -> None:
        pytest.importorskip(library)
        result = run_python(
            f"""
import warnings
warnings.simplefilter("ignore")
{patch}
import execnet
gateway = execnet.makegateway({spec!r})
first = gateway.remote_exec("for item in channel: channel.send(item)")
for item in 1, {{"a": 1.5}}, "x" * 2_000_000:
    first.send(item)
    assert first.receive({BOUND_S}) == item
second = gateway.remote_exec("channel.send(2)")
print(second.receive({BOUND_S}))
got = []
first.setcallback(got.append)
first.send(3)
first.close()
execnet.default_group.terminate(5)
print(len(execnet.default_group), gateway._io.has_ended())
"""
        )
        assert result.stdout == "2\n0 True\n", result.stderr

    @pytest.mark.parametrize(("library", "patch"), PATCHES)
    def test_a_worker_whose_code_patches_it(
        self, makegateway: MakeGateway, library: str, patch: str
    ) -> None:
        pytest.importorskip(library)
        gateway = makegateway()
        code = "\nchannel.send(1)\nfor item in channel: channel.send(item)"
        first = gateway.remote_exec(
            "import warnings; warnings.simplefilter('ignore')\n" + patch + code
        )
        assert first.receive(BOUND_S) == 1
        second = gateway.remote_exec("for item in channel: channel.send(item)")
        for item in range(20):  # until items are read directly
            for channel in first, second:
                channel.send([item])
                assert channel.receive(BOUND_S) == [item]


# What runs in an interpreter that has no daemon threads, and how it comes to its end.
WITHIN = f"""
import sys, threading, execnet
sys.executable = {sys.executable!r}
try:
    threading.Thread(target=int, daemon=True).start()
except RuntimeError:
    print("no daemon threads")
for spec in "popen", "popen//python=" + sys.executable:
    gateway = execnet.makegateway(spec)
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    channel.send([1.5])
    print(channel.receive({BOUND_S}), gateway.remote_exec("channel.send(2)").receive({BOUND_S}))
"""
INTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
run = getattr(interpreters, "exec", interpreters.run_string)
one = interpreters.create()
print(run(one, sys.argv[1]))
interpreters.destroy(one)
print("destroyed")
"""


@pytest.mark.skipif(
    sys.version_info < (3, 12) or sys.implementation.name != "cpython",
    reason="such interpreters came with CPython 3.12",
)
@pytest.mark.parametrize("end", ["execnet.default_group.terminate(5)", ""], ids=["ended", "left"])
def test_an_interpreter_without_daemon_threads_has_gateways_and_ends(end: str) -> None:
    result = run_python(INTERPRETER, WITHIN + end)
    said = ["no daemon threads", "[1.5] 2", "[1.5] 2", "None", "destroyed"]
    assert result.stdout.splitlines() == said, result.stderr
