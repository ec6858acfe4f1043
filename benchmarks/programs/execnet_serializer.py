"""``dumps`` or ``loads`` of one shape of data, in milliseconds."""

from __future__ import annotations

import hashlib

import _items
from _measure import Result, Scaled, main, milliseconds, time_each

import execnet


def measure(scaled: Scaled, function: str, shape: str) -> Result:
    items = _items.SHAPES[shape](scaled)
    dumps = [execnet.dumps(item) for item in items]
    if [execnet.loads(dump) for dump in dumps] != items:
        raise ValueError("another item came back")

    def dump_all() -> None:
        for item in items:
            execnet.dumps(item)

    def load_all() -> None:
        for dump in dumps:
            execnet.loads(dump)

    samples = time_each(dump_all if function == "dumps" else load_all, 5)
    digest = hashlib.sha256(b"".join(dumps)).hexdigest()
    return milliseconds(samples) | {"digest": digest}


if __name__ == "__main__":
    main(measure)
