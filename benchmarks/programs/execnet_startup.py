"""Start of popen gateways until all have answered, in milliseconds.

Arguments: ``one`` gateway; ``many`` of them in one group; ``threads``, which is many, each from
a thread of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from _measure import Result, Scaled, main, milliseconds, time_starts

import execnet

ANSWER = "channel.send(1)"


def start_one() -> execnet.Group:
    group = execnet.Group()
    group.makegateway("popen").remote_exec(ANSWER).receive()
    return group


def start_many(count: int) -> execnet.Group:
    group = execnet.Group(["popen"] * count)
    group.remote_exec(ANSWER).receive_each()
    return group


def start_in_threads(count: int) -> execnet.Group:
    group = execnet.Group()

    def start(_: int) -> None:
        group.makegateway("popen").remote_exec(ANSWER).receive()

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(start, range(count)))
    return group


def stop(group: execnet.Group) -> None:
    group.terminate(5)


def measure(scaled: Scaled, how: str) -> Result:
    if how == "one":
        return milliseconds(time_starts(start_one, stop, scaled(10)))
    start = start_many if how == "many" else start_in_threads
    count = scaled(32)
    return milliseconds(time_starts(lambda: start(count), stop, 1))


if __name__ == "__main__":
    main(measure)
