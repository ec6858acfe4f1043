"""Annotations are taken out of what is sent, however they are written.

The functions of the standard library and signatures that hypothesis writes show it: what
remains has the syntax tree of the original without its annotations, and its line numbers.
"""

from __future__ import annotations

import ast
import io
import random
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import BOUND_S, MakeGateway, some_of

from execnet import gateway_base
from execnet._ship.lower import lower, without_annotations

if TYPE_CHECKING:
    from execnet import Channel

Function = ast.FunctionDef | ast.AsyncFunctionDef
NEW = {"type parameters": (3, 12), "stars": (3, 11), "defaults of type parameters": (3, 13)}

# Each function sends 1 if it is called with its channel alone.
SOURCES = {
    "parentheses": "def f(channel, x: (int) = 1) -> (int):\n    channel.send(x)",
    "two pairs": "def f(channel, x: ((int)) = (1)) -> ((int)):\n    channel.send(x)",
    "several lines": """
        def f(channel, x: (
            int
            | None  # ) -> : =
        ) = 1) -> (
            # -> a comment: with all of it (
            None
        ):
            channel.send(x)""",
    "an arrow on a line of its own": "def f(channel) \\\n    -> int:\n    channel.send(1)",
    "a type on a line of its own": "def f(channel) -> \\\n    int \\\n    :\n    channel.send(1)",
    "strings": """
        def f(channel, x: "a, b) -> = #" = 1, *args: '"#', **kwargs: (str)) -> "->:":
            channel.send(x)""",
    "strings of several lines": '''
        def f(channel, x: """a
        b""" = 1) -> """
        ) -> c:
        """:
            channel.send(x)''',
    "a lambda": "def f(channel, x: lambda a, b=(1): a = 1) -> lambda: {1: 2}:\n    channel.send(x)",
    "a slice": "def f(channel, x: a[1:2, ...] = 1) -> a[b:c]:\n    channel.send(x)",
    "a walrus": "def f(channel, x: (y := int) = 1):\n    channel.send(x)",
    "a formatted string": "def f(channel, x: f'{a!r:>{b}}' = 1) -> f'{a}':\n    channel.send(x)",
    "other letters": "def f(channel, \xfcn\xef: 'é' = 1) -> 'é':\n    channel.send(\xfcn\xef)",
    "letters that are normalized": "def f(channel, \ufb01: int = 1):\n    channel.send(fi)",
    "all kinds": """
        def f(channel: C, /, a: int = 1, *args: int, b: (int), c: int = 2, **kw: int) -> None:
            channel.send(a)
        f = (lambda g: lambda channel: g(channel, b=1))(f)""",
    "defaults": """
        def f(channel, x: int = (0, 1)[1], *, y: int = {2: 3}[2]) -> a:
            channel.send(x)""",
    "tabs and no spaces": "def f(channel:C,x:int=1)->int:\n\tchannel.send(x)",
    "one line": "def f(channel: C) -> C: x: int = 1; y: C; channel.send(x)",
    "decorated": """
        @(lambda g: g)
        # -> a comment
        @(lambda g: g)
        def f(channel: C) -> C:
            channel.send(1)""",
    "a comment in front of the arrow": """
        def f(
            channel,  # the channel -> there
        ) -> C:  # -> done
            channel.send(1)""",
    "nested": """
        def f(channel: C) -> C:
            def g(x: (C)) -> \\
                C:
                async def h(x: (C) = 1, *, y: C = 2) -> (C):
                    z: (C) = 1
                if x: y: (C) = x
                return y
            channel.send(g(1))""",
    "variables": """
        def f(channel):
            x: (C) = 1
            (y): C = 2; z: C
            self = f
            self.a: C = 3
            (self.b): (C) = 4
            self.c: (
                C
            )
            w: "a = b: c" = x
            if w:
                v: C[  # =
                    1:2
                ] = x
            v: C \\
                = v
            channel.send(v)""",
    "a variable of an outer function": """
        def f(channel):
            x: C[
                C
            ]; y: C = 1
            def g():
                nonlocal x
                x = y
            g()
            channel.send(x)""",
    "in all kinds of blocks": """
        def f(channel):
            for _ in range(1):
                a: C = 1
            else:
                b: C = 1
            try:
                c: C = 1
                raise KeyError
            except KeyError:
                d: C = 1
            finally:
                e: C = 1
            with open(__file__ if 0 else 0, closefd=False) if 0 else memoryview(b"") as _:
                g: C = 1
            match [1]:
                case [h]:
                    i: C = h
            while True:
                j: C = 1
                break
            channel.send(a * b * c * d * e * g * i * j)""",
    "a class": """
        def f(channel):
            class A:
                x: int
                y: int = 0
                def m(self, x: (C)) -> (C):
                    z: C = len(self.__annotations__) - 1
                    return z
            channel.send(A().m(1))""",
}
NEWER = {
    (3, 11): {
        "stars": "def f(channel, *args: *Ts) -> (C):\n    channel.send(1)",
    },
    (3, 12): {
        "type parameters": "def f[T](channel: T, x: T = 1) -> T:\n    channel.send(x)",
        "type parameters of all kinds": """
            def f[
                T: (C),  # ] (
                *Ts, **P,
            ] (channel: T) -> T:
                def g[T: (C, C)](x: T) -> T: return x
                channel.send(g(1))""",
        "type parameters that are used": """
            def f[T, *Ts](channel: T) -> T:
                def g[V](x: V) -> V: return x
                channel.send(len([T]) if T.__name__ == "T" else g(0))""",
        "nested quotes": """
            def f(channel, x: f'{a['b']}#' = 1) -> f'{a['->']}':
                channel.send(x)""",
    },
    (3, 13): {
        "defaults of type parameters": """
            def f[T = [C][0], *Ts = (*C,)](channel: T) -> T:
                channel.send(1)""",
    },
    (3, 14): {
        "templates": "def f(channel, x: t'{a}: {b!r:>{c}}#' = 1) -> t'->':\n    channel.send(x)",
        "excepts without parentheses": """
            def f(channel):
                try:
                    x: (C) = int("a")
                except KeyError, ValueError:
                    x: C = 1
                channel.send(x)""",
    },
}
for version, sources in NEWER.items():
    if sys.version_info >= version:
        SOURCES.update(sources)


class WithoutAnnotations(ast.NodeTransformer):
    """What a syntax tree is without the annotations of functions and of their variables."""

    def __init__(self) -> None:
        self.is_local = False

    def visit_FunctionDef(self, node: Function) -> Function:
        around, self.is_local = self.is_local, True
        node.returns = None
        self.generic_visit(node)
        self.is_local = around
        names = {parameter.name for parameter in getattr(node, "type_params", [])}
        inside = [*node.body, *node.decorator_list, node.args]
        used = {n.id for part in inside for n in ast.walk(part) if isinstance(n, ast.Name)}
        if names and not names & used:
            node.type_params = []  # type: ignore[attr-defined]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        around, self.is_local = self.is_local, False
        self.generic_visit(node)
        self.is_local = around
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if not self.is_local:
            return node
        if node.value is None:
            node.annotation = ast.Constant(0)
            return node
        return ast.Assign([node.target], node.value)


def check(source: str) -> None:
    """See that a source loses its annotations, and nothing else."""
    left = without_annotations(source)
    expected = WithoutAnnotations().visit(ast.parse(source))
    assert ast.dump(ast.parse(left)) == ast.dump(expected)
    compile(left, "left", "exec", 0, True)
    assert [node.lineno for node in statements(left)] == [n.lineno for n in statements(source)]


def statements(source: str) -> Iterator[ast.stmt]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_function_loses_its_annotations_and_nothing_else(source: str) -> None:
    source = textwrap.dedent(source).strip("\n")
    check(source)
    names: dict[str, object] = {}
    exec(without_annotations(source), names)
    sent: list[object] = []

    class Receiver:
        send = staticmethod(sent.append)

    names["f"](Receiver)  # type: ignore[operator]
    assert sent == [1]


def test_such_a_function_runs_in_a_worker(makegateway: MakeGateway, tmp_path: Path) -> None:
    """Its names can't be looked up there, since the module that has them is not."""

    def function(
        channel: (
            Channel  # not there -> :
        ),
        x: (int | NotThere) = 3,  # type: ignore[name-defined]  # noqa: F821
    ) -> (
        NotThere  # type: ignore[name-defined]  # noqa: F821
    ):
        y: NotThere = x  # type: ignore[name-defined]  # noqa: F821
        z: NotThere  # type: ignore[name-defined]  # noqa: F821
        z = y
        channel.send(z)

    assert makegateway().remote_exec(function).receive(BOUND_S) == 3


PACKAGE = Path(gateway_base.__file__).parent
GLOBS = ("gateway_base.py", "_features/*.py", "**/far.py", "**/far_*.py", "**/far/*.py")
SENT = sorted(path for glob in GLOBS for path in PACKAGE.glob(glob))


@pytest.mark.parametrize("path", SENT, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_our_modules_lose_docstrings_and_comments_too(path: Path) -> None:
    source = path.read_text("utf-8")
    left = lower(source)
    assert len(left.split("\n")) == len(source.split("\n"))
    for node in ast.walk(ast.parse(left)):
        assert not getattr(node, "annotation", None)
        assert not getattr(node, "returns", None)
        if isinstance(node, (ast.Module, ast.ClassDef, Function)):
            assert ast.get_docstring(node) is None
    tokens = tokenize.generate_tokens(io.StringIO(left).readline)
    assert [token for token in tokens if token.type == tokenize.COMMENT] == []
    assert long_strings(left) == long_strings(source)


def annotated_functions(path: Path) -> Iterator[str]:
    source = path.read_text("utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and any(
            isinstance(n, ast.AnnAssign)
            or getattr(n, "annotation", None)
            or getattr(n, "returns", None)
            for n in ast.walk(node)
        ):
            yield textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))


def test_all_functions_of_the_standard_library_lose_theirs() -> None:
    """Of a tenth of its files, unless this is a thorough run."""
    checked = 0
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    for path in random.Random(1).sample(paths, some_of(len(paths), 0.1)):
        if "site-packages" in path.parts or "lib2to3" in path.parts:
            continue
        if ") ->" not in path.read_text("utf-8", "replace"):
            continue  # nearly all that have annotations have one there
        try:
            functions = list(annotated_functions(path))
        except (SyntaxError, ValueError):  # what tests are to be refused
            continue
        for function in functions:
            try:
                compile(function, "function", "exec", 0, True)
            except SyntaxError:  # it can't stand alone
                continue
            check(function)
            checked += 1
    assert checked > some_of(100, 0.1)


# ---------------------------------------------------------------- signatures by hypothesis

TYPES = ["int", '"a: b"', "a[b, 'c']", "lambda x, y=1: x", "a | b", "(yes, no)", "[a]", "a.b",
         "...", "f(a=b)", "{1: 2}", "-1", "'->'", "x if y else z", "\xe9", "'\xe9#'"]  # fmt: skip
SPACES = st.sampled_from(["", " ", "\n", "\n    ", " # : -> ( =\n", "\\\n", "\t"])
OUTSIDE = st.sampled_from(["", " ", "\\\n", "  \\\n  "])


@st.composite
def annotations(draw: st.DrawFn, outside: bool) -> str:
    """A type, in any number of parentheses, with white space and comments within them."""
    text = draw(st.sampled_from(TYPES))
    for _ in range(draw(st.integers(0, 3))):
        text = f"({draw(SPACES)}{text}{draw(SPACES)})"
        outside_of_all = OUTSIDE if outside else SPACES
        text = draw(outside_of_all) + text + draw(outside_of_all)
    return " " + text + " "


@st.composite
def functions(draw: st.DrawFn) -> str:
    arguments = []
    for number in range(draw(st.integers(0, 4))):
        text = f"\xe4{number}" + draw(SPACES)
        if draw(st.booleans()):
            text += ":" + draw(annotations(False))
        text += "=" + draw(SPACES) + draw(st.sampled_from(["1", "(2)", "'#'", "lambda: 1"]))
        arguments.append(draw(SPACES) + text + draw(SPACES))
    if arguments and draw(st.booleans()):
        arguments.insert(
            draw(st.integers(0, len(arguments) - 1)), draw(st.sampled_from(["*", "*c"]))
        )
    arrow = "->" + draw(annotations(True)) if draw(st.booleans()) else ""
    head = f"def f({','.join(arguments)}){draw(OUTSIDE)}{arrow}{draw(OUTSIDE)}:"
    body = ["    pass"]
    for number in range(draw(st.integers(0, 3))):
        target = draw(st.sampled_from(["v", "(v)", "(f.v)", "f.v", "f['v: =#']"]))
        value = draw(st.sampled_from(["", "= 1", "= (\n1)"]))
        body.append(f"    {target}{draw(OUTSIDE)}:{draw(annotations(True))}{value} # {number}")
    return "\n".join([head, *body, ""])


@given(functions())
def test_any_signature_loses_its_annotations(source: str) -> None:
    check(source)


def test_a_tree_that_other_threads_disturb_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, failures = ast.parse, [SystemError("recursion depth mismatch")] * 5

    def disturbed(source: str) -> ast.Module:
        if failures:
            raise failures.pop()
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert lower("x: int = 1  # one") == "x = 1"
    failures += [SystemError("it never works")] * 99
    with pytest.raises(SystemError, match="never"):
        lower("x = 1")


def test_strings_stay_as_they_are() -> None:
    source = (
        'def f():\n    x = """#!/bin/sh # a\n        # b\n\n    c # d\n""" # e\n    return x # g'
    )
    lowered = lower(source)
    assert (long_strings(lowered), "# g" in lowered) == (long_strings(source), False)


def long_strings(source: str) -> set[str]:
    """Return the strings of several lines that are not there to be read."""
    tree = ast.parse(source)
    read = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    found = {node.value for node in constants if id(node) not in read and type(node.value) is str}
    return {value for value in found if "\n" in value}
