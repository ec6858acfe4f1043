"""``execnet clean`` ends workers with ``resume=`` that were reached through other gateways."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cut_links import CutLink, assert_gone, clean, program_with, supervisor_of
from processes import processes_with
from services import script
from tools import wait_until

from execnet import XSpec, _cli, _folders
from execnet._resume import records
from execnet._specs import Settings

PYTHON = f"python={sys.executable}"
BEYOND = f"ssh=host//{PYTHON}//via=hop//resume=600//grace=0.2"
JUMP = f"ssh=jump//{PYTHON}//id=hop"
WAYS = {
    "popen": ["popen//id=hop", BEYOND],
    "ssh": [JUMP, BEYOND],
    "two hops": [f"ssh=first//{PYTHON}//id=first", f"{JUMP}//via=first", BEYOND],
    "resume": [f"{JUMP}//resume=600//grace=0.2", BEYOND],
    "share": [f"{JUMP}//share=yes", f"{BEYOND}//share=yes"],
    "installvia": ["popen//id=hop", "socket//installvia=hop//resume=600//grace=0.2"],
    "installvia on the way": ["popen//id=first", "socket//installvia=first//id=hop", BEYOND],
}


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutLink:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return CutLink(tmp_path, is_apart=True)


def recorded() -> list[dict[str, Any]]:
    """Return what all records contain."""
    folder = Path(_folders.resume_folder())
    return [json.loads(path.read_text()) for path in folder.iterdir()]


def assert_nothing_runs() -> None:
    """All that inherited the PATH of this test has ended, or does so soon."""
    path = f"PATH={os.environ['PATH']}"
    wait_until(lambda: set(processes_with(path)) <= {os.getpid()})


@pytest.mark.parametrize("specs", WAYS.values(), ids=WAYS)
def test_a_worker_beyond_others_is_ended_when_its_program_was_killed(
    specs: list[str], link: CutLink
) -> None:
    with program_with(*specs) as (program, pid):
        supervisor = supervisor_of(pid)
        program.kill()
    assert len(list(records.left())) == 1 + ("resume" in specs[0])
    (hops,) = [told["hops"] for told in recorded() if told["spec"] == specs[-1]]
    assert hops == specs[:-1]
    clean()
    assert recorded() == []
    assert_gone(pid, supervisor)
    assert_nothing_runs()


def test_a_record_has_the_way_without_variables(link: CutLink) -> None:
    hop = "popen//id=hop//env:SECRET=x"
    with program_with(hop, f"{BEYOND}//env:OTHER=x") as (program, _):
        (told,) = recorded()
        assert (told["hops"], told["spec"]) == (["popen//id=hop"], BEYOND)
        program.communicate()
    assert recorded() == []
    assert_nothing_runs()


def test_a_hop_out_of_reach_is_told_and_the_record_stays(
    link: CutLink, capsys: pytest.CaptureFixture[str]
) -> None:
    with program_with(JUMP, BEYOND) as (program, pid):
        supervisor = supervisor_of(pid)
        link.go_down()
        program.kill()
    assert _cli.main(["clean"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("can't end worker gw0 of process ")
    assert f": {JUMP}, on the way there: " in said
    assert "Network is unreachable" in said
    assert len(list(records.left())) == 1
    link.go_up()
    clean()
    assert_gone(pid, supervisor)
    assert_nothing_runs()


def test_a_hop_that_does_not_answer_is_given_up(
    link: CutLink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with program_with(JUMP, BEYOND) as (program, pid):
        supervisor = supervisor_of(pid)
        program.kill()
    script(tmp_path / "ssh", "exec sleep 1000")
    with monkeypatch.context() as patch:
        patch.setattr(records, "LOGIN_S", 0.2)
        assert _cli.main(["clean"]) == 1
    told = f": {JUMP}, on the way there: hop1 could not be started: no answer in time (0.2 s)\n"
    assert capsys.readouterr().out.endswith(told)
    CutLink(tmp_path, is_apart=True)  # as before
    clean()
    assert_gone(pid, supervisor)
    assert_nothing_runs()


def test_a_dry_run_makes_no_gateway(link: CutLink, capsys: pytest.CaptureFixture[str]) -> None:
    with program_with(JUMP, BEYOND) as (program, _):
        program.kill()
    runs = link.runs()
    assert _cli.main(["clean", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(" would be ended\n")
    assert (link.runs(), len(recorded())) == (runs, 1)
    clean()
    assert_nothing_runs()


@pytest.mark.parametrize("lives", [True, False], ids=["the hop's host lives", "it is gone"])
def test_one_of_a_tree_is_ended_directly_if_the_worker_above_can_not_be_made_anew(
    lives: bool, link: CutLink, tmp_path: Path
) -> None:
    docker = script(tmp_path / "docker", 'shift 3; exec "$@"')
    above = f"docker=box//{PYTHON}"
    below = f"ssh=host//{PYTHON}//resume=600//grace=0.2"
    with program_with(above, below, fanout=1) as (program, pid):
        supervisor = supervisor_of(pid)
        program.kill()
    if not lives:
        script(docker, "echo no such container >&2; exit 1")
    clean()
    assert recorded() == []
    assert_gone(pid, supervisor)
    assert_nothing_runs()


@pytest.mark.parametrize("spec", ["listen=:0", "socketservice=a", "ssh=a//attach=b"])
def test_there_is_no_way_over_what_a_later_program_can_not_make(spec: str) -> None:
    alone = SimpleNamespace(starter=None, carrier=None)
    via = SimpleNamespace(settings=Settings(XSpec(spec)), endpoint=alone)
    beyond: Any = SimpleNamespace(starter=None, carrier=via)
    assert records.hops_to(beyond) is None
