"""Makes a layer: a folder of packages for the path of one gateway's worker.

A layer is made like an environment, and never changes either; only its place differs.
This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os

from .build import Build, make
from .commands import Failure
from .places import PRIVATE, newest
from .tools import Environment, NotHere, Rung, find_program, install_wheels, options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(channel: Any) -> None:
    """Make the layer of one request."""
    make(channel, LayerBuild)


class Folder(Environment):
    """A folder of packages, for the interpreter that runs this."""

    def __init__(self, path: Any, interpreter: Any, *more: Any) -> None:
        Environment.__init__(self, path, interpreter, *more)
        self.python = interpreter

    def packages(self) -> Any:
        """Return the folder itself."""
        return self.path


class LayerUv(Rung):
    """``uv``, if it is installed."""

    def create(self) -> None:
        self._uv = find_program("uv")
        if self._uv is None or self.environment.version < (3, 8):
            raise NotHere("it is not installed, or does not support this Python")

    def install(self, requirements: Any, constraints: Any) -> None:
        environment = self.environment
        words = [self._uv, "pip", "install", "--python", environment.python]
        words += ["--target", environment.path, "--index-strategy", "unsafe-best-match"]
        variables = dict(self.variables)
        if variables.pop("UV_NO_INDEX", None):
            words.append("--no-index")
        environment.run(words + options_of(requirements, constraints), **variables)


class LayerPip(Rung):
    """The pip that the interpreter has."""

    def create(self) -> None:
        environment = self.environment
        try:
            environment.commands.begin(u"looking for pip")
            environment.run([environment.python, "-m", "pip", "--version"])
        except Failure:
            raise NotHere("this Python has no pip")

    def install(self, requirements: Any, constraints: Any) -> None:
        words = self.pip() + ["install", "--target", self.environment.path]
        variables = dict(self.variables, PYTHONDONTWRITEBYTECODE="")
        self.environment.run(words + options_of(requirements, constraints), **variables)


class LayerSentPip(LayerPip):
    """A pip that the coordinator sends."""

    def create(self) -> None:
        self._pip = self.environment.sent_pip()

    def pip(self) -> Any:
        return [self.environment.python, self._pip]


class LayerUnpack(Rung):
    """No tool at all: pure wheels that the coordinator chooses."""

    def create(self) -> None:
        os.mkdir(self.environment.path, PRIVATE)
        os.mkdir(os.path.join(self.environment.path, "bin"), PRIVATE)

    def install(self, requirements: Any, constraints: Any) -> None:
        install_wheels(self.environment, os.path.join(self.environment.path, "bin"))


class LayerBuild(Build):
    """Makes one layer, from nothing to its marker."""

    kind = "layers"
    rungs: Any = {
        "uv": LayerUv, "pip": LayerPip, "a pip that is sent": LayerSentPip, "unpack": LayerUnpack,
    }  # fmt: skip
    environment_class = Folder

    def find(self, folder: Any) -> Any:
        return newest(folder)

    def finish(self, environment: Any) -> None:
        if not os.path.isdir(environment.path):  # nothing was to be installed
            os.mkdir(environment.path, PRIVATE)
