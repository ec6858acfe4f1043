"""``execnet shell``, through a pseudo-terminal and through a pipe."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import processes_with
from shell import EXECNET, GONE_S, TOKEN, Shell, wait_until
from tools import BOUND_S, ROOT, find_python

pty = pytest.importorskip("pty")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="what is left running is looked up in /proc"
)
CTRL_C, CTRL_D = "\x03", "\x04"
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A pseudo-terminal in which ``execnet`` runs."""

    def __init__(self, folder: Path, token: str, *args: str) -> None:
        self._unread = ""
        env = {**os.environ, "PYTHONPATH": str(ROOT), TOKEN: token, "TERM": "xterm"}
        env |= {"EXECNET_HOME": str(folder / "home"), "COLUMNS": "80"}
        self.pid, self.fd = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.execve(EXECNET[0], [*EXECNET, *args], env)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """Read until a text comes; return what came before it."""
        deadline = time.monotonic() + BOUND_S
        while text not in self._unread:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self._unread!r}"
            if select.select([self.fd], [], [], left)[0]:
                data = os.read(self.fd, 65536).decode("utf-8", "replace")
                self._unread = _COLOURS.sub("", self._unread + data).replace("\r\n", "\n")
        before, _, self._unread = self._unread.partition(text)
        return before

    def run(self, line: str, prompt: str = ">>> ") -> str:
        """Type a line; return what is printed before the next prompt."""
        self.type(line + "\n")
        self.until(line[-20:] + "\n")
        return self.until(prompt)

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    """The terminals of a test, which leave nothing running."""
    made: list[Terminal] = []
    yield made
    for terminal in made:
        os.close(terminal.fd)
    mark = f"{TOKEN}={tmp_path.name}"
    is_gone = wait_until(lambda: not processes_with(mark), GONE_S)
    for pid in processes_with(mark):
        os.kill(pid, signal.SIGKILL)
    assert is_gone


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
    terminal.run("a_long_name = 12345")
    terminal.type("a_lo\t")
    terminal.until("a_long_name")
    assert "12345" in terminal.run(" + 0")
    terminal.type("1 +" + CTRL_C)
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
    terminal.until("it can't be interrupted")
    assert terminal.status() == 130


@pytest.mark.parametrize("version", ["", "2.7"])
def test_reads_from_a_pipe(shell: Shell, version: str) -> None:
    python = find_python(version) if version else sys.executable
    code = "x = 'a'\nx * 3\nfor i in range(2):\n    print(i)\n\nprint('no end')\nif x:\n  print(x)"
    result = shell.run("shell", f"popen//python={python}", input=code)
    assert result.stdout == "'aaa'\n0\n1\nno end\na\n"
    assert (result.returncode, result.stderr) == (0, "")


def test_is_over_when_its_interpreter_is(shell: Shell) -> None:
    result = shell.run("shell", "popen", input="import os\nos._exit(3)\nprint(1)\n")
    assert result.returncode == 1
    assert "exit status 3" in result.stdout
