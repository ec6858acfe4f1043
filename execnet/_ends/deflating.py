"""``compress=yes``: has both ends of a gateway deflate large frames.

What does so at either end is ``_features.deflate``.
"""

from __future__ import annotations

from .._errors import BootstrapError
from .._ship import parts
from ..gateway_base import Message, dumps_internal, load_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .._inside import Inside

PART = "_features.deflate"


def begin(gateway: Inside, hello: Mapping[str, Any]) -> None:
    """Begin, in the receiver thread, before anything of the user is sent.

    Raises ``BootstrapError`` if the worker can't do it, ImportError if this process can't.
    """
    if gateway.handshake.is_plain and gateway.settings.attach is None:  # a service has it
        raise BootstrapError("compress=yes needs zlib, which the worker's Python does not have")
    if "zlib" not in hello.get("features", "").split():
        raise BootstrapError("compress=yes: the worker's execnet can't inflate frames")
    here = load_part(PART)
    # With resume= senders wait for room before they queue a frame, and so may overtake each other.
    may_continue = gateway.settings.resume_s is None
    told = parts.sent_parts(gateway, PART), may_continue
    gateway.post_message(Message.SOURCES, 0, dumps_internal(told))
    here.tell(gateway, may_continue and not gateway.waits_in_loop)
