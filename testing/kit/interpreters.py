"""The Pythons of this machine that workers are tested on; start at ``found``.

``python -m interpreters`` lists them, with ``--require 2.7,3.13,pypy`` it fails where one is
missing.  Needs the standard library only.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Commands or paths, separated as in PATH. Each has to run; nothing else is preferred to them.
DEMANDED = "EXECNET_TEST_PYTHONS"
# Versions, separated by commas, that have to be among those that were found.
REQUIRED = "EXECNET_TEST_REQUIRE_PYTHONS"
# What is long or repeats another case runs only in a thorough run, as with ``.ci/run --all``.
IS_THOROUGH = os.environ.get("EXECNET_TEST_THOROUGH") == "yes"
# What was found, for the processes that this one starts: all test the same, and look once.
FOUND = "EXECNET_TEST_FOUND_PYTHONS"

PROBE_TIMEOUT_S = 30
_NAMES = re.compile(r"(python(2\.7|3\.([6-9]|[1-9]\d))|pypy(3(\.\d+)?)?)(\.exe)?")
_PROBE = """
import sys
kind = "pypy" if hasattr(sys, "pypy_version_info") else "cpython"
print("%d %d %d %s %s" % (tuple(sys.version_info[:3]) + (kind, sys.executable)))
"""


class Interpreter(NamedTuple):
    """A Python; ``implementation`` is "cpython" or "pypy"."""

    version: tuple[int, int, int]
    implementation: str
    path: str

    def __str__(self) -> str:
        return f"{self.implementation}{self.version[0]}.{self.version[1]}"

    @property
    def spec(self) -> str:
        """The gateway specification of a worker on it."""
        return f"popen//python={shlex.quote(self.path)}"

    def meets(self, wanted: str) -> bool:
        """Whether it is what "3.13", "pypy" or "pypy3.10" asks for."""
        name = str(self)
        return wanted in (name, name.removeprefix("cpython"), self.implementation)


class NoPythonError(Exception):
    """What was demanded is no Python that runs."""


@functools.cache
def found() -> tuple[Interpreter, ...]:
    """Return the Pythons, one for each implementation and minor version, the oldest first.

    Which one it is: what EXECNET_TEST_PYTHONS names comes first, then the PATH, then pyenv's
    newest, then the one that runs the tests.  ``NoPythonError`` for what is named and does
    not run.
    """
    told = os.environ.get(FOUND)
    if told is not None:
        return tuple(
            Interpreter(tuple(version), kind, path) for version, kind, path in json.loads(told)
        )
    pythons = search()
    os.environ[FOUND] = json.dumps(pythons)
    return pythons


def chosen() -> tuple[Interpreter, ...]:
    """Return those that most tests run on, the oldest first.

    These are the oldest and the newest one of each implementation and major version. In a thorough
    run, or where EXECNET_TEST_PYTHONS names some, they are all that ``found`` returns.
    """
    if IS_THOROUGH or os.environ.get(DEMANDED):
        return found()
    oldest: dict[tuple[str, int], Interpreter] = {}
    newest: dict[tuple[str, int], Interpreter] = {}
    for python in found():
        kind = python.implementation, python.version[0]
        oldest.setdefault(kind, python)
        newest[kind] = python
    return tuple(sorted({*oldest.values(), *newest.values()}))


def far_sides() -> list[Interpreter]:
    """Return those that a feature's far side is tested on: the two oldest ones and the newest."""
    return sorted({*found()[:2], found()[-1]})


def search() -> tuple[Interpreter, ...]:
    """Look for the Pythons again."""
    demanded = [word for word in os.environ.get(DEMANDED, "").split(os.pathsep) if word]
    commands = [*demanded, *_in_path(), *_in_pyenv(), sys.executable]
    probes = {command: _start_probe(command) for command in dict.fromkeys(commands)}
    # Every process is ended before one that is wrong is told of.
    results = {command: _finish_probe(probe) for command, probe in probes.items()}
    pythons: dict[str, Interpreter] = {}
    for command, python in results.items():
        if python is not None:
            pythons.setdefault(str(python), python)
        elif command in demanded:
            raise NoPythonError(f"{DEMANDED} has {command!r}, which is no Python that runs")
    return tuple(sorted(pythons.values()))


def missing_of(required: str) -> list[str]:
    """Return those versions of a list like "2.7,3.13,pypy" that were not found."""
    wanted = [word.strip() for word in required.split(",") if word.strip()]
    return [word for word in wanted if not any(python.meets(word) for python in found())]


def _pyenv_root() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


def _in_pyenv() -> list[str]:
    def newest_first(path: Path) -> list[int]:
        return [-int(number) for number in re.findall(r"\d+", path.parent.parent.name)]

    return [
        str(path) for path in sorted(_pyenv_root().glob("versions/*/bin/python"), key=newest_first)
    ]


def _in_path() -> Iterator[str]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # pyenv's own commands there are shell scripts for what ``_in_pyenv`` gives anyway.
        if folder and os.path.isdir(folder) and not Path(folder).is_relative_to(_pyenv_root()):
            for name in sorted(os.listdir(folder)):
                if _NAMES.fullmatch(name):
                    yield os.path.join(folder, name)


def _start_probe(command: str) -> subprocess.Popen[str] | None:
    path = shutil.which(command)
    if path is None:
        return None
    try:
        return subprocess.Popen(
            [path, "-E", "-S", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return None


def _finish_probe(probe: subprocess.Popen[str] | None) -> Interpreter | None:
    if probe is None:
        return None
    try:
        output, _ = probe.communicate(timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        return None
    answer = re.fullmatch(r"(\d+) (\d+) (\d+) (cpython|pypy) (.+)\n", output)
    if probe.returncode != 0 or answer is None:
        return None
    major, minor, micro, implementation, path = answer.groups()
    return Interpreter((int(major), int(minor), int(micro)), implementation, path)


def main(arguments: list[str] | None = None) -> int:
    """List the Pythons; return 1 where a required one is missing."""
    parser = argparse.ArgumentParser(prog="interpreters", description=__doc__)
    parser.add_argument("--require", default="", metavar="VERSIONS", help="such as 2.7,3.13,pypy")
    options = parser.parse_args(arguments)
    for python in found():
        print(f"{python!s:12} {'.'.join(map(str, python.version)):8} {python.path}")
    absent = missing_of(options.require)
    if absent:
        print(f"missing: {', '.join(absent)}; {DEMANDED} may name them", file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
