"""The check before a release: what is built installs on each Python, and the README works there.

``python testing/kit/release.py [--python PATH]...`` builds the wheel and the source distribution,
has twine look at them, and installs each into a fresh environment of each Python, by default the
oldest and the newest that there are here.  It says if the metadata has no addresses.  Needs
``build`` and ``twine``, and for the source distribution an index with setuptools.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

from interpreters import found
from pages import read

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 10)
TIMEOUT_S = 300


def run(*command: str | Path, folder: Path, text: str | None = None) -> str:
    """Run a command that has to succeed; return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=env, input=text, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    if ended.returncode != 0:
        sys.exit(f"{ended.stdout}\nfailed with status {ended.returncode}: {command}")
    return ended.stdout


def default_pythons() -> list[str]:
    """Return the oldest and the newest CPython here that a program may run on."""
    fitting = [
        python
        for python in found()
        if python.implementation == "cpython" and python.version >= OLDEST
    ]
    fitting.sort(key=lambda python: python.version)
    return list(dict.fromkeys([fitting[0].path, fitting[-1].path])) if fitting else [sys.executable]


def check(python: str, distribution: Path, folder: Path) -> None:
    """Install a distribution into an environment in an empty folder; do what the README says."""
    run(python, "-m", "venv", "env", folder=folder)
    scripts = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "pip", "install", "-q", distribution, folder=folder)
    blocks = read(ROOT / "README.txt")
    example, output = (block.text for block in blocks if block.language in ("python", "text"))
    (folder / "example.py").write_text(example, "utf-8")
    for got in (
        run(scripts / "python", "example.py", folder=folder),
        run(scripts / "python", folder=folder, text=example),
    ):
        if got != output:
            sys.exit(f"the README's example printed {got!r}")
    code = "import os; print(os.getpid())"
    for command in ([scripts / "execnet"], [scripts / "python", "-m", "execnet"]):
        got = run(*command, "exec", "3*popen", "-c", code, folder=folder)
        if len(set(got.splitlines())) != 3:
            sys.exit(f"the README's command printed {got!r}")


def addresses(wheel: Path) -> list[str]:
    """Return what the metadata of a wheel says about addresses on the web."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(file.read(name)).get_all("Project-URL", [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", metavar="PATH", help="instead of those found")
    pythons = parser.parse_args().python or default_pythons()
    with tempfile.TemporaryDirectory() as place:
        built = Path(place, "dist")
        run(sys.executable, "-m", "build", "-o", built, ROOT, folder=ROOT)
        distributions = sorted(built.iterdir())
        print(run(sys.executable, "-m", "twine", "check", "--strict", *distributions, folder=built))
        for number, python in enumerate(pythons):
            for distribution in distributions:
                folder = Path(place, f"{number}-{distribution.suffix}")
                folder.mkdir()
                check(python, distribution, folder)
                print(f"{distribution.name} works on {python}")
        (wheel,) = built.glob("*.whl")
        if not addresses(wheel):
            print("The metadata has no addresses: name those of the place that hosts the project")
            print("under [project.urls] in pyproject.toml, so that pip show has them.")


if __name__ == "__main__":
    main()
