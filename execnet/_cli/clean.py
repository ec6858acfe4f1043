"""``execnet clean``: remove what ended processes of this user have left in the folders of execnet.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import _folders
from .._service import admin
from .session import STATUS_FAILED

_DESCRIPTION = """\
Remove what execnet has left on this machine and nobody needs any more: sockets of ssh connections
that have ended, folders and logs of services that have ended, traces and temporary files of
processes that have ended. Keys stay.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser of this subcommand."""
    parser = subparsers.add_parser(
        "clean",
        help="remove what ended processes have left",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    parser.add_argument("--json", action="store_true", help="print each path as a JSON object")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    status = 0
    for path, what in (*_folders.leftovers(), *admin.leftovers()):
        error = None
        try:
            if not args.dry_run:
                _folders.remove(path)
        except OSError as exc:
            error, status = str(exc), STATUS_FAILED
        if args.json:
            found = {"path": str(path), "what": what, "error": error, "removed": not args.dry_run}
            print(json.dumps(found | ({"removed": False} if error else {})))
        elif error is not None:
            print(f"can't remove {path}: {error}")
        else:
            print(f"{'would remove' if args.dry_run else 'removed'} {path}: {what}")
    return status
