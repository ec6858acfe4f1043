"""``execnet info``: start workers and print a table that describes them.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .._rsync.result import printable
from .._specs import Settings
from ..gateway import Gateway
from ..gateway_base import ExecnetError
from ..xspec import XSpec
from .session import STATUS_FAILED, CommandError, Session, WatchedGroup, supervise
from .words import SPEC_HELP, add_command, parse_specs

if TYPE_CHECKING:
    from ..gateway_bootstrap import Through
    from .words import Subparsers

_DESCRIPTION = f"""\
Start one interpreter per SPEC, all at once, and print a table: the id and the spec of the gateway,
the interpreter's Python version, implementation and platform, its process id and working
directory, how long it took to start and how long a round trip takes, both in milliseconds.

{SPEC_HELP}"""
_EPILOG = """\
Interpreters that start together on one machine slow each other down: give one SPEC to see how long
one takes alone. The round trip is the median of up to 21 round trips of an int, measured for one
gateway after the other.

exit status:
  0    the table is complete
  1    an interpreter could not be started, or died
  2    the command line is wrong: nothing was started
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)

examples:
  execnet info popen
  execnet info '2*popen' popen//python=python3.12//id=new
  execnet info ssh=jump//id=jump ssh=inner//via=jump
"""

_COLUMNS = (
    *("id", "spec", "python", "implementation", "platform"),
    *("pid", "cwd", "start ms", "trip ms"),
)
_NUMBERS = frozenset(["pid", "start ms", "trip ms"])

_ECHO = "while 1: channel.send(channel.receive())"
_WARM_UP = 3
_ROUND_TRIPS = 21
_ENOUGH_S = 0.5  # no further round trips to a gateway after this long
_ANSWER_S = 30.0  # how long a round trip may take


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``execnet info``."""
    parser = add_command(
        subparsers,
        "info",
        "print a table of interpreters: version, platform, time to start, ...",
        _DESCRIPTION,
        _EPILOG,
        usage="execnet info SPEC... [--json]",
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="what to start")
    parser.add_argument("--json", action="store_true", help="print each row as a JSON object")
    parser.set_defaults(run=_run)


class _TimedGroup(WatchedGroup):
    """Notes in ``start_s``, by id, how long each worker takes until it says hello."""

    def __init__(self) -> None:
        super().__init__()
        self.start_s: dict[str, float] = {}
        self._stopwatches: list[threading.Thread] = []

    def _start(
        self, settings: Settings, find: Callable[[str], Gateway], through: Through | None
    ) -> Gateway:
        begin = time.perf_counter()
        gateway = super()._start(settings, find, through)
        stopwatch = threading.Thread(target=self._note_hello, args=(gateway, begin), daemon=True)
        stopwatch.start()
        self._stopwatches.append(stopwatch)
        return gateway

    def _note_hello(self, gateway: Gateway, begin: float) -> None:
        gateway.handshake.answered.wait()
        self.start_s[gateway.id] = time.perf_counter() - begin

    def start_all(self, specs: Sequence[XSpec]) -> list[Gateway]:
        gateways = super().start_all(specs)
        for stopwatch in self._stopwatches:
            stopwatch.join()
        return gateways


def _run(args: argparse.Namespace) -> int:
    specs = parse_specs(args.words)
    group = _TimedGroup()

    def job(session: Session) -> int:
        gateways = group.start_all(specs)
        rows = [_describe(gateway, group.start_s[gateway.id]) for gateway in gateways]
        try:
            session.out.write(_format_json(rows) if args.json else format_table(rows))
        except OSError as exc:
            session.stdout_failed(exc)
        return 0

    return supervise("info", job, group=group)


def _describe(gateway: Gateway, start_s: float) -> tuple[str, ...]:
    """Return the cells of a row; ``CommandError`` if the worker does not answer."""
    info = gateway._rinfo()
    try:
        trip_s = _measure_round_trip(gateway)
    except (ExecnetError, EOFError, OSError) as exc:
        raise CommandError(f"{gateway.id} does not answer: {exc}", STATUS_FAILED) from exc
    cells = (
        gateway.id,
        gateway.spec.shown(),
        _format_version(info.version_info),
        str(vars(info).get("implementation", "?")),
        str(info.platform),
        str(info.pid),
        str(info.cwd),
        f"{start_s * 1e3:.1f}",
        f"{trip_s * 1e3:.3f}",
    )
    return tuple(map(printable, cells))  # most of it comes from the far side


def _format_version(version: Sequence[object]) -> str:
    """Return ``3.15.0a2`` for ``(3, 15, 0, "alpha", 2)``."""
    number = ".".join(str(part) for part in version[:3])
    if version[3] == "final":
        return number
    return f"{number}{ {'alpha': 'a', 'beta': 'b'}.get(str(version[3]), 'rc') }{version[4]}"


def _measure_round_trip(gateway: Gateway) -> float:
    """Return the median time, in seconds, for an int to travel there and back."""
    channel = gateway.remote_exec(_ECHO)
    durations: list[float] = []
    stop = time.perf_counter() + _ENOUGH_S
    for number in range(_WARM_UP + _ROUND_TRIPS):
        begin = time.perf_counter()
        channel.send(number)
        channel.receive(_ANSWER_S)
        end = time.perf_counter()
        durations.append(end - begin)
        if end > stop and number >= _WARM_UP:
            break
    channel.close()
    return statistics.median(durations[_WARM_UP:])


def _format_json(rows: Sequence[Sequence[str]]) -> str:
    """Return one object per line; its names are the titles of the columns."""
    names = [title.replace(" ", "_") for title in _COLUMNS]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for row in found:
        row.update({name: json.loads(row[name]) for name in ("pid", "start_ms", "trip_ms")})
    return "\n".join(map(json.dumps, found))


def format_table(found: Sequence[Sequence[str]], columns: Sequence[str] = _COLUMNS) -> str:
    """Return lines with aligned columns, numbers to the right."""
    rows = [columns, *found]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if title in _NUMBERS else cell.ljust(width)
            for cell, width, title in zip(row, widths, rows[0], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
