"""The command line: ``execnet exec``, ``execnet run``, ``execnet info`` and others.

Finds the subcommands, and turns errors into a line on stderr and an exit status.  A subcommand is a
module ``_cli.NAME`` with a function ``add_parser(subparsers)``, which adds its parser and sets the
parser's default ``run`` to a function that takes the parsed arguments and returns the exit status.
Positional arguments of varying number are ``words``.  ``_cli.session`` starts and ends the
workers of all of them; the subcommand ``session`` is in ``_cli.sessions``.  Shipped: ``far_*``.
Start at ``main``.
"""

from __future__ import annotations

import sys

from .early import note_interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from types import ModuleType

_DESCRIPTION = "Start Python interpreters, here or elsewhere, and run code in them."
_EPILOG = """\
examples:
  execnet exec '3*popen' -c 'import os; print(os.getpid())'
  execnet run ssh=user@host docker=web -- uname -a
  execnet info popen popen//python=python3.12 ssh=user@host
  execnet doctor ssh=user@host
  execnet shell ssh=user@host

"execnet COMMAND --help" explains a command.
"""
_RUNNING = "exec", "run"  # the subcommands that pass words after "--" to what they run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    argv: the arguments, without the name of the program.  None means those of the process, which
    should end after this: a late Ctrl-C is then ignored, since there is nothing left to stop.
    """
    if argv is None:
        note_interrupts()
    try:
        status = _run(argv)
    except KeyboardInterrupt:  # before any worker was started; ``supervise`` catches the others
        status = 130  # as in shells, 128 and the number of the signal
    if argv is None:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _run(argv: Sequence[str] | None) -> int:
    from .session import CommandError

    try:
        args = _parse(argv)
    except SystemExit as exc:  # how argparse ends after --help, and after a complaint
        return exc.code if isinstance(exc.code, int) else 2
    try:
        status: int = args.run(args)
    except CommandError as exc:
        from .._rsync.result import printable_lines

        text = printable_lines(f"execnet {args.command}: {exc}")
        print(text.replace("\n", "\n  "), file=sys.stderr)  # it may be about one worker of many
        return exc.status
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, commands = _make_parser()
    words, after = _split(sys.argv[1:] if argv is None else list(argv))
    args, rest = parser.parse_known_args(words)
    if after:
        args.rest = after
    unknown = [word for word in rest if word.startswith("-") and word != "-"]
    if unknown or (rest and "words" not in args):
        commands[args.command].error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:  # argparse takes positional arguments in one run; these came after an option
        args.words += rest
    return args


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the words for us and, after "--", those for what we run."""
    if "--" not in argv or argv[0] not in _RUNNING:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and the subcommands' parsers by name."""
    import argparse

    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="execnet",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"execnet {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _subcommands():
        module.add_parser(subparsers)
    return parser, subparsers.choices


def _subcommands() -> Iterator[ModuleType]:
    from importlib import import_module

    names = "exec run info doctor shell top sync venv service sessions join clean"
    for name in names.split():
        yield import_module(f"{__package__}.{name}")
