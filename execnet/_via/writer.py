"""The writer of a gateway that goes via others, and the payloads that they may keep.

A blob is the part of a frame that others may be sent, too.  Start at ``ViaWriter``.
"""

from __future__ import annotations

from ..gateway_base import _HEADER, JOINED_BYTES, FrameWriter, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ..gateway_base import Frame, Piece, Stream

    Blob = tuple[bytes, int, int]  # its hash, where it begins in the whole frame, and ends

    class ViaStream(Stream, Protocol):
        """What the writer needs of its stream: ``ViaIO``."""

        def may_not_wait(self) -> bool: ...
        def hand_in(self, frame: Frame) -> None: ...


BLOB_BYTES = 4096  # smaller ones are not worth it
DIGEST_BYTES = 32
KEEPS = b"k"  # begins the answer to an import that a worker keeps for others: its hash follows


class ViaWriter(FrameWriter):
    """The writer of a gateway that goes via others; their receiver threads never wait for it."""

    _io: ViaStream

    def frame(self, header: bytes, payload: Piece, blob: Blob | None = None) -> Frame:
        """Return a frame, with the blob at its end if there is one: source is always one."""
        is_large = blob is None and len(payload) >= JOINED_BYTES and header[0] not in SHARED
        if is_large:  # ``hand_in`` takes it in pieces
            return [header, payload, [], []]
        frame = super().frame(header, payload)
        if blob is None and header[0] in SHARED and len(payload) >= BLOB_BYTES:
            blob = _blob_of(payload, header)
        elif not payload and len(header) >= BLOB_BYTES:
            blob = _packed_of(header)
        if blob is not None:
            frame.append(blob)
        return frame

    def send(self, header: bytes, payload: Piece) -> None:
        """Write a frame, as the base class; without waiting in a thread that must not."""
        if self._io.may_not_wait():
            self.post(header, payload)
        else:
            super().send(header, payload)

    def deliver(self, frame: Frame) -> None:
        """Send a frame, as the base class; without waiting in a thread that must not."""
        if self._io.may_not_wait():
            self.post_frame(frame)
        else:
            super().deliver(frame)

    def _advance(self, frame: Frame) -> None:  # holds _lock
        self._io.hand_in(frame)


SHARED = Message.SOURCE, Message.SOURCES


def _blob_of(payload: Piece, header: bytes) -> Blob:
    end = _HEADER.size + len(payload)
    if header[0] == Message.SOURCES and payload[:1] == KEEPS and _HEADER.unpack(header)[1]:
        start = len(KEEPS) + DIGEST_BYTES
        return bytes(payload[len(KEEPS) : start]), _HEADER.size + start, end
    return digest_of(payload), _HEADER.size, end


def _packed_of(line: bytes) -> Blob | None:
    """Return where in a first line the source is, which is the same for all workers."""
    before, found, after = line.partition(b'boot("')
    if not found:
        return None
    start = len(before) + len(found)
    end = start + after.index(b'"')
    return digest_of(line[start:end]), start, end


def digest_of(data: bytes | memoryview) -> bytes:
    """Return the hash that stands for bytes."""
    from hashlib import sha256

    return sha256(data).digest()
