"""Sphinx configuration; ``tox -e docs`` builds the pages with warnings as errors."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent))

import execnet  # the checkout's, also where another one is installed

project = "execnet"
author = "the execnet authors"
project_copyright = author
version = release = execnet.__version__

extensions = [
    *("sphinx.ext.autodoc", "sphinx_copybutton", "sphinxcontrib.svgbob"),
    *("checked_links", "linked_names"),
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"execnet {version}"
html_static_path = ["_static"]
html_css_files = ["execnet.css"]
copybutton_prompt_text = r"\$ |> "  # what follows a prompt is copied, what a command prints is not
copybutton_prompt_is_regexp = True
autodoc_default_options = {"show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"

DRAWN = re.compile(r"(?<!\w)-+(?!\w)|[^\w\s.,:()'\"/-]+|-{2,}")
RAISES = re.compile(r"^(Raises|Returns?) ")


def arrange_arguments(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]):
    """Make paragraphs of what docstrings say as ``argument: what it is`` and ``Raises ...``.

    Such a part begins a line, or follows the one before it after two spaces; the rest of a long
    one may be indented.
    """
    try:
        parameters = list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):  # a property, or an exception without an ``__init__``
        parameters = []
    name = "|".join(parameters) or "(?!)"
    argument = re.compile(rf"(?:^|(?<=\S)  )((?:{name})(?:, (?:{name}))*): ")
    joined = re.sub(rf"(?m)^((?:{name})(?:, (?:{name}))*,)\n +", r"\1 ", "\n".join(lines))
    arranged: list[str] = []
    follows = False  # whether an indented line goes on with a part
    for line in joined.split("\n"):
        starts = bool(argument.match(line) or RAISES.match(line))
        follows = starts or (follows and line.startswith(" "))
        text = argument.sub(r"\n\n**\1**: ", line.strip() if follows else line)
        arranged += ["", *text.splitlines()] if starts else text.splitlines() or [""]
    lines[:] = arranged


def tell_diagrams(app: Any, doctree: Any) -> None:
    """Give each diagram its words as the text that stands in for it, without its lines."""
    for image in doctree.findall(lambda node: "svgbob" in getattr(node, "attributes", {})):
        words = re.split(r"\s{2,}|\n", DRAWN.sub("  ", image["alt"]).replace('"', "  "))
        image["alt"] = "Diagram: " + "; ".join(
            word.strip(" ,:'") for word in words if re.search(r"\w\w", word)
        )


def setup(app: Any) -> None:
    app.connect("doctree-read", tell_diagrams)
    app.connect("autodoc-process-docstring", arrange_arguments)
