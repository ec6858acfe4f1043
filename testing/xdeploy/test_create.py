"""Environments are made once, found again, and never taken half made."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from services import script
from tools import (
    BOUND_S,
    Interpreter,
    MakeGateway,
    interpreters,
    run_all,
    some_of,
    threads,
    wait_until,
)
from wheels import Place, make_wheel, place_with_wheels, use_no_index, version_of

from execnet import Gateway, Group, xdeploy
from execnet._ship import parts
from execnet._xdeploy import create, quick
from execnet._xdeploy.answers import Answers
from execnet._xdeploy.far import places
from execnet._xdeploy.kept import kept
from execnet._xdeploy.making import Making, Options
from execnet._xdeploy.output import Output
from execnet._xdeploy.requirements import Wanted

SENT = f"popen//python={sys.executable}"  # its worker does not import our modules
Shared = tuple[Place, Gateway, Gateway]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A place, a gateway, and one into an environment that no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        use_no_index(patch)
        place = place_with_wheels(tmp_path_factory.mktemp("shared"))
        group = Group()
        gateway = group.makegateway()
        made = place.create(gateway)
        wait_until(lambda: "execnet-heartbeat" in {thread.name for thread in threads()}, BOUND_S)
        yield place, gateway, made
        group.terminate(timeout=5)


def cores(place: Place) -> list[Path]:
    """Return what is kept for the next workers."""
    return [path for path in place.root.glob("core/*") if path.suffix != ".new"]


def is_compiled(worker: Gateway, part: str) -> bool:
    """Whether a worker was not sent the source of a module of ours."""
    code = """
        import sys
        base = sys.modules[channel.__class__.__module__]
        channel.send(type(base._sent_parts[channel.receive()][1]) is bytes)
        """
    channel = worker.remote_exec(code)
    channel.send(part)
    found: bool = channel.receive(BOUND_S)
    return found


def venv_of(gateway: Gateway) -> xdeploy.Venv:
    venv: xdeploy.Venv = gateway.venv  # type: ignore[attr-defined]
    return venv


class TestMaking:
    def test_the_worker_is_the_environments_in_its_folder(self, shared: Shared) -> None:
        place, _, made = shared
        venv = venv_of(made)
        assert venv == xdeploy.Venv("proj", venv.key, venv.path, venv.python, "unpack", True)
        code = "import sys, os; channel.send((sys.prefix, os.getcwd()))"
        assert made.remote_exec(code).receive(BOUND_S) == (venv.path, venv.path)
        assert venv.path.startswith(f"{place.root}/venvs/proj-")
        assert version_of(made, "tom") == "2.0"
        script = made.remote_exec("import os; channel.send(os.popen('bin/sid').read())")
        assert script.receive(BOUND_S) == "sid\n"

    def test_it_is_private_and_nothing_else_is_left(self, shared: Shared) -> None:
        place, _, made = shared
        folders = [place.root, place.root / "venvs", Path(venv_of(made).path).parent]
        assert [path.stat().st_mode & 0o077 for path in folders] == [0, 0, 0]
        assert place.venvs() == ["1", "1.done", "1.held"]

    def test_a_second_call_installs_nothing(
        self, shared: Shared, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place, gateway, made = shared
        monkeypatch.setattr(create, "Making", None)
        assert wait_until(lambda: cores(place), BOUND_S)
        monkeypatch.setattr(create._Job, "_find", None)  # one step finds and starts
        again = place.create(gateway)
        try:
            assert venv_of(again) == dataclasses.replace(venv_of(made), is_new=False)
            assert (again.spec.python, again.spec.chdir) == (made.spec.python, made.spec.chdir)
            code = "import sys, os; channel.send((sys.prefix, os.getcwd(), sys.argv))"
            path = venv_of(made).path
            assert again.remote_exec(code).receive(BOUND_S) == (path, path, ["-c"])
        finally:
            again.exit()
            again.join(BOUND_S)

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")
    def test_a_worker_inherits_no_descriptor(self, shared: Shared) -> None:
        place, gateway, _ = shared
        assert wait_until(lambda: cores(place), BOUND_S)
        code = """
            import os
            opened = os.open(os.path.realpath(os.devnull), os.O_RDONLY)
            os.dup2(opened, 77, inheritable=True)
            channel.send(None)
            channel.receive()
            os.close(77), os.close(opened)
            """
        channel = gateway.remote_exec(code)
        channel.receive(BOUND_S)
        again = place.create(gateway)
        try:
            code = "import os; channel.send(os.path.exists('/proc/self/fd/77'))"
            assert not again.remote_exec(code).receive(BOUND_S)
        finally:
            channel.send(None)
            channel.waitclose(BOUND_S)
            again.exit()
            again.join(BOUND_S)

    def test_other_wishes_are_another_environment(self, place: Place, gateway: Gateway) -> None:
        made = [place.create(gateway, wish) for wish in ["tom==1.0", "tom"]]
        assert [version_of(one, "tom") for one in made] == ["1.0", "2.0"]

    def test_a_pip_that_is_sent_does_it_where_python_has_none(
        self, place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_no_index(monkeypatch, ["venv --without-pip"])
        lines: list[str] = []
        made = place.create(gateway, on_output=lines.append)
        assert venv_of(made).tool == "venv --without-pip"
        assert version_of(made, "tom") == "2.0"
        assert any(line.startswith("Successfully installed sid") for line in lines)

    def test_what_is_done_goes_to_the_logger(
        self, place: Place, gateway: Gateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "execnet.xdeploy"):
            place.create(gateway, "tom")
        assert "unpacking tom-2.0-py2.py3-none-any.whl" in caplog.messages

    def test_two_at_once_make_one(self, place: Place, makegateway: MakeGateway) -> None:
        gateways = [makegateway() for _ in range(2)]
        for number in range(some_of(20, 0.05)):
            calls = [partial(place.create, gateway, name=f"proj{number}") for gateway in gateways]
            run_all(calls)
            assert [path.name for path in place.root.glob(f"venvs/proj{number}-*/*.done")] == [
                "1.done"
            ]


@pytest.mark.parametrize("answer", [None, {}, {"found": True}, "path"])
def test_a_far_side_that_lies_gets_no_gateway(
    answer: Any, place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer == "path":
        answer = dict.fromkeys(create.ANSWERED | {"venv", "python", "tool"}, "a//b")
    started = gateway._group.makegateway()  # type: ignore[union-attr]
    monkeypatch.setattr(quick, "start", lambda *_: (started, answer, gateway.newchannel()))
    with pytest.raises(xdeploy.DeployError, match=r"protocol|no spec can say"):
        place.create(gateway)
    started.join(BOUND_S)


@pytest.mark.parametrize(
    "said", [None, (), ("x",), ("line",), ("need", "pip", 1), ("need", "x", 1), ("failed", 1)]
)
def test_a_far_side_that_breaks_the_protocol_is_told_so(
    said: Any, place: Place, gateway: Gateway
) -> None:
    making = Making(gateway, "it", Wanted(), Options(), Output(None))
    with pytest.raises(xdeploy.DeployError, match="broke the protocol"):
        making._handle(gateway.newchannel(), said, Answers(gateway.newchannel(), making._sources))


def test_an_error_of_the_users_own_function_is_that(place: Place, gateway: Gateway) -> None:
    def fail(line: str) -> None:
        raise ValueError(line)

    making = Making(gateway, "it", Wanted(), Options(), Output(fail))
    answers = Answers(gateway.newchannel(), making._sources)
    with pytest.raises(ValueError, match="mine"):
        making._handle(gateway.newchannel(), ("line", "mine"), answers)


def test_a_terminal_shows_the_step_until_all_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Output(None) as output:
        output.step("making it\x1b[2J")
        output.line("what an installer prints")
    with Output(lambda line: None) as output:
        output.step("whoever takes the lines shows them")
    assert capsys.readouterr().err == "\r\x1b[Kexecnet: making it\\x1b[2J ...\r\x1b[K"


class TestWhatIsKeptOfWorkers:
    """Two files: what finds an environment and starts its worker, and what that is made of."""

    def test_the_next_call_sends_neither(
        self, place: Place, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        project = tmp_path / "project"
        project.mkdir()
        (project / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
        place.create(makegateway(SENT), ())
        assert len(cores(place)) == 2
        gateway = makegateway(SENT)
        made = place.create(gateway, ())
        xdeploy.SetupFile(project).sync_remote(made, root=str(place.root))
        for worker, part in [(gateway, "_xdeploy.far.start"), (made, "_rsync.far.target")]:
            assert is_compiled(worker, part)
            assert {source for _, _, source in parts.sent_parts(worker, part)} == {None}
        place.create(gateway, ())  # it is loaded by now

    @pytest.mark.parametrize("fault", ["broken start", "broken core", "open to others"])
    def test_a_bad_one_is_not_used_and_replaced(
        self, fault: str, place: Place, makegateway: MakeGateway
    ) -> None:
        place.create(makegateway(SENT), ())
        start, core = sorted(cores(place), key=lambda path: path.stat().st_size)
        good = start.read_bytes(), core.read_bytes()
        if fault == "open to others":
            start.chmod(0o666)
            core.chmod(0o666)
        else:
            (core if "core" in fault else start).write_bytes(b"x")
        assert not venv_of(place.create(makegateway(SENT), ())).is_new
        assert (start.read_bytes(), core.read_bytes()) == good
        assert {path.stat().st_mode & 0o777 for path in (start, core)} == {0o600}

    def test_the_first_code_runs_in_the_main_thread(self, place: Place, gateway: Gateway) -> None:
        code = (
            "import threading as t; channel.send(t.current_thread() is t.main_thread())\n"
            "channel.receive()"
        )
        for worker in place.create(gateway, ()), gateway:
            channel = worker.remote_exec(code)
            assert channel.receive(BOUND_S)
            channel.send(None)

    def test_a_worker_made_of_it_is_killed_as_any_other(self, place: Place, group: Group) -> None:
        gateway = group.makegateway()
        place.create(gateway, ())
        wait_until(lambda: cores(place), BOUND_S)
        killed = place.create(gateway, ())
        killed.remote_exec("import os; os.kill(os.getpid(), 9)")
        killed.join(BOUND_S)
        wait_until(lambda: killed.exitcode == -9, BOUND_S)
        made = place.create(gateway, ())
        channel = made.remote_exec(
            "import os, re\nchannel.send(os.getpid())\nre.match('(a+)+b', 'a' * 100)"
        )
        pid = channel.receive(BOUND_S)
        group.terminate(timeout=0.1)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), BOUND_S)


class TestMakingAgain:
    def test_whoever_uses_the_old_one_keeps_it(self, place: Place, gateway: Gateway) -> None:
        made = place.create(gateway)
        again = place.create(gateway, recreate=True)
        assert venv_of(again).path != venv_of(made).path
        assert version_of(made, "sid") == version_of(again, "sid") == "1.0"
        assert place.venvs() == ["1", "1.done", "1.held", "2", "2.done", "2.held"]
        for one in made, again:
            one.exit()
            one.join(BOUND_S)
        wait_until(
            lambda: not any(e.state == "used" for e in kept(gateway, str(place.root))), BOUND_S
        )
        make_wheel(place.wheels, "tom", "3.0")
        assert version_of(place.create(gateway, refresh=True), "tom") == "3.0"
        assert place.venvs() == ["3", "3.done", "3.held"]

    def test_without_its_marker_it_is_not_used(self, place: Place, gateway: Gateway) -> None:
        made = place.create(gateway, ())
        Path(venv_of(made).path + ".done").unlink()
        assert venv_of(place.create(gateway, ())).path.endswith("/2")

    def test_one_whose_interpreter_does_not_run_is_made_again(
        self, place: Place, gateway: Gateway
    ) -> None:
        python = Path(venv_of(place.create(gateway, ())).python)
        python.unlink()
        again = place.create(gateway, ())
        assert venv_of(again).is_new
        python = Path(venv_of(again).python)
        python.unlink()
        script(python, "exit 1")
        assert venv_of(place.create(gateway, ())).is_new


class TestFailures:
    def test_a_requirement_that_is_not_there_leaves_nothing(
        self, place: Place, gateway: Gateway
    ) -> None:
        with pytest.raises(xdeploy.DeployError, match="no pure wheel of nobody"):
            place.create(gateway, "sid nobody")
        assert place.venvs() == []
        assert version_of(place.create(gateway), "sid") == "1.0"

    def test_a_wheel_with_a_hostile_name_is_refused(self, place: Place, gateway: Gateway) -> None:
        make_wheel(place.wheels, "evil", files={"../../../../evil.py": ""})
        with pytest.raises(xdeploy.DeployError, match="hostile name"):
            place.create(gateway, "evil")
        assert not list(place.root.rglob("evil.py"))
        assert place.venvs() == []

    def test_where_nothing_can_be_written_the_error_says_so(
        self, place: Place, gateway: Gateway
    ) -> None:
        with pytest.raises(xdeploy.DeployError, match="/proc/nowhere"):
            place.create(gateway, root="/proc/nowhere")

    def test_a_folder_that_others_can_write_to_is_not_used(
        self, place: Place, gateway: Gateway
    ) -> None:
        place.create(gateway, ())
        for folder in place.root, next(place.root.glob("venvs/*")):
            folder.chmod(0o777)
            with pytest.raises(xdeploy.DeployError, match="other users"):
                place.create(gateway, ())
            folder.chmod(0o700)

    def test_no_tool_at_all_tells_what_each_lacked(
        self, place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_no_index(monkeypatch, ["virtualenv"])
        with pytest.raises(xdeploy.DeployError, match="virtualenv: it is only for Python"):
            place.create(gateway)

    def test_the_secret_of_an_index_stays_here(self, place: Place, gateway: Gateway) -> None:
        url = "http://sid:geheim@127.0.0.1:1/simple"
        lines: list[str] = []
        with pytest.raises(xdeploy.DeployError) as caught:
            place.create(gateway, "nobody", offline="auto", index_url=url, on_output=lines.append)
        assert "geheim" not in str(caught.value) + "".join(lines + caught.value.lines)

    @pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
    def test_a_name_is_a_name(self, place: Place, gateway: Gateway, name: str) -> None:
        with pytest.raises(ValueError, match="not the name of an environment"):
            place.create(gateway, name=name)


class TestPython:
    def test_a_version_is_looked_for(self, place: Place, gateway: Gateway) -> None:
        version = "{}.{}.{}".format(*sys.version_info)
        wanted = f"pypy{version[:4]}" if sys.implementation.name == "pypy" else version
        made = place.create(gateway, (), python=wanted)
        assert made._rinfo().version_info[:3] == sys.version_info[:3]

    def test_one_that_is_not_there_is_an_error(self, place: Place, gateway: Gateway) -> None:
        with pytest.raises(xdeploy.DeployError, match=r"no Python '3\.99'"):
            place.create(gateway, python="3.99")


@pytest.mark.parametrize("python", [p for p in interpreters() if p.version[:2] <= (3, 6)], ids=str)
def test_old_pythons_understand_what_they_are_sent(
    python: Interpreter, place: Place, makegateway: MakeGateway
) -> None:
    gateway = makegateway(python.spec)
    if python.version < (3,):
        with pytest.raises(xdeploy.DeployError, match="neither on Python 2"):
            place.create(gateway)
        assert place.venvs() == []
    else:
        assert version_of(place.create(gateway), "tom") == "2.0"


def test_what_an_interpreter_says_makes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from execnet._xdeploy.far import find

    facts = find.facts_of(None)
    assert facts[:2] == [sys.implementation.name, "{}.{}.{}".format(*sys.version_info)]
    assert facts == find.facts_of(sys.executable)
    digest = "0" * 64
    assert find.key_of(facts, digest) != find.key_of([*facts[:1], "3.99.0", *facts[2:]], digest)
    assert places.is_key(find.key_of(facts, digest))
