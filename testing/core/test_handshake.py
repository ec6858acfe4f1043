"""What comes before the first frame of a worker: noise, a wish, the marker, the hello."""

from __future__ import annotations

import pytest

from execnet._ends.handshake import NOISE_MAX, Handshake
from execnet.gateway_base import get_execmodel

pytestmark = pytest.mark.core

MARKER = b"\0execnet\x000123456789abcdef\n"
WISH = MARKER.rstrip() + b"?\n"


class Shipment:
    rest, compiled_rest, plain_rest, plain_line = b"rest", b"compiled", b"plain rest", b"plain line"


def handshake(shipment: Shipment | None = None) -> Handshake:
    return Handshake(get_execmodel("thread"), MARKER, shipment)


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_what_comes_before_the_marker_is_noise_and_what_comes_after_it_is_left(step: int) -> None:
    shake = handshake()
    data = b"Welcome!\n\0execnet\0" + MARKER
    for start in range(0, len(data), step):
        after = shake.feed(data[start : start + step])
        assert (after is None) == (start + step < len(data))
    assert after == b""
    assert shake.noise == b"Welcome!\n\0execnet\0"
    assert handshake().feed(b"x" + MARKER + b"a frame") == b"a frame"


def test_an_end_and_too_much_noise_are_told() -> None:
    shake = handshake()
    assert shake.feed(b"who?") is None
    with pytest.raises(EOFError, match="ended before a worker answered"):
        shake.feed(b"")
    assert shake.noise == b"who?"
    with pytest.raises(EOFError, match="no worker answered within"):
        handshake().feed(b"y" * (NOISE_MAX + 1))


def test_a_worker_without_zlib_is_sent_the_plain_source_once() -> None:
    shake = handshake(Shipment())
    assert [shake.feed(bytes([byte])) for byte in WISH] == [None] * len(WISH)
    assert shake.feed(b"more") is None
    assert (shake.take_reply(), shake.take_reply()) == (b"plain line", b"")
    assert shake.feed(MARKER) == b""
    assert shake.take_reply() == b""
    assert shake.take_rest(True, True) == b"plain rest"


def test_without_a_shipment_no_wish_is_answered() -> None:
    shake = handshake()
    assert shake.feed(WISH) is None
    assert shake.take_reply() == b""
    assert shake.take_rest(True, True) is None


@pytest.mark.parametrize(
    ("is_alike", "is_near", "rest"),
    [(True, True, b"compiled"), (True, False, b"rest"), (False, True, b"rest")],
)
def test_the_rest_is_taken_once_as_it_is_quickest(
    is_alike: bool, is_near: bool, rest: bytes
) -> None:
    shake = handshake(Shipment())
    assert shake.take_rest(is_alike, is_near) == rest
    assert shake.take_rest(is_alike, is_near) is None


def test_its_end_keeps_the_hello_and_wakes_who_waits_after_it() -> None:
    shake = handshake()
    seen: list[object] = []
    shake.on_answer = lambda: seen.append((shake.answered.is_set(), shake.hello))
    shake.end({"pid": 5})
    shake.end()
    assert seen == [(True, {"pid": 5})] * 2
