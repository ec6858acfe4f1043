"""What ``doc/`` says of specs: each key, each example, each command that is shown.

Commands are in blocks with the caption "What is run for SPEC".  Examples of other kinds are run
by ``test_documentation.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from pages import PAGES, Block, read
from tools import ROOT

from execnet import XSpec
from execnet._specs import KEYS, Settings
from execnet._transports import table

CAPTION = "What is run for "
ROW = re.compile(r"^   \* - (.*)\n((?:(?:     .*)?\n)*)", re.M)
KEY = re.compile(r"``([\w:]+)``$")


def commands() -> dict[str, Block]:
    """Return the blocks that show a command, by where they are."""
    return {
        f"{page.name}:{block.line}": block
        for page in PAGES
        for block in read(page)
        if block.caption.startswith(CAPTION)
    }


def spec_of(block: Block) -> XSpec:
    return XSpec(block.caption.removeprefix(CAPTION))


def rows() -> dict[str, list[str]]:
    """Return the cells after each key of the table of ``specs.rst``."""
    page = (ROOT / "doc" / "specs.rst").read_text("utf-8")
    found = {}
    for first, others in ROW.findall(page):
        if key := KEY.match(first):
            assert key[1] not in found, f"two rows for {key[1]}"
            found[key[1]] = [
                " ".join(cell.split()) for cell in re.split(r"(?m)^     -", others)[1:]
            ]
    return found


def plain(cell: str) -> str:
    """Return what a cell says without its markup."""
    return re.sub(r":doc:`(\w+)`", r"\1", cell).replace("``", "")


def specs_in_text() -> Iterator[str]:
    """Yield what pages show in running text as a spec with a value."""
    types = "|".join([*table.TRANSPORTS, *table.CONNECTED])
    for page in PAGES:
        for text in re.findall(rf"``((?:{types})=[^`]+)``", page.read_text("utf-8")):
            if "=HOST" not in text and "=NAME" not in text and "..." not in text:
                yield text


class TestCommands:
    @pytest.mark.parametrize("place", commands())
    def test_one_that_is_shown_is_what_is_run(self, place: str) -> None:
        block = commands()[place]
        Settings(spec_of(block))
        shown = shlex.split(re.sub(r" \\\n *", " ", block.text))
        assert shown == table.command(spec_of(block), "python3")

    def test_there_is_one_for_each_type_that_runs_one(self) -> None:
        shown = {table.transport_of(spec_of(block)).key for block in commands().values()}
        assert shown == {*table.TRANSPORTS}


class TestKeys:
    def test_each_one_that_a_spec_may_have_has_a_row(self) -> None:
        assert list(KEYS) == list(rows())

    @pytest.mark.parametrize("key", rows())
    def test_a_row_says_what_the_table_in_the_code_says(self, key: str) -> None:
        where, meaning, default, _ = (plain(cell) for cell in rows()[key])
        row = KEYS[key]
        if key in row.types:
            assert where == "is a type"
        else:
            assert where.startswith(", ".join(row.types) or "all")
            assert row.needs in where
        assert meaning.startswith(row.meaning.rstrip("."))
        assert default == row.default

    @pytest.mark.parametrize("key", rows())
    def test_the_example_of_a_row_has_the_key_and_is_valid(self, key: str) -> None:
        cells = rows()[key]
        assert len(cells) == 4
        example = re.fullmatch(r"``(.+)``", cells[-1])
        assert example
        spec = XSpec(example[1])
        Settings(spec)
        assert spec.env if key == "env:NAME" else getattr(spec, key) is not None

    def test_the_types_are_the_rows_that_say_so(self) -> None:
        types = {key for key, row in KEYS.items() if key in row.types}
        assert types == {*table.TRANSPORTS, *table.CONNECTED}
        assert {type for row in KEYS.values() for type in row.types} == types

    def test_each_value_can_be_had_from_its_example(self) -> None:
        for key, cells in rows().items():
            spec = XSpec(cells[-1].strip("`"))
            value = spec.env["LANG"] if key == "env:NAME" else getattr(spec, key)
            assert value is True or KEYS[key].parse(value) is not None


class TestRunningText:
    @pytest.mark.parametrize("text", sorted(set(specs_in_text())))
    def test_a_spec_that_is_mentioned_is_valid(self, text: str) -> None:
        Settings(XSpec(text))
