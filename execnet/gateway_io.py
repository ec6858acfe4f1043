"""Transports: a spec becomes a command whose stdin and stdout reach an interpreter.

Starts the command and holds its pipes; what is said over them is known elsewhere.  Start at
``create_io``.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from . import _transports
from ._transports import popen_bootstrapline as popen_bootstrapline
from ._transports import shell_split_path as shell_split_path
from .gateway_base import ExecModel, ExecnetError, Popen2IO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .xspec import XSpec

PIPE_BYTES = 1 << 20
GENTLE_S = 0.2  # for ssh to give the terminal its echo back, when a prompt is given up


class BootstrapError(ExecnetError, OSError, EOFError):
    """A worker could not be started; the text has all that is known.

    command: its words, empty where nothing was run.  exitcode: its exit status, negative for
    a signal, None if it is not known.  stderr: the last of it, where it was captured.
    noise: what came in place of the worker's answer.
    """

    def __init__(
        self,
        text: str,
        command: Sequence[str] = (),
        exitcode: int | None = None,
        stderr: str = "",
        noise: bytes = b"",
    ) -> None:
        super().__init__(text)
        self.command = list(command)
        self.exitcode = exitcode
        self.stderr = stderr
        self.noise = noise


class HostNotFound(BootstrapError):
    """The host of a spec could not be reached."""


def command_text(args: list[str]) -> str:
    """Return a command as one would type it."""
    import shlex

    return shlex.join(args)


def popen_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter on this machine."""
    return _args("popen", spec)


def ssh_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter through ssh."""
    return _args("ssh", spec)


def vagrant_ssh_args(spec: XSpec) -> list[str]:
    """Return the command that starts an interpreter in a machine of vagrant's."""
    return _args("vagrant_ssh", spec)


def _args(key: str, spec: XSpec) -> list[str]:
    row = _transports.TRANSPORTS[key]
    return row.make(spec, _transports.interpreter_words(spec, row, sys.executable))


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

    args: the command; its stderr is captured if it is a ``Command`` that says so.
    Raises ``BootstrapError`` if it can't be started.
    """

    remoteaddress: str | None = None
    ready = False  # set once the worker has said hello: from then on its children are its own

    def __init__(self, args: list[str], execmodel: ExecModel) -> None:
        self.args = args
        self._stderr: Any = None
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


def create_io(
    spec: XSpec, execmodel: ExecModel, find_gateway: Callable[[str], Any] | None = None
) -> Any:
    """Start what a spec says; return the stream to it.

    find_gateway: returns the gateway of the group that has an id, for ``via=`` and
    ``installvia=``; raises KeyError.  Raises ``BootstrapError`` for what can't be started.
    """
    try:
        if spec.via:
            from . import _via

            return _via.create_io(spec, execmodel, find_gateway)
        if spec.socket:
            from . import gateway_socket

            return gateway_socket.create_io(spec, execmodel, find_gateway)
        return Popen2IOMaster(popen_args(spec), execmodel)
    except BootstrapError as exc:
        raise type(exc)(f"{spec.id}, spec {str(spec)!r}: {exc}") from exc
