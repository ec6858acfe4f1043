"""What a worker keeps, by hashes, for those that go via it, and for itself.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  ``blobs``, the
other half, decides what is kept and for how long.  Start at ``tell``.
"""

from __future__ import annotations

from ..gateway_base import _HEADER, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import BaseGateway


def kept_of(gateway: Any) -> dict[bytes, bytes]:
    """Return what is kept here."""
    with gateway._channelfactory.lock:
        kept: dict[bytes, bytes] = getattr(gateway, "kept", {})
        gateway.kept = kept
    return kept


def tell(gateway: BaseGateway, told: tuple[object, ...]) -> None:
    """Do as the coordinator says, in the receiver thread."""
    _DOES[told[0]](gateway, *told[1:])


def _keep(gateway: BaseGateway, digest: bytes, data: bytes) -> None:
    kept_of(gateway)[digest] = data


def _drop(gateway: BaseGateway, digests: list[bytes]) -> None:
    kept = kept_of(gateway)
    for digest in digests:
        kept.pop(digest, None)


def _act(gateway: BaseGateway, digest: bytes, head: bytes) -> None:
    """Act as if a frame with this header, and what is kept as its payload, had come."""
    code, id, _ = _HEADER.unpack_from(head)
    Message(code, id, kept_of(gateway)[digest]).received(gateway)


_DOES: dict[object, Callable[..., object]] = {"keep": _keep, "drop": _drop, "act": _act}
