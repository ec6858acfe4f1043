"""Sends one item to many workers: made into bytes once, posted to all, then waited for.

The thread that sends writes to each stream as much as that takes, and polls those that are full.
So a worker that does not read holds up no other, and no other thread is needed.  Channels for which
that can't be done get the item afterwards, one after the other.  Start at ``send_to_all``.
"""

from __future__ import annotations

from ._endpoint import Writer
from .gateway_base import (
    FOUR_BYTE_INT_MAX,
    ITEM_MAX,
    Channel,
    ChannelState,
    DumpError,
    _left,
    _pack_op,
    dumps_fast,
    dumps_internal,
    opcode,
    real_select,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._endpoint import ReadyWay
    from .gateway_base import Frame

    Ways = dict[Writer, tuple[int, ReadyWay]]

LOOK_MS = 1000  # how often to look at streams of which polling tells nothing


def send_to_all(channels: Iterable[Channel], item: object) -> None:
    """Send an item over channels; return when the streams of all have taken it.

    Raises ``DumpError`` if it can't be serialized; then nothing was sent.  Otherwise all channels
    that can send do, then the first error of the others is raised.
    """
    shared = _Shared(item)
    ways: Ways = {}
    sent: list[tuple[Channel, Frame | None]] = []  # the last frame; None: it was not posted
    try:
        for channel in channels:
            sent.append((channel, _post(channel, shared, ways)))
        _write(ways)
    finally:
        for writer in ways:
            writer.go_on()
    errors: list[Exception] = []
    for channel, frame in sent:
        try:
            if frame is None:
                channel.send(item)
            elif _left(frame) and not _is_in_callback(channel):
                channel.gateway._writer.deliver(frame)
        except (OSError, EOFError) as exc:
            errors.append(exc)
    if errors:
        raise errors[0]


class _Shared:
    """An item as bytes, made once for each of the two formats."""

    def __init__(self, item: object) -> None:
        self._item = item
        self._made: dict[bool, list[bytes] | None] = {}

    def pieces(self, is_fast: bool) -> list[bytes] | None:
        """Return the bytes; None if only one gateway can say whether they may leave it."""
        if is_fast not in self._made:
            self._made[is_fast] = self._make(is_fast)
        return self._made[is_fast]

    def _make(self, is_fast: bool) -> list[bytes] | None:
        item = self._item
        if type(item) is bytes and ITEM_MAX < len(item) <= FOUR_BYTE_INT_MAX:
            return [_pack_op(opcode.BYTES, len(item)), item, opcode.STOP]
        try:
            return [(dumps_fast if is_fast else dumps_internal)(item, False)]
        except DumpError:  # a channel is in it, or what can't be sent at all
            return None


def _post(channel: Channel, shared: _Shared, ways: Ways) -> Frame | None:
    """Queue an item and return its last frame; None if the channel has to send it itself."""
    gateway, factory = channel.gateway, channel._factory
    writer = gateway._writer
    if type(channel) is not Channel or channel._state not in ChannelState.SENDS:
        return None
    if factory.windows is not None or type(writer) is not Writer:
        return None
    if writer not in ways:
        way = gateway._io.ready_way()
        if way is None:
            return None
        ways[writer] = way
    pieces = shared.pieces(factory.fast)
    frame: Frame | None = None
    for _, header, payload in factory.frames_of(channel.id, pieces) if pieces else ():
        frame = writer.frame(header, payload)
        writer.queue(frame)
    return frame


def _write(ways: Ways) -> None:
    """Write what is queued until all streams have taken it, or somebody else writes to them."""
    select = real_select()
    poll = select.poll()
    full: dict[int, tuple[Writer, ReadyWay]] = {}
    for writer, (fd, way) in ways.items():
        if writer.write_ready(way) is False:
            full[fd] = writer, way
            poll.register(fd, select.POLLOUT)
    while full:
        ready = [fd for fd, _ in poll.poll(LOOK_MS)]
        for fd in ready or list(full):
            writer, way = full[fd]
            if writer.write_ready(way) is not False:
                del full[fd]
                poll.unregister(fd)


def _is_in_callback(channel: Channel) -> bool:
    """Whether this is the thread that has to go on reading the channel's gateway."""
    gateway = channel.gateway
    return bool(gateway._get_ident() == gateway._receiver_ident)
