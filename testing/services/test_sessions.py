"""``execnet session``: named interpreters that keep their globals, as users run them."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from interpreters import Interpreter, far_sides
from services import FakeSsh
from tools import BOUND_S, wait_until

from execnet import service
from execnet._cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

COMMAND = [sys.executable, "-m", "execnet", "session"]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def session(*args: str, stdin: str = "") -> Done:
    """Run the command in this process, which takes a tenth of the time."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        status = main(["session", *args])
    return Done(status, out.getvalue(), err.getvalue())


def output(*args: str) -> str:
    done = session(*args)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_what_code_defines_is_there_for_the_next(home: Path) -> None:
    assert output("exec", "work", "-c", "import os\nx = 20\ndef add(n): return x + n") == ""
    assert output("exec", "work", "-c", "print(add(1))") == "21\n"
    assert output("exec", "other", "-c", "print('x' in globals())") == "False\n"
    assert {line.split()[0] for line in output("list").splitlines()} == {"session", "work", "other"}
    output("stop", "work")
    assert output("exec", "work", "-c", "print('x' in globals())") == "False\n"


@pytest.mark.parametrize(
    ("code", "status", "stdout", "stderr"),
    [
        ("print(1); import sys; sys.exit(7)", 7, "1\n", ""),
        ("raise SystemExit('why')", 1, "", "why\n"),
        ("print('no end', end='')", 0, "no end", ""),
        ("1/0", 1, "", "ZeroDivisionError: division by zero\n"),
        ("1 +", 1, "", "SyntaxError: invalid syntax\n"),
    ],
)
def test_output_and_exit_status_are_those_of_the_code(
    home: Path, code: str, status: int, stdout: str, stderr: str
) -> None:
    done = session("exec", "work", "-c", code)
    assert (done.returncode, done.stdout) == (status, stdout)
    assert done.stderr.endswith(stderr)
    assert "far_session" not in done.stderr


def test_code_comes_from_a_file_or_stdin_and_goes_as_json(home: Path, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = '\N{EURO SIGN}'", "utf-8")
    output("exec", "work", str(tmp_path / "code.py"))
    done = session("exec", "work", "-", "--json", stdin="print(x)")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stream": "stdout", "data": "\N{EURO SIGN}\n"},
        {"status": 0},
    ]
    assert json.loads(output("list", "--json"))[0]["state"] == ["'x'"]


def test_ctrl_c_interrupts_the_code_in_its_main_thread(home: Path) -> None:
    code = "import time, threading\nmain = threading.main_thread() is threading.current_thread()\n"
    code += "print(main, flush=True)\nwhile True: time.sleep(60)"
    process = subprocess.Popen(
        [*COMMAND, "exec", "work", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == b"True\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(BOUND_S) == 130
    process.stdout.close()
    assert output("exec", "work", "-c", "print(main)") == "True\n"


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_how_long_it_stays_unused_can_be_said(home: Path, seconds: float) -> None:
    output("exec", "work", "-c", "1", "--idle", "6000")
    assert service.find("session-work").status()["idle"] == 6000
    output("exec", "work", "-c", "1", "--idle", f"{seconds}")
    if seconds:
        wait_until(lambda: service.find_all() == [])
    else:
        assert "ends by itself: never" in service_command("status", "session-work")


def service_command(*args: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert main(["service", *args]) == 0
    return out.getvalue()


@contextmanager
def client_of(code: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """Have a session run code, from a process that is killed if it is still there at the end."""
    with subprocess.Popen([*COMMAND, "exec", "work", "-c", code], **streams) as client:  # type: ignore[call-overload]
        try:
            yield client
        finally:
            client.kill()


def test_after_a_second_ctrl_c_the_code_goes_on_alone(home: Path, tmp_path: Path) -> None:
    code = f"""
import os, time
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    x = "cleans up"
    print(x, flush=True)
    while not os.path.exists({str(tmp_path / "go")!r}):
        time.sleep(0.01)
    x = "done"
"""
    with client_of(code, stdout=subprocess.PIPE) as client:
        assert client.stdout
        for said in b"begun\n", b"cleans up\n":
            assert client.stdout.readline() == said
            client.send_signal(signal.SIGINT)
        assert client.wait(BOUND_S) == 130
    (told,) = service.find("session-work").status()["running"]
    assert told["orphan"]
    (tmp_path / "go").touch()
    assert output("exec", "work", "-c", "print(x)") == "done\n"


def test_ctrl_c_gives_up_code_that_waits_for_its_turn(home: Path) -> None:
    def running() -> list[dict[str, object]]:
        found = service.find_all()
        return found[0].status()["running"] if found else []

    code = "print('begun', flush=True)\nwhile True: __import__('time').sleep(60)"
    with client_of(code, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"begun\n"
        with client_of("ran = 1", stderr=subprocess.PIPE) as waiter:
            (told,) = wait_until(lambda: [one for one in running() if one["waits"]])
            assert told["code"] == "ran = 1"
            waiter.send_signal(signal.SIGINT)
            assert waiter.communicate(timeout=BOUND_S)[1] == b"KeyboardInterrupt\n"
            assert waiter.returncode == 130
        assert [one["waits"] for one in running()] == [False]
        holder.send_signal(signal.SIGINT)
        assert holder.wait(BOUND_S) == 130
    assert output("exec", "work", "-c", "print('ran' in globals())") == "False\n"


def test_one_that_does_not_answer_is_listed_and_stopped(home: Path) -> None:
    for name in "a", "b":
        output("exec", name, "-c", "x = 1")
    (home / "services" / "stray").touch()
    os.kill(service.find("session-a").status()["pid"], signal.SIGSTOP)
    told = {one["session"]: one for one in json.loads(output("list", "--json"))}
    assert "does not answer" in told["a"]["error"]
    assert told["b"]["state"] == ["'x'"]
    assert output("stop", "a") == ""
    assert [line.split()[0] for line in output("list").splitlines()] == ["session", "b"]


def test_the_end_of_a_program_interrupts_its_code(home: Path) -> None:
    code = "import time\ntry:\n print(1)\n while True: time.sleep(60)\n"
    code += "except KeyboardInterrupt: x = 2"
    command = [*COMMAND, "exec", "work", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"1\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert output("exec", "work", "-c", "print(x)") == "2\n"  # which waited for that


def test_a_process_that_code_forks_ends_with_its_code(home: Path) -> None:
    code = "import os, warnings\nwarnings.simplefilter('ignore')  # of forks, since 3.12\n"
    code += "pid = os.fork()\nif pid: status = os.waitpid(pid, 0)[1]\n"
    assert output("exec", "work", "-c", code + "print('here')") == "here\n"
    assert output("exec", "work", "-c", "print(status)") == "0\n"
    output("exec", "work", "-c", code + "else: raise SystemExit(3)")
    assert output("exec", "work", "-c", "print(status >> 8)") == "3\n"


def test_stop_ends_code_that_runs(home: Path) -> None:
    command = [*COMMAND, "exec", "work", "-c", "print(1)\nwhile True: __import__('time').sleep(60)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"1\n"
    output("stop", "work")
    assert process.wait(BOUND_S) in (1, 130)
    process.stdout.close()
    assert output("list") == ""


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_a_session_elsewhere_and_on_another_python(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: Interpreter
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}", prepend=":")
    ssh = FakeSsh(tmp_path)
    ssh(FakeSsh.RUN)
    there = "--spec", f"ssh=there//python={shlex.quote(python.path)}"
    output("exec", "work", "-c", "import sys", *there)
    told = output("exec", "work", "-c", "print(list(sys.version_info[:2]))", *there)
    assert told == f"{list(python.version[:2])}\n"
    code = "import os, warnings\nwarnings.simplefilter('ignore')  # of forks, since 3.12\n"
    code += "pid = os.fork()\nif not pid: raise SystemExit(3)\n"
    code += "print(os.waitpid(pid, 0)[1] >> 8)"
    assert output("exec", "work", "-c", code, *there) == "3\n"
    assert "work" in output("list", *there)
    output("stop", "work", *there)
    assert service.find_all() == []
    assert len(ssh.runs()) == 5


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["exec", "a b", "-c", "1"], 2, "letters, digits"),
        (["exec", "work"], 2, "-c CODE"),
        (["exec", "work", "absent.py"], 2, "absent.py"),
        (["exec", "work", "-c", "1", "--python", "nosuchpython"], 1, "nosuchpython"),
        (["exec", "work", "-c", "1", "--spec", "nonsense"], 2, "no gateway type"),
        (["stop", "work"], 1, "no session"),
    ],
)
def test_what_goes_wrong_is_told(home: Path, args: list[str], status: int, said: str) -> None:
    done = session(*args)
    assert done.returncode == status
    assert said in done.stderr


def test_code_of_several_programs_runs_one_after_the_other(home: Path) -> None:
    output("exec", "work", "-c", "import time; log = []")
    code = "log.append('+'); time.sleep(0.01); log.append('-')"
    processes = [subprocess.Popen([*COMMAND, "exec", "work", "-c", code]) for _ in range(3)]
    assert [process.wait(BOUND_S) for process in processes] == [0] * 3
    assert output("exec", "work", "-c", "print(''.join(log))") == "+-+-+-\n"
    wait_until(lambda: service.find("session-work").status()["running"] == [])
