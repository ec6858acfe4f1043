"""Source as it is sent: lowered to what every Python understands, split, packed as text.

Lowering takes docstrings, comments and annotations out of a module and changes nothing else.  It
works line for line, so that remote tracebacks give the numbers of the file in the repository.  The
imports from ``__future__`` become the one that Python 2 needs.  Start at ``lower`` and ``pack``.
"""

from __future__ import annotations

import ast
import re
import struct
import zlib
from collections.abc import Iterator

from .syntax import parse

Position = tuple[int, int]  # line from 0, column in characters
# From, to, what replaces it, and what ends the lines that are left: nothing within brackets,
# elsewhere a backslash.
Edit = tuple[Position, Position, str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A line up to its comment, if it has no string in triple quotes.
_CODE = re.compile(r"""(?:[^'"#]|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")*""")


def lower(source: str, tree: ast.Module | None = None) -> str:
    """Return the source of a module of ours without docstrings, comments and annotations.

    The rest runs on every Python that knows its syntax.  Line numbers stay the same, and
    indentation becomes one column a level.  tree: the syntax tree, if there is one already.
    """
    lines = source.split("\n")
    tree = tree or parse(source)
    edits = [*_docstring_edits(tree, lines)]
    for node, _ in _statements(tree):
        edits += _edits_of(node, lines)
    _apply(edits, lines)
    first, more = _lines_with_strings(tree, lines)
    for number, line in enumerate(lines):
        if number not in more:
            lines[number] = _dedented(line, number in first)
    return "\n".join(lines)


def cut(lowered: str, source: str, line: str) -> tuple[str, str]:
    """Return the source before a line and the source after it.

    Both are lowered, and in both all lines keep their numbers.  line: how that line begins.
    """
    (number,) = (n for n, text in enumerate(source.split("\n")) if text.startswith(line))
    lines = lowered.split("\n")
    return "\n".join(lines[:number]), "\n" * number + "\n".join(lines[number:])


PACKED_FROM = 40  # the character that stands for 0; ``shipment._BOOT`` knows it as well


def deflate(source: str) -> bytes:
    """Return the source as a zlib stream."""
    return zlib.compress(source.encode("ascii"), 9)


def pack(source: str) -> str:
    """Return the source deflated and written in 85 printable characters, no quote among them.

    Four bytes become five characters, as in Ascii85 (Adobe, PostScript Language Reference,
    ASCII85Encode).  The last group is filled up with zeros, which a zlib stream ignores.
    """
    data = deflate(source)
    data += b"\0" * (-len(data) % 4)
    digits = (
        word // 85**power % 85
        for word in struct.unpack(f">{len(data) // 4}I", data)
        for power in (4, 3, 2, 1, 0)
    )
    return "".join(chr(PACKED_FROM + digit) for digit in digits).replace("\\", "!")


def without_annotations(source: str, all_of_them: bool = False) -> str:
    """Return the source of a function without annotations, which need names of its module.

    Annotations in a class stay, since things like ``dataclass`` use them, and in a module.
    all_of_them: remove those as well, for a Python that understands none.
    """
    lines = source.split("\n")
    edits: list[Edit] = []
    for node, is_local in _statements(parse(source)):
        if isinstance(node, Function):
            edits += _signature_edits(node, lines)
        elif isinstance(node, ast.AnnAssign) and (is_local or (all_of_them and node.value)):
            edits += _assignment_edits(node, lines)
        elif isinstance(node, ast.AnnAssign) and all_of_them:
            edits += _statement_edits(node, lines, "pass")
        elif isinstance(node, ast.ImportFrom) and node.module == "__future__" and all_of_them:
            edits += _future_edits(node, lines)
    _apply(edits, lines)
    return "\n".join(lines)


def _statements(node: ast.AST, is_local: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Yield the statements in a node, and whether the names that they bind are local ones."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child, is_local
        if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            is_scope = isinstance(child, (ast.ClassDef, Function))
            yield from _statements(child, isinstance(child, Function) if is_scope else is_local)


def _apply(edits: list[Edit], lines: list[str]) -> None:
    for (first, from_column), (last, to_column), replacement, joint in sorted(edits, reverse=True):
        tail = lines[last][to_column:]
        if first == last:
            lines[first] = lines[first][:from_column] + replacement + tail
        else:
            lines[first] = lines[first][:from_column] + joint
            lines[first + 1 : last] = [joint] * (last - first - 1)
            lines[last] = replacement + tail


def _lines_with_strings(tree: ast.Module, lines: list[str]) -> tuple[set[int], set[int]]:
    """Return the lines in which strings in triple quotes begin, and those that they go on in."""
    first: set[int] = set()
    more: set[int] = set()
    if any(_has_triple_quotes(line) for line in lines):  # else this would take a while for nothing
        for node in ast.walk(tree):
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                begin, end = node.lineno - 1, (node.end_lineno or 0) - 1
                if _has_triple_quotes(lines[begin]):
                    first.add(begin)
                    more.update(range(begin + 1, end + 1))
    return first, more


def _has_triple_quotes(line: str) -> bool:
    return '"""' in line or "'''" in line


def _dedented(line: str, has_long_string: bool = False) -> str:
    """Return a line without its comment, with one column for every four of its indentation.

    Lines within brackets may be indented in any way, so this does not harm them.  Beside a string
    that may continue in the next line, a comment stays.
    """
    match = _CODE.match(line) if "#" in line and not has_long_string else None
    code = match.group() if match else line
    code = code.strip()
    return " " * ((len(line) - len(line.lstrip())) // 4) + code if code else ""


def _edits_of(node: ast.stmt, lines: list[str]) -> Iterator[Edit]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        yield from _docstring_edits(node, lines)
    if isinstance(node, ast.FunctionDef):
        yield from _signature_edits(node, lines)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield from _assignment_edits(node, lines)
    elif isinstance(node, ast.AnnAssign):
        yield from _statement_edits(node, lines, "pass")
    elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
        # Without this, Python 2 would look for each imported module in our own package first.
        yield from _statement_edits(node, lines, "from __future__ import absolute_import")
    elif (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ):
        yield from _statement_edits(node, lines, "")


def _docstring_edits(
    node: ast.Module | ast.ClassDef | ast.FunctionDef, lines: list[str]
) -> Iterator[Edit]:
    if node.body and ast.get_docstring(node, clean=False) is not None:
        yield from _statement_edits(node.body[0], lines, "" if len(node.body) > 1 else "pass")


def _statement_edits(node: ast.stmt, lines: list[str], replacement: str) -> Iterator[Edit]:
    start, end = _start(node, lines), _end(node, lines)
    if end[0] > start[0]:
        yield (start[0] + 1, 0), end, "", ""
        end = start[0], len(lines[start[0]])
    yield start, end, replacement, ""


def _signature_edits(node: Function, lines: list[str]) -> Iterator[Edit]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += filter(None, [node.args.vararg, node.args.kwarg])
    for argument in arguments:
        if argument.annotation is not None:
            colon = _find(":", _start(argument, lines), lines)
            yield colon, _end(argument, lines), "", ""
    parameters: list[ast.AST] = getattr(node, "type_params", [])
    if parameters and not _names_of(parameters) & set(_used_by(node)):
        line, column = _find("]", _end(parameters[-1], lines), lines)
        yield _find("[", _start(node, lines), lines), (line, column + 1), "", "\\"
    if node.returns is not None:
        defaults = filter(None, [*node.args.defaults, *node.args.kw_defaults])
        before = [_end(child, lines) for child in (*parameters, *arguments, *defaults)]
        arrow = _find("->", max([_start(node, lines), *before]), lines)
        yield arrow, _find(":", _end(node.returns, lines), lines), "", "\\"


def _future_edits(node: ast.ImportFrom, lines: list[str]) -> Iterator[Edit]:
    for alias in node.names:
        if alias.name == "annotations":
            line, column = _start(alias, lines)
            # Every Python has that one, and it changes nothing.
            yield (line, column), (line, column + len(alias.name)), "generators", ""


def _names_of(parameters: list[ast.AST]) -> set[str]:
    """Return the names of the type parameters of a function."""
    return {getattr(parameter, "name", "") for parameter in parameters}


def _used_by(node: ast.AST) -> Iterator[str]:
    """Yield the names that are used in a function, except in its signature."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params") and not isinstance(node, ast.AnnAssign):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name):
                yield child.id
            elif isinstance(child, ast.AST):
                yield from _used_by(child)


def _assignment_edits(node: ast.AnnAssign, lines: list[str]) -> Iterator[Edit]:
    start, end = _start(node.annotation, lines), _end(node.annotation, lines)
    if node.value is None:  # it still has to say that the name is a local one
        yield start, end, "0", "\\"
    else:
        colon = _find(":", _end(node.target, lines), lines)
        yield colon, _find("=", end, lines), " ", "\\"


def _find(text: str, position: Position, lines: list[str]) -> Position:
    """Return where a text begins, when only names, brackets and comments come before it."""
    line, column = position
    while True:
        before, found, _ = lines[line][column:].partition("#")[0].partition(text)
        if found:
            return line, column + len(before)
        line, column = line + 1, 0


def _start(node: ast.AST, lines: list[str]) -> Position:
    return _position(node.lineno, node.col_offset, lines)  # type: ignore[attr-defined]


def _end(node: ast.AST, lines: list[str]) -> Position:
    return _position(node.end_lineno, node.end_col_offset, lines)  # type: ignore[attr-defined]


def _position(number: int, offset: int, lines: list[str]) -> Position:
    """Return a position of a syntax tree, which counts columns in bytes."""
    line = lines[number - 1]
    return number - 1, offset if line.isascii() else len(line.encode()[:offset].decode())
