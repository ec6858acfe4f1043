"""Channels that are dropped while other things happen; the rest is in ``test_channel.py``."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from tools import BOUND_S, LonelyGateway

from execnet.gateway_base import INTERRUPT_TEXT, Message, dumps_internal


class TestChannelsThatGo:
    def test_after_the_end_there_are_no_new_ones(self) -> None:
        factory = LonelyGateway()._channelfactory
        factory._finished_receiving()
        assert factory.finished
        with pytest.raises(OSError, match="closed"):
            factory.new()

    @pytest.fixture
    def dying(self) -> Iterator[LonelyGateway]:
        """A gateway on which another thread is dropping a channel, and is not through with it."""
        entered, go_on = threading.Event(), threading.Event()

        class Gateway(LonelyGateway):
            def _send(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
                entered.set()
                go_on.wait(20)

        gateway = Gateway()
        channels = [gateway._channelfactory.new(7)]

        def drop() -> None:
            channels.clear()
            gc.collect()  # PyPy drops it only then

        dropping = threading.Thread(target=drop)
        dropping.start()
        assert entered.wait(BOUND_S)
        yield gateway
        go_on.set()
        dropping.join()

    def test_the_stream_may_end_while_a_channel_is_dropped(self, dying: LonelyGateway) -> None:
        dying._channelfactory._finished_receiving()
        assert dying._channelfactory.finished

    @pytest.mark.parametrize(
        "message",
        [
            Message(Message.CHANNEL_CLOSE, 7),
            Message(Message.CHANNEL_CLOSE_ERROR, 7, dumps_internal(INTERRUPT_TEXT)),
            Message(Message.CHANNEL_LAST_MESSAGE, 7),
            Message(Message.CHANNEL_DATA, 7, dumps_internal("too late")),
            Message(Message.RECONFIGURE, 7, dumps_internal((False, False))),
        ],
        ids=str,
    )
    def test_a_message_may_come_while_its_channel_is_dropped(
        self, dying: LonelyGateway, message: Message
    ) -> None:
        message.received(dying)
