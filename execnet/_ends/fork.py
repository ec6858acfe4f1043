"""What child processes of a coordinator inherit.

A forked child owns none of the gateways: objects that are registered here learn of the fork in the
child, before anything else runs there.  Start at ``register``.
"""

from __future__ import annotations

import os
import weakref

from ..gateway_base import ENDMARKER, ChannelState, _Flag, new_rlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ..gateway_base import Channel, ChannelFactory

    class Owner(Protocol):
        """Owns something that a forked process must leave alone."""

        def _disown(self) -> None: ...


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def register(owner: Owner) -> None:
    """Call ``owner._disown()`` in every process that is forked from this one."""
    _owners.add(owner)


def _disown_all() -> None:
    for owner in list(_owners):
        owner._disown()
    _owners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def disown_channels(factory: ChannelFactory) -> None:
    """In a forked process: nothing is sent or received any more, and no lock is held."""
    factory.finished, factory.direct = True, None
    factory.lock = new_rlock()
    factory._callbacks.clear()
    for channel in factory.channels():
        _disown_channel(channel)


def _disown_channel(channel: Channel) -> None:
    execmodel = channel.gateway.execmodel
    channel._state = ChannelState.RECEIVE_CLOSED
    channel._lock = execmodel.Lock()
    channel._receiveclosed = _Flag(execmodel)
    channel._receiveclosed.set()
    if channel._items is not None:
        channel._set_inbox(execmodel.inbox())
        channel._items.put(ENDMARKER)


def stderr_of_children(null: int) -> int | None:
    """Return the stderr for a child process: None for ours, or ``null``.

    Ours need not be descriptor 2: if stderr is closed, the program may have another file there.
    """
    try:
        return None if os.get_inheritable(2) else null
    except OSError:
        return null
