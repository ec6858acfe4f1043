"""The far half of ``RSync.pull``: offers a tree to the coordinator, which is the target.

This file is shipped, after the modules that it imports; see ``_rsync.pull``.
"""

from __future__ import annotations

import os

from . import digests, wire
from .apart import place_of
from .pump import Pump
from .rules import Rules
from .tree import SourceGone, Tree
from .watcher import TargetFailed, Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...gateway_base import Channel
    from .tree import Step
    from .wire import Send, SourceOptions


class Reporter(Watcher):
    """Tells the coordinator what a target that is another worker is doing."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def sending(self, paths: Sequence[bytes]) -> None:
        self._send((wire.TOLD, "sending", (list(paths),)))

    def sent(self, count: int) -> None:
        self._send((wire.TOLD, "sent", (count,)))

    def skipped(self, path: bytes, reason: bytes) -> None:
        self._send((wire.TOLD, "skipped", (path, reason)))

    def planned(self, paths: Sequence[bytes], deleted: Sequence[bytes]) -> None:
        self._send((wire.TOLD, "planned", (list(paths), list(deleted))))

    def ended(self, unchanged: int, settled: int, deleted: int, refused: Sequence[int]) -> None:
        self._send((wire.TOLD, "ended", (unchanged, settled, deleted) + tuple(refused)))


def main(channel: Channel) -> None:
    """Offer a tree as the next item says: (its root, a path that is left out, rules, options).

    The first answer says what the root is, the cost of hashes, and the place of a directory; or it
    is (None, errno, reason) if the root can't be offered.
    """
    wire.widen(channel.gateway._io, "outfile")
    remarks: list[tuple[bytes, bytes]] = []
    root, left_out, rules, options = channel.receive()
    if options["expands"]:
        root = os.path.expanduser(root)
    try:
        tree = Tree(
            root,
            None,
            lambda path, reason: remarks.append((path, reason)),
            Rules(rules) if rules else None,
        )
    except OSError as exc:
        channel.send((None, exc.errno or 0, wire.reason_of(exc)))
        return
    if left_out:
        tree.hidden = frozenset([left_out])
    if options["owners"]:
        tree.tell_owners()
    place = place_of(root) if tree.root_entry[0] == wire.DIRECTORY else None
    channel.send((tree.root_entry, digests.costs(), place))
    _offer(channel, tree, remarks, options)


def _offer(
    channel: Channel, tree: Tree, remarks: list[tuple[bytes, bytes]], options: SourceOptions
) -> None:  # fmt: skip
    """Serve a tree until the target has all; remarks: of the walk, sent between its steps."""
    walk = tree.walk()

    def supply() -> Step:
        step = next(walk)
        while remarks:
            remark = remarks.pop(0)
            if options["reports"]:
                channel.send((wire.TOLD, "skipped", remark))
            else:
                channel.send((wire.REMARK,) + remark)
        return step

    watcher = Reporter(channel.send) if options["reports"] else Watcher()
    try:
        try:
            pump = Pump(tree, supply, channel.send, channel.receive, watcher)
            pump.is_bounded = True
            pump.compresses = options["compress"] and wire.CAN_PACK
            pump.most_per_s = options["most_per_s"]
            pump.run()
        except SourceGone as exc:
            channel.send((wire.GONE, exc.errno, wire.reason_of(exc)))
            while True:  # until the target has seen it and closes
                channel.receive()
    except (TargetFailed, EOFError):
        pass  # the target knows why it ended
    finally:
        walk.close()
