"""What ``remote_exec`` is given, as source that can be sent: strings, functions, modules.

The functions here are sent as they stand, so they use nothing but what they define.
"""

from __future__ import annotations

import importlib
import inspect
import json
import linecache
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tools import BOUND_S, MakeGateway, run

from execnet import RemoteError, gateway
from execnet._ship import source as ship_source
from execnet._ship.source import _find_non_builtin_globals, _source_of_function, source_to_send

pytestmark = pytest.mark.core

if TYPE_CHECKING:
    from execnet import Channel
    from execnet import XSpec as SomeType

SOME_NAME = 3


def plain(channel):  # type: ignore[no-untyped-def]
    channel.send("plain")


def with_arguments(channel, first, *rest, second=2, **others):  # type: ignore[no-untyped-def]
    channel.send((first, rest, second, sorted(others)))


def busy(channel):  # type: ignore[no-untyped-def]
    """Uses all that is allowed."""
    import os.path as path
    from sys import maxsize

    class Local:
        attribute = maxsize

        def method(self):  # type: ignore[no-untyped-def]
            return self.attribute + inner(1)

    def inner(number):  # type: ignore[no-untyped-def]
        return number + outer

    outer = len(path.sep)
    pairs = {key: [value][0] for key, value in enumerate([Local().method() > 0, __name__])}
    try:
        raise ValueError(pairs)
    except ValueError as error:
        channel.send(error.args[0])
    if (walrus := sum(number for number in range(3))) != 3:
        channel.send(walrus)


def failing(channel):  # type: ignore[no-untyped-def]
    value = 1
    return value / 0  # the line that remote tracebacks show


FAILING_LINE = inspect.getsourcelines(failing)[1] + 2


def no_parameter() -> None:
    pass


def other_parameter(chan):  # type: ignore[no-untyped-def]
    chan.send(1)


def channel_second(first, channel):  # type: ignore[no-untyped-def]
    channel.send(first)


def uses_a_name(channel):  # type: ignore[no-untyped-def]
    channel.send(SOME_NAME)


def uses_a_module(channel):  # type: ignore[no-untyped-def]
    channel.send(os.getcwd())


def uses_names_deep_inside(channel):  # type: ignore[no-untyped-def]
    class Inner:
        def method(self):  # type: ignore[no-untyped-def]
            return [sys.argv for _ in range(3)], (lambda: textwrap.dedent)()

    channel.send(Inner().method())


def uses_a_name_as_default(channel, value=SOME_NAME):  # type: ignore[no-untyped-def]
    channel.send(value)


def annotated(channel: Channel, number: SomeType = 7, *rest: SomeType, **more: sys) -> None:
    class Record:
        field: int = 1

        def method(self, other: dict[str, SomeType]) -> SomeType:
            return sorted(self.__class__.__annotations__)

    channel.send((number, Record().method({})))


def identity(function: Any) -> Any:
    return function


@identity
def decorated(channel):  # type: ignore[no-untyped-def]
    channel.send("decorated")


def make_closure() -> Callable[..., object]:
    outer, other = 1, 2

    def closure(channel):  # type: ignore[no-untyped-def]
        channel.send((outer, other))

    return closure


def make_nested() -> Any:
    if True:

        def nested(channel):  # type: ignore[no-untyped-def]
            text = "text"
            return channel.send(text)

    return nested


def make_nested_with_text() -> Any:
    def nested(channel):  # type: ignore[no-untyped-def]
        text = """
  a line that is indented less
        and one that is indented as much
"""
        return channel.send(text)

    return nested


class Echo:
    """A channel that gives back what is sent."""

    def send(self, item: Any) -> Any:
        return item


def without_source() -> Any:
    names: dict[str, Any] = {}
    exec("def made(channel): channel.send(1)", names)
    return names["made"]


class TestStrings:
    @pytest.mark.parametrize(
        ("source", "sent"),
        [
            ("channel.send(1)", "channel.send(1)"),
            ("", ""),
            ("  a = 1\n  b = 2", "a = 1\nb = 2"),
            ("\n    if 1:\n        a = 1\n    b = 2\n", "\nif 1:\n    a = 1\nb = 2\n"),
            ("\tif 1:\n\t\ta = 1", "if 1:\n\ta = 1"),
            ("if 1:\n    a = 1", "if 1:\n    a = 1"),
        ],
    )
    def test_a_string_is_dedented(self, source: str, sent: str) -> None:
        assert source_to_send(source) == (sent, None, None)

    @pytest.mark.parametrize("source", [None, 1, b"channel.send(1)", ["pass"], len, print])
    def test_what_is_no_source_is_a_type_error_that_shows_it(self, source: Any) -> None:
        with pytest.raises((TypeError, ValueError)) as caught:
            source_to_send(source)
        assert repr(source) in str(caught.value) or getattr(source, "__name__", "?") in str(
            caught.value
        )

    def test_a_string_runs_with_its_lines(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(
            """
            import inspect
            if __name__ == "__channelexec__":
                channel.send(inspect.stack()[0].lineno)
            """
        )
        assert channel.receive(20) == 4


NO_COMPILER = "import builtins\ndef compile(*args, **options): raise ValueError('compiled')\n"
NO_COMPILER += "builtins.compile = compile"


class TestCompiled:
    """What is sent to a worker on the same Python is compiled here."""

    def test_such_a_worker_does_not_compile(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway.remote_exec(NO_COMPILER).waitclose(BOUND_S)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        assert gateway.remote_exec(plain).receive(BOUND_S) == "plain"

    def test_another_one_does(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway._shares_python = False
        gateway.remote_exec(NO_COMPILER).waitclose(BOUND_S)
        with pytest.raises(RemoteError, match="compiled"):
            gateway.remote_exec("channel.send(1)").receive(BOUND_S)

    def test_the_same_words_in_two_files_are_two_codes(self) -> None:
        names = "one.py", "other.py"
        one, other = (ship_source.compiled("1 / 0", "1 / 0", name) or b"" for name in names)
        assert b"one.py" in one
        assert b"other.py" in other

    def test_what_is_no_python_is_told_by_the_worker(self, makegateway: MakeGateway) -> None:
        assert ship_source.compiled("1 +", "1 +", None) is None
        with pytest.raises(RemoteError, match=r'File "<remote exec>", line 1\n(.*\n)+SyntaxError'):
            makegateway().remote_exec("1 +").receive(BOUND_S)

    @pytest.mark.filterwarnings("error")
    def test_a_warning_that_is_an_error_here_is_none_there(self, makegateway: MakeGateway) -> None:
        assert makegateway().remote_exec("channel.send(1 is 1)").receive(BOUND_S) is True

    def test_a_worker_that_optimizes_compiles_itself(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = "assert channel is None\nchannel.send(__debug__)"
        with pytest.raises(RemoteError, match="AssertionError"):
            makegateway().remote_exec(code).receive(BOUND_S)
        monkeypatch.setenv("PYTHONOPTIMIZE", "1")
        assert makegateway().remote_exec(code).receive(BOUND_S) is False

    def test_what_optimizes_here_does_not_optimize_there(self) -> None:
        code = "import execnet\nchannel = execnet.makegateway().remote_exec('assert 0')\n"
        code += "try: channel.waitclose(30)\nexcept channel.RemoteError: print('asserted')"
        result = run([sys.executable, "-O", "-c", code])
        assert (result.stdout, result.stderr) == ("asserted\n", "")


class TestFunctions:
    @pytest.mark.parametrize("function", [plain, with_arguments, busy, failing])
    def test_its_lines_have_the_numbers_of_its_file(self, function: Any) -> None:
        source = _source_of_function(function)
        lines, first = inspect.getsourcelines(function)
        assert source == "\n" * (first - 1) + "".join(lines)

    def test_it_is_sent_with_its_file_and_its_name(self) -> None:
        assert source_to_send(plain) == (_source_of_function(plain), __file__, "plain")

    def test_the_names_of_the_gateway_module_are_the_same(self) -> None:
        assert gateway._source_of_function is _source_of_function
        assert gateway._find_non_builtin_globals is _find_non_builtin_globals

    @pytest.mark.parametrize("make", [make_nested, make_nested_with_text])
    def test_a_nested_function_is_sent_as_it_is(
        self, makegateway: MakeGateway, make: Callable[[], Any]
    ) -> None:
        function = make()
        names: dict[str, Any] = {}
        exec(_source_of_function(function), names)
        assert names["nested"].__code__.co_firstlineno == function.__code__.co_firstlineno
        assert names["nested"].__code__.co_consts == function.__code__.co_consts
        assert makegateway().remote_exec(function).receive(20) == function(Echo())

    @pytest.mark.parametrize(
        ("function", "named"),
        [
            (lambda channel: channel.send(1), ["lambda"]),
            (make_closure(), ["closure", "outer", "other"]),
            (without_source(), ["made", "source"]),
            (no_parameter, ["no_parameter", "channel"]),
            (other_parameter, ["other_parameter", "channel"]),
            (channel_second, ["channel_second", "channel"]),
            (uses_a_name, ["uses_a_name", "SOME_NAME"]),
            (uses_a_module, ["uses_a_module", "os"]),
            (uses_names_deep_inside, ["sys", "textwrap"]),
            (uses_a_name_as_default, ["SOME_NAME"]),
            (decorated, ["identity"]),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_one_that_cannot_stand_alone_is_a_value_error_that_says_why(
        self, function: Any, named: list[str]
    ) -> None:
        with pytest.raises(ValueError, match=r"channel|remotely|source") as caught:
            source_to_send(function)
        for name in named:
            assert name in str(caught.value)

    def test_code_that_is_found_in_the_place_of_a_function_is_not_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        function = without_source()
        for other in "import sys\n", "def other(channel): pass\n", "1 +\n":
            monkeypatch.setitem(
                linecache.cache, "<string>", (len(other), None, [other], "<string>")
            )
            with pytest.raises(ValueError, match="can't find the source of function 'made'"):
                source_to_send(function)

    def test_a_refused_function_starts_nothing(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        with pytest.raises(ValueError, match="SOME_NAME"):
            gateway.remote_exec(uses_a_name)
        assert gateway._channelfactory.channels() == []
        assert gateway.remote_status().numexecuting == 0

    @pytest.mark.parametrize("code", ["pass", importlib])
    def test_arguments_for_what_is_no_function_are_a_type_error(
        self, makegateway: MakeGateway, code: Any
    ) -> None:
        with pytest.raises(TypeError, match="argument"):
            makegateway().remote_exec(code, a=1)

    def test_they_run_with_their_arguments(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        assert gateway.remote_exec(plain).receive(20) == "plain"
        channel = gateway.remote_exec(with_arguments, first=1, third=3)
        assert channel.receive(20) == (1, (), 2, ["third"])
        assert gateway.remote_exec(busy).receive(20) == {0: True, 1: "__channelexec__"}

    def test_names_in_the_annotations_of_signatures_need_not_be_there(
        self, makegateway: MakeGateway
    ) -> None:
        lines, first = inspect.getsourcelines(annotated)
        assert _source_of_function(annotated) == "\n" * (first - 1) + "".join(lines)
        sent = source_to_send(annotated)[0]
        assert sent.count("\n") == first - 1 + len(lines)
        assert "->" not in sent
        assert makegateway().remote_exec(annotated).receive(20) == (7, ["field"])

    def test_a_line_ends_where_python_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "a\x0cb\x1cc\x85d\u2028e"
        code = f"def function(channel: int) -> None:\n    channel.send('{text}')\n"
        (tmp_path / "odd_lines.py").write_text(code, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        names: dict[str, Any] = {}
        exec(_source_of_function(importlib.import_module("odd_lines").function), names)
        del sys.modules["odd_lines"]
        sent: list[str] = []
        names["function"](types.SimpleNamespace(send=sent.append))
        assert sent == [text]

    def test_a_remote_traceback_has_their_file_and_line(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(failing)
        with pytest.raises(channel.RemoteError) as caught:
            channel.waitclose(20)
        assert f'File "{__file__}", line {FAILING_LINE}, in failing' in str(caught.value)
        assert "the line that remote tracebacks show" in str(caught.value)


class TestGlobals:
    @pytest.mark.parametrize(
        ("body", "names"),
        [
            ("channel.send(len([]))", []),
            ("channel.send(os)", ["os"]),
            ("os.path.join(sys.argv)", ["os", "sys"]),
            ("os; sys; os", ["os", "sys"]),
            ("import os; os.getcwd()", []),
            ("from os import path as p; p.join", []),
            ("a = b = 1; a + b + c", ["c"]),
            ("for i in range(3): i", []),
            ("with open(x) as f: f", ["x"]),
            ("try: pass\n    except KeyError as e: e", []),
            ("return [y for x in z for y in x]", ["z"]),
            ("return {k: v + w for k, v in {}.items()}", ["w"]),
            ("return (lambda a, b=c: a + b + d)", ["c", "d"]),
            ("def inner(): return q", ["q"]),
            ("class K(Base): attribute = value", ["Base", "value"]),
            ("class K:\n        def m(self): return K, other", ["other"]),
            ("global g; g", ["g"]),
            ("print(__name__, __file__, __builtins__, __doc__)", []),
            ("channel.os = 1; channel.os.path", []),
            ("f(os=1)", ["f"]),
            ("del missing_here", []),
            ("x: int = 1; x", []),
            ("if (n := 10) > 5: n", []),
            ("async def f(): await g()", ["g"]),
            ("return f'{name!r:>{width}}'", ["name", "width"]),
        ],
    )
    def test_names_that_neither_it_nor_python_defines(self, body: str, names: list[str]) -> None:
        source = f"def function(channel):\n    {body}\n"
        code = compile(source, "<test>", "exec").co_consts[0]
        assert isinstance(code, types.CodeType)
        assert sorted(_find_non_builtin_globals(source, code)) == sorted(names)

    def test_an_annotation_of_a_parameter_is_a_name_that_is_used(self) -> None:
        source = "def function(channel: Channel, a=default): pass\n"
        code = compile("def function(channel): pass\n", "<test>", "exec").co_consts[0]
        assert isinstance(code, types.CodeType)
        assert sorted(_find_non_builtin_globals(source, code)) == ["Channel", "default"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that sends its number; its file may be changed."""
    (tmp_path / "sent_module.py").write_text(
        "# coding: latin-1\nif __name__ == '__channelexec__':\n    channel.send('\xe9 1')\n",
        "latin-1",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("sent_module")
    sys.modules.pop("sent_module", None)


class TestModules:
    def test_it_is_sent_with_its_file(self, module: types.ModuleType) -> None:
        source, file_name, call_name = source_to_send(module)
        assert "channel.send('\xe9 1')" in source
        assert (file_name, call_name) == (module.__file__, None)

    def test_its_file_is_read_anew_each_time(
        self, module: types.ModuleType, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        assert gateway.remote_exec(module).receive(20) == "\xe9 1"
        assert module.__file__ is not None
        Path(module.__file__).write_text("channel.send(2)\n", "utf-8")
        assert gateway.remote_exec(module).receive(20) == 2

    def test_a_remote_traceback_has_its_file_and_line(
        self, module: types.ModuleType, makegateway: MakeGateway
    ) -> None:
        assert module.__file__ is not None
        Path(module.__file__).write_text("\n\n\n1 / 0\n", "utf-8")
        channel = makegateway().remote_exec(module)
        with pytest.raises(channel.RemoteError) as caught:
            channel.waitclose(20)
        assert f'File "{module.__file__}", line 4' in str(caught.value)

    @pytest.mark.parametrize("name", ["sys", "builtins", "_struct"])
    def test_one_without_a_file_is_a_value_error_that_names_it(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            source_to_send(importlib.import_module(name))

    def test_one_whose_file_has_gone_is_an_error_that_names_it(
        self, module: types.ModuleType
    ) -> None:
        assert module.__file__ is not None
        os.unlink(module.__file__)
        with pytest.raises((ValueError, OSError), match="sent_module"):
            source_to_send(module)

    def test_a_package_sends_its_init(self) -> None:
        source, file_name, _ = source_to_send(json)
        assert file_name == json.__file__
        assert source == Path(json.__file__).read_text("utf-8")


def test_without_symtable_the_bytecode_tells_the_names() -> None:
    """As on PyPy."""
    source = """
@decorator
def uses(channel, default=somewhere):
    import os
    local: int = 1
    def inner():
        return [len(part) for part in (os.name, missing, local)]
    return uses
"""
    names = ship_source._global_names(compile(source, "file", "exec"))
    assert sorted(names) == ["decorator", "len", "missing", "somewhere"]
