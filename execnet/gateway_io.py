"""Transports: a spec becomes a command whose stdin and stdout reach an interpreter.

Starts the command and holds its pipes; what is said over them is known elsewhere.  Start at
``create_io``.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress

from .gateway_base import ExecModel, ExecnetError, Popen2IO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .xspec import XSpec

PIPE_BYTES = 1 << 20
popen_bootstrapline = "import sys;exec(eval(sys.stdin.readline()))"


class BootstrapError(ExecnetError, OSError, EOFError):
    """A worker could not be started; the text has the command, its end and what it said."""


class HostNotFound(BootstrapError):
    """The host of a spec could not be reached."""


def shell_split_path(path: str) -> list[str]:
    """Split a command as a shell does; a backslash stays one on Windows."""
    import shlex

    if sys.platform.startswith("win"):
        path = path.replace("\\", "\\\\")
    return shlex.split(path)


def command_text(args: list[str]) -> str:
    """Return a command as one would type it."""
    import shlex

    return shlex.join(args)


def popen_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter on this machine."""
    args = shell_split_path(spec.python) if spec.python else [sys.executable]
    args.append("-u")
    if spec.dont_write_bytecode:
        args.append("-B")
    return [*args, "-c", popen_bootstrapline]


def _pipe() -> tuple[int, int]:
    """Return a new pipe, with the largest buffer that an ordinary user may have."""
    read_end, write_end = os.pipe()
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # the user's share of such buffers is used up
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read_end, write_end


class Popen2IOMaster(Popen2IO):
    """The stream to a process of our own, over two pipes.

    args: the command.  Raises ``BootstrapError`` if it can't be started.
    """

    remoteaddress: str | None = None

    def __init__(self, args: list[str], execmodel: ExecModel) -> None:
        self.args = args
        child_stdin, stdin = _pipe()
        try:
            stdout, child_stdout = _pipe()
        except OSError:
            os.close(stdin)
            os.close(child_stdin)
            raise
        try:
            self.popen: Any = execmodel.subprocess.Popen(
                args, stdin=child_stdin, stdout=child_stdout, bufsize=0
            )
        except BaseException as exc:
            os.close(stdin)
            os.close(stdout)
            if isinstance(exc, (OSError, ValueError)):
                raise BootstrapError(f"can't start {command_text(args)}: {exc}") from exc
            raise
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        outfile, infile = execmodel.fdopen(stdin, "wb"), execmodel.fdopen(stdout, "rb")
        super().__init__(outfile, infile, execmodel)
        self._pidfd = -1  # becomes readable when the process ends
        if execmodel.has_main_thread and hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an old kernel, or no descriptor left: its stream tells, too
                self._pidfd = os.pidfd_open(self.popen.pid)
                self._ready = select.poll()
                self._ready.register(stdout, select.POLLIN)
                self._ready.register(self._pidfd, select.POLLIN)

    def read_some(self, limit: int) -> bytes:
        """Return what is there, as the base class; b"" also when the process has ended.

        A process that it forked may hold the stream open, and must not hide its end.
        """
        if self._pidfd >= 0:
            ready = dict(self._ready.poll())
            if len(ready) == 1 and self._pidfd in ready:
                return b""
        return super().read_some(limit)

    def close_read(self) -> None:
        """Close the file that is read."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        super().close_read()

    def wait(self) -> int | None:
        """Wait until the process has ended; return its exit status."""
        status: int | None = self.popen.wait()
        return status

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the process's end until ``time.monotonic()`` reaches the deadline.

        Returns its exit status, negative for a signal; None if it runs on.
        """
        with suppress(self.execmodel.subprocess.TimeoutExpired):
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        status: int | None = self.popen.returncode
        return status

    def kill(self) -> None:
        """Kill the process, if it has not ended."""
        with suppress(OSError):  # it belongs to another user, or is gone
            self.popen.kill()


def create_io(spec: XSpec, execmodel: ExecModel) -> Popen2IOMaster:
    """Start the command of a spec; return the stream to it."""
    try:
        return Popen2IOMaster(popen_args(spec), execmodel)
    except BootstrapError as exc:
        raise BootstrapError(f"{spec.id}, spec {str(spec)!r}: {exc}") from exc
