"""Source as it is sent: lowered to what every Python understands, packed into one line.

Lowering takes docstrings, comments and annotations out of a module and nothing else, line
for line, so that remote tracebacks give the numbers of the file in the repository.  Start
at ``lower`` and ``pack``.
"""

from __future__ import annotations

import ast
import io
import tokenize
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
