"""``execnet exec`` and ``execnet run``: what a program prints, gets and ends with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from shell import Shell, wait_until
from tools import BOUND_S, find_python, run_python

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="what is left running is looked up in /proc"
)


class TestExec:
    def test_shows_what_is_printed_behind_the_id_of_its_gateway(self, shell: Shell) -> None:
        code = "import os, sys; print('out'); sys.stderr.write('err\\n'); os.system('echo child')"
        result = shell.run("exec", "popen", "-c", code)
        assert sorted(result.stdout.splitlines()) == ["[gw0] child", "[gw0] out"]
        assert (result.returncode, result.stderr) == (0, "[gw0] err\n")
        assert shell.run("exec", "popen", "--quiet-output", "-c", code).stdout == ""

    def test_loses_no_line_that_is_read_late(self, shell: Shell) -> None:
        code = "for i in range(20000): print(i, 'x' * 200)\nopen('done', 'w').close()"
        process = shell.start("exec", "popen", "-c", code)
        assert process.stdout is not None
        assert process.stdout.readline() == f"[gw0] 0 {'x' * 200}\n"
        lines = process.stdout.read().splitlines()
        assert process.wait(BOUND_S) == 0
        assert [line.split()[1] for line in lines] == [str(i) for i in range(1, 20000)]

    @pytest.mark.parametrize("version", ["", "2.7"])
    def test_runs_a_script_as_a_program(self, shell: Shell, version: str) -> None:
        python = find_python(version) if version else sys.executable
        text = (
            "from __future__ import print_function\nimport sys, __main__\n"
            "print(__main__.__file__, __name__, sys.argv[1:], channel is __main__.channel)\n"
            "(lambda: 1 / 0)()\n"
        )
        (shell.folder / "job.py").write_text(text)
        result = shell.run("exec", f"popen//python={python}", "job.py", "--", "-c", "--json")
        place = shell.folder / "job.py"
        assert result.stdout == f"[gw0] {place} __main__ ['-c', '--json'] True\n"
        first, second, *_, last = result.stderr.splitlines()
        assert first == "[gw0] Traceback (most recent call last):"
        assert second == f'[gw0]   File "{place}", line 4, in <module>'
        assert last.startswith("[gw0] ZeroDivisionError: ")
        assert result.returncode == 1

    def test_keeps_the_name_that_a_script_knows(self, shell: Shell) -> None:
        text = "if __name__ == '__channelexec__': channel.send(__name__)"
        (shell.folder / "job.py").write_text(text)
        assert shell.run("exec", "popen", "job.py").stdout == "[gw0] __channelexec__\n"

    def test_ends_as_the_code_does(self, shell: Shell) -> None:
        ends = ["sys.exit()", "sys.exit(3)", "sys.exit(-1)", "sys.exit('no such user')", "1 / 0"]
        specs = [f"popen//env:END={end}" for end in ends]
        result = shell.run("exec", *specs, "-c", "import os, sys; exec(os.environ['END'])")
        errors = sorted(result.stderr.splitlines())
        assert errors[:3] == [
            *("[gw1] exit status 3", "[gw2] exit status 255", "[gw3] exit status 1"),
        ]
        assert (result.returncode, result.stdout) == (255, "")

    def test_tells_of_a_value_that_nobody_sees(self, shell: Shell) -> None:
        result = shell.run("exec", "popen", "-c", "6 * 7")
        assert "the value of its last line, 42, is lost" in result.stderr
        code = "import datetime\ndef today(): return datetime.date(2020, 1, 1)\n"
        code += "if __name__ == '__main__':\n    today()"
        result = shell.run("exec", "popen", "-c", code)
        assert "an object of type datetime.date, is lost" in result.stderr
        result = shell.run("exec", "popen", "-c", "print(1); 6 * 7")
        assert (result.returncode, result.stderr) == (0, "")

    def test_shows_what_does_not_compile(self, shell: Shell) -> None:
        result = shell.run("exec", "popen", "-c", "for")
        assert result.stderr.splitlines()[0] == '[gw0]   File "<remote exec>", line 1'
        assert result.stderr.splitlines()[-1].startswith("[gw0] SyntaxError: ")
        assert result.returncode == 1

    def test_ends_where_the_code_interrupts_itself(self, shell: Shell) -> None:
        result = shell.run("exec", "popen", "-c", "print(1); raise KeyboardInterrupt")
        assert (result.returncode, result.stdout) == (1, "[gw0] 1\n")

    def test_lets_a_child_process_of_the_code_end_alone(self, shell: Shell) -> None:
        code = "import os, sys, warnings\nwarnings.simplefilter('ignore')  # of forks, since 3.12\n"
        code += "if not os.fork(): sys.exit(7)\nprint(os.wait()[1] >> 8)"
        result = shell.run("exec", "popen", "-c", code)
        assert (result.returncode, result.stdout, result.stderr) == (0, "[gw0] 7\n", "")

    def test_prints_lines_that_programs_read(self, shell: Shell) -> None:
        code = "channel.send({'a': [1]}); channel.send(b'x'); print('hi'); 1 / 0"
        result = shell.run("exec", "popen", "--json", "-c", code)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        last = found.pop()
        assert sorted(found, key=str) == [
            {"gateway": "gw0", "item": {"a": [1]}},
            {"gateway": "gw0", "repr": "b'x'"},
            {"gateway": "gw0", "stream": "stdout", "line": "hi"},
        ]
        assert last["status"] == 1
        assert "ZeroDivisionError" in last["error"]
        assert (result.returncode, result.stderr) == (1, "")

    def test_takes_specs_from_a_file(self, shell: Shell) -> None:
        (shell.folder / "hosts").write_text("# ours\n2*popen  # two\n\npopen//id=third\n")
        result = shell.run("exec", "@hosts", "-c", "print()")
        assert sorted(result.stdout.split()) == ["[gw0]", "[gw1]", "[third]"]


class TestRun:
    def test_ends_as_the_program_does_even_where_nobody_wants_to_know(self) -> None:
        """Whoever ignores SIGCHLD has no exit status of a child, and its children do the same."""
        result = run_python(
            "import signal, os, sys\n"
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
            "words = ['-m', 'execnet', 'run', 'popen', '--', 'sh', '-c', 'exit 3']\n"
            "os.execv(sys.executable, [sys.executable, *words])",
        )
        assert result.returncode == 3

    def test_runs_a_program_everywhere(self, shell: Shell) -> None:
        script = "echo out; echo err >&2; read x || exit $N"
        specs = ["popen//env:N=0", "popen//env:N=4"]
        result = shell.run("run", *specs, "--", "sh", "-c", script)
        assert sorted(result.stdout.splitlines()) == ["[gw0] out", "[gw1] out"]
        errors = sorted(result.stderr.splitlines())
        assert errors == ["[gw0] err", "[gw1] err", "[gw1] exit status 4"]
        assert result.returncode == 4

    @pytest.mark.parametrize("version", ["", "2.7"])
    def test_gives_our_stdin_to_each(self, shell: Shell, version: str) -> None:
        python = find_python(version) if version else sys.executable
        specs = [f"2*popen//python={python}", "popen//id=deaf//env:DEAF=1"]
        script = 'test -n "$DEAF" || wc -c'
        text = "x" * 2_000_000
        result = shell.run("run", *specs, "--stdin", "--", "sh", "-c", script, input=text)
        assert sorted(result.stdout.split()) == sorted(["[gw0]", "2000000", "[gw1]", "2000000"])
        assert (result.returncode, result.stderr) == (0, "")

    def test_ends_as_a_shell_would(self, shell: Shell) -> None:
        ends = ["kill -9 $$", "exit 3", "echo $0 $# >&2"]
        specs = [f"popen//env:END={end}" for end in ends]
        words = ["sh", "-c", 'eval "$END"', "a//b", "--", "-x"]
        result = shell.run("run", *specs, "--", *words)
        told = ["[gw0] exit status 137", "[gw1] exit status 3", "[gw2] a//b 2"]
        assert (result.returncode, sorted(result.stderr.splitlines())) == (137, told)

    @pytest.mark.parametrize(
        ("command", "status", "told"),
        [("absent", 127, "No such file or directory"), ("/", 126, "Permission denied")],
    )
    def test_tells_what_it_can_not_run(
        self, shell: Shell, command: str, status: int, told: str
    ) -> None:
        result = shell.run("run", "popen", "--", command)
        told = f"[gw0] can't run {command}: {told}\n"
        assert (result.returncode, result.stdout, result.stderr) == (status, "", told)

    def test_ends_the_program_with_itself(self, shell: Shell) -> None:
        process = shell.start("run", "2*popen", "--", "sh", "-c", "echo up; exec sleep 600")
        assert process.stdout is not None
        assert process.stdout.readline().endswith("up\n")
        assert process.stdout.readline().endswith("up\n")
        process.terminate()
        assert process.wait(BOUND_S) == 143
        assert wait_until(shell.nothing_is_left)

    def test_ends_a_program_that_was_just_being_started(self) -> None:
        ended = run_python("""
import os, signal, subprocess
from execnet._cli import far_run

class Interrupted(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGINT)

subprocess.Popen = Interrupted
try:
    far_run.run(None, None, [b"sleep", b"600"], False)
except KeyboardInterrupt:
    print("interrupted")
""")
        pid, told = ended.stdout.split()
        assert (told, ended.stderr) == ("interrupted", "")
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)

    @pytest.mark.parametrize("is_early", [True, False])
    def test_ends_a_program_whose_thread_was_just_being_started(self, is_early: bool) -> None:
        ended = run_python(
            """
import sys, threading
from execnet._cli import far_run

begin, is_early, late = threading.Thread.start, sys.argv[1] == "True", []

def start(self):
    threading.Thread.start = begin
    if is_early:
        begin(self)
        self.join()
    else:
        late.append(self)
    raise KeyboardInterrupt

threading.Thread.start = start
try:
    far_run.run(None, None, [b"sleep", b"600"], False)
except KeyboardInterrupt:
    for thread in late:
        thread.start()
        thread.join()
    print("interrupted")
""",
            str(is_early),
        )
        assert (ended.stdout, ended.stderr) == ("interrupted\n", "")

    def test_wants_a_command(self, shell: Shell) -> None:
        result = shell.run("run", shell.tells())
        told = "execnet run: no command: it comes after the specs and '--'\n"
        assert (result.returncode, result.stderr) == (2, told)
        assert not os.path.exists(shell.folder / "was-started")
