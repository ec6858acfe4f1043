"""Has uv fetch an interpreter into a folder below ours, as there is none.

A fetched interpreter is made like an environment, and never changes either: one that is not whole
has no marker, and is not found.  This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os

from .build import Build, make
from .commands import Failure
from .find import PYTHONS, runs
from .places import PRIVATE, newest, text_of
from .quick import native
from .tools import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...gateway_base import Channel
    from .places import Found, Marker

VERSION = "import sys; sys.stdout.write('%d.%d.%d' % sys.version_info[:3])"


def main(channel: Channel) -> None:
    """Fetch the interpreter of one request, whose name is a version."""
    make(channel, Fetch)


class Fetch(Build):
    """Fetches one interpreter, from nothing to its marker."""

    kind = PYTHONS

    def find(self, folder: str) -> Found | None:
        found = newest(folder)
        return found if found is not None and runs(folder, found) else None

    def _fill(self, path: str, held: int | None) -> str:
        uv = find_program("uv")
        self.commands.begin(u"fetching it with uv")
        if uv is None:
            raise Failure(u"uv, which would fetch it, is not installed there", self.commands.step)
        os.mkdir(path, PRIVATE)
        temporary = path + ".tmp"
        variables = {
            "UV_PYTHON_INSTALL_DIR": path, "UV_PYTHON_DOWNLOADS": "manual",
            # Newer ones would put links into ~/.local/bin and write to the registry.
            "UV_PYTHON_INSTALL_BIN": "0", "UV_PYTHON_BIN_DIR": os.path.join(temporary, "bin"),
            "UV_PYTHON_INSTALL_REGISTRY": "0",
        }  # fmt: skip
        wanted = native(self.request["name"])
        environ = self.commands.environ(temporary, variables)
        self.commands.run([uv, "python", "install", wanted], environ, held)
        found = _python_in(path)
        if found is None:
            raise Failure(u"uv left no interpreter there", self.commands.step)
        self._python = found
        python = os.path.join(path, found)
        version = self.commands.run([python, "-c", VERSION], environ, held, True)[-1:]
        bare = wanted[len("pypy") :] if wanted.startswith("pypy") else wanted
        if not version or not (version[0] + ".").startswith(bare + "."):
            text = u"uv fetched a Python that is another or does not run"
            raise Failure(text, self.commands.step, (), None, version)
        return u"uv"

    def _marker(self, tool: str) -> Marker:
        request = self.request
        return {
            u"name": text_of(request["name"]), u"tool": tool, u"path": text_of(self._python),
            u"python": text_of(request["name"]),
        }  # fmt: skip


def _python_in(path: str) -> str | None:
    """Return the interpreter below a folder of uv's, relative to it, or None."""
    for name in sorted(os.listdir(path)):
        python = os.path.join(name, "bin", "python")
        is_one = os.access(os.path.join(path, python), os.X_OK)
        if is_one and not os.path.islink(os.path.join(path, name)):  # links are to newer ones
            return python
    return None
