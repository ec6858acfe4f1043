"""The classic codec: the dump format byte by byte, round trips, and what is refused.

The other codec is in ``test_fast_codec.py``, broken data for both in ``test_broken_items.py``.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import (
    REFUSED,
    REFUSED_HASHABLE,
    WRAPPERS,
    Foo,
    canonical,
    nested,
)
from strategies import BIG, items, questionable_items
from tools import LonelyGateway, Trickle

import execnet
from execnet import DumpError, LoadError, gateway_base
from execnet.gateway_base import (
    Unserializer,
    dump,
    dumps,
    dumps_internal,
    load,
    loads,
    loads_internal,
    opcode,
)

pytestmark = pytest.mark.core

VERSION = b"\x02"

# Every opcode that this Python writes: an item and its dump, byte by byte.
DUMPS: dict[str, tuple[Any, bytes]] = {
    "None": (None, b"L"),
    "true": (True, b"R"),
    "false": (False, b"C"),
    "an int": (1, b"F\x00\x00\x00\x01"),
    "a negative int": (-2, b"F\xff\xff\xff\xfe"),
    "the greatest int4": (2147483647, b"F\x7f\xff\xff\xff"),
    "the least int4": (-2147483648, b"F\x80\x00\x00\x00"),
    "one more": (2147483648, b"H\x00\x00\x00\x0a2147483648"),
    "one less": (-2147483649, b"H\x00\x00\x00\x0b-2147483649"),
    "a large negative int": (-(2**40), b"H\x00\x00\x00\x0e-1099511627776"),
    "a float": (1.5, b"D\x3f\xf8\x00\x00\x00\x00\x00\x00"),
    "a negative zero": (-0.0, b"D\x80\x00\x00\x00\x00\x00\x00\x00"),
    "infinity": (float("inf"), b"D\x7f\xf0\x00\x00\x00\x00\x00\x00"),
    "a complex": (1.5 - 2j, b"T\x3f\xf8\0\0\0\0\0\0\xc0\x00\0\0\0\0\0\0"),
    "bytes": (b"a\x00\xff", b"A\x00\x00\x00\x03a\x00\xff"),
    "no bytes": (b"", b"A\x00\x00\x00\x00"),
    "text": ("aé€😀", b"N\x00\x00\x00\x0aa\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"),
    "no text": ("", b"N\x00\x00\x00\x00"),
    "a lone surrogate": ("\ud800", b"N\x00\x00\x00\x03\xed\xa0\x80"),
    "an empty list": ([], b"K\x00\x00\x00\x00"),
    "a list": (
        [None, 7],
        b"K\x00\x00\x00\x02"  # two places
        b"F\x00\x00\x00\x00LP"  # in the first one None
        b"F\x00\x00\x00\x01F\x00\x00\x00\x07P",
    ),
    "large ints in a list": (
        [-2147483648, 2147483648],
        b"K\x00\x00\x00\x02F\x00\x00\x00\x00F\x80\x00\x00\x00P"
        b"F\x00\x00\x00\x01H\x00\x00\x00\x0a2147483648P",
    ),
    "an empty dict": ({}, b"J"),
    "a dict": ({"a": True, 3: b""}, b"JN\x00\x00\x00\x01aRPF\x00\x00\x00\x03A\x00\x00\x00\x00P"),
    "an empty tuple": ((), b"@\x00\x00\x00\x00"),
    "a tuple": ((1, None), b"F\x00\x00\x00\x01L@\x00\x00\x00\x02"),
    "an empty set": (set(), b"O\x00\x00\x00\x00"),
    "a set": ({"x"}, b"N\x00\x00\x00\x01xO\x00\x00\x00\x01"),
    "an empty frozenset": (frozenset(), b"E\x00\x00\x00\x00"),
    "a frozenset": (frozenset([1.5]), b"D\x3f\xf8\0\0\0\0\0\0E\x00\x00\x00\x01"),
    "one in the other": (
        [({"k": [False]},)],
        b"K\0\0\0\x01F\0\0\0\0JN\0\0\0\x01kK\0\0\0\x01F\0\0\0\0CPP@\0\0\0\x01P",
    ),
}
# What Python 2 writes: a dump, the item with py2str_as_py3str, the item without.
PYTHON_2_DUMPS: dict[str, tuple[bytes, Any, Any]] = {
    "str": (b"M\x00\x00\x00\x02a\xe9", "aé", b"a\xe9"),
    "unicode": (b"S\x00\x00\x00\x02\xc3\xa9", "é", "é"),
    "a small long": (b"G\xff\xff\xff\xff", -1, -1),
    "a large long": (b"I\x00\x00\x00\x0b-2147483649", -2147483649, -2147483649),
    "a list of str": (b"K\0\0\0\x01F\0\0\0\0M\0\0\0\x01aP", ["a"], [b"a"]),
}

near_the_limit_of_int4 = st.sampled_from([-BIG - 1, -BIG, -1, 0, 128, 0x1020304, BIG - 1, BIG])


def written(item: Any) -> bytes:
    """Return what the format has for an item, in the plainest way."""
    kind = type(item)
    if kind is list:
        entries = b"".join(written(n) + written(part) + b"P" for n, part in enumerate(item))
        return b"K" + int4(len(item)) + entries
    if kind is dict:
        return b"J" + b"".join(written(key) + written(item[key]) + b"P" for key in item)
    if kind in (tuple, set, frozenset):
        op = {tuple: b"@", set: b"O", frozenset: b"E"}[kind]
        return b"".join(map(written, item)) + op + int4(len(item))
    if kind is int and -BIG <= item < BIG:
        return b"F" + int4(item)
    if kind in (str, bytes, int):
        op, data = {
            str: lambda: (b"N", item.encode("utf-8", "surrogatepass")),
            bytes: lambda: (b"A", item),
            int: lambda: (b"H", decimal_text(item)),
        }[kind]()
        return op + int4(len(data)) + data
    if kind is float:
        return b"D" + struct.pack("!d", item)
    if kind is complex:
        return b"T" + struct.pack("!dd", item.real, item.imag)
    return {None: b"L", True: b"R", False: b"C"}[item]


def int4(number: int) -> bytes:
    return struct.pack("!i", number)


everything = pytest.mark.parametrize(("item", "dumped"), DUMPS.values(), ids=DUMPS)


class TestTheFormat:
    @everything
    def test_each_item_has_the_dump_of_the_format(self, item: Any, dumped: bytes) -> None:
        assert dumps(item) == VERSION + dumped + b"Q"

    @everything
    def test_each_dump_makes_the_item(self, item: Any, dumped: bytes) -> None:
        assert canonical(loads(VERSION + dumped + b"Q")) == canonical(item)

    @everything
    def test_without_a_version_it_is_the_same(self, item: Any, dumped: bytes) -> None:
        assert dumps_internal(item) == dumped + b"Q"
        assert canonical(loads_internal(dumped + b"Q")) == canonical(item)

    @pytest.mark.parametrize(("dumped", "text", "raw"), PYTHON_2_DUMPS.values(), ids=PYTHON_2_DUMPS)
    def test_what_python_2_dumped_is_read(self, dumped: bytes, text: Any, raw: Any) -> None:
        data = VERSION + dumped + b"Q"
        assert canonical(loads(data)) == canonical(raw)
        assert canonical(loads(data, py2str_as_py3str=True)) == canonical(text)
        assert canonical(load(BytesIO(data))) == canonical(raw)
        assert canonical(load(BytesIO(data), py2str_as_py3str=True)) == canonical(text)

    def test_the_conversion_of_python_3_str_is_for_python_2_only(self) -> None:
        assert loads(dumps("é"), py3str_as_py2str=True) == "é"
        assert load(BytesIO(dumps("é")), py3str_as_py2str=True) == "é"

    def test_a_set_is_its_elements_and_their_number(self) -> None:
        elements = {"a", 1, None}
        written = b"".join(dumps_internal(element)[:-1] for element in elements)
        assert dumps(elements) == VERSION + written + b"O\x00\x00\x00\x03Q"

    def test_the_opcodes_are_these_21(self) -> None:
        names = """
            BUILDTUPLE BYTES CHANNEL FALSE FLOAT FROZENSET INT LONG LONGINT LONGLONG NEWDICT
            NEWLIST NONE PY2STRING PY3STRING SET SETITEM STOP TRUE UNICODE COMPLEX
        """
        public = {name: value for name, value in vars(opcode).items() if name[0] != "_"}
        assert public == {name: bytes([64 + number]) for number, name in enumerate(names.split())}

    def test_bchr_makes_one_byte(self) -> None:
        assert [gateway_base.bchr(n) for n in (0, 65, 255)] == [b"\x00", b"A", b"\xff"]

    def test_the_version_is_looked_up_at_each_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert gateway_base.DUMPFORMAT_VERSION == VERSION
        old = dumps(1)
        monkeypatch.setattr(gateway_base, "DUMPFORMAT_VERSION", b"\x03")
        assert dumps(1) == b"\x03" + old[1:]
        assert loads(dumps(1)) == 1
        with pytest.raises(LoadError, match="x02"):
            loads(old)
        with pytest.raises(LoadError, match="x02"):
            load(BytesIO(old))

    def test_the_names_of_the_package_are_the_same(self) -> None:
        names = ["dump", "dumps", "load", "loads", "DumpError", "LoadError", "DataFormatError"]
        for name in names:
            assert getattr(execnet, name) is getattr(gateway_base, name)
        assert issubclass(DumpError, execnet.DataFormatError)
        assert issubclass(LoadError, execnet.DataFormatError)


class TestRoundTrip:
    @given(items())
    def test_every_item_comes_back_type_by_type(self, item: Any) -> None:
        assert canonical(loads(dumps(item))) == canonical(item)
        assert canonical(load(Trickle(dumps(item)))) == canonical(item)
        assert canonical(loads_internal(dumps_internal(item))) == canonical(item)

    @given(items())
    def test_every_dump_is_what_the_format_says(self, item: Any) -> None:
        assert dumps(item) == VERSION + written(item) + b"Q"

    @pytest.mark.parametrize("letter", ["a", "\xe9", "\u20ac", "\U0001f600", "\ud800"])
    def test_text_of_any_length_is_what_the_format_says(self, letter: str) -> None:
        for size in range(140):
            item = [letter * size, {letter * size: (letter * size,)}]
            assert dumps(item) == VERSION + written(item) + b"Q"
            assert loads(dumps(item)) == item

    @given(st.lists(near_the_limit_of_int4), st.integers(0, 40), st.sampled_from([7, True, 1.5]))
    def test_long_lists_of_ints_are_what_the_format_says(
        self, rows: list[Any], more: int, last: Any
    ) -> None:
        for item in ([*rows, *range(more)], [*range(more), *rows, last]):
            assert dumps(item) == VERSION + written(item) + b"Q"
            assert canonical(loads(dumps(item))) == canonical(item)

    @given(st.integers(0, 20_000), st.booleans())
    def test_ints_of_any_size_come_back(self, digits: int, negative: bool) -> None:
        number = random.Random(digits).randrange(10**digits) * (-1 if negative else 1)
        assert loads(dumps(number)) == number

    @pytest.mark.parametrize("digits", [10, 3999, 4001, 4300, 4301, 20_000])
    def test_an_int_is_its_decimal_text(self, digits: int) -> None:
        for number in (10**digits, -(10**digits), 10**digits - 1, 7 ** (digits // 2) - 2**40):
            self.check_text(number)

    def check_text(self, number: int) -> None:
        text = decimal_text(number)
        assert dumps(number) == VERSION + b"H" + struct.pack("!i", len(text)) + text + b"Q"
        assert loads(dumps(number)) == number

    def test_what_occurs_twice_arrives_as_two(self) -> None:
        row = [1]
        first, second = loads(dumps([row, row]))
        assert first == second
        assert first is not second

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
    def test_usual_nesting_comes_back(self, wrap: Callable[[Any], Any]) -> None:
        item = nested(wrap, 100)
        assert loads(dumps(item)) == item

    def test_any_buffer_can_be_loaded(self) -> None:
        dumped: Any = dumps([b"x", "y"])
        assert canonical(loads(bytearray(dumped))) == canonical([b"x", "y"])
        assert canonical(loads(memoryview(dumped))) == canonical([b"x", "y"])


def decimal_text(number: int) -> bytes:
    limit = getattr(sys, "get_int_max_str_digits", lambda: None)()
    if limit is None:  # a Python without one
        return str(number).encode()
    sys.set_int_max_str_digits(0)
    try:
        return str(number).encode()
    finally:
        sys.set_int_max_str_digits(limit)


class TestStreams:
    def test_dumps_in_one_file_are_read_one_by_one(self) -> None:
        file = BytesIO()
        for item in (1, "two", [3]):
            dump(file, item)
        file.seek(0)
        assert [load(file), load(file), load(file)] == [1, "two", [3]]
        for error in EOFError, LoadError:  # what files raise, and what execnet 2 did
            with pytest.raises(error):
                load(file)

    def test_load_takes_no_byte_more_than_the_dump_has(self) -> None:
        file = BytesIO(dumps({"a": [1]}) + b"tail")
        load(file)
        assert file.read() == b"tail"

    def test_an_unserializer_reads_with_and_without_a_version(self) -> None:
        stream = Trickle(dumps(1) + dumps_internal("é"))
        unserializer = Unserializer(stream)
        assert unserializer.load(versioned=True) == 1
        assert unserializer.load() == "é"

    @pytest.mark.parametrize("strconfig", [(True, False), (False, False)])
    def test_an_unserializer_goes_by_its_strconfig(self, strconfig: tuple[bool, bool]) -> None:
        stream = BytesIO(b"M\x00\x00\x00\x01aQ")
        expected = "a" if strconfig[0] else b"a"
        assert canonical(Unserializer(stream, strconfig=strconfig).load()) == canonical(expected)

    def test_an_unserializer_goes_by_the_strconfig_of_its_channel(self) -> None:
        channel = LonelyGateway()._channelfactory.new()
        for channel._strconfig, expected in [((True, False), "a"), ((False, False), b"a")]:
            unserializer = Unserializer(BytesIO(b"M\x00\x00\x00\x01aQ"), channel)
            assert canonical(unserializer.load()) == canonical(expected)


class TestChannels:
    def test_a_channel_is_its_id(self) -> None:
        gateway = LonelyGateway()
        channel = gateway._channelfactory.new(0x01020304)
        assert dumps_internal([channel], gateway) == (
            b"K\x00\x00\x00\x01F\x00\x00\x00\x00B\x01\x02\x03\x04PQ"
        )

    @pytest.mark.parametrize("of", ["gateway", "channel"])
    def test_an_id_is_the_channel_of_that_gateway(self, of: str) -> None:
        gateway = LonelyGateway()
        channel = gateway._channelfactory.new(6)
        found = loads_internal(b"B\x00\x00\x00\x06Q", gateway if of == "gateway" else channel)
        assert found is channel
        assert Unserializer(BytesIO(b"B\x00\x00\x00\x06Q"), gateway).load() is channel

    def test_a_channel_cannot_be_dumped(self) -> None:
        with pytest.raises(DumpError, match="Channel"):
            dumps({"a": LonelyGateway()._channelfactory.new()})

    def test_a_channel_cannot_be_loaded_from_a_dump(self) -> None:
        with pytest.raises(LoadError, match="channel"):
            loads(VERSION + b"B\x00\x00\x00\x01Q")

    def test_a_channel_of_another_gateway_is_refused(self) -> None:
        channel = LonelyGateway()._channelfactory.new()
        with pytest.raises(DumpError, match=r"item\[0\]: .*Channel"):
            dumps_internal([channel], LonelyGateway())


class TestRefusedItems:
    @pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
    def test_only_exact_builtin_types_are_dumped(self, refused: Any) -> None:
        for item in (refused, [refused], (1, refused), {"a": refused}):
            with pytest.raises(DumpError) as caught:
                dumps(item)
            assert repr(type(refused)) in str(caught.value)

    @pytest.mark.parametrize("refused", REFUSED_HASHABLE.values(), ids=REFUSED_HASHABLE)
    def test_neither_are_they_as_keys_or_elements(self, refused: Any) -> None:
        for item in ({refused: 1}, {refused}, frozenset([refused]), {(1, refused): 1}):
            with pytest.raises(DumpError) as caught:
                dumps(item)
            assert repr(type(refused)) in str(caught.value)

    @pytest.mark.parametrize(
        ("item", "path"),
        [
            (Foo(), "item"),
            ([0, Foo()], "item[1]"),
            ((Foo(),), "item[0]"),
            ({"a": Foo()}, "item['a']"),
            ({"rows": [0, 1, 2, Foo()]}, "item['rows'][3]"),
            ({1: ({"x": [Foo()]},)}, "item[1][0]['x'][0]"),
        ],
    )
    def test_the_error_gives_the_path_to_the_part(self, item: Any, path: str) -> None:
        with pytest.raises(DumpError) as caught:
            dumps(item)
        assert str(caught.value) == f"{path}: can't serialize {Foo!r}"

    @pytest.mark.parametrize("item", [[1, {Foo()}], [1, {Foo(): 2}]])
    def test_the_path_to_a_key_or_an_element_begins_the_same(self, item: Any) -> None:
        with pytest.raises(DumpError, match=r"^item\[1\].*: can't serialize <class '.*Foo'>$"):
            dumps(item)

    def test_the_path_through_a_huge_key_is_not_huge(self) -> None:
        with pytest.raises(DumpError) as caught:
            dumps({"k" * 100_000: [Foo()]})
        assert len(str(caught.value)) < 1000

    def test_a_key_whose_repr_fails_is_a_dump_error(self) -> None:
        class Shy:
            def __repr__(self) -> str:
                raise RuntimeError("no comment")

        for item in (Shy(), {Shy(): 1}, {"a": {(Shy(),): 1}}):
            with pytest.raises(DumpError, match="Shy"):
                dumps(item)

    def test_a_key_that_has_too_many_digits_for_a_text_is_in_the_path(self) -> None:
        with pytest.raises(DumpError, match=r"^item\[.*: can't serialize <class '.*Foo'>$"):
            dumps({10**5000: Foo()})

    def test_nothing_is_written_of_a_refused_item(self) -> None:
        file = BytesIO()
        with pytest.raises(DumpError):
            dump(file, [1, Foo()])
        assert file.getvalue() == b""

    @given(questionable_items())
    def test_there_is_a_dump_or_a_dump_error(self, item: Any) -> None:
        try:
            dumped = dumps(item)
        except DumpError:
            return
        assert canonical(loads(dumped)) == canonical(item)
