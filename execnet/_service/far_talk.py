"""Talks to the services of a machine, sessions included, in a worker there.

It is for ``execnet session``, and for ``execnet service --spec``.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at
``main``.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from ..gateway_base import load_part
from . import far_find
from .far_find import ServiceError, clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ..gateway_base import Channel
    from .far_find import Prove, Said

PREFIX = "session-"
BOOT = ["-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
START_S = 60.0
ANSWER_S = 5.0
STOP_S = 12.0
FOREVER_S = 1e9


def main(channel: Channel) -> None:
    """Serve the requests on the channel that comes next; returns at once.

    So Ctrl-C in the terminal, which also reaches the main thread here, interrupts nothing.
    """
    thread = threading.Thread(target=_do, args=(channel.receive(),))
    thread.daemon = True
    thread.start()


def _do(channel: Channel) -> None:
    """Serve the request in the next item: send the results, and close the channel."""
    try:
        said = channel.receive()
    except EOFError:
        return
    try:
        _DEEDS[said["do"]](channel, said)
    except (ServiceError, EnvironmentError, EOFError) as exc:
        if not channel.isclosed():
            channel.send({"error": "%s" % (exc,)})
    finally:
        channel.close()


def _execute(channel: Channel, said: Said) -> None:
    words = said["words"] or [sys.executable]
    want = {"name": PREFIX + said["name"], "port": None, "words": words + BOOT}

    def line_for(more: Said) -> bytes:
        known = {name: more[name] for name in ("folder", "lock", "ready")}
        known["python"] = " ".join(words)
        channel.send({"wants": known})
        line: bytes = channel.receive()
        return line

    sock, _ = far_find.connect(want, clock() + START_S, line_for)
    try:
        request = {"ask": "session", "code": said["code"], "idle": said["idle"]}
        far_find.say(sock, dict(request, client=said["client"]))
        thread = threading.Thread(target=_hand_on, args=(channel, sock))
        thread.daemon = True
        thread.start()
        answer: Said = {}
        while "status" not in answer and "error" not in answer:
            answer = far_find.read_dict(sock, clock() + FOREVER_S)
            channel.send(answer)
    except EOFError:
        raise ServiceError("the session has ended")
    finally:
        sock.close()


def _hand_on(channel: Channel, sock: socket.socket) -> None:
    """Pass on what is said while code runs; the client's end ends the connection."""
    try:
        while True:
            far_find.say(sock, channel.receive())
    except (EnvironmentError, EOFError):
        try:
            sock.shutdown(2)
        except EnvironmentError:
            pass  # it is closed


def _found() -> list[tuple[str, Said]]:
    """Return (folder, record) of the running services."""
    services, found = far_find.services_folder(makes=False), []
    for name in sorted(os.listdir(services)) if os.path.isdir(services) else ():
        folder = os.path.join(services, name)
        try:
            far_find.be_private(folder, makes=False)
        except ServiceError:
            continue  # it is not the folder of a service
        lock = far_find.try_lock(folder)
        if lock >= 0:  # it has ended
            os.close(lock)
            continue
        record = far_find.record_of(folder)
        if record:  # one that is just starting has none yet
            found.append((folder, record))
    return found


def _sessions() -> list[tuple[str, Said]]:
    return [one for one in _found() if str(one[1].get("service")).startswith(PREFIX)]


def _asked(folder: str, record: Said, what: str) -> Said:
    port, deadline = record.get("port"), clock() + ANSWER_S
    attached = far_find.attach(folder, port, deadline, _prover() if port else int)
    if attached is None:
        raise ServiceError("it has ended")
    try:
        far_find.say(attached[0], {"ask": what})
        return far_find.read_dict(attached[0], deadline)
    finally:
        attached[0].close()


def _prover() -> Prove:
    """Return what makes both ends of a connection to a port prove that they have the key."""
    try:
        server = load_part("script.socketserver")
    except (ImportError, AttributeError):  # newer Pythons look for the package's __spec__
        raise ServiceError("it has a port, and the source to ask it was not sent")

    def prove(sock: socket.socket) -> None:
        try:
            server._proved(sock, server.default_key(), None, False)
        except ValueError as exc:
            raise ServiceError("what listens there is not this service: %s" % exc)

    return prove


def _list(channel: Channel, said: Said) -> None:
    for folder, record in _sessions():
        channel.send(dict(_told(folder, record), session=record["service"][len(PREFIX) :]))


def _told(folder: str, record: Said) -> Said:
    """Return the status of a service, or its record with an ``error`` if it does not answer."""
    try:
        return _asked(folder, record, "status")
    except (ServiceError, EnvironmentError, EOFError) as exc:
        return dict(record, error="%s" % (exc,))


def _stop(channel: Channel, said: Said) -> None:
    found = [one for one in _sessions() if one[1]["service"] == PREFIX + said["name"]]
    if not found:
        raise ServiceError("no session %r is running there" % said["name"])
    for folder, record in found:
        _end(folder, record)


def _end(folder: str, record: Said) -> None:
    """End a service; return when it has ended.  One that does not is killed."""
    try:
        _asked(folder, record, "stop")
        if _ends(folder):
            return
    except (ServiceError, EnvironmentError, EOFError):
        pass  # it does not answer
    pid = far_find.listener_of(folder, record)
    if pid:
        far_find.kill(pid)
    if not _ends(folder):
        raise ServiceError("the process %d did not end" % record["pid"])


def _ends(folder: str) -> bool:
    deadline = clock() + STOP_S
    while clock() < deadline:
        lock = far_find.try_lock(folder)
        if lock >= 0:
            os.close(lock)
            return True
        time.sleep(0.01)
    return False


def _services(channel: Channel, said: Said) -> None:
    for folder, record in _found():
        channel.send(dict(_told(folder, record), key=os.path.basename(folder)))


def _end_one(channel: Channel, said: Said) -> None:
    _end(*_one(said["key"]))


def _log(channel: Channel, said: Said) -> None:
    channel.send({"log": far_find.log_of(_one(said["key"])[0])})


def _one(key: str) -> tuple[str, Said]:
    for one in _found():
        if os.path.basename(one[0]) == key:
            return one
    raise ServiceError("it has ended")


_DEEDS = {
    "exec": _execute,
    "list": _list,
    "stop": _stop,
    "services": _services,
    "end": _end_one,
    "log": _log,
}
