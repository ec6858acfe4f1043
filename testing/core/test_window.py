"""Back pressure: ``window=`` and ``Channel.set_window`` bound what is unread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from programs import ITEM, ON_ORDER, READER
from tools import MakeGateway, Task, call_in_receiver, wait_until

from execnet import Channel, DeadlockError, Gateway

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("coordinator")]


class Sender:
    """Sends items in a thread of its own, and counts those that it got rid of."""

    def __init__(self, channel: Channel, item: object = ITEM) -> None:
        self.channel = channel
        self.item = item
        self.sent = 0
        self.task = Task(channel.gateway.execmodel, self._send)

    def _send(self) -> None:
        while True:
            self.channel.send(self.item)
            self.sent += 1

    def is_blocked(self) -> bool:
        return bool(self.channel._factory.windows and self.channel._factory.windows._senders)


@pytest.fixture
def gateway(makegateway: MakeGateway) -> Gateway:
    return makegateway("popen//window=10000//grace=0.2")


@pytest.fixture
def ordered(gateway: Gateway) -> Iterator[tuple[Channel, Channel]]:
    channel = gateway.remote_exec(ON_ORDER)
    orders = gateway.newchannel()
    channel.send(orders)
    yield channel, orders
    orders.close()


class TestSend:
    def test_it_waits_while_the_window_is_full(self, ordered: tuple[Channel, Channel]) -> None:
        channel, orders = ordered
        sender = Sender(channel)
        wait_until(sender.is_blocked)
        assert 8 <= sender.sent <= 10

        before = sender.sent
        orders.send(5)
        assert orders.receive(10) == 5
        orders.send(1)  # what was read counts when the next one is asked for
        assert orders.receive(10) == 1
        wait_until(lambda: sender.sent >= before + 5)
        wait_until(sender.is_blocked)
        assert sender.sent <= before + 6

        channel.close()
        with pytest.raises(OSError, match="closed"):
            sender.task.result()

    def test_it_raises_when_the_worker_dies_meanwhile(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("channel.gateway.execmodel.sleep(1000)")
        sender = Sender(channel)
        wait_until(sender.is_blocked)
        gateway._io.kill()
        with pytest.raises(OSError, match=r"SIGKILL|closed"):
            sender.task.result()

    def test_it_raises_when_the_far_side_closes_meanwhile(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("channel.gateway.newchannel().receive()")
        sender = Sender(channel)
        wait_until(sender.is_blocked)
        far = gateway.remote_exec(
            f"channel.gateway._channelfactory._local_close({channel.id})\n"
            f"channel.gateway._send(5, {channel.id})"
        )
        far.waitclose()
        with pytest.raises(OSError, match="closed"):
            sender.task.result()

    def test_an_item_larger_than_the_window_goes_alone(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(READER)
        for _ in range(3):
            channel.send(b"x" * 3_000_000)
        channel.send(None)
        assert channel.receive(10) == "read"

    def test_other_channels_go_on(self, ordered: tuple[Channel, Channel]) -> None:
        channel, _ = ordered
        sender = Sender(channel)
        wait_until(sender.is_blocked)
        echo = channel.gateway.remote_exec("channel.send(channel.receive())")
        echo.send(1)
        assert echo.receive(10) == 1
        channel.close()
        with pytest.raises(OSError, match="closed"):
            sender.task.result()

    def test_all_items_arrive_in_order(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        items = [bytes([number % 256]) * (number * 37 % 9000) for number in range(500)]
        sending = Task(gateway.execmodel, lambda: [channel.send(item) for item in items])
        assert [channel.receive(10) for _ in items] == items
        sending.result()

    def test_a_callback_of_the_gateway_never_waits(self, gateway: Gateway) -> None:
        full = gateway.remote_exec("channel.gateway.execmodel.sleep(1000)")
        sent: list[int] = []
        ended = gateway.execmodel.Event()

        def callback(item: object) -> None:
            try:
                for number in range(30):
                    full.send(ITEM)
                    sent.append(number)
            except DeadlockError:
                ended.set()

        call_in_receiver(gateway, callback)
        assert ended.wait(10)
        assert 8 <= len(sent) <= 10
        full.close()


class TestTheWorkersSide:
    def test_a_producer_waits_for_a_reader_here(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("""
for number in range(100):
    channel.send((number, b"x" * 1000))
""")
        wait_until(lambda: channel._items.qsize() >= 8)
        assert gateway.remote_status().numexecuting == 1
        assert channel._items.qsize() <= 10
        assert [number for number, _ in channel] == list(range(100))

    def test_one_that_calls_back_is_read(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("for i in range(100): channel.send(b'x' * 1000)")
        wait_until(lambda: channel._items.qsize() >= 8)
        got: list[bytes] = []
        ended = gateway.execmodel.Event()
        channel.setcallback(lambda item: ended.set() if item is None else got.append(item), None)
        assert ended.wait(10)
        assert len(got) == 100

    def test_its_callbacks_read(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("""
import threading
ended = threading.Event()
channel.setcallback(lambda item: ended.set() if item is None else None)
ended.wait()
channel.send("read")
""")
        for _ in range(100):
            channel.send(ITEM)
        channel.send(None)
        assert channel.receive(10) == "read"


class TestPerChannel:
    def test_it_bounds_one_channel_on_both_sides(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("""
channel.receive()
for number in range(100):
    channel.send((number, b"x" * 1000))
""")
        channel.set_window(5000)
        channel.send("go")
        wait_until(lambda: channel._items.qsize() >= 4)
        assert gateway.remote_status().numexecuting == 1
        assert [number for number, _ in channel] == list(range(100))
        free = gateway.remote_exec("channel.gateway.execmodel.sleep(1000)")
        for _ in range(100):
            free.send(ITEM)
        free.close()

    @pytest.mark.parametrize("value", [0, -1, 1.5, None])
    def test_a_window_is_a_number_of_bytes(self, gateway: Gateway, value: object) -> None:
        with pytest.raises(ValueError, match="window"):
            gateway.newchannel().set_window(value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", ["0", "x", "", "1.5"])
    def test_so_it_is_in_a_spec(self, makegateway: MakeGateway, value: str) -> None:
        with pytest.raises(ValueError, match="window="):
            makegateway(f"popen//window={value}")


class TestAnInterruptedSend:
    def test_before_it_is_handed_in_gives_back_what_it_counted(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        channel.set_window(50)
        windows = gateway._channelfactory.windows
        assert windows is not None

        def deliver(frame: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(gateway._writer, "deliver", deliver)
        for _ in range(3):  # each goes alone, so the second would wait
            with pytest.raises(KeyboardInterrupt):
                channel.send(ITEM)
        assert windows._credits[channel.id].under_way == 0

    def test_after_it_is_handed_in_stays_counted_until_it_is_read(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = makegateway()
        code = gateway.remote_exec(ON_ORDER)
        orders = gateway.newchannel()
        code.set_window(5000)
        code.send(orders)
        windows, deliver = gateway._channelfactory.windows, gateway._writer.deliver
        assert windows is not None
        before = windows._credits[code.id].under_way

        def handed_in(frame: list[object]) -> None:
            deliver(frame)
            raise KeyboardInterrupt

        monkeypatch.setattr(gateway._writer, "deliver", handed_in)
        with pytest.raises(KeyboardInterrupt):
            code.send(ITEM)
        monkeypatch.undo()
        assert windows._credits[code.id].under_way >= before + len(ITEM) - 100
        orders.send(1)
        assert orders.receive(timeout=10) == 1

    def test_what_was_read_is_told_once_whatever_comes(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        channel.set_window(5000)
        inbox, writer = channel._items, gateway._writer
        inbox.sizes += [10, 20]
        told: list[object] = []
        post_frame = writer.post_frame

        def interrupted(frame: list[object]) -> None:
            if not writer.has(frame):
                told.append(frame[0])
            post_frame(frame)
            if len(told) == 1:
                monkeypatch.setattr(writer, "post_frame", again)
                raise KeyboardInterrupt

        def again(frame: list[object]) -> None:
            assert writer.has(frame)

        monkeypatch.setattr(writer, "post_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inbox._tell()
        inbox._tell()
        assert len(told) == 1
        assert inbox.sizes == []
        assert inbox._telling is None
