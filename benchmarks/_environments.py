"""Where the measuring programs run: a virtual environment per peer, and what is exported to it.

All environments are made alike, so that none starts slower than another: no pip, no setuptools
(whose ``.pth`` file runs code at each start), and the same few variables.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks._catalog import Peer

ROOT = Path(__file__).resolve().parent.parent
INSTALL_TIMEOUT_S = 300

# A list of what may stay, not of what must go: PYTHONDONTWRITEBYTECODE, PYTHONUNBUFFERED,
# EXECNET_DEBUG, a coverage tool's hooks and others like them would falsify what is measured.
KEPT_VARIABLES = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TMPDIR",
    "TZ",
    "USER",
)


class NotInstalled(Exception):
    """A peer has no environment and none may be made, or a program is missing."""


class InstallFailed(Exception):
    """A peer's environment could not be made; the text is one line."""


def variables_for(peer: Peer) -> dict[str, str]:
    """Return the whole environment of a program that measures ``peer``."""
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    if peer.from_tree:
        variables["PYTHONPATH"] = str(ROOT)
    return variables


def check_programs(*names: str) -> None:
    """Raise NotInstalled for a program that the system does not have."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for name in names:
        if shutil.which(name, path=path) is None:
            raise NotInstalled(f"there is no {name} here")


class Environments:
    """The virtual environments below ``cache``, made when they are first asked for.

    Each stands for one peer, the tools beside it and one version of Python. ``offline`` forbids
    to install anything.
    """

    def __init__(self, cache: Path, offline: bool) -> None:
        version = ".".join(map(str, sys.version_info[:2]))
        self.folder = cache / f"{sys.implementation.name}-{version}"
        self.offline = offline
        self._failed: dict[Path, InstallFailed] = {}  # not tried again: it may take minutes

    def python_for(self, peer: Peer, tools: tuple[str, ...] = ()) -> Path:
        """Return the interpreter with ``peer`` and what pip knows as ``tools``.

        Raises NotInstalled or InstallFailed.
        """
        requirements = [*filter(None, [peer.requirement]), *tools]
        home = self.folder / "-".join([peer.name, *map(_bare_name, tools)])
        if home in self._failed:
            raise self._failed[home]
        python = home / "bin" / "python"
        complete = home / "complete"  # written last; says what is installed
        wanted = " ".join(requirements)
        if python.exists() and complete.exists() and complete.read_text() == wanted:
            return python
        if requirements and self.offline:
            raise NotInstalled("not installed, and --offline forbids to; run once without it")
        try:
            self._make(home, python, requirements)
        except (OSError, subprocess.SubprocessError) as error:
            self._failed[home] = InstallFailed(f"could not be installed: {_reason(error)}")
            raise self._failed[home] from error
        complete.write_text(wanted)
        return python

    def _make(self, home: Path, python: Path, requirements: list[str]) -> None:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=bool(requirements)).create(home)
        if requirements:
            self._pip(python, "install", "--no-input", *requirements)
            self._pip(python, "uninstall", "--yes", "pip", "setuptools")

    def _pip(self, python: Path, *arguments: str) -> None:
        # pip's own settings stay: they may name the index that can be reached from here.
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT_S,
            check=True,
        )


def _bare_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def _reason(error: Exception) -> str:
    """Return one line that says why."""
    output = getattr(error, "output", None) or b""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else str(error)
