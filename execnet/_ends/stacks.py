"""The stacks of several workers, asked for at once."""

from __future__ import annotations

from .._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from ..gateway_base import Channel


def collect_stacks(gateways: list[Gateway], deadline: float | None) -> dict[str, str]:
    """Ask all gateways at once, then wait for their answers until the deadline."""
    asked: dict[str, Channel | Exception] = {}
    for gateway in gateways:
        try:
            asked[gateway.id] = gateway.ask_stacks()
        except OSError as exc:
            asked[gateway.id] = exc
    stacks = {}
    for id, channel in asked.items():
        try:
            if isinstance(channel, Exception):
                raise channel
            left = None if deadline is None else max(0.0, deadline - monotonic())
            stacks[id] = channel.receive(left)
        except (OSError, EOFError) as exc:
            stacks[id] = f"not available: {exc}"
    return stacks
