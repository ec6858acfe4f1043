"""``execnet join``: be a worker of a group that listens.

It does the same as the line of ``Group.join_command``; the coordinator sends the worker's code.
Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys

from .._errors import AuthenticationError
from .._join.command import KEY_VARIABLE, Ticket, ticket_of
from .._transports.keys import client_key
from ..script.socketserver import key_of
from .session import STATUS_FAILED, CommandError
from .words import add_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .words import Subparsers

PODS = 100_000  # the most that an Indexed Job of Kubernetes can have
_DESCRIPTION = f"""\
Connect to a program that has called Group.listen(), and be a worker of its group until it ends.
ADDRESS is what listen() returned, HOST:PORT//fingerprint=...; only a program with that certificate
is accepted. The key is in a FILE that nobody else can read, "-" for a line of stdin;
without --key it is the variable {KEY_VARIABLE}, which code in the worker does not see, or
~/.execnet/key.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of this subcommand."""
    parser = add_command(subparsers, "join", "be a worker of a program that listens", _DESCRIPTION)
    parser.add_argument("address", metavar="ADDRESS", help="what Group.listen() returned")
    parser.add_argument("--key", metavar="FILE", help='the file of the key, "-" for stdin')
    parser.add_argument(
        "--via", metavar="HOST:PORT", help="connect to this instead, such as a relay"
    )
    parser.add_argument(
        "--print-kubernetes-job",
        nargs=2,
        metavar=("IMAGE", "N"),
        help="print a manifest for N such workers, for kubectl, and do nothing else",
    )
    parser.add_argument(
        "--print-command",
        action="store_true",
        help="print a command that joins where only a Python is installed, and do nothing else",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        ticket = ticket_of(args.address).through(args.via)
        if args.print_kubernetes_job:
            print(_manifest(ticket, *args.print_kubernetes_job))
            return 0
        if args.print_command:
            print(ticket.command(args.key, "~/.execnet/key", "python3"))
            return 0
        code = ticket.code('globals().pop("KEY")')
    except ValueError as exc:
        raise CommandError(str(exc)) from exc
    return _join(code, _key(args.key))


def _manifest(ticket: Ticket, image: str, count: str) -> str:
    """Return a Job of Kubernetes, as JSON, whose pods join; ValueError for a bad number."""
    if not count.isascii() or not count.isdigit() or not 0 < int(count) <= PODS:
        raise ValueError(f"{count!r} is not a number of workers from 1 to {PODS}")
    secret = {"secretKeyRef": {"name": "execnet-key", "key": "key"}}
    container = {
        "name": "worker",
        "image": image,
        "command": shlex.split(ticket.command(f"env:{KEY_VARIABLE}", None, "python3")),
        "env": [{"name": KEY_VARIABLE, "valueFrom": secret}],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "execnet-"},
        "spec": {
            "completionMode": "Indexed",
            "completions": int(count),
            "parallelism": int(count),
            "template": {"spec": {"restartPolicy": "OnFailure", "containers": [container]}},
        },
    }
    return json.dumps(job, indent=2)


def _join(code: str, key: bytes) -> int:
    try:
        exec(compile(code, "<execnet join>", "exec"), {"__name__": "__main__", "KEY": key.hex()})
    except SystemExit as exc:
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
            return STATUS_FAILED
        return int(exc.code or 0)
    return 0


def _key(path: str | None) -> bytes:
    text = os.environ.pop(KEY_VARIABLE, None)
    try:
        if path == "-":
            return key_of(sys.stdin.readline().encode("ascii", "replace"))
        if path is None and text is not None:
            return key_of(text.encode("ascii", "replace"))
        key = client_key(path)
    except (AuthenticationError, ValueError) as exc:
        raise CommandError(str(exc)) from exc
    if key is None:
        raise CommandError(f"no key: give --key FILE, or set {KEY_VARIABLE}")
    return key
