"""Runs the commands that make an environment, and passes on what they print.

Each has a session of its own, which is killed when the command has ended, when its time is up or
when nobody waits for it any more.  This file is shipped.  Start at ``Commands``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

from .places import text_of
from .quick import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import IO, Any

    from ...gateway_base import Channel

LAST_LINES = 100
LINE_BYTES = 1 << 14  # the rest of a longer line is dropped
LOOK_S = 0.05
# What users have set for their own commands would lead ours astray.
DROPPED = (
    "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_PYTHON",
    "PIP_REPORT", "PIP_LOG", "PIP_DRY_RUN", "PIP_SRC", "PIP_BUILD", "VIRTUAL_ENV", "CONDA_PREFIX",
    "__PYVENV_LAUNCHER__", "UV_PYTHON", "UV_PROJECT", "UV_SYSTEM_PYTHON", "UV_TARGET", "UV_PREFIX",
    "UV_PYTHON_CACHE_DIR", "UV_PYTHON_PREFERENCE", "UV_MANAGED_PYTHON", "UV_NO_MANAGED_PYTHON",
)  # fmt: skip


class Failure(Exception):
    """A step failed."""

    def __init__(
        self, text: str | bytes, step: str = u"", command: Iterable[str | bytes] = (),
        status: int | None = None, lines: Iterable[str] = ()
    ) -> None:
        Exception.__init__(self, text)
        self.text = text_of(text)
        self.step = text_of(step)
        self.command = [text_of(word) for word in command]
        self.status = status
        self.lines = [text_of(line) for line in lines]


class Commands(object):
    """Runs one command after the other.

    channel: where lines go, as ("line", text); when it is closed, the running command is killed.
    deadline: as ``time.time()``.
    """

    def __init__(self, channel: Channel, deadline: float, root: str) -> None:
        self._channel = channel
        self._deadline = deadline
        self._root = root
        self.step = u""

    def begin(self, step: str) -> None:
        """Report the current step."""
        self.step = text_of(step)
        self._channel.send((u"step", self.step))

    def check(self) -> None:
        """Raise if nobody waits any more, or the time is up."""
        if self._channel.isclosed():
            raise EOFError("nobody waits for the environment any more")
        if time.time() > self._deadline:
            raise Failure(u"the time is up", self.step)

    def environ(self, temporary: str, more: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a command; they keep its caches below our folder."""
        found = {name: value for name, value in os.environ.items() if name not in DROPPED}
        for name in list(found):
            if name.startswith("PYTHON"):
                del found[name]
        found.update(
            PIP_CACHE_DIR=os.path.join(self._root, "pip"), PIP_NO_INPUT="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_PROGRESS_BAR="off", PIP_NO_COLOR="1",
            PIP_ROOT_USER_ACTION="ignore", PYTHONDONTWRITEBYTECODE="1", PYTHONNOUSERSITE="1",
            UV_CACHE_DIR=os.path.join(self._root, "uv"), UV_PYTHON_DOWNLOADS="never",
            UV_NO_PROGRESS="1", NO_COLOR="1", TMPDIR=temporary, GIT_TERMINAL_PROMPT="0",
            PYTHONIOENCODING="utf-8:replace",
        )  # fmt: skip
        found.update((native(name), native(value)) for name, value in more.items())
        return found

    def run(
        self, words: list[str], environ: dict[str, str], fd: int | None = None,
        is_silent: bool = False
    ) -> list[str]:  # fmt: skip
        """Run a command to its end; return its last lines.

        is_silent: its lines are not passed on.
        fd: a descriptor that it inherits, so that its lock is held until the command has
        ended, even if this process ends first.  Raises ``Failure``.
        """
        self.check()
        words = [native(word) for word in words]
        process = self._start(words, environ, fd)
        given_up = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process, given_up))
        watcher.daemon = True
        watcher.start()
        lines: deque[str] = deque(maxlen=LAST_LINES)
        output = process.stdout
        assert output is not None  # a pipe
        try:
            for line in _lines_of(output):
                lines.append(line)
                if not is_silent:
                    self._channel.send((u"line", line))
        except BaseException:
            given_up.set()
            raise
        finally:
            watcher.join()
            output.close()
            process.wait()
        if time.time() > self._deadline:
            text = u"%s: it took too long, and was killed" % self.step
            raise Failure(text, self.step, words, None, lines)
        self.check()
        if process.returncode:
            text = u"%s: %s" % (self.step, _why(process.returncode))
            raise Failure(text, self.step, words, process.returncode, lines)
        return list(lines)

    def _start(
        self, words: list[str], environ: dict[str, str], fd: int | None
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        options: dict[str, Any] = {
            "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environ,
        }  # fmt: skip
        if os.name == "posix":
            if sys.version_info >= (3, 4):
                options["start_new_session"] = True
                if fd is not None:
                    options["pass_fds"] = (fd,)
            else:
                options.update(preexec_fn=os.setsid, close_fds=True)
        try:
            with open(os.devnull, "rb") as nothing:
                return subprocess.Popen(words, stdin=nothing, **options)
        except EnvironmentError as exc:
            text = u"%s: %s" % (self.step, text_of(str(exc)))
            raise Failure(text, self.step, words)

    def _watch(self, process: subprocess.Popen[bytes], given_up: threading.Event) -> None:
        """Kill all that a command started, once it has ended, is late or is not wanted any more."""
        while not (given_up.is_set() or self._channel.isclosed() or _has_ended(process)):
            if time.time() > self._deadline:
                break
            given_up.wait(LOOK_S)
        try:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except OSError:
            pass


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; if possible it is not reaped, so that its id is not reused."""
    if hasattr(os, "waitid") and hasattr(os, "WNOWAIT"):
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, process.pid, flags) is not None
        except OSError:
            return True
    return process.poll() is not None


def _why(status: int) -> str:
    return u"it was killed by signal %d" % -status if status < 0 else u"exit status %d" % status


def _lines_of(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of what a command prints, as text."""
    while True:
        line = file.readline(LINE_BYTES)
        if not line:
            return
        text = line.decode("utf-8", "replace").rstrip(u"\r\n")
        while line and not line.endswith(b"\n"):
            line = file.readline(LINE_BYTES)
        yield text
