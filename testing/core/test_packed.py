"""Large arrays: they travel as they are in memory, after the item that they are in."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, wait_until

from execnet import Gateway, Group, LoadError, aio, codecs
from execnet._features import packed
from execnet.gateway_base import dumps_internal

numpy = pytest.importorskip("numpy")
ECHO = "for item in channel: channel.send(item)"
COUNT = 200_000  # of eight bytes each
ARRAYS = [
    numpy.arange(COUNT, dtype="f8"),
    numpy.arange(COUNT, dtype=">i4").reshape(-1, 4, 2),
    numpy.arange(COUNT).astype("M8[s]"),
    numpy.eye(300).T[::2],
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    group = Group(["popen"])
    yield group[0]
    group.terminate(timeout=5.0)


def same(found: Any, wanted: Any) -> bool:
    kinds = type(found), found.dtype, found.shape, bool(found.flags.writeable)
    return kinds == (numpy.ndarray, wanted.dtype, wanted.shape, True) and (found == wanted).all()


def test_arrays_go_there_and_back_and_can_be_written(shared: Gateway) -> None:
    channel = shared.remote_exec(ECHO)
    channel.codec = codecs.standard | codecs.numpy
    for array in ARRAYS:
        channel.send(array)
        assert same(channel.receive(BOUND_S), array)
    other = shared.newchannel()
    channel.send({"a": ARRAYS, "b": [(ARRAYS[0], other)], "c": 1})
    back = channel.receive(BOUND_S)
    assert all(map(same, back["a"], ARRAYS))
    assert same(back["b"][0][0], ARRAYS[0])
    assert (back["b"][0][1], back["c"]) == (other, 1)
    got: list[Any] = []
    channel.setcallback(got.append, endmarker=None)
    channel.send(ARRAYS[0])
    channel.send(b"x" * 100_000)
    wait_until(lambda: len(got) == 2, BOUND_S)
    assert same(got[0], ARRAYS[0])
    assert got[1] == b"x" * 100_000


@pytest.mark.parametrize("setting", ["window=100000", "via=near"])
def test_they_go_over_what_copies(makegateway: MakeGateway, setting: str) -> None:
    makegateway("popen//id=near")
    channel = makegateway(f"popen//{setting}").remote_exec(ECHO)
    channel.codec = codecs.numpy
    for array in ARRAYS:
        channel.send(array)
        assert same(channel.receive(BOUND_S), array)


def test_they_are_not_copied(shared: Gateway) -> None:
    channel, array = shared.remote_exec(ECHO), numpy.zeros(4 << 20)
    channel.codec = codecs.numpy
    tracemalloc = pytest.importorskip("tracemalloc")  # not on PyPy
    tracemalloc.start()
    try:
        channel.send(array)
        assert same(channel.receive(BOUND_S), array)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes * 5 // 4


def test_bytes_are_bytes_whatever_they_begin_with(shared: Gateway) -> None:
    channel = shared.remote_exec(ECHO)
    channel.codec = codecs.numpy
    for data in (packed.MAGIC, packed.MAGIC + b"x" * 200_000, b"y" * 3_000_000):
        channel.send(data)
        assert channel.receive(BOUND_S) == data
    channel.send(b"z" * 200_000)
    wait_until(lambda: channel._items.qsize(), BOUND_S)
    channel.codec = None
    assert type(channel.receive(BOUND_S)) is bytes


def packed_item(item: Any, rest: bytes = b"", size: int | None = None) -> bytes:
    data = dumps_internal(item)
    head = packed.MAGIC + struct.pack("!Q", len(data) if size is None else size) + data
    return head + bytes(-len(head) % packed.ALIGNED_BYTES) + rest


@pytest.mark.parametrize(
    "item",
    [
        packed.MAGIC,
        packed_item(1, size=1 << 40),
        packed_item(("\0codec", "numpy.ndarray", ("<f8", (10,), None, 0)), bytes(79)),
        packed_item(("\0codec", "numpy.ndarray", ("<f8", (10,), None, -8)), bytes(100)),
        packed_item(("\0codec", "numpy.ndarray", ("|O8", (10,), None, 0)), bytes(80)),
        packed_item(("\0codec", "numpy.ndarray", ("<f8", (10,), None, "x")), bytes(80)),
    ],
)
def test_what_a_worker_makes_up_is_an_error(shared: Gateway, item: bytes) -> None:
    channel = shared.newchannel()
    channel.codec = codecs.numpy
    with pytest.raises(LoadError):
        codecs.numpy.load(item, channel)
    with pytest.raises(LoadError, match="out of place"):
        codecs.numpy.load(item)


def test_they_go_there_and_back_in_a_loop() -> None:
    async def main() -> None:
        async with aio.Group(["popen"]) as group:
            channel = group[0].remote_exec(ECHO)
            channel.codec = codecs.numpy
            for array in ARRAYS:
                await channel.send([array, 1])
                back = await channel.receive(BOUND_S)
                assert same(back[0], array)

    asyncio.run(main())
