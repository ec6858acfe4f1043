"""As ``multiprocessing_startup``, with the method "forkserver"; the first start is not counted."""

from __future__ import annotations

from _measure import Result, Scaled, main
from multiprocessing_startup import measure_with


def measure(scaled: Scaled, how: str) -> Result:
    return measure_with("forkserver", scaled, how)


if __name__ == "__main__":
    main(measure)
