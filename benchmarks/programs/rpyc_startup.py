"""Start of rpyc servers until all have answered, in milliseconds.

Arguments: ``one``, or ``many``, each from a thread of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import _rpyc
import rpyc
from _measure import Result, Scaled, main, milliseconds, time_starts


def start_one(_: int = 0) -> rpyc.Connection:
    connection = _rpyc.start()
    connection.eval("1")
    return connection


def start_many(count: int) -> list[rpyc.Connection]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(start_one, range(count)))


def stop(connections: list[rpyc.Connection]) -> None:
    for connection in connections:
        _rpyc.stop(connection)


def measure(scaled: Scaled, how: str) -> Result:
    if how == "one":
        return milliseconds(time_starts(start_one, _rpyc.stop, scaled(10)))
    return milliseconds(time_starts(lambda: start_many(scaled(32)), stop, 1))


if __name__ == "__main__":
    main(measure)
