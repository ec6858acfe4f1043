"""The proof to a socket server that another gateway's worker has connected to.

Start at ``prove``.
"""

from __future__ import annotations

from .._errors import BootstrapError
from .._transports import proof
from .._transports.keys import Wish
from ..script.socketserver import binding_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._specs import Settings


class ViaTalk:
    """A connection of that worker, before it is a stream to a worker."""

    def __init__(self, io: Any) -> None:
        self._io = io

    def read(self, timeout_s: float) -> bytes:
        """Return what arrives, b"" at the end; TimeoutError if nothing does."""
        data: bytes = self._io.read_within(max(0.001, timeout_s))
        return data

    def write(self, data: bytes) -> None:
        """Send all of it."""
        self._io.write(data)

    def dialled(self, timeout_s: float) -> bytes:
        """Return the address that the worker over there has dialled."""
        if not self._io.is_connected.wait(max(0.0, timeout_s)):
            raise TimeoutError
        host, port = self._io.peer.decode("ascii").split()
        return binding_of((host, int(port)))

    def begin_tls(self, timeout_s: float) -> bytes:
        """Refuse: TLS does not pass through another gateway."""
        raise ValueError(
            "it has TLS, which does not go via= another gateway: one that listens on that "
            "machine's loopback interface needs none"
        )


def prove(io: Any, settings: Settings, deadline: float | None) -> None:
    """Exchange proofs of the key; after an error nothing is left of the stream."""
    try:
        wish = Wish(settings.spec)
        proof.prove(ViaTalk(io), wish, str(io.remoteaddress), deadline)
    except BaseException as exc:
        io.discard()
        if isinstance(exc, EOFError) and not isinstance(exc, BootstrapError):
            raise BootstrapError(str(exc), io.args) from exc
        raise
