"""Makes a layer: a folder of packages for the path of one gateway's worker.

A layer is made like an environment, and never changes either; only its place differs.  One for an
environment has the project, and of what that needs only what the environment lacks.
This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import io
import json
import os
import re

from .build import Build, make, written
from .commands import Failure
from .places import PRIVATE, newest, text_of
from .tools import INSTALLED, Environment, NotHere, Rung, find_program, install_wheels, options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...gateway_base import Channel
    from .places import Found

    Missing = tuple[str, str | None, str | None]  # name, version, its own address


def main(channel: Channel) -> None:
    """Make the layer of one request."""
    make(channel, LayerBuild)


REPORTING_PIP = 22, 2  # the first that tells what it would install
NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
VERSION = re.compile(r"[A-Za-z0-9.!+_-]+\Z")
URL = re.compile(r"\S+\Z")
# What uv says it would install: a version or, in one of two ways, where it comes from.
UV_COUNT = re.compile(r"Would install (\d+) ")
UV_LINE = re.compile(r" \+ ([^\s=@]+)(?:==(\S+))?(?: (?:@ |\(from )([^\s)]+)\)?)?\Z")


class Folder(Environment):
    """A folder of packages, for the interpreter that runs this.

    leaves_out: whether what the interpreter's environment has is left out.  project: the
    normalized name of what is installed in any case.
    """

    def __init__(self, path: str, interpreter: str, *more: Any) -> None:
        Environment.__init__(self, path, interpreter, *more)
        self.python = interpreter
        self.leaves_out = False
        self.project = ""

    def packages(self) -> str:
        """Return the folder itself."""
        return self.path

    def with_missing(
        self, requirements: str | None, missing: list[Missing]
    ) -> str | None:  # fmt: skip
        """Return the path of a file with the requirements and what else is missing.

        missing: (name, version or None, its own address or None) for each distribution.
        """
        lines = []
        if requirements is not None:
            with io.open(requirements, encoding="utf-8") as file:
                lines = file.read().splitlines()
        for name, version, url in missing:
            if not (NAME.match(name) and (URL.match(url) if url else VERSION.match(version or ""))):
                text = u"not a distribution: %r %r" % (name, url or version)
                raise Failure(text, self.commands.step)
            if re.sub(r"[-_.]+", u"-", name).lower() != self.project:
                lines.append(u"%s @ %s" % (name, url) if url else u"%s==%s" % (name, version))
        return written(self.temporary, "missing.txt", lines, "")


class LayerUv(Rung):
    """``uv``, if it is installed."""

    environment: Folder

    def create(self) -> None:
        uv = find_program("uv")
        if uv is None or self.environment.version < (3, 8):
            raise NotHere("it is not installed, or does not support this Python")
        self._uv = uv

    def install(self, requirements: str | None, constraints: str | None) -> None:
        environment = self.environment
        words = [self._uv, "pip", "install", "--python", environment.python]
        words += ["--index-strategy", "unsafe-best-match"]
        variables = dict(self.variables)
        if variables.pop("UV_NO_INDEX", None):
            words.append("--no-index")
        into = ["--target", environment.path]
        if environment.leaves_out:
            asked = words + ["--dry-run"] + options_of(requirements, constraints)
            missing = missing_of_uv(environment.run(asked, **variables))
            if missing is not None:
                into.append("--no-deps")
                requirements = environment.with_missing(requirements, missing)
        environment.run(words + into + options_of(requirements, constraints), **variables)


def missing_of_uv(lines: list[str]) -> list[Missing] | None:
    """Return what uv would install, None if that can't be read from what it said."""
    matches = [match for match in map(UV_LINE.match, lines) if match]
    found = [
        (match.group(1), match.group(2), match.group(3))
        for match in matches
        if match.group(2) or match.group(3)
    ]
    counts = [int(match.group(1)) for match in map(UV_COUNT.match, lines) if match]
    return found if counts == [len(found)] or not (counts or found) else None


class LayerPip(Rung):
    """The pip that the interpreter has."""

    environment: Folder

    def create(self) -> None:
        environment = self.environment
        try:
            environment.commands.begin(u"looking for pip")
            environment.run([environment.python, "-m", "pip", "--version"])
        except Failure:
            raise NotHere("this Python has no pip")

    def install(self, requirements: str | None, constraints: str | None) -> None:
        environment = self.environment
        words = self.pip() + ["install", "--target", environment.path]
        if environment.leaves_out and self._reports():
            missing = self._missing(requirements, constraints)
            requirements = environment.with_missing(requirements, missing)
            words.append("--no-deps")
        variables = dict(self.variables, PYTHONDONTWRITEBYTECODE="")
        environment.run(words + options_of(requirements, constraints), **variables)

    def _reports(self) -> bool:
        """Whether this pip is new enough to tell what it would install."""
        said = u" ".join(self.environment.run(self.pip() + ["--version"]))
        match = re.match(r"pip (\d+)\.(\d+)", said)
        return match is not None and (int(match.group(1)), int(match.group(2))) >= REPORTING_PIP

    def _missing(
        self, requirements: str | None, constraints: str | None
    ) -> list[Missing]:  # fmt: skip
        """Return what pip would install into the environment."""
        environment = self.environment
        environment.commands.begin(u"looking for what the environment lacks")
        path = os.path.join(environment.temporary, "report.json")
        words = self.pip() + ["install", "--quiet", "--dry-run", "--report", path]
        environment.run(words + options_of(requirements, constraints), **self.variables)
        with io.open(path, encoding="utf-8") as file:
            entries = json.load(file)["install"]
        return [
            (
                entry["metadata"]["name"],
                entry["metadata"]["version"],
                entry["download_info"]["url"] if entry["is_direct"] else None,
            )
            for entry in entries
        ]


class LayerSentPip(LayerPip):
    """A pip that the coordinator sends."""

    def create(self) -> None:
        self._pip = self.environment.sent_pip()

    def pip(self) -> list[str]:
        return [self.environment.python, self._pip]


class LayerUnpack(Rung):
    """No tool at all: pure wheels that the coordinator chooses."""

    environment: Folder

    def create(self) -> None:
        os.mkdir(self.environment.path, PRIVATE)
        os.mkdir(os.path.join(self.environment.path, "bin"), PRIVATE)

    def install(self, requirements: str | None, constraints: str | None) -> None:
        environment = self.environment
        there = environment.leaves_out and environment.version >= (3, 8)
        installed = environment.ask_python(INSTALLED) if there else {}
        install_wheels(environment, os.path.join(environment.path, "bin"), installed)


class LayerBuild(Build):
    """Makes one layer, from nothing to its marker."""

    kind = "layers"
    rungs: dict[str, type[Rung]] = {
        "uv": LayerUv, "pip": LayerPip, "a pip that is sent": LayerSentPip, "unpack": LayerUnpack,
    }  # fmt: skip

    def environment(self, path: str, held: int | None) -> Folder:
        made = Folder(*self.place(path, held))
        made.leaves_out = self.request["leaves_out"]
        made.project = text_of(self.request["name"])
        return made

    def find(self, folder: str) -> Found | None:
        return newest(folder)

    def finish(self, environment: Environment) -> None:
        if not os.path.isdir(environment.path):  # nothing was to be installed
            os.mkdir(environment.path, PRIVATE)
