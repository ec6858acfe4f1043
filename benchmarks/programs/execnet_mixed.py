"""Round trips of an int while 256 MiB pass on another channel of the gateway, in milliseconds.

Arguments: ``send`` (they pass to the worker) or ``collect`` (from it), and ``items`` (of 1 MiB)
or ``whole`` (they are one item).

One starts every millisecond, or when the one before it is over. Where that took longer, those that
would have started meanwhile count too, each until then: else a pause of a second, which everything
has to wait for, would be one sample among thousands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter, sleep

from _measure import Result, Scaled, main, milliseconds
from execnet_roundtrip import ECHO

import execnet

TAKE = """
count = channel.receive()
channel.send("ready")
for _ in range(count):
    channel.receive()
channel.send("done")
"""
GIVE = """
count, size = channel.receive()
data = b"x" * size
channel.send("ready")
channel.receive()
for _ in range(count):
    channel.send(data)
"""
MIB = 1 << 20
PERIOD_S = 0.001


# Each makes what it sends before the clock runs, and returns what then passes it.


def send(channel: execnet.Channel, count: int, size: int) -> Callable[[], None]:
    data = b"x" * size
    channel.send(count)
    channel.receive()

    def go() -> None:
        for _ in range(count):
            channel.send(data)
        channel.receive()

    return go


def collect(channel: execnet.Channel, count: int, size: int) -> Callable[[], None]:
    channel.send((count, size))
    channel.receive()

    def go() -> None:
        channel.send("go")
        for _ in range(count):
            channel.receive()

    return go


def round_trips(channel: execnet.Channel, thread: threading.Thread) -> list[float]:
    """Return the seconds that each took while ``thread`` runs."""
    samples: list[float] = []
    while thread.is_alive() or not samples:
        started = perf_counter()
        channel.send(1)
        channel.receive()
        taken = perf_counter() - started
        sleep(max(0, PERIOD_S - taken))
        while taken > 0:
            samples.append(taken)
            taken -= PERIOD_S
    return samples


def measure(scaled: Scaled, direction: str, pieces: str) -> Result:
    mib = scaled(256)
    count, size = (mib, MIB) if pieces == "items" else (1, mib * MIB)
    group = execnet.Group(["popen"])
    echo = group[0].remote_exec(ECHO)
    bulk = group[0].remote_exec(TAKE if direction == "send" else GIVE)
    prepare = send if direction == "send" else collect
    thread = threading.Thread(target=prepare(bulk, count, size))
    echo.send(1)
    echo.receive()
    thread.start()
    samples = round_trips(echo, thread)
    thread.join()
    group.terminate(5)
    return milliseconds(samples)


if __name__ == "__main__":
    main(measure)
