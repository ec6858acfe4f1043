"""What a worker keeps for those that go via it, so that it crosses the link to it only once.

The bytes of others pass there unseen.  So it is the coordinator that says what to keep, and later
has it put into a stream by its hash, or acted on by the worker itself.  A frame that says what to
keep may be replaced in this way itself: over several hops, each link is crossed once.  The far
half is ``far_kept``.  Start at ``Kept``.
"""

from __future__ import annotations

from collections import OrderedDict

from .._ship import parts
from ..gateway_base import (
    _HEADER,
    ITEM_MAX,
    Channel,
    Message,
    dumps_fast,
    dumps_internal,
)
from .writer import BLOB_BYTES, digest_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .._inside import Inside
    from ..gateway_base import Frame
    from .writer import Blob

    class User(Protocol):
        """A stream through the worker."""

        is_forwarded: bool  # whether it acts on what comes for it as soon as that comes

        def has_ended(self) -> bool: ...


STORE_BYTES = 16 << 20  # of one worker
PART = "_via.far_kept"


class Kept:
    """What one worker keeps, by hashes.  Any thread may call; ``_lock`` guards it.

    A worker acts on frames in the order in which they were handed in.  So all that matters is that
    a frame that uses a blob is handed in after the one that keeps it and before the one that drops
    it: nothing is dropped while frames that use it were not handed in.
    """

    def __init__(self, gateway: Inside) -> None:
        self._gateway = gateway
        self._lock = gateway.execmodel.Lock()
        self._left = STORE_BYTES
        self._part_sent = False
        # The longest unused first: size, and frames that use it, each with its stream.
        self._blobs: OrderedDict[bytes, tuple[int, list[tuple[Frame, User]]]] = OrderedDict()

    def use(
        self, digest: bytes, data: bytes, user: User, make: Callable[[], Frame]
    ) -> Frame | None:
        """Return a frame that uses a blob; see to it that the worker has that by then.

        user: the stream that the blob is for.  make: returns the frame, which the caller hands in.
        None if there is no room for the blob.
        """
        with self._lock:
            if not self._keep(digest, data):
                return None
            users, frame = self._blobs[digest][1], make()
            users[:] = [one for one in users if self._is_in_use(*one)]
            users.append((frame, user))
            return frame

    def act(self, digest: bytes, data: bytes, header: bytes) -> Frame | None:
        """Return a frame that has the worker act as if a header and a blob had come from here.

        It was handed in already.  None if there is no room for the blob.
        """
        with self._lock:
            if not self._keep(digest, data):
                return None
            return self._post(self._told("act", digest, header), None)

    def keep_in(self, digest: bytes, size: int, make: Callable[[], Frame]) -> Frame | None:
        """Return a frame that has the worker keep a blob for others, handed in already.

        None if the worker has it, or has no room for it.
        """
        with self._lock:
            if digest in self._blobs or not self._make_room(size):
                return None
            frame = make()
            self._gateway.writer.post_frame(frame)
            self._note(digest, size)
            return frame

    # what follows is called by whoever holds _lock

    def _keep(self, digest: bytes, data: bytes) -> bool:
        """See to it that a blob is kept, and is the last one to be dropped."""
        if digest not in self._blobs:
            if not self._make_room(len(data)):
                return False
            payload = self._told("keep", digest, data)
            start = _HEADER.size + payload.index(data)
            self._post(payload, (digest, start, start + len(data)))
            self._note(digest, len(data))
        self._blobs.move_to_end(digest)
        return True

    def _note(self, digest: bytes, size: int) -> None:
        self._blobs[digest] = size, []
        self._left -= size

    def _is_in_use(self, frame: Frame, user: User) -> bool:
        """Whether a worker that dropped the blob of a frame now might still look for it."""
        return not (user.has_ended() or (user.is_forwarded and self._gateway.writer.has(frame)))

    def _make_room(self, size: int) -> bool:
        dropped, left = [], self._left
        for digest, (its_size, users) in self._blobs.items():
            if left >= size:
                break
            if not any(self._is_in_use(*one) for one in users):
                dropped.append(digest)
                left += its_size
        if left < size:
            return False
        if dropped:
            self._post(self._told("drop", dropped), None)
            for digest in dropped:
                self._left += self._blobs.pop(digest)[0]
        return True

    def _told(self, *told: object) -> bytes:
        is_there, gateway = self._part_sent, self._gateway
        sent = [(PART, None, None)] if is_there else parts.sent_parts(gateway, PART)
        return dumps_internal((sent, told))

    def _post(self, payload: bytes, blob: Blob | None) -> Frame:
        header = _HEADER.pack(Message.SOURCES, 0, len(payload))
        frame = frame_of(self._gateway, header, payload, blob)
        self._gateway.writer.post_frame(frame)
        self._part_sent = True
        return frame


def frame_of(gateway: Inside, header: bytes, payload: bytes, blob: Blob | None) -> Frame:
    """Return a frame of a gateway; a blob means something if the gateway itself goes via others."""
    told = [] if blob is None or gateway.endpoint.carrier is None else [blob]
    frame: Frame = gateway.writer.frame(header, payload, *told)
    return frame


def kept_by(gateway: Any) -> Kept:
    """Return what the worker of a gateway keeps."""
    with gateway.factory.lock:
        kept: Kept = getattr(gateway, "_kept", None) or Kept(gateway)
        gateway._kept = kept
    return kept


def sender_to(gateway: Inside) -> Callable[[Channel, object], None]:
    """Return what sends an item over a channel; to several workers beyond a hop, only once."""
    return Channel.send if gateway.waits_in_loop else send_shared


def send_shared(channel: Channel, item: object, carries: bool = False) -> None:
    """Send an item that other workers are sent as well, as ``Channel.send``.

    If it is large, it crosses each link to workers that go via each other only once.
    carries: whether others will go via this one, if none do so yet.
    """
    gateway, factory = channel.gateway, channel._factory
    carries = carries or "_via.far" in gateway.known_parts
    is_plain = factory.windows is None and channel.codec is None and not channel.isclosed()
    if not is_plain or not (carries or gateway.endpoint.carrier):
        channel.send(item)
        return
    data = (dumps_fast if factory.fast else dumps_internal)(item, gateway)
    if not BLOB_BYTES <= len(data) <= ITEM_MAX:
        channel.send(item)
        return
    digest, header = digest_of(data), _HEADER.pack(Message.CHANNEL_DATA, channel.id, len(data))
    frame = kept_by(gateway).act(digest, data, header) if carries else None
    if frame is None:
        frame = frame_of(gateway, header, data, (digest, len(header), len(header) + len(data)))
    gateway.writer.deliver(frame)
