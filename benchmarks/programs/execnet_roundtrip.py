"""One item to a popen gateway and back, in microseconds."""

from __future__ import annotations

import _items
from _measure import Result, Scaled, main, microseconds, time_each

import execnet

ECHO = "for item in channel:\n    channel.send(item)"


def measure_with(gateway: execnet.Gateway, scaled: Scaled, kind: str) -> Result:
    """Measure with a gateway that is there."""
    item, count = _items.round_trips(kind)
    channel = gateway.remote_exec(ECHO)

    def round_trip() -> object:
        channel.send(item)
        return channel.receive()

    if round_trip() != item:
        raise ValueError("another item came back")
    return microseconds(time_each(round_trip, scaled(count), warm_up=scaled(count // 10)))


def measure(scaled: Scaled, kind: str) -> Result:
    group = execnet.Group(["popen"])
    result = measure_with(group[0], scaled, kind)
    group.terminate(5)
    return result


if __name__ == "__main__":
    main(measure)
