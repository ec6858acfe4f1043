"""Small items one way through a popen gateway, in thousands a second.

Arguments: ``send`` (to the worker) or ``collect`` (from it); the kind of item; whether it is
taken by ``receive`` or by a ``callback``.
"""

from __future__ import annotations

import threading
from time import perf_counter

import _items
from _measure import Result, Scaled, main, thousands_per_second

import execnet

# Each source says first that it runs, so that compiling it is not measured.
TAKE = {
    "receive": """
        channel.send("ready")
        for _ in range(channel.receive()):
            channel.receive()
        channel.send("done")
        """,
    "callback": """
        import threading
        channel.send("ready")
        count = channel.receive()
        taken = 0
        all_taken = threading.Event()

        def on_item(item):
            global taken
            taken += 1
            if taken == count:
                all_taken.set()

        channel.setcallback(on_item)
        all_taken.wait()
        channel.send("done")
        """,
}

GIVE = """
    channel.send("ready")
    count, item = channel.receive()
    for _ in range(count):
        channel.send(item)
    """


def send(gateway: execnet.Gateway, item: object, count: int, how: str) -> float:
    """Return the seconds until the worker has taken ``count`` items."""
    channel = gateway.remote_exec(TAKE[how])
    channel.receive()
    started = perf_counter()
    channel.send(count)
    for _ in range(count):
        channel.send(item)
    channel.receive()
    return perf_counter() - started


def collect(gateway: execnet.Gateway, item: object, count: int, how: str) -> float:
    """Return the seconds until ``count`` items of the worker have been taken here."""
    channel = gateway.remote_exec(GIVE)
    channel.receive()
    started = perf_counter()
    channel.send((count, item))
    if how == "receive":
        for _ in range(count):
            channel.receive()
    else:
        take_by_callback(channel, count)
    return perf_counter() - started


def take_by_callback(channel: execnet.Channel, count: int) -> None:
    taken = 0
    all_taken = threading.Event()

    def on_item(item: object) -> None:
        nonlocal taken
        taken += 1
        if taken == count:
            all_taken.set()

    channel.setcallback(on_item)
    all_taken.wait()


def measure(scaled: Scaled, direction: str, kind: str, how: str) -> Result:
    pass_items = send if direction == "send" else collect
    count = scaled(100_000)
    group = execnet.Group(["popen"])
    pass_items(group[0], _items.SMALL[kind], scaled(1_000), how)  # warm-up
    seconds = pass_items(group[0], _items.SMALL[kind], count, how)
    group.terminate(5)
    return thousands_per_second(count, [seconds])


if __name__ == "__main__":
    main(measure)
