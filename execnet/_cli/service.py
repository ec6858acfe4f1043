"""``execnet service``: list services, show the state of one, read its log, end it.

Start at ``add_parser``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .. import Group
from .._rsync.result import printable, printable_lines
from .._service import admin
from .._service.admin import Found
from .._service.far_find import ServiceError
from .._service.there import There
from ..gateway_base import ExecnetError
from ..xspec import XSpec, build
from .info import format_table
from .session import STATUS_FAILED, CommandError
from .words import add_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .words import Subparsers

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


class Place(Protocol):
    """Where services are: ``admin`` for this machine, or ``There``."""

    def find_all(self) -> list[Found]: ...
    def find(self, name: str, python: str | None = None) -> Found: ...
    def status(self, found: Found) -> dict[str, Any]: ...
    def stop(self, found: Found) -> None: ...
    def log_lines(self, found: Found) -> list[str]: ...


Action = Callable[[argparse.Namespace, Place], int]


def add_parser(subparsers: Subparsers) -> None:
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


def _add(actions: Subparsers, name: str, run: Action, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    if name != "list":
        parser.add_argument("name", nargs="?", default="default", help="its name, or its port")
        parser.add_argument("--python", help="its interpreter, if several services have the name")
    parser.add_argument("--spec", help="where, such as ssh=user@host (here)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=lambda args: _explained(run, args))
    return parser


def _explained(run: Action, args: argparse.Namespace) -> int:
    try:
        if args.spec is None:
            return run(args, admin)
        with Group() as group:
            return run(args, There(group.makegateway(args.spec)))
    except (ValueError, AttributeError) as exc:
        raise CommandError(str(exc)) from exc
    except (ServiceError, ExecnetError, OSError, EOFError) as exc:
        raise CommandError(str(exc), STATUS_FAILED) from exc


def _print_json(what: object) -> None:
    print(json.dumps(what, indent=2, sort_keys=True, default=repr))


def _list(args: argparse.Namespace, place: Place) -> int:
    told = [_told(place, found) for found in place.find_all()]
    if args.json:
        _print_json(told)
    elif told:
        print(format_table([*map(_row, told)], _COLUMNS))
    return 0


def _told(place: Place, found: Found) -> dict[str, Any]:
    try:
        return place.status(found)
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


def _status(args: argparse.Namespace, place: Place) -> int:
    told = place.status(place.find(args.name, args.python))
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
        _print_result(one)
        print(printable_lines(one.get("stack", "")).rstrip(), end="\n" if one["orphan"] else "")
    for one in told.get("ended", ()):  # an older service tells of none
        when = _when(one["until"])
        print(printable(f"  code of {one['client']} has ended at {when}: {one['code']}"))
        _print_result(one)
    for one in told["kept"]:
        print(printable(f"  keeps a connection to {one['host']}"))
    if told["state"]:
        print(printable(f"  state: {', '.join(told['state'])}"))
    return 0


def _print_result(task: dict[str, Any]) -> None:
    if task.get("last") is not None:
        print(printable(f"    sent last: {task['last']}"))
    if task.get("error") is not None:
        print(printable(f"    raised: {task['error']}"))


def _stop(args: argparse.Namespace, place: Place) -> int:
    told, lost = _end(args, place)
    if args.json:
        _print_json({"stopped": told.get("pid"), "lost": lost})
    return 0


def _restart(args: argparse.Namespace, place: Place) -> int:
    if args.spec is not None and place.find(args.name, args.python)[1].get("port"):
        text = "a service with a port is started on its own machine: stop it here, start it there"
        raise CommandError(text, STATUS_FAILED)
    told, lost = _end(args, place)
    with Group() as group:
        pid = group.makegateway(_spec_of(told, args.spec))._rinfo().pid
    if args.json:
        _print_json({"stopped": told.get("pid"), "lost": lost, "started": pid})
    return 0


def _spec_of(told: dict[str, Any], place: str | None) -> XSpec:
    """Return the spec of a gateway to a service that has ended.  place: its ``--spec``."""
    if place is None:
        python = told["python"] if told["python"] != sys.executable else None
        name = None if told["port"] else told["service"]
        keys = {"port": told["port"], "python": python, "idle": told.get("idle")}
        return build(socketservice=name or True, **keys)
    python = None if XSpec(place).python else told["python"]
    given = build(attach=told["service"], idle=told.get("idle"), python=python)
    return XSpec(f"{place}//{given}")


def _end(args: argparse.Namespace, place: Place) -> tuple[dict[str, Any], list[str]]:
    """End a service; return its last state, and what was lost."""
    found = place.find(args.name, args.python)
    try:
        told = place.status(found)
        lost = admin.losses(told)
    except ServiceError as exc:
        told, lost = found[1], [f"its state, since it can't be asked: {exc}"]
    if lost and not args.force:
        text = "".join(f"\n  {one}" for one in lost)
        raise CommandError(f"this would be lost (--force ends it anyway):{text}", STATUS_FAILED)
    place.stop(found)
    return told, lost


def _logs(args: argparse.Namespace, place: Place) -> int:
    lines = place.log_lines(place.find(args.name, args.python))
    if args.json:
        _print_json(lines)
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return 0
