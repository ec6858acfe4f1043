"""``buffers=shared``: what ``send_bytes`` sends to a worker here goes through memory of both."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from processes import is_gone
from tools import (
    BOUND_S,
    IS_THOROUGH,
    MakeGateway,
    find_python,
    interpreters,
    wait_collecting,
    wait_until,
)
from workers import ask, assert_ends, frame

from execnet import BootstrapError, Channel, Gateway, Group, XSpec, aio
from execnet._shared import near
from execnet._shared.far import LEAST_BYTES, PAGE_BYTES, Shared
from execnet._specs import Settings
from execnet.gateway_base import ISPYPY, PART_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd_create is of Linux")

with_views = pytest.mark.skipif(ISPYPY, reason="items are copied where views keep no object")

SPEC = "popen//buffers=shared"
SIZES = 0, 5, LEAST_BYTES, 3_000_001
ECHO = """
for item in channel:
    channel.send_bytes(item)
    del item
"""
# How many segments a worker has lent; what was given back before has arrived there.
LENT = "channel.send(len(channel.gateway._channelfactory.buffers.shared.lender._lent))"
PYTHONS = {"{}.{}".format(*one.version) for one in interpreters()} if IS_THOROUGH else set()


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    group = Group([SPEC])
    group[0].newchannel().new_buffer(LEAST_BYTES)  # what it maps stays
    yield group[0]
    group.terminate(timeout=5.0)


def data_of(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def memory_of(gateway: Any) -> Shared:
    found: Shared = gateway._channelfactory.buffers.shared
    return found


def is_unused(gateway: Gateway) -> bool:
    """Whether nothing is lent, by either side, as far as this side knows."""
    gc.collect()  # PyPy's views go at some time
    memory = memory_of(gateway)
    return not memory.lender._lent and not memory.borrower._seen


def echo(channel: Channel, data: Any) -> memoryview:
    channel.send_bytes(data)
    view = channel.receive(BOUND_S)
    assert type(view) is memoryview
    assert (view.format, view.readonly) == ("B", False)
    return view


# ---------------------------------------------------------------- items


@pytest.mark.parametrize("version", sorted(PYTHONS | {"2.7", "3.6"}))
def test_items_of_all_sizes_arrive_as_views(makegateway: MakeGateway, version: str) -> None:
    gateway = makegateway(f"{SPEC}//python={find_python(version)}")
    channel = gateway.remote_exec(ECHO)
    for size in SIZES:
        assert echo(channel, data_of(size)) == data_of(size)
    wait_until(lambda: is_unused(gateway))


@pytest.mark.parametrize("spec", [f"{SPEC}//forkserver", f"{SPEC}//window=100000"])
def test_it_goes_together_with(makegateway: MakeGateway, templates: None, spec: str) -> None:
    gateway = makegateway(spec)
    channel = gateway.remote_exec(ECHO)
    for _ in range(3):
        assert echo(channel, data_of(200_000)) == data_of(200_000)
    wait_until(lambda: is_unused(gateway))


def test_it_goes_together_with_a_loop() -> None:
    async def run() -> None:
        async with aio.Group([SPEC]) as group:
            channel = group[0].remote_exec(ECHO)
            for size in SIZES:
                await channel.send_bytes(data_of(size))
                assert await channel.receive(BOUND_S) == data_of(size)
            await channel.send_bytes(data_of(PART_BYTES))
            buffer = bytearray(PART_BYTES)
            assert await channel.receive_into(buffer, BOUND_S) == PART_BYTES
            assert buffer == data_of(PART_BYTES)

    asyncio.run(run())


def test_they_go_into_buffers_and_to_callbacks_as_well(shared: Gateway) -> None:
    channel = shared.remote_exec(ECHO)
    buffer = bytearray(100_001)
    channel.send_bytes(data_of(100_000))
    assert channel.receive_into(buffer, BOUND_S) == 100_000
    assert buffer[:100_000] == data_of(100_000)
    found: list[memoryview] = []
    channel.setcallback(found.append)
    channel.send_bytes(data_of(100_000))
    wait_until(lambda: found)
    assert found.pop() == data_of(100_000)
    wait_until(lambda: is_unused(shared))


def test_other_items_are_what_they_were(shared: Gateway) -> None:
    channel = shared.remote_exec("for item in channel: channel.send(item)")
    channel.send(data_of(PART_BYTES))
    assert channel.receive(BOUND_S) == data_of(PART_BYTES)
    channel.send_bytes(b"a view can't be sent")
    with pytest.raises(channel.RemoteError, match="DumpError"):
        channel.receive(BOUND_S)


# ---------------------------------------------------------------- segments


@with_views
def test_a_segment_is_used_again_once_its_last_view_has_gone(shared: Gateway) -> None:
    channel, borrower = shared.remote_exec(ECHO), memory_of(shared).borrower
    view = echo(channel, data_of(300_000))
    (first,) = borrower._seen
    part = view[10:20]
    view.release()
    del view
    gc.collect()
    assert list(borrower._seen) == [first]
    other = echo(channel, data_of(300_000))
    assert first in borrower._seen
    assert len(borrower._seen) == 2
    assert part == data_of(20)[10:]
    part.release()
    del part
    wait_collecting(lambda: first not in borrower._seen)
    assert echo(channel, data_of(300_000)) == other
    del other
    wait_until(lambda: is_unused(shared))


def test_what_was_made_of_a_view_stays_what_it_was(shared: Gateway) -> None:
    channel, size = shared.remote_exec(ECHO), 300_000
    part, filled = echo(channel, data_of(size))[10:20], channel.new_buffer(size)[:5]
    filled[:] = b"first"
    for _ in range(3):
        gc.collect()
    assert echo(channel, bytes(size)) == bytes(size)
    channel.new_buffer(size)[:5] = b"other"
    assert (bytes(part), bytes(filled)) == (data_of(20)[10:], b"first")


def test_its_owner_may_write_to_it(shared: Gateway) -> None:
    view = echo(shared.remote_exec(ECHO), data_of(LEAST_BYTES))
    view[:3] = b"new"
    assert view[:5] == b"new34"


@with_views
def test_what_is_filled_in_the_memory_is_not_copied(shared: Gateway) -> None:
    channel, lender = shared.remote_exec(ECHO), memory_of(shared).lender
    wait_until(lambda: is_unused(shared))
    buffer = channel.new_buffer(300_000)
    (begin,) = lender._held
    buffer[:] = data_of(300_000)
    channel.send_bytes(buffer)
    assert list(lender._taken) == [begin]
    with pytest.raises(ValueError, match="released"):
        buffer[0] = 1
    assert channel.receive(BOUND_S) == data_of(300_000)
    other = channel.new_buffer(LEAST_BYTES)  # it takes the first free one
    wait_until(lambda: not lender._lent)
    assert list(lender._taken) == list(lender._held)
    del other
    assert channel.new_buffer(5) == bytes(5)


@with_views
def test_a_buffer_is_used_again_when_neither_side_has_a_view(shared: Gateway) -> None:
    channel, lender = shared.remote_exec(ECHO), memory_of(shared).lender
    buffer = channel.new_buffer(LEAST_BYTES)
    part = memoryview(buffer)[:5]
    part[:] = b"first"
    for _ in range(2):  # the second time it is copied, as the other side may have it still
        channel.send_bytes(part.obj)
        assert channel.receive(BOUND_S)[:5] == b"first"
    wait_until(lambda: not lender._lent)
    (begin,) = lender._held
    other = channel.new_buffer(LEAST_BYTES)
    other[:5] = b"other"
    assert part == b"first"
    del part, buffer
    gc.collect()
    third = channel.new_buffer(LEAST_BYTES)
    assert begin in lender._held
    del other, third


@pytest.mark.parametrize("version", ["2.7", "3.6"])
def test_workers_fill_buffers_as_well(makegateway: MakeGateway, version: str) -> None:
    code = """
    for _ in range(3):
        buffer = channel.new_buffer(100000)
        buffer[:5] = channel.receive()
        channel.send_bytes(buffer)
    """
    gateway = makegateway(f"{SPEC}//python={find_python(version)}")
    channel = gateway.remote_exec(code)
    for data in b"first", b"other", b"third":
        channel.send(data)
        view = channel.receive(BOUND_S)
        assert (len(view), view[:5]) == (100_000, data)


def test_a_buffer_of_another_gateway_is_ordinary_memory(gateway: Gateway) -> None:
    channel = gateway.remote_exec("channel.send(channel.receive())")
    buffer = channel.new_buffer(LEAST_BYTES)
    buffer[:5] = b"plain"
    channel.send_bytes(buffer)
    assert channel.receive(BOUND_S)[:5] == b"plain"


def test_what_finds_no_segment_comes_over_the_stream(
    makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "HALF_BYTES", 4 * LEAST_BYTES)
    gateway = makegateway(SPEC)
    channel, borrower = gateway.remote_exec(ECHO), memory_of(gateway).borrower
    kept = [echo(channel, data_of(LEAST_BYTES + 1)) for _ in range(5)]
    assert len(borrower._seen) == (0 if ISPYPY else 3)  # each of whole pages
    kept.append(echo(channel, data_of(3 * PART_BYTES)))
    assert [view == data_of(len(view)) for view in kept] == [True] * 6
    del kept
    wait_until(lambda: is_unused(gateway))
    assert memory_of(gateway).lender._free == [(0, 4 * LEAST_BYTES)]


def test_what_comes_for_a_closed_channel_is_given_back(shared: Gateway) -> None:
    code = """
    inner = channel.receive()
    channel.receive()
    inner.send_bytes(bytearray(100000))
    channel.send(1)
    """
    channel, inner = shared.remote_exec(code), shared.newchannel()
    channel.send(inner)
    factory = shared._channelfactory
    factory._channels.pop(inner.id)  # as if it was closed while the item is on its way
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    gc.collect()
    assert ask(shared, LENT) == 0


@with_views
def test_a_fork_of_a_process_gives_nothing_back(shared: Gateway) -> None:
    view = echo(shared.remote_exec(ECHO), data_of(LEAST_BYTES))
    code = """
    import os
    view = channel.receive()
    channel.send(1)
    channel.receive()
    pid = os.fork()
    if not pid:
        del view
        os._exit(0)
    os.waitpid(pid, 0)
    channel.send(len(view))
    channel.receive()
    """
    channel = shared.remote_exec(code)
    channel.send_bytes(view)
    channel.receive(BOUND_S)
    wait_until(lambda: len(memory_of(shared).lender._lent) == 1)  # others are given back late
    channel.send(None)
    assert channel.receive(BOUND_S) == LEAST_BYTES
    assert len(memory_of(shared).lender._lent) == 1
    channel.send(None)
    wait_until(lambda: not memory_of(shared).lender._lent)


# ---------------------------------------------------------------- where it can't be


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ssh=host//buffers=shared", "for popen on this machine"),
        ("popen//buffers=shared//via=a", "for popen on this machine"),
        ("socketservice=a//buffers=shared", "buffers= is for popen="),
        ("popen//buffers=some", "there is only buffers=shared"),
    ],
)
def test_a_spec_is_refused(group: Group, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        group.makegateway(spec)


def test_a_system_without_sealed_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ValueError, match="has no memfd_create"):
        Settings(XSpec(SPEC))


def test_a_worker_that_can_not_open_the_memory_says_why(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "place_of", lambda memory: os.devnull)
    with pytest.raises(BootstrapError, match=r"can't share memory: .* is another file"):
        group.makegateway(SPEC)
    assert len(group) == 0


# ---------------------------------------------------------------- workers that mean harm


ITEM, PLACE = struct.Struct("!qq"), struct.Struct("!q")
HALF = near.HALF_BYTES
REFUSED = {
    "of our half": (23, ITEM.pack(0, 100), "no segment begins at 0"),
    "before the memory": (23, ITEM.pack(-4096, 100), "no segment begins at -4096"),
    "within a page": (23, ITEM.pack(HALF + 1, 100), "no segment begins"),
    "beyond the end": (23, ITEM.pack(HALF, HALF + 1), "no segment begins"),
    "of no size": (23, ITEM.pack(HALF, 0), "no segment begins"),
    "of a size below 0": (23, ITEM.pack(HALF + PAGE_BYTES, -PAGE_BYTES), "no segment begins"),
    "of a size above all": (23, ITEM.pack(HALF, (1 << 63) - 1), "no segment begins"),
    "cut off": (23, b"123", "can't be understood"),
    "too much at once": (23, bytes(PART_BYTES + 2000), "SHARED of"),
    "never lent": (24, PLACE.pack(0), "segment 0 was given back, and was not lent"),
    "of its own": (24, PLACE.pack(HALF), "was not lent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_lie_about_a_segment_ends_the_gateway(makegateway: MakeGateway, name: str) -> None:
    code, data, words = REFUSED[name]
    assert_ends(makegateway(SPEC), frame(code, 1 if code == 23 else 0, data), words)


@with_views
def test_a_segment_that_is_looked_at_is_not_lent_again(makegateway: MakeGateway) -> None:
    gateway = makegateway(SPEC)
    kept: list[object] = []
    channel = gateway.newchannel()
    channel.setcallback(kept.append)
    assert_ends(gateway, frame(23, channel.id, ITEM.pack(HALF, 100)) * 2, "no segment begins")


@pytest.mark.parametrize("code", [23, 24])
def test_no_memory_is_used_that_nobody_asked_for(group: Group, code: int) -> None:
    assert_ends(group.makegateway(), frame(code, 24 - code, bytes(8)), "without buffers=shared")


def test_pieces_of_items_are_limited(makegateway: MakeGateway) -> None:
    gateway = makegateway(f"{SPEC}//max_item=100000")
    channel = gateway.newchannel()
    data = ITEM.pack(-1, 7) + bytes(60_000)
    assert_ends(gateway, frame(23, channel.id, data) * 2, "more than max_item=100000")


def test_a_worker_can_not_change_the_size_of_the_memory(shared: Gateway) -> None:
    code = """
    import os
    memory = channel.gateway._channelfactory.buffers.shared.lender.memory
    for size in 0, 1 << 40:
        try:
            os.ftruncate(memory.fd, size)
        except EnvironmentError:
            channel.send(os.fstat(memory.fd).st_size)
    """
    channel = shared.remote_exec(code)
    assert [channel.receive(BOUND_S), channel.receive(BOUND_S)] == [2 * HALF] * 2


# ---------------------------------------------------------------- ends


def test_what_has_come_outlives_a_worker_that_is_killed(makegateway: MakeGateway) -> None:
    gateway = makegateway(SPEC)
    view = echo(gateway.remote_exec(ECHO), data_of(PART_BYTES))
    os.kill(gateway._rinfo().pid, signal.SIGKILL)
    gateway.join(BOUND_S)
    assert view == data_of(PART_BYTES)


PROGRAM = f"""
import os, signal, sys, execnet
gateway = execnet.makegateway({SPEC!r})
channel = gateway.remote_exec("channel.send_bytes(channel.receive())")
channel.send_bytes(bytes(1000000))
view = channel.receive()
tracker = any(name.startswith("multiprocessing") for name in sys.modules)
memory = gateway._channelfactory.buffers.shared.lender.memory
print(gateway._rinfo().pid, os.fstat(memory.fd).st_nlink, tracker, flush=True)
signal.pause()
"""


def test_nothing_is_left_of_a_coordinator_that_is_killed() -> None:
    """No file, as it never had a name, and so no process that would remove it."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid, links, tracker = process.stdout.readline().split()
        process.kill()
    assert (links, tracker) == (b"0", b"False")
    wait_until(lambda: is_gone(int(pid)))
