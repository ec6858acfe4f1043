"""Errors within ``with``: the workers are interrupted at once, not after their grace."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import BOUND_S

from execnet import Group
from execnet.gateway_base import ExecModel

# Of a worker that is killed, or that may go on for its grace of 600 s, there is no last word.
CODE = """
import time
try:
    channel.send("up")
    time.sleep(600)
finally:
    print("cleaned up")
    open("cleaned-%s" % channel.gateway.id, "w").close()
"""


def fail_in_a_group(specs: list[str]) -> None:
    with Group(["popen//id=carrier"]) as group:
        for gateway in group.makegateways(specs):
            assert gateway.remote_exec(CODE).receive(BOUND_S) == "up"
        raise ZeroDivisionError


def fail_with_a_gateway(spec: str) -> None:
    with Group().makegateway(spec) as gateway:
        assert gateway.remote_exec(CODE).receive(BOUND_S) == "up"
        raise ZeroDivisionError


def test_of_a_group_interrupt_all_and_lose_no_output(
    coordinator: ExecModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = f"//output=forward//grace=600//chdir={tmp_path}"
    specs = [f"popen{common}", f"popen//via=carrier{common}"]
    with pytest.raises(ZeroDivisionError):
        fail_in_a_group(specs)
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(capfd.readouterr().out.splitlines()) == ["[gw0] cleaned up", "[gw1] cleaned up"]


def test_of_a_gateway_interrupt_it(coordinator: ExecModel, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_with_a_gateway(f"popen//grace=600//chdir={tmp_path}")
    assert len(list(tmp_path.iterdir())) == 1


def test_are_needed_for_that(coordinator: ExecModel) -> None:
    with Group(["popen"]) as group:
        code = "import time; channel.send(1); time.sleep(0.5); channel.send('finished')"
        channel = group[0].remote_exec(code)
        assert channel.receive(BOUND_S) == 1
    assert channel.receive(BOUND_S) == "finished"
