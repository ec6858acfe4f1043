"""Every example in ``doc/`` and the README is run, and what it is said to print is compared.

The Python blocks of a page are one program, in their order. A block with a ``:caption:`` that
ends in ``.py`` is a file beside that program; one with the caption "Output", or in the README,
where there are no captions, of the class "output", is what the program prints. In a ``console``
block the lines after ``$`` are run by a shell. A page with blocks that are "A cell" is followed
by ``test_tutorial.py``. "..." stands for any text. What ssh, docker and
others would run elsewhere is run here, by ``STAND_IN``. Start at ``blocks_in``.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, Block, blocks_in, prints, read, write_files
from services import script
from tools import ROOT, interpreters, missing

pytestmark = pytest.mark.usefixtures("programs")

LANGUAGES = {"python", "console", "sh", "text"}


# The commands that examples use, whatever is or is not installed under these names.
SHELL_COMMANDS = """\
python3() { "$PYTHON" "$@"; }
execnet() { "$PYTHON" -m execnet "$@"; }
"""


def program_of(blocks: list[Block]) -> str:
    """Join the Python blocks; each line keeps its number on the page, for tracebacks."""
    program = ""
    for block in blocks:
        if block.language == "python" and not block.caption:
            program += "\n" * (block.line - 1 - program.count("\n")) + block.text
    return program


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def provide_python2(folder: Path) -> None:
    """Make ``python2.7`` a program, for pages that run it."""
    for python in interpreters():
        if python.meets("2.7"):
            script(folder / "python2.7", f'exec {shlex.quote(python.path)} "$@"')
            return
    missing("no Python 2.7 here")


def pages_with(language: str) -> list[object]:
    """Return the pages that can be followed so; those with cells are followed in a notebook."""
    return [
        pytest.param(page, id=page.name)
        for page in PAGES
        if any(block.language == language for block in read(page))
        and not any(block.caption == "A cell" for block in read(page))
    ]


class TestExamples:
    @pytest.mark.parametrize("page", pages_with("python"))
    def test_the_python_of_a_page_runs_and_prints_what_it_says(
        self, page: Path, tmp_path: Path, programs: Path
    ) -> None:
        blocks = read(page)
        write_files(blocks, tmp_path)
        if "python2.7" in program_of(blocks):
            provide_python2(programs)
        program = tmp_path / f"{page.stem}_page.py"
        program.write_text(program_of(blocks), "utf-8")
        result = run([sys.executable, "-W", "error", str(program)], tmp_path)
        assert result.stderr == ""
        assert result.returncode == 0
        expected = "".join(b.text for b in blocks if (b.language, b.caption) == ("text", "Output"))
        if not prints(expected, result.stdout):
            assert result.stdout == expected

    @pytest.mark.parametrize("page", pages_with("console"))
    def test_the_commands_of_a_page_print_what_it_says(self, page: Path, tmp_path: Path) -> None:
        write_files(read(page), tmp_path)
        for block in read(page):
            if block.language == "console":
                self.check_session(block, tmp_path)

    def check_session(self, block: Block, folder: Path) -> None:
        commands, expected = "", ""
        for line in block.text.splitlines(keepends=True):
            if line.startswith(("$ ", "> ")):
                commands += line[2:]
            else:
                expected += line
        result = run(["bash", "-c", f"{SHELL_COMMANDS}exec 2>&1\n{commands}"], folder)
        if not prints(expected, result.stdout):
            assert result.stdout == expected, f"line {block.line}"

    def test_the_examples_in_docstrings_hold(self) -> None:
        for path in sorted((ROOT / "execnet").glob("*.py")):
            if ">>>" in path.read_text("utf-8"):
                module = importlib.import_module(f"execnet.{path.stem}")
                assert doctest.testmod(module).failed == 0, path.name


class TestReadme:
    def test_its_first_command_runs_the_main_job_from_a_clone(self) -> None:
        first, _ = self.commands()
        result = run(["bash", "-c", f"{SHELL_COMMANDS}{first}"], ROOT)
        assert result.stderr == ""
        assert result.returncode == 0
        lines = sorted(result.stdout.splitlines())
        assert [line.split()[0] for line in lines] == ["[gw0]", "[gw1]", "[gw2]"]
        assert len(set(lines)) == 3

    def test_its_second_command_is_the_one_line_that_ci_takes_out_of_it(self) -> None:
        _, second = self.commands()
        assert second.startswith("python3 -m venv ")
        found = re.findall(r"^ *(python3 -m venv .*)$", (ROOT / "README.txt").read_text(), re.M)
        assert found == [second]
        assert r"\(python3 -m venv .*\)" in (ROOT / ".ci" / "run").read_text()

    def test_its_example_is_short_and_can_be_piped(self) -> None:
        example, output = (b for b in read(ROOT / "README.txt") if b.language in ("python", "text"))
        assert len(example.text.splitlines()) <= 10
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        piped = subprocess.run(
            [sys.executable],
            input=example.text,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (piped.stdout, piped.stderr) == (output.text, "")

    def commands(self) -> list[str]:
        shell = [block.text for block in read(ROOT / "README.txt") if block.language == "sh"]
        return "".join(shell).splitlines()


class TestDiagrams:
    def test_no_text_is_cut_off(self) -> None:
        """What is in quotes does not widen a drawing, so it has to end within what is drawn."""
        cut = []
        for page in PAGES:
            for diagram in re.findall(r"\.\. svgbob::\n((?:\n| .*\n)+)", page.read_text("utf-8")):
                lines = diagram.rstrip().split("\n")
                drawn = [re.sub('"[^"]*"', lambda text: " " * len(text[0]), line) for line in lines]
                width = max(len(line.rstrip()) for line in drawn)
                cut += [line for line in lines if len(line.rstrip()) > width]
                cut += [lines[-1]] if not drawn[-1].strip() else []
        assert cut == []


class TestTheReader:
    """Examples are checked only if they are found."""

    def test_each_block_is_in_a_language_that_is_checked(self) -> None:
        for page in PAGES:
            for block in read(page):
                assert block.language in LANGUAGES, f"{page.name}:{block.line}"

    def test_no_code_hides_in_other_kinds_of_blocks(self) -> None:
        for page in PAGES:
            shown = {  # what a terminal shows may have Python's prompt in it
                block.line + number
                for block in read(page)
                for number in range(block.text.count("\n"))
            }
            for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
                literal = line.rstrip().endswith("::") and not line.lstrip().startswith("..")
                hidden = literal or (line.lstrip().startswith(">>>") and number not in shown)
                assert not hidden, f"{page.name}:{number} is never run: use code-block"

    def test_a_block_ends_where_its_indentation_does(self) -> None:
        page = "a\n\n.. code-block:: python\n   :caption: x.py\n\n   if a:\n\n       b\n\nc\n"
        assert list(blocks_in(page)) == [Block("python", "x.py", 6, "if a:\n\n    b\n")]

    def test_a_program_keeps_the_line_numbers_of_its_page(self) -> None:
        page = ".. code-block:: python\n\n   a\n\n.. code-block:: python\n\n   b\n"
        assert program_of(list(blocks_in(page))) == "\n\na\n\n\n\nb\n"

    def test_dots_stand_for_any_text_and_nothing_else_does(self) -> None:
        assert prints("pid ...\n", "pid 12\n")
        assert not prints("pid 11\n", "pid 12\n")
        assert not prints("", "pid 12\n")

    def test_marks_below_a_line_of_a_traceback_differ_between_pythons(self) -> None:
        assert prints("    a / b\nError\n", "    a / b\n    ~~^~~\nError\n\n")
