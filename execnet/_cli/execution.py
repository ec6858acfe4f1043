"""Runs code or a program in workers, prints what it sends and prints, and reports how it ends.

The workers' halves are ``_cli.far_exec`` and ``_cli.far_run``.  Start at ``execute``.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from .._output.near import Output as ForwardedOutput
from .._rsync.result import printable_lines
from .._specs import Settings
from ..gateway import Gateway
from ..gateway_base import INTERRUPT_TEXT, Channel, ExecnetError, RemoteError, new_lock
from ..xspec import XSpec
from .session import STATUS_FAILED, Session, WatchedGroup, run_there

_END = object()


class PatientGroup(WatchedGroup):
    """A group whose workers wait for the reader of their output, as they would at a pipe.

    ``executions`` has the running code, by the id of its gateway.
    """

    def __init__(self, forwards: bool) -> None:
        super().__init__()
        self._forwards = forwards
        self.executions: dict[str, Execution] = {}
        self._output = ForwardedOutput(is_patient=True, on_end=self._on_end)
        self.on_output(self._on_line)

    def _prepare(self, spec: XSpec | str | None) -> Settings:
        if self._forwards and isinstance(spec, XSpec) and spec.output is None:
            vars(spec)["output"] = "forward"
        return super()._prepare(spec)

    def _on_line(self, gateway: Gateway, stream: str, line: str) -> None:
        self.executions[gateway.id].on_line(stream, line)

    def _on_end(self, gateway: Gateway) -> None:
        if gateway.id in self.executions:
            self.executions[gateway.id].on_end_of_lines()


class Printer:
    """Prints what workers send and print, each line after the gateway's id, or as JSON.

    Any thread may call.  On a terminal, control characters are escaped.
    """

    def __init__(self, session: Session, as_json: bool) -> None:
        self._session = session
        self._as_json = as_json
        self._is_safe = not (sys.stdout is not None and sys.stdout.isatty())

    def item(self, gateway: Gateway, item: object) -> None:
        if self._as_json:
            self._json(gateway, **_as_json(item))
        else:
            text = item if type(item) is str else repr(item)
            self._out(text, gateway)

    def line(self, gateway: Gateway, stream: str, line: str) -> None:
        if self._as_json:
            self._json(gateway, stream=stream, line=line)
        elif stream == "stdout":
            self._out(line, gateway)
        else:
            self.error(gateway, line)

    def error(self, gateway: Gateway, text: str) -> None:
        with suppress(OSError):  # the exit status says it
            self._session.err.write(printable_lines(text), f"[{gateway.id}] ")

    def end(self, gateway: Gateway, status: int, text: str | None, is_one_of_many: bool) -> None:
        """Print how it ended; a mere status is printed only if there are several workers."""
        if self._as_json:
            self._json(gateway, status=status, error=text)
        elif text is not None:
            self.error(gateway, text)
        elif status and is_one_of_many:
            self.error(gateway, f"exit status {status}")

    def _out(self, text: str, gateway: Gateway) -> None:
        self._write(text if self._is_safe else printable_lines(text), f"[{gateway.id}] ")

    def _json(self, gateway: Gateway, **found: object) -> None:
        self._write(json.dumps({"gateway": gateway.id, **found}), "")

    def _write(self, text: str, prefix: str) -> None:
        try:
            self._session.out.write(text, prefix)
        except OSError as exc:
            self._session.stdout_failed(exc)


def _as_json(item: object) -> dict[str, object]:
    """Return an item as JSON, or its repr if JSON can't express it."""
    try:
        text = json.dumps(item, allow_nan=False)
        if json.loads(text) == item:
            return {"item": item}
    except (TypeError, ValueError, RecursionError):
        pass
    return {"repr": repr(item)}


def execute(
    session: Session,
    group: PatientGroup,
    gateways: Sequence[Gateway],
    printer: Printer,
    begin: Callable[[Execution], object],
    begun: Callable[[], object] = int,
) -> int:
    """Run something in all workers until it ends everywhere; return the largest exit status.

    begin: starts it in a worker, on the execution's channel, whose items are printed.  begun:
    called when it has started in all of them.
    """
    session.pending.update(dict.fromkeys(gateway.id for gateway in gateways))
    for gateway in gateways:
        group.executions[gateway.id] = Execution(session, gateway, printer, len(gateways) > 1)
    executions = list(group.executions.values())
    for execution in executions:
        execution.start(begin)
    begun()
    for execution in executions:
        execution.ended.wait()
    return max(execution.status for execution in executions)


class Execution:
    """What runs in one worker; ``ended`` is set when nothing more will arrive from it.

    ``_take`` runs in the receiver thread of the gateway, which stops reading while it waits for
    the reader of our stdout; so a worker can't send faster than that.  Lines arrive in a thread of
    their own.  ``_lock`` guards which of the two has ended.
    """

    def __init__(
        self, session: Session, gateway: Gateway, printer: Printer, is_one_of_many: bool
    ) -> None:
        self.status = 0
        self.channel: Channel  # from ``start`` on
        self.ended = threading.Event()
        self.gateway = gateway
        self.on_item: Callable[[Any], object] = self._print
        self.on_over: Callable[[], object] = int  # called when the code has ended
        self._session = session
        self._printer = printer
        self._is_one_of_many = is_one_of_many
        self._report: Any = None
        self._has_said_something = False
        self._lock = new_lock()
        # A service forwards the lines of all of its clients, and they do not end with a program.
        ends_lines = gateway.settings.output == "forward" and not gateway.spec.socketservice
        self._awaited = {"code", "lines"} if ends_lines else {"code"}
        self._error: BaseException | None = None

    def start(self, begin: Callable[[Execution], object]) -> None:
        """Start it; report what goes wrong.

        The callback is set first: an item that was there before it would be printed by this thread,
        and while that waits for the reader of our stdout, nothing would hold up the worker.
        """
        try:
            self.channel = self.gateway.newchannel()
            self.channel.setcallback(self._take, endmarker=_END)
            begin(self)
        except OSError as exc:  # it died meanwhile
            self._on_end_of_code(self.gateway.end_error or exc)

    def send(self, code: ModuleType, what: str, **arguments: object) -> None:
        """Run a module of ours in the worker, on our channel.

        code: has a function ``run(channel, report, **arguments)``.  what: describes it in errors.
        """
        gateway = self.gateway
        report = gateway.newchannel()
        report.setcallback(self._take_report)
        run_there(gateway, what, code, self.channel, report=report, **arguments)

    def _take_report(self, report: object) -> None:
        self._report = report

    def _take(self, item: object) -> None:
        if item is _END:
            self._on_end_of_code(self._error_of_channel())
        else:
            self.on_item(item)

    def _print(self, item: object) -> None:
        self._has_said_something = True
        self._printer.item(self.gateway, item)

    def _error_of_channel(self) -> BaseException | None:
        try:
            self.channel.waitclose(0)  # it is closed, which is why we are here
        except (ExecnetError, EOFError) as exc:
            return exc
        return None

    def _on_end_of_code(self, error: BaseException | None) -> None:
        self._error = error
        self.on_over()
        if isinstance(error, RemoteError):  # our half there failed, and did not end the lines
            self._on_end("code", "lines")
        else:
            self._on_end("code")

    def on_line(self, stream: str, line: str) -> None:
        self._has_said_something = True
        self._printer.line(self.gateway, stream, line)

    def on_end_of_lines(self) -> None:
        self._on_end("lines")

    def _on_end(self, *kinds: str) -> None:
        with self._lock:
            if not self._awaited:
                return
            self._awaited.difference_update(kinds)
            if self._awaited:
                return
        text, lost = self._read_report()
        self._session.pending.pop(self.gateway.id, None)
        # Ctrl-C on a terminal reaches local workers as well, and their report may arrive first.
        if not self._session.stopping.wait(0.2 if text == INTERRUPT_TEXT else 0):
            self._printer.end(self.gateway, self.status, text, self._is_one_of_many)
            if lost is not None and not self._has_said_something:
                self._printer.error(self.gateway, _LOST % lost)
        self.ended.set()

    def _read_report(self) -> tuple[str | None, str | None]:
        """Note the exit status; return the text of an error, and a value that was lost."""
        error = self._error
        if error is not None:
            self.status = STATUS_FAILED
            return error.formatted if isinstance(error, RemoteError) else str(error), None
        try:
            status, text, lost = self._report
            self.status = int(status) & 0xFF
        except (TypeError, ValueError):
            self.status = STATUS_FAILED
            return "it did not report how it ended", None
        return text, lost


_LOST = """\
the code printed and sent nothing, so the value of its last line, %s, is lost
show it with print(...), or send it with channel.send(...)"""
