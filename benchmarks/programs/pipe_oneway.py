"""Pickles of small items, made beforehand, one way through a pipe, in thousands a second.

The writer writes each with a call of its own, the reader reads as much as there is.
Arguments: ``send`` (to the interpreter) or ``collect`` (from it); the kind of item; ``receive``.
"""

from __future__ import annotations

import os
import pickle
from time import perf_counter

import _items
from _measure import Result, Scaled, main, thousands_per_second
from _pipe import Interpreter

TAKE = """
import os, sys
rest = int(sys.argv[1])
os.write(1, b"1")
while rest:
    rest -= len(os.read(0, 65536)) or sys.exit("cut off")
os.write(1, b"1")
"""

GIVE = """
import os, sys
count, data = int(sys.argv[1]), os.read(0, 65536)
os.write(1, b"1")
os.read(0, 1)
for _ in range(count):
    os.write(1, data)
"""


def send(data: bytes, count: int) -> float:
    """Return the seconds until the interpreter has read ``count`` times ``data``."""
    interpreter = Interpreter(TAKE, len(data) * count)
    interpreter.read(1)
    started = perf_counter()
    for _ in range(count):
        os.write(interpreter.to_it, data)
    interpreter.read(1)
    seconds = perf_counter() - started
    interpreter.stop()
    return seconds


def collect(data: bytes, count: int) -> float:
    """Return the seconds until ``count`` times ``data`` has come from the interpreter."""
    interpreter = Interpreter(GIVE, count)
    interpreter.write(data)
    interpreter.read(1)
    rest = len(data) * count
    started = perf_counter()
    interpreter.write(b"1")
    while rest:
        got = len(os.read(interpreter.from_it, 65536))
        if not got:
            raise EOFError("the interpreter ended")
        rest -= got
    seconds = perf_counter() - started
    interpreter.stop()
    return seconds


def measure(scaled: Scaled, direction: str, kind: str, _: str) -> Result:
    count = scaled(100_000)
    pass_items = send if direction == "send" else collect
    return thousands_per_second(count, [pass_items(pickle.dumps(_items.SMALL[kind], 4), count)])


if __name__ == "__main__":
    main(measure)
