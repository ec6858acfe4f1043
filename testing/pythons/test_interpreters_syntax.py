"""Syntax that only some Pythons have, and what errors of Python 2 look like.

What is executed arrives as it was written, whichever Python runs the coordinator.
"""

from __future__ import annotations

from typing import Any

import pytest
from items import canonical
from tools import BOUND_S
from workers import ask

from execnet import Gateway, RemoteError

pytest_plugins = ["worker_fixtures"]

# Python 2's syntax: source, what it sends.
PYTHON_2_SYNTAX: dict[str, tuple[str, Any]] = {
    "print": ("print 'x',; print >>__import__('sys').stdout, 'y'; channel.send(1)", 1),
    "backticks": ("channel.send(`1`)", "1"),
    "exec": ("exec 'y = 1' in {}; channel.send(2)", 2),
    "raise with a comma": (
        "try: raise ValueError, 'x'\nexcept ValueError, e: channel.send(str(e))", "x",
    ),
    "an octal": ("channel.send(0777)", 511),
    "a long": ("channel.send(10L)", 10),
    "unequal": ("channel.send(1 <> 2)", True),
    "ur": (r"channel.send(ur'\d')", r"\d"),
    "a tuple as parameter": ("def f(a, (b, c)): return b\nchannel.send(f(1, (2, 3)))", 2),
    "a str that is no text": (r"channel.send('\xff')", "\xff"),
    "tabs": ("if 1:\n        x = 1\n\tchannel.send(x)", 1),
    "names": ("True, False = False, True\nchannel.send(None)", None),
    "text": ("channel.send(u'\xe9\u20ac')", "\xe9\u20ac"),
    "text in bytes": ("channel.send('\xe9'.decode('utf-8'))", "\xe9"),
    "a cookie": ("# -*- coding: latin-1 -*-\nchannel.send(u'\xe9\u20ac')", "\xe9\u20ac"),
    "a utf-8 cookie": ("#!x\n# vim: set fileencoding=utf-8 :\nchannel.send(u'\xe9')", "\xe9"),
    "a comment in other letters": ("# \xe9\nchannel.send(1)", 1),
    "what looks like a comment": ("x = '''\n# kept\n'''\nchannel.send(x)", "\n# kept\n"),
}  # fmt: skip

# Newer syntax: the first version that has it, source; each sends 1.
NEWER_SYNTAX: dict[str, tuple[tuple[int, int], str]] = {
    "annotations": (
        (3, 6), "x: int = 1\ndef f(a: 'x', *, b: int = 1) -> int: return b\nchannel.send(f(1))",
    ),
    "f-strings": ((3, 6), "channel.send(int(f'{1!r:>3}'))"),
    "non-ASCII names": ((3, 6), "\xe9 = 1\nchannel.send(\xe9)"),
    "async": ((3, 6), "async def f(): await g()\nchannel.send(1)"),
    "walrus": ((3, 8), "channel.send((n := 1))"),
    "positional only": ((3, 8), "def f(a, /, b): return a\nchannel.send(f(1, 2))"),
    "match": ((3, 10), "match 1:\n    case int(x): channel.send(x)"),
    "except group": ((3, 11), "try: 1\nexcept* ValueError: pass\nchannel.send(1)"),
    "type": ((3, 12), "type X[T] = list[T]\nchannel.send(1)"),
    "nested f-strings": ((3, 12), "channel.send(int(f'{'1'}'))"),
    "template strings": ((3, 14), "channel.send(len(t'{1}'.values))"),
}  # fmt: skip


class TestPython2Syntax:
    @pytest.mark.parametrize(("source", "expected"), PYTHON_2_SYNTAX.values(), ids=PYTHON_2_SYNTAX)
    def test_that_of_python_2_arrives_unharmed(
        self, shared2: Gateway, source: str, expected: Any
    ) -> None:
        assert canonical(ask(shared2, source)) == canonical(expected)

    def test_that_of_python_3_is_a_syntax_error_there(self, shared2: Gateway) -> None:
        with pytest.raises(RemoteError, match=r"(?s)remote exec.*line 2.*SyntaxError"):
            ask(shared2, "x = 1\ny: int = 2")


class TestNewerSyntax:
    @pytest.mark.parametrize(("since", "source"), NEWER_SYNTAX.values(), ids=NEWER_SYNTAX)
    def test_it_arrives_unharmed(
        self, shared: Gateway, since: tuple[int, int], source: str
    ) -> None:
        if shared._rinfo().version_info >= since:
            assert ask(shared, source) == 1
        else:
            with pytest.raises(RemoteError, match="SyntaxError"):
                ask(shared, source)


class TestPython2Errors:
    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("raise ValueError('plain')", "ValueError: plain"),
            ("raise ValueError(u'\xe9'.encode('utf-8'))", "ValueError: \xe9"),
            ("raise ValueError('\\xff')", "ValueError: \xff"),
            ("raise KeyError(u'\\xe9')", "KeyError: u'\\xe9'"),
            ("1 / 0  # \xe9\u20ac", "    1 / 0  # \xe9\u20ac\nZeroDivisionError"),
            ("raise 'a string'", "TypeError: exceptions must be"),
            ("class Old: pass\nraise Old()", "Old"),
            (
                "class E(Exception):\n def __str__(self): raise KeyError\nraise E()",
                "E: <unprintable E",
            ),
        ],
    )
    def test_the_text_is_readable(self, shared2: Gateway, source: str, text: str) -> None:
        with pytest.raises(RemoteError, match=text.replace("\\", r"\\")) as caught:
            ask(shared2, source)
        assert isinstance(caught.value.formatted, str)
        assert str(caught.value).startswith("Traceback (most recent call last):\n")

    def test_a_unicode_message_can_be_read(self, shared2: Gateway) -> None:
        with pytest.raises(RemoteError, match=r"ValueError: (\xe9\u20ac|\\xe9\\u20ac)\n"):
            ask(shared2, "raise ValueError(u'\\xe9\\u20ac')")

    @pytest.mark.parametrize("error", ["IOError", "OSError", "EnvironmentError"])
    def test_a_closed_channel_is_caught_as_one_catches_it_there(
        self, shared2: Gateway, error: str
    ) -> None:
        code = f"""
inner = channel.gateway.newchannel()
inner.close()
for call in (lambda: inner.send(1)), (lambda: channel.receive(timeout=0)), channel.close:
    try:
        call()
    except {error}, exc:
        channel.send(str(exc) != "")
"""
        channel = shared2.remote_exec(code)
        assert [channel.receive(BOUND_S) for _ in range(3)] == [True] * 3
        channel.waitclose(BOUND_S)

    def test_an_error_from_here_is_text_there(self, shared2: Gateway) -> None:
        log = shared2.newchannel()
        code = """
log = channel.receive()
try:
    channel.receive()
except channel.RemoteError, error:
    log.send([str(error).decode("utf-8"), type(error.formatted).__name__])
"""
        channel = shared2.remote_exec(code)
        channel.send(log)
        channel.close("it is \xe9\u20ac")
        assert log.receive(BOUND_S)[0] == "it is \xe9\u20ac"
