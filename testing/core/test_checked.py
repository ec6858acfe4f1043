"""Items of workers that may mean harm: bounded work, and nothing good is refused."""

from __future__ import annotations

import pickle
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from items import canonical
from strategies import items
from tools import BOUND_S, MakeGateway
from workers import ask

from execnet import LoadError
from execnet._ends import checked
from execnet._ends.checked import load_checked
from execnet._ends.scan import SCANNED, Scan
from execnet.gateway_base import dumps_fast, dumps_internal, load_item, opcode

PICKLED = {
    "a memo": pickle.dumps([[1]] * 2, 4),
    "doubled without end": b"\x80\x04]" + b"2\x86" * 60 + b"a.",
    "a bytearray": pickle.dumps(bytearray(9), 5),
    "another protocol": pickle.dumps([1], 2),
    "a name": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a frame that lies": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].",
    # To the unpickler in C, what begins with "]" is no part of the bytes.
    "a frame that ends within text": b"\x80\x04\x95\x0a"
    + bytes(7)
    + b"]X\x14\0\0\0"
    + b"abcd" * 5
    + b"C\x0aNNNN]\x94h\0a.a.",
    # Nor is it part of these, as the number goes on after the frame.
    "a frame that ends within a number": b"\x80\x04\x95\x04"
    + bytes(7)
    + b"]G\1N"
    + b"C\x0cNNNNNN]\x94h\0a.a.",
    "a frame within a frame": b"\x80\x04\x95\x0a" + bytes(7) + b"\x95\1" + bytes(7) + b"N.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 31) + b".",
    "text that is not there": b"\x80\x04X" + struct.pack("<I", 1 << 31) + b".",
    "a number that is not there": b"\x80\x04\x8b" + struct.pack("<i", -1) + b".",
    "no end": b"\x80\x04]",
}
MODULUS = sys.hash_info.modulus
COLLIDING = {
    "large numbers": {n * MODULUS + 7: 0 for n in range(1, 200)},
    "tuples of numbers": {tuple(-2 + (n >> bit & 1) for bit in range(8)): 0 for n in range(200)},
    "complex numbers": {
        complex(2.0**a, 2.0**b): 0 for a in range(3, 1000, 61) for b in range(3, 1000, 61)
    },
    "frozensets": {frozenset((n * MODULUS + 7,)) for n in range(1, 200)},
}


def nested(kind: Callable[[Any], Any], depth: int) -> Any:
    item: Any = ()
    for _ in range(depth):
        item = kind([item])
    return item


@given(items())
def test_all_that_is_sent_in_earnest_passes(item: Any) -> None:
    for dump in dumps_fast, dumps_internal:
        data = dump(item)
        loaded = load_checked(data, None, (True, False))
        assert canonical(loaded) == canonical(load_item(data, None, (True, False)))


@given(items())
def test_the_careful_way_gives_the_same(item: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "FEW", -1)
        test_all_that_is_sent_in_earnest_passes.hypothesis.inner_test(item)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_that_ours_does_not_write_is_refused(name: str) -> None:
    with pytest.raises(LoadError):
        load_checked(PICKLED[name], None, (True, False))


@pytest.mark.parametrize("dump", [dumps_internal, dumps_fast])
@pytest.mark.parametrize("name", COLLIDING)
def test_many_keys_with_one_hash_are_refused(name: str, dump: Callable[[Any], bytes]) -> None:
    with pytest.raises(LoadError, match="same hash"):
        load_checked(dump(COLLIDING[name]), None, (True, False))


def test_ordinary_keys_are_taken() -> None:
    for item in (
        {(n, str(n)): n for n in range(5000)},
        {float(n): n for n in range(5000)},
        set(range(10**20, 10**20 + 5000)),
    ):
        for dump in dumps_fast, dumps_internal:
            assert load_checked(dump(item), None, (True, False)) == item


@pytest.mark.parametrize("op", [b"\x85", b"(t", b"(\x91"])
def test_a_key_that_is_nested_without_end_does_not_end_the_process(op: bytes) -> None:
    before, after = (b"(" * 200_000, op[-1:] * 200_000) if op[:1] == b"(" else (b"", op * 200_000)
    data = b"\x80\x04}" + before + b")" + after + b"Ns."
    with pytest.raises(LoadError, match="nested too deeply"):
        load_checked(data, None, (True, False))


def test_nested_frozensets_take_no_time_that_grows_with_the_square() -> None:
    depth = 900
    one = dumps_internal(())[:-1] + (opcode.FROZENSET + struct.pack("!i", 1)) * depth
    count = 300
    data = one * count + opcode.BUILDTUPLE + struct.pack("!i", count) + opcode.STOP
    start = time.process_time()
    assert load_checked(data, None, (True, False)) == (nested(frozenset, depth),) * count
    assert time.process_time() - start < 5


# Each is followed by, or follows, what is within it.
NESTED: dict[str, tuple[bytes, bytes]] = {
    "tuples": (b"", b"\x85"),
    "long tuples": (b"(NNN", b"t"),
    "lists": (b"]", b"a"),
    "long lists": (b"](N", b"e"),
    "dicts": (b"}N", b"s"),
    "long dicts": (b"}(NNN", b"u"),
    "tuples in a dict": (b"}N)", b"\x86s"),
}
ONE = struct.pack("!i", 1)
NESTED_CLASSIC = {
    "tuples": (b"", opcode.BUILDTUPLE + ONE),
    "lists": (opcode.NEWLIST + ONE + opcode.INT + struct.pack("!i", 0), opcode.SETITEM),
    "dicts": (opcode.NEWDICT + opcode.NONE, opcode.SETITEM),
    "frozensets": (b"", opcode.FROZENSET + ONE),
}


@pytest.mark.parametrize(
    "around", [b"%b", b"](N%be", b"}(NN\x88%bu", b"](%be" % (b"K\1" * 3000 + b"%b")]
)
@pytest.mark.parametrize("name", NESTED)
def test_no_item_is_nested_without_end(name: str, around: bytes) -> None:
    before, after = NESTED[name]
    levels = 2 if name == "tuples in a dict" else 1
    most = (1000 - (around != b"%b")) // levels  # and one that is empty, or within the last
    for count, fits in (most - 1, True), (most + 1, False), (200_000, False):
        data = b"\x80\x04" + around % (before * count + b")" + after * count) + b"."
        if fits:
            load_checked(data, None, (True, False))
        else:
            with pytest.raises(LoadError, match="nested too deeply: more than 1000 containers"):
                load_checked(data, None, (True, False))


@pytest.mark.parametrize("name", NESTED_CLASSIC)
def test_no_item_in_the_classic_format_is_nested_without_end(name: str) -> None:
    before, after = NESTED_CLASSIC[name]
    within = opcode.BUILDTUPLE + struct.pack("!i", 0)
    for count, fits in (999, True), (1000, False), (200_000, False):
        data = before * count + within + after * count + opcode.STOP
        if fits:
            load_checked(data, None, (True, False))
        else:
            with pytest.raises(LoadError, match="nested too deeply: more than 1000 containers"):
                load_checked(data, None, (True, False))


def test_decimal_digits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "DIGITS_MAX", 10_000)
    number = dumps_internal(10**4500)[:-1]
    data = number * 3 + opcode.BUILDTUPLE + struct.pack("!i", 3) + opcode.STOP
    with pytest.raises(LoadError, match="more than 10000 digits"):
        load_checked(data, None, (True, False))


def test_codecs_can_say_which_opcodes_they_need() -> None:
    with pytest.raises(LoadError, match="opcode"):
        Scan(SCANNED).check(pickle.dumps(bytearray(9), 5).replace(b"\x80\x05", b"\x80\x04"))
    Scan(SCANNED - {b"G"}).check(b"\x80\x04]K\x01a.")
    with pytest.raises(LoadError, match="opcode b'G'"):
        Scan(SCANNED - {b"G"}).check(b"\x80\x04]G" + struct.pack("!d", 1.5) + b"a.")


class TestGateways:
    CODE = "channel.gateway._io.write(channel.receive())"

    def raw(self, makegateway: MakeGateway, spec: str, data: bytes) -> Any:
        gateway = makegateway(spec)
        other = gateway.newchannel()
        frame = struct.pack("!bii", 4, other.id, len(data)) + data
        channel = gateway.remote_exec(self.CODE)
        channel.send(frame)
        channel.waitclose(BOUND_S)
        return other

    def test_an_item_that_is_refused_ends_its_channel_only(self, makegateway: MakeGateway) -> None:
        spec = f"popen//python={sys.executable}"
        channel = self.raw(makegateway, spec, PICKLED["a memo"])
        with pytest.raises(LoadError, match="opcode"):
            channel.receive(BOUND_S)
        assert ask(channel.gateway, "channel.send(1)") == 1

    def test_many_channels_in_an_item_are_refused(self, makegateway: MakeGateway) -> None:
        one = opcode.CHANNEL + struct.pack("!i", 2)
        data = one * 1001 + opcode.BUILDTUPLE + struct.pack("!i", 1001) + opcode.STOP
        channel = self.raw(makegateway, f"popen//python={sys.executable}", data)
        with pytest.raises(LoadError, match="more than 1000 channels"):
            channel.receive(BOUND_S)

    def test_our_own_interpreter_is_trusted(self, makegateway: MakeGateway) -> None:
        channel = self.raw(makegateway, "popen", PICKLED["a memo"])
        assert channel.receive(BOUND_S) == [[1], [1]]

    @pytest.mark.parametrize("data", [dumps_internal([1] * 9), dumps_internal({"a": 1})])
    def test_an_error_is_a_text(self, makegateway: MakeGateway, data: bytes) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        frame = struct.pack("!bii", 6, channel.id, len(data)) + data
        gateway.remote_exec(self.CODE).send(frame)
        with pytest.raises(EOFError, match="no text"):
            channel.receive(BOUND_S)
