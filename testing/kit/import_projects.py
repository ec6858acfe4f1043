"""Projects whose modules travel, and workers that count how often they ask for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools import BOUND_S

from execnet import Gateway
from execnet.gateway_base import Message

# Tells what became of code: what it sends, or the error that it ended with.
TRY = """
import sys
for code in channel:
    names = {}
    try:
        exec(compile(code, "<test>", "exec"), names)
        channel.send(names["found"])
    except Exception:
        channel.send("%s: %s" % (sys.exc_info()[0].__name__, sys.exc_info()[1]))
"""


class Project:
    """A folder with modules, first on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **sources: str) -> None:
        """Write modules; "__" in their names stands for the next folder."""
        for name, source in sources.items():
            path = self.folder / (name.replace("__", "/") + ".py")
            path = path.with_name(path.name.replace("init.py", "__init__.py"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, "utf-8")


class Worker:
    """A worker that imports what is forwarded; counts how often it asks."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.requests = 0
        self._on_import = gateway._on_import
        gateway._on_import = self._count  # type: ignore[method-assign]
        self._channel = gateway.remote_exec(TRY)

    def _count(self, message: Message) -> None:
        self.requests += 1
        self._on_import(message)

    def run(self, code: str) -> Any:
        """Return what code puts into ``found``, or the text of its error."""
        self._channel.send(code)
        return self._channel.receive(BOUND_S)
