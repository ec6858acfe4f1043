"""Released versions of execnet, each installed in an environment of its own, as peers.

They are kept outside of the repository and made once: in ``EXECNET_TEST_RELEASED``, or in the
user's cache folder.  What they do is observed from outside.  Start at ``find_released``.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from interpreters import found
from tools import clean_environment, missing, wait_until

FOLDER = "EXECNET_TEST_RELEASED"
INSTALL_TIMEOUT_S = 300
# (version, the Pythons that may run it, the best first)
RELEASED = (
    ("1.1", ("2.7",)),
    ("1.1", ("3.8",)),
    ("1.9", ("2.7",)),
    ("1.9", ("3.8", "3.9")),
    ("2.1.2", ("3.13", "3.12", "3.11", "3.10", "3.8")),
)
NAMES = [f"{version}-{pythons[0]}" for version, pythons in RELEASED]
THAT_SERVE_MANY = [name for name in NAMES if not name.startswith("1.1")]


@dataclass(frozen=True)
class Released:
    """An installed version."""

    version: tuple[int, ...]
    python: str
    folder: Path | None  # for PYTHONPATH, where the Python has no virtual environments

    @property
    def serves_one(self) -> bool:
        """Whether its server ends by itself after a client."""
        return self.version < (1, 2)

    @property
    def environment(self) -> dict[str, str]:
        """What its processes have as their environment."""
        variables = clean_environment()
        del variables["PYTHONPATH"]
        return variables if self.folder is None else {**variables, "PYTHONPATH": str(self.folder)}

    def run(self, code: str, *args: str, timeout_s: float = 30) -> str:
        """Run a program to its end, which has to be a good one; return what it printed."""
        done = subprocess.run(
            [self.python, "-c", code, *args],
            env=self.environment,
            cwd="/",  # where no other execnet is
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            text=True,
        )
        # Of a traceback only the last line: the others would show the package's own code.
        assert done.returncode == 0, done.stderr.splitlines()[-1:]
        return done.stdout


class ReleasedServer:
    """A running socket server of a released version; its stdout goes to a file."""

    def __init__(self, released: Released, folder: Path) -> None:
        self.released = released
        self._stdout = folder / "released_server_stdout"
        with self._stdout.open("w") as stdout:
            self.popen = subprocess.Popen(
                [released.python, "-u", "-m", "execnet.script.socketserver", "127.0.0.1:0"],
                env=released.environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
            )
        self.address = f"127.0.0.1:{wait_until(self._find_port, timeout_s=30)}"

    def _find_port(self) -> str:
        assert self.popen.poll() is None
        match = re.search(r"\('127\.0\.0\.1', (\d+)\)", self.output())
        return match[1] if match else ""

    def output(self) -> str:
        """Return what it, or its worker, has printed."""
        return self._stdout.read_text()

    def descriptors(self) -> int:
        """Return how many it has open."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def stop(self) -> None:
        """End it, in whatever state it is."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.popen.wait()


@functools.cache
def _install(version: str, python: str, name: str) -> Released | str:
    """Return a version, installed now or earlier, or why there is none."""
    base = os.environ.get(FOLDER) or Path.home() / ".cache" / "execnet-tests" / "released"
    home = Path(base).absolute() / name
    home.mkdir(parents=True, exist_ok=True)
    is_old = name.endswith("2.7")  # without ``venv``
    numbers = tuple(map(int, version.split(".")))
    released = Released(
        numbers,
        python if is_old else str(home / "venv" / "bin" / "python"),
        home / "packages" if is_old else None,
    )
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may test at the same time
        complete = home / "complete"  # written last
        if complete.exists():
            return released
        try:
            for command in _commands(version, python, home, is_old):
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=INSTALL_TIMEOUT_S,
                    check=True,
                    env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
                )
        except subprocess.CalledProcessError as error:
            return (error.stderr.strip().splitlines() or [str(error)])[-1]
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        complete.write_text(version)
    return released


def _commands(version: str, python: str, home: Path, is_old: bool) -> Iterator[list[str]]:
    pip = ["-m", "pip", "--disable-pip-version-check", "--retries", "1", "-q", "install"]
    if is_old:
        yield [python, *pip, "--target", str(home / "packages"), f"execnet=={version}"]
    else:
        yield [python, "-m", "venv", "--clear", str(home / "venv")]
        yield [str(home / "venv" / "bin" / "python"), *pip, f"execnet=={version}"]


def find_released(name: str) -> Released:
    """Return one of ``NAMES``; skip the test where it can't be installed, fail it in CI."""
    version, wanted = RELEASED[NAMES.index(name)]
    pythons = [python for one in wanted for python in found() if python.meets(one)]
    if not pythons:
        pytest.skip(f"execnet {version} runs on Python {' or '.join(wanted)}: there is none here")
    major, minor, _ = pythons[0].version
    released = _install(version, pythons[0].path, f"{version}-{major}.{minor}")
    if isinstance(released, str):
        missing(f"execnet {version} can't be installed: {released}")
    return released
