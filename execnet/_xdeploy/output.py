"""Where what installers print goes: to the user's function, or to the logger ``execnet.xdeploy``.

On a terminal, if neither is set up, the current step is shown meanwhile.
Start at ``Output``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType

from .._rsync.result import printable

WIDTH = 100


class Output:
    """Takes steps and lines; leaving ``with`` removes what it showed on a terminal.

    on_output: called with each line; None for the logger.
    """

    def __init__(self, on_output: Callable[[str], object] | None) -> None:
        self._on_output = on_output
        self._logger = logging.getLogger("execnet.xdeploy")
        is_silent = on_output is None and not self._logger.isEnabledFor(logging.INFO)
        self._shows = is_silent and sys.stderr is not None and sys.stderr.isatty()
        self._is_shown = False

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_shown:
            self._show("")

    def step(self, text: str) -> None:
        """Report the current step."""
        if self._on_output is None:
            self._logger.info("%s", text)
        if self._shows:
            self._show(f"execnet: {text} ...")

    def line(self, text: str) -> None:
        """Pass on a line that a command printed."""
        if self._on_output is not None:
            self._on_output(text)
        else:
            self._logger.info("%s", text)

    def _show(self, text: str) -> None:
        self._is_shown = True
        sys.stderr.write(f"\r\x1b[K{printable(text)[:WIDTH]}")
        sys.stderr.flush()
