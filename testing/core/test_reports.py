"""Callbacks that are told what happens to gateways: ``Group.on_state``, ``Group.on_respawn``."""

from __future__ import annotations

import threading

import pytest
from tools import BOUND_S, wait_until

from execnet._reports import Reporter


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_error_of_a_callback_is_written_and_the_next_call_is_made(
    nothing_is_left: None, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    told: list[object] = []

    def callback(gateway: object, state: str) -> None:
        told.append(state)
        if state == "lost":
            raise error("not today")

    reporter = Reporter(callback)
    for state in "lost", "resumed":
        reporter.tell(None, state)
    wait_until(lambda: told == ["lost", "resumed"])
    reporter.tell(None, "lost again")
    wait_until(lambda: told[2:] == ["lost again"])
    assert f"{error.__name__}: not today" in capsys.readouterr().err


def test_one_call_is_made_after_the_other_and_who_tells_does_not_wait(
    nothing_is_left: None,
) -> None:
    go, begun, told = threading.Event(), threading.Event(), []

    def callback(state: int) -> None:
        begun.set()
        go.wait(BOUND_S)
        told.append(state)

    reporter = Reporter(callback)
    for state in range(3):
        reporter.tell(state)
    assert begun.wait(BOUND_S)
    assert told == []
    go.set()
    wait_until(lambda: told == [0, 1, 2])
