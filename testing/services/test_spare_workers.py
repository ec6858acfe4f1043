"""A kept login starts the next worker in advance, which then is one like any other."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from interpreters import IS_THOROUGH, Interpreter, found
from processes import children_of, is_gone
from services import FakeSsh, script
from tools import BOUND_S, wait_until

import execnet
from execnet import Gateway, Group
from execnet._service import factory as service_factory
from execnet._transports.table import popen_bootstrapline
from execnet._via import far_spare, spare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

IDS = "import os; channel.send((os.getppid(), os.getpid()))"
LOADED = "import sys; channel.send(sorted(name for name in sys.modules if 'execnet' in name))"


@pytest.fixture
def ssh(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    """An ssh that runs the command here, where ``python3`` is the one of the tests."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}", prepend=":")
    ssh = FakeSsh(tmp_path)
    ssh('for last; do :; done; exec sh -c "$last"')
    return ssh


@pytest.fixture
def group(ssh: FakeSsh, factory: Group) -> Group:
    return factory


def ids_of(gateway: Gateway) -> tuple[int, int]:
    """Return the process ids of a gateway's login and of its worker."""
    channel = gateway.remote_exec(IDS)
    login, worker = channel.receive(BOUND_S)
    channel.waitclose(BOUND_S)  # its main thread is free then
    return login, worker


def start(group: Group, spec: str = "ssh=anywhere") -> tuple[Gateway, bool]:
    """Start a worker; return its gateway, and whether its process was there before."""
    login, _ = ids_of(group[0] if group else group.makegateway(spec))
    before = children_of(login)
    gateway = group.makegateway(spec)
    return gateway, ids_of(gateway)[1] in before


def started_in_advance(group: Group, spec: str = "ssh=anywhere") -> Gateway:
    """Return the first gateway whose worker was there before it was asked for."""
    found: list[Gateway] = []
    if not group:
        group.makegateway(spec)

    def is_found() -> bool:
        wait_for_spare(group)  # none is begun while others start; it may not be ready yet
        gateway, was_there = start(group, spec)
        found.append(gateway)
        return was_there

    wait_until(is_found)
    return found[-1]


def wait_for_spare(group: Group) -> int:
    """Return the process id of the one that waits, once all others are workers."""
    login, _ = ids_of(group[0])
    workers = {ids_of(gateway)[1] for gateway in group}
    others: set[int] = set()

    def is_one() -> bool:
        others.clear()
        others.update(children_of(login) - workers)
        return len(others) == 1

    wait_until(is_one)
    return others.pop()


def test_a_worker_that_was_there_before_is_like_any_other(group: Group) -> None:
    channel = group.makegateway("ssh=anywhere").remote_exec(LOADED)
    usual = set(channel.receive(BOUND_S))
    gateway = started_in_advance(group, "ssh=anywhere//chdir=/usr//env:MARK=here")
    code = (
        "import os, sys, threading\n"
        "is_main = threading.current_thread() is threading.main_thread()\n"
        "channel.send((sys.argv, os.getcwd(), os.environ['MARK'], is_main))"
    )
    assert gateway.remote_exec(code).receive(BOUND_S) == (["-c"], "/usr", "here", True)
    loaded = set(gateway.remote_exec(LOADED).receive(BOUND_S))
    assert {name for name in loaded - usual if "._features" not in name} == set()
    waiting = gateway.remote_exec("channel.receive()")
    os.kill(ids_of(gateway)[1], signal.SIGKILL)
    with pytest.raises(execnet.WorkerDied, match="SIGKILL"):
        waiting.receive(BOUND_S)


def test_hooks_of_the_interpreter_that_came_later_are_not_missed(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    started_in_advance(group)
    wait_for_spare(group)
    (folder / "sitecustomize.py").write_text("import sys\nsys.from_the_hook = 1\n")
    code = "import sys; channel.send(getattr(sys, 'from_the_hook', 0))"
    assert group.makegateway("ssh=anywhere").remote_exec(code).receive(BOUND_S) == 1


def test_a_path_file_changes_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(tmp_path / "missing.zip")])
    seen = [far_spare.facts()]
    for text in "/one", "/one\n/two":
        (tmp_path / "more.pth").write_text(text)
        os.utime(tmp_path, (1, 1))  # as where the folder's own time is too coarse
        seen.append(far_spare.facts())
    assert seen[0] != seen[1] != seen[2]
    assert seen[2] == far_spare.facts()


def test_what_differs_is_started_anew(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    group.makegateway("ssh=anywhere")
    pid = wait_for_spare(group)
    assert not start(group, "ssh=anywhere//dont_write_bytecode")[1]  # another command
    with monkeypatch.context() as patch:
        patch.setattr(service_factory, "source_key_of", lambda settings: b"another")
        assert not start(group)[1]  # the program would send other source
    assert pid in children_of(ids_of(group[0])[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert not start(group)[1]
    started_in_advance(group)


def test_it_ends_with_the_login(group: Group) -> None:
    login, _ = ids_of(group.makegateway("ssh=anywhere"))
    pid = wait_for_spare(group)
    os.kill(login, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))


PYTHONS = found() if IS_THOROUGH else sorted({found()[0], found()[-1]})


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_other_pythons_have_one_ready(group: Group, tmp_path: Path, python: Interpreter) -> None:
    script(tmp_path / "python3", f'exec {shlex.quote(python.path)} "$@"')
    code = "import sys; channel.send((tuple(sys.version_info[:2]), 6 * 7))"
    assert started_in_advance(group).remote_exec(code).receive(BOUND_S) == (python.version[:2], 42)


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_it_executes_a_line_of_another_kind(python: Interpreter) -> None:
    line = zlib.decompress(spare.packed_line()).decode("ascii")
    code = "import sys; print([name for name in sys.modules if name.startswith('_execnet')])"
    for second, said in (f"{code!r}\n", "[]\n"), ("", ""):
        result = subprocess.run(
            [python.path, "-u", "-c", popen_bootstrapline],
            input=line + second, capture_output=True, text=True, timeout=BOUND_S, check=True,
        )  # fmt: skip
        assert (result.stdout, result.stderr) == (said, "")
