"""One item to a local mitogen context and back by a call, in microseconds."""

from __future__ import annotations

import copy

import _items
import mitogen.core
from _measure import Result, Scaled, main, microseconds, time_each
from _mitogen import Router


def measure_with(context: mitogen.core.Context, scaled: Scaled, kind: str) -> Result:
    """Measure with a context that is there."""
    item, count = _items.round_trips(kind)

    def round_trip() -> object:
        return context.call(copy.copy, item)

    if round_trip() != item:
        raise ValueError("another item came back")
    return microseconds(time_each(round_trip, scaled(count), warm_up=scaled(count // 10)))


def measure(scaled: Scaled, kind: str) -> Result:
    router = Router()
    result = measure_with(router.start(), scaled, kind)
    router.stop()
    return result


if __name__ == "__main__":
    main(measure)
