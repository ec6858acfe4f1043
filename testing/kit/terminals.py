"""A pseudo-terminal in which ``execnet`` runs, for commands that people type into."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path

from shell import EXECNET, TOKEN
from tools import BOUND_S, ROOT

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A pseudo-terminal in which ``execnet`` runs.  ``raw`` is all that came, with its colours."""

    def __init__(self, folder: Path, token: str, *args: str) -> None:
        self._unread = self.raw = ""
        env = {**os.environ, "PYTHONPATH": str(ROOT), TOKEN: token, "TERM": "xterm"}
        env |= {"EXECNET_HOME": str(folder / "home"), "COLUMNS": "80"}
        env.pop("NO_COLOR", None)
        import pty  # Windows has none

        self.pid, self.fd = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.execve(EXECNET[0], [*EXECNET, *args], env)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """Read until a text comes; return what came before it."""
        deadline = time.monotonic() + BOUND_S
        while text not in self._unread:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self._unread!r}"
            if select.select([self.fd], [], [], left)[0]:
                data = os.read(self.fd, 65536).decode("utf-8", "replace")
                self.raw += data
                self._unread = _COLOURS.sub("", self._unread + data).replace("\r\n", "\n")
        before, _, self._unread = self._unread.partition(text)
        return before

    def run(self, line: str, prompt: str = ">>> ") -> str:
        """Type a line; return what is printed before the next prompt."""
        self.type(line + "\n")
        self.until(line[-20:] + "\n")
        return self.until(prompt)

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
