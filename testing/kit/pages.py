"""The pages of the documentation, the code blocks in them, and what those need to run."""

from __future__ import annotations

import doctest
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from services import script
from tools import ROOT

PAGES = sorted([*(ROOT / "doc").glob("*.rst"), ROOT / "README.txt"])
DIRECTIVE = re.compile(r"^( *)\.\. code-block:: (\S+)$")
OPTION = re.compile(r"^ +:(\w+): (.*)$")


class Block(NamedTuple):
    """A code block; ``line`` is the number of its first line of code, counted from 1."""

    language: str
    caption: str
    line: int
    text: str


def blocks_in(page: str) -> Iterator[Block]:
    """Yield the code blocks of a page in reStructuredText."""
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if not (directive := DIRECTIVE.match(line)):
            continue
        indent, start, options = len(directive[1]), number + 1, {}
        while start < len(lines) and (option := OPTION.match(lines[start])):
            options[option[1]] = option[2]
            start += 1
        while start < len(lines) and not lines[start].strip():
            start += 1
        end = start
        while end < len(lines) and (
            not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent
        ):
            end += 1
        text = textwrap.dedent("\n".join(lines[start:end])).rstrip() + "\n"
        caption = options.get("caption", options.get("class", "").title())
        yield Block(directive[2], caption, start + 1, text)


def read(page: Path) -> list[Block]:
    return list(blocks_in(page.read_text("utf-8")))


def prints(expected: str, got: str) -> bool:
    """Whether `got` is what is expected, but for empty lines and a traceback's marks."""
    expected, got = (re.sub(r"(?m)^[ ~^]*\n", "", text) for text in (expected, got))
    return doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS)


ENTRY_POINTS = re.compile(r'\[project\.entry-points\."(.+)"\]\n((?:.+\n)+)')


def write_files(blocks: list[Block], folder: Path) -> None:
    """Write the files of a page; entry points of its ``pyproject.toml`` are as if installed."""
    for block in blocks:
        if block.caption.endswith(".py"):
            path = folder / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.caption == "pyproject.toml" and (points := ENTRY_POINTS.search(block.text)):
            info = folder / "page-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 1.0\n")
            lines = points[2].replace('"', "")
            (info / "entry_points.txt").write_text(f"[{points[1]}]\n{lines}")


# Is ssh, docker, ...: runs the command that stands behind the options.
STAND_IN = """\
for last; do :; done
case "$last" in "sh -c "* | python*" -c "*) exec sh -c "exec $last"; esac
while [ $# -gt 0 ]; do
    case "$1" in sh | python*) exec "$@"; esac
    shift
done
echo "$0: no command" >&2
exit 1
"""
STOOD_IN = ("ssh", "docker", "podman", "sudo", "srun")


def stand_in(folder: Path) -> None:
    """Write the programs that pages run and no machine has to have."""
    for name in STOOD_IN:
        script(folder / name, STAND_IN)
