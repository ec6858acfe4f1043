"""Finds an environment and starts a worker of its interpreter, in one step.

That is for an environment that is there, where a worker can start from what is kept of earlier
ones; else it only tells what there is.  The interpreter starts while what forwards its bytes,
``_via.far``, is being loaded.  This file is shipped with that, or kept: ``quick`` loads it then.
Start at ``main``.
"""

from __future__ import annotations

import os
import sys

from .find import find
from .places import text_of
from .quick import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from ...gateway_base import Channel, ExecModel


# What forwards, each after those that it imports.
FORWARDS = "far_loop", "far_ends", "far_kept", "far_forwarder", "far_polled", "far_threads", "far"
HAS_CLOSEFROM = hasattr(os, "POSIX_SPAWN_CLOSEFROM")  # Python 3.13 with a new C library
OPEN = "/dev/fd" if sys.platform == "darwin" else "/proc/self/fd"  # names what is open


def main(channel: Channel) -> None:
    """Answer one item, which is as that for ``_via.far``."""
    data, news, request = channel.receive()
    told = request["told"]
    answer, held = find(request)
    told.send({text_of(name): value for name, value in answer.items()})
    if held is not None:

        def release(_: object) -> None:
            os.close(held)

        told.setcallback(release, endmarker=None)
    if not (answer.get("found") and answer["has_core"]):
        news.send((None, b"", b"it is not there"))
        data.send(0)
        return
    try:
        os.utime(answer["core"], None)  # noted as its last use
    except OSError:  # it is being pruned
        pass
    words = [answer["python"]] + request["args"][1:] + [answer["core"], answer["venv"]]
    spawned = spawn(words) if can_spawn(channel.gateway.execmodel) else None
    base = sys.modules[channel.__class__.__module__]
    parts = [base.load_part("_via." + name) for name in FORWARDS]
    child = Child(parts[FORWARDS.index("far_ends")], *spawned) if spawned else None
    parts[-1].forward(data, news, dict(request, args=words), child)


def can_spawn(model: ExecModel) -> bool:
    """Whether a process can be started without ``subprocess``, which takes long to import."""
    has_calls = hasattr(os, "posix_spawn") and hasattr(os, "waitid")
    return model.has_main_thread and has_calls and (HAS_CLOSEFROM or os.path.isdir(OPEN))


class Child(object):
    """A process that was spawned, as ``_via.far_ends.Process``."""

    stderr = None

    def __init__(self, far_ends: ModuleType, pid: int, read_fd: int, write_fd: int) -> None:
        import threading  # which takes a while, and is there by now

        self.read_fd, self.write_fd = read_fd, write_fd
        self._far_ends = far_ends
        self._pid = pid
        self._lock = threading.Lock()
        self._has_ended = False  # and its id may be another's

    def kill(self, worker_pid: int | None) -> None:
        """Kill it, if it has not ended, and what it started: all, if no worker is known."""
        for pid in self._far_ends.descendants(self._pid):
            if worker_pid in (None, pid):  # what a worker started is its own
                _kill(pid)
        with self._lock:
            if not self._has_ended:
                _kill(self._pid)

    def close_write(self) -> None:
        """Its stdin is a file of its own, which was closed."""

    def open_end(self) -> int:
        """Return a descriptor that can be read once it has ended, -1 if the system has none."""
        fd: int = self._far_ends.open_end_of(self._pid)
        return fd

    def status(self) -> int | None:
        """Wait until it has ended; return the exit status, None if nobody knows it."""
        try:
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                _, status = os.waitpid(self._pid, 0)
                self._has_ended = True
        except OSError:  # code here ignores SIGCHLD, or has asked for it first
            self._has_ended = True
            return None
        is_killed = os.WIFSIGNALED(status)
        return -os.WTERMSIG(status) if is_killed else os.WEXITSTATUS(status)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except OSError:  # it has ended
        pass


def closing() -> list[tuple[int, ...]]:
    """Return what closes the descriptors that code here has made inheritable."""
    if HAS_CLOSEFROM:
        return [(os.POSIX_SPAWN_CLOSEFROM, 3)]  # type: ignore[attr-defined]
    found: list[tuple[int, ...]] = []
    for name in os.listdir(OPEN):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append((os.POSIX_SPAWN_CLOSE, int(name)))
        except OSError:  # it was closed meanwhile, such as that of the list
            pass
    return found


def spawn(words: list[str]) -> tuple[int, int, int] | None:
    """Start a command; return its id and our ends of its pipes, None if it can't be started."""
    stdin, write_fd = os.pipe()
    read_fd, stdout = os.pipe()
    actions: list[tuple[int, ...]] = [
        (os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1),
    ]  # fmt: skip
    try:
        actions += closing()
        pid = os.posix_spawn(native(words[0]), words, os.environ, file_actions=actions)
    except OSError:  # the usual way tells why
        os.close(write_fd)
        os.close(read_fd)
        return None
    finally:
        os.close(stdin)
        os.close(stdout)
    return pid, read_fd, write_fd
