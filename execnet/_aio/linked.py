"""The writer of a gateway with ``resume=`` whose stream a loop reads.

The link has a thread, as where threads use it: that writes, and changes connections.  Start at
``LoopLinkWriter``.
"""

from __future__ import annotations

from contextlib import suppress

from .._resume.near import _Writer
from ..gateway_base import get_ident
from .writer import KINDS, LoopWriter


class LoopLinkWriter(LoopWriter, _Writer):
    """Hands frames to the thread of a link; tasks wait for room, and threads through one."""

    def send(self, header: bytes, payload: bytes | memoryview) -> None:
        """Have a frame written soon, as the base class."""
        if self.is_full() and get_ident() != self.loop_ident:
            self._send_from_thread(header, payload)
            return
        if self._error is not None or self._closing:
            raise self.refusal_now()
        self.post(header, payload)

    def is_full(self) -> bool:
        """Whether the link keeps as much as it may."""
        return not self._has_room()

    def wake(self) -> None:
        """Let the next task write; in the link's thread, when there is room."""
        if self._waiting_tasks:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.pass_on)


def let_resume() -> None:
    """Have gateways of loops take streams of this kind."""
    KINDS[_Writer] = LoopLinkWriter
