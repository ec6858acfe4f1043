"""Items from buffers, and into buffers: ``Channel.send_bytes`` and ``receive_into``."""

from __future__ import annotations

import array
import asyncio
import gc
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools import (
    BOUND_S,
    IS_THOROUGH,
    LonelyGateway,
    MakeGateway,
    call_in_receiver,
    find_python,
    interpreters,
    some_of,
    wait_in_loop,
    wait_until,
)

from execnet import Channel, Gateway, Group, RemoteError, WorkerDied, aio
from execnet.gateway_base import ITEM_MAX, PART_BYTES, READ_BYTES

SIZES = 0, 3, 16_000, 70_000, PART_BYTES, ITEM_MAX + 10, 3_000_000
ECHO = """
for size in channel:
    buffer = bytearray(size)
    count = channel.receive_into(buffer)
    channel.send_bytes(memoryview(buffer)[:count])
"""
# An item whose second half is sent when it is told to.
HALVES = """
factory = channel.gateway._channelfactory
channel.receive()
size = channel.receive()
data = b"\\x41" + __import__("struct").pack("!i", size) + b"x" * size + b"Q"
frames = list(factory.frames_of(channel.id, [data]))
for number, (_, header, payload) in enumerate(frames):
    if number == len(frames) // 2:
        channel.receive()
    factory._send_frame(header, payload)
"""
SIZE = 4 * PART_BYTES


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    group = Group(["popen"])
    yield group[0]
    group.terminate(timeout=5.0)


def data_of(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def filled(channel: Channel) -> int:
    """Return how much of an item is in a buffer that waits for it."""
    waiters = channel._factory.buffers._waiting.get(channel.id, [])
    return sum(waiter.filling._filled for waiter in waiters if waiter.filling is not None)


def test_large_bytes_are_sent_from_where_they_are() -> None:
    gateway, data = LonelyGateway(), bytes(READ_BYTES)
    sent: list[bytes | memoryview] = []
    gateway._channelfactory._send_frame = lambda header, payload: sent.append(payload)
    gateway._channelfactory.send_item(1, data)
    assert any(isinstance(piece, memoryview) and piece.obj is data for piece in sent)


class Half:
    """An item of ``SIZE`` bytes whose first half comes as soon as a buffer waits for it.

    then: called in a thread once some of it is in the buffer.
    """

    def __init__(self, gateway: Any, then: Callable[[], object] = int) -> None:
        self.channel = gateway.remote_exec(HALVES)
        self.channel.send("begin")
        self._then = then
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        factory = self.channel._factory
        wait_until(lambda: factory.buffers and factory.buffers.waiters(self.channel.id), BOUND_S)
        self.channel.send(SIZE)
        wait_until(lambda: filled(self.channel) > SIZE // 4, BOUND_S)
        self._then()

    def finish(self) -> None:
        self._thread.join()
        self.channel.send("go on")


PYTHONS = {"{}.{}".format(*one.version) for one in interpreters()} if IS_THOROUGH else set()


@pytest.mark.parametrize("version", sorted(PYTHONS | {"2.7", "3.6"}))
def test_bytes_of_all_sizes_go_there_and_back(makegateway: MakeGateway, version: str) -> None:
    channel = makegateway(f"popen//python={find_python(version)}").remote_exec(ECHO)
    for size in SIZES:
        buffer = bytearray(size + 1)
        channel.send(size)
        channel.send_bytes(data_of(size))
        assert channel.receive_into(buffer, BOUND_S) == size
        assert buffer[:size] == data_of(size)


@pytest.mark.parametrize("spec", ["socket//installvia=near", "popen//via=near"])
def test_they_go_over_other_streams(group: Group, spec: str) -> None:
    group.makegateway("popen//id=near")
    channel = group.makegateway(spec).remote_exec(ECHO)
    numbers, back = array.array("d", range(300_000)), array.array("d", bytes(2_400_000))
    channel.send(2_400_000)
    channel.send_bytes(numbers)
    assert channel.receive_into(back, BOUND_S) == 2_400_000
    assert numbers == back


def test_a_large_item_is_nowhere_else_than_in_the_buffers(shared: Gateway) -> None:
    channel = shared.remote_exec(ECHO)
    buffer, back = bytearray(data_of(32 << 20)), bytearray(32 << 20)
    tracemalloc = pytest.importorskip("tracemalloc")  # not on PyPy
    tracemalloc.start()
    try:
        channel.send(len(buffer))
        channel.send_bytes(buffer)
        assert channel.receive_into(back, BOUND_S) == len(buffer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert back == buffer
    assert peak < 8 << 20


def test_what_send_receives_and_what_receive_gets(shared: Gateway) -> None:
    channel = shared.remote_exec("for item in channel: channel.send(item)")
    buffer = bytearray(PART_BYTES * 3)
    channel.send_bytes(memoryview(b"abcd")[1:3])
    assert channel.receive(BOUND_S) == b"bc"
    channel.send(data_of(len(buffer)))
    assert channel.receive_into(buffer, BOUND_S) == len(buffer)
    assert buffer == data_of(len(buffer))


@pytest.mark.parametrize("size", [10, 100_000, SIZE])
def test_a_buffer_that_is_too_small_leaves_the_item(shared: Gateway, size: int) -> None:
    channel = shared.remote_exec("for item in channel: channel.send(item)")
    channel.send(data_of(size))
    channel.send(1)
    small = bytearray(size - 1)
    with pytest.raises(ValueError, match=f"{size} bytes, the buffer {size - 1}"):
        channel.receive_into(small, BOUND_S)
    assert not any(small)
    assert channel.receive_into(bytearray(size), BOUND_S) == size
    assert channel.receive(BOUND_S) == 1


@pytest.mark.parametrize("item", [1, "text", [b"list"], (b"x" * SIZE, b"first is bytes")])
def test_an_item_that_is_no_bytes_stays(shared: Gateway, item: Any) -> None:
    channel = shared.remote_exec("for item in channel: channel.send(item)")
    channel.send(item)
    with pytest.raises(TypeError, match=f"not bytes but {type(item).__name__}"):
        channel.receive_into(bytearray(2 * SIZE), BOUND_S)
    assert channel.receive(BOUND_S) == item


def test_what_is_no_buffer_is_refused_before_anything_is_taken(shared: Gateway) -> None:
    channel = shared.remote_exec("channel.send(b'x'); channel.receive()")
    with pytest.raises(TypeError, match="int has no buffer"):
        channel.send_bytes(1)
    with pytest.raises(BufferError, match="not in one piece"):
        channel.send_bytes(memoryview(b"abcd")[::2])
    for refused in (b"read only", memoryview(b"also"), None):
        with pytest.raises(TypeError):
            channel.receive_into(refused)
    assert channel.receive(BOUND_S) == b"x"
    channel.send(None)
    channel.waitclose(BOUND_S)
    with pytest.raises(OSError, match="cannot send"):
        channel.send_bytes(b"late")


def test_the_end_of_a_channel_is_told(shared: Gateway) -> None:
    with pytest.raises(EOFError):
        shared.remote_exec("").receive_into(bytearray(1), BOUND_S)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        shared.remote_exec("1 / 0").receive_into(bytearray(1), BOUND_S)
    channel = shared.remote_exec("channel.receive()")
    with pytest.raises(channel.TimeoutError):
        channel.receive_into(bytearray(1), 0)
    with pytest.raises(channel.TimeoutError):
        channel.receive_into(bytearray(1), 0.01)
    channel.setcallback(id)
    with pytest.raises(OSError, match="has a callback"):
        channel.receive_into(bytearray(1))
    channel.send(None)


def test_after_a_timeout_nothing_is_written_and_the_item_stays(shared: Gateway) -> None:
    half, buffer = Half(shared), bytearray(SIZE)
    with pytest.raises(half.channel.TimeoutError):
        half.channel.receive_into(buffer, 0.4)
    assert 0 < buffer.count(b"x") < SIZE
    buffer[:] = b"y" * SIZE
    half.finish()
    assert half.channel.receive(BOUND_S) == b"x" * SIZE
    assert buffer == b"y" * SIZE
    gc.collect()
    buffer.append(0)  # nobody holds it


def test_after_an_interrupt_as_well(shared: Gateway) -> None:
    main = threading.main_thread().ident or 0
    half, buffer = Half(shared, lambda: signal.pthread_kill(main, signal.SIGINT)), bytearray(SIZE)
    with pytest.raises(KeyboardInterrupt):
        half.channel.receive_into(buffer, BOUND_S)
    buffer[:] = b"y" * SIZE
    half.finish()
    other = bytearray(SIZE)
    assert half.channel.receive_into(other, BOUND_S) == SIZE
    assert other == b"x" * SIZE
    assert buffer == b"y" * SIZE


def test_a_worker_that_dies_in_an_item_ends_the_wait(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    half, buffer = Half(gateway, gateway._io.kill), bytearray(SIZE)
    with pytest.raises(WorkerDied):
        half.channel.receive_into(buffer, BOUND_S)
    half._thread.join()
    gc.collect()
    buffer.append(0)


def test_items_for_several_threads_come_once_each(shared: Gateway) -> None:
    count = some_of(600)
    channel = shared.remote_exec(
        """
        import threading
        def send(kind):
            for number in range(kind, count, 4):
                channel.send(b"%9d" % number + b"z" * (0, 100, 70000, 1300000)[number // 4 % 4])
        threads = [threading.Thread(target=send, args=(kind,)) for kind in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        """.replace("count", str(count))
    )
    got: list[int] = []

    def take(is_into: bool) -> None:
        buffer = bytearray(1_400_000)
        for wait_s in itertools.cycle((1e-4, 0.01, BOUND_S)):
            try:
                if is_into:
                    size = channel.receive_into(buffer, wait_s)
                    item = bytes(memoryview(buffer)[:size])
                else:
                    item = channel.receive(wait_s)
            except channel.TimeoutError:
                continue
            except EOFError:
                return
            assert item[9:].count(b"z") == len(item) - 9
            got.append(int(item[:9]))

    threads = [threading.Thread(target=take, args=(kind < 3,)) for kind in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(count))


def test_windows_and_callbacks_do_not_mind(shared: Gateway) -> None:
    channel = shared.remote_exec(ECHO)
    channel.set_window(100_000)
    buffer = bytearray(SIZE)
    for size in (10, 99_000, 200_000, SIZE, 200_000, 10):
        channel.send(size)
        channel.send_bytes(data_of(size))
        assert channel.receive_into(buffer, BOUND_S) == size
        assert buffer[:size] == data_of(size)
    other = shared.newchannel()
    collecting = shared.remote_exec(
        "other = channel.receive(); channel.send(0); channel.send(len(other.receive()))"
    )
    collecting.send(other)
    assert collecting.receive(BOUND_S) == 0  # before, nobody would take what comes for that channel
    call_in_receiver(shared, lambda item: other.send_bytes(buffer))
    assert collecting.receive(BOUND_S) == SIZE


class TestInALoop:
    def test_bytes_of_all_sizes_go_there_and_back(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                channel = group[0].remote_exec(ECHO)
                for size in SIZES:
                    buffer = bytearray(size)
                    await channel.send(size)
                    await channel.send_bytes(data_of(size))
                    assert await channel.receive_into(buffer, BOUND_S) == size
                    assert buffer == data_of(size)
                    gc.collect()
                    buffer.append(0)

        asyncio.run(main())

    def test_a_wait_that_is_cancelled_leaves_the_item(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                channel, buffer = group[0].remote_exec(HALVES), bytearray(SIZE)
                task = asyncio.ensure_future(channel.receive_into(buffer))
                await asyncio.sleep(0)
                await channel.send("begin")
                await channel.send(SIZE)
                await wait_in_loop(lambda: channel._factory.buffers and filled(channel) > SIZE // 4)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                buffer[:] = b"y" * SIZE
                await channel.send("go on")
                with pytest.raises(ValueError, match="it stays"):
                    await channel.receive_into(bytearray(5), BOUND_S)
                assert await channel.receive(BOUND_S) == b"x" * SIZE
                assert buffer == b"y" * SIZE

        asyncio.run(main())

    def test_a_send_that_is_cancelled_needs_the_buffer_no_more(self) -> None:
        async def main() -> None:
            async with aio.Group(["popen"]) as group:
                channel = group[0].remote_exec("channel.send(channel.receive().count(b'x'))")
                buffer = bytearray(b"x" * SIZE)
                task = asyncio.ensure_future(channel.send_bytes(buffer))
                await wait_in_loop(channel.gateway._writer.is_full, pause_s=0)
                task.cancel()
                await asyncio.wait([task])
                buffer[:] = b"y" * len(buffer)
                assert await channel.receive(BOUND_S) == SIZE

        asyncio.run(main())
