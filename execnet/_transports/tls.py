"""TLS for a stream over a connection, whose reader and writer are two threads.

The certificate is known by its hash, so that nothing else of it is looked at.  Start at ``Tls``
and ``TlsIO``.
"""

from __future__ import annotations

import ssl

from .._endpoint import Endpoint
from ..gateway_base import FrameWriter, new_lock
from ..script.socketserver import fingerprint_of, forget_tls_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._endpoint import LoopEnds
    from ..gateway_base import Frame, Piece

PIECE_BYTES = 1 << 18  # of a frame, encrypted at once


class Tls:
    """Encrypts and decrypts; bytes go in and come out, and nothing here waits.

    ``_lock`` guards the object of OpenSSL, and is never held while somebody waits: one thread may
    wait for bytes while another writes.  context: of a server; without one this is a client.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        is_server = context is not None
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # whose certificate it is tells the proof
        self._lock = new_lock()
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self.outgoing, is_server)
        # In C: an interrupt can't come between the encryption and the note of it.
        self._encrypt = getattr(self._tls, "_sslobj", self._tls).write

    def begin(self, receive: Callable[[int], bytes], send_all: Callable[[bytes], object]) -> bytes:
        """Agree with the other side; return the SHA-256 of its certificate, in hex.

        What ``receive`` raises ends it; a further call goes on.
        """
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                send_all(self.outgoing.read())
                data = receive(1 << 16)
                if not data:
                    raise ValueError("it ends the connection while TLS begins") from None
                self._incoming.write(data)
        send_all(self.outgoing.read())
        return fingerprint_of(self._tls.getpeercert(True) or b"")

    def read_some(self, limit: int, receive: Callable[[int], bytes]) -> bytes:
        """Return what has come, up to ``limit`` bytes; ``receive`` waits for more. b"" at the end.

        What OpenSSL has to answer goes out with what is written next.
        """
        while True:
            with self._lock:
                for _ in range(2):
                    try:
                        return self._tls.read(limit)
                    except ssl.SSLWantReadError:
                        break
                    except ssl.SSLError:  # the end, in one of several ways
                        if not forget_tls_errors():
                            return b""
                else:
                    return b""  # what was raised first may have been of another connection
            data = receive(1 << 16)
            with self._lock:
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    def encrypt(self, data: bytes | memoryview, counts: list[int]) -> None:
        """Encrypt bytes into ``outgoing``; how many is noted in the same step."""
        with self._lock:
            counts.extend(map(self._encrypt, (data,)))

    def sealed(self, data: bytes) -> bytes:
        """Return bytes encrypted."""
        with self._lock:
            self._tls.write(data)
            return self.outgoing.read()


class TlsWriter(FrameWriter):
    """The writer of a gateway whose stream has TLS."""

    _io: TlsIO

    def _advance(self, frame: Frame) -> None:  # holds _lock
        self._io.hand_in(frame)


class TlsIO(Endpoint):
    """The stream to a worker over a connection with TLS.

    io: the stream over the connection itself.  Threads may call as for that.
    """

    writer_class = TlsWriter

    def __init__(self, io: Endpoint, tls: Tls) -> None:
        self.execmodel = io.execmodel
        self.args = io.args
        self.remoteaddress = io.remoteaddress
        self._io, self._tls = io, tls
        self._handing: tuple[Frame | None, int, list[int]] = (None, 0, [])
        self._out: tuple[list[bytes], list[int]] = ([], [])  # encrypted; how much was sent

    def read_some(self, limit: int) -> bytes:
        """Return what is there, up to ``limit`` bytes; wait for the first, b"" at the end."""
        return self._tls.read_some(limit, self._io.read_some)

    def shared_fd(self) -> int:
        """Return the descriptor of the connection, if it can be polled along with others."""
        return self._io.shared_fd()

    def read_kept(self, limit: int) -> bytes:
        """Return what was received before; BlockingIOError if that is nothing whole."""
        return self._tls.read_some(limit, self._io.read_kept)

    def on_silence(self, reason: str) -> bool:
        """Whether something has come that nobody has had the time to read."""
        return self._io.on_silence(reason)

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what an event loop polls."""
        ends = self._io.in_loop()
        return ends and (ends[0], self.read_some, ends[2])

    def write(self, data: Piece) -> None:
        """Write all of it."""
        frame: Frame = [data, b"", [], []]
        while sum(frame[2]) < len(data):
            self.hand_in(frame)

    def write_some(self, data: Piece) -> int:
        """Write all of it; return how much that is."""
        self.write(data)
        return len(data)

    def wait_writable(self) -> None:
        """Wait until something can be written."""
        self._io.wait_writable()

    def can_write_now(self) -> bool:
        """Whether a few KiB can be written without waiting."""
        return self._io.can_write_now()

    def close_write(self) -> None:
        """Let the other side read an end; what it still sends can be read."""
        self._io.close_write()

    def close_read(self) -> None:
        """Close the connection, both ways: nobody reads what would come."""
        self._io.close_read()

    def wait(self) -> int | None:
        """Wait for the end of the stream; return as ``poll_until``."""
        return self._io.wait()

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the end of the stream, as the stream over the connection does."""
        return self._io.poll_until(deadline)

    def has_ended(self) -> bool:
        """Whether the stream over the connection has."""
        return self._io.has_ended()

    def note_status(self, status: int | None) -> None:
        """Have the stream over the connection note it."""
        self._io.note_status(status)

    def disown(self) -> None:
        """In a forked process: let go of the connection, which is the parent's."""
        self._io.disown()

    def kill(self) -> None:
        """End the connection at once, so that the far worker ends."""
        self._io.kill()

    def hand_in(self, frame: Frame) -> None:
        """Encrypt and send the next piece of a frame; after an interrupt not once more."""
        header, payload, written, _ = frame
        start = sum(written)
        if self._handing[0] is not frame or self._handing[1] != start:
            self._handing = frame, start, []
        counts = self._handing[2]
        if not counts:
            is_payload = start >= len(header)
            data = memoryview(payload)[start - len(header) :] if is_payload else header[start:]
            self._tls.encrypt(data[:PIECE_BYTES], counts)
        self._send_out()
        written[:] = (start + counts[0],)

    def _send_out(self) -> None:
        """Send what is encrypted; the call that sends and its note are one step."""
        chunks, counts = self._out
        chunks.extend(map(self._tls.outgoing.read, (-1,)))
        sent, size = sum(counts), sum(map(len, chunks))
        data = memoryview(b"".join(chunks))
        write: Any = self._io.write_some
        while sent < size:
            try:
                counts.extend(map(write, (data[sent:],)))
            except BlockingIOError:
                self._io.wait_writable()
            sent = sum(counts)
        self._out = ([], [])
