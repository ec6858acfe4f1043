"""The build of the documentation sees links that lead nowhere; ``doc/checked_links.py`` does it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tools import ROOT

SPEC = importlib.util.spec_from_file_location("checked_links", ROOT / "doc" / "checked_links.py")
assert SPEC is not None
assert SPEC.loader is not None
checked_links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checked_links)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#here">', None),
        ('<a href="#own"><p id="own">', None),
        ('<a href="https://example.invalid/">', None),
        ('<img src="picture.svg">', "a.html: there is no picture.svg"),
        ('<a href="c.html">', "a.html: there is no c.html"),
        ('<a href="b.html#there">', "a.html: b.html has no #there"),
        ('<a href="#nowhere">', "a.html: a.html has no #nowhere"),
        ('<script src="//cdn.invalid/x.js">', "a.html loads //cdn.invalid/x.js"),
        ('<link href="https://cdn.invalid/x.css">', "a.html loads https://cdn.invalid/x.css"),
    ],
)
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, body: str, fault: str | None) -> None:
    (tmp_path / "a.html").write_text(f"<h1>a</h1>{body}", "utf-8")
    (tmp_path / "b.html").write_text('<p id="here">', "utf-8")
    assert list(checked_links.faults(tmp_path)) == ([] if fault is None else [fault])
