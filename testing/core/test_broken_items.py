"""What becomes of data that no serializer wrote, and of items that are too deep.

Data is cut at each byte, garbled byte by byte, random, or made to harm. Nothing but LoadError
and EOFError may come of it, and no more memory than the data can need.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import SAMPLE, containing_themselves
from tools import KIT, Trickle, find_python, run_python

from execnet import DumpError, LoadError
from execnet.gateway_base import dumps, dumps_internal, load, loads, loads_internal

VERSION = b"\x02"


def load_from_stream(data: bytes) -> Any:
    return load(BytesIO(data))


def load_from_trickle(data: bytes) -> Any:
    return load(Trickle(data))


both_ways_in = pytest.mark.parametrize("read", [loads, load_from_stream])


def int4(number: int) -> bytes:
    return struct.pack("!i", number)


def read_or_refuse(read: Callable[[bytes], Any], data: bytes) -> None:
    """Any data makes an item, a LoadError or an EOFError; all else is a failure."""
    with contextlib.suppress(LoadError, EOFError):
        read(data)


def garbled(data: bytes, changes: range) -> Iterator[bytes]:
    """Yield copies of the data with one byte changed, in each place by each of the changes."""
    for place in range(len(data)):
        for change in changes:
            yield data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


# Data that is inconsistent, by what is wrong with it; the version and STOP are added.
INCONSISTENT = {
    "nothing": b"",
    "two items": b"LL",
    "an item set in nothing": b"LLP",
    "an item set in an int": b"F\0\0\0\x01LLP",
    "an item set in a tuple": b"L@\0\0\0\x01F\0\0\0\0LP",
    "an item set in text": b"N\0\0\0\x01aF\0\0\0\0LP",
    "an index behind the list": b"K\0\0\0\x01F\0\0\0\x01LP",
    "a negative index": b"K\0\0\0\x01F\xff\xff\xff\xffLP",
    "an index that is text": b"K\0\0\0\x01N\0\0\0\x01aLP",
    "an index that is a list": b"K\0\0\0\x01K\0\0\0\0LP",
    "a list as key": b"JK\0\0\0\0LP",
    "a dict as key": b"JJLP",
    "a set as element": b"O\0\0\0\0O\0\0\0\x01",
    "a list as element": b"K\0\0\0\0E\0\0\0\x01",
    "a tuple of more than there is": b"L@\0\0\0\x02",
    "a tuple of less than nothing": b"L@\xff\xff\xff\xff",
    "a set of more than there is": b"LO\0\0\0\x02",
    "a frozenset of less than nothing": b"LE\xff\xff\xff\xff",
    "a list of less than nothing": b"K\xff\xff\xff\xff",
    "bytes of less than nothing": b"A\xff\xff\xff\xff",
    "text of less than nothing": b"LN\xff\xff\xff\xf6",
    "more bytes than there are": b"A\0\0\x01\0abc",
    "text that is no UTF-8": b"N\0\0\0\x01\xff",
    "unicode that is no UTF-8": b"S\0\0\0\x02\xc3(",
    "text that ends within a character": b"N\0\0\0\x02\xe2\x82",
    "a number without digits": b"H\0\0\0\0",
    "a sign without digits": b"H\0\0\0\x01-",
    "two signs": b"H\0\0\0\x03--1",
    "a plus": b"H\0\0\0\x02+1",
    "a space": b"H\0\0\0\x02 1",
    "a newline": b"H\0\0\0\x021\n",
    "an underscore": b"H\0\0\0\x031_1",
    "a hexadecimal number": b"I\0\0\0\x041e10",
    "digits of another script": b"I\0\0\0\x02\xd9\xa1",
    "a sign in the middle of a long number": b"H\0\0\x13\x89" + b"1" * 2500 + b"-" + b"1" * 2500,
    "a channel": b"B\0\0\0\x01",
}


class TestBrokenDumps:
    @both_ways_in
    def test_a_dump_that_is_cut_anywhere_is_refused(self, read: Callable[[bytes], Any]) -> None:
        dumped = dumps(SAMPLE)
        for size in range(len(dumped)):
            with pytest.raises((LoadError, EOFError)):
                read(dumped[:size])

    def test_a_stream_that_ends_within_a_dump_is_an_end_of_file(self) -> None:
        dumped = dumps(SAMPLE)
        for size in range(len(dumped)):
            with pytest.raises(EOFError):
                load(Trickle(dumped[:size]))

    def test_a_garbled_dump_is_refused_or_another_item(self) -> None:
        for data in garbled(dumps(SAMPLE), range(1, 256, 3)):
            read_or_refuse(loads, data)

    def test_a_garbled_stream_is_refused_or_another_item(self) -> None:
        for data in garbled(dumps(SAMPLE), range(1, 256, 23)):
            read_or_refuse(load_from_stream, data)

    @given(st.binary())
    def test_random_bytes_are_refused_or_an_item(self, data: bytes) -> None:
        for read in (loads, load_from_stream, load_from_trickle):
            read_or_refuse(read, VERSION + data)
            read_or_refuse(read, data)

    def test_random_opcodes_are_refused_or_an_item(self) -> None:
        chance = random.Random(2)
        for _ in range(20_000):
            data = b"".join(self.some_opcode(chance) for _ in range(chance.randrange(12)))
            read_or_refuse(loads, VERSION + data + b"Q")
            read_or_refuse(load_from_stream, VERSION + data)

    def some_opcode(self, chance: random.Random) -> bytes:
        op = bytes([chance.randrange(0x40, 0x55)])
        number = int4(chance.choice([0, 1, 1, 2, 3, -1, 2**31 - 1, -(2**31)]))
        return op + chance.choice([b"", number, number + chance.randbytes(chance.randrange(4))])

    @both_ways_in
    @pytest.mark.parametrize("data", INCONSISTENT.values(), ids=INCONSISTENT)
    def test_inconsistent_data_is_refused(self, read: Callable[[bytes], Any], data: bytes) -> None:
        with pytest.raises((LoadError, EOFError)):
            read(VERSION + data + b"Q")

    @both_ways_in
    def test_an_opcode_that_there_is_not_is_a_load_error(
        self, read: Callable[[bytes], Any]
    ) -> None:
        for op in {*range(256)} - {*range(0x40, 0x55)}:
            with pytest.raises(LoadError, match="unknown opcode"):
                read(VERSION + bytes([op]) + int4(1) + b"Q")

    @both_ways_in
    def test_another_version_is_a_load_error(self, read: Callable[[bytes], Any]) -> None:
        for version in (b"\x00", b"\x01", b"\x03", b"L", b"\xff"):
            with pytest.raises(LoadError, match=r"version|format"):
                read(version + b"LQ")

    @both_ways_in
    def test_nothing_at_all_is_an_end_of_file(self, read: Callable[[bytes], Any]) -> None:
        with pytest.raises(EOFError):
            read(b"")

    @both_ways_in
    def test_equal_keys_that_are_nested_deeply_are_no_recursion_error(
        self, read: Callable[[bytes], Any]
    ) -> None:
        key = b"L" + b"@\0\0\0\x01" * 3000
        read_or_refuse(read, VERSION + b"J" + 2 * (key + b"LP") + b"Q")
        read_or_refuse(read, VERSION + 2 * key + b"O\0\0\0\x02Q")


def peak_bytes_of(read: Callable[[bytes], Any], data: bytes) -> int:
    """Return the most memory that was taken while the data was read."""
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    tracemalloc.start()
    try:
        read_or_refuse(read, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestMemory:
    @both_ways_in
    @pytest.mark.parametrize("op", [b"@", b"A", b"E", b"H", b"I", b"K", b"M", b"N", b"O", b"S"])
    @pytest.mark.parametrize("size", [2**31 - 1, 10**8, -(2**31)])
    def test_a_lie_about_a_size_takes_no_memory(
        self, read: Callable[[bytes], Any], op: bytes, size: int
    ) -> None:
        data = VERSION + op + int4(size) + b"F\0\0\0\0LP" * 100
        assert peak_bytes_of(read, data) < 4_000_000

    @both_ways_in
    def test_many_lies_take_no_more_than_one(self, read: Callable[[bytes], Any]) -> None:
        data = VERSION + b"".join(b"K" + int4(5 * (1999 - n) // 7) for n in range(2000)) + b"Q"
        assert peak_bytes_of(read, data) < 200 * len(data)

    def test_what_is_loaded_takes_memory_in_proportion(self) -> None:
        for data in (b"J" * 9999 + b"@" + int4(9999), b"O\0\0\0\0" * 999 + b"@" + int4(999)):
            assert peak_bytes_of(loads, VERSION + data + b"Q") < 200 * len(data)


DEEP_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from items import WRAPPERS, containing_themselves, nested
from execnet.gateway_base import CODECS, DumpError, dumps, dumps_fast, dumps_internal

assert "fast" in CODECS or sys.implementation.name != "cpython"
items = {"itself": item for _, item in containing_themselves()}
for name, wrap in WRAPPERS.items():
    deep = nested(wrap, 5000)
    items["deep, nested " + name] = deep
    items["deep, behind " + name] = [1, {"a": deep}]
try:
    items["deep, in a key"] = {nested(WRAPPERS["tuples"], 5000): 1}
    items["deep, in an element"] = {nested(WRAPPERS["tuples"], 5000)}
except RecursionError:  # an interpreter that cannot hash it
    assert sys.implementation.name != "cpython"
for name, item in items.items():
    for function in dumps, dumps_internal, dumps_fast:
        try:
            function(item)
        except DumpError as error:
            assert name.split(",")[0] in str(error), (name, function, error)
            assert len(str(error)) < 5000, (name, function, len(str(error)))
        else:
            assert sys.getrecursionlimit() > 10000, "%s passed %s" % (name, function)
print("all refused")
"""


class TestDepth:
    @pytest.mark.parametrize(
        "version", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "pypy3.10", "pypy3.11"]
    )
    def test_too_deep_is_a_dump_error_on_every_python(self, version: str) -> None:
        ended = run_python(DEEP_PROGRAM, str(KIT), python=find_python(version))
        assert ended.stderr == ""
        assert ended.stdout == "all refused\n"

    @pytest.mark.parametrize("limit", [200, 20_000])
    def test_another_recursion_limit_makes_no_other_error(self, limit: int) -> None:
        program = f"import sys; sys.setrecursionlimit({limit})\n" + DEEP_PROGRAM
        ended = run_python(program, str(KIT))
        assert ended.stderr == ""
        assert ended.stdout == "all refused\n"

    @pytest.mark.parametrize(
        "item", [pytest.param(item, id=name) for name, item in containing_themselves()]
    )
    def test_the_error_says_where_an_object_is_in_itself(self, item: Any) -> None:
        with pytest.raises(DumpError, match=r"^item.*: contains itself$"):
            dumps(item)

    def test_an_item_that_can_be_dumped_can_be_loaded(self) -> None:
        item: Any = None
        for _ in range(5000):
            item = [item]
            try:
                dumped = dumps_internal(item)
            except DumpError:
                break
            loads_internal(dumped)
        else:
            pytest.fail("there is no limit")

    @both_ways_in
    def test_a_deep_dump_does_not_crash(self, read: Callable[[bytes], Any]) -> None:
        for data in (b"L" + b"@\0\0\0\x01" * 100_000, b"K\0\0\0\x01F\0\0\0\0" * 9999):
            read_or_refuse(read, VERSION + data + b"Q")

    def test_a_deep_key_does_not_crash(self) -> None:
        program = """
import sys
sys.path.insert(0, sys.argv[1])
from execnet.gateway_base import LoadError, loads
deep = b"L" + b"@\\0\\0\\0\\x01" * 300_000
for data in (b"J" + deep + b"LP", deep + b"O\\0\\0\\0\\x01"):
    try:
        loads(b"\\x02" + data + b"Q")
    except LoadError:
        pass
print("alive")
"""
        ended = run_python(program, str(KIT))
        assert (ended.returncode, ended.stdout) == (0, "alive\n")
