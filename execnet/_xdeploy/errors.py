"""The error for an environment that can't be made, and the removal of secrets from texts."""

from __future__ import annotations

import re

from .._errors import command_text
from .._rsync.result import printable
from ..gateway_base import ExecnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHOWN_LINES = 20  # of the lines kept, in the text
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]+@")


def hidden(text: str) -> str:
    """Return a text fit for a terminal, without the user names and passwords of addresses."""
    return printable(_USERINFO.sub(r"\1****@", text))


def without_secret(url: str) -> str:
    """Return an address without user name and password."""
    return _USERINFO.sub(r"\1", url)


def has_secret(url: str) -> bool:
    """Whether an address has a user name or a password in it."""
    return _USERINFO.match(url) is not None


class DeployError(ExecnetError, OSError):
    """An environment could not be made, or a project not installed; nothing half made is used.

    step: what was being done.  command: the words of the command that failed, empty if none did.
    status: its exit status, negative for a signal, None if it has none.  lines: the last 100 lines
    that it printed.  Secrets are removed from the addresses in all of them.
    """

    __module__ = "execnet.xdeploy"

    def __init__(
        self,
        text: str,
        step: str = "",
        command: Sequence[str] = (),
        status: int | None = None,
        lines: Iterable[str] = (),
    ) -> None:
        self.step = hidden(step)
        self.command = [hidden(word) for word in command]
        self.status = status
        self.lines = [hidden(line) for line in lines]
        whole = "\n".join(hidden(line) for line in text.split("\n"))
        if self.command:
            whole += f"\nthe command: {command_text(self.command)}"
        shown = self.lines[-SHOWN_LINES:]
        if shown:
            whole += "\nits last output:\n" + "\n".join(f"  {line}" for line in shown)
        super().__init__(whole)
