"""The same bytes through a pipe, whose buffers are as large as an ordinary user may have them."""

from __future__ import annotations

from _measure import Result, Scaled, main
from pipe_bulk import measure_with


def measure(scaled: Scaled, direction: str, size: str, how: str) -> Result:
    return measure_with(1 << 20, scaled, direction, size)


if __name__ == "__main__":
    main(measure)
