"""10,000 small calls by four popen workers, in milliseconds."""

from __future__ import annotations

from time import perf_counter

from _measure import Result, Scaled, main

import execnet


def increased(number: int) -> int:
    return number + 1


def measure(scaled: Scaled, chunksize: str) -> Result:
    numbers = range(scaled(10_000))
    with execnet.Group(["popen"] * 4) as group, group.executor() as executor:
        list(executor.map(increased, range(100)))
        start = perf_counter()
        results = list(executor.map(increased, numbers, chunksize=int(chunksize)))
        taken_s = perf_counter() - start
    if results != [number + 1 for number in numbers]:
        raise ValueError("other results came back")
    return {"samples": [1e3 * taken_s]}


if __name__ == "__main__":
    main(measure)
