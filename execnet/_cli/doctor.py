"""``execnet doctor``: start a worker in stages, and find out which one fails, and why.

Start at ``_run``; the stages are in ``examine``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .._rsync.result import printable_lines
from .examine import ExaminedGroup, Findings, Stage, examine
from .session import STATUS_FAILED, Session, supervise
from .words import SPEC_HELP, add_command, parse_specs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .words import Subparsers

_DESCRIPTION = f"""\
Start an interpreter for each SPEC, one after the other, in stages: look up the name of the host,
connect to it, log in, start the shell and the interpreter, send it the worker's source, wait for
its hello, measure a round trip and the throughput. Print how long each stage takes. For a stage
that fails, print what was run, what came back, and what to try.

{SPEC_HELP}"""
_EPILOG = """\
There is one login for each SPEC. A shell on the far side prints a word when the login is over, so a
place without "sh" fails at the stage "shell". A SPEC with via=ID comes after the one with id=ID.

exit status:
  0    all stages of all SPECs succeeded
  1    a stage failed
  2    the command line is wrong: nothing was started
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)

examples:
  execnet doctor ssh=user@host
  execnet doctor ssh=jump//id=jump ssh=inner//via=jump
  execnet doctor docker=web//python=python3.12 --json
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``execnet doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        "find out why a worker can't be started, or is slow to start",
        _DESCRIPTION,
        _EPILOG,
        usage="execnet doctor SPEC... [--json]",
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="what to start")
    parser.add_argument("--json", action="store_true", help="print an object for each SPEC")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    specs = parse_specs(args.words)
    group = ExaminedGroup()

    def job(session: Session) -> int:
        is_fine = True
        for spec in specs:
            found = examine(group, spec)
            is_fine &= found.ok
            try:
                session.out.write(_as_json(found) if args.json else _as_text(found))
            except OSError as exc:
                session.stdout_failed(exc)
        return 0 if is_fine else STATUS_FAILED

    return supervise("doctor", job, group=group)


def _as_json(found: Findings) -> str:
    return json.dumps({"ok": found.ok, **asdict(found)})


def _as_text(found: Findings) -> str:
    lines = [found.spec, *map(_line_of, found.stages)]
    lines += [f"  note    {note}" for note in found.notes]
    if not found.ok:
        answer = found.answer or found.stages[-1].text
        for title, text in [("run", found.command), ("got", answer), ("try", found.advice)]:
            first, *rest = printable_lines(text).split("\n")
            lines += (
                [f"  {title:7} {first}", *(f"          {line}" for line in rest)] if text else []
            )
    return "\n".join(lines)


def _line_of(stage: Stage) -> str:
    duration = "" if stage.ms is None else f"{stage.ms:.1f} ms"
    text = "" if stage.state == "failed" else stage.text  # it is reported below
    return f"  {stage.state:7} {stage.name:12} {duration:>11}  {text}".rstrip()
