"""A package of 200 modules that a worker does not have, and a link to it that takes long."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

RELAY = Path(__file__).resolve().parents[2] / "testing" / "kit" / "relay.py"
DELAY_S = 0.1  # each way
PACKAGES = 10
MODULES = 19  # in each of them, beside itself
NAME = "two_hundred_modules"
MODULE = '''"""Module {number} of many."""

import os
import re


class Thing{number}:
    """Something with a method or two."""

    def __init__(self, value: int = 1) -> None:
        self.value = value

    def words(self, text: str) -> list[str]:
        return re.findall(r"[a-z]+", text) + [os.sep] * self.value


VALUE = Thing{number}().value
'''


@contextmanager
def modules_and_slow_python() -> Iterator[tuple[Callable[[], int], str]]:
    """Yield a function that imports all modules and returns their number, and an interpreter.

    That is a program that runs this Python, 100 ms away in each direction.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_tree(Path(folder))
        sys.path.insert(0, folder)
        words = [sys.executable, str(RELAY), "--delay", str(DELAY_S), "--", sys.executable]
        python = Path(folder, "python")
        python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        python.chmod(0o755)
        os.environ.pop("PYTHONPATH", None)
        yield importlib.import_module(f"{NAME}.everything").count, str(python)


def _write_tree(folder: Path) -> None:
    imports, values = [], []
    for package in range(PACKAGES):
        path = folder / NAME / f"package{package}"
        path.mkdir(parents=True)
        path.joinpath("__init__.py").write_text("")
        for number in range(MODULES):
            path.joinpath(f"module{number}.py").write_text(MODULE.format(number=number))
            imports.append(f"from .package{package} import module{number} as m{package}_{number}")
            values.append(f"m{package}_{number}.VALUE")
    folder.joinpath(NAME, "__init__.py").write_text("")
    text = "\n".join([*imports, "", "", "def count():", f"    return {' + '.join(values)}", ""])
    folder.joinpath(NAME, "everything.py").write_text(text)


def first_call_ms(call: Callable[[Any], object], function: Callable[[], int]) -> float:
    """Return how long the first call of a new worker takes, which imports the modules there."""
    started = perf_counter()
    found = call(function)
    taken_s = perf_counter() - started
    if found != PACKAGES * MODULES:
        raise ValueError(f"{found} modules were imported")
    return 1e3 * taken_s
