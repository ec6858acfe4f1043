"""Has every import be lazy where EXECNET_TEST_LAZY_IMPORTS is set; needs CPython 3.15.

That holds for this package in the tests' own process and for all programs that they start. It
is set neither for pytest, whose import hook does not get along with it, nor for test files. It
has to be imported before ``execnet`` is.
"""

from __future__ import annotations

import os
import sys

ASKED = "EXECNET_TEST_LAZY_IMPORTS"
VARIABLE = "PYTHON_LAZY_IMPORTS"  # Python's own


def of_execnet(importer: str, name: str, fromlist: tuple[str, ...] | None) -> bool:
    """Whether an import is to be lazy; Python asks for each."""
    return importer.partition(".")[0] == "execnet"


if os.environ.get(ASKED):
    os.environ[VARIABLE] = "all"
    sys.set_lazy_imports_filter(of_execnet)  # type: ignore[attr-defined]
    sys.set_lazy_imports("all")  # type: ignore[attr-defined]
