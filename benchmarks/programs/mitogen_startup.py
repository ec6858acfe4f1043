"""Start of local mitogen contexts until all have answered a call, in milliseconds.

Arguments: ``one``, or ``many``, each from a thread of its own: the calls that start them block.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from _measure import Result, Scaled, main, milliseconds, time_starts
from _mitogen import Router


def start(count: int) -> Router:
    router = Router()

    def start_one(_: int) -> int:
        return router.start().call(os.getpid)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(start_one, range(count)))
    return router


def measure(scaled: Scaled, how: str) -> Result:
    if how == "one":
        return milliseconds(time_starts(lambda: start(1), Router.stop, scaled(10)))
    return milliseconds(time_starts(lambda: start(scaled(32)), Router.stop, 1))


if __name__ == "__main__":
    main(measure)
