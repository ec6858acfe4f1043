"""Frames that travel as zlib streams, where that makes them smaller: ``compress=yes``.

Most frames continue the one stream of their direction, so that what was sent before makes them
smaller.  A frame that is not queued at once after it was deflated may be overtaken by another, so
it is a stream by itself.  Both kinds travel in DEFLATED frames.  This file is shipped; it keeps to
what Python 2.7 and today's Python both accept.  Start at ``Deflater``.
"""

from __future__ import annotations

import struct
import zlib

from ..gateway_base import _HEADER, _PART, ITEM_MAX, Message, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..gateway_base import BaseGateway, Frame, FrameWriter, Piece

LEAST_BYTES = 1024  # a smaller payload is sent as it is
PIECE_BYTES = 1 << 15  # of a large item, so that one is deflated while another is on its way
LEVEL = 6  # as ssh -C; where it is too slow for the link, so is any other
PARTIAL_FLUSH = 1  # in Python 2 zlib has no name for it; a sync flush takes 3 bytes more
MOST_UNTRIED = 64  # times the bytes of a frame that did not shrink pass without another try
# What may be deflated.  Not source, which hops keep for others by its hash, nor control frames.
KINDS = frozenset([
    Message.CHANNEL_EXEC, Message.CHANNEL_DATA, Message.CHANNEL_CLOSE_ERROR,
    Message.CHANNEL_DATA_PART, Message.CALL,
])  # fmt: skip
_INNER = struct.Struct("!bBi")  # code of the frame within, how it goes, size
ALONE, BEGINS, GOES_ON = range(3)


class _AsItIs(bytes):
    """The header of a frame that is sent without deflating it: it did not shrink, or need not."""

    __slots__ = ()


class Deflater(object):
    """Stands in front of the writer of a gateway, which gets shorter frames from it.

    After frames that did not shrink, as many bytes as a multiple of theirs are sent without a try:
    so small ones of that kind do not keep it from large ones that would.  Any thread may call.  The
    one that has ``_lock`` continues the stream; others do not wait for it, they do without.
    may_continue: whether there is a stream.  If not, each frame is one by itself.
    """

    def __init__(self, writer: FrameWriter, may_continue: bool = True) -> None:
        self._writer = writer
        self._frame: Any = writer.frame
        self._send = writer.send
        self._may_continue = may_continue
        self._lock = writer._io.execmodel.Lock()
        self._stream: Any = None  # None: the next frame begins one
        self._factor = 1  # grows with each frame in a row that did not shrink
        self._untried = 0  # bytes that may pass without a try
        vars(writer).update(frame=self.frame, send=self.send)

    def frame(self, header: bytes, payload: Piece, *blob: object) -> Frame:
        """Return a frame, as the writer does; one with a blob stays as it is."""
        if not blob and self._is_tried(header, payload):
            header, payload = self._alone(header, payload)
        frame: Frame = self._frame(header, payload, *blob)
        return frame

    def send(self, header: bytes, payload: Piece) -> None:
        """Write a frame, as the writer does; one with a large piece of an item as several."""
        if len(payload) <= PIECE_BYTES or header[:1] != _PART_CODE:
            self._send_one(header, payload)
        else:
            for head, piece in _pieces(header, payload):
                self._send_one(head, piece)

    def _send_one(self, header: bytes, payload: Piece) -> None:
        if len(payload) < LEAST_BYTES:
            self._send(header, payload)
        elif not self._is_tried(header, payload):
            self._send(_AsItIs(header), payload)
        elif not self._send_next(header, payload):
            self._send(*self._alone(header, payload))

    def _send_next(self, header: bytes, payload: Piece) -> bool:
        """Send the next frame of the stream; False if this one has to be sent in another way."""
        writer = self._writer
        if not self._may_continue or getattr(writer._io, "may_not_wait", bool)():
            return False
        try:
            frame = self._queued(header, payload)
            if frame is not None:
                writer.deliver(frame)
            return frame is not None
        except BaseException:  # an interrupt, maybe just after it was queued
            writer._flush_queued()
            raise

    def _queued(self, header: bytes, payload: Piece) -> Frame | None:
        """Queue the next frame of the stream and return it; None if another thread is at it.

        An interrupt, whenever it comes, at most has the next frame begin another stream.
        """
        writer = self._writer
        (taken,) = map(self._lock.acquire, (False,))  # doc/interrupts.rst, "Locks"
        try:
            if not taken or writer._error is not None or writer._closing:
                return None
            stream, self._stream = self._stream, None
            how = BEGINS if stream is None else GOES_ON
            stream = stream or zlib.compressobj(LEVEL)
            header, payload = self._shortened(header, payload, stream, how)
            frame: Frame = self._frame(header, payload)
            frame[3] += map(writer._frames.append, (frame,))
            self._stream = None if type(header) is _AsItIs else stream
            return frame
        finally:
            if taken:
                self._lock.release()

    def _is_tried(self, header: bytes, payload: Piece) -> bool:
        """Whether to deflate a frame, whose header may have some of the payload."""
        if len(payload) < LEAST_BYTES or type(header) is _AsItIs:
            return False
        code, id, size = _HEADER.unpack_from(header)
        if code not in KINDS or not id or size > ITEM_MAX:
            return False
        if size > self._untried:
            return True
        self._untried -= size
        return False

    def _alone(self, header: bytes, payload: Piece) -> tuple[bytes, Piece]:
        return self._shortened(header, payload, zlib.compressobj(LEVEL), ALONE)

    def _shortened(
        self, header: bytes, payload: Piece, stream: Any, how: int
    ) -> tuple[bytes, Piece]:
        """Return the header and the payload to send."""
        code, id, size = _HEADER.unpack_from(header)
        pieces = [_INNER.pack(code, how, size), stream.compress(header[_HEADER.size :])]
        pieces += [stream.compress(payload)]
        pieces += [stream.flush() if how == ALONE else stream.flush(PARTIAL_FLUSH)]
        short = b"".join(pieces)
        if len(short) > size - size // 16:
            self._factor = min(2 * self._factor, MOST_UNTRIED)
            self._untried = self._factor * size
            return _AsItIs(header), payload
        self._factor, self._untried = 1, 0
        return _HEADER.pack(Message.DEFLATED, id, len(short)), short


_PART_CODE = _HEADER.pack(Message.CHANNEL_DATA_PART, 0, 0)[:1]


def _pieces(header: bytes, payload: Piece) -> Iterator[tuple[bytes, Piece]]:
    """Yield a piece of an item as several ones."""
    _, id, _ = _HEADER.unpack_from(header)
    number, last = _PART.unpack_from(header, _HEADER.size)
    for start in range(0, len(payload), PIECE_BYTES):
        piece = payload[start : start + PIECE_BYTES]
        is_last = last and start + PIECE_BYTES >= len(payload)
        head = _HEADER.pack(Message.CHANNEL_DATA_PART, id, _PART.size + len(piece))
        yield head + _PART.pack(number, is_last), piece


def tell(gateway: BaseGateway, may_continue: bool) -> None:
    """Begin; each end may send such frames from here on."""
    Deflater(gateway._writer, may_continue)


def on_deflated(message: Message, gateway: BaseGateway) -> None:
    """Act on the frame within a DEFLATED one, if the peer might have sent it as it is.

    No more is inflated than the largest frame with an item, whatever the stream would become.
    """
    code, how, size = _INNER.unpack_from(message.data.ljust(_INNER.size))
    if code not in KINDS or not 0 < size <= ITEM_MAX or how > GOES_ON:
        raise ProtocolError("a deflated frame of code %d and %d bytes, %d" % (code, size, how))
    stream: Any = None
    if how != GOES_ON:
        stream = zlib.decompressobj()
        if how == BEGINS:
            vars(gateway)["inflater"] = stream
    else:
        stream = vars(gateway).get("inflater")
        if stream is None:
            raise ProtocolError("a deflated frame that goes on with nothing")
    data = inflated(stream, message.data[_INNER.size :], size, how == ALONE)
    admits = gateway._admits
    if admits is None or admits(code, message.channelid, size):
        Message(code, message.channelid, data).received(gateway)


def inflated(stream: Any, short: bytes, size: int, ends: bool) -> bytes:
    """Return so many bytes; ``ProtocolError`` if a stream becomes anything else."""
    try:
        data: bytes = stream.decompress(short, size + 1)
    except zlib.error as exc:
        raise ProtocolError("a deflated frame: %s" % exc)
    is_right = getattr(stream, "eof", ends) is ends  # Python 2 can't tell
    if len(data) != size or stream.unconsumed_tail or stream.unused_data or not is_right:
        raise ProtocolError("a deflated frame that is not just its %d bytes" % size)
    return data
