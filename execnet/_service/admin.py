"""Queries the services of this user, and ends them.

Start at ``find_all``, ``status`` and ``stop``.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress

from .. import _folders
from .._clock import monotonic, sleep
from .._errors import AuthenticationError
from . import far_find
from .far_find import ServiceError
from .near import Pid, prover

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .far_find import Said

ANSWER_S = 5.0
STOP_S = 12.0  # twice the longest time that a service takes
LOOK_S = 0.005

Found = tuple[str, "Said"]  # the folder of a service, and its record


def folders() -> Iterator[str]:
    """Yield the folders of services of this user; the services may have ended."""
    services = far_find.services_folder(makes=False)
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(services)):
            folder = os.path.join(services, name)
            with suppress(ServiceError):
                far_find.be_private(folder, makes=False)
                yield folder


def is_over(folder: str) -> bool:
    """Whether a folder has no service, and nobody is starting one there."""
    lock = far_find.try_lock(folder)
    if lock >= 0:
        os.close(lock)
    return lock >= 0


def find_all() -> list[Found]:
    """Return the running services, ordered by name."""
    found = [(folder, far_find.record_of(folder)) for folder in folders() if not is_over(folder)]
    found = [one for one in found if one[1]]  # one that is just starting has not written it yet
    return sorted(found, key=lambda one: (str(one[1].get("service")), one[0]))


def find(name: str, python: str | None = None) -> Found:
    """Return the service with a name, or with a port.

    python: the command of its interpreter, if several have the name.  Raises ``ServiceError`` if
    there is none, or more than one.
    """
    return chosen(find_all(), name, python)


def chosen(found: list[Found], name: str, python: str | None, place: str = "here") -> Found:
    """Return the one that is meant; as ``find``.  place: where they are, in words."""
    found = [one for one in found if one[1].get("service") == name]
    if python is not None:
        found = [one for one in found if one[1].get("python") == python]
    if not found:
        raise ServiceError(f"no service {name!r} runs {place}")
    if len(found) > 1:
        pythons = ", ".join(str(record.get("python")) for _, record in found)
        raise ServiceError(f"several services are named {name!r}, say which: --python {pythons}")
    return found[0]


def status(found: Found) -> Said:
    """Return the status of a service; ``ServiceError`` if it does not answer."""
    answer, process = _ask(found, "status")
    process.close()
    return answer


def _ask(found: Found, what: str) -> tuple[Said, Pid]:
    folder, record = found
    deadline = monotonic() + ANSWER_S
    port = record.get("port")
    attached = process = None
    try:
        attached = far_find.attach(folder, port, deadline, prover(port, deadline) if port else int)
        if attached is None:
            raise ServiceError(f"the service {record.get('service')!r} has ended")
        sock, greeting = attached
        process = Pid(greeting["pid"])
        far_find.say(sock, {"ask": what})
        answer = far_find.read_dict(sock, deadline)
        if "error" in answer:
            raise ServiceError(str(answer["error"]))
        return answer, process
    except BaseException as exc:
        if process is not None:
            process.close()
        if not isinstance(exc, (OSError, EOFError, AuthenticationError)):
            raise
        raise ServiceError(f"the service {record.get('service')!r} does not answer: {exc}") from exc
    finally:
        if attached is not None:
            attached[0].close()


def losses(told: Said) -> list[str]:
    """Return in words what would be lost if a service with this status ended."""
    lost = [f"the connection of {one['id']}, process {one['pid']}" for one in told["clients"]]
    lost += [f"running code: {one['code']} ({one['client']})" for one in told["running"]]
    lost += [f"the last result of: {one['code']}" for one in told.get("ended", ())]
    lost += [f"state[{key}]" for key in told["state"]]
    return lost + [f"the connection to {one['host']}" for one in told["kept"]]


def stop(found: Found) -> None:
    """End a service; returns when its process is gone.

    Its code is interrupted and gets some seconds; a service that does not end by then, or does not
    answer, is killed.  Raises ``ServiceError`` if that fails.
    """
    try:
        process = _ask(found, "stop")[1]
        if _wait_ended(process, STOP_S):
            return
    except ServiceError:
        if is_over(found[0]):
            return
    pid = far_find.listener_of(*found)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if _wait_ended(Pid(pid), STOP_S):
            return
    elif _wait_until_over(found[0], STOP_S):  # it has just been killed
        return
    raise ServiceError(f"process {found[1].get('pid')} of the service does not end")


def _wait_ended(process: Pid, wait_s: float) -> bool:
    deadline = monotonic() + wait_s
    try:
        while not process.has_ended():
            if monotonic() > deadline:
                return False
            sleep(LOOK_S)
        return True
    finally:
        process.close()


def _wait_until_over(folder: str, wait_s: float) -> bool:
    deadline = monotonic() + wait_s
    while not is_over(folder):
        if monotonic() > deadline:
            return False
        sleep(LOOK_S)
    return True


def log_lines(found: Found) -> list[str]:
    """Return the lines of a service's log."""
    return far_find.log_of(found[0]).splitlines()


def leftovers() -> Iterator[tuple[str, str]]:
    """Yield (path, description) of the folders of services that have ended."""
    try:
        for folder in list(folders()):
            if is_over(folder):
                yield folder, "the folder of a service that has ended"
    except ServiceError:  # not a usable folder
        return


def remove(folder: str) -> bool:
    """Remove the folder of a service that has ended; return False if it is in use again.

    It is locked meanwhile, so nobody starts a service there.  The lock itself goes last: whoever
    waits for it then finds that it is not the folder's any more.
    """
    lock = far_find.try_lock(folder)
    if lock < 0:
        return not os.path.lexists(folder)
    try:
        for name in sorted(os.listdir(folder), key="lock".__eq__):
            _folders.remove(os.path.join(folder, name))
    finally:
        os.close(lock)
    try:
        os.rmdir(folder)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise
        return not os.path.lexists(folder)
    return True
