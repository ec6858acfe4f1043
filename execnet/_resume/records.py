"""What this machine remembers of workers with ``resume=``, so that a later program can end them.

A record is a file that only this user can read: what is needed to log in, and the secret of the
session.  Of the environment it has what ``surroundings`` lists.  It is removed when the worker is
known to have ended.  Start at ``Record``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from .._clock import monotonic
from .._folders import is_running, resume_folder
from .._specs import JOINED, Settings
from .._transports.surroundings import of_record
from ..xspec import XSpec
from .logins import Ended, Login, Session
from .logins import Refused as Refused
from .logins import Unreachable as Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._endpoint import Endpoint
    from .._transports.surroundings import Surroundings

    MakeFor = Callable[[Settings, Surroundings, list[str]], Callable[[float], Any]]

LOGIN_S = 20.0  # how long a login may take that ends a worker whose program has gone
MARGIN_S = 60.0  # how long after its time a worker is sure to have been ended


def _without_variables(spec: XSpec) -> str:
    """Return a spec without ``env:`` keys, which may be secret; a login does not need them."""
    return "//".join(part for part in str(spec).split("//") if not part.startswith("env:"))


def hops_to(io: Endpoint) -> list[str] | None:
    """Return the specs of the gateways that a stream goes via, the outermost one first.

    None if a later program can't make them: who has dialled in, and services.
    """
    hops: list[str] = []
    while (gateway := io.starter or io.carrier) is not None:
        settings, io = gateway.settings, gateway.endpoint
        if settings.type in (JOINED, "socketservice") or settings.attach:
            return None
        if not settings.is_login:  # otherwise the one that shares it has its keys
            hops.insert(0, _without_variables(settings.spec))
    return hops


class Record:
    """The record of one session; it raises nothing if it can't be kept.

    hops: as ``hops_to`` returns them.
    """

    def __init__(
        self,
        session: Session,
        end_s: float,
        hops: list[str],
        surroundings: Surroundings | None = None,
    ) -> None:
        spec = session.settings.spec
        self.path = os.path.join(resume_folder(), os.path.basename(session.folder))
        self._told: dict[str, object] = {
            "spec": _without_variables(spec),
            "hops": hops,
            "worker": spec.id,
            "folder": session.folder,
            "secret": session.secret,
            "boot": session.boot,
            "host": session.host,
            "here": os.uname().nodename,
            "pid": os.getpid(),
            "began": _start_of(os.getpid()),
            "longest_s": session.settings.resume_s + end_s,  # type: ignore[operator]
            "left": None,  # since when nobody has been connected, if that is known
        }
        if surroundings is not None:
            self._told.update(surroundings.for_record())

    def write(self) -> None:
        """Write the file, all of it or nothing."""
        with suppress(OSError):
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            fd = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w") as file:
                json.dump(self._told, file)
            os.replace(f"{self.path}.new", self.path)

    def leave(self) -> None:
        """Note that the worker was left to its supervisor; a later program may end it."""
        self._told["left"] = time.time()
        self.write()

    def remove(self) -> None:
        """Note that the worker has ended."""
        with suppress(OSError):
            os.unlink(self.path)


def _start_of(pid: int) -> str:
    """Return when a process began, if the system tells, since process ids are used again."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", encoding="latin-1") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def left() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and content of each record that no program on this machine needs any more."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(os.listdir(resume_folder()))
    for name in names:
        path = os.path.join(resume_folder(), name)
        with suppress(OSError, ValueError, KeyError, TypeError):
            with open(path, encoding="utf-8") as file:
                told: dict[str, Any] = json.load(file)
            if told["here"] == os.uname().nodename and (told["left"] or _is_over(told)):
                yield path, told


def _is_over(told: dict[str, Any]) -> bool:
    pid = int(told["pid"])
    return not is_running(pid) or bool(told["began"] != _start_of(pid))


def end(path: str, told: dict[str, Any], make_for: MakeFor) -> str:
    """End the worker of a record by a login, and remove the record; return what happened.

    make_for: called with a spec, what the first command is to be run in, and the specs of the
    gateways on the way; returns what makes a connection there and returns its stream.  Raises
    ``Unreachable`` or ``Refused`` if it may run on; the record stays then.
    """
    settings = Settings(XSpec(told["spec"]))
    session = Session(settings)
    session.folder, session.secret = told["folder"], told["secret"]
    session.place(told)
    what = "was ended"
    try:
        make = make_for(settings, of_record(told), told.get("hops", []))
        Login(session, make, monotonic() + LOGIN_S).kill(lambda carrier: None)
    except Ended as exc:
        what = f"has ended before: {exc}"
    except Unreachable:
        if told["left"] is None:  # then its time has been running since now at the latest
            told["left"] = time.time()
            with suppress(OSError), open(path, "w", encoding="utf-8") as file:
                json.dump(told, file)
        if time.time() < told["left"] + told["longest_s"] + MARGIN_S:
            raise
        what = "has ended before, as its time is over"
    with suppress(FileNotFoundError):
        os.unlink(path)
    return what
