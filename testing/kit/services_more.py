"""Slurm and podman, for tests: real ones, with files of their own. Start at ``Slurm``."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from services import common_python, free_port, need, stop
from tools import wait_until

LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]  # none is raised


class Slurm:
    """A cluster of this machine alone: munged, slurmctld and slurmd.

    ``config`` is what SLURM_CONF has to name.
    """

    def __init__(self) -> None:
        programs = [need("munged", "munge"), need("slurmctld", "slurmctld")]
        programs += [need("slurmd", "slurmd"), need("srun", "slurm-client")]
        if os.getuid() != 0:
            pytest.skip("slurmd has to be started by root")
        # munged wants a path that nobody else can change, and a socket's path is short.
        self.folder = Path(tempfile.mkdtemp(prefix="execnet-slurm-", dir="/run"))
        self.folder.chmod(0o755)
        for name in "state", "spool":
            (self.folder / name).mkdir()
        self.config = self.folder / "slurm.conf"
        self.config.write_text(self._config())
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._start(programs)
        except BaseException:
            self.stop()
            raise

    def _config(self) -> str:
        here = socket.gethostname().partition(".")[0]
        return f"""
ClusterName=test
SlurmctldHost={here}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/socket
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={here} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:16
"""

    def _start(self, programs: list[str]) -> None:
        munged, slurmctld, slurmd, _ = programs
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o400)
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/{name}" for option, name in files.items()]
        self._run(munged, "--foreground", f"--socket={self.folder}/socket", *options)
        wait_until(lambda: (self.folder / "socket").exists())
        here = socket.gethostname().partition(".")[0]
        self._run(slurmctld, "-D", "-c", "-f", str(self.config))
        self._run(slurmd, "-D", "-N", here, "-f", str(self.config))
        wait_until(lambda: "idle" in self._nodes(), timeout_s=30)

    def _run(self, *command: str) -> None:
        with (self.folder / "output").open("a") as output:
            self._processes.append(
                subprocess.Popen(
                    command, text=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            )

    def _nodes(self) -> str:
        for process in self._processes:
            if process.poll() is not None:
                pytest.fail(f"{process.args!r} ended: {(self.folder / 'output').read_text()}")
        words = ["sinfo", "--noheader", "--format=%T"]
        environment = {**os.environ, "SLURM_CONF": str(self.config)}
        result = subprocess.run(words, capture_output=True, text=True, env=environment)
        return result.stdout

    def stop(self) -> None:
        for process in reversed(self._processes):
            stop(process)
        shutil.rmtree(self.folder)


class Podman:
    """A container whose files were copied from this machine's: a shell, a Python, what they need.

    ``name`` is the running container's; there is a file ``mark`` in it and nowhere else.
    """

    name = f"execnet-test-{os.getpid()}"
    mark = f"/etc/{name}"

    def __init__(self, folder: Path) -> None:
        need("podman", "podman")
        need("conmon", "conmon")
        if os.getuid() != 0:
            pytest.skip("podman without root needs ranges of user ids that few machines have")
        self._root = folder / "root"
        for name in "proc", "sys", "dev", "tmp", "etc", "run":
            (self._root / name).mkdir(parents=True)
        Path(f"{self._root}{self.mark}").touch()
        self._fill()
        self._start()

    def _start(self) -> None:
        # runc gets along with more kinds of cgroups.
        runtime = ["--runtime", "runc"] if shutil.which("runc") else []
        words = ["podman", *runtime, "run", "--detach", "--rm", "--name", self.name, *LIMITS]
        words += ["--network=none", "--rootfs", str(self._root), "/bin/sleep", "1000"]
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode != 0:
            pytest.skip(f"podman can't run a container here: {result.stderr.strip()[-300:]}")

    def _fill(self) -> None:
        for name in "bin", "lib", "lib64":
            if os.path.islink(f"/{name}"):
                (self._root / os.readlink(f"/{name}").lstrip("/")).mkdir(parents=True)
                (self._root / name).symlink_to(os.readlink(f"/{name}"))
        python = common_python()
        for program in "/bin/sh", "/bin/sleep", "/usr/bin/env", os.path.realpath(python):
            self._copy(program)
        (self._root / "usr/bin/python3").symlink_to(os.path.realpath(python))
        ask = "import sysconfig; print(sysconfig.get_path('stdlib'))"
        stdlib = subprocess.check_output([python, "-c", ask], text=True).strip()
        leave_out = ("test", "tests", "__pycache__", "*-packages", "config-*", "idlelib")
        shutil.copytree(
            stdlib,
            f"{self._root}{stdlib}",
            symlinks=True,
            ignore=shutil.ignore_patterns(*leave_out),
        )

    def _copy(self, path: str) -> None:
        """Copy a program and the libraries that it is linked to, to the same paths."""
        linked = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for name in [path, *re.findall(r"(/\S+) \(0x", linked)]:
            target = Path(f"{self._root}{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                shutil.copy2(os.path.realpath(name), target)

    def stop(self) -> None:
        words = ["podman", "rm", "--force", "--time", "0", self.name]
        subprocess.run(words, check=True, capture_output=True)
