"""Many threads and much data at once: nothing is lost, mixed, reordered or stuck."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pipes import PipeIO
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, run_all, wait_collecting, wait_until
from workers import ECHO

from execnet import Channel, Gateway, Group, XSpec
from execnet.gateway_base import (
    FrameWriter,
    Message,
    Popen2IO,
    dumps_internal,
    get_execmodel,
)

MEBIBYTE = 1 << 20


class TestOneGateway:
    def test_16_threads_with_a_channel_each(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()

        def use(number: int) -> None:
            channel = gateway.remote_exec(ECHO)
            for item in range(50):
                channel.send((number, item))
            big = bytes([number]) * (MEBIBYTE + number)
            channel.send(big)
            assert [channel.receive(BOUND_S) for _ in range(50)] == [(number, i) for i in range(50)]
            assert channel.receive(BOUND_S) == big

        run_all([lambda number=number: use(number) for number in range(16)])  # type: ignore[misc]
        wait_collecting(lambda: gateway.remote_status().numexecuting == 0)

    def test_16_threads_that_begin_and_end_code(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()

        def use(number: int) -> None:
            for item in range(10):
                channel = gateway.remote_exec(f"channel.send({number * 100 + item})")
                assert channel.receive(BOUND_S) == number * 100 + item
                channel.waitclose(BOUND_S)

        run_all([lambda number=number: use(number) for number in range(16)])  # type: ignore[misc]
        assert gateway.hasreceiver()
        wait_until(lambda: gateway._channelfactory.channels() == [])
        # A thread of the worker drops its channel a moment after that was closed.
        wait_until(lambda: gateway.remote_status().numchannels == 0)

    def test_16_threads_that_send_over_one_channel(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        channel = makegateway().remote_exec(
            """
            got = {}
            for number, item in iter(channel.receive, None):
                got.setdefault(number, []).append(item)
            channel.send(got)
            """
        )

        def use(number: int) -> None:
            for item in range(100):
                channel.send((number, item))

        run_all([lambda number=number: use(number) for number in range(16)])  # type: ignore[misc]
        channel.send(None)
        assert channel.receive(BOUND_S) == {number: list(range(100)) for number in range(16)}

    def test_16_threads_that_send_items_in_parts_over_one_channel(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        channel = makegateway().remote_exec(
            """
            got = []
            for item in iter(channel.receive, None):
                got.append((item[0], item.count(item[:1]), len(item)))
            channel.send(sorted(got))
            """
        )

        def use(number: int) -> None:
            for _ in range(3):
                channel.send(bytes([number]) * (MEBIBYTE + number))

        run_all([lambda number=number: use(number) for number in range(16)])  # type: ignore[misc]
        channel.send(None)
        sizes = [MEBIBYTE + number for number in range(16)]
        expected = [(number, size, size) for number, size in enumerate(sizes) for _ in range(3)]
        assert channel.receive(BOUND_S) == expected

    def test_16_threads_that_receive_from_one_channel(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        channel = makegateway().remote_exec("for i in range(1600): channel.send(i)")
        got: list[list[int]] = []

        def use() -> None:
            mine = list(channel)
            got.append(mine)

        run_all([use] * 16)
        assert all(mine == sorted(mine) for mine in got)
        assert sorted(item for mine in got for item in mine) == list(range(1600))

    def test_threads_of_a_worker_may_all_send(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(
            """
            import threading
            def use(number):
                for item in range(100):
                    channel.send((number, item))
                channel.send((number, b"x" * (1 << 20)))
            threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            """
        )
        got: dict[int, list[object]] = {}
        for number, item in channel:
            got.setdefault(number, []).append(item if isinstance(item, int) else len(item))
        assert got == {number: [*range(100), MEBIBYTE] for number in range(8)}

    def test_channels_that_are_dropped_while_they_close_harm_nothing(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()

        def use() -> None:
            for _ in range(30):
                channel = gateway.remote_exec("channel.send(channel.gateway.newchannel())")
                inner = channel.receive(BOUND_S)
                del channel, inner

        run_all([use] * 4)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        wait_collecting(lambda: gateway._channelfactory.channels() == [])
        wait_until(lambda: gateway.remote_status().numchannels == 0)

    def test_callbacks_set_while_items_arrive_get_each_once(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()
        for _ in range(40):
            channel = gateway.remote_exec("for i in range(60): channel.send(i)")
            items = [channel.receive(BOUND_S)]
            ended = threading.Event()

            def callback(item: object, items: list[Any] = items, ended: Any = ended) -> None:
                items.append(item)
                if item is None:
                    ended.set()

            channel.setcallback(callback, endmarker=None)
            assert ended.wait(BOUND_S)
            assert items == [*range(60), None]

    def test_a_close_while_items_arrive_gives_one_endmarker_behind_them(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()
        for _ in range(40):
            channel = gateway.remote_exec("while not channel.isclosed(): channel.send(1)")
            items: list[object] = []
            channel.setcallback(items.append, endmarker=None)
            channel.close()
            gateway.remote_status()  # behind it nothing of the channel can come
            wait_until(lambda items=items: None in items)  # type: ignore[misc]
            gateway.remote_status()
            assert items.index(None) == len(items) - 1

    def test_a_callback_and_a_receive_at_once_lose_nothing(
        self, makegateway: MakeGateway, fast_switches: None
    ) -> None:
        gateway = makegateway()
        for _ in range(20):
            channel = gateway.remote_exec("for i in range(40): channel.send(i)")
            received: list[int] = []
            called: list[int] = []

            def receive(channel: Channel = channel, received: list[int] = received) -> None:
                try:
                    while True:
                        received.append(channel.receive(BOUND_S))
                except (OSError, EOFError):  # there is a callback, or there are no more items
                    pass

            thread = threading.Thread(target=receive)
            thread.start()
            channel.setcallback(called.append)
            channel.waitclose(BOUND_S)
            thread.join(BOUND_S)
            assert sorted(received + called) == list(range(40))
            assert received == sorted(received)
            assert called == sorted(called)


class TestOneGroup:
    def test_16_threads_that_make_gateways(self, group: Group) -> None:
        made: list[tuple[Gateway, int]] = []

        def use(number: int) -> None:
            spec = f"popen//env:NUMBER={number}"
            gateway = group.makegateway(f"{spec}//id=own{number}" if number % 4 == 0 else spec)
            code = "import os; channel.send([os.environ['NUMBER'], os.getpid()])"
            got, pid = gateway.remote_exec(code).receive(BOUND_S)
            assert got == str(number)
            assert pid == gateway._rinfo().pid
            made.append((gateway, pid))

        run_all([lambda number=number: use(number) for number in range(16)])  # type: ignore[misc]
        ids = [gateway.id for gateway, _ in made]
        assert len({pid for _, pid in made}) == 16
        assert sorted(ids) == sorted(
            [f"gw{n}" for n in range(12)] + [f"own{n}" for n in range(0, 16, 4)]
        )
        assert sorted(gateway.id for gateway in group) == sorted(ids)

    def test_of_many_that_ask_for_one_id_one_gets_it(self, group: Group) -> None:
        outcomes: list[object] = []

        def use() -> None:
            try:
                outcomes.append(group.makegateway("popen//id=same").id)
            except ValueError as exc:
                outcomes.append(type(exc))

        run_all([use] * 8)
        assert sorted(map(str, outcomes)) == ["<class 'ValueError'>"] * 7 + ["same"]
        assert len(group) == 1

    def test_some_end_while_others_begin(self, group: Group) -> None:
        def use() -> None:
            for _ in range(3):
                gateway = group.makegateway()
                assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
                gateway.exit()

        run_all([use] * 4)
        assert len(group) == 0


class TestMuchData:
    def test_64_mebibytes_both_ways_at_once_do_not_deadlock(self, gw: Gateway) -> None:
        size = 64 * MEBIBYTE
        channel = gw.remote_exec(
            """
            channel.send(None)
            channel.send(b"w" * channel.receive())
            item = channel.receive()
            channel.send([len(item), item.count(b"c")])
            """
        )
        channel.receive(BOUND_S)
        channel.send(size)
        channel.send(b"c" * size)
        item = channel.receive(BOUND_S)
        assert [len(item), item.count(b"w")] == [size, size]
        assert channel.receive(BOUND_S) == [size, size]

    def test_so_many_small_items_do_not_either(self, makegateway: MakeGateway) -> None:
        number = 20000
        channel = makegateway().remote_exec(
            f"""
            for i in range({number}):
                channel.send((i, "w" * 100))
            channel.send([channel.receive()[0] for i in range({number})] == list(range({number})))
            """
        )
        for item in range(number):
            channel.send((item, "c" * 100))
        assert [channel.receive(BOUND_S)[0] for _ in range(number)] == list(range(number))
        assert channel.receive(BOUND_S) is True

    def test_an_answer_from_a_callback_does_not_wait_for_room(
        self, makegateway: MakeGateway
    ) -> None:
        """The receiver thread sends; were it to wait, nobody would read the other way."""
        channel = makegateway().remote_exec(
            """
            data = b"x" * 100000
            for i in range(100):
                channel.send(data)
            channel.send([len(channel.receive()) for i in range(100)])
            """
        )
        lengths: list[object] = []
        ended = threading.Event()

        def callback(item: Any) -> None:
            if isinstance(item, bytes):
                channel.send(item)
            else:
                lengths.append(item)
                ended.set()

        channel.setcallback(callback)
        assert ended.wait(BOUND_S)
        assert lengths == [[100000] * 100]

    def test_a_small_item_does_not_wait_for_a_large_one_of_another_channel(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        bulk = gateway.remote_exec("channel.receive()")
        small = gateway.remote_exec(ECHO)
        sent = threading.Event()

        def send() -> None:
            bulk.send(b"x" * (128 * MEBIBYTE))
            sent.set()

        thread = threading.Thread(target=send)
        thread.start()
        during = 0
        for number in range(10000):
            if sent.is_set():
                break
            small.send(number)
            assert small.receive(BOUND_S) == number
            during += not sent.is_set()
        thread.join(BOUND_S)
        assert during >= 1
        bulk.waitclose(BOUND_S)


class TestTurns:
    def test_who_sends_much_lets_go_first_who_waits(self) -> None:
        """Whoever lets go of a lock has it again before a thread that waits for it wakes up."""
        model = get_execmodel("thread")
        pipe_reads, pipe_writes = os.pipe()
        io = Popen2IO(model.fdopen(pipe_writes, "wb"), model.fdopen(pipe_reads, "rb"), model)
        taken, may_write = list[str](), threading.Event()

        def write_some(data: bytes) -> int:
            assert may_write.wait(BOUND_S)
            return len(data)

        io.write_some, io.write_pieces = write_some, None
        writer = FrameWriter(io, "x")
        lock = writer._lock

        class Noting:
            """A lock that notes which thread gets it."""

            acquire, release = lock.acquire, lock.release

            def __enter__(self) -> None:
                lock.acquire()
                taken.append(threading.current_thread().name)

            def __exit__(self, *exc_info: object) -> None:
                lock.release()

        def send_much() -> None:
            for _ in range(100):
                writer.send(b"x" * 9, b"x" * 10000)

        writer._lock = Noting()
        much = threading.Thread(target=send_much, name="much")
        much.start()
        wait_until(lambda: bool(taken))
        little = threading.Thread(target=writer.send, args=(b"x" * 9, b"x"), name="little")
        little.start()
        wait_until(lambda: len(writer._frames) == 2 and writer._turn.locked())
        may_write.set()
        for thread in much, little:
            thread.join(BOUND_S)
        assert taken == ["much", "little"] + ["much"] * 99
        io.close_write()
        io.close_read()


class TestPieces:
    """What is on the wire while several threads send, seen from its other end."""

    @pytest.fixture
    def io(self) -> Iterator[PipeIO]:
        io = PipeIO()
        yield io
        io.close()

    @pytest.fixture
    def gateway(self, io: PipeIO) -> Gateway:
        return Gateway(io, XSpec("popen//id=x"))

    def test_a_large_item_goes_in_pieces_that_others_go_between(
        self, gateway: Gateway, io: PipeIO
    ) -> None:
        bulk, other = gateway.newchannel(), gateway.newchannel()
        big = threading.Thread(target=bulk.send, args=(b"x" * (16 * MEBIBYTE),))
        small = [threading.Thread(target=c.send, args=(7,)) for c in (bulk, other)]
        big.start()
        messages = [io.next_message()]
        for thread in small:
            thread.start()
        while any(thread.is_alive() for thread in [big, *small]):
            messages.append(io.next_message())
        codes = [(message.msgcode, message.channelid) for message in messages]
        last_piece = max(
            i for i, (code, _) in enumerate(codes) if code == Message.CHANNEL_DATA_PART
        )
        for channel in bulk, other:
            assert codes.index((Message.CHANNEL_DATA, channel.id)) < last_piece
        assert all(len(message.data) <= MEBIBYTE + 64 for message in messages)

    def test_an_item_of_a_mebibyte_goes_in_one(self, gateway: Gateway, io: PipeIO) -> None:
        channel = gateway.newchannel()
        item = "x" * (MEBIBYTE - 6)  # bytes go from where they are, in one of their own
        assert len(dumps_internal(item)) == MEBIBYTE
        thread = threading.Thread(target=channel.send, args=(item,))
        thread.start()
        assert io.next_message().msgcode == Message.CHANNEL_DATA
        thread.join(BOUND_S)

    def test_pieces_of_several_items_of_a_channel_do_not_mix(
        self, gateway: Gateway, io: PipeIO
    ) -> None:
        """Two threads send large items over one channel; what arrives is each of them whole."""
        channel = gateway.newchannel()
        items = [bytes([65 + n]) * (3 * MEBIBYTE) for n in range(4)]
        threads = [threading.Thread(target=channel.send, args=(item,)) for item in items]
        echo = gateway.newchannel()
        for thread in threads:
            thread.start()
        for _ in range(5 * len(items)):  # three pieces of each, opcodes before and behind
            message = io.next_message()
            header = struct.pack("!bii", message.msgcode, echo.id, len(message.data))
            os.write(io.far_writes, header)
            for start in range(0, len(message.data), 65536):
                os.write(io.far_writes, message.data[start : start + 65536])
        got = [echo.receive(BOUND_S) for _ in items]
        assert sorted(got) == items

    def test_a_piece_for_a_channel_that_nobody_holds_is_forgotten(
        self, gateway: Gateway, io: PipeIO
    ) -> None:
        piece = struct.pack("!iB", 1, 0) + b"x" * 1000
        for number in 11, 13, 15:
            os.write(io.far_writes, struct.pack("!bii", 9, number, len(piece)) + piece)
        channel = gateway.newchannel()
        data = dumps_internal(1)
        os.write(io.far_writes, struct.pack("!bii", 4, channel.id, len(data)) + data)
        assert channel.receive(BOUND_S) == 1
        assert gateway._channelfactory.parts == {}
