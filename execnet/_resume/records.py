"""What this machine remembers of workers with ``resume=``, so that a later program can end them.

A record is a file that only this user can read: what it takes to log in, and the secret.  It goes
when the worker is known to have ended.  Start at ``Record``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from .._clock import monotonic
from .._folders import home
from .._specs import Settings
from ..xspec import XSpec
from .logins import Ended, Login, Session
from .logins import Refused as Refused
from .logins import Unreachable as Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LOGIN_S = 20.0  # of a login that ends a worker whose program has gone
MARGIN_S = 60.0  # after which a supervisor is sure to have ended its worker


def folder() -> str:
    """Return the folder of the records; it need not be there."""
    return os.path.join(home(), "resume")


class Record:
    """The record of one session; nothing is raised where it can't be kept."""

    def __init__(self, session: Session, end_s: float) -> None:
        spec = session.settings.spec
        # What else a spec says may be secret, and is nothing that a login needs.
        parts = [part for part in str(spec).split("//") if not part.startswith("env:")]
        self.path = os.path.join(folder(), os.path.basename(session.folder))
        self._told: dict[str, Any] = {
            "spec": "//".join(parts),
            "worker": spec.id,
            "folder": session.folder,
            "secret": session.secret,
            "boot": session.boot,
            "host": session.host,
            "here": os.uname().nodename,
            "pid": os.getpid(),
            "began": _start_of(os.getpid()),
            "longest_s": session.settings.resume_s + end_s,  # type: ignore[operator]
            "left": None,  # since when nobody is connected, as far as that is known
        }

    def write(self) -> None:
        """Write it; all of it or nothing."""
        with suppress(OSError):
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            fd = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w") as file:
                json.dump(self._told, file)
            os.replace(f"{self.path}.new", self.path)

    def leave(self) -> None:
        """The worker was left to its supervisor; a later program may end it."""
        self._told["left"] = time.time()
        self.write()

    def remove(self) -> None:
        """The worker has ended."""
        with suppress(OSError):
            os.unlink(self.path)


def _start_of(pid: int) -> str:
    """Return when a process began, as far as the system tells: numbers come again."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", encoding="latin-1") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def left() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and content of each record that no program of this machine needs any more."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(os.listdir(folder()))
    for name in names:
        path = os.path.join(folder(), name)
        with suppress(OSError, ValueError, KeyError, TypeError):
            with open(path, encoding="utf-8") as file:
                told: dict[str, Any] = json.load(file)
            if told["here"] == os.uname().nodename and (told["left"] or _is_over(told)):
                yield path, told


def _is_over(told: dict[str, Any]) -> bool:
    try:
        os.kill(int(told["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return bool(told["began"] != _start_of(int(told["pid"])))


def end(path: str, told: dict[str, Any], make_for: Callable[[Settings], Callable[[], Any]]) -> str:
    """End the worker of a record by a login, and remove the record; return what became of it.

    make_for: returns what runs the command of a spec and returns its stream.  Raises
    ``Unreachable`` or ``Refused`` if it may run on; the record stays then.
    """
    settings = Settings(XSpec(told["spec"]))
    session = Session(settings)
    session.folder, session.secret = told["folder"], told["secret"]
    session.place(told)
    what = "was ended"
    try:
        Login(session, make_for(settings), monotonic() + LOGIN_S).kill(lambda carrier: None)
    except Ended as exc:
        what = f"has ended before: {exc}"
    except Unreachable:
        if told["left"] is None:  # its time is running since then, or longer
            told["left"] = time.time()
            with suppress(OSError), open(path, "w", encoding="utf-8") as file:
                json.dump(told, file)
        if time.time() < told["left"] + told["longest_s"] + MARGIN_S:
            raise
        what = "has ended before, as its time is over"
    with suppress(FileNotFoundError):
        os.unlink(path)
    return what
