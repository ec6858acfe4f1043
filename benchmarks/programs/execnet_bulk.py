"""Large ``bytes`` one way through a popen gateway, in megabytes a second.

Arguments: ``send`` (to the worker) or ``collect`` (from it); the size of one item; the spec of a
worker behind that one, to measure that in its place.
"""

from __future__ import annotations

import _items
from _measure import Result, Scaled, bulk_rate, main

import execnet

TAKE = """
    for count in channel:
        channel.send(sum(len(channel.receive()) for _ in range(count)))
    """

GIVE = """
    data = b"x" * channel.receive()
    channel.send("ready")
    for count in channel:
        for _ in range(count):
            channel.send(data)
    """


def measure(scaled: Scaled, direction: str, size: str, behind: str = "") -> Result:
    size_bytes = _items.BULK_BYTES[size]
    count = scaled(_items.BULK_TOTAL_BYTES // size_bytes)
    group = execnet.Group(["popen//id=first"])
    gateway = group.makegateway(behind) if behind else group[0]

    if direction == "send":
        channel = gateway.remote_exec(TAKE)
        data = b"x" * size_bytes

        def pass_all() -> int:
            channel.send(count)
            for _ in range(count):
                channel.send(data)
            return channel.receive()
    else:
        channel = gateway.remote_exec(GIVE)
        channel.send(size_bytes)
        channel.receive()

        def pass_all() -> int:
            channel.send(count)
            return sum(len(channel.receive()) for _ in range(count))

    rate = bulk_rate(pass_all, count * size_bytes, _items.BULK_SAMPLES)
    group.terminate(5)
    return rate


if __name__ == "__main__":
    main(measure)
