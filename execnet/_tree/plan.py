"""Which worker of a tree is reached through which other one.

The workers of the first level are reached from here.  Each level is as wide as ``fanout`` lets it
be, but for the last, which is spread over the level above it.  Start at ``arranged``.
"""

from __future__ import annotations

from collections import Counter

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

    ``_level`` becomes the ids of all workers of that one's level, and at which of them to begin
    when it has died: the worker after it, for its second child the next one, and so on.
    Raises ValueError for a spec that can't be part of a tree.
    """
    for settings in prepared:
        _check(settings)
    specs = [settings.spec for settings in prepared]
    parents = parents_of(len(specs), fanout)
    depths: list[int] = []
    levels: list[list[str]] = []
    places: list[int] = []  # in their levels
    begun: Counter[int] = Counter()  # children, by parent
    for spec, parent in zip(specs, parents, strict=True):
        depths.append(0 if parent is None else depths[parent] + 1)
        if depths[-1] == len(levels):
            levels.append([])
        level = levels[depths[-1]]
        places.append(len(level))
        level.append(str(spec.id))
        if parent is not None:
            begun[parent] += 1
            above = levels[depths[parent]]
            vars(spec)["via"] = specs[parent].id
            vars(spec)["_level"] = above, (places[parent] + begun[parent]) % len(above)
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
