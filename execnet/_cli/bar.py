"""The progress bar of ``execnet sync``, if it can be seen and drawn.  Start at ``new_bar``."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec

from .._rsync.result import printable
from ..gateway_base import new_lock

_REFRESH_S = 0.1


def new_bar(args: argparse.Namespace) -> Bar | None:
    """Return a progress bar, if it can be seen and drawn."""
    if args.dry_run or args.json or not sys.stderr.isatty() or find_spec("rich") is None:
        return None
    return Bar()


class Bar:
    """A progress bar on stderr, drawn by ``rich`` now and then; no thread of its own.

    ``_lock`` keeps a job that was overtaken from drawing after ``stop``.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        current = TextColumn("{task.description}", markup=False)
        console = Console(stderr=True)
        self._progress = Progress(*columns, current, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=None)
        self._next = 0.0
        self._lock = new_lock()
        self._is_over = False

    def start(self) -> None:
        """Start drawing, once it is sure that ``stop`` will be called."""
        with self._lock:
            if not self._is_over:
                self._progress.start()

    def tell(self, total: int, done: int, current: str) -> None:
        """Take the progress that ``RSync`` reports."""
        description = printable(current)[-40:]
        with self._lock:
            if self._is_over:
                return
            self._progress.update(self._task, total=total, completed=done, description=description)
            if time.monotonic() >= self._next:
                self._progress.refresh()
                self._next = time.monotonic() + _REFRESH_S

    def stop(self) -> None:
        """Draw the final state; a second call does nothing."""
        with self._lock:
            if not self._is_over and self._progress.live.is_started:
                self._progress.refresh()
                self._progress.stop()
            self._is_over = True
