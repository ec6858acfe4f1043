"""Remote tracebacks of every Python name the right files and lines."""

from __future__ import annotations

import ast
import functools
import linecache
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools import BOUND_S, MakeGateway
from workers import ask

from execnet import Gateway, RemoteError, gateway_base
from execnet._features import queues

pytest_plugins = ["worker_fixtures"]

SHIPPED = gateway_base.__file__
QUEUES = queues.__file__  # a part, which some Pythons wait with
FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)


class Frame(NamedTuple):
    """An entry of a traceback; ``line`` counts from 1."""

    file: str
    line: int
    function: str


def failure(gateway: Gateway, code: Any, **kwargs: Any) -> str:
    """Execute code that fails; return the text."""
    with pytest.raises(RemoteError) as caught:
        gateway.remote_exec(code, **kwargs).waitclose(BOUND_S)
    return str(caught.value)


def frames(text: str) -> list[Frame]:
    return [Frame(file, int(line), name) for file, line, name in FRAME.findall(text)]


def line_of(text: str, file: str = __file__) -> int:
    """Return the number of the one line that ends with this comment."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return number


def fails_here(channel):  # type: ignore[no-untyped-def]
    """Fail.

    Docstrings and comments count as lines.
    """

    # a comment
    def inner(value, *args):  # type: ignore[no-untyped-def]
        text = """
        lines in a string
"""
        return value / len(text[:0]) + len(args)  # the line that fails

    inner(1)  # the line that calls


def annotated(
    channel: types.ModuleType,
    item: dict[
        str, int
    ]
    | None = None,
) -> None:  # fmt: skip
    raise KeyError(item)  # the line behind annotations


class Holder:
    def method(channel):  # type: ignore[no-untyped-def]
        if channel:
            raise KeyError("x")  # the line in a class


class TestFunctions:
    def test_its_own_lines_are_those_of_this_file(self, shared: Gateway) -> None:
        text = failure(shared, fails_here)
        assert frames(text)[-2:] == [
            Frame(__file__, line_of("the line that calls"), "fails_here"),
            Frame(__file__, line_of("the line that fails"), "inner"),
        ]
        assert "    return value / len(text[:0]) + len(args)" in text
        assert "ZeroDivisionError" in text.splitlines()[-1]

    @pytest.mark.parametrize(
        ("function", "comment"),
        [(annotated, "the line behind annotations"), (Holder.method, "the line in a class")],
    )
    def test_annotations_and_indentation_change_none(
        self, shared: Gateway, function: Callable[..., object], comment: str
    ) -> None:
        name = function.__name__
        assert frames(failure(shared, function))[-1] == Frame(__file__, line_of(comment), name)

    def test_one_in_a_function_has_its_lines_too(self, shared: Gateway) -> None:
        def local(channel):  # type: ignore[no-untyped-def]
            text = """
text that begins further left
"""
            raise ValueError(text)  # the line behind text

        text = failure(shared, local)
        assert frames(text)[-1] == Frame(__file__, line_of("the line behind text"), "local")

    def test_a_syntax_error_of_the_far_side_has_the_line(self, shared: Gateway) -> None:
        code = "x = 1\n\nif x:\n    def +\n"
        text = failure(shared, code)
        assert 'File "<remote exec>", line 4' in text
        assert "SyntaxError" in text


class TestModules:
    def test_its_lines_are_those_of_its_file(self, shared: Gateway, tmp_path: Path) -> None:
        path = tmp_path / "module_\xe9.py"
        path.write_text(
            '"""A module.\n\nText.\n"""\n# \xe9\nimport os\n\n\n'
            "def f(x):\n    # why\n    return x[1]\n\n\nf({})\n",
            encoding="utf-8",
        )
        module = types.ModuleType("module")
        module.__file__ = str(path)
        text = failure(shared, module)
        assert frames(text)[-2:] == [
            Frame(str(path), 14, "<module>"),
            Frame(str(path), 11, "f"),
        ]
        assert "    return x[1]\n" in text


class TestStrings:
    def test_its_lines_are_counted_and_shown(self, shared: Gateway) -> None:
        code = "\n\ndef f(x):\n    # why\n    return x / 0\n\nf(1)"
        text = failure(shared, code)
        assert frames(text)[-2:] == [
            Frame("<remote exec>", 7, "<module>"),
            Frame("<remote exec>", 5, "f"),
        ]
        assert "    return x / 0\n" in text
        assert "    f(1)\n" in text

    def test_another_string_shows_its_own(self, shared: Gateway) -> None:
        assert "raise KeyError(1)" in failure(shared, "raise KeyError(1)")
        text = failure(shared, "raise KeyError(2)")
        assert "raise KeyError(2)" in text
        assert "raise KeyError(1)" not in text

    def test_the_stack_can_be_inspected(self, shared: Gateway) -> None:
        code = """
import inspect
def f():
    return [tuple(entry[1:4]) for entry in inspect.stack()]
channel.send(f()[:2])
"""
        assert ask(shared, code) == [("<remote exec>", 4, "f"), ("<remote exec>", 5, "<module>")]


# Code that fails within the shipped module, and the functions of it that are seen at the end.
FAILURES_IN_THE_SHIPPED_PART = {
    "an item that is refused": ("channel.send(object())", []),  # the place is all that tells
    "a close that is refused": ("channel.close()", ["close"]),
    "a wait in vain": ("channel.receive(0)", ["receive"]),
    "a waitclose in vain": ("channel.waitclose(0)", ["waitclose"]),
    "a mode that there is not": ("channel.makefile('x')", ["makefile"]),
    "a second callback": ("channel.setcallback(id); channel.setcallback(id)", ["setcallback"]),
    "data that ends": (
        "import sys; sys.modules[type(channel).__module__].loads(b'\\x02HF')",
        ["loads", "_parse"],
    ),
}


@functools.cache
def functions_of(file: str) -> list[tuple[str, int, int]]:
    """Return (name, first line, last line) of each function in a file."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return [
        (node.name, node.lineno, node.end_lineno or 0)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def assert_right(text: str, frame: Frame) -> None:
    """Check that the frame's line is in the function, and that its source was shown."""
    assert frame.file in (SHIPPED, QUEUES)
    assert any(
        name == frame.function and first <= frame.line <= last
        for name, first, last in functions_of(frame.file)
    ), frame
    shown = text.splitlines()
    header = f'  File "{frame.file}", line {frame.line}, in {frame.function}'
    source = linecache.getline(frame.file, frame.line).strip()
    assert source.partition("#")[0].strip() in shown[shown.index(header) + 1]


class TestTheShippedPart:
    @pytest.mark.parametrize(
        ("code", "functions"),
        FAILURES_IN_THE_SHIPPED_PART.values(),
        ids=FAILURES_IN_THE_SHIPPED_PART,
    )
    def test_its_lines_are_those_of_the_file_here(
        self, shared: Gateway, code: str, functions: list[str]
    ) -> None:
        text = failure(shared, code)
        first, *others = frames(text.rpartition("Traceback (most recent call last)")[2])
        assert first == Frame("<remote exec>", 1, "<module>")
        assert [frame.function for frame in others][: len(functions) or None] == functions
        for frame in frames(text):
            if frame != first and not frame.file.endswith("queue.py"):  # where the wait was
                assert_right(text, frame)

    def test_a_line_of_it_is_the_same_on_each(self, shared: Gateway) -> None:
        code = """
import sys
module = sys.modules[type(channel).__module__]
channel.send([
    (name, function.__code__.co_firstlineno)
    for name, function in sorted(vars(module.Channel).items())
    if hasattr(function, "__code__")
])
"""
        ours = {
            name: function.__code__.co_firstlineno
            for name, function in vars(gateway_base.Channel).items()
            if isinstance(function, types.FunctionType)
        }
        assert dict(ask(shared, code)) == ours

    def test_a_worker_that_imports_it_gives_the_same(self, makegateway: MakeGateway) -> None:
        text = failure(makegateway(), "channel.close()")
        for frame in frames(text):
            if frame.file != "<remote exec>":
                assert_right(text, frame)
