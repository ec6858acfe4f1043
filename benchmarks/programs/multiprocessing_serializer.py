"""The pickler that ``multiprocessing`` sends with, on one shape of data, in milliseconds."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import _items
from _measure import Result, Scaled, main, milliseconds, time_each


def measure(scaled: Scaled, function: str, shape: str) -> Result:
    items = _items.SHAPES[shape](scaled)
    dumps = [ForkingPickler.dumps(item) for item in items]

    def dump_all() -> None:
        for item in items:
            ForkingPickler.dumps(item)

    def load_all() -> None:
        for dump in dumps:
            ForkingPickler.loads(dump)

    return milliseconds(time_each(dump_all if function == "dumps" else load_all, 5))


if __name__ == "__main__":
    main(measure)
