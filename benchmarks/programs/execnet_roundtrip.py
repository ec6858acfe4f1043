"""One item to a popen gateway and back, in microseconds."""

from __future__ import annotations

import _items
from _measure import Result, Scaled, main, microseconds, time_each

import execnet

ECHO = "for item in channel:\n    channel.send(item)"


def measure(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    group = execnet.Group(["popen"])
    channel = group[0].remote_exec(ECHO)

    def round_trip() -> object:
        channel.send(item)
        return channel.receive()

    if round_trip() != item:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    group.terminate(5)
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
