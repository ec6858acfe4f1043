"""The far half of ``via=``: starts what the coordinator asks for, and forwards its bytes.

This file is shipped to the worker that others go via, with the ``far_`` ones that it imports; they
keep to what Python 2.7 and today's Python both accept.  Nothing of what is forwarded is decoded.

One channel carries the bytes of the stream, in both directions.  Each side has at most
``WINDOW_BYTES`` under way, and a positive number reports how many were taken: see
``_features.credit``.  So nothing piles up here, and nobody waits in this gateway's receiver thread.
The coordinator also sends ``CLOSE``, ``DROP`` and, in order to kill, a tuple (id of the worker's
process or None).  It gets ``EOF`` after the last byte.  A second channel carries what the
coordinator has to know even while it does not read: those numbers, the address of a server that it
is connected to and, when a process has ended, (exit status or None, the end of its stderr, why it
could not start).

What several workers need crosses the link once: [hash, head, tail] stands for the head, what
``far_kept`` keeps by that hash, and the tail.  Start at ``forward``.
"""

from __future__ import annotations

from .far_ends import can_poll
from .far_polled import PolledForwarder
from .far_threads import ThreadedForwarder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway_base import Channel
    from .far_ends import Owner, Request


def forward(
    channel: Channel, news: Channel, request: Request, owner: Owner | None = None
) -> None:
    """Start what is requested, unless it is there already, and forward; returns at once."""
    kind = PolledForwarder if can_poll(channel.gateway.execmodel) else ThreadedForwarder
    kind(channel, news, request, owner).start()


def main(channel: Channel) -> None:
    """Forward as the next item asks; returns at once, the main thread is for other code."""
    forward(*channel.receive())
