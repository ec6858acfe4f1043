"""A local factory and what reaches a place by other commands than ssh: containers, plug-ins."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from interpreters import far_sides
from processes import is_gone, stop
from services import STAND_INS, need, script
from services_more import Podman
from tools import BOUND_S, wait_until

import execnet
from execnet import Gateway, Group, service

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services")

NAMES = sorted(STAND_INS)
PYTHON = f"python={shlex.quote(sys.executable)}"
PARENT = "import os; channel.send(os.getppid())"
PLUG_IN = """
import os

def box(spec, words):
    with open({runs!r}, "a") as file:
        file.write("made in %d\\n" % os.getpid())
    return ["box", spec.box, *words]

box.options = "level",
box.serves_many = True

def once(spec, words):
    return ["box", spec.once, *words]
"""


@pytest.fixture
def bin(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the first one in the PATH."""
    bin = tmp_path / "bin"
    bin.mkdir()
    monkeypatch.setenv("PATH", f"{bin}:{Path(sys.executable).parent}", prepend=":")
    return bin


@pytest.fixture
def group(bin: Path, factory: Group) -> Group:
    return factory


def stand_in(bin: Path, name: str, before: str = "") -> None:
    """Make a command that reaches "box", and notes that it ran."""
    script(bin / name, f"{before}\necho {name} >>{bin}/runs\n{STAND_INS[name]}")


def runs(bin: Path) -> list[str]:
    return (bin / "runs").read_text().split()


def parent_of(gateway: Gateway) -> int:
    parent: int = gateway.remote_exec(PARENT).receive(BOUND_S)
    return parent


def kept() -> list[dict[str, object]]:
    told: list[dict[str, object]] = service.find("fac").status()["kept"]
    return told


@pytest.mark.parametrize("name", NAMES)
def test_many_gateways_in_a_container_cost_one_command(group: Group, bin: Path, name: str) -> None:
    stand_in(bin, name)
    gateways = group.makegateways([f"{name}=box//env:WORD=some word//chdir=/"] * 4)
    assert runs(bin) == [name]
    assert len({parent_of(gateway) for gateway in gateways}) == 1
    code = "import os; channel.send([os.environ['WORD'], os.getcwd()])"
    assert gateways[3].remote_exec(code).receive(BOUND_S) == ["some word", "/"]
    assert {gateway.remoteaddress for gateway in gateways} == {"box"}
    assert [one["host"] for one in kept()] == [f"{name}=box"]


@pytest.mark.parametrize(
    ("variable", "value"), [("DOCKER_HOST", "tcp://elsewhere"), ("KUBECONFIG", "/other")]
)
def test_what_a_command_finds_in_its_environment_keeps_connections_apart(
    group: Group, bin: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    stand_in(bin, "docker", f"echo ${variable}- >>{bin}/seen")
    group.makegateway("docker=box")
    monkeypatch.setenv(variable, value)
    group.makegateway("docker=box")
    group.makegateway("docker=box")
    assert (bin / "seen").read_text().split() == ["-", f"{value}-"]


def test_other_words_are_another_connection_and_process_keys_are_not(
    group: Group, bin: Path
) -> None:
    stand_in(bin, "kubectl")
    specs = ["kubectl=box", "kubectl=box//nice=1", "kubectl=box//namespace=a//chdir=/"]
    group.makegateways([*specs, "kubectl=box//namespace=a//container=b", "kubectl=box//env:A=b"])
    assert len(runs(bin)) == 3
    nice = group[0].remote_exec("import os; channel.send(os.nice(0))").receive(BOUND_S)
    more = group[1].remote_exec("import os; channel.send(os.nice(0))").receive(BOUND_S)
    assert min(nice + 1, 19) == more


@pytest.mark.parametrize("python", far_sides(), ids=str)
def test_the_interpreter_that_python_names_serves_the_connection_too(
    group: Group, bin: Path, python: object
) -> None:
    # There is no other one, and no shell.
    stand_in(bin, "docker", 'case "$4" in sh) echo "exec: sh: not found" >&2; exit 127; esac')
    path = shlex.quote(python.path)  # type: ignore[attr-defined]
    first, second = group.makegateways([f"docker=box//python={path}"] * 2)
    version = "import sys; channel.send(tuple(sys.version_info[:2]))"
    assert second.remote_exec(version).receive(BOUND_S) == python.version[:2]  # type: ignore[attr-defined]
    assert parent_of(first) == parent_of(second)
    assert runs(bin) == ["docker"]


def test_what_would_ask_fails_at_once_and_says_what_to_do(group: Group, bin: Path) -> None:
    asks = (
        'printf "%s" "$SSH_ASKPASS_REQUIRE" >asked; printf "Password: " >&2\n'
        'read answer </dev/tty || { echo "no answer" >&2; exit 1; }'
    )
    stand_in(bin, "kubectl", f"cd {bin}; {asks}")
    with pytest.raises(execnet.BootstrapError, match="works without a question") as caught:
        group.makegateway("kubectl='box' -n a")
    assert "see that 'kubectl exec -i box -n a -- true' works" in str(caught.value)
    assert (bin / "asked").read_text() == "never"
    assert kept() == []
    stand_in(bin, "kubectl")
    assert parent_of(group.makegateway("kubectl=box"))


def test_an_error_that_is_about_something_else_has_no_such_hint(group: Group, bin: Path) -> None:
    stand_in(bin, "docker")
    with pytest.raises(execnet.BootstrapError, match="No such container: missing") as caught:
        group.makegateway("docker=missing")
    assert "question" not in str(caught.value)


def test_what_a_worker_sent_before_its_end_comes_first(group: Group, bin: Path) -> None:
    stand_in(bin, "docker")
    gateway = group.makegateway("docker=box")
    code = (
        "for _ in range(30):\n channel.send(b'x' * 100_000)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    channel = gateway.remote_exec(code)
    for _ in range(30):
        assert channel.receive(BOUND_S) == b"x" * 100_000
    with pytest.raises(execnet.WorkerDied, match="SIGKILL"):
        channel.receive(BOUND_S)


def test_a_worker_that_is_stopped_is_killed(group: Group, bin: Path) -> None:
    stand_in(bin, "docker")
    gateway, other = group.makegateways(["docker=box"] * 2)
    pid = gateway._rinfo().pid
    stop(pid)
    gateway._io.kill()
    wait_until(lambda: is_gone(pid))
    wait_until(lambda: kept()[0]["users"] == 1)
    assert parent_of(other)


def test_sudo_and_srun_are_run_by_the_program_itself(group: Group, bin: Path) -> None:
    script(bin / "sudo", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    script(bin / "srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    group.makegateways([f"sudo=me//{PYTHON}", f"srun//{PYTHON}"])
    assert service.find_all() == []


class TestPlugIns:
    @pytest.fixture(autouse=True)
    def plug_in(self, bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A distribution that only this program has."""
        script(bin / "box", f'echo "$1" >>{bin}/runs; shift; exec "$@"')
        (tmp_path / "boxes_of_a_test.py").write_text(PLUG_IN.format(runs=str(bin / "made")))
        info = tmp_path / "boxes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boxes\nVersion: 1.0\n")
        points = "[execnet.transports]\nbox = boxes_of_a_test:box\nonce = boxes_of_a_test:once\n"
        (info / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "boxes_of_a_test", raising=False)

    def test_one_that_says_so_is_shared(self, group: Group, bin: Path) -> None:
        specs = [f"box=wood//level=3//{PYTHON}", f"box=wood//{PYTHON}", f"box=a'b c'//{PYTHON}"]
        first, second, third = group.makegateways(specs)
        assert parent_of(first) == parent_of(second) != parent_of(third)
        assert sorted(runs(bin)) == sorted(["wood", *["a'b", "c'"]])
        assert [gateway.remoteaddress for gateway in group] == ["wood", "wood", "a'b c'"]
        assert sorted(str(one["host"]) for one in kept()) == ["box=a'b c'", "box=wood"]
        made = set((bin / "made").read_text().splitlines())
        assert made == {f"made in {os.getpid()}"}  # the service has no such distribution

    def test_any_other_is_run_by_the_program(self, group: Group, bin: Path) -> None:
        group.makegateways([f"once=wood//{PYTHON}"] * 2)
        assert len(runs(bin)) == 2
        assert service.find_all() == []


class TestPodman:
    @pytest.fixture
    def podman(self, tmp_path: Path, nothing_is_left: None) -> Iterator[Podman]:
        podman = Podman(tmp_path)
        yield podman
        podman.stop()

    def test_a_real_container_is_entered_once(
        self, podman: Podman, group: Group, bin: Path
    ) -> None:
        real = need("podman", "podman")
        script(bin / "podman", f'echo podman >>{bin}/runs; exec {real} "$@"')
        gateways = group.makegateways([f"podman={podman.name}"] * 3)
        code = f"import os; channel.send((os.getppid(), os.path.exists({podman.mark!r})))"
        channels = [gateway.remote_exec(code) for gateway in gateways]
        answers = {channel.receive(BOUND_S) for channel in channels}
        assert len(answers) == 1
        assert answers.pop()[1]
        group.terminate(timeout=5)
        wait_until(lambda: kept()[0]["users"] == 0)
        group.makegateway(f"podman={podman.name}")
        assert runs(bin) == ["podman"]
