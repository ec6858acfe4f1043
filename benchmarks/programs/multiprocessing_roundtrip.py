"""One item through a ``multiprocessing.Pipe`` and back, in microseconds."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import _items
from _measure import Result, Scaled, main, microseconds, time_each


def echo(connection: Connection) -> None:
    while True:
        item = connection.recv()
        if item is None:
            return
        connection.send(item)


def measure(scaled: Scaled, kind: str) -> Result:
    item, count = _items.round_trips(kind)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=echo, args=(there,))
    process.start()

    def round_trip() -> object:
        here.send(item)
        return here.recv()

    if round_trip() != item:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    here.send(None)
    process.join()
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
