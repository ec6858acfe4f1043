"""Sphinx extension: each link inside the built pages leads to a page and a place that are there.

One that does not is a warning, which fails the build, and so is whatever a page would load from
another site. Links to other sites are followed by ``tox -e links``, as that needs a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places of a page that links can lead to, and where its own lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places = {"", "top"}
        self.links: set[str] = set()
        self.loaded: set[str] = set()  # without anybody who follows a link
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if not value:
                continue
            if name == "id":
                self.places.add(value)
            elif name == "src" or (name == "href" and tag == "link"):
                self.loaded.add(value)
            elif name == "href":
                self.links.add(value)


def faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the links of the pages in a folder."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(folder.glob("*.html"))}
    for path, page in pages.items():
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            target = folder / unquote(parts.path) if parts.path else path
            if parts.netloc and link in page.loaded:
                yield f"{path.name} loads {link}"
            elif parts.scheme or parts.netloc:
                continue
            elif not target.exists():
                yield f"{path.name}: there is no {link}"
            elif target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{path.name}: {target.name} has no #{parts.fragment}"


def warn(app: Any, exception: Exception | None) -> None:
    from sphinx.util import logging

    if exception is None and app.builder.name == "html":
        for fault in faults(Path(app.outdir)):
            logging.getLogger(__name__).warning("%s", fault)


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", warn)
    return {"parallel_read_safe": True}
