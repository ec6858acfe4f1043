"""One item to a local mitogen context and back by a call, in microseconds."""

from __future__ import annotations

import copy

import _items
from _measure import Result, Scaled, main, microseconds, time_each
from _mitogen import Router


def measure(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    router = Router()
    context = router.start()

    def round_trip() -> object:
        return context.call(copy.copy, item)

    if round_trip() != item:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    router.stop()
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
