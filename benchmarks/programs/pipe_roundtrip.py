"""One item's pickle, made beforehand, through a pipe and back through another; microseconds."""

from __future__ import annotations

import os
import pickle

import _items
from _measure import Result, Scaled, main, microseconds, time_each
from _pipe import Interpreter

# What fits one buffer is there and back in one call each; the nested item's pickle does.
ECHO = """
import os
while True:
    data = os.read(0, 65536)
    if not data:
        break
    os.write(1, data)
"""


def measure(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    data = pickle.dumps(item, 4)
    interpreter = Interpreter(ECHO)
    to_it, from_it = interpreter.to_it, interpreter.from_it

    def round_trip() -> bytes:
        os.write(to_it, data)
        answer = os.read(from_it, 65536)
        while len(answer) < len(data):
            answer += os.read(from_it, 65536)
        return answer

    if round_trip() != data:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    interpreter.stop()
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
