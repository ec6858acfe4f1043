"""``execnet clean``: remove what processes of this user left in the folders of execnet.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .. import _folders, gateway_io
from .._service import admin
from .._specs import Settings
from .._transports import table
from ..gateway_base import get_execmodel, printable
from ..gateway_io import Popen2IOMaster
from ..multi import Group
from ..xspec import XSpec
from .session import STATUS_FAILED
from .words import Commands, add_command

if TYPE_CHECKING:
    from .._endpoint import Endpoint
    from .._resume.ways import Way
    from .._transports.surroundings import Surroundings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel

_DESCRIPTION = """\
Remove what execnet left on this machine and nobody needs any more: sockets of ssh connections that
have ended, folders and logs of services that have ended, traces and temporary files of processes
that have ended, folders of workers with resume= that were killed. Keys stay. Workers with resume=
whose program is gone are ended, through logins to their hosts.
"""

# Of gateways on the way to a worker, which run no code and are given up soon when they are silent.
_HOP_KEYS = dict.fromkeys(["via", "resume", "share", "output", "logging", "imports"])
_HOP_KEYS |= {"execmodel": "thread", "heartbeat": "5", "dead_after": "20"}


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
            with Group() as group:
                what = records.end(path, told, partial(_maker_for, group))
    except (records.Unreachable, records.Refused, ValueError, OSError) as exc:
        error = str(exc)
    if args.json:
        found = {"path": path, "what": f"{who} {what}", "error": error}
        print(json.dumps(found | {"removed": not args.dry_run and error is None}))
    else:
        print(f"{who} {what}" if error is None else f"can't end {who}: {error}")
    return STATUS_FAILED if error is not None else 0


def _maker_for(
    group: Group, settings: Settings, surroundings: Surroundings, hops: list[str]
) -> Callable[[float], Way]:
    """Return what connects to the place of a spec, without a question, and returns its stream.

    group: gets the gateways on the way, whose specs are ``hops``.
    """
    from .._resume import detours, records, ways

    model, via = get_execmodel("thread"), None
    try:
        for hop in hops:
            via = _make_hop(group, hop, via, surroundings)
    except records.Unreachable:
        # As for the program, there is another way in a tree, whose specs do not name theirs.
        if settings.spec.via or settings.spec.installvia or not detours.leads_anywhere(settings):
            raise
        via = None
    if via is not None and settings.spec.installvia:
        maker = ways.over_server_of(settings, model, via)
    elif via is not None:
        maker = ways.over_gateway(settings, model, via)
    elif settings.transport is None:
        maker = ways.over_socket(settings, model)
    else:
        command = table.command(settings.spec, row=settings.transport)
        maker = ways.over_command(command, model, Popen2IOMaster, surroundings)
    return lambda deadline: maker.anew(deadline, bool)


def _make_hop(group: Group, text: str, via: Gateway | None, surroundings: Surroundings) -> Gateway:
    """Make a gateway on the way to a worker anew, without a question and in bounded time.

    via: the one before it.  Raises ``Unreachable``.
    """
    from .._resume import records, ways
    from .._via.stream import create_io_over

    spec = XSpec(text)
    limit_s = f"{records.LOGIN_S:g}"
    vars(spec).update(_HOP_KEYS, id=f"hop{len(group) + 1}", connect_timeout=limit_s)
    if via is not None:
        vars(spec)["installvia" if spec.installvia else "via"] = via.id

    def through(settings: Settings, execmodel: ExecModel) -> Endpoint:
        if settings.transport is None:
            return gateway_io.create_io(spec, execmodel, group._find, settings)
        if via is None:
            return gateway_io.log_in_anew(settings, execmodel, surroundings)
        change, deadline = ways.command_of_login, settings.deadline()
        return create_io_over(settings, execmodel, via, None, change, deadline)

    try:
        return group._make_through(spec, through)
    except (OSError, EOFError, Warning) as exc:  # warnings may be errors
        text = str(exc).partition("\n")[0].partition("; ")[0]  # without advice
        said = getattr(exc, "stderr", "").strip().splitlines()[-1:]
        told = ": ".join([f"{spec.shown()}, on the way there", text, *map(printable, said)])
        raise records.Unreachable(told) from exc
