"""The bytes before the first frame of a worker, and its hello.

Start at ``Handshake``.
"""

from __future__ import annotations

from ..gateway_base import _Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ..gateway_base import ExecModel

    class Sent(Protocol):
        """The source that is sent to a worker that can't import it; None: it needs no rest."""

        @property
        def rest(self) -> bytes | None: ...
        @property
        def compiled_rest(self) -> bytes | None: ...
        @property
        def plain_line(self) -> bytes: ...
        @property
        def plain_rest(self) -> bytes | None: ...


NOISE_MAX = 64 * 1024  # bytes that may come before the worker's marker


class Handshake:
    """The bytes before the first frame, and the hello, which is that frame.

    marker: bytes that the worker sends before its first frame; anything before them is noise.
    shipment: the source for a worker that can't import it.
    The receiver thread feeds it, and never waits here.  Other threads may wait for ``answered``;
    after that the rest does not change.
    """

    def __init__(
        self, execmodel: ExecModel, marker: bytes = b"", shipment: Sent | None = None
    ) -> None:
        self.marker = marker
        self.noise = b""
        self.hello: dict[str, Any] = {}  # empty if none came
        self.answered = _Flag(execmodel)  # also set when there will be no hello
        self.on_answer: Callable[[], object] = int  # called after that was set
        self._shipment = shipment
        self.is_plain = False  # the worker's interpreter has asked for more: it has no zlib
        self._received = b""
        self._reply = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes that were read, b"" for the end; return what came after the marker.

        None: the marker has not come yet.  Raises EOFError if no worker answers.
        """
        self._received += data
        self.noise, marker, after = self._received.partition(self.marker)
        if marker:
            self._received = b""
            return after
        if self._shipment is not None and not self.is_plain:
            self.is_plain = self.marker.rstrip() + b"?" in self._received
            self._reply = self._shipment.plain_line if self.is_plain else b""
        if not data:
            raise EOFError("the stream ended before a worker answered")
        if len(self._received) > NOISE_MAX:
            raise EOFError(f"no worker answered within {NOISE_MAX} bytes")
        return None

    def take_reply(self) -> bytes:
        """Return, once, what has to be sent before more can arrive; b"" for nothing."""
        reply, self._reply = self._reply, b""
        return reply

    def take_rest(self, is_alike: bool, is_near: bool) -> bytes | None:
        """Return the rest of the source in the form that is quickest for the worker; None: no need.

        is_alike: whether the worker's Python is the same as ours.  is_near: whether there is no
        network in between; otherwise compiled code, being larger, may take longer than compiling.
        """
        shipment, self._shipment = self._shipment, None
        if shipment is None:
            return None
        if self.is_plain:
            return shipment.plain_rest
        return shipment.compiled_rest if is_alike and is_near else shipment.rest

    def end(self, hello: dict[str, object] | None = None) -> None:
        """Note the hello, if there is one, and wake the threads that wait for it."""
        if hello is not None:
            self.hello = hello
        self.answered.set()
        self.on_answer()
