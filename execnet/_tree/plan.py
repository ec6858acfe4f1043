"""Which worker of a tree is reached through which other one.

The workers of the first level are reached from here.  Each level is as wide as ``fanout`` lets it
be, but for the last, which is spread over the level above it.  Start at ``arranged``.
"""

from __future__ import annotations

from .._specs import JOINED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._specs import Settings
    from ..xspec import XSpec


def check_fanout(fanout: int) -> None:
    """Raise TypeError unless it is a whole number, ValueError if it is below 1."""
    if not isinstance(fanout, int) or isinstance(fanout, bool):
        raise TypeError(f"fanout={fanout!r} is no whole number")
    if fanout < 1:
        raise ValueError(f"fanout={fanout}: each worker has to lead to at least one")


def arranged(prepared: list[Settings], fanout: int) -> list[XSpec]:
    """Return the specs, which have ids, each with ``via`` set to the worker that leads to it.

    Raises ValueError for a spec that can't be part of a tree.
    """
    for settings in prepared:
        _check(settings)
    specs = [settings.spec for settings in prepared]
    for spec, parent in zip(specs, parents_of(len(specs), fanout), strict=True):
        if parent is not None:
            setattr(spec, "via", specs[parent].id)  # noqa: B010  # a key of any name, for mypy
    return specs


def _check(settings: Settings) -> None:
    reason = ""
    for key in "via", "installvia":
        if vars(settings.spec).get(key) is not None:
            reason = f"{key}= can't be, as the tree itself says which worker leads to which"
    if settings.type == JOINED:
        reason = "workers that dial in are reached as they come, not as a tree says"
    if reason:
        raise ValueError(f"spec {settings.spec.shown()!r}: {reason}")


def parents_of(count: int, fanout: int) -> list[int | None]:
    """Return for each of so many workers the number of the one that leads to it; None for none."""
    parents: list[int | None] = [None] * min(count, fanout)
    above = range(len(parents))
    while len(parents) < count:
        begin = len(parents)
        width = min(len(above) * fanout, count - begin)
        parents += [above[number * len(above) // width] for number in range(width)]
        above = range(begin, begin + width)
    return parents
