"""A program that is interrupted at random moments; ``test_interrupts`` runs it.

It sends and receives numbered items, and ends with an AssertionError where one was lost,
doubled or mixed up.  Arguments: what it does (after "@" through what), how many interrupts it
takes, the seed.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import execnet

ECHO = "for item in channel: channel.send(item)"
WINDOW_BYTES = 300
COLLECT = """
data, numbers = channel.receive(), []
channel.send("ready")
for item in data:
    if item is None:
        break
    numbers.append(item[0])
channel.send(numbers)
"""
COUNT = """
number = 0
while not channel.gateway._channelfactory.finished and not channel.isclosed():
    channel.send(number)
    number += 1
    if number % 100 == 0:
        channel.receive()
"""
DEADLINE_S = 20
SPECS = {"": "popen", "socket": "socket//installvia=carrier", "via": "popen//via=carrier"}


class Interrupts:
    """Raises KeyboardInterrupt in what ``runs`` is given, again and again."""

    def __init__(self, wanted: int, seed: int, longest_s: float = 1e-3) -> None:
        self.left = wanted
        self._longest_s = longest_s
        self._random = random.Random(seed)
        signal.signal(signal.SIGALRM, signal.default_int_handler)

    def runs(self, step: Callable[[], object]) -> Iterator[None]:
        """Repeat a step until it was interrupted; yield after each time."""
        while self.left:
            try:
                try:
                    # Another one follows where the first was swallowed, as it is in a finalizer.
                    delay = self._random.uniform(1e-5, self._longest_s)
                    signal.setitimer(signal.ITIMER_REAL, delay, delay + 0.1)
                    while True:
                        step()
                except KeyboardInterrupt:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:  # that other one was there before the first was handled
                signal.setitimer(signal.ITIMER_REAL, 0)
            self.left -= 1
            yield


def received(items: list[Any], channel: execnet.Channel, timeout: float | None = None) -> None:
    """Append the next item, in one call: Python 3.10 looks for interrupts after all others."""
    items += map(channel.receive, (timeout,))


def round_trips(
    gateway: execnet.Gateway, interrupts: Interrupts, item: Callable[[int], Any]
) -> int:
    """Send items and take each that comes back; an interrupted send may or may not have sent."""
    channel = gateway.remote_exec(ECHO)
    sending, sure = [0], []
    got: list[Any] = []

    def step() -> None:
        sending[0] += 1
        channel.send(item(sending[0]))
        sure.append(sending[0])
        received(got, channel)

    for _ in interrupts.runs(step):
        pass
    sending[0] += 1
    channel.send(item(sending[0]))
    while not got or got[-1] != item(sending[0]):
        got.append(channel.receive(timeout=DEADLINE_S))
    numbers = [one if type(one) is int else one[0] for one in got]
    assert got == [item(number) for number in numbers], "mixed"
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    assert not set(sure) - set(numbers), "lost"
    return len(got)


def round_trips_of_buffers(
    gateway: execnet.Gateway, interrupts: Interrupts, item: Callable[[int], bytes]
) -> int:
    """The same with bytes that are sent from one buffer and received into another."""
    channel = gateway.remote_exec(ECHO)
    sending, sure = [0], []
    sizes: list[int] = []
    got: list[int] = []
    longest = len(item(0))
    buffer = bytearray(longest)

    def note() -> None:
        if len(sizes) > len(got):
            assert sizes[-1] == longest, "torn"
            got.append(int.from_bytes(buffer[:8], "big"))
            assert buffer == item(got[-1]), "mixed"

    def step() -> None:
        note()
        sending[0] += 1
        channel.send_bytes(bytearray(item(sending[0])))
        sure.append(sending[0])
        sizes.extend(map(channel.receive_into, (buffer,), (None,)))

    step()  # which loads what is needed, in more time than there is between two interrupts
    for _ in interrupts.runs(step):
        note()
        buffer[:] = bytes(longest)  # it is ours again
        assert buffer.count(0) == longest, "written to after the interrupt"
    sending[0] += 1
    channel.send_bytes(item(sending[0]))
    while not got or got[-1] != sending[0]:
        sizes.append(channel.receive_into(buffer, timeout=DEADLINE_S))
        note()
    assert got == sorted(set(got)), "doubled or out of order"
    assert not set(sure) - set(got), "lost"
    return len(got)


def stream(gateway: execnet.Gateway, interrupts: Interrupts, timeout: float | None) -> int:
    """Take the numbers that the worker sends as fast as it can, and let it go on."""
    channel = gateway.remote_exec(COUNT)
    got: list[int] = []

    def step() -> None:
        received(got, channel, timeout)
        if len(got) % 100 == 1:
            channel.send(None)

    for _ in interrupts.runs(step):
        channel.send(None)
    assert got == list(range(len(got))), "lost, doubled or out of order"
    channel.close()
    return len(got)


def window_sends(gateway: execnet.Gateway, interrupts: Interrupts, size: int) -> int:
    """Send through a small window; what is counted for ever would let nothing through."""
    control = gateway.remote_exec(COLLECT)
    data = gateway.newchannel()
    data.set_window(WINDOW_BYTES)
    control.send(data)
    assert control.receive(timeout=DEADLINE_S) == "ready"
    sending, sure, padding = [0], [], bytes(size)

    def step() -> None:
        sending[0] += 1
        data.send((sending[0], padding))
        sure.append(sending[0])

    for _ in interrupts.runs(step):
        pass
    data.send(None)
    numbers = control.receive(timeout=DEADLINE_S)
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    assert not set(sure) - set(numbers), "lost"
    return len(numbers)


def window_stream(gateway: execnet.Gateway, interrupts: Interrupts) -> int:
    """Take what comes through a small window; credit that is lost would let nothing through."""
    control = gateway.remote_exec(
        "data = channel.receive()\n"
        "number = 0\n"
        "while not data.isclosed():\n"
        "    try: data.send(number)\n"
        "    except OSError: break\n"
        "    number += 1\n"
    )
    data = gateway.newchannel()
    data.set_window(WINDOW_BYTES)
    control.send(data)
    got: list[int] = []
    for _ in interrupts.runs(lambda: received(got, data)):
        pass
    for _ in range(1000):  # more than the window holds
        received(got, data, DEADLINE_S)
    assert got == list(range(len(got))), "lost, doubled or out of order"
    assert data._items.qsize() <= WINDOW_BYTES // 6, "more is on its way than may be"
    data.close()
    control.waitclose(timeout=DEADLINE_S)
    return len(got)


def others(gateway: execnet.Gateway, interrupts: Interrupts) -> int:
    """Use channels in all ways that wait or that leave something to the receiver thread."""
    idle = gateway.newchannel()

    def step() -> None:
        with contextlib.suppress(idle.TimeoutError):
            idle.waitclose(timeout=1e-5)
        channel = gateway.remote_exec("channel.send(1)")
        channel.receive()
        channel.waitclose()
        channel = gateway.newchannel()
        channel.send(1)
        channel.setcallback(id)
        channel.close()
        gateway.remote_status()

    for _ in interrupts.runs(step):
        pass
    idle.close()
    idle.waitclose(timeout=DEADLINE_S)
    return 0


def main(what: str, wanted: int, seed: int) -> None:
    """Do it, and prove that the gateway is as usable as before."""
    what, _, way = what.partition("@")
    size = int(what.partition("=")[2] or 0)
    interrupts = Interrupts(wanted, seed, 1e-3 + size * 5e-9)
    group = execnet.Group(["popen//id=carrier"] if way else [])
    gateway = group.makegateway(SPECS[way])
    started = time.monotonic()
    if what == "ints":
        items = round_trips(gateway, interrupts, int)
    elif what.startswith("size="):
        padding = bytes(size)
        items = round_trips(gateway, interrupts, lambda number: (number, padding))
    elif what.startswith("buffer="):
        items = round_trips_of_buffers(
            gateway, interrupts, lambda number: number.to_bytes(8, "big") + bytes(size)
        )
    elif what == "window":
        items = window_stream(gateway, interrupts)
    elif what.startswith("window="):
        items = window_sends(gateway, interrupts, size)
    elif what == "others":
        items = others(gateway, interrupts)
    else:
        items = stream(gateway, interrupts, None if what == "stream" else 60.0)
    channel = gateway.remote_exec("channel.send('usable')")
    assert channel.receive(timeout=DEADLINE_S) == "usable"
    channel.waitclose(timeout=DEADLINE_S)
    group.terminate(timeout=5)
    print(f"{what}: {wanted} interrupts, {items} items, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
