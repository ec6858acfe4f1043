"""Start of processes (method "spawn") until all have answered, in milliseconds.

Arguments: ``one``, or ``many`` at once.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from _measure import Result, Scaled, main, milliseconds, time_starts

Started = tuple[BaseProcess, Connection]


def answer(connection: Connection) -> None:
    connection.send(1)
    connection.recv()


def start(context: BaseContext, count: int) -> list[Started]:
    """Start ``count`` processes; return [(process, connection)] when all have answered."""
    started = []
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=answer, args=(there,))
        process.start()
        there.close()
        started.append((process, here))
    for _, connection in started:
        connection.recv()
    return started


def stop(started: list[Started]) -> None:
    for process, connection in started:
        connection.send(None)
        process.join()
        connection.close()


def measure_with(method: str, scaled: Scaled, how: str) -> Result:
    """Measure with a start method of ``multiprocessing``."""
    context = multiprocessing.get_context(method)
    if how == "one":
        return milliseconds(time_starts(lambda: start(context, 1), stop, scaled(10)))
    return milliseconds(time_starts(lambda: start(context, scaled(32)), stop, 1))


def measure(scaled: Scaled, how: str) -> Result:
    return measure_with("spawn", scaled, how)


if __name__ == "__main__":
    main(measure)
