"""The tutorial is followed as readers do: typed at a prompt, pasted there, and in a notebook.

As a file it is run by ``test_documentation.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from pages import Block, prints, read, write_files
from tools import BOUND_S, ROOT, find_python, missing, wait_until

pytestmark = [
    pytest.mark.usefixtures("programs"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal"),
]

PAGE = read(ROOT / "doc" / "tutorial.rst")

# What a terminal makes of pasted text, if the program has asked for that.
PASTE_ON, PASTE_BEGINS, PASTE_ENDS = "\x1b[?2004h", "\x1b[200~", "\x1b[201~"


def steps(page: list[Block]) -> list[tuple[Block, str]]:
    """Return what is typed, each with what it prints; cells may be for IPython alone."""
    found = []
    for block, after in pairwise([*page, Block("", "", 0, "")]):
        if (block.language == "python" and not block.caption) or block.caption == "A cell":
            found.append((block, after.text if after.caption == "Output" else ""))
    return found


class Prompt:
    """An interactive Python at a pseudo-terminal, which prints into a file instead.

    So what it prints is told apart from its prompts and from the echo of what is typed.
    """

    def __init__(self, python: str, folder: Path, terminal: str) -> None:
        here, there = os.openpty()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": terminal, "PYTHON_COLORS": "0"}
        self.process = subprocess.Popen(
            [python, "-q"],
            stdin=there, stdout=there, stderr=there,
            cwd=folder, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(there)
        self._terminal = here
        self._printed = folder / "printed"
        self._shown = b""
        self._read = threading.Thread(target=self._read_all)
        self._read.start()

    def _read_all(self) -> None:
        with contextlib.suppress(OSError):  # Linux says that the other end has closed by an EIO
            while data := os.read(self._terminal, 65536):
                self._shown += data

    @property
    def shown(self) -> str:
        return self._shown.decode("utf-8", "replace")

    def write(self, text: str) -> None:
        data = text.encode()
        while data:
            select.select([], [self._terminal], [], BOUND_S)
            data = data[os.write(self._terminal, data[:512]) :]

    def enter(self, text: str) -> None:
        """Type what takes more lines than one, or a line."""
        self.write(f"{text}\n")

    def wait(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, self.shown
            return condition()

        try:
            wait_until(holds, BOUND_S)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}; this is shown:\n{self.shown}")

    def printed_by(self, code: str, mark: str) -> str:
        """Run code and return what it prints. The mark tells it from what was printed before."""
        before = self._text()
        self.enter(f"{code}\nprint('=== ' + '{mark}')")
        self.wait(lambda: f"=== {mark}\n" in self._text())
        return self._text().removeprefix(before).removesuffix(f"=== {mark}\n")

    def _text(self) -> str:
        return self._printed.read_text("utf-8") if self._printed.exists() else ""

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_S)
        self._read.join(BOUND_S)
        os.close(self._terminal)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(PAGE, tmp_path)
    return tmp_path


class PastingPrompt(Prompt):
    """The same with text that is pasted, as soon as the program has asked for that."""

    prompts = 0

    def enter(self, text: str) -> None:
        self.wait(lambda: self.shown.count(PASTE_ON) > self.prompts)
        self.prompts = self.shown.count(PASTE_ON)
        shown = len(self.shown)
        self.write(f"{PASTE_BEGINS}{text}{PASTE_ENDS}")
        self.wait(lambda: text.splitlines()[-1] in self.shown[shown:])
        self.write("\n\n" if "\n" in text else "\n")  # an empty line ends what has several


def follow(prompt: Prompt, page: list[Block] = PAGE) -> None:
    prompt.enter("import sys; sys.stdout = open('printed', 'w', buffering=1)")
    for number, (block, expected) in enumerate(steps(page)):
        got = prompt.printed_by(block.text, f"step {number}")
        assert prints(expected, got), f"line {block.line}: {got}\n{prompt.shown}"
    prompt.enter("exit()")
    assert prompt.process.wait(BOUND_S) == 0
    assert "Traceback" not in prompt.shown


class TestPrompts:
    @pytest.mark.core
    def test_it_can_be_typed_into_this_python(self, folder: Path) -> None:
        with contextlib.closing(Prompt(sys.executable, folder, "dumb")) as prompt:
            follow(prompt)

    def test_it_and_the_readme_can_be_typed_into_the_oldest_python(self, folder: Path) -> None:
        with contextlib.closing(Prompt(find_python("3.10"), folder, "dumb")) as prompt:
            follow(prompt, [*PAGE, *read(ROOT / "README.txt")])

    @pytest.mark.parametrize("version", ["3.13", pytest.param("3.15", marks=pytest.mark.core)])
    def test_it_can_be_pasted_into_a_prompt_that_edits_lines(
        self, version: str, folder: Path
    ) -> None:
        with contextlib.closing(PastingPrompt(find_python(version), folder, "xterm")) as prompt:
            follow(prompt)


class TestNotebook:
    @pytest.mark.parametrize("name", ["tutorial", "notebooks"])
    def test_its_cells_print_what_the_page_shows(self, name: str, folder: Path) -> None:
        page = read(ROOT / "doc" / f"{name}.rst")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
        lines_of = re.compile(r"(?m)^(?!\.\.\.$|[ ~^]*$).*")  # "..." may stand for no line
        cells = [(block.text, len(lines_of.findall(expected))) for block, expected in steps(page)]
        run = subprocess.run(
            [sys.executable, str(ROOT / "testing" / "kit" / "cells.py")],
            input=json.dumps(cells), cwd=folder, env=env,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        if run.returncode == 3:
            missing("no Jupyter here: install ipykernel")
        assert run.returncode == 0, run.stderr
        for (block, expected), got in zip(steps(page), json.loads(run.stdout), strict=True):
            assert prints(expected, got), f"line {block.line}: {got}"
