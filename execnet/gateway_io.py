"""Transports: a spec becomes a command whose stdin and stdout reach an interpreter.

Starts the command and holds its pipes; what is said over them is known elsewhere.  Start at
``create_io``.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from .gateway_base import ExecModel, ExecnetError, Popen2IO

if TYPE_CHECKING:
    from .xspec import XSpec

popen_bootstrapline = "import sys;exec(eval(sys.stdin.readline()))"


class BootstrapError(ExecnetError, OSError, EOFError):
    """A worker could not be started; the text has the command, its end and what it said."""


class HostNotFound(BootstrapError):
    """The host of a spec could not be reached."""


def shell_split_path(path: str) -> list[str]:
    """Split a command as a shell does; a backslash stays one on Windows."""
    if sys.platform.startswith("win"):
        path = path.replace("\\", "\\\\")
    return shlex.split(path)


def popen_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter on this machine."""
    args = shell_split_path(spec.python) if spec.python else [sys.executable]
    args.append("-u")
    if spec.dont_write_bytecode:
        args.append("-B")
    return [*args, "-c", popen_bootstrapline]


class Popen2IOMaster(Popen2IO):
    """The stream to a process of our own, over two pipes.

    args: the command.  Raises ``BootstrapError`` if it can't be started.
    """

    remoteaddress: str | None = None

    def __init__(self, args: list[str], execmodel: ExecModel) -> None:
        self.args = args
        child_stdin, stdin = os.pipe()
        stdout, child_stdout = os.pipe()
        try:
            self.popen: Any = execmodel.subprocess.Popen(
                args, stdin=child_stdin, stdout=child_stdout, bufsize=0
            )
        except BaseException as exc:
            os.close(stdin)
            os.close(stdout)
            if isinstance(exc, (OSError, ValueError)):
                raise BootstrapError(f"can't start {shlex.join(args)}: {exc}") from exc
            raise
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        outfile, infile = execmodel.fdopen(stdin, "wb"), execmodel.fdopen(stdout, "rb")
        super().__init__(outfile, infile, execmodel)

    def wait(self) -> int | None:
        """Wait until the process has ended; return its exit status."""
        status: int | None = self.popen.wait()
        return status

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the process's end until ``time.monotonic()`` reaches the deadline.

        Returns its exit status, negative for a signal; None if it runs on.
        """
        try:
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        except self.execmodel.subprocess.TimeoutExpired:
            pass
        status: int | None = self.popen.returncode
        return status

    def kill(self) -> None:
        """Kill the process, if it has not ended."""
        try:
            self.popen.kill()
        except OSError:  # it belongs to another user (sudo), or is gone
            pass


def create_io(spec: XSpec, execmodel: ExecModel) -> Popen2IOMaster:
    """Start the command of a spec; return the stream to it."""
    return Popen2IOMaster(popen_args(spec), execmodel)
