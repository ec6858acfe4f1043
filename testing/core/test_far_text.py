"""Text from a worker that is printed: none of its lines can be taken for another worker's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from execnet import RemoteError, XSpec, _cli
from execnet._cli import session, shell
from execnet._ends import death, failure, last_words
from execnet._output import logs
from execnet._specs import Settings

TEXT = "first\n[gw1] from another\n"
LOGGED = {name: 0 for name in logs._NUMBERS} | dict.fromkeys(logs.far_logs.TEXTS, "")


def fail(args: object) -> int:
    raise session.CommandError(TEXT, 1)


def run_command() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cli, "_parse", lambda argv: argparse.Namespace(command="x", run=fail))
        assert _cli._run([]) == 1


def not_started() -> str:
    io = SimpleNamespace(args=["ssh"], stderr_tail=lambda: TEXT)
    handshake = SimpleNamespace(noise=TEXT.encode(), hello={"error": TEXT})
    settings = Settings(XSpec("popen//id=gw0"))
    names = {"error": EOFError(), "in_time": True, "status": 1, "is_connecting": False}
    return str(failure.failure_of(io, settings, handshake, **names))  # type: ignore[arg-type]


def record() -> str:
    made = logs._record_of({**LOGGED, "message": TEXT, "exc_text": TEXT}, "gw0")
    return f"{made.getMessage()}\n  {made.exc_text}"


SHOWN: dict[str, Callable[[], str | None]] = {
    "an error that nobody fetched": RemoteError(TEXT).warn,
    "the trace of a crash": lambda: last_words.show(TEXT),
    "a death": lambda: str(death.worker_died("gw0", XSpec("popen"), 1, TEXT, TEXT, "")),
    "a start that failed": not_started,
    "a log record": record,
    "a command that fails": run_command,
    "a shell": lambda: shell.Writer(True, False).say(TEXT, "gw0"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_no_line_of_it_seems_to_come_from_another_worker(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    told = SHOWN[name]()
    shown = told or "".join(capfd.readouterr())
    assert "\n  [gw1] from another" in shown
    assert "\n[gw1]" not in shown
