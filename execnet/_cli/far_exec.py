"""The worker's half of ``execnet exec``: runs code as a program, and reports how it ended.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  A report is
(exit status, text of a traceback or None, the value of the last line in words or None).  Start at
``run``.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from ..gateway_base import Channel

VALUE = "__execnet_value__"
LOST_CHARACTERS = 200  # of a value that is lost
SHOWN = bool, int, float, complex, bytes, str, type(u""), list, tuple, dict, set, frozenset


def run(
    channel: Channel,
    report: Channel,
    source: str,
    place: str,
    file_name: bytes | None,
    argv: list[bytes],
    name: str,
    package: str | None = None,
) -> None:
    """Run the source of a program, which uses ``channel``, and send a report.

    place: its name in tracebacks.  file_name: its ``__file__``.  name: its ``__name__``.
    """
    base = sys.modules[channel.__class__.__module__]
    pid = os.getpid()
    namespace = _prepare(channel, file_name, argv, name, package)
    value = text = None
    status = 0
    try:
        value = _run_flushed(channel, source, place, namespace)
    except KeyboardInterrupt:
        raise
    except SystemExit:
        if os.getpid() != pid:
            raise
        status = _status_of(sys.exc_info()[1])
        _flush(channel)
    except:  # noqa: E722 - Python 2 can raise anything
        if os.getpid() != pid or channel.gateway._channelfactory.finished:
            raise
        kind, error, traceback = sys.exc_info()
        _remember(source, place)
        text = _text(base.geterrortext((kind, error, _users_part(traceback))))
        status = 1
    if os.getpid() == pid:
        channel.gateway.before_close()  # this sends all that was printed
        report.send((status, text, _shown(value)))


def _run_flushed(channel: Channel, source: str, place: str, namespace: dict[str, Any]) -> object:
    """Run a source; flush what it printed, unless it forked and this is the child."""
    base = sys.modules[channel.__class__.__module__]
    pid = os.getpid()
    try:
        return _run(base._marked_as_utf8(source) if base.PY2 else source, place, namespace)
    finally:
        if os.getpid() == pid:
            _flush(channel)


def _prepare(
    channel: Channel, file_name: bytes | None, argv: list[bytes], name: str, package: str | None
) -> dict[str, Any]:
    """Make this process look like one that was started to run the program."""
    sys.argv = [_native(word) for word in argv]
    namespace: dict[str, Any] = {"__name__": str(name)}
    if name == "__main__" and not hasattr(channel.gateway, "service"):  # a service has its own
        channel.gateway.main_before = sys.modules.get(name)  # Python 2 would clear its names
        sys.modules[str(name)] = module = types.ModuleType(str(name))
        namespace = module.__dict__
        namespace["__package__"] = None if package is None else str(package)
    if file_name is not None:
        namespace["__file__"] = _native(file_name)
    namespace["channel"] = channel
    return namespace


def _native(word: bytes) -> str:
    native: str = os.fsdecode(word) if hasattr(os, "fsdecode") else str(word)
    return native


def _shown(value: object) -> str | None:
    """Return a value in words: the repr of plain ones, the type of others; None for none.

    Functions and classes count as none: calls that register one return it.
    """
    kind = type(value)
    if value is None or callable(value):
        return None
    if kind in SHOWN:
        return _text(repr(value)[:LOST_CHARACTERS])
    return _text("an object of type %s.%s" % (kind.__module__, kind.__name__))


def _text(text: Any) -> str:
    decoded: str = text if sys.version_info[0] > 2 else text.decode("utf-8", "replace")
    return decoded


def _run(source: str, place: str, namespace: dict[str, Any]) -> object:
    """Run a source; return the value of its last line if that is an expression.

    In ``if __name__ == "__main__":`` and the like, that is the last line of the block.
    """
    tree: Any = compile(source + "\n", place, "exec", ast.PyCF_ONLY_AST, True)
    body = tree.body
    while body and isinstance(body[-1], ast.If):
        body = body[-1].body
    if body and isinstance(body[-1], ast.Expr):
        name = ast.copy_location(ast.Name(VALUE, ast.Store()), body[-1])
        body[-1] = ast.copy_location(ast.Assign([name], body[-1].value), body[-1])
    exec(compile(tree, place, "exec", 0, True), namespace)
    return namespace.pop(VALUE, None)


def _users_part(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_globals is globals():
        traceback = traceback.tb_next
    return traceback


def _remember(source: str, place: str) -> None:
    """Let the traceback show lines of a source that may have no file here."""
    if not os.path.exists(place):
        lines = [line + "\n" for line in source.splitlines()]
        linecache.cache[str(place)] = (len(source), None, lines, str(place))


def _status_of(error: BaseException | None) -> int:
    """Handle a SystemExit as Python does; return its exit status."""
    code = getattr(error, "code", None)
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write("%s\n" % (code,))
    return 1


def _flush(channel: Channel) -> None:
    for file in sys.stdout, sys.stderr:
        try:
            file.flush()
        except Exception:  # it may be any object, or closed
            pass
