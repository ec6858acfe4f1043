"""Real services that tests start for themselves: their own files, on loopback, gone after them.

Start at ``Sshd``.  A program that is not there skips a test, and fails it in CI.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import IO

import pytest
from tools import missing


def need(program: str, package: str) -> str:
    """Return the path of a program, or report that the Debian package is missing."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    return found or missing(f"no {program} here (apt-get install {package})")


def common_python() -> str:
    """Return a Python that every user of this machine may run."""
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    return found or missing("no Python for all users here (apt-get install python3)")


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def script(path: Path, commands: str) -> Path:
    """Make an executable program of shell commands."""
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


# As the real program of that name: takes just these words and runs the rest with an environment
# of its own, as the user it pleases.
CLEAN = 'exec env -i PATH="$PATH" "$@"'
STAND_INS = {
    "docker": f"""
[ "$1 $2" = "exec -i" ] || {{ echo "unknown flag: $1 $2" >&2; exit 125; }}
[ "$3" = box ] || {{ echo "Error response from daemon: No such container: $3" >&2; exit 1; }}
shift 3; {CLEAN}""",
    "kubectl": f"""
[ "$1 $2" = "exec -i" ] || {{ echo "error: unknown command" >&2; exit 1; }}
[ "$3" = box ] || {{ echo "Error from server (NotFound): pods \\"$3\\" not found" >&2; exit 1; }}
shift 3
while [ "$1" != -- ]; do
  case $1 in -n|-c) shift 2;; *) echo "error: unknown shorthand flag: $1" >&2; exit 1;; esac
done
shift; {CLEAN}""",
    "lxc": f"""
[ "$1 $2" = "exec --mode=non-interactive" ] || {{ echo "Error: unknown flag" >&2; exit 1; }}
[ "$3" = box ] || {{ echo "Error: Instance not found: $3" >&2; exit 1; }}
[ "$4" = -- ] || {{ echo "Error: no command" >&2; exit 1; }}
shift 4; {CLEAN}""",
}
STAND_INS["podman"] = STAND_INS["docker"]


def stop(process: subprocess.Popen[str], output: IO[str] | None = None) -> None:
    """End a service and what it has started."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        if output is not None:
            output.close()


class Sshd:
    """A real sshd that lets in this user with a key of its own.

    ``ssh_config`` is a client's config in which ``loop`` is the host; ``host(name)`` adds one.
    """

    def __init__(self, folder: Path, options: str = "") -> None:
        self._program = need("sshd", "openssh-server")
        self._keygen = need("ssh-keygen", "openssh-client")
        self.folder, self.port = folder, free_port()
        folder.mkdir(mode=0o700, exist_ok=True)
        self.ssh_config = folder / "ssh_config"
        for name in "host_key", "user_key":
            self._make_key(folder / name)
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(self._server_config(options))
        self.ssh_config.write_text("")
        self.host("loop")
        self._process = self._start()

    def host(self, name: str, options: str = "") -> str:
        """Add a host to the client's config; return what a spec says for it."""
        key = self.folder / "user_key"
        lines = [
            f"Host {name}",
            options,
            f"HostName 127.0.0.1\nPort {self.port}\nUser {getpass.getuser()}",
            f"IdentityFile {key}\nIdentitiesOnly yes\nIdentityAgent none",
            f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile none",
            "StrictHostKeyChecking yes\nBatchMode yes",
        ]
        with self.ssh_config.open("a") as file:
            file.write("\n".join(lines) + "\n")
        return f"ssh={name}//ssh_config={self.ssh_config}"

    def _make_key(self, path: Path) -> None:
        command = [self._keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)

    def _server_config(self, options: str) -> str:
        lines = [
            options,
            f"Port {self.port}\nListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/authorized_keys",
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no",
        ]
        return "\n".join(lines) + "\n"

    def _start(self) -> subprocess.Popen[str]:
        if os.getuid() == 0:  # where its unprivileged half is locked up
            os.makedirs("/run/sshd", 0o755, exist_ok=True)
        command = [self._program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = ""
        while "listening on" not in said:
            assert process.stderr is not None
            line = process.stderr.readline()
            if not line:
                process.wait()
                pytest.fail(f"sshd does not start: {said}")
            said += line
        return process

    def stop(self) -> None:
        """End it; connections that it has served are theirs who made them."""
        stop(self._process, self._process.stderr)


class FakeSsh:
    """Makes an ``ssh`` of shell commands in a folder, which has to be in the PATH.

    Each run adds its process id to the file ``$here/runs``; the commands may add those of
    processes that they start to ``$here/children``. ``RUN``, as the last of the commands,
    executes what ssh is asked to execute.
    """

    RUN = 'for last; do :; done; exec sh -c "$last"'

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, commands: str) -> None:
        script(self.folder / "ssh", f"here={self.folder}; echo $$ >> $here/runs\n{commands}")

    def runs(self) -> list[int]:
        """Return the process id of each run."""
        return self._pids("runs")

    def pids(self) -> list[int]:
        """Return the ids of all processes that were written down."""
        return self.runs() + self._pids("children")

    def _pids(self, name: str) -> list[int]:
        path = self.folder / name
        return list(map(int, path.read_text().split())) if path.exists() else []
