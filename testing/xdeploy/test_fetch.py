"""``uv``: it makes environments, and fetches a Python where there is none if it is told to."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from services import script
from tools import MakeGateway, run_all
from uvs import uv_folder
from wheels import Place, use_no_index

from execnet import Gateway, Group, xdeploy
from execnet._cli import main
from execnet._xdeploy import create
from execnet._xdeploy.kept import kept, prune

VERSION = "{}.{}".format(*sys.version_info)
PYTHON = os.path.realpath(sys.executable)
# Stands in for uv: an interpreter is a link to ours.
FETCHES = """\
echo "$*" >>$UV_TEST_LOG
test "$1 $2" = "python install" -a "$UV_PYTHON_INSTALL_BIN" = 0 || exit 1
echo "from ${{UV_PYTHON_INSTALL_MIRROR}}"
mkdir -p $UV_PYTHON_INSTALL_DIR/cpython-$3-x/bin
{first}
ln -s {python} $UV_PYTHON_INSTALL_DIR/cpython-$3-x/bin/python
"""
SYSCONFIG = b"""\
# system configuration generated and used by the sysconfig module
build_time_vars = {}
"""
Uv = Callable[[str], None]


@pytest.fixture(autouse=True)
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no interpreter found, as on a host that has another version."""
    monkeypatch.setattr(create, "search_words", lambda wanted: ["false"] if wanted else [])


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    """Return a function that puts a uv into the PATH, with commands run half-way."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("UV_TEST_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", "https://sid:geheim@mirror.invalid/x")

    def put(first: str) -> None:
        script(folder / "uv", FETCHES.format(python=PYTHON, first=first))

    return put


def left(place: Place) -> list[str]:
    names = sorted(path.name for path in (place.root / "pythons").glob("*/*"))
    return [name for name in names if name != "lock"]


class TestFetching:
    def test_is_done_only_when_asked_for_and_once(
        self, place: Place, uv: Uv, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        uv("")
        gateways = [makegateway(), makegateway()]
        with pytest.raises(xdeploy.DeployError, match="with fetch_python=True, uv fetches one"):
            place.create(gateways[0], (), python=VERSION)
        assert not (tmp_path / "log").exists()
        fetch = partial(place.create, requirements=(), python=VERSION, fetch_python=True)
        run_all([partial(fetch, gateway) for gateway in gateways])
        assert (tmp_path / "log").read_text() == f"python install {VERSION}\n"
        again = place.create(gateways[0], (), python=VERSION)
        assert not again.venv.is_new  # type: ignore[attr-defined]
        root = str(place.root)
        entries = {entry.kind: entry for entry in kept(gateways[0], root)}
        assert (entries["pythons"].name, entries["pythons"].state) == (VERSION, "used")
        for path in place.root.glob("pythons/*/1*"):
            os.utime(path, (0, 0))
        assert prune(gateways[0], root=root) == []
        Path(again.venv.path + ".done").unlink()  # type: ignore[attr-defined]
        assert "pythons" in {entry.kind for entry in prune(gateways[0], root=root)}
        assert list((place.root / "pythons").iterdir()) == []

    @pytest.mark.parametrize("end", ["exit 3", "kill -9 $PPID"])
    def test_half_way_is_not_taken_for_complete(
        self, end: str, place: Place, uv: Uv, makegateway: MakeGateway
    ) -> None:
        uv(end)
        lines: list[str] = []
        fetch = partial(place.create, requirements=(), python=VERSION, fetch_python=True)
        with pytest.raises(xdeploy.DeployError, match=f"Python '{VERSION}' on .* fetched") as said:
            fetch(makegateway(), on_output=lines.append)
        if end == "exit 3":  # else the worker may not have told it
            assert (said.value.status, said.value.lines) == (3, lines[-1:])
            assert lines[-1] == "from https://****@mirror.invalid/x"
        assert "geheim" not in str(said.value) + repr(lines + said.value.lines)
        assert "1.done" not in left(place)
        uv("")
        number = len(left(place)) and 1
        assert fetch(makegateway()).venv.is_new  # type: ignore[attr-defined]
        assert left(place) == [f"{number + 1}{end}" for end in ("", ".done", ".held")]

    def test_needs_uv_there_and_a_version(
        self, place: Place, group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script(tmp_path / "false", "exit 1")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        gateway = group.makegateway(f"popen//python={sys.executable}")
        with pytest.raises(xdeploy.DeployError, match="uv, which would fetch it, is not installed"):
            place.create(gateway, (), python=VERSION, fetch_python=True)
        assert left(place) == []
        with pytest.raises(ValueError, match="needs a version, and python is 'auto'"):
            place.create(gateway, (), python="auto", fetch_python=True)

    def test_another_version_than_wanted_is_refused(
        self, place: Place, uv: Uv, gateway: Gateway
    ) -> None:
        uv("")
        with pytest.raises(xdeploy.DeployError, match="is another or does not run"):
            place.create(gateway, (), python="3.99", fetch_python=True)
        assert left(place) == []


# ---------------------------------------------------------------- the real one


@pytest.fixture
def real(
    place: Place, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the real uv in the PATH, and no other tool used."""
    folder = uv_folder(tmp_path_factory)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    use_no_index(monkeypatch, ["uv"])


def mirror_of_this(folder: Path) -> dict[str, str]:
    """Write a mirror of a Python that runs ours; return the variables that have uv use it."""
    major, minor, patch = sys.version_info[:3]
    machine, name = platform.machine(), f"cpython-{major}.{minor}.{patch}.tar.gz"
    libc = "gnu" if os.confstr("CS_GNU_LIBC_VERSION") else "musl"
    (folder / "1").mkdir(parents=True)
    start = f'#!/bin/sh\nexec "{PYTHON}" "$@"\n'.encode()
    with tarfile.open(folder / "1" / name, "w:gz") as archive:
        for path, content in {
            f"bin/python{major}.{minor}": start,
            f"lib/python{major}.{minor}/_sysconfigdata_.py": SYSCONFIG,
        }.items():
            file = tarfile.TarInfo(f"python/{path}")
            file.size, file.mode = len(content), 0o755
            archive.addfile(file, BytesIO(content))
    entry = {
        "name": "cpython", "arch": {"family": machine, "variant": None}, "os": "linux",
        "libc": libc, "major": major, "minor": minor, "patch": patch, "prerelease": "",
        "url": f"https://github.com/astral-sh/python-build-standalone/releases/download/1/{name}",
        "sha256": None, "variant": None, "build": "1",
    }  # fmt: skip
    (folder / "list.json").write_text(json.dumps({"it": entry}))
    return {
        "UV_PYTHON_DOWNLOADS_JSON_URL": str(folder / "list.json"),
        "UV_PYTHON_INSTALL_MIRROR": folder.as_uri(),
    }


@pytest.mark.skipif(
    sys.platform != "linux" or sys.implementation.name != "cpython" or "t" in sys.abiflags,
    reason="the mirror is made of a CPython for Linux",
)
def test_the_real_uv_fetches_from_a_mirror_of_files_and_installs(
    real: None, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, value in mirror_of_this(tmp_path / "mirror").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("UV_NO_MANAGED_PYTHON", "1")
    words = ["venv", f"popen//python={sys.executable}", "proj", "sid", "--offline"]
    words += ["--find-links", str(place.wheels), "--root", str(place.root)]
    assert main([*words, "--python", VERSION, "--fetch-python"]) == 0
    [fetched] = place.root.glob("pythons/*/*.done")
    [marker] = place.root.glob("venvs/proj-*/1.done")
    assert f"base\t{fetched.with_suffix('')}/" in marker.read_text()
    assert "tool\tuv\n" in marker.read_text()
    assert list(home.iterdir()) == []
    python = marker.with_suffix("") / "bin" / "python"
    code = "import sid, tom; print(sid.version, tom.version)"
    assert subprocess.check_output([python, "-c", code], text=True) == "1.0 2.0\n"
