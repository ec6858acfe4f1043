"""Start of ``popen//forkserver`` gateways until all have answered, in milliseconds.

Arguments: ``one`` gateway, or ``many`` of them in one group. The first start, which starts the
template, is not counted.
"""

from __future__ import annotations

from _measure import Result, Scaled, main, milliseconds, time_starts

import execnet

SPEC = "popen//forkserver"
ANSWER = "channel.send(1)"


def start(count: int) -> execnet.Group:
    group = execnet.Group([SPEC] * count)
    group.remote_exec(ANSWER).receive_each()
    return group


def stop(group: execnet.Group) -> None:
    group.terminate(5)


def measure(scaled: Scaled, how: str) -> Result:
    if how == "one":
        return milliseconds(time_starts(lambda: start(1), stop, scaled(20)))
    count = scaled(32)
    return milliseconds(time_starts(lambda: start(count), stop, 3))


if __name__ == "__main__":
    main(measure)
