"""Code that workers run in the tests of several files."""

from __future__ import annotations

from collections.abc import Callable

from execnet import Channel, Gateway

HIDING = """
import os, time
pid = os.fork()
if not pid:
    time.sleep(100)
    os._exit(0)
channel.send((pid, os.getpid()))
channel.receive()
os._exit(3)
"""
ITEM = b"x" * 1000
READER = """
while channel.receive() is not None:
    pass
channel.send("read")
"""
# Reads an item for each that it gets on the other channel, and says so.
ON_ORDER = """
orders = channel.receive()
for order in orders:
    for _ in range(order):
        channel.receive()
    orders.send(order)
"""
STUBBORN = """
def never_ends(channel):
    import time
    for turn in range(10**6):
        try:
            if turn == 0:
                channel.send(None)  # in here, as the interrupt may come before it has returned
            time.sleep(1000)
        except BaseException:
            pass
never_ends(channel)
"""

Hide = Callable[[Gateway], Channel]
