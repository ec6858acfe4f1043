"""Start of bare interpreters until all have written a byte, in milliseconds.

Arguments: ``one``, or ``many`` at once.
"""

from __future__ import annotations

from _measure import Result, Scaled, main, milliseconds, time_starts
from _pipe import Interpreter

ANSWER = "import os; os.write(1, b'1'); os.read(0, 1)"


def start(count: int) -> list[Interpreter]:
    started = [Interpreter(ANSWER) for _ in range(count)]
    for interpreter in started:
        interpreter.read(1)
    return started


def stop(started: list[Interpreter]) -> None:
    for interpreter in started:
        interpreter.stop()


def measure(scaled: Scaled, how: str) -> Result:
    if how == "one":
        return milliseconds(time_starts(lambda: start(1), stop, scaled(10)))
    return milliseconds(time_starts(lambda: start(scaled(32)), stop, 1))


if __name__ == "__main__":
    main(measure)
