"""Wheels and environments for tests of ``execnet.xdeploy``: made here, without any index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from execnet import Gateway, xdeploy
from execnet._xdeploy import create, making


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    needs: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    is_pure: bool = True,
) -> Path:
    """Write a wheel with a module of its name, which has a ``version`` and ``main``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py2.py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    contents = {
        f"{name}.py": f"version = {version!r}\ndef main(): print({name!r})\n",
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.1", *metadata, ""]),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: "
        f"{str(is_pure).lower()}\nTag: py2-none-any\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
        **(files or {}),
    }
    record = f"{info}/RECORD"
    lines = [f"{n},{_digest(text)},{len(text.encode())}" for n, text in contents.items()]
    contents[record] = "\n".join([*lines, f"{record},,", ""])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(zipfile.ZipInfo(file), text)  # no time: equal contents are equal
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Place:
    """A cache folder of an environment's far side, and wheels that nobody else has."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cache"
        self.wheels = folder / "wheels"
        self.wheels.mkdir(parents=True)

    def create(
        self, gateway: Gateway, requirements: Any = "sid", name: str = "proj", **options: Any
    ) -> Gateway:
        """Call ``create_venv_gateway``, offline, with these wheels."""
        options = {"offline": True, "find_links": self.wheels, "root": str(self.root), **options}
        return xdeploy.create_venv_gateway(gateway, name, requirements, **options)

    def venvs(self) -> list[str]:
        """Return the names of all that is left of environments, complete or not."""
        names = sorted(path.name for path in (self.root / "venvs").glob("*/*"))
        return [name for name in names if name != "lock"]


def place_with_wheels(folder: Path) -> Place:
    """Return a place with the wheels sid, which needs tom, and tom in two versions."""
    place = Place(folder)
    make_wheel(place.wheels, "sid", needs=["tom>=1", "windows_only; sys_platform == 'win32'"])
    make_wheel(place.wheels, "tom", "1.0")
    make_wheel(place.wheels, "tom", "2.0")
    return place


def version_of(gateway: Gateway, module: str) -> str:
    """Return the version of a module of ours that a worker imports."""
    channel = gateway.remote_exec(f"import {module}; channel.send({module}.version)")
    version: str = channel.receive(30)
    return version


def use_no_index(patch: pytest.MonkeyPatch, ladder: Sequence[str] = ("unpack",)) -> None:
    """Ask no index, whatever pip is told on this machine, and use these tools alone."""
    patch.setattr(making, "configured", lambda: {"no-index": "1"})
    patch.setattr(create, "LADDER", list(ladder))


def wheel_of_installed(folder: Path, name: str) -> Path:
    """Pack a pure distribution that is installed here as a wheel again."""
    found = distribution(name)
    path = folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in found.files or ():
            if not file.as_posix().startswith("../") and file.suffix != ".pyc":
                archive.write(str(found.locate_file(file)), file.as_posix())
    return path
