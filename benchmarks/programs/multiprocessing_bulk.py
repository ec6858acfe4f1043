"""Large ``bytes`` one way through a ``multiprocessing.Pipe``, in megabytes a second.

Arguments: ``send`` (to the process) or ``collect`` (from it); the size of one item.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import _items
from _measure import Result, Scaled, main, megabytes_per_second, time_each


def take(connection: Connection, _: int) -> None:
    while count := connection.recv():
        connection.send(sum(len(connection.recv_bytes()) for _ in range(count)))


def give(connection: Connection, size_bytes: int) -> None:
    data = b"x" * size_bytes
    while count := connection.recv():
        for _ in range(count):
            connection.send_bytes(data)


def measure(scaled: Scaled, direction: str, size: str) -> Result:
    size_bytes = _items.BULK_BYTES[size]
    count = scaled(_items.BULK_TOTAL_BYTES // size_bytes)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    there_do = take if direction == "send" else give
    process = context.Process(target=there_do, args=(there, size_bytes))
    process.start()
    data = b"x" * size_bytes

    def send() -> int:
        here.send(count)
        for _ in range(count):
            here.send_bytes(data)
        return here.recv()

    def collect() -> int:
        here.send(count)
        return sum(len(here.recv_bytes()) for _ in range(count))

    pass_all = send if direction == "send" else collect
    if pass_all() != count * size_bytes:
        raise ValueError("not all bytes arrived")
    samples = time_each(pass_all, _items.BULK_SAMPLES)
    here.send(0)
    process.join()
    return megabytes_per_second(count * size_bytes, samples)


if __name__ == "__main__":
    main(measure)
