"""Which Pythons the tests find, and that workers really run on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import interpreters
import pytest
from interpreters import Interpreter, NoPythonError, found, missing_of
from tools import KIT, Resources, run

from execnet import Gateway

pytest_plugins = ["worker_fixtures"]

FAKE = '#!/bin/sh\n[ "$3" = -c ] || exit 9\nPATH={path}\n{body}\n'


def make_fake(folder: Path, name: str, version: str, kind: str = "cpython") -> Path:
    """Make a command that answers as a Python of that version does."""
    return make_command(folder, name, f"echo {version} {kind} {folder / name}")


def make_command(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(FAKE.format(path=os.defpath, body=body))
    path.chmod(0o755)
    return path


class TestTheOnesFound:
    def test_the_required_ones_are_there(self) -> None:
        absent = missing_of(os.environ.get(interpreters.REQUIRED, ""))
        assert not absent, f"not tested: {', '.join(absent)}; {interpreters.DEMANDED} may name them"

    def test_there_is_one_of_each_minor_version(self) -> None:
        names = [str(python) for python in found()]
        assert len(set(names)) == len(names)
        version = ".".join(map(str, sys.version_info[:2]))
        assert any(python.meets(version) or python.meets(f"pypy{version}") for python in found())

    def test_a_worker_runs_on_each(self, python: Interpreter, shared: Gateway) -> None:
        info = shared._rinfo()
        assert info.version_info[:3] == python.version
        assert info.implementation == python.implementation
        assert info.executable == python.path

    def test_what_was_found_is_told_to_other_processes(self) -> None:
        told = os.environ[interpreters.FOUND]
        listed = run(
            [sys.executable, "-m", "interpreters"],
            PYTHONPATH=str(KIT),
            PATH="",
            **{interpreters.FOUND: told},
        )
        assert [line.split()[0] for line in listed.stdout.splitlines()] == list(map(str, found()))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment with one folder, in the PATH, and no pyenv; this Python is found always."""
    monkeypatch.delenv(interpreters.DEMANDED, raising=False)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def search() -> dict[str, str]:
    """Return the paths by name, without the Python that runs the tests."""
    return {
        str(python): python.path
        for python in interpreters.search()
        if python.path != sys.executable
    }


def test_most_tests_run_on_the_oldest_and_the_newest_of_a_kind(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pythons(*names: str) -> tuple[Interpreter, ...]:
        split = [(kind, *map(int, name.split("."))) for kind, name in map(str.split, names)]
        return tuple(Interpreter((major, minor, 0), kind, "") for kind, major, minor in split)

    all_of_them = pythons("cpython 2.7", "cpython 3.6", "cpython 3.7", "pypy 3.9", "cpython 3.15")
    monkeypatch.setattr(interpreters, "found", lambda: all_of_them)
    monkeypatch.setattr(interpreters, "IS_THOROUGH", False)
    few = pythons("cpython 2.7", "cpython 3.6", "pypy 3.9", "cpython 3.15")
    assert interpreters.chosen() == few
    monkeypatch.setenv(interpreters.DEMANDED, "named")
    assert interpreters.chosen() == all_of_them
    monkeypatch.delenv(interpreters.DEMANDED)
    monkeypatch.setattr(interpreters, "IS_THOROUGH", True)
    assert interpreters.chosen() == all_of_them


class TestTheSearch:
    def test_versions_are_found_in_the_path(self, bare: Path) -> None:
        for name, version in [
            ("python2.7", "2 7 1"),
            ("python3.6", "3 6 2"),
            ("python3.99", "3 99 0"),
        ]:
            make_fake(bare, name, version)
        make_fake(bare, "pypy3", "3 10 1", "pypy")
        for name in "python", "python3", "python3.5", "python3.6-config", "mypython2.7":
            make_fake(bare, name, "3 98 0")
        assert search() == {
            "cpython2.7": f"{bare}/python2.7",
            "cpython3.6": f"{bare}/python3.6",
            "cpython3.99": f"{bare}/python3.99",
            "pypy3.10": f"{bare}/pypy3",
        }

    def test_those_of_pyenv_are_found_the_newest_of_a_version_first(
        self, bare: Path, tmp_path: Path
    ) -> None:
        versions = tmp_path / "pyenv" / "versions"
        make_fake(versions / "3.98.9" / "bin", "python", "3 98 9")
        newest = make_fake(versions / "3.98.10" / "bin", "python", "3 98 10")
        pypy = make_fake(versions / "pypy3.98-7.3.1" / "bin", "python", "3 98 1", "pypy")
        assert search() == {"cpython3.98": str(newest), "pypy3.98": str(pypy)}

    def test_scripts_of_pyenv_are_not_run(
        self, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shims = tmp_path / "pyenv" / "shims"
        make_fake(shims, "python3.98", "3 98 0")
        monkeypatch.setenv("PATH", str(shims))
        assert search() == {}

    def test_what_is_demanded_comes_first(
        self, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_fake(bare, "python3.98", "3 98 5")
        make_fake(bare, "mine", "3 97 1")
        path = make_fake(tmp_path / "with a space", "python", "3 98 1")
        monkeypatch.setenv(interpreters.DEMANDED, os.pathsep.join([str(path), "mine"]))
        assert search() == {"cpython3.97": f"{bare}/mine", "cpython3.98": str(path)}

    @pytest.mark.parametrize(
        "body", ["exit 1", "echo hello", "echo 3 98 1 cpython /x; exit 1", "exec sleep 600"]
    )
    def test_what_is_no_python_is_passed_over(
        self, body: str, bare: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interpreters, "PROBE_TIMEOUT_S", 0.3 if "sleep" in body else 30)
        make_command(bare, "python3.98", body)
        before = Resources.now()
        assert search() == {}
        before.assert_nothing_new()

    @pytest.mark.parametrize("named", ["no-such-command", "/no/such/path", "python3.98"])
    def test_what_is_demanded_has_to_run(
        self, named: str, bare: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_command(bare, "python3.98", "exit 1")
        monkeypatch.setenv(interpreters.DEMANDED, named)
        with pytest.raises(NoPythonError, match=named):
            search()


class TestTheCommand:
    @pytest.mark.parametrize(
        ("required", "absent"),
        [
            ("", ""),
            ("cpython", ""),
            ("cpython, 2.6", "2.6"),
            ("pypy1.9,cpython,jython", "pypy1.9, jython"),
        ],
    )
    def test_it_fails_where_a_required_one_is_missing(
        self, required: str, absent: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert interpreters.main(["--require", required]) == bool(absent)
        output = capsys.readouterr()
        assert len(output.out.splitlines()) == len(found())
        assert (f"missing: {absent};" in output.err) == bool(absent)

    @pytest.mark.parametrize(
        ("python", "wanted"),
        [
            (Interpreter((3, 13, 1), "cpython", ""), ["3.13", "cpython3.13", "cpython"]),
            (Interpreter((3, 1, 3), "pypy", ""), ["pypy", "pypy3.1"]),
        ],
        ids=str,
    )
    def test_a_version_is_met_as_a_whole(self, python: Interpreter, wanted: list[str]) -> None:
        versions = ["3.13", "3.1", "cpython3.13", "cpython", "pypy", "pypy3", "pypy3.1", "3"]
        assert [word for word in versions if python.meets(word)] == sorted(
            wanted, key=versions.index
        )
