"""The end of a worker's stream: a goodbye, or the trace of a fatal signal.

Either may come in the middle of a frame that was never finished.  Start at ``LastWords``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO

from .._errors import indented
from ..gateway_base import (
    OF_WATCHED,
    OF_WATCHER,
    Message,
    StreamEnded,
    dumps_internal,
    loads_internal,
)

FAULT = b"Fatal Python error: "  # what traces begin with
TRACE_BYTES = 1 << 16
TAIL_BYTES = 1 << 13
READ_BYTES = 1 << 16


class LastWords:
    """What a worker said about its own end; only the receiver thread uses it.

    marker: the bytes that a goodbye ends with.  note_status: called with each exit status.
    """

    def __init__(self, marker: bytes, note_status: Callable[[int | None], object] = id) -> None:
        self.reason = ""  # why the worker ended
        self.status: int | None = None  # its exit status, negative for a signal
        self._note_status = note_status
        self.is_certain = False  # whether its process has ended, according to its parent
        self._tail = b""  # the last bytes read within a frame
        self._trace = b""
        self._goodbye_end = b""
        if marker:
            self._goodbye_end = marker + dumps_internal((None, "", 0, b""))[-6:]

    def take_goodbye(self, data: bytes) -> None:
        """Note what a goodbye says; raises ``StreamEnded`` unless another follows."""
        status, reason, whose, _ = loads_internal(data, None, (True, False))
        self.status = None if status is None else int(status)
        self._note_status(self.status)
        self.reason = self.reason or "".join(filter(str.isprintable, str(reason)[:1000]))
        if whose == OF_WATCHER:
            self.is_certain = True
            raise StreamEnded("its process has ended")
        if whose != OF_WATCHED:
            raise StreamEnded("it said goodbye")

    def keep(self, data: bytes) -> None:
        """Keep the last bytes read; raises ``StreamEnded`` if they are a goodbye.

        A goodbye that cuts a frame short comes from a process beside the worker.
        """
        if len(data) < TAIL_BYTES:
            data = self._tail + data
        self._tail = data[-TAIL_BYTES:]
        if self._goodbye_end and self._tail.endswith(self._goodbye_end):
            start = self._tail.rfind(bytes([Message.GOODBYE, 0, 0, 0, 0, 0, 0]))
            self.take_goodbye(Message.from_io(BytesIO(self._tail[start:])).data)

    def has_trace(self) -> bool:
        """Whether the trace of a fatal signal has begun."""
        return FAULT in self._tail

    def read_trace(self, read: Callable[[int], bytes]) -> bool:
        """Read the trace of a fatal signal to its end, if one has begun; return whether one had."""
        start = self._tail.rfind(FAULT)
        if start < 0:
            return False
        self._trace = self._tail[start:]
        while len(self._trace) < TRACE_BYTES:
            data = read(READ_BYTES)
            if not data:
                break
            self._trace += data
        return True

    def trace(self) -> str:
        """Return the trace of a fatal signal, "" if there was none."""
        trace = self._trace or self._tail[max(self._tail.rfind(FAULT), 0) :]
        if not trace.startswith(FAULT):
            return ""
        text = trace.decode("ascii", "backslashreplace")
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def show(text: str) -> None:
    """Write a text to this process's stderr, all lines but the first indented."""
    data = f"{indented(text)}\n".encode()
    with suppress(OSError):  # nobody is there to see it
        while data:
            data = data[os.write(2, data) :]
