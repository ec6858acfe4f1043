"""``kill=group`` where the worker leads a session already, and where another worker starts it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import is_running
from programs import STUBBORN
from services import Sshd
from socketservers import Servers
from tools import BOUND_S, wait_until

from execnet import Group
from execnet.gateway_base import ExecModel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
WITH_CHILD = "import subprocess; channel.send(subprocess.Popen(['sleep', '100']).pid)"


@pytest.fixture(params=["ssh", "ssh and a shell", "socket", "setsid", "docker"])
def leader(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A spec whose worker leads a session; but for "a shell", which does so instead of it."""
    if request.param.startswith("ssh"):
        sshd = Sshd(tmp_path / "sshd")
        python = "" if request.param == "ssh" else f"//python=sh -c '{sys.executable} \"$@\"' sh"
        yield f"ssh=loop//ssh_config={sshd.ssh_config}{python}"
        sshd.stop()
    elif request.param == "socket":
        with Servers(tmp_path) as servers:
            yield f"socket={servers.start('127.0.0.1:0').address}"
    elif request.param == "setsid":
        yield f"popen//python=setsid -w {sys.executable}"
    else:
        fake = tmp_path / "docker"
        fake.write_text('#!/bin/sh\nshift 3; exec setsid -w "$@"\n')
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        yield f"docker=box//python={sys.executable}"


@pytest.mark.parametrize("code", ["", STUBBORN])
def test_what_a_leader_has_started_ends_with_it(
    coordinator: ExecModel, leader: str, code: str
) -> None:
    group = Group([f"{leader}//kill=group//grace=0.1"])
    child = group[0].remote_exec(WITH_CHILD).receive(BOUND_S)
    if code:
        group[0].remote_exec(code).receive(BOUND_S)
    assert is_running(child)
    group.terminate(timeout=10)
    wait_until(lambda: not is_running(child))


@pytest.mark.parametrize("end", ["terminate", "kill", "stubborn"])
def test_that_of_a_worker_behind_another_goes_with_it(coordinator: ExecModel, end: str) -> None:
    with Group(["popen//id=between", "popen//via=between//kill=group//id=far"]) as group:
        child = group["far"].remote_exec(WITH_CHILD).receive(BOUND_S)
        if end == "kill":
            os.kill(group["far"]._rinfo().pid, signal.SIGKILL)
        elif end == "stubborn":
            group["far"].remote_exec(STUBBORN).receive(BOUND_S)
        if end != "kill":
            group["far"].exit()
            group.terminate(timeout=0.5)
        wait_until(lambda: not is_running(child))
