"""``execnet exec``: run code in several workers at once, and print what it prints and sends.

Start at ``_run``; how it runs in a worker is ``far_exec``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder

from .._ship.source import source_to_send
from . import far_exec
from .execution import Execution, PatientGroup, Printer, execute
from .session import CommandError, Session, supervise
from .words import SPEC_HELP, Commands, add_command, parse_specs, seconds

_USAGE = """\
execnet exec SPEC... (-c CODE | FILE | -m MODULE) [--timeout SECONDS]
                    [--quiet-output] [--json] [-- ARGUMENT...]"""
_DESCRIPTION = f"""\
Start one interpreter per SPEC, all at once, run the code in all of them, and print what each one
prints and sends, each line after the id of its gateway. A str that it sends is shown as it is,
anything else as its repr().

{SPEC_HELP}
The code runs like a program, with the name "__main__"; words after "--" are its arguments. Its
channel has the name "channel", so it can send with channel.send(...). Nothing is ever sent to it. A
file that contains "__channelexec__" runs under that name instead.
"""
_EPILOG = """\
With neither -c nor -m the last of the positional arguments is the FILE and those before it are
the SPECs; "-" as the FILE is the standard input. With -c or -m all of them are SPECs. Options may
come before, between or after them.

exit status:
  0    the code succeeded in all workers
  1    it failed in one of them, one of them died, or one could not be started
  2    the command line is wrong: nothing was run
  N    the code ended with sys.exit(N); of several, the largest
  124  the time-out has passed
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)
  141  nobody reads the output any more
Whatever the status is, no worker is left. Code that is still running is interrupted first, with a
KeyboardInterrupt, and killed 3 seconds later; a second Ctrl-C kills it at once.

examples:
  execnet exec '3*popen' -c 'import os; print(os.getpid())'
  execnet exec popen popen//python=python3.12 version.py --timeout 10
  execnet exec popen//id=here//chdir=/tmp -m package.module
  execnet exec ssh=user@host docker=web report.py -- --verbose 2026
  execnet exec 'ssh=node[01-16]' @more-hosts --json -c 'import sys; channel.send(sys.version)'
  echo 'print(6 * 7)' | execnet exec popen -
"""


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet exec``."""
    parser = add_command(
        subparsers,
        "exec",
        "run code in several interpreters, print what it prints and sends",
        _DESCRIPTION,
        _EPILOG,
        usage=_USAGE,
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="where to run; FILE comes last")
    code = parser.add_mutually_exclusive_group()
    code.add_argument("-c", dest="code", metavar="CODE", help="the code itself")
    code.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        help="run the source of this module, found in the current folder or on sys.path without "
        "importing it; for a package that is its __main__, or else its __init__",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="end everything after this time; default: wait until the code ends",
    )
    parser.add_argument(
        "--quiet-output",
        action="store_true",
        help="print only what the code sends; what it prints to stdout is lost",
    )
    parser.add_argument("--json", action="store_true", help="print each line as a JSON object")
    parser.set_defaults(run=_run, rest=[])


def _run(args: argparse.Namespace) -> int:
    code, words = _find_code(args)
    specs = parse_specs(words)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # the result should be shown, however long it is
    group = PatientGroup(forwards=not args.quiet_output)

    def begin(execution: Execution) -> None:
        execution.send(far_exec, code.source, **code.arguments(args.rest))

    def job(session: Session) -> int:
        gateways = group.start_all(specs)
        return execute(session, group, gateways, Printer(session, args.json), begin)

    return supervise("exec", job, args.timeout, group)


# ---------------------------------------------------------------- the code


@dataclass
class _Code:
    """The code to run; without a file name it shows as ``<remote exec>`` in tracebacks."""

    source: str
    word: str  # its first argument
    file_name: str | None = None
    name: str = "__main__"
    package: str | None = None

    def arguments(self, rest: Sequence[str]) -> dict[str, object]:
        """Return the arguments of the worker's half, apart from its channels."""
        return {
            "source": self.source,
            "place": self.file_name or "<remote exec>",
            "file_name": None if self.file_name is None else os.fsencode(self.file_name),
            "argv": [os.fsencode(word) for word in (self.word, *rest)],
            "name": self.name,
            "package": self.package,
        }


def _find_code(args: argparse.Namespace) -> tuple[_Code, list[str]]:
    """Return the code and the words that are specs."""
    if args.code is not None:
        return _Code(source_to_send(args.code)[0], "-c"), args.words
    if args.module is not None:
        return _read_module(args.module), args.words
    *words, file_name = args.words
    if not words:
        raise CommandError(
            f"no code for {file_name!r}: give -c CODE, -m MODULE, or a FILE after the specs"
        )
    return _read_file(file_name), words


def _read_file(name: str) -> _Code:
    from importlib.util import decode_source

    try:
        if name == "-":
            if sys.stdin is None:
                raise CommandError("can't read the code from stdin: it is closed")
            return _Code(decode_source(sys.stdin.buffer.read()), "-")
        with open(name, "rb") as file:
            source = decode_source(file.read())
        run_name = "__channelexec__" if "__channelexec__" in source else "__main__"
        return _Code(source, name, os.path.abspath(name), run_name)
    except OSError as exc:
        raise CommandError(
            f"can't read the code from file {name!r}: {exc.strerror} "
            "(without -c or -m the last argument is the file)"
        ) from exc
    except (UnicodeError, SyntaxError) as exc:  # SyntaxError: an unknown encoding
        raise CommandError(f"can't read the code from file {name!r}: {exc}") from exc


def _read_module(name: str) -> _Code:
    from .._ship.parts import from_loader

    spec = _find_program(name)
    try:
        place = spec.origin if spec.has_location else None
        source = from_loader(spec.loader, spec.name, place) if place else None
    except (AttributeError, ImportError, OSError, SyntaxError, UnicodeError) as exc:
        raise CommandError(f"can't read the source of module {name!r}: {exc}") from exc
    if source is None:
        kind = spec.origin or "a folder without __init__.py"
        raise CommandError(f"module {name!r} has no source to run, it is {kind}")
    is_package = spec.submodule_search_locations is not None or spec.name == "__main__"
    package = name if is_package else name.rpartition(".")[0]
    return _Code(source, str(spec.origin), spec.origin, package=package)


def _find_program(name: str) -> ModuleSpec:
    """Return the spec of a module, or of the ``__main__`` of a package that has one."""
    spec = _find_module(name)
    if spec.submodule_search_locations is not None:
        found = PathFinder.find_spec("__main__", list(spec.submodule_search_locations))
        if found is not None:
            return found
    return spec


def _find_module(name: str) -> ModuleSpec:
    """Return the spec of a module without importing anything, not even its packages."""
    before = sys.path[:]
    sys.path.insert(0, "")  # a console script does not have it
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
    """Do what ``importlib.util.find_spec`` does, but without importing the packages around it.

    Within a package the name is only the last part: with the full name, a folder without
    ``__init__`` would need the packages around it to be imported.
    """
    if path is not None:
        return PathFinder.find_spec(name, path)
    found = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)
