"""Source as it is sent: lowered to what every Python understands, split, packed as text.

Lowering takes docstrings, comments and annotations out of a module and nothing else, line
for line, so that remote tracebacks give the numbers of the file in the repository.  Start
at ``lower`` and ``pack``.
"""

from __future__ import annotations

import ast
import io
import struct
import tokenize
import zlib
from collections.abc import Iterator
from functools import lru_cache

Position = tuple[int, int]  # line from 0, column in characters
Edit = tuple[Position, Position, str]  # from, to, replacement


@lru_cache(maxsize=16)
def lower(source: str) -> str:
    """Return the source without docstrings, comments and annotations.

    What remains runs on every Python whose syntax it keeps to; line numbers are the same,
    indentation is one column a level.
    """
    lines = source.split("\n")
    edits = [*_comment_edits(source), *_node_edits(ast.parse(source), lines)]
    for start, end, replacement in sorted(edits, reverse=True):
        _replace(lines, start, end, replacement)
    return "\n".join(_dedented(lines))


def split(source: str, names: frozenset[str]) -> tuple[str, str]:
    """Return the lowered source in two parts: without what these names define, and only that.

    What uses one of them as soon as it is executed, such as a subclass, belongs to the second
    part too.  In both all lines keep their numbers.
    """
    lines = source.split("\n")
    second = [""] * len(lines)
    names_there = set(names)
    for node in ast.parse(source).body:
        defined = _defined(node)
        if names_there.intersection(defined) or names_there.intersection(_used_at_once(node)):
            names_there.update(defined)
            decorators = getattr(node, "decorator_list", [])
            taken = slice(min(n.lineno for n in [node, *decorators]) - 1, node.end_lineno)
            second[taken] = lines[taken]
            lines[taken] = [""] * len(lines[taken])
    return "\n".join(lines), "\n".join(second)


def _defined(node: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a module binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        names = [name for target in node.targets for name in ast.walk(target)]
        return {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return set().union(*map(_defined, inner))


def _used_at_once(node: ast.AST) -> Iterator[str]:
    """Yield the names that executing a statement looks up; bodies of functions wait."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _used_at_once(child)


PACKED_FROM = 40  # the character that stands for 0; 85 in a row, and "!" for the backslash


def deflate(source: str) -> bytes:
    """Return the source as a zlib stream."""
    return zlib.compress(source.encode("ascii"), 9)


def pack(source: str) -> str:
    """Return the source deflated and written in 85 printable characters, no quote among them.

    Four bytes become five characters, as in Ascii85 (Adobe, PostScript Language Reference,
    ASCII85Encode), but the last group is filled up with zeros, which a zlib stream ignores.
    """
    data = deflate(source)
    data += b"\0" * (-len(data) % 4)
    digits = (
        word // 85**power % 85
        for word in struct.unpack(f">{len(data) // 4}I", data)
        for power in (4, 3, 2, 1, 0)
    )
    return "".join(chr(PACKED_FROM + digit) for digit in digits).replace("\\", "!")


def without_annotations(source: str) -> str:
    """Return the source of a function without annotations, which need names of its module."""
    lines = source.split("\n")
    edits: list[Edit] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            edits += _signature_edits(node, lines)
    for start, end, replacement in sorted(edits, reverse=True):
        _replace(lines, start, end, replacement)
    return "\n".join(lines)


def _replace(lines: list[str], start: Position, end: Position, replacement: str) -> None:
    (first, from_column), (last, to_column) = start, end
    tail = lines[last][to_column:]
    lines[first] = lines[first][:from_column] + replacement + (tail if first == last else "")
    for number in range(first + 1, last):
        lines[number] = ""
    if last > first:
        lines[last] = tail


def _dedented(lines: list[str]) -> Iterator[str]:
    """Yield the lines with one column for each four of indentation, none at their ends.

    Lines within brackets may be indented in any way, so they lose nothing by it; strings
    of several lines do not occur in what is shipped, except docstrings, which are gone.
    """
    for line in lines:
        code = line.strip()
        yield " " * ((len(line) - len(line.lstrip())) // 4) + code if code else ""


def _comment_edits(source: str) -> Iterator[Edit]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            (line, start), (_, end) = token.start, token.end
            yield (line - 1, start), (line - 1, end), ""


def _node_edits(tree: ast.AST, lines: list[str]) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield from _docstring_edits(node, lines)
        if isinstance(node, ast.FunctionDef):
            yield from _signature_edits(node, lines)
        elif isinstance(node, ast.AnnAssign):
            yield from _assignment_edits(node, lines)
        elif (isinstance(node, ast.ImportFrom) and node.module == "__future__") or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            yield _start(node, lines), _end(node, lines), ""


def _docstring_edits(
    node: ast.Module | ast.ClassDef | ast.FunctionDef, lines: list[str]
) -> Iterator[Edit]:
    first = node.body[0] if node.body else None
    if first is not None and ast.get_docstring(node, clean=False) is not None:
        yield _start(first, lines), _end(first, lines), "" if len(node.body) > 1 else "pass"


def _signature_edits(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> Iterator[Edit]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for argument in [*arguments, node.args.vararg, node.args.kwarg]:
        if argument is not None and argument.annotation is not None:
            line, column = _start(argument, lines)
            yield (line, column + len(argument.arg)), _end(argument.annotation, lines), ""
    if node.returns is not None:
        line, column = _start(node.returns, lines)
        yield (line, lines[line].rindex("->", 0, column)), _end(node.returns, lines), ""


def _assignment_edits(node: ast.AnnAssign, lines: list[str]) -> Iterator[Edit]:
    target_end = _end(node.target, lines)
    if node.value is None:
        yield _start(node, lines), _end(node, lines), "pass"
    else:
        yield target_end, _end(node.annotation, lines), ""


def _start(node: ast.AST, lines: list[str]) -> Position:
    line, column = node.lineno - 1, node.col_offset  # type: ignore[attr-defined]
    return line, len(lines[line].encode()[:column].decode())


def _end(node: ast.AST, lines: list[str]) -> Position:
    line, column = node.end_lineno - 1, node.end_col_offset  # type: ignore[attr-defined]
    return line, len(lines[line].encode()[:column].decode())
