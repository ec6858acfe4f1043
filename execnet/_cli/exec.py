"""``execnet exec``: run code in several workers at once and print what they send.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from .._rsync.result import printable_lines
from ..gateway import Gateway
from ..gateway_base import (
    INTERRUPT_TEXT,
    Channel,
    ExecnetError,
    Message,
    RemoteError,
    dumps_internal,
)
from .run import SPEC_HELP, STATUS_FAILED, CommandError, Session, parse_specs, supervise

_USAGE = "execnet exec SPEC... (-c CODE | FILE | -m MODULE) [--timeout SECONDS]"
_DESCRIPTION = f"""\
Start one interpreter per SPEC, all at once, run the code in all of them, and print what each
sends, an item a line, after the id of its gateway: a str as it is, anything else as its repr().

{SPEC_HELP}
The code finds its channel under the name "channel". What it prints to stdout is lost, so it sends
what is to be shown: channel.send(...). Nothing is ever sent to it.
"""
_EPILOG = """\
With neither -c nor -m the last of the positional arguments is the FILE and those before it are
the SPECs; "-" as the FILE is the standard input. With -c or -m all of them are SPECs. Options may
come before, between or after them.

exit status:
  0    the code has run in all workers
  1    it failed in one of them, one of them died, or one could not be started
  2    the command line is wrong: nothing was run
  124  the time-out has passed
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)
  141  nobody reads the output any more
Whatever the status is, no worker is left. Where code still runs it is interrupted first, which
raises KeyboardInterrupt in it, and killed 3 seconds later; a second Ctrl-C kills at once.

examples:
  execnet exec '3*popen' -c 'import os; channel.send(os.getpid())'
  execnet exec popen popen//python=python3.12 version.py --timeout 10
  execnet exec popen//id=here//chdir=/tmp -m package.module
  execnet exec ssh=user@host docker=web -c 'import sys; channel.send(sys.version)'
  echo 'channel.send(6 * 7)' | execnet exec popen -
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser of ``execnet exec``."""
    parser = subparsers.add_parser(
        "exec",
        usage=_USAGE,
        help="run code in several interpreters and print what they send",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="where to run; FILE comes last")
    code = parser.add_mutually_exclusive_group()
    code.add_argument("-c", dest="code", metavar="CODE", help="the code itself")
    code.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        help="run the source of this module, which is looked for in the current folder and on "
        "sys.path, and not imported; of a package it is its __init__",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end everything after that time; default: wait until the code has ended",
    )
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _run(args: argparse.Namespace) -> int:
    code, words = _find_code(args)
    specs = parse_specs(words)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # what was computed is to be shown, however long

    def job(session: Session) -> int:
        gateways = session.group.start_all(specs)
        session.pending.update(dict.fromkeys(gateway.id for gateway in gateways))
        executions = [_Execution(session, gateway) for gateway in gateways]
        for execution in executions:
            execution.start(code)
        for execution in executions:
            execution.ended.wait()
        return STATUS_FAILED if any(execution.failed for execution in executions) else 0

    return supervise("exec", job, args.timeout)


# ---------------------------------------------------------------- the code


@dataclass
class _Code:
    """What is run; without a file name it shows as ``<remote exec>`` in tracebacks."""

    source: str
    file_name: str | None = None


def _find_code(args: argparse.Namespace) -> tuple[_Code, list[str]]:
    """Return the code and the words that are specs."""
    if args.code is not None:
        return _Code(args.code), args.words
    if args.module is not None:
        return _read_module(args.module), args.words
    *words, file_name = args.words
    if not words:
        raise CommandError(
            f"no code for {file_name!r}: give -c CODE, -m MODULE, or a FILE after the specs"
        )
    return _read_file(file_name), words


def _read_file(name: str) -> _Code:
    import os
    from importlib.util import decode_source

    try:
        if name == "-":
            if sys.stdin is None:
                raise CommandError("can't read the code from stdin: it is closed")
            return _Code(decode_source(sys.stdin.buffer.read()))
        with open(name, "rb") as file:
            return _Code(decode_source(file.read()), os.path.abspath(name))
    except OSError as exc:
        raise CommandError(
            f"can't read the code from file {name!r}: {exc.strerror} "
            "(without -c or -m the last argument is the file)"
        ) from exc
    except (UnicodeError, SyntaxError) as exc:  # SyntaxError: an encoding that is not known
        raise CommandError(f"can't read the code from file {name!r}: {exc}") from exc


def _read_module(name: str) -> _Code:
    from .._ship.parts import from_loader

    spec = _find_module(name)
    try:
        place = spec.origin if spec.has_location else None
        source = from_loader(spec.loader, spec.name, place) if place else None
    except (AttributeError, ImportError, OSError, SyntaxError, UnicodeError) as exc:
        raise CommandError(f"can't read the source of module {name!r}: {exc}") from exc
    if source is None:
        kind = spec.origin or "a folder without __init__.py"
        raise CommandError(f"module {name!r} has no source to be run, it is {kind}")
    return _Code(source, spec.origin)


def _find_module(name: str) -> ModuleSpec:
    """Return the spec of a module without importing anything, its packages neither."""
    before = sys.path[:]
    sys.path.insert(0, "")  # it is not there in a console script
    try:
        return _find_in_package("", name.split("."), None)
    finally:
        sys.path[:] = before


def _find_in_package(package: str, parts: list[str], path: list[str] | None) -> ModuleSpec:
    """Return the spec of ``package.PARTS``; ``path`` is where to look, None for ``sys.path``."""
    full_name = f"{package}.{parts[0]}".lstrip(".")
    spec = _ask_finders(parts[0], path) if parts[0] else None
    if spec is None:
        where = f"package {package!r}" if package else "the current folder and sys.path"
        raise CommandError(f"no module {full_name!r} in {where}")
    if len(parts) == 1:
        return spec
    if spec.submodule_search_locations is None:
        raise CommandError(f"no module {parts[1]!r} in {full_name!r}, which is no package")
    return _find_in_package(full_name, parts[1:], list(spec.submodule_search_locations))


def _ask_finders(name: str, path: list[str] | None) -> ModuleSpec | None:
    """Do what ``importlib.util.find_spec`` does, which would import the packages around.

    Within a package the name is the last part alone: for the full one, a folder that has no
    ``__init__`` would need the packages around it to be imported.
    """
    if path is not None:
        return PathFinder.find_spec(name, path)
    found = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


# ---------------------------------------------------------------- running it

_END = object()


class _Execution:
    """The code in one worker; ``ended`` is set when nothing more will come from it.

    ``on_item`` runs in the receiver thread of the gateway, which does not go on reading while
    it waits for whoever reads our stdout; so a worker can't send faster than that.
    """

    def __init__(self, session: Session, gateway: Gateway) -> None:
        self.failed = False
        self.ended = threading.Event()
        self._session = session
        self._gateway = gateway
        self._channel: Channel | None = None

    def start(self, code: _Code) -> None:
        try:
            self._channel = self._send(code)
        except OSError as exc:  # it died meanwhile
            self._end(self._gateway._error or exc)
        else:
            self._channel.setcallback(self.on_item, endmarker=_END)

    def _send(self, code: _Code) -> Channel:
        if code.file_name is None:
            return self._gateway.remote_exec(code.source)
        channel = self._gateway.newchannel()
        task = dumps_internal((code.source, code.file_name, None, {}))
        self._gateway._send(Message.CHANNEL_EXEC, channel.id, task)
        return channel

    def on_item(self, item: object) -> None:
        if item is _END:
            self._end(self._error_of_channel())
            return
        try:
            text = item if type(item) is str else repr(item)
            self._session.out.write(text, f"[{self._gateway.id}] ")
        except OSError as exc:
            self._session.stdout_failed(exc)

    def _error_of_channel(self) -> BaseException | None:
        assert self._channel is not None
        try:
            self._channel.waitclose(0)  # it is closed, which is why we are here
        except (ExecnetError, EOFError) as exc:
            return exc
        return None

    def _end(self, error: BaseException | None) -> None:
        self._session.pending.pop(self._gateway.id, None)
        if error is not None:
            self.failed = True
            self._report(error)
        self.ended.set()

    def _report(self, error: BaseException) -> None:
        text = error.formatted if isinstance(error, RemoteError) else str(error)
        # Ctrl-C reaches the workers of a terminal as well, and their news may be here first.
        if self._session.stopping.wait(0.2 if text == INTERRUPT_TEXT else 0):
            return
        with suppress(OSError):  # the exit status tells
            self._session.err.write(printable_lines(text), f"[{self._gateway.id}] ")
