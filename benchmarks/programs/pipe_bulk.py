"""Large ``bytes`` one way through a pipe, in megabytes a second.

Arguments: ``send`` (to the interpreter) or ``collect`` (from it); the size of one item. Each
item is read into an object of its own.
"""

from __future__ import annotations

import _items
from _measure import Result, Scaled, main, megabytes_per_second, time_each
from _pipe import Interpreter

# The far ends read and write as ``Interpreter.read`` and ``Interpreter.write`` do here.
TAKE = """
import os, sys
size, count = int(sys.argv[1]), int(sys.argv[2])
while True:
    for _ in range(count):
        taken = memoryview(bytearray(size))
        while taken:
            got = os.readv(0, [taken])
            if not got:
                sys.exit()
            taken = taken[got:]
    os.write(1, b"1")
"""

GIVE = """
import os, sys
size, count = int(sys.argv[1]), int(sys.argv[2])
data = b"x" * size
while os.read(0, 1):
    for _ in range(count):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest):]
"""


def measure_with(buffer_bytes: int | None, scaled: Scaled, direction: str, size: str) -> Result:
    """Measure with the kernel's buffers as they are, or of ``buffer_bytes``."""
    size_bytes = _items.BULK_BYTES[size]
    count = scaled(_items.BULK_TOTAL_BYTES // size_bytes)
    interpreter = Interpreter(TAKE if direction == "send" else GIVE, size_bytes, count)
    if buffer_bytes is not None:
        interpreter.buffer(buffer_bytes)
    data = b"x" * size_bytes

    def send() -> None:
        for _ in range(count):
            interpreter.write(data)
        interpreter.read(1)

    def collect() -> None:
        interpreter.write(b"1")
        for _ in range(count):
            interpreter.read(size_bytes)

    pass_all = send if direction == "send" else collect
    samples = time_each(pass_all, _items.BULK_SAMPLES, warm_up=1)
    interpreter.stop()
    return megabytes_per_second(count * size_bytes, samples)


def measure(scaled: Scaled, direction: str, size: str) -> Result:
    return measure_with(None, scaled, direction, size)


if __name__ == "__main__":
    main(measure)
