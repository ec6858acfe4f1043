"""What every measuring program has in common: arguments, the clock, the answer.

A program is a script that measures one thing with one peer. The runner calls

    python FAMILY_PROGRAM.py ARGUMENT... [--pin] [--scale=F]

and the program prints one line of JSON: ``samples`` (numbers in the benchmark's unit) and, where
outputs are compared, ``digest``. It does not import the runner, and nothing here is imported
before it is needed: what the standard library's ``multiprocessing`` starts imports this as well.
Start at ``main``.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

Result = dict[str, object]


class Scaled:
    """How much of a usual amount this run is to do: ``scaled(100)`` is 1 at a scale of 0.01."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, amount: int) -> int:
        return max(1, round(amount * self.scale))


def main(measure: Callable[..., Result]) -> None:
    """Run ``measure(scaled, *arguments)`` and print its result."""
    arguments = [word for word in sys.argv[1:] if not word.startswith("--")]
    scale = 1.0
    for option in sys.argv[1:]:
        if option.startswith("--scale="):
            scale = float(option.partition("=")[2])
    if "--pin" in sys.argv:
        pin_to_one_core()
    result = measure(Scaled(scale), *arguments)

    import json

    print(json.dumps(result), flush=True)


def pin_to_one_core() -> None:
    """Keep this thread, and every thread and process it starts, on one core.

    Between two cores the time of a round trip depends on where the processes wake up.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})


def time_each(action: Callable[[], object], count: int, warm_up: int = 0) -> list[float]:
    """Return the seconds that each of ``count`` calls took, after some that do not count."""
    for _ in range(warm_up):
        action()
    samples = []
    for _ in range(count):
        started = perf_counter()
        action()
        samples.append(perf_counter() - started)
    return samples


def time_starts(start: Callable[[], T], stop: Callable[[T], object], count: int) -> list[float]:
    """Return the seconds of each ``start()``; the ``stop()`` of what it started is not timed.

    The first start does not count: it imports what the coordinator needs only once.
    """
    samples = []
    for _ in range(count + 1):
        started = perf_counter()
        running = start()
        samples.append(perf_counter() - started)
        stop(running)
    return samples[1:]


def microseconds(samples: list[float]) -> Result:
    """Return seconds as the result of a benchmark in microseconds."""
    return {"samples": [sample * 1e6 for sample in samples]}


def milliseconds(samples: list[float]) -> Result:
    """Return seconds as the result of a benchmark in milliseconds."""
    return {"samples": [sample * 1e3 for sample in samples]}


def thousands_per_second(amount: int, samples: list[float]) -> Result:
    """Return the rate at which ``amount`` items passed in each sample."""
    return {"samples": [amount / sample / 1e3 for sample in samples]}


def megabytes_per_second(amount_bytes: int, samples: list[float]) -> Result:
    """Return the rate at which ``amount_bytes`` passed in each sample, 10**6 bytes to the MB."""
    return {"samples": [amount_bytes / sample / 1e6 for sample in samples]}


def bulk_rate(pass_all: Callable[[], int], amount_bytes: int, count: int) -> Result:
    """Return the rate at which calls of ``pass_all`` pass bytes; it returns how many arrived."""
    if pass_all() != amount_bytes:
        raise ValueError("not all bytes arrived")
    return megabytes_per_second(amount_bytes, time_each(pass_all, count))
