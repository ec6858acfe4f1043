"""Traces of fatal signals of local workers: in the error, and on the user's stderr."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, find_python, run_python, wait_until

from execnet import WorkerDied
from execnet._errors import indented

CRASH = "import faulthandler; faulthandler._sigsegv()"

pytestmark = [
    pytest.mark.skipif(
        sys.platform == "win32" or platform.python_implementation() != "CPython",
        reason="signals of POSIX, and CPython's traces of them",
    ),
    pytest.mark.usefixtures("coordinator"),
]


def crash(gateway: Any, code: str) -> WorkerDied:
    """Have a worker execute code that ends in a crash; return the error."""
    channel = gateway.remote_exec(code)
    with pytest.raises(WorkerDied) as caught:
        channel.receive(BOUND_S)
    assert caught.value.signal == 11
    return caught.value


@pytest.mark.parametrize(
    "enable",
    ["", "import faulthandler, sys; faulthandler.enable()",
     "import faulthandler, os; faulthandler.enable(os.dup(2), all_threads=False)",
     "import faulthandler, sys; faulthandler.enable(sys.__stderr__)"],
    ids=["nobody", "code", "code as pytest does", "code by a file"],
)  # fmt: skip
@pytest.mark.parametrize("spec", ["popen", f"popen//python={sys.executable}", "popen//forkserver"])
def test_a_trace_is_told_and_shown_whoever_enabled_it(
    makegateway: MakeGateway, capfd: pytest.CaptureFixture[str], spec: str, enable: str
) -> None:
    from execnet._forkserver import templates

    error = crash(makegateway(spec), f"{enable}\n{CRASH}")
    assert error.stderr.startswith("Fatal Python error: Segmentation fault\n\n")
    assert 'File "<remote exec>", line 2 in <module>' in error.stderr
    assert indented(f":\n{error.stderr}") in str(error)
    assert capfd.readouterr().err.strip() == indented(error.stderr)
    templates.shutdown()


@pytest.mark.parametrize("variable", ["PYTHONFAULTHANDLER", "PYTHONDEVMODE"])
def test_what_the_environment_says_changes_nothing(
    makegateway: MakeGateway,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "1")
    error = crash(makegateway(), CRASH)
    assert capfd.readouterr().err.strip() == indented(error.stderr)


def test_a_trace_within_a_frame_is_found(
    makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    for size in 10_000, 1_000_000:
        error = crash(
            makegateway(),
            f"""
header = b"\\4" + (1).to_bytes(4, "big") + ({size}).to_bytes(4, "big")
channel.gateway._io.write(header + b"x" * ({size} // 2))
{CRASH}
""",
        )
        assert error.stderr.startswith("Fatal Python error: Segmentation fault\n\n")
        assert capfd.readouterr().err.strip() == indented(error.stderr)


def test_what_was_sent_before_is_delivered(makegateway: MakeGateway) -> None:
    channel = makegateway().remote_exec(f"for n in range(100): channel.send([n])\n{CRASH}")
    assert [channel.receive(BOUND_S) for _ in range(100)] == [[n] for n in range(100)]
    with pytest.raises(WorkerDied, match="Segmentation fault"):
        channel.receive(BOUND_S)


def test_code_may_have_traces_elsewhere(
    makegateway: MakeGateway, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    error = crash(
        makegateway(),
        f"""
import faulthandler
file = open({str(path)!r}, "w")
faulthandler.enable(file)
{CRASH}
""",
    )
    assert error.stderr == ""
    assert capfd.readouterr().err == ""
    assert path.read_text().startswith("Fatal Python error")


def test_or_have_none(makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]) -> None:
    error = crash(makegateway(), f"import faulthandler; faulthandler.disable()\n{CRASH}")
    assert error.stderr == capfd.readouterr().err == ""


def test_that_of_a_forked_process_goes_to_stderr_and_the_worker_goes_on(
    makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    channel = makegateway().remote_exec(f"""
import os
pid = os.fork()
if not pid:
    {CRASH}
channel.send(os.waitpid(pid, 0)[1] & 127)
channel.send(channel.receive())
""")
    assert channel.receive(BOUND_S) == 11
    channel.send("on")
    assert channel.receive(BOUND_S) == "on"
    assert capfd.readouterr().err.startswith("Fatal Python error: Segmentation fault")


def test_that_of_a_crash_at_exit_goes_to_stderr(
    makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway: Any = makegateway()
    gateway.remote_exec("import atexit, faulthandler; atexit.register(faulthandler._sigsegv)")
    gateway.exit()
    gateway.join(BOUND_S)
    assert gateway._io.wait() == -11
    seen: list[str] = []
    wait_until(lambda: seen.append(capfd.readouterr().err) or "Segmentation" in "".join(seen))


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.13"])
def test_in_other_interpreters(makegateway: MakeGateway, version: str) -> None:
    error = crash(makegateway(f"popen//python={find_python(version)}"), CRASH)
    if version != "3.6":  # which can't take it back in a process that is forked
        assert error.stderr.startswith("Fatal Python error: Segmentation fault")


def test_a_worker_whose_stderr_is_closed_is_served_as_any(makegateway: MakeGateway) -> None:
    done = run_python(f"""
import os, execnet
os.close(2)
gateway = execnet.makegateway()
channel = gateway.remote_exec({CRASH!r})
try:
    channel.receive(10)
except EOFError as error:
    print(error.signal, error.stderr[:18])
""")
    assert done.stdout == "11 Fatal Python error\n"


def test_stderr_stays_what_it_was(makegateway: MakeGateway) -> None:
    channel = makegateway().remote_exec(
        "import os; s = os.fstat(2); channel.send([s.st_dev, s.st_ino])"
    )
    status = os.fstat(2)
    assert channel.receive(BOUND_S) == [status.st_dev, status.st_ino]
