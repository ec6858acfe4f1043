"""Words that the documentation, messages and docstrings do without.

Each was in use here and made a sentence hard to read for whoever was not at home in it. The list is
short on purpose: a pattern belongs on it if it is wrong wherever it stands.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools import ROOT

PAGES = [*(ROOT / "doc").glob("*.rst"), *(ROOT / name for name in ("README.txt", "SECURITY.md"))]
SOURCES = [*(ROOT / "execnet").rglob("*.py")]

INSTEAD = {
    r"is to be had": "there is",
    r"gone via": "went through",
    r"one's own": "your own",
    r"one likes": "you like",
    r"for want of": "without",
    r"to be thought of": "you have to think of",
    r"behind the marker": "after the marker",
    r"as ever": "as always, as usual",
    r"as little as can be": "as little as possible",
    r"whoever's": "name whose it is",
    r"there is no \w+ to be": "say what is missing",
    r"nor does it have to": "and it does not have to",
    r"at the most": "at most",
    r"for nobody": "nobody needs it",
    r"shall": "should, must, will",
}


def odd_words(text: str) -> list[str]:
    """Return the line and the pattern of what should be said in another way."""
    found = []
    for pattern, instead in INSTEAD.items():
        for match in re.finditer(rf"\b{pattern}\b".replace(" ", r"\s+(?:#\s+)?"), text, re.I):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"line {line}: {match[0]!r}, better: {instead}")
    return found


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: path.name)
def test_a_page_does_without_odd_words(path: Path) -> None:
    assert odd_words(path.read_text("utf-8")) == []


def test_messages_and_docstrings_do_without_them() -> None:
    odd = {path.name: odd_words(path.read_text("utf-8")) for path in SOURCES}
    assert {name: words for name, words in odd.items() if words} == {}


def test_a_phrase_is_found_across_lines() -> None:
    assert odd_words("as\n# ever") == ["line 1: 'as\\n# ever', better: as always, as usual"]
