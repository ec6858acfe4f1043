"""``Group.setlocalfactory``: one login for the gateways of many programs, kept by a service."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from interpreters import far_sides
from processes import is_running
from services import FakeSsh, free_port
from tools import BOUND_S, run_python, wait_until

import execnet
from execnet import Gateway, Group, aio, service
from execnet._cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

RUNS_HERE = 'for last; do :; done; pwd -P >>{folder}/places; exec sh -c "$last"'
SPEC = f"ssh=anywhere//python={shlex.quote(sys.executable)}"
PARENT = "import os; channel.send((os.getppid(), os.getpid()))"


@pytest.fixture
def ssh(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    """An ssh that runs the command here and notes the folder that it was run in."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}", prepend=":")
    ssh = FakeSsh(tmp_path)
    ssh(RUNS_HERE.format(folder=tmp_path))
    return ssh


@pytest.fixture
def factory(ssh: FakeSsh, factory: Group) -> Group:
    return factory


def kept() -> list[dict[str, object]]:
    told: list[dict[str, object]] = service.find("fac").status()["kept"]
    return told


def parent_of(gateway: Gateway) -> int:
    parent: int = gateway.remote_exec(PARENT).receive(BOUND_S)[0]
    return parent


def test_many_gateways_cost_one_login(factory: Group, ssh: FakeSsh) -> None:
    gateways = factory.makegateways([SPEC] * 8)
    assert len({parent_of(gateway) for gateway in gateways}) == 1
    assert len(ssh.runs()) == 1
    factory.terminate(timeout=5)
    again = factory.makegateway(SPEC)
    assert again.remote_exec("channel.send(channel.receive())").gateway is again
    assert len(ssh.runs()) == 1
    assert kept()[0]["users"] == 1


def test_gateways_of_a_loop_cost_one_login(ssh: FakeSsh) -> None:
    async def main() -> None:
        async with aio.Group() as group:
            group.setlocalfactory(name="fac")
            gateways = await group.makegateways([SPEC] * 4)
            parents = await asyncio.gather(*(gateway.call("os:getppid") for gateway in gateways))
            assert len(set(parents)) == 1
            channel = gateways[0].remote_exec("channel.send(channel.receive())")
            await channel.send(b"x" * 300_000)
            assert await channel.receive(BOUND_S) == b"x" * 300_000

    asyncio.run(main())
    assert len(ssh.runs()) == 1


def test_the_next_program_uses_the_login_of_the_first(factory: Group, ssh: FakeSsh) -> None:
    parent = parent_of(factory.makegateway(SPEC))
    program = (
        "import execnet, os, sys\n"
        "group = execnet.Group()\n"
        "group.setlocalfactory(name='fac')\n"
        "gateway = group.makegateway(sys.argv[1])\n"
        f"print(gateway.remote_exec({PARENT!r}).receive()[0])\n"
    )
    # It has to have the same variables, as any of them may say how a host is reached.
    result = run_python(program, SPEC)
    assert result.stderr == ""
    assert len(ssh.runs()) == 2
    assert int(result.stdout) != parent
    assert run_python(program, SPEC).stdout == result.stdout
    assert len(ssh.runs()) == 2


@pytest.mark.parametrize("what", ["variable", "folder", "words"])
def test_who_reaches_a_host_in_another_way_logs_in_anew(
    factory: Group, ssh: FakeSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir("/")
    factory.makegateway(SPEC)
    spec = SPEC
    if what == "variable":
        monkeypatch.setenv("SSH_AUTH_SOCK", "/elsewhere")
    elif what == "folder":
        monkeypatch.chdir(tmp_path)
    else:
        spec = SPEC.replace("anywhere", "-p 23 anywhere")
    factory.makegateway(spec)
    assert len(ssh.runs()) == len(kept()) == 2
    places = (tmp_path / "places").read_text().split()
    assert places == ["/", str(tmp_path.resolve()) if what == "folder" else "/"]


def test_what_ssh_would_ask_fails_at_once_and_says_what_to_do(factory: Group, ssh: FakeSsh) -> None:
    ssh(
        'case "$*" in *BatchMode=yes*) ;; *) exit 1; esac\n'
        'echo "me@x: Permission denied (publickey)." >&2; exit 255'
    )
    with pytest.raises(execnet.BootstrapError, match="works without a question") as caught:
        factory.makegateways([SPEC] * 3)
    assert "ssh anywhere true" in str(caught.value)
    assert kept() == []
    ssh(RUNS_HERE.format(folder="/tmp"))
    assert parent_of(factory.makegateway(SPEC))


def test_a_login_is_given_up_when_nobody_has_used_it_for_long(ssh: FakeSsh) -> None:
    with Group() as group:
        group.setlocalfactory(name="fac", idle=0.1)
        parent = parent_of(group.makegateway(SPEC))
        assert is_running(parent)
        group.terminate(timeout=5)
        wait_until(lambda: kept() == [] and not is_running(parent))


def test_a_login_that_is_used_again_and_again_costs_no_more_threads(factory: Group) -> None:
    def use() -> None:
        factory.makegateway(SPEC)
        factory.terminate(timeout=5)
        wait_until(lambda: kept()[0]["users"] == 0)

    use()
    wait_until(lambda: not service.find("fac").status()["clients"])
    before = service.find("fac").status()["threads"]
    for _ in range(6):
        use()
    # Threads that have nothing to do stay for the next piece of work, and one or two more of
    # them are there after two pieces overlapped.
    wait_until(lambda: service.find("fac").status()["threads"] <= before + 2)


def test_popen_is_made_here_as_before(factory: Group) -> None:
    assert parent_of(factory.makegateway("popen")) == os.getpid()
    assert service.find_all() == []


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_other_pythons_over_there(factory: Group, python: object) -> None:
    spec = f"ssh=anywhere//python={shlex.quote(python.path)}"  # type: ignore[attr-defined]
    version = "import sys; channel.send(tuple(sys.version_info[:2]))"
    gateway = factory.makegateway(spec)
    assert gateway.remote_exec(version).receive(BOUND_S) == python.version[:2]  # type: ignore[attr-defined]


class TestEnds:
    def test_of_a_worker_leaves_the_others(self, factory: Group) -> None:
        dies, stays = factory.makegateways([SPEC] * 2)
        channel = dies.remote_exec("channel.receive()")
        os.kill(dies._rinfo().pid, signal.SIGKILL)
        with pytest.raises(execnet.WorkerDied, match="SIGKILL"):
            channel.receive(BOUND_S)
        assert parent_of(stays)

    def test_of_the_program_ends_its_workers_and_not_the_login(
        self, factory: Group, ssh: FakeSsh
    ) -> None:
        factory.makegateway(SPEC)
        program = (
            "import execnet, os, sys, signal\n"
            "group = execnet.Group()\n"
            "group.setlocalfactory(name='fac')\n"
            "gateway = group.makegateway(sys.argv[1])\n"
            "print(gateway._rinfo().pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        pid = int(run_python(program, SPEC).stdout)
        wait_until(lambda: not is_running(pid))
        assert run_python(program, SPEC).stdout
        assert len(ssh.runs()) == 2

    @pytest.mark.parametrize("which", ["service", "login"])
    def test_of_what_carries_it_is_worker_died_and_the_next_is_made_anew(
        self, factory: Group, ssh: FakeSsh, which: str
    ) -> None:
        gateway = factory.makegateway(SPEC)
        channel = gateway.remote_exec("channel.receive()")
        pid = service.find("fac").status()["pid"] if which == "service" else parent_of(gateway)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(execnet.WorkerDied):
            channel.receive(BOUND_S)
        assert parent_of(factory.makegateway(SPEC)) != pid
        assert len(ssh.runs()) == 2


def test_the_service_may_have_a_port_and_tells_of_its_logins_before_it_stops(
    ssh: FakeSsh, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with Group() as group:
        group.setlocalfactory(port=port)
        assert len({parent_of(group.makegateway(SPEC)) for _ in range(2)}) == 1
    assert len(ssh.runs()) == 1
    assert main(["service", "stop", str(port)]) == 1
    assert "the connection to anywhere" in capsys.readouterr().err
    assert service.find(str(port)).status()["kept"]


@pytest.mark.parametrize("more", [{"port": 0}, {"port": 99999}, {"name": "a b"}])
def test_what_is_no_service_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="socketservice"):
        Group().setlocalfactory(**more)  # type: ignore[arg-type]
