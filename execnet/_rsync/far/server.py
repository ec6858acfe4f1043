"""The far half of ``RSync.pull``: offers a tree to the coordinator, which is the target.

This file is shipped, after the other modules that say so; see ``_rsync.pull``.
"""

from __future__ import annotations

from . import wire
from .pump import Pump
from .rules import Rules
from .tree import SourceGone, Tree
from .watcher import TargetFailed, Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(channel: Any) -> None:
    """Offer what the next item names, but for a path in it and what its rules leave out.

    The first thing to be told is what it is.

    What cannot be offered is (None, errno, reason).
    """
    remarks: Any = []
    root, left_out, rules = channel.receive()
    try:
        tree = Tree(
            root,
            left_out and (lambda path: path != left_out),
            lambda path, reason: remarks.append((path, reason)),
            Rules(rules) if rules else None,
        )
    except OSError as exc:
        channel.send((None, exc.errno or 0, wire.reason_of(exc)))
        return
    channel.send((tree.root_entry, wire.hash_costs()))
    walk = tree.walk()

    def supply() -> Any:
        step = next(walk)
        while remarks:
            channel.send((wire.REMARK,) + remarks.pop(0))
        return step

    try:
        try:
            pump = Pump(tree, supply, channel.send, channel.receive, Watcher())
            pump.is_bounded = True
            pump.run()
        except SourceGone as exc:
            channel.send((wire.GONE, exc.errno, wire.reason_of(exc)))
            while True:  # until the target has seen it and closes
                channel.receive()
    except (TargetFailed, EOFError):
        pass  # the target knows why it ended
    finally:
        walk.close()
