"""Gateways whose streams few threads read: what tests of these do with them."""

from __future__ import annotations

import threading

from tools import BOUND_S
from workers import ECHO

from execnet import Channel, Gateway


def names(start: str) -> list[str]:
    """Return the names of the threads of this process that begin so."""
    return [t.name for t in threading.enumerate() if t.name.startswith(start)]


def ping(*channels: Channel) -> None:
    """Send something over channels to echoes, one after the other, and receive it."""
    for channel in channels:
        channel.send(5)
        assert channel.receive(BOUND_S) == 5


def echoes(gateways: list[Gateway]) -> list[Channel]:
    """Have each gateway's worker send back what it gets; return the channels to these."""
    return [gateway.remote_exec(ECHO) for gateway in gateways]
