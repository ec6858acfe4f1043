"""``execnet session``: named interpreters that keep what code defines between commands.

A session is a service, here or where a spec leads; it runs code in its main thread, one piece at a
time.  Start at ``add_parser``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import Group
from .._errors import WorkerDied
from .._rsync.result import printable, printable_lines
from .._service import far_talk
from .._service.near import IDLE_S, line_for
from .._ship.parts import run as run_part
from ..gateway import Gateway
from ..gateway_base import Channel, ExecnetError
from ..xspec import XSpec
from .info import format_table
from .session import STATUS_FAILED, STATUS_SIGNAL, CommandError
from .words import Commands, add_command, seconds_or_never

if TYPE_CHECKING:
    from .._service.far_find import Said

_DESCRIPTION = """\
A session is an interpreter with a name that keeps its globals between commands, here or on another
machine.
"""
_EPILOG = """\
exit status of exec: 0, or that of the code: 1 after an exception, the number of sys.exit(), 130
after Ctrl-C; also 1 if the session can't be started

examples:
  execnet session exec work -c 'import re; words = 0'
  execnet session exec work -c 'words += 1; print(words)'
  execnet session exec far -c 'import os; print(os.uname())' --spec ssh=user@host
"""
_COLUMNS = ("session", "pid", "python", "names", "running")
END_S = 5.0


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet session``."""
    parser = add_command(
        subparsers,
        "session",
        "run code in a named interpreter that keeps its globals",
        _DESCRIPTION,
        _EPILOG,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    execute = _add(actions, "exec", _exec, "run code in a session, which is started if necessary")
    execute.add_argument("name", help="the name of the session")
    execute.add_argument("file", nargs="?", help="a file with the code; - for standard input")
    execute.add_argument("-c", dest="code", help="the code")
    execute.add_argument("--python", help="the interpreter to start it with")
    text = "end it after this many seconds without use (10800; 0: never)"
    execute.add_argument("--idle", type=seconds_or_never, help=text)
    _add(actions, "list", _list, "print a table of the sessions that run")
    stop = _add(actions, "stop", _stop, "end a session and forget its state")
    stop.add_argument("name", help="the name of the session")


def _add(
    actions: Commands, name: str, run: Callable[[argparse.Namespace, Channel], int], text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.add_argument("--spec", default="popen", help="where, such as ssh=user@host (here)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=lambda args: _there(run, args), name="any")  # where none is given
    return parser


def _there(run: Callable[[argparse.Namespace, Channel], int], args: argparse.Namespace) -> int:
    """Run an action in a worker on the host of the sessions."""
    if not re.fullmatch("[A-Za-z0-9_.-]{1,40}", args.name):
        raise CommandError("the name of a session has up to 40 letters, digits, '_', '.' and '-'")
    with Group() as group:
        try:
            gateway = group.makegateway(XSpec(args.spec))
            code, channel = run_part(gateway, "_service.far_talk"), gateway.newchannel()
            code.send(channel)
            return run(args, channel)
        except (ValueError, AttributeError) as exc:
            raise CommandError(str(exc)) from exc
        except (ExecnetError, WorkerDied, OSError) as exc:
            raise CommandError(str(exc), STATUS_FAILED) from exc
        except EOFError as exc:
            raise CommandError("the worker has ended", STATUS_FAILED) from exc


def _code_of(args: argparse.Namespace) -> str:
    if (args.code is None) == (args.file is None):
        raise CommandError("give the code with -c CODE, or as a file")
    if args.code is not None:
        return str(args.code)
    if args.file == "-":
        return sys.stdin.read()
    try:
        with open(args.file, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"can't read the code from {args.file}: {exc}") from exc


def _exec(args: argparse.Namespace, channel: Channel) -> int:
    channel.send(
        {
            "do": "exec",
            "name": args.name,
            "words": shlex.split(args.python) if args.python else None,
            "code": _code_of(args),
            "idle": args.idle,
            "client": f"process {os.getpid()}",
        }
    )
    interrupts = 0
    while True:
        try:
            said = channel.receive()
            if "wants" in said:
                channel.send(_line(args, channel.gateway, said["wants"]))
            elif "data" in said:
                _print(args, said["stream"], said["data"])
            elif "error" in said:
                raise CommandError(said["error"], STATUS_FAILED)
            elif "status" in said:
                if args.json:
                    print(json.dumps(said), flush=True)
                return int(said["status"])
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 2:  # the session does not answer
                return STATUS_SIGNAL + 2
            channel.send({"interrupt": True} if interrupts == 1 else {"leaves": True})


def _line(args: argparse.Namespace, gateway: Gateway, wants: Said) -> bytes:
    """Return the line that turns an interpreter there into the session."""
    idle_s = IDLE_S if args.idle is None else args.idle
    more = {"name": far_talk.PREFIX + args.name, "port": None, "idle": idle_s}
    ships = bool(args.python) or not gateway.settings.has_source
    return line_for({**wants, **more, "ships": ships})


def _print(args: argparse.Namespace, number: int, text: str) -> None:
    if args.json:
        name = "stdout" if number == 1 else "stderr"
        print(json.dumps({"stream": name, "data": text}), flush=True)
        return
    file = sys.stdout if number == 1 else sys.stderr
    file.write(printable_lines(text) if file.isatty() else text)
    file.flush()


def _list(args: argparse.Namespace, channel: Channel) -> int:
    channel.send({"do": "list"})
    told = []
    for one in channel:
        if "session" not in one:
            raise CommandError(one["error"], STATUS_FAILED)
        told.append(one)
    if args.json:
        print(json.dumps(told, indent=2, sort_keys=True, default=repr))
    elif told:
        print(format_table([*map(_row, told)], _COLUMNS))
    return 0


def _row(told: Said) -> list[str]:
    if "error" in told:
        cells = [told["session"], told.get("pid"), "(does not answer)", "?", "?"]
    else:
        counts = len(told["state"]), len(told["running"])
        cells = [told["session"], told["pid"], told["python"], *counts]
    return [printable(str(cell)) for cell in cells]


def _stop(args: argparse.Namespace, channel: Channel) -> int:
    channel.send({"do": "stop", "name": args.name})
    for one in channel:
        raise CommandError(one["error"], STATUS_FAILED)
    return 0
