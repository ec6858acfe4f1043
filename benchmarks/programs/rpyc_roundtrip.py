"""One item to an rpyc server and back, in microseconds.

An int goes by value. Lists and dicts would go by reference, so they are copied there and back by
rpyc's own functions for that.
"""

from __future__ import annotations

import _items
import _rpyc
import rpyc
from _measure import Result, Scaled, main, microseconds, time_each


def measure(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    connection = _rpyc.start()
    connection.execute("def echo(item): return item")
    echo = connection.namespace["echo"]

    def by_value() -> object:
        return echo(item)

    def by_copy() -> object:
        return rpyc.classic.obtain(echo(rpyc.classic.deliver(connection, item)))

    round_trip = by_value if isinstance(item, int) else by_copy
    if round_trip() != item:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    _rpyc.stop(connection)
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
