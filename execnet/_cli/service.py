"""``execnet service``: list services, show the state of one, read its log, end it.

Start at ``add_parser``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import Group
from .._rsync.result import printable, printable_lines
from .._service import admin
from .._service.far_find import ServiceError
from ..xspec import build
from .info import format_table
from .session import STATUS_FAILED, CommandError
from .words import add_command

_DESCRIPTION = """\
Services are your processes that keep running and keep state: the spec socketservice=NAME connects
to one, and starts it if necessary.
"""
_EPILOG = """\
exit status:
  0    done
  1    there is no such service, it does not answer, or something would be lost
  2    the command line is wrong
"""
_COLUMNS = ("name", "pid", "since", "clients", "running", "memory", "python")
Found = tuple[str, "dict[str, Any]"]


def add_parser(subparsers: Any) -> None:
    """Add the parser of ``execnet service``."""
    parser = add_command(
        subparsers, "service", "list, ask or end the services of this user", _DESCRIPTION, _EPILOG
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add(actions, "list", _list, "print a table of the running services")
    _add(actions, "status", _status, "print the state of a service")
    ends = [_add(actions, "stop", _stop, "end a service; returns when its process is gone")]
    ends += [_add(actions, "restart", _restart, "end a service and start it again")]
    for end in ends:
        end.add_argument("--force", action="store_true", help="even if something is lost")
    _add(actions, "logs", _logs, "print what the code of a service wrote")


def _add(
    actions: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    if name != "list":
        parser.add_argument("name", nargs="?", default="default", help="its name, or its port")
        parser.add_argument("--python", help="its interpreter, if several services have the name")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=lambda args: _explained(run, args))
    return parser


def _explained(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return run(args)
    except ServiceError as exc:
        raise CommandError(str(exc), STATUS_FAILED) from exc


def _print_json(what: object) -> None:
    print(json.dumps(what, indent=2, sort_keys=True, default=repr))


def _list(args: argparse.Namespace) -> int:
    told = [_told(found) for found in admin.find_all()]
    if args.json:
        _print_json(told)
    elif told:
        print(format_table([*map(_row, told)], _COLUMNS))
    return 0


def _told(found: Found) -> dict[str, Any]:
    try:
        return admin.status(found)
    except ServiceError as exc:
        return {**found[1], "error": str(exc)}


def _row(told: dict[str, Any]) -> Sequence[str]:
    answers = "error" not in told
    cells = (
        told.get("service"),
        told.get("pid"),
        _when(told.get("since", 0.0)),
        len(told["clients"]) if answers else "?",
        len(told["running"]) if answers else "?",
        _memory(told["memory"]) if answers else "?",
        told.get("python") if answers else "(does not answer)",
    )
    return [printable(str(cell)) for cell in cells]


def _when(since: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))


def _memory(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size else "?"


def _status(args: argparse.Namespace) -> int:
    told = admin.status(admin.find(args.name, args.python))
    if args.json:
        _print_json(told)
        return 0
    idle = f"after {told['idle']:g} s without use" if told["idle"] else "never"
    print(
        printable_lines(
            f"{told['service']}: process {told['pid']} since {_when(told['since'])}, "
            f"{_memory(told['memory'])}, ends by itself: {idle}\n"
            f"  execnet {told['version']}, Python {'.'.join(map(str, told['version_info']))}, "
            f"{told['python']}\n  log: {told['log']}"
        )
    )
    for one in told["clients"]:
        print(printable(f"  client {one['id']}: process {one['pid']}, runs {one['executing']}"))
    for one in told["running"]:
        how = "waits" if one["waits"] else "has lost its client" if one["orphan"] else "runs"
        print(printable(f"  code of {one['client']} {how}: {one['code']}"))
        print(printable_lines(one.get("stack", "")).rstrip(), end="\n" if one["orphan"] else "")
    for one in told["kept"]:
        print(printable(f"  keeps a connection to {one['host']}"))
    if told["state"]:
        print(printable(f"  state: {', '.join(told['state'])}"))
    return 0


def _stop(args: argparse.Namespace) -> int:
    told, lost = _end(args)
    if args.json:
        _print_json({"stopped": told.get("pid"), "lost": lost})
    return 0


def _restart(args: argparse.Namespace) -> int:
    told, lost = _end(args)
    python = told["python"] if told["python"] != sys.executable else None
    name = None if told["port"] else told["service"]
    keys = {"port": told["port"], "python": python, "idle": told.get("idle")}
    with Group() as group:
        gateway = group.makegateway(build(socketservice=name or True, **keys))
        pid = gateway._rinfo().pid
    if args.json:
        _print_json({"stopped": told.get("pid"), "lost": lost, "started": pid})
    return 0


def _end(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """End a service; return its last state, and what was lost."""
    found = admin.find(args.name, args.python)
    try:
        told = admin.status(found)
        lost = admin.losses(told)
    except ServiceError as exc:
        told, lost = found[1], [f"its state, since it can't be asked: {exc}"]
    if lost and not args.force:
        text = "".join(f"\n  {one}" for one in lost)
        raise CommandError(f"this would be lost (--force ends it anyway):{text}", STATUS_FAILED)
    admin.stop(found)
    return told, lost


def _logs(args: argparse.Namespace) -> int:
    lines: list[str] = []
    for path in admin.log_files(admin.find(args.name, args.python)):
        with open(path, encoding="utf-8", errors="replace") as file:
            lines += file.read().splitlines()
    if args.json:
        _print_json(lines)
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return 0
