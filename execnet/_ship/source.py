"""Turns the argument of ``remote_exec`` into source that can be sent.

Runs nothing.  Start at ``source_to_send``.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import types
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

Sendable = tuple[str, "str | None", "str | None"]
_MODULE_NAMES = frozenset(["__name__", "__builtins__", "__doc__", "__file__"])


def source_to_send(source: object, lowered: bool = True) -> Sendable:
    """Return (source, file name, name of the function to call) of code.

    source: a string, a function or a module.  File name and function are None if there is none.
    lowered: whether to lower our own modules to what every Python understands.
    Raises ValueError for a function that can't stand alone, TypeError for anything else.
    """
    if isinstance(source, types.ModuleType):
        return _source_of_module(source, lowered)
    if isinstance(source, types.FunctionType):
        text = _read_function(source)[1]
        return text, source.__code__.co_filename, source.__name__
    if isinstance(source, str):
        return _dedent(source), None, None
    raise TypeError(f"can't execute {source!r}: it is no string, function or module")


def compiled(source: object, text: str, file_name: str | None) -> bytes | None:
    """Return bytecode for a worker on the same Python, since the first compilation is slow.

    That of one of our own modules is kept for the programs that come after this one, unless the
    text is not its alone: then there may be a key in it.  None if the text can't be compiled: then
    the worker says why.  source: what ``source_to_send`` got; text, file_name: what is sent of it.
    """
    name = _own_name(source) if isinstance(source, types.ModuleType) else None
    return _compiled_once(text, file_name, name)


@lru_cache(maxsize=16)
def _compiled_once(text: str, file_name: str | None, own_name: str | None) -> bytes | None:
    def make() -> bytes | None:
        try:
            code = compile(text + "\n", file_name or "<remote exec>", "exec", 0, True, 0)
            return marshal.dumps(code)
        except Exception:  # also a warning that is an error here
            return None

    if own_name is None:
        return make()
    from . import parts  # imported late: few programs need it

    if text != parts.source_of(own_name):
        return make()
    code: bytes | None = parts.kept(own_name, "executed", [text, str(file_name)], make)
    return code


def _dedent(source: str) -> str:
    if source.startswith((" ", "\t", "\n", "\r")) or "\n " in source:
        import textwrap

        source = textwrap.dedent(source)
    return source


def _source_of_module(module: types.ModuleType, lowered: bool) -> Sendable:
    from . import parts  # imported late: few programs need it

    name = _own_name(module)
    if lowered and name is not None:
        return parts.lowered(name), parts.file_of(name), None
    return (*parts.read(module), None)


def _own_name(module: types.ModuleType) -> str | None:
    """Return the name of a module within this package; None if it is a module of others."""
    from .parts import PACKAGE

    own = PACKAGE + "."
    return module.__name__.removeprefix(own) if module.__name__.startswith(own) else None


def _source_of_function(function: types.FunctionType) -> str:
    """Return the source of a function that can stand alone, as it is in its file.

    It is dedented, and newlines in front give its lines the numbers that they have in the file.
    Raises ValueError for a lambda, a closure, a function without source, one whose first
    parameter is not ``channel`` and one that uses names of its module, and says which.
    """
    return _read_function(function)[0]


def _read_function(function: types.FunctionType) -> tuple[str, str]:
    """Return a function's source, unchanged and as it is sent; errors as above."""
    import inspect
    import textwrap

    from .lower import without_annotations

    if function.__name__ == "<lambda>":
        raise ValueError("can't execute a lambda remotely, its source can't be read")
    name = f"function {function.__qualname__!r}"
    if next(iter(inspect.signature(function).parameters), None) != "channel":
        raise ValueError(f"the first parameter of {name} must be 'channel'")
    if function.__closure__ is not None:
        names = ", ".join(function.__code__.co_freevars)
        raise ValueError(f"{name} can't be executed remotely, it is a closure over {names}")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as exc:
        raise no_source(name, exc, function.__code__) from exc
    before: int = function.__code__.co_firstlineno - 1
    if source[:1] in " \t":  # a string in it begins further left than the function
        source = "if True:\n" + source
        before -= 1
    if not _defines(source, inspect.unwrap(function).__code__.co_name):
        # From Python 3.13 on, what a string made is looked for in the text of ``python -c``.
        raise no_source(name, "its file has changed", function.__code__)
    sent = without_annotations(source)
    used = _find_non_builtin_globals(sent, function.__code__)
    if used:
        raise ValueError(
            f"{name} can't be executed remotely, it uses names of its module: {', '.join(used)}"
        )
    return "\n" * before + source, "\n" * before + sent


def no_source(name: str, reason: object, found: types.CodeType | type) -> ValueError:
    """Return the error for a function or a class whose source can't be found."""
    text = f"can't find the source of {name}: {reason}"
    file_name = getattr(found, "co_filename", None)
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    if file_name in ("<stdin>", "<string>") or (module and not hasattr(module, "__file__")):
        text += (
            "; Python keeps what is typed at its prompt only since 3.13, and never what exec()"
            " is given: put it into a file that you import, type it into IPython, or use"
            " remote_exec with a string"
        )
    return ValueError(text)


def _defines(source: str, name: str) -> bool:
    """Whether there is a function or a class of that name in the source."""
    import ast

    from .syntax import parse

    try:
        nodes = list(ast.walk(parse(source)))
    except SyntaxError:
        return False
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name == name for node in nodes)


def _find_non_builtin_globals(source: str, codeobj: types.CodeType) -> list[str]:
    """Return the names in the source of a function that neither it nor Python defines."""
    try:
        import symtable
    except ImportError:  # PyPy has none
        names = _global_names(compile(source, codeobj.co_filename, "exec", 0, True))
        return [name for name in names if name not in _MODULE_NAMES and name not in vars(builtins)]
    module = symtable.symtable(source, codeobj.co_filename, "exec")
    defined = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned()}
    found: dict[str, None] = {}  # in the order of the source, each once
    tables = [module]
    while tables:
        table = tables.pop(0)
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            at_module_level = table is module and symbol.is_referenced()
            if (symbol.is_global() or at_module_level) and symbol.is_referenced():
                found[symbol.get_name()] = None
    known = defined | set(dir(builtins)) | _MODULE_NAMES
    return [name for name in found if name not in known]


def _global_names(codeobj: types.CodeType) -> list[str]:
    """Return the names that a module's code looks up and does not define, each once."""
    import dis

    codes: list[types.CodeType] = [codeobj]
    used: dict[str, None] = {}
    defined = {"__annotations__"}
    while codes:
        code = codes.pop(0)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                used[instruction.argval] = None
            elif instruction.opname == "STORE_NAME" and code is codeobj:
                defined.add(instruction.argval)
    return [name for name in used if name not in defined]
