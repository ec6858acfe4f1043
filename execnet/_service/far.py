"""The process of a service: it accepts connections, each of which is a worker's gateway.

The main thread executes only what has to run there; one thread accepts, and each connection has a
thread, which becomes the gateway's receiver thread.  It answers requests to the service, even while
code of others runs.  Code that does not end with its connection is an orphan: it is listed, and
ends only with the service.

This file is shipped, too; it keeps to what Python 2.7 and today's Python both accept.  Start at
``run`` and ``Service``.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections import deque

from ..gateway_base import (
    _decoded,
    _frame_of,
    _hello,
    _serve,
    get_execmodel,
    geterrortext,
    load_part,
    real_select,
)
from . import far_find, far_log
from .far_find import PROTOCOL, ServiceError, clock
from .far_gateway import (
    ConnectionIO,
    Running,
    ServiceGateway,
    ServiceProcess,
    Turns,
    kept,
    state,
    text_of,
    told_of,
)
from .far_log import keep_from_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .far_find import Said
    from .far_gateway import Execution

    Place = tuple[int, int] | None

PROOF_S = 10.0  # how long a connection may take to authenticate
STRANGERS = 64  # how many may do so at once
REQUEST_S = 30.0  # how long a connection may take to say what it wants
LOOK_S = 5.0  # between checks whether the record is still there, and whether it is idle
TOUCH_S = 86400.0  # cleaners remove files that were not touched for long
STOP_S = 6.0  # how long code may take to end together with the service
EXIT_S = 2.0  # and functions registered with ``atexit``
FLUSH_S = 0.5  # and its output, to reach the log
BACKLOG = 128
ENDED = 20  # tasks that have ended without a connection, of which something is known
NOT_FOR_ONE = "chdir", "nice", "limits", "env", "kill"  # since others share the process


def _occupy_stdio() -> None:
    """Keep the numbers 0 to 2 from the next descriptors, where code has closed those."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    os.close(null)


class Service(object):
    """A service, and what goes on in it.

    Any thread may read; the thread that accepts ends it.
    """

    def __init__(self, options: Said) -> None:
        self._options = options
        self.name = str(options["name"])
        self.folder = options["folder"]
        self.port = options["port"]
        self.idle_s: float = options["idle"]
        self.since = time.time()
        self.process = ServiceProcess()
        self.turns = Turns()
        self.model = get_execmodel("thread")
        self.running: dict[int, Execution] = {}  # by the number of the thread
        self.routes: dict[int, far_log.Sink] = {}  # by the same
        self.files = [far_log.Router(number, self.routes, self.running) for number in (1, 2)]
        self.ended: deque[Running] = deque(maxlen=ENDED)  # those whose connection was lost before
        self.clients: set[ServiceGateway] = set()
        self._main_tasks: deque[Callable[[], object]] = deque()
        self._socks: set[socket.socket] = set()
        self._strangers = 0  # connections that have not authenticated
        self._connections = 0  # those that have not ended, including those without a gateway
        self._lock = threading.Lock()
        self._listener: Any = None  # a socket, once it listens
        self._log = far_log.Log(os.path.join(self.folder, "log"))
        self._places: dict[str, Place] = {}  # those of the socket and the record that it made
        self._is_stopping = False
        self._is_ended = False
        self._idle_from = clock()
        self._looked = self._touched = clock()
        self._woken, self._wakes = _pipe()
        self._main_woken, self._main_wakes = _pipe()

    # ------------------------------------------------------------ the start

    def begin(self) -> None:
        """Listen, and write the record; raises what goes wrong."""
        if not far_find.is_lock_of(self.folder, self._options["lock"]):
            raise ServiceError("somebody removed the folder %s" % text_of(self.folder))
        far_find.remove(os.path.join(self.folder, "record"))  # left by one that was killed
        self._listener = self._listen()
        keep_from_children(self._listener.fileno())
        self._listener.setblocking(False)
        self._write_record()
        self._log.begin()
        sys.stdout, sys.stderr = self.files
        if sys.version_info >= (3, 7):
            os.register_at_fork(after_in_child=self._leave)
        else:
            for name in "fork", "forkpty":
                if hasattr(os, name):
                    setattr(os, name, self._left_after(getattr(os, name)))

    def _listen(self) -> socket.socket:
        if self.port:
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((far_find.LOOPBACK, self.port))
            except EnvironmentError as exc:
                raise ServiceError("port %d: %s" % (self.port, exc.strerror))
        else:
            path = far_find.socket_of(self.folder)
            far_find.remove(path)  # we have the lock, so nobody else listens there
            listener = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            self._places["socket"] = _place_of(path)
        listener.listen(BACKLOG)
        return listener

    def _write_record(self) -> None:
        import json

        path = os.path.join(self.folder, "record")
        fd = far_find.open_private(path + ".new", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, json.dumps(self.greeting(), sort_keys=True).encode("ascii") + b"\n")
        os.close(fd)
        os.rename(path + ".new", path)
        self._places["record"] = _place_of(path)

    def greeting(self) -> Said:
        """Return the greeting of each connection, which is also in the record."""
        return {
            "service": self.name,
            "port": self.port,
            "protocol": PROTOCOL,
            "version": self._options["version"],
            "python": text_of(self._options["python"]),
            "executable": text_of(sys.executable),
            "version_info": tuple(sys.version_info[:3]),
            "pid": os.getpid(),
            "since": self.since,
        }

    # ------------------------------------------------------------ the thread that accepts

    def accept_all(self) -> None:
        """Take connections until the service ends."""
        select = real_select()
        poll = select.poll()
        for fd in self._listener.fileno(), self._woken:
            poll.register(fd, select.POLLIN)
        while not self._is_stopping:
            try:
                ready = dict(poll.poll(self._pause_s() * 1000))
            except select.error:  # Python 2, at a signal
                continue
            if self._woken in ready:
                os.read(self._woken, 4096)
            if self._listener.fileno() in ready:
                self._accept()
            self._look()
        self._end()

    def _accept(self) -> None:
        try:
            _occupy_stdio()
            sock, _ = self._listener.accept()
        except EnvironmentError:  # it is gone, or there are no descriptors left
            time.sleep(0.01)
            return
        keep_from_children(sock.fileno())
        sock.setblocking(True)
        with self._lock:
            self._socks.add(sock)
            self._connections += 1
            self._strangers += 1
            is_crowd = self._strangers > STRANGERS
        if is_crowd:
            self._know(sock)
            self._forget(sock)
            return
        try:
            self.model.start(self._serve, (sock,), "execnet-service-client")
        except RuntimeError:  # there can be no more threads
            self._know(sock)
            self._forget(sock)

    def _pause_s(self) -> float:
        """Return when to check again."""
        if self._connections or self.running or kept or not self.idle_s:
            return LOOK_S
        return min(LOOK_S, max(0.0, self._idle_from + self.idle_s - clock()) + 0.001)

    def _look(self) -> None:
        """Check whether there is a reason to end."""
        now = clock()
        if self._connections or self.running or kept:
            self._idle_from = now
        elif self.idle_s and now - self._idle_from > self.idle_s:
            self.stop_soon()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if not all(map(self._has, self._places)):  # nobody can find it any more
            self.stop_soon()
        elif now - self._touched > TOUCH_S:
            self._touched = now
            for name in "record", "lock", "socket", "log":
                try:
                    os.utime(os.path.join(self.folder, name), None)
                except EnvironmentError:
                    pass

    def _has(self, name: str) -> bool:
        """Whether a file is still this service's, and not a successor's; it is not opened.

        For its code may have used up all descriptors.
        """
        is_ours = _place_of(os.path.join(self.folder, name)) == self._places.get(name)
        return is_ours and far_find.is_lock_of(self.folder, self._options["lock"])

    def _remove_traces(self) -> None:
        """Remove the socket and the record, except those of a successor."""
        for name in self._places:
            if self._has(name):
                far_find.remove(os.path.join(self.folder, name))

    def stop_soon(self) -> None:
        """Make the service end; any thread may call, and signal handlers."""
        self._is_stopping = True
        os.write(self._wakes, b".")

    def _end(self) -> None:
        """End running code, then let the main thread end the process, or do it here."""
        self._listener.close()
        self._remove_traces()
        deadline, main = clock() + STOP_S, self.process.main_ident
        for client in list(self.clients):
            client.stop()
        if main in self.running:
            self.running[main].stop()
        running = [one for one in list(self.running.values()) if isinstance(one, Running)]
        left = {one.gateway for one in running if one.gateway.is_left}
        for gateway in left:
            gateway.interrupt_left()
        while clock() < deadline and (
            self.clients
            or main in self.running
            or any(gateway.is_busy() for gateway in left)
        ):
            time.sleep(0.005)
        self._is_ended = True
        os.write(self._main_wakes, b".")
        time.sleep(FLUSH_S + EXIT_S)  # time for the main thread to exit, if it can
        os._exit(1)

    # ------------------------------------------------------------ the main thread

    def run_in_main(self) -> None:
        """Run code that has to run there, until the service has ended."""
        while not self._is_ended:
            try:
                os.read(self._main_woken, 1)
                while self._main_tasks:
                    self._main_tasks.popleft()()
            except KeyboardInterrupt:
                pass  # it came too late for its code
            except EnvironmentError as exc:  # on Python 2 a signal ends the wait
                if exc.errno != errno.EINTR:
                    raise

    def call_in_main(self, function: Callable[[], object]) -> None:
        """Queue a function for the main thread."""
        self._main_tasks.append(function)
        os.write(self._main_wakes, b".")

    def exit(self) -> None:
        """End the process, without waiting for code that does not end."""
        import atexit

        try:
            atexit._run_exitfuncs()
        except BaseException:
            sys.stderr.write(geterrortext(sys.exc_info()))
        self._log.end(FLUSH_S)
        os._exit(0)

    # ------------------------------------------------------------ a connection's thread

    def _serve(self, sock: socket.socket) -> None:
        try:
            try:
                pid = self._admit(sock, clock() + PROOF_S)
            finally:
                self._know(sock)
            deadline = clock() + REQUEST_S
            far_find.say(sock, self.greeting())
            request = far_find.read_dict(sock, deadline)
            sock.settimeout(None)
            self._act(sock, request, pid)
        except (EnvironmentError, EOFError, ServiceError):
            pass  # it is gone, or was not admitted
        except Exception:
            sys.stderr.write(geterrortext(sys.exc_info()))
        finally:
            self._forget(sock)

    def _know(self, sock: socket.socket) -> None:
        """Note that a connection was admitted or not."""
        with self._lock:
            self._strangers -= 1

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._socks.discard(sock)
            self._connections -= 1
        sock.close()
        self._idle_from = clock()
        os.write(self._wakes, b".")

    def _admit(self, sock: socket.socket, deadline: float) -> int:
        """Return the process id of the other end, if it is admitted."""
        if self.port:
            load_part("_service.far_proof").admit(sock, deadline)
            return 0
        pid, user = far_find.peer_of(sock)
        if user != os.geteuid():
            raise ServiceError("user %d does not own this service" % user)
        return pid

    def _act(self, sock: socket.socket, request: Said, pid: int) -> None:
        ask = request.get("ask")
        if request.get("idle") is not None:
            self.idle_s = request["idle"]
        if ask == "gateway":
            self._be_gateway(sock, request, pid or request.get("pid", 0))
        elif ask == "session":
            load_part("_service.far_session").serve(self, sock, request)
        elif ask == "status":
            far_find.say(sock, self.status())
        elif ask == "stop":
            far_find.say(sock, self.status())
            self.stop_soon()
        else:
            far_find.say(sock, {"error": "this service, of version %s, does not support %s"
                                         % (self._options["version"], ask)})

    def _be_gateway(self, sock: socket.socket, request: Said, pid: int) -> None:
        options = request["options"]
        io = ConnectionIO(sock, self.model)
        for name in NOT_FOR_ONE:
            if options.get(name):
                text = "%s= would be for the whole service, which serves others too" % name
                io.write(options["marker"] + _frame_of({"error": text}))
                return
        io.write(options["marker"] + _hello())
        one_at_a_time = bool(request.get("one_at_a_time"))
        _serve(
            io,
            _decoded(options["id"]),
            options["codecs"],
            options["grace"],
            lambda **more: ServiceGateway(
                service=self, pid=pid, one_at_a_time=one_at_a_time,
                goes_on=bool(request.get("goes_on")), **more),
            farewell=options["marker"],
        )

    # ------------------------------------------------------------ what is asked of it

    def tasks(self) -> list[Said]:
        """Return reports of the code that runs, and of what has ended without its connection."""
        return [told_of(one) for one in list(self.ended) + list(self.running.values())]

    def status(self) -> Said:
        """Return the data for ``execnet service status``."""
        running = list(self.running.values())
        found = self.greeting()
        found.update(
            idle=self.idle_s,
            folder=text_of(self.folder),
            log=text_of(os.path.join(self.folder, "log")),
            memory=_memory_bytes(),
            threads=len(sys._current_frames()),
            state=sorted([text_of(repr(key)[:80]) for key in list(state) if _is_of_users(key)]),
            clients=[
                {
                    "id": text_of(client.id),
                    "pid": client.pid,
                    "since": client.since,
                    "executing": len([one for one in running if one.gateway is client]),
                }
                for client in list(self.clients)
            ],
            running=[told_of(one) for one in running],
            ended=[told_of(one) for one in list(self.ended)],
            kept=list(kept.values()),
        )
        return found

    # ------------------------------------------------------------ a process that code forked

    def _left_after(self, fork: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that forks, for Pythons that can't be told what to do after it."""

        def fork_and_leave() -> Any:
            found = fork()
            if (found[0] if type(found) is tuple else found) == 0:
                self._leave()
            return found

        return fork_and_leave

    def _leave(self) -> None:
        """In a forked process: keep nothing that would hide the end of the service."""
        null = os.open(os.devnull, os.O_RDWR)
        fds = [self._options["lock"]]
        self.routes.clear()  # its output goes to the log
        for client in list(self.clients):
            fds += client.fds()
        for sock in list(self._socks) + [self._listener]:
            try:
                fds.append(sock.fileno())
            except EnvironmentError:
                pass  # Python 2, if it is closed
        for fd in fds:
            try:
                if fd >= 0:
                    os.dup2(null, fd)
            except EnvironmentError:
                pass
        os.close(null)


def _is_of_users(key: object) -> bool:
    """Whether a key of the state is not one that every module has."""
    return not (isinstance(key, str) and key.startswith("__"))


def _memory_bytes() -> int:
    """Return how much memory the process uses, in bytes; 0 if it is not known."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (EnvironmentError, ValueError):
        return 0


def _place_of(path: str) -> Place:
    """Return device and inode of a name, None if it is not there."""
    try:
        found = os.lstat(path)
    except EnvironmentError:
        return None
    return found.st_dev, found.st_ino


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        keep_from_children(fd)
    return ends


def run(options: Said) -> None:
    """Be a service; the options are those given to ``far_find.connect``, and those it adds."""
    if sys.version_info[0] > 2:
        options["folder"] = os.fsdecode(options["folder"])
    lock, ready = options["lock"], options["ready"]
    try:
        os.setsid()
    except EnvironmentError:
        pass  # it already leads a session
    for number in signal.SIGINT, signal.SIGQUIT:  # the shell that started it has them ignored
        signal.signal(number, signal.SIG_DFL)
    _close_others(lock, ready)
    for fd in lock, ready:
        keep_from_children(fd)
    try:
        os.chdir(os.path.expanduser("~"))
    except EnvironmentError:
        os.chdir("/")
    sys.path[:] = [entry for entry in sys.path if entry]  # it stays in no folder
    sys.argv = ["execnet-service"]
    try:
        service = Service(options)
        service.begin()
    except Exception as exc:
        text = "%s" % exc if isinstance(exc, ServiceError) else geterrortext(sys.exc_info())
        sys.stderr.write("%s\n" % text)  # in the log, as the program may be gone
        os.write(ready, text.encode("utf-8", "backslashreplace"))
        return
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda signum, frame: service.stop_soon())
    service.process.take_main_thread()
    service.model.start(service.accept_all, (), "execnet-service")
    try:
        os.write(ready, b"ready\n")
    except EnvironmentError:
        pass  # the program that started it was killed; others may already be connected
    os.close(ready)
    service.run_in_main()
    service.exit()


def _close_others(*kept: int) -> None:
    """Close descriptors inherited by chance, and make stdin a null device."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    last = 2
    for fd in sorted(kept) + [4096]:
        os.closerange(last + 1, fd)
        last = fd
