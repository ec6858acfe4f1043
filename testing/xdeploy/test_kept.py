"""What is kept on the far side is listed, and pruned unless somebody uses it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pages import read
from shell import Shell
from tools import BOUND_S, IS_THOROUGH, ROOT, wait_until
from wheels import Place, make_wheel, wheel_of_installed

from execnet import Gateway, Group, XSpec, xdeploy
from execnet._cli import main
from execnet._cli.venv import spec_for
from execnet._xdeploy import project as xdeploy_project
from execnet._xdeploy.far import flocks
from execnet._xdeploy.far import kept as far_kept
from execnet._xdeploy.kept import kept, prune


@pytest.fixture
def shell(tmp_path: Path) -> object:
    shell = Shell(tmp_path)
    yield shell
    shell.finish()


def states(place: Place, gateway: Gateway) -> list[tuple[str, str]]:
    return [(entry.name, entry.state) for entry in kept(gateway, str(place.root))]


def test_only_what_nobody_uses_is_pruned(place: Place, gateway: Gateway) -> None:
    root = str(place.root)
    used, free = (place.create(gateway, (), name=name) for name in ("used", "free"))
    assert states(place, gateway) == [("free", "used"), ("used", "used")]
    free.exit()
    free.join(BOUND_S)
    wait_until(lambda: states(place, gateway) == [("free", "free"), ("used", "used")], BOUND_S)
    assert prune(gateway, root=root) == []
    for path in place.root.glob("venvs/*/1*"):
        os.utime(path, (time.time() - 31 * 86400,) * 2)
    assert [entry.name for entry in prune(gateway, root=root, dry_run=True)] == ["free"]
    assert prune(gateway, names=["other"], root=root) == []
    [pruned] = prune(gateway, root=root)
    assert (pruned.name, pruned.tool, pruned.bytes > 0) == ("free", "unpack", True)
    assert [path.name[:5] for path in (place.root / "venvs").iterdir()] == ["used-"]
    assert used.remote_exec("import json; channel.send(1)").receive(BOUND_S) == 1


def test_what_is_half_made_or_replaced_is_pruned_at_once(place: Place, gateway: Gateway) -> None:
    made = place.create(gateway, ())
    place.create(gateway, (), recreate=True)
    for one in list(gateway._group)[1:]:  # type: ignore[call-overload]
        one.exit()
        one.join(BOUND_S)
    wait_until(lambda: "used" not in {state for _, state in states(place, gateway)}, BOUND_S)
    left = Path(made.venv.path).parent / "7"  # type: ignore[attr-defined]
    (left / "bin").mkdir(parents=True)
    (left / "bin").chmod(0o500)
    found = [entry.state for entry in prune(gateway, root=str(place.root))]
    assert found == ["incomplete", "replaced"]
    assert states(place, gateway) == [("proj", "free")]
    assert not left.exists()


def test_caches_of_installers_are_pruned_as_a_whole(place: Place, gateway: Gateway) -> None:
    place.create(gateway, (), name="venv")
    root = str(place.root)
    cached = place.root / "pip" / "http" / "file"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x" * 1000)
    [entry] = [entry for entry in kept(gateway, root) if entry.kind == "caches"]
    assert (entry.name, entry.state, entry.bytes) == ("pip", "free", 1000)
    held = flocks.shared(str(place.root / "caches.held"))  # as while something is made
    assert prune(gateway, 0, root=root) == []
    os.close(held)
    assert prune(gateway, 1, root=root) == []
    assert [entry.name for entry in prune(gateway, 0, root=root)] == ["pip"]
    assert not list(place.root.glob("pip*"))


def test_without_locks_only_what_is_named_is_pruned(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = place.create(gateway, ())
    made.exit()
    made.join(BOUND_S)
    wait_until(lambda: states(place, gateway) == [("proj", "free")], BOUND_S)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(flocks.fcntl, "flock", refuse)

    def pruned(**request: object) -> list[Any]:
        request = {"prune": True, "root": str(place.root), "dry_run": False, **request}
        channel = Sent(request)
        far_kept.main(channel)
        return [entry["state"] for entry in channel.items]

    assert pruned(unused_s=0, names=[]) == []
    assert pruned(unused_s=86400, names=["proj"]) == []
    assert pruned(unused_s=0, names=["proj"]) == ["unknown"]
    assert not list(place.root.glob("venvs/*/1*"))


class Sent:
    """Stands in for a channel with one request."""

    def __init__(self, request: object) -> None:
        self.items: list[Any] = []
        self.receive = lambda: request
        self.send = self.items.append


class TestCommand:
    def test_it_prints_a_spec_that_works(self, shell: Shell, group: Group, tmp_path: Path) -> None:
        place = "--root", str(tmp_path / "cache")
        made = shell.run("venv", "popen//id=x//env:A=b", "proj", *place)
        assert (made.returncode, made.stderr) == (0, "")
        spec = made.stdout.strip()
        assert spec.startswith(f"popen//env:A=b//python={tmp_path}/cache/venvs/proj-")
        worker = group.makegateway(spec)
        code = "import sys, os; channel.send((sys.prefix, os.environ['A']))"
        prefix = spec.rpartition("=")[2].removesuffix("/bin/python")
        assert worker.remote_exec(code).receive(BOUND_S) == (prefix, "b")
        group.terminate(timeout=5)
        again = shell.run("venv", "popen//env:A=b", "proj", "--json", *place)
        assert json.loads(again.stdout) == {"spec": spec}
        listed = shell.run("venv", "list", "popen", "--json", *place).stdout.splitlines()
        assert [json.loads(line)["name"] for line in listed if '"venvs"' in line] == ["proj"]
        removed = shell.run("venv", "prune", "popen", "--unused", "0", *place)
        assert removed.stdout.startswith("removed ")

    @pytest.mark.parametrize(
        ("words", "status", "text"),
        [
            (["popen", "x", "a b!"], 2, "not a requirement"),
            (["popen", "x", "-r", "nothing.txt"], 1, "no file 'nothing.txt'"),
            (["popen", "x", "--project", "nothing"], 1, "no project at"),
        ],
    )
    def test_mistakes(self, shell: Shell, words: list[str], status: int, text: str) -> None:
        result = shell.run("venv", *words)
        assert (result.returncode, result.stdout) == (status, "")
        assert text in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_project_that_can_not_be_built_is_told_before_anything_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(xdeploy_project, "find_spec", lambda name: None)
        (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
        root = tmp_path / "cache"
        words = "venv", "popen", "x", "--project", str(tmp_path), "--root", str(root)
        assert main(words) == 1
        assert "pip install 'execnet[xdeploy]'" in capsys.readouterr().err
        assert not root.exists()

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ("popen", "SPEC and NAME"),
            ("2*popen x", "more than one spec"),
            ("popen x --dry-run", '--dry-run is for "prune"'),
            ("popen x --unused 0", '--unused is for "prune"'),
            ("list popen --unused 0", '--unused is for "prune"'),
            ("prune popen --unused x", "'x' is not a number of days"),
            ("prune popen x --recreate", "--recreate is for making an environment"),
        ],
    )
    def test_mistakes_in_words(
        self, words: str, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            status = main(["venv", *words.split()])
        except SystemExit as exc:  # of argparse
            status = exc.code
        assert status == 2
        assert text in capsys.readouterr().err

    def test_the_spec_with_a_project_is_one_word_and_holds_its_layer(
        self, place: Place, gateway: Gateway, group: Group, tmp_path: Path
    ) -> None:
        project = tmp_path / "project"
        project.mkdir()
        (project / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
        made: Any = place.create(gateway, ())
        layer = place.root / "layers" / f"mine-{'0' * 24}" / "it's 1"
        layer.mkdir(parents=True)
        (layer / "mine.py").write_text("version = 1")
        held = layer.with_name(layer.name + ".held")
        held.touch()
        sync = xdeploy.SetupFile(project).sync_remote(made, root=str(place.root))
        launcher = sync.launcher(made.venv.python, str(layer))
        assert launcher == sync.launcher(made.venv.python, str(layer))
        spec = spec_for(gateway.spec, launcher, sync.folder)
        assert spec.split() == [spec]
        worker = group.makegateway(spec)
        code = "import mine, sys; channel.send((mine.__file__, sys.prefix))"
        assert worker.remote_exec(code).receive(BOUND_S) == (f"{layer}/mine.py", made.venv.path)
        with pytest.raises(flocks.Busy):
            flocks.exclusive(str(held))
        for one in worker, made:
            one.exit()
            one.join(BOUND_S)
        wait_until(lambda: "used" not in {state for _, state in states(place, gateway)}, BOUND_S)
        prune(gateway, 0, ["mine"], root=str(place.root))
        assert not Path(launcher).exists()

    def test_a_spec_keeps_all_else(self) -> None:
        spec = XSpec("ssh=-p 22 host//python=x//id=y//chdir=/z//nice=5")
        there = "ssh=-p 22 host//chdir=/z//nice=5//python='/a b/python'"
        assert spec_for(spec, "/a b/python", None) == there
        assert spec_for(spec, "p", "/t") == "ssh=-p 22 host//nice=5//python=p//chdir=/t"


@pytest.mark.skipif(not IS_THOROUGH, reason="half a minute's work, for a thorough run")
@pytest.mark.timeout(600)
def test_the_how_to_runs_a_projects_tests_over_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("build")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    needed = ["pytest", "pytest-xdist", "pluggy", "iniconfig", "packaging", "pygments"]
    for name in [*needed, "setuptools"]:
        wheel_of_installed(wheels, name)
    make_wheel(wheels, "execnet", "3.0", files=sources_of(ROOT / "execnet"))  # is here to be edited
    project = tmp_path / "project"
    blocks = read(ROOT / "doc" / "remote_tests.rst")
    for block in blocks:
        if block.language in ("toml", "python", "text") and "." in block.caption:
            path = project / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    [command] = [block.text for block in blocks if block.language == "sh"]
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nfor last; do :; done; exec sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert shutil.which("execnet")
    result = subprocess.run(
        ["bash", "-c", command], cwd=project, capture_output=True, text=True, timeout=500
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def sources_of(package: Path) -> dict[str, str]:
    paths = package.rglob("*.py")
    return {str(path.relative_to(package.parent)): path.read_text("utf-8") for path in paths}
