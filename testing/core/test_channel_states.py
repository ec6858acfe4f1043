"""Every state of a channel and of a gateway, with everything that can be done in it.

What is expected stands in the tables below: ``CHANNEL_MOVES`` and ``GATEWAY_MOVES`` say how one
state leads to another, ``CHANNEL_TABLE`` and ``GATEWAY_TABLE`` what an operation does there. The
channels are driven by the messages and calls that really lead to a state, over a gateway that
offers nothing but what channels may ask for.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pipes import PipeIO
from typing import Any

import pytest
from tools import BOUND_S, LonelyGateway, wait_until

from execnet import XSpec
from execnet.gateway import Gateway
from execnet.gateway_base import (
    Channel,
    ChannelState,
    GatewayState,
    Message,
    ProtocolError,
    RemoteError,
    _Flag,
    dumps_internal,
)

pytestmark = pytest.mark.core

CHANNEL_STATES = ["open", "send-only", "receive-closed", "closed", "deleted"]
CHANNEL_EVENTS = ["close", "far_drop", "stream_end", "drop"]

#                    close     far_drop          stream_end        drop
CHANNEL_MOVES = {
    "open":           ("closed", "send-only",      "receive-closed", "deleted"),
    "send-only":      ("closed", "send-only",      "receive-closed", "deleted"),
    "receive-closed": ("closed", "receive-closed", "receive-closed", "deleted"),
    "closed":         ("closed", "closed",         "closed",         "deleted"),
    "deleted":        ("deleted", "deleted",       "deleted",        "deleted"),
}  # fmt: skip

# A cell is what the operation returns or raises, and after "+" the frame that it sends. "7" is an
# item that is in the queue before the operation, where the operation has "queued" in its name.
CHANNEL_TABLE = """
operation             open              send-only         receive-closed  closed     deleted
send                  None+DATA         None+DATA         OSError         OSError    OSError
send_nothing_dumpable DumpError         DumpError         OSError         OSError    OSError
receive               TimeoutError      EOFError          EOFError        EOFError   EOFError
receive_queued        7                 7                 7               7          7
receive_with_callback OSError           OSError           OSError         OSError    OSError
waitclose             TimeoutError      None              None            None       None
waitclose_callback    TimeoutError      None              None            None       None
close                 None+CLOSE        None+CLOSE        None            None       None
close_with_error      None+CLOSE_ERROR  None+CLOSE_ERROR  None            None       None
isclosed              False             False             True            True       True
next_queued           7                 7                 7               7          7
iterate_queued        (waits)           [7]               [7]             [7]        [7]
setcallback           []                ['end']           ['end']         ['end']    ['end']
setcallback_queued    [7]               [7,'end']         [7,'end']       [7,'end']  [7,'end']
setcallback_twice     OSError           OSError           OSError         OSError    OSError
makefile_write        None+DATA         None+DATA         OSError         OSError    OSError
makefile_read_queued  'ab'              'ab'              'ab'            'ab'       'ab'
makefile_read_end     (waits)           ''                ''              ''         ''
makefile_other        ValueError        ValueError        ValueError      ValueError ValueError
makefile_close        None              None              None            None       None
makefile_proxyclose   None+CLOSE        None+CLOSE        None            None       None
drop                  None+CLOSE        None+CLOSE        None            None       None
drop_with_callback    None+LAST_MESSAGE None+CLOSE        None            None       None
"""


def receive(gateway: LonelyGateway, msgcode: int, data: bytes = b"") -> None:
    Message(msgcode, 1, data).received(gateway)


def sent_by(gateway: LonelyGateway) -> list[str]:
    return [Message._types[code][0].removeprefix("CHANNEL_") for code, _, _ in gateway.sent]


def cause(event: str, gateway: LonelyGateway, channel: Channel) -> None:
    """Have the event happen to the channel as it really does."""
    if event == "close":
        channel.close()
    elif event == "far_close":
        receive(gateway, Message.CHANNEL_CLOSE)
    elif event == "far_drop":
        receive(gateway, Message.CHANNEL_LAST_MESSAGE)
    elif event == "stream_end":
        gateway._channelfactory._finished_receiving()
    else:
        # Within a reference cycle a channel is finalized while others can still reach it.
        channel.__del__()


WAYS = {
    "open": [],
    "send-only": ["far_drop"],
    "receive-closed": ["stream_end"],
    "closed": ["close"],
    "deleted": ["drop"],
}


def channel_in(state: str, *queued: object) -> tuple[LonelyGateway, Channel]:
    """Return a channel in a state, with items that came before it got there."""
    gateway = LonelyGateway()
    channel = gateway._channelfactory.new()
    for item in queued:
        receive(gateway, Message.CHANNEL_DATA, dumps_internal(item))
    for event in WAYS[state]:
        cause(event, gateway, channel)
    assert channel._state == state
    gateway.sent.clear()
    return gateway, channel


class Operations:
    """What a user can do with a channel; each is one row of the table."""

    def send(self, channel: Channel) -> object:
        return channel.send(7)

    def send_nothing_dumpable(self, channel: Channel) -> object:
        return channel.send(object())

    def receive(self, channel: Channel) -> object:
        return channel.receive(timeout=0.01)

    def receive_queued(self, channel: Channel) -> object:
        return channel.receive(timeout=0.01)

    def receive_with_callback(self, channel: Channel) -> object:
        channel.setcallback(lambda item: None)
        return channel.receive(timeout=0.01)

    def waitclose(self, channel: Channel) -> object:
        return channel.waitclose(timeout=0.01)

    def waitclose_callback(self, channel: Channel) -> object:
        channel.setcallback(lambda item: None)
        return channel.waitclose(timeout=0.01)

    def close(self, channel: Channel) -> object:
        return channel.close()

    def close_with_error(self, channel: Channel) -> object:
        return channel.close("an error")

    def isclosed(self, channel: Channel) -> object:
        return channel.isclosed()

    def next_queued(self, channel: Channel) -> object:
        return channel.next()

    def iterate_queued(self, channel: Channel) -> object:
        return list(channel)

    def setcallback(self, channel: Channel) -> object:
        items: list[object] = []
        channel.setcallback(items.append, endmarker="end")
        return items

    def setcallback_queued(self, channel: Channel) -> object:
        return self.setcallback(channel)

    def setcallback_twice(self, channel: Channel) -> object:
        channel.setcallback(lambda item: None)
        return channel.setcallback(lambda item: None)

    def makefile_write(self, channel: Channel) -> object:
        return channel.makefile("w").write("text")

    def makefile_read_queued(self, channel: Channel) -> object:
        return channel.makefile("r").read(2)

    def makefile_read_end(self, channel: Channel) -> object:
        return channel.makefile("r").read(2)

    def makefile_other(self, channel: Channel) -> object:
        return channel.makefile("x")

    def makefile_close(self, channel: Channel) -> object:
        return channel.makefile("w").close()

    def makefile_proxyclose(self, channel: Channel) -> object:
        return channel.makefile("w", proxyclose=True).close()


QUEUED = {"makefile_read_queued": "abc"}


def outcome(operation: Callable[[], object], gateway: LonelyGateway) -> str:
    """Do it, and say in the words of the table what came of it."""
    results: list[str] = []

    def run() -> None:
        try:
            results.append(repr(operation()).replace(" ", ""))
        except Exception as exc:
            results.append(type(exc).__name__)

    thread = threading.Thread(target=run, daemon=True)  # so that what hangs does not stop us
    thread.start()
    thread.join(BOUND_S)
    return "+".join([*(results or ["hangs"]), *sent_by(gateway)])


def read_table(table: str) -> dict[tuple[str, str], str]:
    """Return {(operation, state): what is expected}."""
    header, *rows = [line.split() for line in table.strip().splitlines()]
    return {
        (row[0], state): cell
        for row in rows
        for state, cell in zip(header[1:], row[1:], strict=True)
    }


CHANNEL_CELLS = read_table(CHANNEL_TABLE)


class TestChannelMoves:
    def test_each_state_and_event_of_the_core_is_walked(self) -> None:
        names = {value for name, value in vars(ChannelState).items() if type(value) is str}
        names -= {ChannelState.__module__, ChannelState.__doc__}
        assert names == set(CHANNEL_STATES) == set(ChannelState.ORDER)
        assert set(CHANNEL_EVENTS) == set(ChannelState.AFTER)

    @pytest.mark.parametrize("event", CHANNEL_EVENTS)
    @pytest.mark.parametrize("state", CHANNEL_STATES)
    def test_an_event_leads_where_the_table_says(self, state: str, event: str) -> None:
        gateway, channel = channel_in(state)
        cause(event, gateway, channel)
        assert channel._state == CHANNEL_MOVES[state][CHANNEL_EVENTS.index(event)]

    @pytest.mark.parametrize("state", CHANNEL_STATES)
    def test_a_close_of_the_far_side_leads_where_our_own_does(self, state: str) -> None:
        gateway, channel = channel_in(state)
        cause("far_close", gateway, channel)
        known = state != "receive-closed"  # there the gateway has forgotten the channel
        assert channel._state == (CHANNEL_MOVES[state][0] if known else state)

    @pytest.mark.parametrize("second", [*CHANNEL_EVENTS, "far_close"])
    @pytest.mark.parametrize("first", [*CHANNEL_EVENTS, "far_close"])
    def test_the_endmarker_comes_once_whichever_events_follow_each_other(
        self, first: str, second: str
    ) -> None:
        gateway, channel = channel_in("open")
        items: list[object] = []
        channel.setcallback(items.append, endmarker="end")
        for event in first, second, "far_close", "stream_end":
            cause(event, gateway, channel)
        assert items == ["end"]

    @pytest.mark.parametrize("event", ["far_close", "far_drop", "stream_end"])
    def test_a_channel_can_end_on_both_sides_at_once(self, event: str) -> None:
        """Weak references still lead to an object while ``__del__`` runs; so may the factory."""
        gateway, channel = channel_in("open")
        happened: list[object] = []

        def post(msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
            happened.append(Message._types[msgcode][0])
            try:
                cause(event, gateway, None)  # type: ignore[arg-type]
            except Exception as exc:
                happened.append(exc)

        gateway._channelfactory.post = post
        del channel
        gc.collect()
        assert happened == ["CHANNEL_CLOSE"]
        assert gateway._channelfactory.channels() == []


class TestChannelOperations:
    def test_the_table_has_a_cell_for_each_operation_in_each_state(self) -> None:
        operations = {name for name in vars(Operations) if not name.startswith("_")}
        operations |= {"drop", "drop_with_callback"}
        assert set(CHANNEL_CELLS) == {(op, s) for op in operations for s in CHANNEL_STATES}

    @pytest.mark.parametrize(
        ("operation", "state", "expected"),
        [(*key, cell) for key, cell in CHANNEL_CELLS.items() if not key[0].startswith("drop")],
    )
    def test_an_operation_does_what_the_table_says(
        self, operation: str, state: str, expected: str
    ) -> None:
        if expected == "(waits)":
            return
        queued = [QUEUED.get(operation, 7)] if "queued" in operation else []
        gateway, channel = channel_in(state, *queued)
        assert outcome(lambda: getattr(Operations(), operation)(channel), gateway) == expected

    @pytest.mark.parametrize("operation", ["iterate_queued", "makefile_read_end"])
    def test_what_waits_in_an_open_channel_ends_with_it(self, operation: str) -> None:
        assert CHANNEL_CELLS[operation, "open"] == "(waits)"
        gateway, channel = channel_in("open", *([7] if "queued" in operation else []))
        results: list[object] = []
        run = getattr(Operations(), operation)
        thread = threading.Thread(target=lambda: results.append(run(channel)), daemon=True)
        thread.start()
        wait_until(lambda: channel._items.empty())
        assert results == []
        receive(gateway, Message.CHANNEL_CLOSE)
        thread.join(BOUND_S)
        assert repr(results) == f"[{CHANNEL_CELLS[operation, 'closed']}]"

    @pytest.mark.parametrize("state", CHANNEL_STATES)
    @pytest.mark.parametrize("with_callback", [False, True])
    def test_dropping_does_what_the_table_says(self, state: str, with_callback: bool) -> None:
        gateway, channel = channel_in(state)
        if with_callback:
            channel.setcallback(lambda item: None)

        def drop() -> None:
            nonlocal channel
            del channel
            gc.collect()  # where nothing counts references

        operation = "drop_with_callback" if with_callback else "drop"
        assert outcome(drop, gateway) == CHANNEL_CELLS[operation, state]

    @pytest.mark.parametrize("state", CHANNEL_STATES)
    def test_a_channel_names_its_state(self, state: str) -> None:
        _, channel = channel_in(state)
        assert repr(channel) == f"<Channel id=1 {state}>"

    @pytest.mark.parametrize("state", CHANNEL_STATES)
    def test_late_items_are_taken_by_an_open_channel_only(self, state: str) -> None:
        gateway, channel = channel_in(state)
        receive(gateway, Message.CHANNEL_DATA, dumps_internal(8))
        assert channel._items.qsize() >= 1
        if state == "open":
            assert channel.receive(timeout=0.01) == 8
        else:
            with pytest.raises(EOFError):
                channel.receive(timeout=0.01)

    @pytest.mark.parametrize("state", CHANNEL_STATES)
    def test_an_error_of_the_far_side_is_had_once_behind_the_items(self, state: str) -> None:
        gateway, channel = channel_in(state, 7)
        receive(gateway, Message.CHANNEL_CLOSE_ERROR, dumps_internal("far text"))
        assert channel.receive(timeout=0.01) == 7
        if state == "open":
            with pytest.raises(RemoteError, match="far text"):
                channel.receive(timeout=0.01)
        channel._getremoteerror()
        with pytest.raises(EOFError):
            channel.receive(timeout=0.01)


# ---------------------------------------------------------------- gateways

GATEWAY_STATES = ["starting", "live", "closing", "closed", "lost"]
GATEWAY_EVENTS = ["hello", "exit", "end"]

#             hello      exit       end; None: can't happen, the receiver thread has ended
GATEWAY_MOVES = {
    "starting": ("live",    "closing", "lost"),
    "live":     ("live",    "closing", "lost"),
    "closing":  ("closing", "closing", "closed"),
    "closed":   (None,      "closed",  None),
    "lost":     (None,      "lost",    None),
}  # fmt: skip

GATEWAY_TABLE = """
operation      starting          live              closing       closed        lost
remote_exec    Channel+EXEC      Channel+EXEC      OSError       OSError       WorkerGone
newchannel     Channel           Channel           Channel       OSError       WorkerGone
send           None+DATA         None+DATA         OSError       OSError       WorkerGone
reconfigure    None+RECONFIGURE  None+RECONFIGURE  OSError       OSError       WorkerGone
exit           None+TERMINATE    None+TERMINATE    None          None          None
exit_twice     None+TERMINATE    None+TERMINATE    None          None          None
hasreceiver    True              True              True          False         False
join           None              None              None          None          None
receives       receive-live      receive-live      receive-live  not-receiving not-receiving
"""


@pytest.fixture
def pipe_io() -> Iterator[PipeIO]:
    io = PipeIO()
    yield io
    io.close()


HELLO = dumps_internal({"codecs": ("classic",), "executable": "there", "pid": 1})


def happen(event: str, gateway: Gateway, io: PipeIO) -> None:
    if event == "hello":
        gateway.handshake.answered = _Flag(gateway.execmodel)
        io.say(Message.HELLO, data=HELLO)
        assert gateway.handshake.answered.wait(BOUND_S)
    elif event == "exit":
        gateway.exit()
    else:
        io.end()
        gateway.join(BOUND_S)


GATEWAY_WAYS = {
    "starting": [],
    "live": ["hello"],
    "closing": ["hello", "exit"],
    "closed": ["hello", "exit", "end"],
    "lost": ["hello", "end"],
}


@pytest.fixture
def gateway_in(pipe_io: PipeIO) -> Iterator[Callable[[str], Gateway]]:
    """Make a gateway in a state; end it afterwards."""
    made: list[Gateway] = []

    def make(state: str) -> Gateway:
        gateway = Gateway(pipe_io, XSpec("popen//id=gwX"))
        made.append(gateway)
        for event in GATEWAY_WAYS[state]:
            happen(event, gateway, pipe_io)
        assert gateway._state == state
        pipe_io.heard()
        return gateway

    yield make
    pipe_io.end()
    for gateway in made:
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()


class GatewayOperations:
    def remote_exec(self, gateway: Gateway) -> object:
        return type(gateway.remote_exec("pass"))

    def newchannel(self, gateway: Gateway) -> object:
        return type(gateway.newchannel())

    def send(self, gateway: Gateway) -> object:
        return gateway._send(Message.CHANNEL_DATA, 1, dumps_internal(7))

    def reconfigure(self, gateway: Gateway) -> object:
        return gateway.reconfigure()

    def exit(self, gateway: Gateway) -> object:
        return gateway.exit()

    def exit_twice(self, gateway: Gateway) -> object:
        gateway.exit()
        return gateway.exit()

    def hasreceiver(self, gateway: Gateway) -> object:
        return gateway.hasreceiver()

    def join(self, gateway: Gateway) -> object:
        return gateway.join(timeout=0.01)

    def receives(self, gateway: Gateway) -> object:
        return repr(gateway).split()[2]


GATEWAY_CELLS = read_table(GATEWAY_TABLE)


def gateway_outcome(operation: Callable[[], Any], io: PipeIO) -> str:
    try:
        result = operation()
        result = getattr(result, "__name__", str(result)).rstrip(",")
    except Exception as exc:
        result = type(exc).__name__
    frames = [name.removeprefix("CHANNEL_").removeprefix("GATEWAY_") for name in io.heard()]
    dropped = ["CLOSE"] if result == "Channel" and frames else []  # nobody held the channel
    return "+".join([result, *(frame for frame in frames if frame not in dropped)])


class TestGatewayStates:
    def test_the_table_of_the_core_is_this_one(self) -> None:
        expected = {
            state: {
                event: to for event, to in zip(GATEWAY_EVENTS, moves, strict=True) if to is not None
            }
            for state, moves in GATEWAY_MOVES.items()
        }
        assert expected == GatewayState.TRANSITIONS

    @pytest.mark.parametrize(
        ("state", "event"),
        [
            (state, event)
            for state in GATEWAY_STATES
            for event, to in zip(GATEWAY_EVENTS, GATEWAY_MOVES[state], strict=True)
            if to is not None
        ],
    )
    def test_an_event_leads_where_the_table_says(
        self, state: str, event: str, gateway_in: Callable[[str], Gateway], pipe_io: PipeIO
    ) -> None:
        gateway = gateway_in(state)
        happen(event, gateway, pipe_io)
        assert gateway._state == GATEWAY_MOVES[state][GATEWAY_EVENTS.index(event)]

    @pytest.mark.parametrize(
        ("operation", "state", "expected"), [(*key, cell) for key, cell in GATEWAY_CELLS.items()]
    )
    def test_an_operation_does_what_the_table_says(
        self,
        operation: str,
        state: str,
        expected: str,
        gateway_in: Callable[[str], Gateway],
        pipe_io: PipeIO,
    ) -> None:
        gateway = gateway_in(state)
        run = getattr(GatewayOperations(), operation)
        assert gateway_outcome(lambda: run(gateway), pipe_io) == expected

    def test_a_worker_can_not_end_its_coordinator_s_gateway_in_an_orderly_way(
        self, gateway_in: Callable[[str], Gateway], pipe_io: PipeIO
    ) -> None:
        gateway = gateway_in("live")
        channel = gateway.newchannel()
        pipe_io.say(Message.GATEWAY_TERMINATE)
        gateway.join(BOUND_S)
        assert gateway._state == "lost"
        with pytest.raises(ProtocolError, match="may not send GATEWAY_TERMINATE"):
            channel.receive(timeout=1)

    def test_what_the_worker_is_stays_known_in_every_state_behind_its_hello(
        self, gateway_in: Callable[[str], Gateway], pipe_io: PipeIO
    ) -> None:
        gateway = gateway_in("live")
        for event in "exit", "end":
            happen(event, gateway, pipe_io)
            assert gateway._rinfo().executable == "there"
