"""``execnet shell``, through a pseudo-terminal and through a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from processes import is_asleep
from shell import Shell
from terminals import Terminal
from tools import find_python, wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="what is left running is looked up in /proc"
)
CTRL_C, CTRL_D = "\x03", "\x04"


def start(terminals: list[Terminal], folder: Path, *args: str) -> Terminal:
    terminals.append(Terminal(folder, folder.name, "shell", *args))
    return terminals[-1]


def test_is_like_pythons_own_prompt(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = start(terminals, tmp_path, "popen")
    assert "gw0: popen, on this machine, pid " in terminal.until(">>> ")
    assert terminal.run("6 * 7") == "42\n"
    assert terminal.run("for i in range(2):", "... ") == ""
    assert terminal.run("    print(i, end='!', flush=True)", "... ") == ""
    assert terminal.run("") == "0!1!"
    assert "ZeroDivisionError" in terminal.run("1 / 0")
    assert "\x1b[31mTraceback" in terminal.raw
    terminal.run("a_long_name = 12345")
    terminal.type("a_lo\t")
    terminal.until("a_long_name")
    assert "12345" in terminal.run(" + 0")
    terminal.type("1 +")
    terminal.until("1 +")
    wait_until(is_asleep(terminal.pid))  # else Python might not see the signal
    terminal.type(CTRL_C)
    terminal.until("KeyboardInterrupt\n>>> ")
    terminal.type("print('up', flush=True); import time; time.sleep(600)\n")
    terminal.until("\nup\n")
    terminal.type(CTRL_C)
    terminal.until("KeyboardInterrupt\n>>> ")
    assert terminal.run("a_long_name") == "12345\n"  # it is the same interpreter
    assert terminal.run(r"print('\x1b]0;title\x07')") == "\\x1b]0;title\\x07\n"
    terminal.type(CTRL_D)
    assert terminal.status() == 0
    assert "a_long_name = 12345" in (tmp_path / "home" / "shell_history").read_text()


def test_talks_to_several_at_once(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = start(terminals, tmp_path, "popen//id=a", "popen//id=b")
    terminal.until("all >>> ")
    assert sorted(terminal.run("print(channel.gateway.id)", "all >>> ").splitlines()) == [
        "[a] a-worker",
        "[b] b-worker",
    ]
    assert "\x1b[36m[a]\x1b[0m a-worker" in terminal.raw
    assert terminal.run("%b x = 1", "all >>> ") == ""
    assert terminal.run("%b", "b >>> ") == ""
    assert terminal.run("x", "b >>> ") == "[b] 1\n"
    assert "there is no %c; there are %all, %who, %a, %b" in terminal.run("%c", "b >>> ")
    assert "pid" in terminal.run("%who", "b >>> ")
    terminal.run("%all", "all >>> ")
    assert "[b] worker b died" in terminal.run("%b import os; os._exit(3)", "all >>> ")
    assert terminal.run("1", "a >>> ") == "[a] 1\n"
    terminal.type("exit(5)\n")
    assert terminal.status() == 5


def test_gives_up_code_that_can_not_be_interrupted(
    terminals: list[Terminal], tmp_path: Path
) -> None:
    terminal = start(terminals, tmp_path, "popen")
    terminal.until(">>> ")
    code = "import time"
    terminal.run(code)
    terminal.run("def stubborn():", "... ")
    terminal.run("  while 1:", "... ")
    terminal.run("    try: print('up', flush=True); time.sleep(600)", "... ")
    terminal.run("    except KeyboardInterrupt: pass", "... ")
    terminal.run("")
    terminal.type("stubborn()\n")
    for _ in range(3):
        terminal.until("up\n")
        terminal.type(CTRL_C)
    terminal.until("the code can't be interrupted")
    assert terminal.status() == 130


@pytest.mark.parametrize("version", ["", "2.7"])
def test_reads_from_a_pipe(shell: Shell, version: str) -> None:
    python = find_python(version) if version else sys.executable
    code = "x = 'a'\nx * 3\nfor i in range(2):\n    print(i)\n\nprint('no end')\nif x:\n  print(x)"
    result = shell.run("shell", f"popen//python={python}", input=code)
    assert result.stdout == "'aaa'\n0\n1\nno end\na\n"
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("version", ["", "2.7"])
def test_shows_a_statement_that_the_end_of_the_input_cuts_off(shell: Shell, version: str) -> None:
    python = find_python(version) if version else sys.executable
    result = shell.run("shell", f"popen//python={python}", input="print('a')\nif 1:\n")
    assert result.stdout.startswith("a\n")
    assert result.returncode == 0
    assert "    if 1:\n" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(("IndentationError", "SyntaxError"))


def test_prints_objects_for_programs(shell: Shell) -> None:
    code = (
        "print('a b')\nimport sys\nx = sys.stderr.write('bad')\n%who\n%no\nimport os\nos._exit(4)\n"
    )
    result = shell.run("shell", "popen//id=a", "--json", input=code)
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["gateway"] for one in objects] == ["a", "a", "a", None, "a"]
    assert [one.get("line") for one in objects[:2]] == ["a b", "bad"]
    assert [one.get("stream") for one in objects[:2]] == ["stdout", "stderr"]
    assert "popen//id=a" in objects[2]["description"]
    assert "no %no" in objects[3]["error"]
    assert "exit status 4" in objects[4]["error"]
    assert result.returncode == 1


def test_is_over_when_its_interpreter_is(shell: Shell) -> None:
    result = shell.run("shell", "popen", input="import os\nos._exit(3)\nprint(1)\n")
    assert result.returncode == 1
    assert "exit status 3" in result.stdout
