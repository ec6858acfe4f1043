"""As ``pipe_bulk``, with kernel buffers of 1 MiB: the most that an ordinary user may ask for."""

from __future__ import annotations

from _measure import Result, Scaled, main
from pipe_bulk import measure_with


def measure(scaled: Scaled, direction: str, size: str) -> Result:
    return measure_with(1 << 20, scaled, direction, size)


if __name__ == "__main__":
    main(measure)
