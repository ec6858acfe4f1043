"""Which frames a worker may send, how large, and for which channels.

A coordinator serves many workers, and a hostile one must cost it no more than that one gateway.
What a coordinator sends is not checked: a worker runs whatever the coordinator wants anyway.
Start at ``Admission``.
"""

from __future__ import annotations

from ..gateway_base import ITEM_MAX, PART_BYTES, Message, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._inside import Inside

HELLO_MAX = 1 << 16
TEXT_MAX = 1 << 24  # of errors and stacks
SMALL_MAX = 1 << 10
EXACT = 100  # this many items are counted to the byte
QUEUED_MAX = 10_000  # frames that a worker left unread, which tell it what was read here
EARLY_MAX = 1000  # channels that were configured before they appeared
EARLY_EACH_MAX = 100  # how often each of them was; an honest worker does so once or twice
EARLY_FRAMES_MAX = 10_000  # how often all of them were: each time takes some 300 bytes

# What a worker may send -> the most bytes, and whether it is about a channel.  Items are limited
# where they are put together.  A code without a row, such as CHANNEL_EXEC or CALL, is never
# accepted from a worker.
ADMITTED: dict[int, tuple[int, bool]] = {
    Message.CHANNEL_DATA: (1 << 31, True),
    Message.CHANNEL_DATA_PART: (1 << 31, True),
    Message.CHANNEL_CLOSE: (0, True),
    Message.CHANNEL_CLOSE_ERROR: (TEXT_MAX, True),
    Message.CHANNEL_LAST_MESSAGE: (0, True),
    Message.RECONFIGURE: (SMALL_MAX, True),
    Message.WINDOW: (SMALL_MAX, True),
    Message.CREDIT: (SMALL_MAX, True),
    Message.HELLO: (HELLO_MAX, False),  # once, as its first frame
    Message.PING: (0, False),  # those with intervals would start a thread each
    Message.STACKS: (TEXT_MAX, False),  # these are stacks; one without text would ask for ours
    Message.GOODBYE: (HELLO_MAX, False),
    Message.IMPORT: (4 * SMALL_MAX, True),  # about a request of its own, to one that forwards
    Message.ACK: (4 * SMALL_MAX, False),  # where the spec says resume=
    Message.SHARED: (PART_BYTES + SMALL_MAX, True),  # both where it says buffers=shared
    Message.RELEASED: (8, False),
    Message.DEFLATED: (ITEM_MAX, True),  # where it says compress=; what is within is checked, too
}
OF_MEMORY = Message.SHARED, Message.RELEASED
# An honest worker may send these before a channel exists here, and after it was closed here.
ABOUT_CHANNELS = Message.RECONFIGURE, Message.WINDOW, Message.CREDIT


class Admission:
    """Checks the header of each frame of one worker, in the receiver thread of its gateway."""

    def __init__(self, gateway: Inside) -> None:
        self._gateway = gateway
        self._early: dict[int, int] = {}  # how often a channel that has not come was configured
        self._early_frames = 0

    def __call__(self, code: int, channel_id: int, size: int) -> bool:
        """Return whether to act on a frame; False for one to drop silently.

        Raises ``ProtocolError`` for one that no honest worker sends.
        """
        most, has_channel = ADMITTED.get(code, (-1, False))
        name = Message._types[code][0]
        if most < 0:
            raise ProtocolError(f"a worker may not send {name}")
        if size > most:
            raise ProtocolError(f"{name} of {size} bytes, where a worker may send {most}")
        if has_channel != (channel_id > 0):
            about = "without a channel" if has_channel else f"for channel {channel_id}"
            raise ProtocolError(f"{name} {about}")
        if code == Message.ACK and self._gateway.settings.resume_s is None:
            raise ProtocolError("an ACK, without resume=")
        if code in OF_MEMORY and not self._gateway.settings.shares_buffers:
            raise ProtocolError(f"{name}, without buffers=shared")
        if code == Message.DEFLATED and not self._gateway.settings.compresses:
            raise ProtocolError("DEFLATED, without compress=")
        if code == Message.HELLO and self._gateway.handshake.answered.is_set():
            raise ProtocolError("a second HELLO")
        if code == Message.STACKS and not size:
            raise ProtocolError("a worker may not ask for stacks")
        return code not in ABOUT_CHANNELS or self._is_of_a_channel(channel_id)

    def _is_of_a_channel(self, channel_id: int) -> bool:
        """Whether there is such a channel here, or may be soon."""
        factory = self._gateway.factory
        if channel_id in factory._channels or channel_id in factory._callbacks:
            return True
        if channel_id % 2:  # ours are odd
            if channel_id >= factory.count:
                raise ProtocolError(f"there never was a channel {channel_id}")
            return False
        if channel_id in factory.arrived:
            return False
        self._count_early(channel_id)
        return True

    def _count_early(self, channel_id: int) -> None:
        """Note what is kept for a channel that has not come; ``ProtocolError`` if it is much."""
        if len(self._early) >= EARLY_MAX or self._early_frames >= EARLY_FRAMES_MAX:
            for arrived in list(self._gateway.factory.arrived):
                self._early_frames -= self._early.pop(arrived, 0)
        count = self._early.get(channel_id, 0) + 1
        if len(self._early) >= EARLY_MAX and count == 1:
            raise ProtocolError(f"{EARLY_MAX} channels were configured and never came")
        if count > EARLY_EACH_MAX or self._early_frames >= EARLY_FRAMES_MAX:
            most = EARLY_EACH_MAX if count > EARLY_EACH_MAX else EARLY_FRAMES_MAX
            raise ProtocolError(f"channels that never came were configured {most} times")
        self._early[channel_id] = count
        self._early_frames += 1


class BoundedSizes(list[int]):
    """The sizes of the unread items of a channel with a window, from a worker that may ignore it.

    A worker may have one item in transit, or as many as fit the window; here one more is allowed.
    ``append`` runs in the receiver thread, and adds up only now and then.
    """

    def __init__(self, window_bytes: int) -> None:
        super().__init__()
        self._window = window_bytes  # the largest since everything was read, or just before
        self._now = self._recent = window_bytes
        self._room = 0  # bytes that may come before the next sum
        self.credited = 0  # how many of the first ones the worker may know to have been read

    def announce(self, window_bytes: int) -> None:
        """The worker was given another window, or is about to be."""
        self._now = window_bytes
        self._recent = max(self._recent, window_bytes)
        self._window = max(self._window, window_bytes)

    def append(self, size: int) -> None:
        """Note an item; ``ProtocolError`` if there are too many already."""
        if not self:
            self._window, self._recent = (
                self._recent,
                self._now,
            )  # it may not know the last yet
        self._room -= size
        if len(self) > 1 and (self._room < 0 or len(self) < EXACT):
            unread = sum(self[self.credited :])
            slack = 0 if len(self) < EXACT else self._window // 4
            if unread > self._window + slack:
                raise ProtocolError(f"{unread} bytes of a channel with window={self._window}")
            self._room = self._window + slack - unread - size
        super().append(size)

    @staticmethod
    def check_queue(gateway: Inside) -> None:
        """End a worker that keeps sending, but does not read what it is told about that."""
        if len(gateway.writer._frames) > QUEUED_MAX:
            gateway.give_up("it reads nothing")
