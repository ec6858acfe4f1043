"""What is raised when a worker can't be started, or dies."""

from __future__ import annotations

from errno import ECONNREFUSED

from .gateway_base import ExecnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class WorkerDied(ExecnetError, EOFError):
    """The worker ended without having been asked to.

    ``exitcode`` is its exit status, negative for a signal, None if that is not known; ``signal``
    the number of that signal; ``id`` and ``spec`` are the gateway's, ``stderr`` is its last words,
    ``last_asked`` names the code it was last sent, ``hop`` the gateway on the way there that ended.
    """

    __module__ = "execnet"
    signal: int | None = None
    id = spec = stderr = last_asked = hop = ""

    def __init__(self, text: str, exitcode: int | None = None) -> None:
        super().__init__(text)
        self.exitcode = exitcode

    def as_refusal(self) -> WorkerGone:
        """Return the error for what can't be sent because of it."""
        gone = WorkerGone(str(self))
        vars(gone).update(vars(self))
        return gone


class WorkerGone(WorkerDied, OSError):
    """Something could not be sent because the worker has died; the text is as in ``WorkerDied``."""

    __module__ = "execnet"


class BootstrapError(ExecnetError, OSError, EOFError):
    """A worker could not be started; the text has all that is known.

    command: its words, empty where nothing was run.  exitcode: its exit status, negative for
    a signal, None if it is not known.  stderr: the last of it, where it was captured.
    noise: what came in place of the worker's answer.
    """

    __module__ = "execnet"

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

    __module__ = "execnet"


class HostRefused(HostNotFound, ConnectionRefusedError):
    """Nothing listens there (yet): programs that wait for a server catch the builtin error."""

    errno = ECONNREFUSED


class AuthenticationError(BootstrapError):
    """A socket server and this client did not prove to each other that they have one key.

    Nothing of the worker's source, variables or folder was sent.
    """

    __module__ = "execnet"


class NoMember(KeyError, IndexError):
    """A group has no gateway at that index."""


class SecurityWarning(UserWarning):
    """Something goes on that somebody else could listen to, or take part in."""

    __module__ = "execnet"


class SpecWarning(UserWarning):
    """A spec has what means nothing, and looks like a slip of the pen."""

    __module__ = "execnet"


def command_text(args: list[str]) -> str:
    """Return a command as one would type it."""
    import shlex

    return shlex.join(args)


def with_command(text: str, args: Sequence[str]) -> str:
    """Return the text of an error and, after it, the command that it is about, if any."""
    return f"{text}\nthe command: {command_text(list(args))}" if args else text


def indented(text: str) -> str:
    """Return text from elsewhere whose further lines can't be taken for another worker's."""
    first, *others = text.rstrip().split("\n")
    return "\n".join([first, *(other and f"  {other}" for other in others)])
