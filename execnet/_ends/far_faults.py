"""Sends traces of fatal signals as the last bytes of a worker's stream.

This file is shipped with the first line; it stands alone and keeps to what Python 2.7 and
today's Python both accept.  The coordinator reads a trace in ``_ends.last_words``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FaultTrace(object):
    """Sends the trace of a fatal signal to the worker's stream instead of to stderr.

    The coordinator shows it on its own stderr, and keeps it for ``WorkerDied``.
    """

    def __init__(self, stream_fd: int) -> None:
        self._stream_fd = stream_fd
        self._stderr = _file_of(2)
        self._is_ours = False  # otherwise the code wants it elsewhere
        self._module: Any = None
        try:
            self._module = __import__("faulthandler")
        except ImportError:  # Python 2
            pass
        # A forked process must not write into its parent's stream.
        if self._module is not None and hasattr(os, "register_at_fork"):
            self._is_ours = True
            self._enable = self._module.enable
            os.register_at_fork(after_in_child=self.leave_stream)
            self._module.enable = self.enable
            self._enable(stream_fd)

    def enable(self, file: Any = None, *args: Any, **kwargs: Any) -> None:
        """Stand in for ``faulthandler.enable``: what would go to stderr goes to the stream."""
        file = sys.stderr if file is None else file
        found = _file_of(file)
        self._is_ours = found is not None and found == self._stderr
        self._enable(self._stream_fd if self._is_ours else file, *args, **kwargs)

    def leave_stream(self) -> None:
        """Let traces go to stderr: the stream ends, or it belongs to the parent process."""
        if self._module is not None and self._module.enable == self.enable:
            self._module.enable = self._enable
        if self._is_ours and self._module.is_enabled():
            self._enable(2)
        self._is_ours = False


def _file_of(file: Any) -> tuple[int, int] | None:
    try:
        status = os.fstat(file if isinstance(file, int) else file.fileno())
    except Exception:  # it is closed, or not a file
        return None
    return status.st_dev, status.st_ino
