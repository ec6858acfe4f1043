"""Large buffers one way through memory that a popen worker shares, in megabytes a second.

Arguments: ``send`` (to the worker) or ``collect`` (from it); the size of one item; ``copied`` from
a buffer of the program's own, or ``made`` where the other side finds it.
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
size, is_made = channel.receive()
data = bytearray(size)
channel.send("ready")
for count in channel:
    for _ in range(count):
        channel.send_bytes(channel.new_buffer(size) if is_made else data)
"""


def measure(scaled: Scaled, direction: str, size: str, how: str) -> Result:
    size_bytes, is_made = _items.BULK_BYTES[size], how == "made"
    count = scaled(_items.BULK_TOTAL_BYTES // size_bytes)
    group = execnet.Group(["popen//buffers=shared"])

    if direction == "send":
        channel = group[0].remote_exec(TAKE)
        data = bytearray(size_bytes)

        def pass_all() -> int:
            channel.send(count)
            for _ in range(count):
                channel.send_bytes(channel.new_buffer(size_bytes) if is_made else data)
            return channel.receive()
    else:
        channel = group[0].remote_exec(GIVE)
        channel.send((size_bytes, is_made))
        channel.receive()

        def pass_all() -> int:
            channel.send(count)
            return sum(len(channel.receive()) for _ in range(count))

    rate = bulk_rate(pass_all, count * size_bytes, _items.BULK_SAMPLES)
    group.terminate(5)
    return rate


if __name__ == "__main__":
    main(measure)
