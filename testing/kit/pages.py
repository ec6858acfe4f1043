"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
