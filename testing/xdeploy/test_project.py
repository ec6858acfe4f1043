"""A project of this machine over there: built once, in a layer of one gateway, or as a tree."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, IS_THOROUGH, Interpreter, MakeGateway, interpreters, wait_until
from uvs import uv_folder
from wheels import Place, make_wheel

from execnet import Gateway, RemoteError, xdeploy
from execnet._xdeploy import project as project_module
from execnet._xdeploy.far import layers, use

THOROUGH = pytest.mark.skipif(not IS_THOROUGH, reason="slow tools, for a thorough run")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project ``mine`` that needs tom, with its sources in ``src``."""
    folder = tmp_path / "mine"
    write(folder / "src/mine/__init__.py", "version = '1'\n")
    write(
        folder / "pyproject.toml",
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "Mine"\nversion = "1.0"\ndependencies = ["tom"]\n',
    )
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ask(gateway: Gateway, expression: str) -> Any:
    return gateway.remote_exec(f"import mine; channel.send({expression})").receive(BOUND_S)


class TestBuilding:
    def test_it_is_built_once_per_content(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("build")
        setup = xdeploy.SetupFile(project / "pyproject.toml", isolated=False)
        lines: list[str] = []
        wheel = setup.wheel(lines.append)
        assert wheel.name == "mine-1.0-py3-none-any.whl"
        assert lines[-1].endswith(f"Successfully built {wheel.name}")
        assert setup.wheel(pytest.fail) == wheel  # what building has left in the tree is no content

        def build(command: list[str], _: object) -> None:
            make_wheel(Path(command[5]), "mine", "2.0")

        monkeypatch.setattr(project_module, "_run", build)
        write(project / "src/mine/more.py", "")
        assert setup.wheel().name == "mine-2.0-py2.py3-none-any.whl"
        (project / "src/mine/more.py").unlink()
        assert setup.wheel() == wheel

    def test_what_fails_is_an_error_with_its_lines(self, project: Path) -> None:
        pytest.importorskip("build")
        write(project / "pyproject.toml", "[project]\nname = 1\n")
        with pytest.raises(xdeploy.DeployError) as caught:
            xdeploy.SetupFile(project, isolated=False).wheel()
        assert (caught.value.step, caught.value.status) == ("building", 1)
        assert caught.value.lines

    def test_a_folder_without_a_project_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no project"):
            xdeploy.SetupFile(tmp_path)


class TestLayers:
    @pytest.fixture
    def install(self, place: Place, project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return a function that installs a version of the project."""
        setup = xdeploy.SetupFile(project)

        def install(
            gateway: Gateway, version: str, needs: str = "tom", tool: str = "unpack"
        ) -> str:
            monkeypatch.setattr(project_module, "LADDER", [tool])
            files = {"mine/__init__.py": f"version = {version!r}"}
            wheel = make_wheel(project / version, "mine", version, [needs], files)
            monkeypatch.setattr(setup, "wheel", lambda _: wheel)
            links = place.wheels
            return setup.wheel_remote_install(
                gateway, offline=True, find_links=links, root=str(place.root)
            )

        return install

    def test_a_layer_is_for_one_gateway_and_its_children(
        self, install: Any, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, other = makegateway(), makegateway()
        folder = install(mine, "1")
        assert ask(mine, "mine.__file__") == f"{folder}/mine/__init__.py"
        code = (
            "import sys, os; channel.send(os.popen(sys.executable + ' -c \"import tom\"').close())"
        )
        assert mine.remote_exec(code).receive(BOUND_S) is None
        with pytest.raises(RemoteError, match="No module named"):
            ask(other, "1")
        monkeypatch.setattr(project_module, "Making", None)  # it is found again
        assert install(other, "1") == folder
        assert ask(other, "mine.version") == "1"

    def test_another_content_is_another_layer(self, install: Any, gateway: Gateway) -> None:
        first = install(gateway, "1")
        assert ask(gateway, "mine.version") == "1"
        second = install(gateway, "2")
        assert ask(gateway, "mine.version") == "2"
        assert install(gateway, "1") == first != second
        assert ask(gateway, "mine.version") == "1"
        code = "import sys; channel.send([path for path in sys.path if 'layers' in path])"
        assert gateway.remote_exec(code).receive(BOUND_S) == [first]

    @pytest.mark.parametrize(
        "tool",
        [
            "unpack",
            pytest.param("a pip that is sent", marks=THOROUGH),
            pytest.param("uv", marks=THOROUGH),
        ],
    )
    def test_a_layer_leaves_out_what_the_environment_has(
        self, install: Any, place: Place, gateway: Gateway, tool: str,
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
    ) -> None:  # fmt: skip
        if tool == "uv":
            folder = uv_folder(tmp_path_factory)
            gateway = request.getfixturevalue("makegateway")(f"popen//env:PATH={folder}")
        worker = place.create(gateway, "tom==1.0")
        venv: xdeploy.Venv = worker.venv  # type: ignore[attr-defined]
        first = install(worker, "1", tool=tool)
        assert ask(worker, "[mine.version, __import__('tom').version]") == ["1", "1.0"]
        assert not Path(first, "tom.py").exists()
        second = install(worker, "2", "tom>=2", tool)  # which the environment lacks
        assert Path(second, "tom.py").read_text().startswith("version = '2.0'")
        assert install(worker, "1", tool=tool) == first
        other = place.create(gateway, "tom==1.0", recreate=True)
        assert install(other, "1", tool=tool) != first
        assert venv.path not in ask(other, "__import__('sys').path")

    @THOROUGH
    @pytest.mark.parametrize(
        "python", [p for p in interpreters() if p.version[:2] <= (3, 6)], ids=str
    )
    def test_an_old_pip_takes_what_is_sent(
        self, install: Any, makegateway: MakeGateway, python: Interpreter
    ) -> None:
        worker = makegateway(python.spec)
        install(worker, "1", tool="pip")
        assert ask(worker, "mine.version") == "1"

    @pytest.mark.parametrize(
        ("said", "missing"),
        [
            (
                "Resolved 3 packages\nWould install 2 packages\n + a-b==1.0+c\n + d @ http://e/d.whl",
                [("a-b", "1.0+c", None), ("d", None, "http://e/d.whl")],
            ),
            (
                "Would install 1 package\n - d==0\n + d==1 (from http://e/d.whl)",
                [("d", "1", "http://e/d.whl")],
            ),
            ("Would make no changes", []),
            ("Would install 2 packages\n + a==1", None),
            (" + a==1", None),
        ],
    )
    def test_what_uv_would_install_is_read(self, said: str, missing: object) -> None:
        assert layers.missing_of_uv(said.split("\n")) == missing


class TestTrees:
    def test_what_has_changed_is_there_at_once(
        self, project: Path, place: Place, gateway: Gateway
    ) -> None:
        write(project / "build/lib/mine.py", "")
        sync = xdeploy.SetupFile(project).sync_remote(gateway, root=str(place.root))
        assert ask(gateway, "mine.version") == "1"
        for version in "234":  # within one second, of one size
            write(project / "src/mine/__init__.py", f"version = '{version}'\n")
            assert sync.once() == 1
            assert ask(gateway, "mine.version") == version
        assert sync.once() == 0
        (project / "src/mine/__init__.py").unlink()
        assert sync.once() == 1
        assert not list(place.root.rglob("__init__.py")) + list(place.root.rglob("build"))

    def test_a_change_is_seen_by_a_worker_that_has_just_started(
        self, project: Path, place: Place, makegateway: MakeGateway
    ) -> None:
        source = project / "src/mine/__init__.py"
        for version in "12":  # of one size, within one second
            write(source, f"version = '{version}'\n")
            os.utime(source, (1e9, 1e9 + int(version) / 10))
            worker = makegateway()
            worker.remote_exec("import sys; sys.dont_write_bytecode = False").waitclose(BOUND_S)
            xdeploy.SetupFile(project).sync_remote(worker, root=str(place.root))
            assert ask(worker, "mine.version") == version

    def test_it_watches_until_it_is_closed(
        self, project: Path, place: Place, gateway: Gateway
    ) -> None:
        setup = xdeploy.SetupFile(project / "pyproject.toml")
        with setup.sync_remote(gateway, watch=True, root=str(place.root)) as sync:
            text = "version = 'x'\n"
            write(project / "src/mine/__init__.py", text)
            # The first one after this may find the file empty, before the text is in it.
            wait_until(lambda: text in [p.read_text() for p in place.root.rglob("__init__.py")])
            wait_until(lambda: sync.count > 1)
            assert ask(gateway, "mine.version") == "x"
            assert sync.error is None


def test_the_last_that_is_used_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/lib"])
    monkeypatch.setattr(use, "_used", {})
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("PATH", "/bin")
    (tmp_path / "a" / "bin").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    use.use(("layer", "x"), a, None, True)
    use.use(("tree", "x"), b, None, True)
    assert sys.path == ["", b, a, "/lib"]
    assert use.os.environ["PYTHONPATH"] == f"{b}:{a}:/mine"
    assert use.os.environ["PATH"] == f"{a}/bin:/bin"
    use.use(("layer", "x"), a, None, True)
    use.use(("tree", "x"), b, None, False)
    assert sys.path == ["", a, b, "/lib"]
