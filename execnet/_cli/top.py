"""``execnet top``: a live view of what workers do.

The worker's half is ``far_top``.  Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .._rsync.result import printable
from ..gateway import Gateway
from ..gateway_base import ExecnetError
from . import far_top
from .session import STATUS_FAILED, Session, WatchedGroup, run_there, supervise
from .words import SPEC_HELP, Commands, add_command, parse_specs, seconds

_DESCRIPTION = f"""\
Start an interpreter for each SPEC, and keep showing what its process does: whether it answers, its
share of a processor, its memory, the load of its machine, how many items and bytes it receives and
sends per second, how many items wait for its code, which code it executes and since when that has
been seen, and how it ended. This is most useful for a service, whose process was running before:
socketservice=NAME.

{SPEC_HELP}"""
_EPILOG = """\
On a terminal the view is redrawn each time; a digit shows the stacks of that row's threads, any
other key goes back, and q quits. Elsewhere a line is printed for each worker each time.

exit status:
  0    it was ended with q, or by --count
  1    a worker could not be started, or none is left
  2    the command line is wrong: nothing was started
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)

examples:
  execnet top socketservice=work 'ssh=node[1-4]'
  execnet top ssh=host --count 1 --json
"""
_TITLES = (
    *("", "id", "state", "pid", "cpu %", "MB", "load", "in kB/s", "out kB/s"),
    *("in items/s", "out items/s", "unread", "executes"),
)
_RATES = ("cpu", "in_bytes", "out_bytes", "in_items", "out_items")  # what is told per second
# What a worker reports, checked, and what is shown of it: numbers and texts, None for unknown ones.
Report = dict[str, Any]
_CLEAR = "\x1b[H\x1b[2J"
_STACKS_S = 5.0


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet top``."""
    parser = add_command(
        subparsers,
        "top",
        "show what workers are doing",
        _DESCRIPTION,
        _EPILOG,
        usage="execnet top SPEC... [--interval SECONDS] [--count N] [--json]",
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="what to watch")
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="SECONDS", help="time between updates (2)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after this many updates")
    parser.add_argument("--json", action="store_true", help="print each row as a JSON object")
    parser.set_defaults(run=_run)


class Watched:
    """One worker, and its last report; ``_take`` runs in a receiver thread."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.id = gateway.id
        self.has_ended = False
        self._last: Report = {}
        self._before: Report = {}
        self._answered = threading.Event()
        self._is_asked = False
        self._channel = run_there(gateway, "execnet top", far_top)
        self._channel.setcallback(self._take, endmarker=None)

    def ask(self) -> None:
        """Ask for a report, unless the last question is still unanswered."""
        if self.has_ended or (self._is_asked and not self._answered.is_set()):
            return
        self._is_asked = True
        self._answered.clear()
        if self.has_ended:  # just now
            self._answered.set()
        with suppress(OSError):
            self._channel.send(None)

    def look(self, timeout_s: float) -> Report:
        """Return a row: the last report, after a wait for the answer."""
        has_answered = self._answered.wait(timeout_s)
        state = "ended" if self.has_ended else "live" if has_answered else "silent"
        told, before = self._last, self._before
        row: Report = {"gateway": self.id, "state": state, "pid": told.get("pid")}
        rates = {name: _rate(name, told, before) for name in _RATES}
        cpu = rates.pop("cpu")
        row["cpu_percent"] = None if cpu is None else round(cpu * 100, 1)
        for name, rate in rates.items():
            row[f"{name}_s"] = None if rate is None else round(rate)
        row.update(memory_bytes=told.get("memory") and int(told["memory"]), load=told.get("load"))
        row["unread_items"] = told.get("unread")
        row.update(executes=told.get("tasks") or [], last_words=None)
        if state == "ended":
            row["last_words"] = str(self.gateway.end_error)
        return row

    def _take(self, item: object) -> None:
        if item is None:
            self.has_ended = True
        else:
            with suppress(TypeError, ValueError, KeyError, OverflowError):
                self._before, self._last = self._last, _checked(item)
        self._answered.set()


def _rate(name: str, told: Report, before: Report) -> float | None:
    """Return by how much a number has grown per second; None if that is not known."""
    with suppress(KeyError, TypeError, ZeroDivisionError):
        rate: float = (told[name] - before[name]) / (told["now"] - before["now"])
        return rate if math.isfinite(rate) else None
    return None


def _checked(item: Any) -> Report:
    """Return a worker's report, as numbers and texts; raises if it is malformed."""
    found: Report = {
        name: None if item[name] is None else float(item[name])
        for name in (*_RATES, "now", "memory", "load")
    }
    found.update(pid=int(item["pid"]), unread=int(item["unread"]))
    found["tasks"] = [[printable(str(place)), float(age_s)] for place, age_s in item["tasks"]]
    return found


def _run(args: argparse.Namespace) -> int:
    specs = parse_specs(args.words)
    group = WatchedGroup()
    is_drawn = not args.json and sys.stdout.isatty() and sys.stdin.isatty()

    def job(session: Session) -> int:
        watched = [Watched(gateway) for gateway in group.start_all(specs)]
        view = View(session, watched, is_drawn, args.json)
        looks = 0
        while args.count is None or looks < args.count:
            view.show(args.interval)
            looks += 1
            if all(one.has_ended for one in watched):
                return STATUS_FAILED
            if looks != args.count and view.wait(args.interval):
                break
        return 0

    with _keys_at_once(is_drawn):
        return supervise("top", job, group=group)


@contextmanager
def _keys_at_once(is_wanted: bool) -> Iterator[None]:
    """Read keys without waiting for the return key, and without echo."""
    if not is_wanted:
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class View:
    """Prints rows; on a terminal in place of the previous ones, with keys for a closer look."""

    def __init__(
        self, session: Session, watched: Sequence[Watched], is_drawn: bool, as_json: bool
    ) -> None:
        self._session = session
        self._watched = watched
        self._is_drawn = is_drawn
        self._as_json = as_json

    def show(self, interval_s: float) -> None:
        """Ask all workers, and print their reports."""
        for one in self._watched:
            one.ask()
        until = time.monotonic() + interval_s
        rows = [one.look(max(0.0, until - time.monotonic())) for one in self._watched]
        if self._as_json:
            self._write("\n".join(map(json.dumps, rows)))
        elif self._is_drawn:
            cells = [_TITLES, *(_cells(number, row) for number, row in enumerate(rows, 1))]
            self._draw([*_aligned(cells), "", "1-9: stacks, q: quit"])
        else:
            self._write("\n".join(" ".join(_line(row)) for row in rows))

    def wait(self, interval_s: float) -> bool:
        """Wait until the next update, and act on keys; return whether to quit."""
        if not self._is_drawn:
            return self._session.stopping.wait(interval_s)
        key = self._key(interval_s)
        if key.isdigit() and 0 < int(key) <= len(self._watched):
            try:
                text = self._watched[int(key) - 1].gateway.dump_stacks(_STACKS_S)
            except (ExecnetError, OSError, EOFError) as exc:
                text = str(exc)
            self._draw([*text.expandtabs().split("\n"), "any key: back"])
            key = self._key(None)
        return key == "q"

    def _key(self, timeout_s: float | None) -> str:
        if not select.select([0], [], [], timeout_s)[0]:
            return ""
        return os.read(0, 1).decode("ascii", "replace") or "q"

    def _draw(self, lines: Sequence[str]) -> None:
        width, height = shutil.get_terminal_size()
        shown = [printable(line)[: width - 1] for line in lines][-height + 1 :]
        self._write(_CLEAR + "\n".join(shown))

    def _write(self, text: str) -> None:
        try:
            self._session.out.write(text)
        except OSError as exc:
            self._session.stdout_failed(exc)


def _cells(number: int, row: Report) -> tuple[str, ...]:
    tasks = [f"{place} ({_number(seconds, 0)} s)" for place, seconds in row["executes"]]
    megabytes = None if row["memory_bytes"] is None else row["memory_bytes"] / 1e6
    cells = (
        *(number if number < 10 else "", row["gateway"], row["state"], row["pid"] or "-"),
        *(_number(row["cpu_percent"], 0), _number(megabytes, 1), _number(row["load"], 2)),
        *(_kilobytes(row["in_bytes_s"]), _kilobytes(row["out_bytes_s"])),
        *(_number(row[name], 0) for name in ("in_items_s", "out_items_s", "unread_items")),
        row["last_words"] or ", ".join(tasks) or "-",
    )
    return tuple(printable(str(cell)) for cell in cells)


def _line(row: Report) -> list[str]:
    """Return the words of a line for output that is not a terminal."""
    _, id, *values, task = _cells(0, row)
    return [
        f"[{id}]",
        *(f"{name}={value}" for name, value in zip(_NAMES, values, strict=True)),
        task,
    ]


_NAMES = ("state", "pid", "cpu", "mb", "load", "in", "out", "in_items", "out_items", "unread")


def _kilobytes(bytes_per_s: float | None) -> str:
    return _number(None if bytes_per_s is None else bytes_per_s / 1000, 1)


def _number(value: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
