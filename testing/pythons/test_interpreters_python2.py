"""What is special with Python 2 on the far side: its strings, and dumps that it stored."""

from __future__ import annotations

from io import BytesIO
from queue import SimpleQueue
from typing import Any

import pytest
from items import canonical
from tools import BOUND_S
from workers import ask, plain_channel

import execnet
from execnet import Channel, Gateway, RemoteError

pytest_plugins = ["worker_fixtures"]

# (py2str_as_py3str, py3str_as_py2str)
Config = tuple[bool, bool]
CONFIGS: list[Config] = [(True, False), (False, False), (True, True), (False, True)]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=["text", "bytes", "text str", "bytes str"]
)

# What Python 2 has -> what arrives here with py2str_as_py3str, and without.
FROM_PYTHON_2: dict[str, tuple[Any, Any]] = {
    "'a'": ("a", b"a"),
    "''": ("", b""),
    "'a\\xe9\\x00\\xff'": ("a\xe9\x00\xff", b"a\xe9\x00\xff"),
    "'\\xe2\\x82\\xac'": ("\xe2\x82\xac", b"\xe2\x82\xac"),
    "u''": ("", ""),
    "u'a\\xe9\\u20ac\\U0001f600'": ("a\xe9\u20ac\U0001f600", "a\xe9\u20ac\U0001f600"),
    "b'bytes are str'": ("bytes are str", b"bytes are str"),
    "['a', u'b']": (["a", "b"], [b"a", "b"]),
    "('a', (u'b',))": (("a", ("b",)), (b"a", ("b",))),
    "{'k': {u'l': ['v']}}": ({"k": {"l": ["v"]}}, {b"k": {"l": [b"v"]}}),
    "{('a', 1): None}": ({("a", 1): None}, {(b"a", 1): None}),
    "set(['a'])": ({"a"}, {b"a"}),
    "frozenset(['a'])": (frozenset(["a"]), frozenset([b"a"])),
    "'x' * (3 << 20)": ("x" * (3 << 20), b"x" * (3 << 20)),
    "1L": (1, 1),
    "-1L": (-1, -1),
    "2147483648L": (2147483648, 2147483648),
    "-(2L ** 80)": (-(2**80), -(2**80)),
    "sys.maxint": (2**63 - 1, 2**63 - 1),
    "sys.maxint + 1": (2**63, 2**63),
    "[True, None, 1.5, 2j, (), [], {}]": ([True, None, 1.5, 2j, (), [], {}],) * 2,
}
# What is sent from here -> repr of what Python 2 has without py3str_as_py2str, and with.
TO_PYTHON_2: list[tuple[Any, str, str]] = [
    ("a", "u'a'", "'a'"),
    ("", "u''", "''"),
    ("\xe9\u20ac", "u'\\xe9\\u20ac'", "'\\xc3\\xa9\\xe2\\x82\\xac'"),
    (b"a\xe9", "'a\\xe9'", "'a\\xe9'"),
    (b"", "''", "''"),
    (["a", b"b"], "[u'a', 'b']", "['a', 'b']"),
    (("a", (b"b",)), "(u'a', ('b',))", "('a', ('b',))"),
    ({"k": {b"l": ["v"]}}, "{u'k': {'l': [u'v']}}", "{'k': {'l': ['v']}}"),
    ({("a", 1)}, "set([(u'a', 1)])", "set([('a', 1)])"),
    (frozenset(["a"]), "frozenset([u'a'])", "frozenset(['a'])"),
    (1, "1", "1"),
    (2**31, "2147483648", "2147483648"),
    (2**63, "9223372036854775808L", "9223372036854775808L"),
    (1 - 2**63, "-9223372036854775807", "-9223372036854775807"),
    ([None, True, -0.0, 2j, ()], "[None, True, -0.0, 2j, ()]", "[None, True, -0.0, 2j, ()]"),
]
EVALUATE = "import sys\nfor code in channel: channel.send(eval(code))"
REPRESENT = "for item in channel: channel.send(u'%s' % repr(item))"


def check_what_comes(channel: Channel, as_text: bool) -> None:
    """Check all of FROM_PYTHON_2 on a channel to EVALUATE."""
    for code, (text, raw) in FROM_PYTHON_2.items():
        channel.send(code)
        item = channel.receive(BOUND_S)
        assert canonical(item) == canonical(text if as_text else raw), code


def check_what_arrives(channel: Channel, as_str: bool) -> None:
    """Check all of TO_PYTHON_2 on a channel to REPRESENT."""
    for item, as_unicode, as_bytes in TO_PYTHON_2:
        channel.send(item)
        assert channel.receive(BOUND_S) == (as_bytes if as_str else as_unicode), item


class TestStrings:
    @every_config
    def test_a_channel_is_configured_on_both_sides(self, shared2: Gateway, config: Config) -> None:
        for code, check, on in (EVALUATE, check_what_comes, 0), (REPRESENT, check_what_arrives, 1):
            channel = shared2.remote_exec(code)
            channel.reconfigure(*config)
            check(channel, config[on])
            channel.close()

    @every_config
    def test_a_worker_configures_it_as_well(self, shared2: Gateway, config: Config) -> None:
        for code, check, on in (EVALUATE, check_what_comes, 0), (REPRESENT, check_what_arrives, 1):
            channel = shared2.remote_exec(f"channel.reconfigure{config}; channel.send(1)\n" + code)
            assert channel.receive(BOUND_S) == 1
            check(channel, config[on])
            channel.close()

    @every_config
    def test_a_gateway_configures_its_new_channels(self, fresh2: Gateway, config: Config) -> None:
        old = fresh2.remote_exec(EVALUATE)
        fresh2.reconfigure(*config)
        for code, check, on in (EVALUATE, check_what_comes, 0), (REPRESENT, check_what_arrives, 1):
            check(fresh2.remote_exec(code), config[on])
        check_what_comes(old, as_text=True)

    def test_the_default_is_text_here_and_unicode_there(self, shared2: Gateway) -> None:
        for code, check, on in (EVALUATE, check_what_comes, 1), (REPRESENT, check_what_arrives, 0):
            channel = shared2.remote_exec(code)
            check(channel, bool(on))
            channel.reconfigure(False, True)
            channel.reconfigure()
            check(channel, bool(on))
            channel.close()

    def test_callbacks_get_what_receive_would(self, shared2: Gateway) -> None:
        calls: SimpleQueue[Any] = SimpleQueue()
        code = """
import threading
ended = threading.Event()
def callback(item):
    if item is None: ended.set()
    channel.send((u'%s' % repr(item), 'str'))
channel.setcallback(callback)
ended.wait(10)
"""
        channel = shared2.remote_exec(code)
        channel.setcallback(calls.put)
        channel.send("a")
        assert calls.get(timeout=BOUND_S) == ("u'a'", "str")
        channel.reconfigure(False, True)  # also behind ``setcallback``
        channel.send("a")
        assert calls.get(timeout=BOUND_S) == ("'a'", b"str")
        channel.send(None)
        channel.waitclose(BOUND_S)

    def test_a_channel_in_an_item_has_the_configuration_of_its_gateway(
        self, fresh2: Gateway
    ) -> None:
        fresh2.reconfigure(False, True)
        inner = fresh2.newchannel()
        channel = fresh2.remote_exec(
            "inner = channel.receive()\n"
            + EVALUATE.replace("in channel", "in inner").replace("channel.send", "inner.send")
        )
        channel.send(inner)
        check_what_comes(inner, as_text=False)

    def test_what_a_worker_says_of_itself_is_text_in_any_configuration(
        self, fresh2: Gateway
    ) -> None:
        fresh2.reconfigure(False, False)
        status, info = fresh2.remote_status(), fresh2._rinfo(update=True)
        assert (status.numexecuting, status.execmodel) == (0, "thread")
        assert info.version_info[:2] == (2, 7)
        assert isinstance(info.executable, str)
        with pytest.raises(RemoteError, match=r"^Traceback[^b']*\n(?s:.*)ValueError: x"):
            fresh2.remote_exec("raise ValueError('x')").waitclose(BOUND_S)
        inner = fresh2.newchannel()
        channel = fresh2.remote_exec("channel.receive().close('why'); channel.receive()")
        channel.send(inner)
        with pytest.raises(RemoteError, match=r"^why$"):
            inner.waitclose(BOUND_S)
        channel.send(None)

    def test_names_and_arguments_are_str_as_functions_want_them(self, fresh2: Gateway) -> None:
        def send_back(channel, **kwargs):  # type: ignore[no-untyped-def]
            channel.send(repr(sorted(kwargs.items())))

        for config in CONFIGS:
            fresh2.reconfigure(*config)
            answer = ask(fresh2, send_back, name="\xe9", other=b"x")
            if isinstance(answer, bytes):
                answer = answer.decode()
            assert answer == "[('name', '\\xc3\\xa9'), ('other', 'x')]"


class TestStoredDumps:
    """What one side stores and the other reads, with the options of both."""

    def stored_there(self, gateway: Gateway, code: str) -> bytes:
        source = f"""
import sys
module = sys.modules[type(channel).__module__]
channel.send(module.dumps({code}))
"""
        channel = plain_channel(gateway, source)
        dumped: bytes = channel.receive(BOUND_S)
        channel.waitclose(BOUND_S)
        return dumped

    @pytest.mark.parametrize("code", [code for code in FROM_PYTHON_2 if "<<" not in code])
    def test_those_of_python_2_are_loaded_here(self, shared2: Gateway, code: str) -> None:
        dumped = self.stored_there(shared2, code)
        text, raw = FROM_PYTHON_2[code]
        for options, expected in ({}, raw), ({"py2str_as_py3str": True}, text):
            assert canonical(execnet.loads(dumped, **options)) == canonical(expected)
            assert canonical(execnet.load(BytesIO(dumped), **options)) == canonical(expected)
        ignored = {"py2str_as_py3str": False, "py3str_as_py2str": True}
        assert canonical(execnet.loads(dumped, **ignored)) == canonical(raw)

    def test_those_from_here_are_loaded_by_python_2(self, shared2: Gateway) -> None:
        code = """
import sys
from io import BytesIO
module = sys.modules[type(channel).__module__]
for dumped in channel:
    for options in {}, {"py3str_as_py2str": True}, {"py2str_as_py3str": True}:
        item = module.loads(dumped, **options)
        again = module.load(BytesIO(dumped), **options)
        channel.send((u'%s' % repr(item), repr(item) == repr(again)))
"""
        channel = shared2.remote_exec(code)
        for item, as_unicode, as_str in TO_PYTHON_2:
            channel.send(execnet.dumps(item))
            for expected in as_unicode, as_str, as_unicode:
                assert channel.receive(BOUND_S) == (expected, True)
        channel.close()

    def test_its_own_come_back_to_it(self, shared2: Gateway) -> None:
        code = """
import sys
module = sys.modules[type(channel).__module__]
for code in channel:
    item = eval(code)
    for options in {}, {"py3str_as_py2str": True}, {"py2str_as_py3str": True}:
        channel.send(repr(module.loads(module.dumps(item), **options)) == repr(item))
"""
        channel = shared2.remote_exec(code)
        for expression in FROM_PYTHON_2:
            channel.send(expression)
            assert [channel.receive(BOUND_S) for _ in range(3)] == [True] * 3, expression
        channel.close()

    @pytest.mark.parametrize(
        "code",
        [
            "type('C', (str,), {})()",
            "type('L', (long,), {})()",
            "u'x'.__class__",
            "xrange(3)",
            "buffer('x')",
            "__import__('types').ClassType('Old', (), {})()",
        ],
    )
    def test_what_is_no_builtin_of_python_2_is_refused(self, shared2: Gateway, code: str) -> None:
        with pytest.raises(RemoteError, match=r"DumpError: item\[0\]: can't serialize <"):
            ask(shared2, f"channel.send([{code}])")
