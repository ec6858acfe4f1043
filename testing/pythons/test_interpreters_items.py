"""Items to and from workers on every Python: each type, both ways, in both codecs.

How Python 2's strings are converted is in ``test_interpreters_python2``; here they are not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreters import Interpreter
from items import canonical
from strategies import items, plain
from tools import BOUND_S
from workers import ECHO, ask, plain_channel

from execnet import Channel, Gateway, RemoteError
from execnet.gateway_base import LoadError, Message

pytest_plugins = ["worker_fixtures"]

NAN = "__import__('struct').unpack('!d', b'\\x7f\\xf8' + b'\\x00' * 6)[0]"
# Expressions that mean the same to every Python.
EXPRESSIONS = {
    "constants": ["None", "True", "False"],
    "ints": [
        "0", "1", "-1", "255", "2**31 - 2", "2**31 - 1", "2**31", "-2**31 + 1", "-2**31",
        "-2**31 - 1", "2**32", "2**63 - 1", "2**63", "-2**63", "-2**63 - 1", "2**64",
        "10**4299", "10**4300", "-10**4300", "7**9000", "-(7**9000)",
    ],
    "floats": [
        "0.0", "-0.0", "1.5", "-1e-310", "5e-324", "1.7976931348623157e308", "0.1",
        "float('inf')", "-float('inf')", NAN,
    ],
    "complex numbers": ["2j", "-1.5+0j", f"complex(-0.0, {NAN})", "complex(0.0, -0.0)"],
    "bytes": ["b''", "b'a'", "b'\\x00\\xff'", "bytes(bytearray(range(256)))", "b'x' * 100000"],
    "text": [
        "u''", "u'a'", "u'\\x00'", "u'\\xe9\\u20ac\\U0001f600'", "u'\\ud800'", "u'a\\udcffb'",
        "u'\\x80\\x9f\\u2028\\ufffe'", "u'\\u20ac' * 100000",
    ],
    "containers": [
        "()", "(1,)", "((), ((),))", "[]", "[[], [[]]]", "[None] * 1000", "{}", "{u'k': {1: b'x'}}",
        "{(1, (u'y', None)): []}", "dict((n, [str(n).encode()]) for n in range(300))", "set()",
        "set([1, u'a', None, 1.5])", "frozenset()", "frozenset([frozenset([1]), (2,)])",
        "{None: True, False: (b'', u'')}", "[{1: set([(1, frozenset([2j]))])}, (), -2**70]",
    ],
}  # fmt: skip

# Compares what arrives with the value of the expression, type by type and bit by bit.
CHECK = """
import struct
def canonical(item):
    kind = type(item)
    name = {"long": "int", "unicode": "text"}.get(kind.__name__, kind.__name__)
    if kind is float:
        return name, struct.pack("!d", item)
    if kind is complex:
        return name, struct.pack("!dd", item.real, item.imag)
    if kind in (list, tuple):
        return name, [canonical(part) for part in item]
    if kind in (set, frozenset):
        return name, sorted(repr(canonical(part)) for part in item)
    if kind is dict:
        return name, sorted(repr(canonical(pair)) for pair in item.items())
    return name, item
for expression, item in channel:
    expected = eval(expression)
    channel.send((canonical(item) == canonical(expected), expected))
"""

SET_CODEC = """
channel.gateway._channelfactory.fast = channel.receive() == "fast"
channel.send(None)
"""


def unordered(item: Any) -> Any:
    """Return ``canonical(item)`` with dicts that are equal in any order, as in Python 2."""
    kind = type(item)
    if kind in (list, tuple):
        return kind, tuple(map(unordered, item))
    if kind is dict:
        return kind, frozenset((canonical(key), unordered(value)) for key, value in item.items())
    return canonical(item)


@contextlib.contextmanager
def codec(gateway: Gateway, name: str) -> Iterator[None]:
    """Have both sides write their items in that codec."""
    factory = gateway._channelfactory
    negotiated, factory.fast = factory.fast, name == "fast"
    ask(gateway, SET_CODEC, name)
    yield
    factory.fast = negotiated
    ask(gateway, SET_CODEC, "fast" if negotiated else "classic")


class TestEachType:
    @pytest.mark.parametrize("expressions", EXPRESSIONS.values(), ids=EXPRESSIONS)
    def test_it_arrives_as_it_is_and_comes_as_it_is(
        self, shared: Gateway, expressions: list[str]
    ) -> None:
        for name in ["classic", "fast"] if shared._channelfactory.fast else ["classic"]:
            with codec(shared, name):
                self.check(plain_channel(shared, CHECK), expressions)

    def check(self, channel: Channel, expressions: list[str]) -> None:
        for expression in [*expressions, f"[{', '.join(expressions)}]"]:
            item = eval(expression)
            channel.send((expression, item))
            arrived_well, theirs = channel.receive(BOUND_S)
            assert arrived_well, expression
            assert unordered(theirs) == unordered(item), expression

    def test_what_hypothesis_thinks_of_comes_back(
        self, shared: Gateway, python: Interpreter
    ) -> None:
        channel = plain_channel(shared, ECHO)
        keys = plain
        if python.version[0] == 2:  # where b"a" == u"a", and surrogates that meet become one
            text = st.text(st.characters(codec="utf-8"))
            keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
        everything = items(keys if python.version[0] == 2 else plain, keys)

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(everything)
        def comes_back(item: Any) -> None:
            channel.send(item)
            assert unordered(channel.receive(BOUND_S)) == unordered(item)

        comes_back()


class TestLargeItems:
    @pytest.mark.parametrize(
        "item", ["bytes(bytearray(5 << 20))", "u'\\u20ac' * (2 << 20)", "[u'x' * 99, 7] * 12000"]
    )
    def test_they_come_back_whole(self, shared: Gateway, item: str) -> None:
        channel = plain_channel(shared, CHECK)
        ours = eval(item)
        channel.send((item, ours))
        arrived_well, theirs = channel.receive(BOUND_S)
        assert arrived_well
        assert theirs == ours

    def test_a_small_item_of_another_channel_does_not_wait_for_all_of_it(
        self, shared: Gateway
    ) -> None:
        slow = shared.remote_exec("channel.send(b'x' * (8 << 20))")
        assert ask(shared, "channel.send(1)") == 1
        assert len(slow.receive(BOUND_S)) == 8 << 20

    def test_nesting_of_usual_depth_comes_back(self, shared: Gateway) -> None:
        item: Any = 1
        for _ in range(60):
            item = [(item,), {"k": item}] if type(item) is int else [(item,)]
        channel = plain_channel(shared, ECHO)
        channel.send(item)
        assert channel.receive(BOUND_S) == item


class TestRefusedItems:
    @pytest.mark.parametrize(
        ("expression", "text"),
        [
            ("object()", "item: can't serialize <(class|type) 'object'>"),
            ("[0, {'rows': [1, object()]}]", r"item\[1\]\['rows'\]\[1\]: can't serialize"),
            ("bytearray(b'x')", "item: can't serialize <.* 'bytearray'>"),
            ("[type]", r"item\[0\]: can't serialize"),
            ("type('Text', (str,), {})('x')", "item: can't serialize .*Text"),
        ],
    )
    def test_code_gets_a_dump_error_with_the_path(
        self, shared: Gateway, expression: str, text: str
    ) -> None:
        code = f"""
import sys
try:
    channel.send({expression})
except sys.modules[type(channel).__module__].DumpError as error:
    channel.send(str(error))
channel.send({expression})
"""
        channel = shared.remote_exec(code)
        assert re.match(text, channel.receive(BOUND_S))
        with pytest.raises(RemoteError, match=f"DumpError: {text}"):
            channel.receive(BOUND_S)

    def test_one_that_contains_itself_is_refused(self, shared: Gateway) -> None:
        code = "item = []; item.append([item]); channel.send(item)"
        with pytest.raises(RemoteError, match=r"DumpError: item\[0\]\[0\]: contains itself"):
            ask(shared, code)

    def test_one_that_is_nested_too_deeply_is_refused(self, shared: Gateway) -> None:
        code = "item = []\nfor _ in range(100000): item = [item]\nchannel.send(item)"
        with pytest.raises(RemoteError, match=r"DumpError: .*nested too deeply"):
            ask(shared, code)
        assert ask(shared, "channel.send(1)") == 1

    @pytest.mark.parametrize("data", [b"Z", b"", b"K\0\0\0\x01Q", b"N\0\0\0\x09xQ", b"\x80\x04."])
    def test_what_is_no_item_ends_its_channel_only(self, shared: Gateway, data: bytes) -> None:
        channel = shared.remote_exec("channel.receive()")
        shared._send(Message.CHANNEL_DATA, channel.id, data)
        with pytest.raises(RemoteError, match="LoadError"):
            channel.receive(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1

    def test_what_comes_and_is_no_item_ends_its_channel_only(self, shared: Gateway) -> None:
        code = "channel.gateway._send(4, channel.id, b'Z'); channel.receive()"
        channel = shared.remote_exec(code)
        with pytest.raises(LoadError):
            channel.receive(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1
