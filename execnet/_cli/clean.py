"""``execnet clean``: remove what processes of this user left in the folders of execnet.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import _folders
from .._service import admin
from .._specs import Settings
from .._transports import table
from ..gateway_base import get_execmodel
from ..gateway_io import Popen2IOMaster
from .session import STATUS_FAILED
from .words import Commands, add_command

if TYPE_CHECKING:
    from .._resume.ways import Way
    from .._transports.surroundings import Surroundings

_DESCRIPTION = """\
Remove what execnet left on this machine and nobody needs any more: sockets of ssh connections that
have ended, folders and logs of services that have ended, traces and temporary files of processes
that have ended, folders of workers with resume= that were killed. Keys stay. Workers with resume=
whose program is gone are ended, through a login to their host.
"""


def add_parser(subparsers: Commands) -> None:
    """Add the parser of this subcommand."""
    parser = add_command(subparsers, "clean", "remove what ended processes left", _DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    parser.add_argument("--json", action="store_true", help="print each path as a JSON object")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    status = 0
    found: list[tuple[str, str, Callable[[str], bool]]]
    found = [(path, what, _remove) for path, what in _folders.leftovers()]
    found += [(path, what, admin.remove) for path, what in admin.leftovers()]
    if sys.platform != "win32":  # where there is no resume=
        from .._resume import far_supervisor

        what = "the folder of a worker with resume= that was killed with its supervisor"
        found += [(path, what, far_supervisor.remove_left) for path in far_supervisor.left_behind()]
    for path, what, remove in found:
        error = None
        try:
            if not args.dry_run and not remove(path):
                continue  # somebody uses it again
        except OSError as exc:
            error, status = str(exc), STATUS_FAILED
        if args.json:
            told = {"path": str(path), "what": what, "error": error, "removed": not args.dry_run}
            print(json.dumps(told | ({"removed": False} if error else {})))
        elif error is not None:
            print(f"can't remove {path}: {error}")
        else:
            print(f"{'would remove' if args.dry_run else 'removed'} {path}: {what}")
    if sys.platform != "win32":  # where there is no resume=
        from .._resume import records

        statuses = [_end_worker(path, told, args) for path, told in records.left()]
        status = max([status, *statuses])
    return status


def _remove(path: str) -> bool:
    _folders.remove(path)
    return True


def _end_worker(path: str, told: dict[str, object], args: argparse.Namespace) -> int:
    """End a worker whose program is gone; return an exit status."""
    who = f"worker {told['worker']} of process {told['pid']} on {told['host']}"
    from .._resume import records

    error, what = None, "would be ended"
    try:
        if not args.dry_run:
            what = records.end(path, told, _maker_for)
    except (records.Unreachable, records.Refused, ValueError, OSError) as exc:
        error = str(exc)
    if args.json:
        found = {"path": path, "what": f"{who} {what}", "error": error}
        print(json.dumps(found | {"removed": not args.dry_run and error is None}))
    else:
        print(f"{who} {what}" if error is None else f"can't end {who}: {error}")
    return STATUS_FAILED if error is not None else 0


def _maker_for(settings: Settings, surroundings: Surroundings) -> Callable[[float], Way]:
    """Return what connects to the place of a spec, without a question, and returns its stream."""
    from .._resume import ways

    model = get_execmodel("thread")
    if settings.transport is None:
        maker = ways.over_socket(settings, model)
    else:
        command = table.command(settings.spec, row=settings.transport)
        maker = ways.over_command(command, model, Popen2IOMaster, surroundings)
    return lambda deadline: maker.anew(deadline, bool)
