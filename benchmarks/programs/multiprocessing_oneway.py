"""Small items one way through a ``multiprocessing.Pipe``, in thousands a second.

Arguments: ``send`` (to the process) or ``collect`` (from it); the kind of item; ``receive``.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from time import perf_counter

import _items
from _measure import Result, Scaled, main, thousands_per_second


def take(connection: Connection) -> None:
    connection.send("ready")
    for _ in range(connection.recv()):
        connection.recv()
    connection.send("done")


def give(connection: Connection) -> None:
    connection.send("ready")
    count, item = connection.recv()
    for _ in range(count):
        connection.send(item)


def send(connection: Connection, item: object, count: int) -> None:
    connection.send(count)
    for _ in range(count):
        connection.send(item)
    connection.recv()


def collect(connection: Connection, item: object, count: int) -> None:
    connection.send((count, item))
    for _ in range(count):
        connection.recv()


def measure(scaled: Scaled, direction: str, kind: str, _: str) -> Result:
    here_do, there_do = (send, take) if direction == "send" else (collect, give)
    count = scaled(100_000)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=there_do, args=(there,))
    process.start()
    here.recv()
    started = perf_counter()
    here_do(here, _items.SMALL[kind], count)
    seconds = perf_counter() - started
    process.join()
    return thousands_per_second(count, [seconds])


if __name__ == "__main__":
    main(measure)
