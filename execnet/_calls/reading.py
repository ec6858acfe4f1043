"""Reads the source of a function or a class, ready to be executed elsewhere.

Start at ``read``.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import types
from functools import lru_cache

from .._ship.lower import without_annotations
from .._ship.source import _defines, no_source
from .._ship.syntax import parse
from .names import shown

_LAMBDA = "__lambda__"
_MAKE = "__make__"


class Text:
    """The source of a function or a class, as it is sent.

    sent: the text, padded so that its lines keep their numbers.  defines: the name that it defines;
    if it ``makes`` it, the function ``__make__`` gets the values of ``cells`` and returns it.
    """

    def __init__(
        self,
        code: types.CodeType,
        sent: str,
        defines: str,
        makes: bool,
        function: types.FunctionType | type,
    ) -> None:
        self.code = code
        self.sent = sent
        self.defines = defines
        self.makes = makes
        self.cells = _cells_of(function)
        self.shown = shown(function)


def read(function: types.FunctionType | type, is_old: bool) -> Text:
    """Return the text of a function or a class; ValueError if there is none."""
    cells = tuple(_cells_of(function))
    if isinstance(function, types.FunctionType):
        code = function.__code__
        sent, defines, makes = _read_function(_Code(code), cells, is_old)
    else:
        lines, first_line, file_name = _lines_of(function)
        code = compile("", file_name, "exec")
        defines = function.__name__
        sent, makes = _composed("".join(lines), first_line, defines, cells, is_old)
    return Text(code, sent, defines, makes, function)


class _Code:
    """A code object as a key: equal code of another file is another key."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self._key = code, code.co_filename, tuple(linecache.cache.get(code.co_filename, ())[:2])

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self._key == other._key


@lru_cache(maxsize=256)
def _read_function(key: _Code, cells: tuple[str, ...], is_old: bool) -> tuple[str, str, bool]:
    code = key.code
    if code.co_name == "<lambda>":
        text, first_line = _lambda_text(code)
        defines = _LAMBDA
    else:
        lines, first_line, _ = _lines_of(code)
        text, defines = "".join(lines), code.co_name
    sent, makes = _composed(text, first_line, defines, cells, is_old)
    return sent, defines, makes


def _lines_of(found: types.CodeType | type) -> tuple[list[str], int, str]:
    """Return the lines of a code object or a class, the number of the first one, and the file."""
    defined = found.__name__ if isinstance(found, type) else found.co_name
    name = f"{'class' if isinstance(found, type) else 'function'} {defined!r}"
    try:
        lines, first_line = inspect.getsourcelines(found)
        file_name = inspect.getsourcefile(found) or inspect.getfile(found)
    except (OSError, TypeError, IndexError) as exc:
        raise no_source(name, exc, found) from exc
    block = "if True:\n" if lines[0][:1] in " \t" else ""
    if not _defines(block + "".join(lines), defined):
        raise no_source(name, "its file has changed", found)
    return lines, max(first_line, 1), file_name


def _lambda_text(code: types.CodeType) -> tuple[str, int]:
    """Return a statement that gives a lambda a name, and the number of its first line."""
    source = "".join(linecache.getlines(code.co_filename))
    if not source:
        raise no_source("a lambda", "there are no lines of its file", code)
    found = [
        node
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Lambda) and node.lineno <= code.co_firstlineno <= _last(node)
    ]
    texts = {ast.get_source_segment(source, node) or "" for node in found}
    if len(texts) != 1:
        texts = {text for text in texts if _is_text_of(text, code)}
    if len(texts) != 1:
        raise ValueError(
            f"a lambda of line {code.co_firstlineno} of {code.co_filename} can't be told from"
            " others there: write it as a function, with def"
        )
    (text,) = texts
    first_line = min(node.lineno for node in found)
    return f"{_LAMBDA} = ({text})\n", first_line


def _last(node: ast.Lambda) -> int:
    return node.body.end_lineno or node.lineno


def _is_text_of(text: str, code: types.CodeType) -> bool:
    """Whether a code object was compiled from the text of a lambda."""
    variables = ", ".join(code.co_freevars)
    made = compile(f"def f({variables}):\n return ({text})", code.co_filename, "exec", 0, True)
    level = [made]
    while level:
        one = level.pop(0)
        if one.co_name == "<lambda>":
            return _signature(one) == _signature(code)
        level += [const for const in one.co_consts if isinstance(const, types.CodeType)]
    return False


def _signature(code: types.CodeType) -> tuple[object, ...]:
    """Return what code objects of the same text have in common, wherever the text is."""
    plain = [c for c in code.co_consts if not isinstance(c, (types.CodeType, str))]
    texts = [c for c in code.co_consts if isinstance(c, str) and "<lambda>" not in c]
    names = code.co_names, code.co_varnames, code.co_freevars
    return code.co_code, names, repr(plain), texts, code.co_argcount


def _composed(
    text: str, first_line: int, defines: str, cells: tuple[str, ...], is_old: bool
) -> tuple[str, bool]:
    """Return the text to send, and whether it defines the function inside another one."""
    indent = text[: len(text) - len(text.lstrip(" \t"))]
    makes = bool(cells or indent)
    if makes:
        text = f"def {_MAKE}({', '.join(cells)}):\n{'' if indent else ' '}{text}"
        text = f"{text.rstrip()}\n{indent or ' '}return {defines}\n"
        first_line -= 1
    return "\n" * (first_line - 1) + without_annotations(text, is_old), makes


def _cells_of(function: types.FunctionType | type) -> dict[str, types.CellType]:
    """Return what a function, or the functions of a class, close over."""
    if isinstance(function, type):
        functions = [one for one in vars(function).values() if isinstance(one, types.FunctionType)]
    else:
        functions = [function]
    cells: dict[str, types.CellType] = {}
    for one in functions:
        for name, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
            if name not in ("__class__", "__classdict__", function.__name__):
                cells[name] = cell
    return cells
