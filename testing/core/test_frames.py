"""Frames: the header byte by byte, and a decoder that any cut and any byte can be fed to."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import Trickle

from execnet.gateway_base import (
    FrameDecoder,
    GatewayReceivedTerminate,
    Message,
    ProtocolError,
    dumps_internal,
    parse_header,
)

pytestmark = pytest.mark.core

NAMES = [
    "STATUS",
    "RECONFIGURE",
    "GATEWAY_TERMINATE",
    "CHANNEL_EXEC",
    "CHANNEL_DATA",
    "CHANNEL_CLOSE",
    "CHANNEL_CLOSE_ERROR",
    "CHANNEL_LAST_MESSAGE",
    "HELLO",
    "CHANNEL_DATA_PART",
    "SOURCE",
    "STACKS",
    "PING",
    "WINDOW",
    "CREDIT",
    "GOODBYE",
    "CALL",
    "DEFINE",
    "INTERRUPT",
    "IMPORT",
    "SOURCES",
    "CODEC",
    "ACK",
    "SHARED",
    "RELEASED",
    "DEFLATED",
]
HEADER_BYTES = 9

Triple = tuple[int, int, bytes]

triples = st.tuples(
    st.integers(0, len(NAMES) - 1), st.integers(0, 2**31 - 1), st.binary(max_size=40)
)


def frame(code: int, channel_id: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("!bii", code, channel_id, len(payload)) + payload


def as_triple(message: Message) -> Triple:
    return message.msgcode, message.channelid, message.data


def feed_all(decoder: FrameDecoder, pieces: Iterable[bytes]) -> Iterator[Triple]:
    for piece in pieces:
        yield from map(as_triple, decoder.feed(piece))


def decode(*pieces: bytes) -> tuple[list[Triple], str | None]:
    """Return the messages in the pieces, and what was wrong with the bytes after them."""
    messages: list[Triple] = []
    try:
        for message in feed_all(FrameDecoder(), pieces):
            messages.append(message)
    except ProtocolError as error:
        return messages, str(error)
    return messages, None


def cuts(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


MESSAGES: list[Triple] = [
    (4, 3, b"abc"),
    (0, 1, b""),
    (4, 2**31 - 1, bytes(range(256))),
    (7, 0, b"\0"),
    (2, 0, b""),
]
STREAM = b"".join(frame(*message) for message in MESSAGES)


class TestMessage:
    def test_the_header_is_code_channel_and_size(self) -> None:
        out = BytesIO()
        Message(4, 258, b"abc").to_io(out)
        assert out.getvalue() == b"\x04" + b"\x00\x00\x01\x02" + b"\x00\x00\x00\x03" + b"abc"

    def test_channel_and_payload_may_be_left_out(self) -> None:
        out = BytesIO()
        Message(2).to_io(out)
        assert out.getvalue() == b"\x02" + bytes(8)

    def test_to_io_needs_only_write(self) -> None:
        class Sink:
            def __init__(self) -> None:
                self.written = b""

            def write(self, data: bytes) -> None:
                self.written += data

        sink = Sink()
        Message(4, 1, b"xyz").to_io(sink)
        assert sink.written == frame(4, 1, b"xyz")

    def test_from_io_needs_only_read(self) -> None:
        class Source:
            def __init__(self, data: bytes) -> None:
                self.read = BytesIO(data).read

        source = Source(STREAM)
        assert [as_triple(Message.from_io(source)) for _ in MESSAGES] == MESSAGES
        with pytest.raises(EOFError):
            Message.from_io(source)

    @given(triples)
    def test_every_message_comes_back(self, triple: Triple) -> None:
        stream = BytesIO()
        Message(*triple).to_io(stream)
        stream.seek(0)
        assert as_triple(Message.from_io(stream)) == triple

    def test_a_stream_that_is_cut_anywhere_is_an_end_of_file(self) -> None:
        data = frame(4, 3, b"abc")
        for size in range(len(data)):
            with pytest.raises(EOFError):
                Message.from_io(BytesIO(data[:size]))

    def test_each_code_has_its_name(self) -> None:
        names = {code: name for code, (name, _) in Message._types.items()}
        assert names == dict(enumerate(NAMES))  # counted without gaps
        assert [getattr(Message, name) for name in NAMES] == list(range(len(NAMES)))

    def test_received_calls_the_handler_of_its_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Any] = []
        name = Message._types[4][0]
        entry = (name, lambda message, gateway: calls.append((message, gateway)))
        monkeypatch.setitem(Message._types, 4, entry)
        message = Message(4, 3, b"abc")
        message.received("the gateway")
        assert calls == [(message, "the gateway")]

    def test_terminate_ends_the_receiver(self) -> None:
        class Named:
            id = "gw7"

        with pytest.raises(GatewayReceivedTerminate):
            Message(Message.GATEWAY_TERMINATE).received(Named())

    @pytest.mark.parametrize("code", range(len(NAMES)))
    def test_its_repr_says_what_it_is(self, code: int) -> None:
        text = repr(Message(code, 12, dumps_internal("x")))
        assert NAMES[code] in text
        assert "12" in text


BAD_HEADERS = {
    "an unknown code": frame(len(NAMES)),
    "a negative code": frame(-1),
    "text": b"Traceback (most recent call last)",
    "a negative size": struct.pack("!bii", 4, 1, -1),
    "the least size": struct.pack("!bii", 4, 1, -(2**31)),
    "an absurd size": struct.pack("!bii", 4, 1, 2**31 - 1),
    "an absurd size of control": struct.pack("!bii", 3, 1, 2**31 - 1),
    "a negative channel": struct.pack("!bii", 4, -1, 3) + b"abc",
}
bad_headers = pytest.mark.parametrize("bad", BAD_HEADERS.values(), ids=BAD_HEADERS)


class TestHeaders:
    def test_it_is_read_at_its_place(self) -> None:
        assert parse_header(b"xx" + frame(4, 3, b"abc"), 2) == (4, 3, 3)

    @bad_headers
    def test_what_is_none_is_a_protocol_error_that_shows_it(self, bad: bytes) -> None:
        with pytest.raises(ProtocolError) as caught:
            parse_header(bad, 0)
        code, channel_id, size = struct.unpack_from("!bii", bad)
        for shown in (code, channel_id, size, repr(bad[:HEADER_BYTES])[:-1]):
            assert str(shown) in str(caught.value)

    @bad_headers
    def test_a_stream_with_one_is_a_protocol_error(self, bad: bytes) -> None:
        with pytest.raises(ProtocolError):
            Message.from_io(BytesIO(bad))


class TestDecoder:
    def test_one_piece_may_have_many_messages(self) -> None:
        assert decode(STREAM) == (MESSAGES, None)

    def test_byte_by_byte_gives_the_same(self) -> None:
        assert decode(*(bytes([byte]) for byte in STREAM)) == (MESSAGES, None)

    @pytest.mark.parametrize("size", [2, 3, 8, 9, 10, 100])
    def test_pieces_of_any_size_give_the_same(self, size: int) -> None:
        assert decode(*cuts(STREAM, range(0, len(STREAM), size))) == (MESSAGES, None)

    def test_a_cut_at_any_place_gives_the_same(self) -> None:
        for place in range(len(STREAM) + 1):
            assert decode(STREAM[:place], STREAM[place:]) == (MESSAGES, None)
            assert decode(STREAM[:place], b"", STREAM[place:], b"") == (MESSAGES, None)

    @given(st.lists(triples, max_size=8), st.lists(st.integers(0, 10**6), max_size=12))
    def test_any_messages_in_any_cut_come_back(self, sent: list[Triple], places: list[int]) -> None:
        data = b"".join(frame(*triple) for triple in sent)
        assert decode(*cuts(data, places)) == (sent, None)

    def test_a_message_comes_as_soon_as_its_last_byte_is_there(self) -> None:
        decoder = FrameDecoder()
        data = frame(4, 1, b"abc")
        assert list(decoder.feed(data[:-1])) == []
        assert [as_triple(m) for m in decoder.feed(data[-1:] + data[:5])] == [(4, 1, b"abc")]
        assert [as_triple(m) for m in decoder.feed(data[5:])] == [(4, 1, b"abc")]

    def test_a_cut_header_asks_for_more(self) -> None:
        for size in range(HEADER_BYTES):
            decoder = FrameDecoder()
            assert list(decoder.feed(STREAM[:size])) == []
            assert decoder.missing == HEADER_BYTES - size

    def test_it_says_how_many_bytes_it_needs_at_least(self) -> None:
        decoder, data = FrameDecoder(), frame(4, 1, b"x" * 1000)
        assert decoder.missing == HEADER_BYTES
        for start, end in [(0, 5), (5, 9), (9, 500), (500, 1008)]:
            assert list(decoder.feed(data[start:end])) == []
            assert 0 < decoder.missing <= len(data) - end
        assert len(list(decoder.feed(data[1008:]))) == 1
        assert decoder.missing == HEADER_BYTES

    def test_what_is_not_complete_is_pending(self) -> None:
        decoder = FrameDecoder()
        assert decoder.pending() == b""
        list(decoder.feed(STREAM + b"\x04\0\0"))
        assert decoder.pending() == b"\x04\0\0"

    def test_payloads_are_bytes_of_their_own(self) -> None:
        buffer = bytearray(frame(4, 1, b"abc"))
        (message,) = FrameDecoder().feed(bytes(buffer))
        assert type(message.data) is bytes


class TestLargeFrames:
    """What came of a large frame of an item is handed on, by a decoder that is told to do so."""

    @pytest.mark.parametrize("code", [Message.CHANNEL_DATA, Message.CHANNEL_DATA_PART])
    def test_the_first_bytes_of_one_are_handed_on_at_once(self, code: int) -> None:
        decoder, payload = FrameDecoder(hands_on=True), bytes(range(256)) * 100
        data = STREAM + frame(code, 5, payload) + STREAM
        end = len(STREAM) + HEADER_BYTES + 5
        assert [as_triple(m) for m in decoder.feed(data[: end - 1])] == MESSAGES
        (first,) = decoder.feed(data[end - 1 : end])
        assert as_triple(first) == (code, 5, payload[:5])
        assert (first.is_first, first.left) == (True, len(payload) - 5)
        assert decoder.pending() == frame(code, 5, payload)[:HEADER_BYTES]
        (second,) = decoder.feed(data[end : end + 1000])
        assert as_triple(second) == (code, 5, payload[5:1005])
        assert (second.is_first, second.left) == (False, len(payload) - 1005)
        assert decoder.left == second.left
        rest, *after = decoder.feed(data[end + 1000 :])
        assert (rest.data, rest.is_first, rest.left) == (payload[1005:], False, 0)
        assert [as_triple(m) for m in after] == MESSAGES
        assert (decoder.pending(), decoder.left, decoder.missing) == (b"", 0, HEADER_BYTES)

    def test_a_large_frame_of_another_kind_is_not(self) -> None:
        decoder, data = FrameDecoder(hands_on=True), frame(Message.HELLO, 0, b"x" * 100_000)
        assert list(decoder.feed(data[:-1])) == []
        assert [as_triple(m) for m in decoder.feed(data[-1:])] == [(8, 0, b"x" * 100_000)]

    @given(
        st.lists(st.sampled_from([0, 5, 16383, 16384, 40000]), max_size=6),
        st.sampled_from([4, 8, 9]),
        st.lists(st.integers(0, 10**6), max_size=12),
    )
    def test_in_any_cut_they_come_to_the_same(
        self, sizes: list[int], code: int, places: list[int]
    ) -> None:
        sent = [(code, number, bytes([number]) * size) for number, size in enumerate(sizes)]
        data = b"".join(frame(*triple) for triple in sent)
        decoder, came = FrameDecoder(hands_on=True), list[Triple]()
        for piece in cuts(data, places):
            for message in decoder.feed(piece):
                if message.is_first is False:
                    code, number, before = came.pop()
                    assert message.channelid == number
                    came.append((code, number, before + message.data))
                else:
                    came.append((message.msgcode, message.channelid, bytes(message.data)))
                assert len(came[-1][2]) + message.left == sizes[len(came) - 1]
        assert came == sent


class TestBrokenStreams:
    @bad_headers
    def test_messages_before_a_bad_frame_come_first(self, bad: bytes) -> None:
        for places in ([], [len(STREAM)], range(len(STREAM) + len(bad)), [3, 200, len(STREAM) + 4]):
            messages, error = decode(*cuts(STREAM + bad, places))
            assert messages == MESSAGES
            assert error

    def test_a_garbled_stream_is_a_protocol_error_or_other_messages(self) -> None:
        for place in range(len(STREAM)):
            for change in range(1, 256, 2):
                garbled = bytearray(STREAM)
                garbled[place] ^= change
                messages, _ = decode(bytes(garbled))
                intact = intact_messages(place)
                assert messages[:intact] == MESSAGES[:intact]

    @given(st.binary(), st.lists(st.integers(0, 10**6), max_size=8))
    def test_random_bytes_mean_the_same_in_any_cut(self, data: bytes, places: list[int]) -> None:
        messages, error = decode(data)
        messages_of_cut, error_of_cut = decode(*cuts(data, places))
        assert messages_of_cut == messages
        assert (error_of_cut is None) == (error is None)

    def test_random_headers_are_a_protocol_error_or_messages(self) -> None:
        chance = random.Random(1)
        for _ in range(5000):
            header = [chance.randrange(-3, 14), chance.randrange(-2, 9), chance.randrange(-3, 30)]
            data = struct.pack("!bii", *header) + chance.randbytes(40)
            decode(STREAM, data)
            with contextlib.suppress(EOFError, ProtocolError):
                Message.from_io(BytesIO(data))

    def test_a_lie_about_a_size_takes_no_memory(self) -> None:
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
        tracemalloc.start()
        try:
            for code in range(len(NAMES)):
                for size in (2**30, 2**20, 2**31 - 1):
                    decode(struct.pack("!bii", code, 1, size), b"abc")
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()

    def test_a_large_payload_in_small_pieces_takes_memory_in_proportion(self) -> None:
        piece = b"x" * 1000
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
        tracemalloc.start()
        try:
            decoder = FrameDecoder()
            assert list(decoder.feed(struct.pack("!bii", 4, 1, 1_000_000))) == []
            messages = list(feed_all(decoder, [piece] * 1000))
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        assert messages == [(4, 1, piece * 1000)]

    def test_a_trickle_can_be_decoded(self) -> None:
        source, decoder = Trickle(STREAM), FrameDecoder()
        messages: list[Triple] = []
        while data := source.read(65536):
            messages += map(as_triple, decoder.feed(data))
        assert messages == MESSAGES


def intact_messages(place: int) -> int:
    """Return how many messages of STREAM end before that place."""
    end = count = 0
    for message in MESSAGES:
        end += len(frame(*message))
        count += end <= place
    return count
