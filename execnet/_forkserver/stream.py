"""``popen//forkserver``: the stream to a worker that a template forks.

The worker is the template's child, not ours: how it ended, only the template can report; that it
ended, the system can tell as well.  Start at ``create_io``.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from .._clock import monotonic
from .._endpoint import PipeEndpoint
from .._ends import fork as ends_fork
from .._errors import BootstrapError
from .._transports import table as transports_table
from ..gateway_base import ExecModel, above_stdio, new_lock
from . import templates
from .templates import SLICE_S, Fork, Template, TemplateLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._ends.green_poll import GreenPoll
    from .._ends.poll import EndPoll
    from .._specs import Settings

ANSWER_S = 2.0  # how long a template may take to report what became of an order
NEWS_S = 1.0  # how long the report of an end may come after the end
GREEN_S = 0.005  # between two looks, where waiting would stop all greenlets


class ForkedIO(PipeEndpoint):
    """The stream to a worker that a template forks, over two pipes.

    ``boot`` has it forked; ``find_template`` returns a new template if the first is gone.
    ``_lock`` guards the descriptor through which the system reports the worker's end; it is
    closed when nobody waits for that any more.
    """

    needs_boot = True

    def __init__(
        self,
        template: Template,
        find_template: Callable[[], Template],
        execmodel: ExecModel,
        ours: list[int],
        theirs: list[int],
        deadline: float,
        end_poll: Callable[..., EndPoll | GreenPoll | None],
    ) -> None:
        self._find_template = find_template
        self._template = template
        self._deadline = deadline
        self._theirs = theirs
        self.args = self._template.command
        self._fork: Fork | None = None
        self._over = True  # there is no worker, not yet or no longer
        self._status: int | None = None
        self._asked = False  # to end
        self._lock = new_lock()
        self._pidfd = -1  # becomes readable when the worker ends
        self._pidfd_users = 0
        outfile, infile = execmodel.fdopen(ours[0], "wb"), execmodel.fdopen(ours[1], "rb")
        super().__init__(outfile, infile, execmodel)
        self._end_poll = end_poll(ours[1], self, lambda: self._template.watch())
        self._has_answered = False

    def boot(self, options: dict[str, object]) -> None:
        """Have a worker forked; returns before it exists.

        options: the arguments of ``start_worker``.  Raises ``BootstrapError``.
        """
        fds = {"stdin": self._theirs[0], "stdout": self._theirs[1]}
        try:
            with suppress(FileNotFoundError, PermissionError):
                fds["cwd"] = above_stdio(os.open(".", getattr(os, "O_PATH", os.O_RDONLY)))
                self._theirs.append(fds["cwd"])
            if ends_fork.stderr_of_children(-1) is None:
                fds["stderr"] = 2
            try:
                self._fork = self._template.fork(options, fds, self._deadline)
            except TemplateLost:
                self._template = self._find_template()
                self._fork = self._template.fork(options, fds, self._deadline)
            self._over = False
        except (OSError, TemplateLost) as exc:
            raise BootstrapError(f"can't have a worker forked: {exc}", self.args) from exc
        finally:
            self._close_theirs()

    def _close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    # reading

    def read_some(self, limit: int) -> bytes:
        """Return available bytes, like the base class; b"" also when the process has ended."""
        if not self._has_answered:  # until then nobody else uses the stream
            data = super().read_some(limit)
            self._has_answered = bool(data)
            if not data:
                self._explain_no_answer()
            return data
        if self._end_poll is None:
            return super().read_some(limit)
        return self._end_poll.read(super().read_some, limit)

    def has_ended(self) -> bool:
        """Whether the process has ended, as far as known."""
        self._template.take_news()
        fork = self._fork
        if self._over or fork is None or fork.ended:
            return True
        return self._template.lost and not _is_there(fork.pid or self.worker_pid)

    def _explain_no_answer(self) -> None:
        """Raise an EOFError that says why there is no worker, if that is known."""
        fork = self._fork
        if fork is not None and not self._asked:
            self._wait_for_news(lambda: fork.pid or fork.ended, monotonic() + NEWS_S)
            if fork.error:
                raise EOFError(f"the template can't fork: {os.strerror(fork.error)}")
            if fork.pid is None and self._template.lost:
                raise EOFError(self._template.describe_end())

    def close_read(self) -> None:
        """Close the file that is read."""
        if self._end_poll is not None:
            self._end_poll.close()
        super().close_read()

    def close_write(self) -> None:
        """Close the file that is written; the worker reads its end."""
        self._asked = True
        super().close_write()

    # the process

    def _worker(self, deadline: float) -> int | None:
        """Return the worker's process id, None if it is not known by the deadline."""
        fork = self._fork
        if fork is None or fork.pid is not None:
            return fork.pid if fork is not None else None
        self._wait_for_news(lambda: fork.pid or fork.ended, deadline)
        return fork.pid or self.worker_pid

    def _wait_for_news(self, condition: Callable[[], object], deadline: float) -> bool:
        """Wait until reports of the template make a condition true; return whether they did."""
        while not condition():
            self._template.take_news()
            left = deadline - monotonic()
            if condition() or self._template.lost or left <= 0:
                break
            if self.execmodel.has_main_thread:
                self._template.wait_for_news(left)
            else:
                self.execmodel.sleep(GREEN_S)
        return bool(condition())

    def _open_pidfd(self) -> None:
        """Open the descriptor that reports the worker's end, if the system has it."""
        pid = self._worker(monotonic() + ANSWER_S) if not self._over else None
        with self._lock:
            if self._pidfd < 0 and pid and not self._over:
                pidfd = _pidfd_of(pid)
                if pidfd >= 0 and (self._template.lost or _parent_of(pid) == self._template.pid):
                    self._pidfd = pidfd
                elif pidfd >= 0:  # it was reaped, and the number is another's now
                    os.close(pidfd)

    def _leave_pidfd(self) -> None:
        with self._lock:
            self._pidfd_users -= 1
            self._close_pidfd()

    def _close_pidfd(self) -> None:  # holds _lock
        # Greenlets check ``_over`` first, and may no longer run in order to be the last.
        used = self._pidfd_users and self.execmodel.has_main_thread
        if self._over and not used and self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _await_end(self, deadline: float) -> bool:
        """Wait for the worker's end; return whether it has ended."""
        fork = self._fork
        if self._over or fork is None:
            return True
        if not self._worker(deadline) and not fork.ended and not self._template.lost:
            return False
        self._open_pidfd()
        with self._lock:
            self._pidfd_users += 1
        try:
            if not (
                self._await_pidfd(deadline) if self._pidfd >= 0 else self._await_news(deadline)
            ):
                return False
            self._wait_for_news(lambda: fork.ended, monotonic() + NEWS_S)
        finally:
            self._leave_pidfd()
        self._template.release(fork)  # this may end it, so first: others do not wait for us
        with self._lock:
            if not self._over:
                self._over = True
                self._status = fork.status
                self._close_pidfd()
        if self._end_poll is not None:
            self._end_poll.tell()
        return True

    def _await_pidfd(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        while True:
            left = max(0.0, deadline - monotonic())
            if self.execmodel.has_main_thread:
                return bool(poll.poll(None if left == _FOR_EVER else left * 1000))
            if self._over or poll.poll(0):
                return True
            if not left:
                return False
            self.execmodel.sleep(min(left, GREEN_S))

    def _await_news(self, deadline: float) -> bool:
        """The same without a descriptor: through the template's reports, or else by polling."""
        fork = self._fork
        assert fork is not None
        if self._wait_for_news(lambda: fork.ended, deadline):
            return True
        while self._template.lost and _is_there(fork.pid or self.worker_pid):
            left = deadline - monotonic()
            if left <= 0:
                return False
            self.execmodel.sleep(min(left, SLICE_S))
        return self._template.lost

    def wait(self) -> int | None:
        """Wait until the process has ended; return its exit status, None if not known."""
        self._await_end(_FOR_EVER)
        self._close_theirs()
        return self._known_status()

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the process's end until ``time.monotonic()`` reaches the deadline.

        Returns its exit status, negative for a signal; None if it is still running, or unknown.
        """
        return self._known_status() if self._await_end(deadline) else None

    def _known_status(self) -> int | None:
        return self.told_status if self._status is None else self._status

    def kill(self) -> None:
        """Kill the process unless it has ended."""
        fork, template = self._fork, self._template
        if self._over or fork is None:
            return
        self.told_status = None  # it does not end by itself
        pid = self._worker(monotonic() + ANSWER_S)
        if not pid:
            if not fork.ended and not template.lost:  # it does not answer
                template.end(0.0)
            return
        self._open_pidfd()
        with self._lock:
            if self._pidfd >= 0:
                with suppress(OSError):  # it is another user's, or gone
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                    return
        if not template.lost:
            template.kill(fork)
        elif self._pidfd < 0 and not self._over:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill all processes of the group that a worker under ``kill=group`` leads."""
        if self.worker_pid:
            with suppress(OSError):  # none of them are left
                os.killpg(self.worker_pid, signal.SIGKILL)

    def disown(self) -> None:
        """In a forked process: the worker and the stream to it are the parent's."""
        self._lock = new_lock()
        self._pidfd_users = 0
        self._over = True
        if self._end_poll is not None:
            self._end_poll.disown()
        self.worker_pid = self.told_status = None
        with self._lock:
            self._close_pidfd()
        self.close_write()
        self.close_read()


_FOR_EVER = float("inf")


def _pidfd_of(pid: int) -> int:
    """Return a descriptor that becomes readable when a process ends, or -1."""
    try:
        return above_stdio(os.pidfd_open(pid))
    except (AttributeError, OSError):  # an old system, or no descriptor left
        return -1


def _parent_of(pid: int) -> int:
    """Return the parent of a process, 0 if it is not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _is_there(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def create_io(
    settings: Settings,
    execmodel: ExecModel,
    make_pipes: Callable[[int], tuple[list[int], list[int | None]]],
    end_poll: Callable[..., EndPoll | GreenPoll | None],
) -> ForkedIO:
    """Return a stream whose ``boot`` makes the template of a spec fork a worker.

    make_pipes: returns our ends of that many pipes, and the worker's ends.  end_poll: returns an
    object that waits for a stream and for the end of its process.  Raises ``BootstrapError`` if the
    template can't be started, or can't import what it should.
    """
    deadline = settings.deadline() or _FOR_EVER
    command = list(transports_table.command(settings.spec, row=settings.transport))
    ships = not settings.has_source

    def find_template() -> Template:
        return templates.template_for(command, settings.preload, ships, deadline)

    template = find_template()
    ours, theirs = make_pipes(2)
    theirs_open = [fd for fd in theirs if fd is not None]
    return ForkedIO(template, find_template, execmodel, ours, theirs_open, deadline, end_poll)
