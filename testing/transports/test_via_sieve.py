"""What a worker that others go via passes on at once: whose bytes these are, in whatever cut."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from chains import MIB, echoed, make_chain, posix_only
from hypothesis import given
from hypothesis import strategies as st
from tools import BOUND_S, wait_until
from workers import ask

from execnet import Gateway, Group
from execnet._via.far_polled import Sieve
from execnet.gateway_base import (
    _HEADER,
    IDLE_MS,
    LARGE_BYTES,
    FrameDecoder,
    Message,
    dumps_internal,
    opcode,
)

pytestmark = posix_only
pack_size = struct.Struct("!i").pack
FORWARDED = 2, 4  # ids of channels; those of others are odd
LOADED = "channel.send(str(channel.gateway._to_load))"


class Kept:
    """Stands in for a forwarder: keeps what it is given."""

    moves = False

    def __init__(self) -> None:
        self.data = b""

    def put(self, data: bytes) -> None:
        self.data += data

    def move(self, fd: int, size: int) -> int:
        return 0


class Reading:
    """A gateway to a sieve: its stream comes in the pieces given, or less where less is wanted."""

    _to_load = None
    _heard = 0

    def __init__(self, pieces: list[bytes]) -> None:
        self._decoder = FrameDecoder(True)
        self._channelfactory = SimpleNamespace(windows=None)
        self._io = self
        self._pieces = pieces

    def read_some(self, limit: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if piece[limit:]:
            self._pieces.insert(0, piece[limit:])
        return piece[:limit]


def frame(code: int, id: int, payload: bytes) -> bytes:
    return _HEADER.pack(code, id, len(payload)) + payload


# An item may be what looks like a frame for a forwarder, and be cut in front of that.
WITHIN = frame(Message.CHANNEL_DATA, FORWARDED[0], dumps_internal(b"within an item"))
SIZES = st.integers(0, 40) | st.sampled_from([LARGE_BYTES - 20, LARGE_BYTES + 9, 3 * LARGE_BYTES])
ITEMS = st.builds(lambda size, fill: bytes([fill]) * size, SIZES, st.integers(0, 255))
ITEMS |= st.sampled_from([WITHIN, WITHIN * (LARGE_BYTES // len(WITHIN) + 1)])
FRAMES = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4]), ITEMS | st.integers(-9, 9) | st.tuples(ITEMS)),
    max_size=12,
)


BEFORE = st.integers(0, 3).map(lambda number: 14 + number * len(WITHIN))
PLACES = st.lists(BEFORE | st.integers(1, 400) | st.integers(1, 200_000), max_size=12)


@given(FRAMES, PLACES, st.sampled_from([300, 70_000]))
def test_forwarders_and_the_gateway_get_what_is_theirs_in_any_cut(
    items: list[tuple[int, Any]], places: list[int], limit: int
) -> None:
    stream = b"".join(frame(Message.CHANNEL_DATA, id, dumps_internal(item)) for id, item in items)
    stream += frame(Message.STATUS, 2, b"")
    ends = sorted({place for place in places if place < len(stream)} | {len(stream)})
    pieces = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    gateway = Reading(pieces)
    sieve = Sieve(gateway)
    kept: dict[int, Any] = {id: Kept() for id in FORWARDED}
    sieve.forwarders.update(kept)
    others: defaultdict[int, list[bytes]] = defaultdict(list)
    begun: bytes = b""
    last = -1
    while data := sieve.read_some(limit):
        for message in gateway._decoder.feed(data):
            last, id = message.msgcode, message.channelid
            begun = bytes(message.data) if message.is_first is not False else begun + message.data
            if message.left or last == Message.STATUS:
                continue
            if id in kept and begun[:5] == opcode.BYTES + pack_size(len(begun) - 6):
                kept[id].put(begun[5:-1])  # the gateway hands it over as well
            else:
                others[id].append(begun)
    assert last == Message.STATUS
    for id in range(1, 5):
        theirs = [item for number, item in items if number == id]
        if id in kept:
            assert kept[id].data == b"".join(item for item in theirs if type(item) is bytes)
            theirs = [item for item in theirs if type(item) is not bytes]
        assert others[id] == [dumps_internal(item) for item in theirs]


def load_all(gateway: Gateway) -> None:
    """Wait until a worker has loaded what it may need: before that, it passes nothing on so.

    It loads a module when it has been idle for a while, so it is asked less often than that.
    """
    idle_s = 2 * IDLE_MS / 1000
    wait_until(lambda: ask(gateway, LOADED) == "[]", sleep=lambda _: time.sleep(idle_s))


def counts_moves(gateway: Gateway) -> None:
    """Have a worker count what it moves from pipe to pipe, once it has loaded what it may need."""
    load_all(gateway)
    ask(
        gateway,
        """
        import os
        def counting(*args, **kwargs):
            moved = splice(*args, **kwargs)
            os.moved += moved
            return moved
        splice, os.splice, os.moved = os.splice, counting, 0
        channel.send(None)
        """,
    )


@pytest.mark.skipif(not hasattr(os, "splice"), reason="new in Python 3.10, and on Linux")
class TestLargeItems:
    DATA = bytes(range(256)) * (8 * MIB // 256)
    COUNT = 6

    def test_they_go_to_a_worker_without_a_copy(self, group: Group) -> None:
        hop, worker = make_chain(group, "", "")
        counts_moves(hop)
        channel = worker.remote_exec(
            "for count in channel: channel.send([channel.receive() for _ in range(count)][-1])"
        )
        channel.send(self.COUNT)
        for _ in range(self.COUNT):
            channel.send(self.DATA)
        assert channel.receive(BOUND_S) == self.DATA
        assert ask(hop, "import os; channel.send(os.moved)") > len(self.DATA)

    def test_they_come_from_a_worker_without_a_copy(self, group: Group) -> None:
        hop, worker = make_chain(group, "", "")
        counts_moves(hop)
        channel = worker.remote_exec(
            "data = channel.receive()\n"
            "for count in channel: [channel.send(data) for _ in range(count)]"
        )
        channel.send(self.DATA)
        before = ask(hop, "import os; channel.send(os.moved)")
        channel.send(self.COUNT)
        for _ in range(self.COUNT):
            assert channel.receive(BOUND_S) == self.DATA
        assert ask(hop, "import os; channel.send(os.moved)") - before > len(self.DATA)

    def test_others_pass_between_them(self, group: Group) -> None:
        hop, first = make_chain(group, "", "")
        second = group.makegateway(f"popen//via={hop.id}")
        counts_moves(hop)
        failed: list[object] = []

        def exchange(gateway: Gateway, item: object, count: int) -> None:
            for _ in range(count):
                if echoed(gateway, item) != item:
                    failed.append(gateway)

        work = (first, self.DATA, 3), (second, 7, 100), (hop, 8, 100), (second, self.DATA, 3)
        threads = [threading.Thread(target=exchange, args=args) for args in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert not any(thread.is_alive() for thread in threads)
        assert not failed

    def test_where_pipes_are_not_to_be_moved_they_are_copied(self, group: Group) -> None:
        hop, worker = make_chain(group, "", "")
        load_all(hop)
        refused = "import errno, os\ndef splice(*args, **kwargs): raise OSError(errno.EINVAL, '')\n"
        ask(hop, refused + "os.splice = splice; channel.send(None)")
        assert echoed(worker, self.DATA) == self.DATA


@pytest.mark.skipif(sys.platform != "linux", reason="what is loaded is not the same elsewhere")
def test_a_worker_that_is_always_busy_loads_what_it_may_need(group: Group) -> None:
    """Else it would look for more to read in front of each read, for ever."""
    gateway = group.makegateway("popen")
    loaded = "channel.gateway._to_load"
    channel = gateway.remote_exec(f"""
        channel.setcallback(lambda _: channel.send(len({loaded} or [])))
        channel.send(len({loaded}))
        channel.waitclose()
        """)
    first = channel.receive(BOUND_S)
    assert first
    for _ in range(3000):
        channel.send(None)
        if not channel.receive(BOUND_S):
            break
    else:
        raise AssertionError("something is left to be loaded")
