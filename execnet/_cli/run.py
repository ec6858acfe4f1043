"""``execnet run``: run a program on several hosts at once and print its output.

Start at ``_run``; how it runs in a worker is ``far_run``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading

from .._conditions import Condition
from ..gateway_base import Channel
from . import far_run
from .execution import Execution, PatientGroup, Printer, execute
from .session import CommandError, Session, supervise
from .words import SPEC_HELP, Commands, add_command, parse_specs, seconds

_USAGE = """\
execnet run SPEC... [--timeout SECONDS] [--stdin] [--json] -- COMMAND [ARGUMENT...]"""
_DESCRIPTION = f"""\
Start one interpreter per SPEC, all at once, have each run the COMMAND, and print its stdout and
stderr, each line after the id of its gateway.

{SPEC_HELP}
The COMMAND is a program and its arguments; that may be a shell: -- sh -c 'ls | wc -l'. Its input is
/dev/null, or with --stdin a copy of this command's.
"""
_EPILOG = """\
exit status:
  0    the COMMAND succeeded everywhere
  1    an interpreter could not be started, or died
  2    the command line is wrong: nothing was run
  N    the exit status of the COMMAND; of several, the largest
  124  the time-out has passed
  126  the COMMAND can't be run (127: it was not found)
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP), or 128 + N if signal N ended the COMMAND
  141  nobody reads the output any more
Whatever the status is, no worker is left. A COMMAND that is still running gets SIGTERM, and SIGKILL
2 seconds later; processes that it started are its own business.

examples:
  execnet run ssh=user@host docker=web -- uname -a
  execnet run 'ssh=node[01-16]' --timeout 60 -- sh -c 'uptime; df -h /'
  execnet run @hosts --stdin -- tar -xC /srv <site.tar
"""
_CHUNK_BYTES = 1 << 16
_AHEAD_BYTES = 1 << 20  # of our stdin that a program may have left unread


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet run``."""
    parser = add_command(
        subparsers,
        "run",
        "run a program on several hosts, print its output",
        _DESCRIPTION,
        _EPILOG,
        usage=_USAGE,
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="where to run")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="end everything after this time; default: wait until the program ends",
    )
    parser.add_argument("--stdin", action="store_true", help="send this command's stdin to each")
    parser.add_argument("--json", action="store_true", help="print each line as a JSON object")
    parser.set_defaults(run=_run, rest=[])


def _run(args: argparse.Namespace) -> int:
    if not args.rest:
        raise CommandError("no command: it comes after the specs and '--'")
    specs = parse_specs(args.words)
    if args.stdin and sys.stdin is None:
        raise CommandError("can't read stdin: it is closed")
    group = PatientGroup(forwards=True)
    inputs = _Inputs()

    def begin(execution: Execution) -> None:
        if args.stdin:
            channel = execution.channel
            inputs.add(channel)
            execution.on_item = lambda count: inputs.on_taken(channel, count)
            execution.on_over = lambda: inputs.drop(channel)
        command = [os.fsencode(word) for word in args.rest]
        what = shlex.join(args.rest)
        execution.send(far_run, what, command=command, has_input=args.stdin)

    def job(session: Session) -> int:
        gateways = group.start_all(specs)
        printer = Printer(session, args.json)
        return execute(session, group, gateways, printer, begin, inputs.start)

    return supervise("run", job, args.timeout, group)


class _Inputs:
    """Our stdin, copied to several programs; it is read as fast as the slowest one takes it.

    ``_changed`` guards ``_ahead``: how much each channel was sent and has not taken.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._ahead: dict[Channel, int] = {}

    def add(self, channel: Channel) -> None:
        self._ahead[channel] = 0

    def start(self) -> None:
        """Start reading, if any program wants it."""
        if self._ahead:
            threading.Thread(target=self._feed, daemon=True).start()

    def on_taken(self, channel: Channel, count: int) -> None:
        """Note that a program read some; runs in a receiver thread."""
        with self._changed:
            if channel in self._ahead:
                self._ahead[channel] -= count
            self._changed.notify_all()

    def drop(self, channel: Channel) -> None:
        """Forget a program that has ended."""
        with self._changed:
            self._ahead.pop(channel, None)
            self._changed.notify_all()

    def _feed(self) -> None:
        data = b"."
        while data and self._ahead:
            try:
                data = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
            except (OSError, ValueError):  # as if it were at its end
                data = b""
            for channel in list(self._ahead):
                self._send(channel, data)

    def _send(self, channel: Channel, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ahead.get(channel, 0) < _AHEAD_BYTES)
            if channel not in self._ahead:
                return
            self._ahead[channel] += len(data)
        try:
            channel.send(data)
        except OSError:
            self.drop(channel)
