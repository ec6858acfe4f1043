"""The command line, run as its users run it: in a process of its own, from outside.

Every process that a test starts, and all that these start, has a token of that test in its
environment. After each test no process may have it any more. Start at ``Shell``.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import processes_with
from shell import EXECNET, GONE_S, TOKEN, Shell, wait_until
from tools import BOUND_S, IS_THOROUGH, ROOT, run_python, threads

import execnet
from execnet import _cli
from execnet._cli import far_exec, session
from execnet._cli import info as cli_info
from execnet._cli.execution import Execution, PatientGroup, Printer, execute
from execnet._cli.session import END_S, STOP_S, CommandError, Output
from execnet._cli.words import parse_specs

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="what is left running is looked up in /proc"
)


def lines_of(text: str) -> list[str]:
    return text.splitlines()


class TestTheProofItself:
    def test_a_process_that_is_left_is_found(self, shell: Shell) -> None:
        process = shell.start("exec", "popen", "-c", "channel.send(1); channel.receive()")
        assert process.stdout is not None
        assert process.stdout.readline() == "[gw0] 1\n"
        assert len(processes_with(shell.mark)) == 2
        process.terminate()
        assert shell.nothing_is_left()


class TestItems:
    def test_a_spec_with_a_number_in_front_starts_so_many(self, shell: Shell) -> None:
        code = "import os; channel.send(os.getpid())"
        result = shell.run("exec", "3*popen", "popen//id=other", "-c", code)
        rows = [line.split() for line in lines_of(result.stdout)]
        assert sorted(row[0] for row in rows) == ["[gw0]", "[gw1]", "[gw2]", "[other]"]
        assert len({row[1] for row in rows}) == 4
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("item", "lines"),
        [
            ("'text'", ["text"]),
            ("''", [""]),
            ("'two\\nlines'", ["two", "lines"]),
            ("'ended\\n'", ["ended"]),
            ("'a\\n\\nb\\n\\n'", ["a", "", "b", ""]),
            ("u'\\xfc\\u20ac'", ["\xfc\u20ac"]),
            ("17", ["17"]),
            ("None", ["None"]),
            ("b'a\\nb'", ["b'a\\nb'"]),
            ("{'k': ['a', 1.5]}", ["{'k': ['a', 1.5]}"]),
            ("eval('[' * 90 + ']' * 90)", ["[" * 90 + "]" * 90]),
            ("10 ** 5000", ["1" + "0" * 5000]),
            ("'x' * 3000000", ["x" * 3000000]),
        ],
    )
    def test_each_is_printed_behind_the_id_of_its_gateway(
        self, shell: Shell, item: str, lines: list[str]
    ) -> None:
        result = shell.run("exec", "popen", "-c", f"channel.send({item})", PYTHONUTF8="1")
        assert result.stdout.split("\n") == [*(f"[gw0] {line}" for line in lines), ""]
        assert (result.returncode, result.stderr) == (0, "")

    def test_one_that_stdout_cannot_encode_is_escaped(self, shell: Shell) -> None:
        code = "channel.send(u'\\xfc\\u20ac')"
        result = shell.run("exec", "popen", "-c", code, PYTHONIOENCODING="ascii")
        assert result.stdout == "[gw0] \\xfc\\u20ac\n"

    def test_they_are_printed_as_they_arrive(self, shell: Shell) -> None:
        code = "channel.send('first'); channel.receive()"
        process = shell.start("exec", "popen", "-c", code)
        assert process.stdout is not None
        assert process.stdout.readline() == "[gw0] first\n"
        assert process.poll() is None
        process.terminate()

    def test_the_lines_of_one_item_stay_together(self, shell: Shell) -> None:
        lines_sent = [letter * 50000 for letter in "abc"]  # more than a pipe takes at once
        code = "for _ in range(30): channel.send('\\n'.join(x * 50000 for x in 'abc'))"
        result = shell.run("exec", "2*popen", "-c", code)
        lines = lines_of(result.stdout)
        assert len(lines) == 180
        for first in range(0, 180, 3):
            id = lines[first].split()[0]
            assert lines[first : first + 3] == [f"{id} {line}" for line in lines_sent]

    def test_all_workers_run_at_the_same_time(self, shell: Shell) -> None:
        code = """
            import os, time
            open("here-%d" % os.getpid(), "w").close()
            deadline = time.time() + 30
            while len([name for name in os.listdir(".") if name.startswith("here-")]) < 3:
                if time.time() > deadline:
                    raise EOFError("the others did not come")
                time.sleep(0.01)
            """
        result = shell.run("exec", "3*popen", "-c", code)
        assert (result.returncode, result.stderr) == (0, "")

    def test_are_followed_by_an_orderly_end_of_the_workers(self, shell: Shell) -> None:
        code = "import atexit; atexit.register(lambda: open('ended', 'w').close())"
        assert shell.run("exec", "popen", "-c", code).returncode == 0
        assert (shell.folder / "ended").exists()


class TestFailure:
    def test_of_one_shows_its_traceback_and_the_items_of_all(self, shell: Shell) -> None:
        code = "import os; channel.send(1); assert os.environ.get('BAD') is None, 'a\\nb'"
        result = shell.run("exec", "popen", "popen//env:BAD=1", "-c", code)
        assert sorted(lines_of(result.stdout)) == ["[gw0] 1", "[gw1] 1"]
        errors = lines_of(result.stderr)
        assert errors[0] == "[gw1] Traceback (most recent call last):"
        assert errors[-2:] == ["[gw1] AssertionError: a", "[gw1] b"]
        assert {line[:6] for line in errors} == {"[gw1] "}
        assert result.returncode == 1

    @pytest.mark.parametrize(
        ("death", "told"),
        [
            ("os._exit(3)", "exit status 3"),
            ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ],
    )
    def test_of_a_process_is_told_behind_what_it_had_sent(
        self, shell: Shell, death: str, told: str
    ) -> None:
        code = f"import os\nfor i in range(100): channel.send(i)\n{death}"
        result = shell.run("exec", "popen", "-c", code)
        assert lines_of(result.stdout) == [f"[gw0] {i}" for i in range(100)]
        death_line, asked_line = lines_of(result.stderr)
        assert death_line.startswith("[gw0] worker gw0 died, ")
        assert told in death_line
        assert asked_line == "[gw0] it was last asked to execute 'import os' ..."
        assert result.returncode == 1

    def test_is_told_without_a_stderr_by_the_status_alone(self, shell: Shell) -> None:
        command = ["sh", "-c", 'exec "$@" 2>&-', "-", *EXECNET, "exec", "popen", "-c", "1 / 0"]
        env = {**os.environ, TOKEN: shell.token}
        result = subprocess.run(command, cwd=ROOT, env=env, timeout=BOUND_S, check=False)
        assert result.returncode == 1


class TestCode:
    CODE = "channel.send(6 * 7)\n"

    def test_is_the_last_positional_argument_as_a_file(self, shell: Shell) -> None:
        (shell.folder / "job.py").write_text(self.CODE)
        assert shell.run("exec", "2*popen", "job.py").stdout.count("42") == 2

    @pytest.mark.parametrize(
        "args",
        [
            ["--timeout", "50", "popen", "job.py"],
            ["popen", "--timeout", "50", "job.py"],
            ["popen", "job.py", "--timeout=50"],
            ["popen//id=gw0", "-c", "channel.send(42)", "popen"],
            ["-m", "job", "popen", "popen//id=b"],
        ],
    )
    def test_may_have_options_in_front_between_and_behind(
        self, shell: Shell, args: list[str]
    ) -> None:
        (shell.folder / "job.py").write_text(self.CODE)
        result = shell.run("exec", *args)
        assert "[gw0] 42\n" in result.stdout
        assert (result.returncode, result.stderr) == (0, "")

    def test_comes_from_stdin_where_the_file_is_a_dash(self, shell: Shell) -> None:
        assert shell.run("exec", "popen", "-", input=self.CODE).stdout == "[gw0] 42\n"
        result = shell.run("exec", "popen", "--timeout", "50", "-", input=self.CODE)
        assert result.stdout == "[gw0] 42\n"

    def test_from_a_pipe_is_read_once_for_all_workers(self, shell: Shell) -> None:
        result = shell.run("exec", "2*popen", "/dev/stdin", input=self.CODE)
        assert sorted(lines_of(result.stdout)) == ["[gw0] 42", "[gw1] 42"]

    def test_of_a_file_shows_the_file_and_the_line_in_a_traceback(self, shell: Shell) -> None:
        (shell.folder / "job.py").write_text("# first\n\n1 / 0\n")
        result = shell.run("exec", "popen//chdir=/", "job.py")
        assert f'File "{shell.folder}/job.py", line 3, in <module>' in result.stderr

    def test_of_a_file_may_say_its_encoding(self, shell: Shell) -> None:
        source = "# -*- coding: latin-1 -*-\nchannel.send('\xfc')\n"
        (shell.folder / "job.py").write_text(source, "latin-1")
        result = shell.run("exec", "popen", "job.py", PYTHONUTF8="1")
        assert (result.stdout, result.stderr) == ("[gw0] \xfc\n", "")

    def make_package(self, shell: Shell) -> None:
        package = shell.folder / "pack"
        package.mkdir()
        (package / "__init__.py").write_text(
            "if __name__ == 'pack': open('imported', 'w').close()\n"
            "else: channel.send(__name__ + ' ' + str(__package__))\n"
        )
        (package / "deep").mkdir()  # without an __init__
        (package / "deep" / "job.py").write_text("channel.send(6 * 7)\n1 / 0\n")

    def test_of_a_module_is_found_without_importing_anything(self, shell: Shell) -> None:
        self.make_package(shell)
        result = shell.run("exec", "popen", "-m", "pack.deep.job")
        assert result.stdout == "[gw0] 42\n"
        assert f'File "{shell.folder}/pack/deep/job.py", line 2, in <module>' in result.stderr
        assert not (shell.folder / "imported").exists()

    def test_of_a_package_is_its_main_or_else_its_init(self, shell: Shell) -> None:
        self.make_package(shell)
        assert shell.run("exec", "popen", "-m", "pack").stdout == "[gw0] __main__ pack\n"
        (shell.folder / "pack" / "__main__.py").write_text("print(__package__, 'main')\n")
        assert shell.run("exec", "popen", "-m", "pack").stdout == "[gw0] pack main\n"
        assert not (shell.folder / "imported").exists()

    def test_of_a_module_is_looked_for_in_the_current_folder_always(self, shell: Shell) -> None:
        (shell.folder / "job.py").write_text(self.CODE)
        start = "import sys; from execnet._cli import main; sys.path[0] = '/'; sys.exit(main())"
        result = subprocess.run(
            [sys.executable, "-c", start, "exec", "popen", "-m", "job"],
            cwd=shell.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), TOKEN: shell.token},
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert (result.stdout, result.stderr) == ("[gw0] 42\n", "")


class TestBadUsage:
    """Each gets one line that says what is wrong, and status 2; nothing is started."""

    @pytest.fixture
    def call(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> Callable[..., subprocess.CompletedProcess[str]]:
        """Do what a command does, in this process, which is quicker."""

        def call(*args: str) -> subprocess.CompletedProcess[str]:
            try:
                status = _cli.main([*args])
            except SystemExit as exc:
                status = exc.code if isinstance(exc.code, int) else -1
            return subprocess.CompletedProcess(args, status, *capfd.readouterr())

        monkeypatch.chdir(shell.folder)
        monkeypatch.syspath_prepend(shell.folder)
        return call

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["nowhere=x", "-c", "1"], "'nowhere=x'"),
            (["popen//popen", "-c", "1"], "duplicate key 'popen' in spec 'popen//popen'"),
            (["3*popen//popen", "-c", "1"], "spec '3*popen//popen': duplicate key"),
            (["popen//_x=1", "-c", "1"], "'_x'"),
            (["0*popen", "-c", "1"], "'0*popen': there is nothing to start"),
            (["2*popen//id=a", "-c", "1"], "'2*popen//id=a': id= names one gateway"),
            (["popen//id=a", "popen//id=a", "-c", "1"], "id 'a' is taken, by spec 'popen//id=a'"),
            (["popen//id=teller", "-c", "1"], "id 'teller' is taken, by spec 'popen//id=teller//"),
            (["popen//execmodel=odd", "-c", "1"], "'odd'"),
            (["job.py"], "can't read the code from file 'job.py': No such file or directory"),
            (["."], "can't read the code from file '.': Is a directory"),
            (["popen", "popen"], "can't read the code from file 'popen'"),
            ([], "no code for "),
            (["-m", "absent"], "no module 'absent' in the current folder and sys.path"),
            (["-m", "json.absent"], "no module 'json.absent' in package 'json'"),
            (["-m", "bisect.x"], "no module 'x' in 'bisect', which is no package"),
            (["-m", "sys"], "module 'sys' has no source to run, it is built-in"),
            (["-m", "folder"], "module 'folder' has no source to run, it is a folder"),
            (["-m", "latin"], "can't read the source of module 'latin': "),
            (["-m", "json..b"], "no module 'json.' in package 'json'"),
            (["-m", ""], "no module '' in the current folder and sys.path"),
            (["latin.py"], "can't read the code from file 'latin.py': "),
            (["odd.py"], "can't read the code from file 'odd.py': unknown encoding: x-none"),
        ],
    )
    def test_is_told_in_one_line(
        self, shell: Shell, call: Callable[..., Any], args: list[str], told: str
    ) -> None:
        (shell.folder / "folder").mkdir()
        (shell.folder / "latin.py").write_bytes(b"# \xfc\n")
        (shell.folder / "odd.py").write_text("# coding: x-none\n")
        result = call("exec", shell.tells(), *args)
        assert result.stderr.startswith("execnet exec: ")
        assert told in result.stderr
        assert len(lines_of(result.stderr)) == 1
        assert (result.returncode, result.stdout) == (2, "")
        assert not (shell.folder / "was-started").exists()

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["exec"], "execnet exec: error: the following arguments are required: SPEC"),
            (["exec", "TELLS", "-c", "1", "-m", "job"], "execnet exec: error: argument -m"),
            (["exec", "TELLS", "-c", "1", "--odd"], "execnet exec: error: unrecognized"),
            (["exec", "TELLS", "-c", "1", "--time", "1"], "unrecognized arguments: --time"),
            (["exec", "TELLS", "-c", "1", "--timeout", "0"], "'0' is not a positive number"),
            (["exec", "TELLS", "-c", "1", "--timeout", "soon"], "'soon' is not a positive number"),
            (["exec", "TELLS", "-c", "1", "--timeout", "nan"], "'nan' is not a positive number"),
            (["info"], "execnet info: error: the following arguments are required: SPEC"),
            (["info", "TELLS", "-x"], "execnet info: error: unrecognized arguments: -x"),
            (["odd"], "execnet: error: argument COMMAND: invalid choice: 'odd'"),
            ([], "execnet: error: the following arguments are required: COMMAND"),
        ],
    )
    def test_of_options_is_told_below_the_usage(
        self, shell: Shell, call: Callable[..., Any], args: list[str], told: str
    ) -> None:
        spec = shell.tells()
        result = call(*(spec if word == "TELLS" else word for word in args))
        assert result.stderr.startswith("usage: execnet")
        assert told in result.stderr
        assert (result.returncode, result.stdout) == (2, "")
        assert not (shell.folder / "was-started").exists()

    @pytest.mark.parametrize("word", ["nowhere=x", "popen//popen", "0*popen"])
    def test_of_info_is_told_as_well(
        self, shell: Shell, call: Callable[..., Any], word: str
    ) -> None:
        result = call("info", shell.tells(), word)
        assert result.stderr.startswith("execnet info: ")
        assert repr(word) in result.stderr
        assert (result.returncode, result.stdout) == (2, "")
        assert not (shell.folder / "was-started").exists()


class TestAStartThatFails:
    @pytest.mark.parametrize("command", ["exec", "info"])
    @pytest.mark.parametrize(
        ("python", "told"),
        [("/bin/false", "exit status 1"), ("/does/not/exist", "No such file or directory")],
    )
    def test_says_which_and_why_and_runs_nothing(
        self, shell: Shell, command: str, python: str, told: str
    ) -> None:
        code = ["-c", "open('has-run', 'w').close()"] if command == "exec" else []
        result = shell.run(command, "2*popen", f"popen//python={python}", *code)
        assert result.stderr.startswith(f"execnet {command}: ")
        assert python in result.stderr
        assert told in result.stderr
        assert (result.returncode, result.stdout) == (1, "")
        assert not (shell.folder / "has-run").exists()


STARTING, RUNNING, STUBBORN, ENDING, UNREAD = "starting", "running", "stubborn", "ending", "unread"

CODE = {
    STARTING: "channel.send('up')",
    RUNNING: "import time; channel.send('up'); time.sleep(600)",
    STUBBORN: """
        import time
        for turn in range(10**6):
            try:
                if turn == 0:
                    channel.send("up")  # in here, as the interrupt may come before it has returned
                time.sleep(600)
            except KeyboardInterrupt:
                open("interrupted", "w").close()
        """,
    ENDING: """
        import atexit, time
        def linger():
            open("lingers", "w").close()
            time.sleep(600)
        atexit.register(linger)
        """,
    UNREAD: "while 1: channel.send('x' * 1000)",
}

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def bytes_waiting_in(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(count)


def ends_before_our_code(errors: str) -> bool:
    """Whether Python says that it was interrupted while it started.

    While it makes its own streams that is a fatal error with any exception's name, and in a
    ``.pth`` file it goes on without what that file would have added to the path.
    """
    words = ("KeyboardInterrupt", "Fatal Python error: init", "Error processing line")
    ours = os.path.dirname(execnet.__file__) + os.sep
    return any(each in errors for each in words) and ours not in errors


class TestStopping:
    def start_and_wait(self, shell: Shell, phase: str) -> subprocess.Popen[str]:
        """Start a command, and return when it is in that phase of its life."""
        specs = ["popen", shell.never_answers()] if phase == STARTING else ["2*popen"]
        process = shell.start("exec", *specs, "-c", CODE[phase])
        assert process.stdout is not None
        if phase == STARTING:
            shell.wait_for_file("starting")
        elif phase in (RUNNING, STUBBORN):
            lines = sorted(process.stdout.readline() for _ in range(2))
            assert lines == ["[gw0] up\n", "[gw1] up\n"]
        elif phase == ENDING:
            shell.wait_for_file("lingers")
        else:
            pipe = process.stdout.fileno()
            size = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
            assert wait_until(lambda: bytes_waiting_in(pipe) > size - 4096)
        return process

    # A terminal sends Ctrl-C and its own end to all of a group, kill sends to one process.
    @pytest.mark.parametrize(
        ("number", "to_group", "status", "told"),
        [
            (INT, True, 130, "interrupted"),
            (TERM, False, 143, "ended by SIGTERM"),
            (HUP, True, 129, "ended by SIGHUP"),
        ],
        ids=["int", "term", "hup"],
    )
    @pytest.mark.parametrize("phase", [STARTING, RUNNING, ENDING, UNREAD])
    def test_by_a_signal_leaves_nothing(
        self, shell: Shell, phase: str, number: int, to_group: bool, status: int, told: str
    ) -> None:
        process = self.start_and_wait(shell, phase)
        (os.killpg if to_group else os.kill)(process.pid, number)
        assert process.wait(BOUND_S) == status
        assert shell.nothing_is_left()
        assert process.stderr is not None
        assert f"execnet exec: {told}\n" in process.stderr.read()

    @pytest.mark.parametrize("phase", [STARTING, RUNNING])
    def test_by_ctrl_c_prints_one_line_and_no_traceback(self, shell: Shell, phase: str) -> None:
        process = self.start_and_wait(shell, phase)
        process.send_signal(INT)
        assert process.wait(BOUND_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "execnet exec: interrupted\n"

    def test_by_ctrl_c_works_while_info_starts_something(self, shell: Shell) -> None:
        process = shell.start("info", "popen", shell.never_answers())
        shell.wait_for_file("starting")
        process.send_signal(INT)
        stdout, stderr = process.communicate(timeout=BOUND_S)
        assert (process.returncode, stdout) == (130, "")
        assert stderr == "execnet info: interrupted\n"

    @pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
    def test_by_ctrl_c_leaves_nothing_at_any_moment(self, shell: Shell, to_group: bool) -> None:
        for moment in range(0, 25, 1 if IS_THOROUGH else 3):
            process = shell.start("exec", "2*popen", "-c", "channel.send(1)")
            if moment:
                try:
                    process.wait(moment * 0.02)
                except subprocess.TimeoutExpired:
                    pass
                else:
                    break  # it is faster than that, so there are no more moments
            (os.killpg if to_group else os.kill)(process.pid, INT)
            assert process.stderr is not None
            status, errors = process.wait(BOUND_S), process.stderr.read()
            # Python had left the command with status 0, or had not yet come to it
            too_early = ends_before_our_code(errors)
            assert status in (130, -INT, 0) or too_early, (status, errors)
            assert shell.nothing_is_left()

    def test_by_a_ctrl_c_whose_exception_python_has_lost_is_only_later(self, shell: Shell) -> None:
        # As when it comes in the callback that ends an import.
        program = """
            import gc, os, signal, sys, weakref
            from execnet import _cli

            class Lost:
                def find_spec(self, name, path=None, target=None):
                    if name == "execnet._cli.words":
                        class Something: pass
                        something = Something()
                        self.callback = weakref.ref(something, interrupt)
                        del something
                        gc.collect()  # PyPy drops it only then

            def interrupt(_):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(9):
                    pass

            sys.meta_path.insert(0, Lost())
            sys.argv = ["execnet", "exec", "popen", "-c", "channel.receive()"]
            sys.exit(_cli.main())
            """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=shell.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), TOKEN: shell.token},
            stderr=subprocess.PIPE,
            text=True,
        )
        errors = process.communicate(timeout=BOUND_S)[1]
        assert "Exception ignored" in errors
        assert errors.endswith("execnet exec: interrupted\n")
        assert process.returncode == 130
        assert shell.nothing_is_left()

    def test_lets_code_clean_up(self, shell: Shell) -> None:
        code = """
            import time
            try:
                channel.send("up")
                time.sleep(600)
            finally:
                open("cleaned", "w").close()
            """
        process = shell.start("exec", "popen", "-c", code)
        assert process.stdout is not None
        assert process.stdout.readline() == "[gw0] up\n"
        process.terminate()
        assert process.wait(BOUND_S) == 143
        assert (shell.folder / "cleaned").exists()

    def test_kills_code_that_goes_on(self, shell: Shell) -> None:
        process = self.start_and_wait(shell, STUBBORN)
        process.send_signal(INT)
        assert process.wait(BOUND_S) == 130
        assert (shell.folder / "interrupted").exists()
        assert process.stderr is not None
        assert process.stderr.read() == "execnet exec: interrupted\n"

    def test_by_a_second_ctrl_c_does_not_wait_for_code(self, shell: Shell) -> None:
        process = self.start_and_wait(shell, STUBBORN)
        process.send_signal(INT)
        shell.wait_for_file("interrupted")
        begin = time.monotonic()
        process.send_signal(INT)
        assert process.wait(BOUND_S) == 130
        assert time.monotonic() - begin < STOP_S / 2

    def test_does_not_happen_by_a_signal_that_the_command_is_to_ignore(self, shell: Shell) -> None:
        code = "channel.send('up'); open('go').read()"
        process = subprocess.Popen(
            ["sh", "-c", 'trap "" HUP; exec "$@"', "-", *EXECNET, "exec", "popen", "-c", code],
            cwd=shell.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), TOKEN: shell.token},
            stdout=subprocess.PIPE,
            text=True,
        )
        os.mkfifo(shell.folder / "go")
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "[gw0] up\n"
            process.send_signal(HUP)
            (shell.folder / "go").write_text("")  # there is a reader, and it was not interrupted
            assert process.wait(BOUND_S) == 0


class TestTimeout:
    def test_ends_code_that_runs_and_names_its_gateways(self, shell: Shell) -> None:
        code = "import os, time; time.sleep(600 if os.environ.get('SLOW') else 0)"
        specs = ["popen//env:SLOW=1", "popen", "popen//id=c//env:SLOW=1"]
        result = shell.run("exec", *specs, "-c", code, "--timeout", "2")
        told = "execnet exec: time-out, 2 s have passed: gw0, c did not finish\n"
        assert (result.returncode, result.stderr) == (124, told)

    def test_ends_workers_that_are_starting(self, shell: Shell) -> None:
        result = shell.run("exec", shell.never_answers(), "-c", "1", "--timeout", "0.5")
        told = "execnet exec: time-out, 0.5 s have passed: the workers were still starting\n"
        assert (result.returncode, result.stderr) == (124, told)

    def test_is_not_told_where_only_the_end_of_a_worker_takes_long(self, shell: Shell) -> None:
        begin = time.monotonic()
        result = shell.run("exec", "popen", "-c", CODE[ENDING], "--timeout", "2")
        assert (result.returncode, result.stderr) == (0, "")
        assert (shell.folder / "lingers").exists()
        assert time.monotonic() - begin < END_S  # which it would have without a time-out

    def test_that_does_not_pass_changes_nothing(self, shell: Shell) -> None:
        result = shell.run("exec", "popen", "-c", "channel.send(1)", "--timeout", "1e30")
        assert (result.returncode, result.stdout, result.stderr) == (0, "[gw0] 1\n", "")


class TestStdout:
    @pytest.mark.parametrize("rest", ["while 1: channel.send(2)", "import time; time.sleep(0.3)"])
    def test_that_is_closed_early_ends_the_command(self, shell: Shell, rest: str) -> None:
        code = f"channel.send(1)\n{rest}\nchannel.send(3)"
        process = shell.start("exec", "2*popen", "-c", code)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("1\n")
        process.stdout.close()
        assert process.wait(BOUND_S) == 141
        assert shell.nothing_is_left()
        assert "execnet exec" not in process.stderr.read()

    def test_that_is_full_is_told(self, shell: Shell) -> None:
        command = ["sh", "-c", 'exec "$@" >/dev/full', "-"]
        command += [*EXECNET, "exec", "popen", "-c", "channel.send(1)"]
        env = {**os.environ, TOKEN: shell.token}
        result = subprocess.run(
            command, cwd=ROOT, env=env, stderr=subprocess.PIPE, timeout=BOUND_S, check=False
        )
        assert b"execnet exec: can't write to stdout: No space left on device\n" in result.stderr
        assert result.returncode == 1

    def test_that_nobody_reads_holds_up_the_workers(self, shell: Shell) -> None:
        code = """
            import os
            for number in range(100000):
                channel.send("x" * 100000)
                with open("new", "w") as file:
                    file.write(str(number))
                os.rename("new", "sent")
            """
        process = shell.start("exec", "popen", "-c", code)
        shell.wait_for_file("sent")
        seen: list[str] = []

        def stands_still() -> bool:
            seen.append((shell.folder / "sent").read_text())
            return len(seen) > 100 and len(set(seen[-100:])) == 1

        assert wait_until(stands_still)
        assert int(seen[-1]) < 1000
        process.terminate()

    def test_is_written_by_the_thread_that_reads(self) -> None:
        """Any other that waited for a reader would let the worker send on."""
        writers: list[str] = []
        come = threading.Event()

        class Noting(Printer):
            def item(self, gateway: execnet.Gateway, item: object) -> None:
                writers.append(threading.current_thread().name)
                come.set()

        def begin(execution: Execution) -> None:
            arguments = {"place": "here", "file_name": None, "argv": [], "name": "a", "package": ""}
            execution.send(far_exec, "it", source="channel.send(1)", **arguments)
            assert come.wait(BOUND_S)

        with PatientGroup(forwards=False) as group:
            gateways = group.start_all(parse_specs(["popen"]))
            watch = session.Session(group)
            assert execute(watch, group, gateways, Noting(watch, as_json=False), begin) == 0
            watch.close()
        assert writers == ["execnet-receiver-gw0"]


class TestInfo:
    def rows_of(self, shell: Shell, *words: str) -> list[dict[str, str]]:
        result = shell.run("info", *words)
        assert (result.returncode, result.stderr) == (0, "")
        titles, *lines = lines_of(result.stdout)
        columns = ["id", "spec", "python", "implementation", "platform", "pid", "cwd"]
        assert titles.split() == [*columns, "start", "ms", "trip", "ms"]
        return [
            dict(zip([*columns, "start ms", "trip ms"], line.split(), strict=True))
            for line in lines
        ]

    def test_has_a_row_for_each_worker(self, shell: Shell) -> None:
        rows = self.rows_of(shell, "2*popen", "popen//id=other")
        assert [row["id"] for row in rows] == ["gw0", "gw1", "other"]
        assert [row["spec"] for row in rows] == ["popen", "popen", "popen//id=other"]
        assert len({row["pid"] for row in rows}) == 3

    def test_tells_what_the_interpreter_is(self, shell: Shell) -> None:
        (shell.folder / "below").mkdir()
        (row,) = self.rows_of(shell, "popen//chdir=below")
        assert row["python"] == sys.version.split()[0].rstrip("+")
        assert row["implementation"] == sys.implementation.name
        assert row["platform"] == sys.platform
        assert row["cwd"] == str(shell.folder / "below")

    def test_tells_milliseconds_that_can_be_true(self, shell: Shell) -> None:
        begin = time.monotonic()
        (row,) = self.rows_of(shell, f"popen//python={shell.script('slow', self.slow())}")
        all_ms = (time.monotonic() - begin) * 1e3
        assert 300 < float(row["start ms"]) < all_ms
        assert 0 < float(row["trip ms"]) < all_ms

    def slow(self) -> str:
        return f'sleep 0.3; exec {sys.executable} "$@"'

    def test_puts_columns_one_under_the_other(self, shell: Shell) -> None:
        (shell.folder / "a-longer-name").mkdir()
        lines = lines_of(shell.run("info", "popen", "popen//chdir=a-longer-name").stdout)
        for title in "spec", "python", "implementation", "platform", "cwd":
            start = lines[0].index(title)
            assert {line[start - 2 : start] for line in lines} == {"  "}
            assert all(line[start] != " " for line in lines)
        for title in "pid", "start ms", "trip ms":
            end = lines[0].index(title) + len(title)
            assert all(line[end - 1] != " " and line[end : end + 1] in " " for line in lines)

    def test_is_not_printed_if_a_worker_dies(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(cli_info, "_ECHO", "import os; os._exit(4)")
        assert _cli.main(["info", "popen", "popen"]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("execnet info: gw0 does not answer: ")
        assert "exit status 4" in err


class TestHelp:
    def test_version_is_the_version(self, shell: Shell) -> None:
        result = shell.run("--version")
        assert (result.returncode, result.stdout) == (0, f"execnet {execnet.__version__}\n")

    @pytest.mark.parametrize(
        ("args", "parts"),
        [
            (["--help"], ["exec", "info", "--version", "examples:"]),
            (
                ["exec", "--help"],
                [
                    "usage: execnet exec SPEC... (-c CODE | FILE | -m MODULE)",
                    *("the last of the positional arguments is the FILE", "standard input"),
                    *("examples:", "exit status:", "  130 "),
                ],
            ),
            (["info", "--help"], ["usage: execnet info SPEC...", "examples:", "exit status:"]),
        ],
    )
    def test_text_has_what_one_looks_for(
        self, shell: Shell, args: list[str], parts: list[str]
    ) -> None:
        result = shell.run(*args, COLUMNS="100")
        assert [part for part in parts if part not in result.stdout] == []
        assert max(map(len, lines_of(result.stdout))) <= 100
        assert (result.returncode, result.stderr) == (0, "")


class TestMain:
    """``main`` as a function, called by a program that goes on behind it."""

    def test_returns_the_status(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert _cli.main(["--version"]) == 0
        assert _cli.main(["exec"]) == 2
        assert _cli.main(["exec", "popen", "-c", "channel.send(1)"]) == 0
        assert _cli.main(["exec", "popen", "-c", "1 / 0"]) == 1
        assert "[gw0] 1\n" in capfd.readouterr().out

    def test_prints_where_the_program_has_its_stdout(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _cli.main(["exec", "popen", "-c", "channel.send(1)"]) == 0
        assert capsys.readouterr().out == "[gw0] 1\n"

    def test_leaves_signals_and_threads_as_they_were(self) -> None:
        before = [signal.getsignal(number) for number in (INT, TERM, HUP)]
        before_threads = threads()
        assert _cli.main(["exec", "popen", "-c", "1"]) == 0
        assert [signal.getsignal(number) for number in (INT, TERM, HUP)] == before
        assert wait_until(lambda: threads() <= before_threads, GONE_S)

    def test_leaves_no_descriptor_open(self) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        assert _cli.main(["exec", "2*popen", "-c", "1"]) == 0
        assert wait_until(lambda: sorted(os.listdir("/proc/self/fd")) == before, GONE_S)

    def test_runs_in_any_thread(self) -> None:
        statuses: list[int] = []
        args = ["exec", "popen", "-c", "1"]
        thread = threading.Thread(target=lambda: statuses.append(_cli.main(args)))
        thread.start()
        thread.join(BOUND_S)
        assert statuses == [0]

    def test_makes_an_exit_status_of_a_ctrl_c_that_comes_before_any_worker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(argv: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(_cli, "_parse", interrupted)
        assert _cli.main([]) == 130

    def test_it_does_not_load_what_serves(self) -> None:
        code = "import sys, execnet._cli.session; print(*sys.modules)"
        assert "execnet.script.socketserver" not in run_python(code).stdout.split()


class TestParts:
    def test_a_number_in_front_of_a_spec_repeats_it(self) -> None:
        specs = parse_specs(["popen", "3*popen//nice=1", "ssh=a*b"])
        assert [str(spec) for spec in specs] == ["popen", *["popen//nice=1"] * 3, "ssh=a*b"]
        assert len({id(spec) for spec in specs}) == 5

    def test_a_spec_that_is_no_spec_is_refused(self) -> None:
        with pytest.raises(CommandError, match=r"^spec '2\*': empty key in spec ''$"):
            parse_specs(["2*"])

    def test_a_worker_whose_end_nobody_can_report_counts_as_ended(self) -> None:
        """One behind a hop that was killed before it."""
        io = SimpleNamespace(poll_until=lambda deadline: None, has_ended=lambda: True)
        gateway: Any = SimpleNamespace(id="gw0", endpoint=io)
        assert session._wait_until_gone([gateway], 0.0) == []

    def test_output_waits_for_a_pipe_that_is_full_and_does_not_block(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with open(reader, "rb") as source, open(writer, "w") as target:
            output = Output(target)
            thread = threading.Thread(target=output.write, args=("x" * 1000000, "> "))
            thread.start()
            size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
            assert wait_until(lambda: bytes_waiting_in(reader) == size)
            assert source.read(1000003) == b"> " + b"x" * 1000000 + b"\n"
            thread.join(BOUND_S)

    def test_output_that_was_closed_drops_what_comes(self) -> None:
        reader, writer = os.pipe()
        with open(reader, "rb") as source, open(writer, "w") as target:
            output = Output(target)
            output.closed = True
            output.write("late")
            target.close()
            assert source.read() == b""

    def test_output_to_a_stream_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(OSError, match="not open"):
            Output(None).write("text")
