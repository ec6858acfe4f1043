"""The process beside a worker whose gateway outlives its connections; it is the worker's parent.

It waits for the worker's end, watches the time while there is no connection, and passes the
descriptors of a new login to the worker.  Only the bytes of stderr go through it, so that nothing
fails in the worker when a connection is lost.

This file comes from the worker, as text, to a process that has nothing else; it stands alone and
keeps to what Python 2.7 and today's Python both accept.  Start at ``supervise``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OPTIONS: dict[str, Any] = {}  # set by the lines that follow in what is sent
GOODBYE = 15
OF_WATCHER = 2
REQUEST_S = 10.0  # how long a connector may take to send its request
TELL_S = 30.0  # how long it may take until somebody takes the news of the end
CONFIRM_S = 2.0  # how long a connection stays open for the answer to that news
TOUCH_S = 3600.0  # how often it touches its files, which systems clean up by their age
PLACE, PREFIX = "/tmp", "execnet-resume-"  # where the folders of sessions are, and their names
YOUNG_S = 60.0  # a folder younger than this is not taken for left behind
FULL = errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR
HANGUP = 0x2000 if sys.platform.startswith("linux") else 0  # POLLRDHUP, which is new in Python 3.7

clock = getattr(time, "monotonic", time.time)


def supervise(
    pid: int, fd: int, kept_fd: int, frame_of: Callable[[object, int], bytes], farewell: bytes
) -> None:
    """Be the supervisor of a child, which is at the other end of a socket; ends the process.

    kept_fd: the socket to a process that ends with the first connection; -1: there is none.
    """
    status = None
    supervisor = None
    try:
        supervisor = Supervisor(pid, fd, kept_fd)
        status = supervisor.run(lambda told: frame_of((told, "", OF_WATCHER, farewell), GOODBYE))
    finally:
        if supervisor is not None:
            supervisor.leave()
        os._exit(255 if status is None else status if status >= 0 else 128 - status)


def send_fd(sock: socket.socket, fd: int) -> None:
    """Send a descriptor over a Unix socket, with one byte."""
    if hasattr(sock, "sendmsg"):
        data = struct.pack("i", fd)
        sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)])
    else:
        __import__("_multiprocessing").sendfd(sock.fileno(), fd)


def receive_fd(sock: socket.socket) -> int:
    """Return a descriptor that comes over a Unix socket, with one byte."""
    if not hasattr(sock, "recvmsg"):
        if not select.select([sock], [], [], REQUEST_S)[0]:  # the call itself has no timeout
            raise EOFError("no descriptor came in time")
        fd: int = __import__("_multiprocessing").recvfd(sock.fileno())
        return fd
    found = sock.recvmsg(1, socket.CMSG_SPACE(4))[1]
    if not found or found[0][1] != socket.SCM_RIGHTS:
        raise EOFError("no descriptor came")
    number: int = struct.unpack("i", found[0][2][:4])[0]
    return number


class Login(object):
    """What carries a connection: stdin, stdout and stderr of a login, and its connector.

    Only the worker reads stdin, until it has ended.
    """

    def __init__(
        self, epoch: int, in_fd: int, out_fd: int, error_fd: int, sock: socket.socket | None = None
    ) -> None:
        self.epoch = epoch
        self.in_fd = in_fd
        self.out_fd = out_fd
        self.error_fd = error_fd
        self._sock = sock

    def end(self, status: int = 0) -> None:
        """Close all, and have the connector end."""
        if self._sock is not None:
            try:
                self._sock.sendall(("bye %d\n" % status).encode("ascii"))
            except (EnvironmentError, socket.error):
                pass
            self._sock.close()
        for fd in self.in_fd, self.out_fd, self.error_fd:
            os.close(fd)


class Supervisor(object):
    """One thread does everything, and waits only in ``run``."""

    def __init__(self, pid: int, fd: int, kept_fd: int) -> None:
        self._pid = pid
        self._control: Any = socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM)
        os.close(fd)
        self._status: int | None = None
        self._has_ended = False
        self._ends_at: float | None = None  # while there is no connection: when the time is over
        self._kill_at: float | None = None
        self._drop_at: float | None = None  # while the news of the end is not confirmed
        self._confirmation = b""  # what came in place of it
        self._epoch = 0  # the highest one that was asked for
        self._killers: list[socket.socket] = []  # connectors that wait for the worker's end
        self._bell_fd, self._ring_fd = os.pipe()
        self._handle_signals()
        kept = None
        if kept_fd >= 0:
            kept = socket.fromfd(kept_fd, socket.AF_UNIX, socket.SOCK_STREAM)
            os.close(kept_fd)
        self._login: Login | None = Login(0, os.dup(0), os.dup(1), os.dup(2), kept)
        self._listener: Any = None
        self._errors_fd, errors_in = os.pipe()
        for end in self._bell_fd, self._ring_fd, self._errors_fd, errors_in:
            fcntl.fcntl(end, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        for end in self._bell_fd, self._ring_fd, self._errors_fd:
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
        try:
            self._listen()
            self._control.sendall(b"ready\n")
            send_fd(self._control, errors_in)
        except Exception as exc:
            self._control.sendall(("%s: %s\n" % (type(exc).__name__, exc)).encode("utf-8"))
        os.close(errors_in)
        null = os.open(os.devnull, os.O_RDWR)
        for number in 0, 1, 2:
            os.dup2(null, number)
        for left in left_behind():
            remove_left(left)

    def _handle_signals(self) -> None:
        def pass_on(signum: int, frame: object) -> None:
            try:
                os.kill(self._pid, signum)
            except EnvironmentError:  # it has ended, and its status is about to be reported
                pass

        def ring(signum: int, frame: object) -> None:
            try:
                os.write(self._ring_fd, b"!")
            except EnvironmentError:
                pass

        try:
            os.setsid()  # so that losing a terminal does not end it
        except EnvironmentError:  # it leads a session already
            pass
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGCHLD, ring)

    def _listen(self) -> None:
        folder = OPTIONS["folder"]
        os.mkdir(folder, 0o700)  # fails if anything is there
        hold(os.path.join(folder, "lock"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.path.join(folder, "socket"))
        self._listener.listen(16)
        self._listener.setblocking(False)

    def leave(self) -> None:
        """Remove the socket and its folder."""
        remove_files(OPTIONS["folder"])

    # ------------------------------------------------------------ the loop

    def run(self, goodbye: Callable[[int | None], bytes]) -> int | None:
        """Work until nobody needs this process any more; return the worker's status."""
        touch_at = clock() + TOUCH_S
        os.write(self._ring_fd, b"!")  # the worker may have ended before there was a handler
        while True:
            ready = self._await(touch_at)
            if clock() >= touch_at:
                self._touch()
                touch_at = clock() + TOUCH_S
            if self._bell_fd in ready and not self._has_ended:
                self._look(goodbye)
            if self._listener is not None and self._listener.fileno() in ready:
                self._accept()
            if self._control is not None and self._control.fileno() in ready:
                self._read_control()
            if self._errors_fd in ready:
                self._pass_errors()
            now = clock()
            if self._login is not None and self._login.in_fd in ready and self._ends_at is None:
                self._ends_at = now + OPTIONS["seconds"]  # the worker may be stopped, or stuck in C
            if self._drop_at is not None:
                self._look_for_confirmation(now)
            if self._has_ended and (self._ends_at is None or now >= self._ends_at):
                return self._status
            if self._ends_at is not None and now >= self._ends_at and self._kill_at is None:
                self._tell_worker(0)  # the time is over
                self._kill_at = now + OPTIONS["end_s"]
            if self._kill_at is not None and now >= self._kill_at and not self._has_ended:
                self._kill()
                self._kill_at = now + TELL_S

    def _await(self, touch_at: float) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._bell_fd, select.POLLIN)
        for sock in self._listener, self._control:
            if sock is not None:
                poll.register(sock.fileno(), select.POLLIN)
        if self._errors_fd >= 0:
            poll.register(self._errors_fd, select.POLLIN)
        if self._drop_at is not None and self._login is not None:
            poll.register(self._login.in_fd, select.POLLIN)
        elif self._login is not None and self._ends_at is None:
            poll.register(self._login.in_fd, HANGUP)
        ends = [touch_at, self._kill_at, self._drop_at]
        ends += [self._ends_at] if self._kill_at is None else []
        left_s = min([end for end in ends if end is not None]) - clock()
        try:
            return dict(poll.poll(int(1000 * max(0.0, min(left_s, 1e5))) + 1))
        except (EnvironmentError, select.error):  # a signal, in Python 2
            return {self._bell_fd: 1}

    def _touch(self) -> None:
        for name in "", "socket", "lock":
            try:
                os.utime(os.path.join(OPTIONS["folder"], name), None)
            except EnvironmentError:
                pass

    def _look(self, goodbye: Callable[[int | None], bytes]) -> None:
        """If the worker has ended, report it."""
        try:
            os.read(self._bell_fd, 4096)
        except EnvironmentError:
            pass
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if not pid:
                return
            self._status = -(status & 127) or status >> 8
        except EnvironmentError as exc:
            if exc.errno == errno.EINTR:
                return
        self._has_ended = True
        self._pass_errors()
        for sock in self._killers:
            self._answer(sock, self._ended_text())
            self._ends_at = None  # whoever wanted to know has been told
        if self._login is not None:
            is_told = self._tell(self._login.out_fd, goodbye(self._status))
            self._ends_at = clock() + OPTIONS["seconds"]
            is_late = self._kill_at is not None
            if self._killers or is_late or (is_told and not self._status):
                self._ends_at = None  # nobody will ask again
            if is_told and self._ends_at is not None:
                self._drop_at = clock() + CONFIRM_S
            else:
                self._drop_login(self._status or 0)
        if self._control is not None:
            self._control.close()
            self._control = None

    def _look_for_confirmation(self, now: float) -> None:
        """Read whether the news of the end has arrived: the connection may be dead.

        The bytes before are what the worker has not read.
        """
        login = self._login
        poll = select.poll()
        if login is not None:
            poll.register(login.in_fd, select.POLLIN)
        try:
            data = b""
            if login is not None and poll.poll(0):
                data = os.read(login.in_fd, 65536)
                now = now if data else self._drop_at or now
            secret = OPTIONS["secret"].encode("ascii")
            self._confirmation = self._confirmation[-len(secret) :] + data
            if secret in self._confirmation:
                self._ends_at = None
        except (EnvironmentError, select.error):
            now = self._drop_at or now
        if login is None or self._ends_at is None or now >= (self._drop_at or now):
            self._drop_at = None
            self._drop_login(self._status or 0)

    def _ended_text(self) -> str:
        return "ended %s" % ("unknown" if self._status is None else self._status)

    def _tell(self, fd: int, data: bytes) -> bool:
        """Write to a login as long as it takes bytes; return whether it has taken all."""
        ends_at = clock() + TELL_S
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        while data and clock() < ends_at:
            try:
                poll.poll(1000)
                data = data[os.write(fd, data) :]
            except (EnvironmentError, select.error) as exc:
                if (getattr(exc, "errno", None) or exc.args[0]) not in FULL:
                    return False
        return not data

    def _pass_errors(self) -> None:
        """Pass on what the worker wrote to stderr, or drop it if nobody is connected."""
        try:
            data = os.read(self._errors_fd, 65536)
        except EnvironmentError:
            return
        if not data:
            os.close(self._errors_fd)
            self._errors_fd = -1
        elif self._login is not None:
            poll = select.poll()
            poll.register(self._login.error_fd, select.POLLOUT)
            try:
                if poll.poll(0):
                    os.write(self._login.error_fd, data[:4096])
            except (EnvironmentError, select.error):
                pass

    # ------------------------------------------------------------ the worker

    def _read_control(self) -> None:
        """Act on a message of the worker: it has lost its connection, or uses one."""
        data = self._control.recv(4096)
        if not data:  # it is ending
            self._control.close()
            self._control = None
            return
        for word in data.decode("ascii").split():
            epoch = int(word[1:])
            if word[0] == "l" and self._login is not None and self._login.epoch == epoch:
                self._drop_login()
                self._ends_at = clock() + OPTIONS["seconds"]
            elif word[0] == "u" and self._kill_at is None:
                self._ends_at = None

    def _tell_worker(self, epoch: int, fds: tuple[int, ...] = ()) -> None:
        if self._control is not None:
            try:
                self._control.sendall(struct.pack("!Q", epoch))
                for fd in fds:
                    send_fd(self._control, fd)
            except (EnvironmentError, socket.error):  # it is ending
                pass

    def _drop_login(self, status: int = 0) -> None:
        login, self._login = self._login, None
        if login is not None:
            login.end(status)

    def _kill(self) -> None:
        try:
            os.kill(self._pid, signal.SIGKILL)
        except EnvironmentError:
            pass

    # ------------------------------------------------------------ connectors

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()[0]
        except (EnvironmentError, socket.error):
            return
        sock.settimeout(REQUEST_S)
        try:
            if not is_of_user(sock):
                sock.close()
                return
            secret, verb, epoch = read_line(sock).split()
            self._act(sock, secret, verb, int(epoch))
        except (EnvironmentError, socket.error, ValueError, EOFError):
            sock.close()

    def _act(self, sock: socket.socket, secret: str, verb: str, epoch: int) -> None:
        if not is_equal(secret, OPTIONS["secret"]):
            self._answer(sock, "refused the secret is another one")
        elif self._has_ended:
            self._answer(sock, self._ended_text())
            self._ends_at = None  # nobody else will ask for the worker
        elif verb == "kill":
            self._killers.append(sock)
            self._kill()
        elif epoch <= self._epoch or self._kill_at is not None:
            self._answer(sock, "older" if self._kill_at is None else "refused its time is over")
        else:
            self._epoch = epoch
            self._hand_over(sock, epoch)

    def _hand_over(self, sock: socket.socket, epoch: int) -> None:
        sock.sendall(b"ok\n")
        fds = []
        try:
            for _ in range(3):
                fds.append(receive_fd(sock))
            self._drop_login()
            self._ends_at = self._ends_at or clock() + OPTIONS["seconds"]  # until it is used
            in_fd, out_fd, error_fd = [os.dup(fd) for fd in fds]
            self._login = Login(epoch, in_fd, out_fd, error_fd, sock)
            self._tell_worker(epoch, (fds[0], fds[1]))
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, sock: socket.socket, text: str) -> None:
        try:
            sock.sendall((text + "\n").encode("ascii"))
        except (EnvironmentError, socket.error):
            pass
        sock.close()


# ---------------------------------------------------------------- folders


def remove_files(folder: str) -> None:
    """Remove the folder of a session, as far as it is there."""
    for remove, name in (os.unlink, "socket"), (os.unlink, "lock"), (os.rmdir, ""):
        try:
            remove(os.path.join(folder, name))
        except EnvironmentError:
            pass


def hold(path: str) -> None:
    """Make the lock of a folder, and hold it for as long as this process runs.

    If there are no locks on that file system, the folder has none, and is never taken for left.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except EnvironmentError:
        os.unlink(path)
        os.close(fd)


def left_behind() -> list[str]:
    """Return the folders of this user's sessions whose workers and supervisors were killed."""
    try:
        # Elsewhere another user could put something else where such a folder was.
        names = os.listdir(PLACE) if os.stat(PLACE).st_mode & stat.S_ISVTX else []
    except EnvironmentError:
        return []
    found = []
    for name in names:
        folder = os.path.join(PLACE, name)
        fd = _lock_left(folder) if name.startswith(PREFIX) else -1
        if fd >= 0:
            os.close(fd)
            found.append(folder)
    return found


def remove_left(folder: str) -> bool:
    """Remove such a folder, and return True, unless somebody uses it."""
    fd = _lock_left(folder)
    if fd >= 0:
        remove_files(folder)
        os.close(fd)
    return fd >= 0


def _lock_left(folder: str) -> int:
    """Return a descriptor that holds the lock of a folder; -1 if its supervisor still holds it.

    The lock, unlike a process id, cannot pass to another process once the supervisor is gone.
    """
    try:
        found = os.lstat(folder)
        is_own = found.st_uid == os.getuid() and not found.st_mode & 0o077
        if not (stat.S_ISDIR(found.st_mode) and is_own and time.time() - found.st_mtime > YOUNG_S):
            return -1
        fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except EnvironmentError:
        return -1
    try:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except EnvironmentError:
        os.close(fd)
        return -1
    return fd


def is_equal(told: str, secret: str) -> bool:
    """Compare two texts in a time that does not reveal where they differ."""
    differs = len(told) != len(secret)
    for one, other in zip(told, secret):
        differs |= one != other
    return not differs


def is_of_user(sock: socket.socket) -> bool:
    """Whether a process of this user is at the other end, if the system tells."""
    option = getattr(socket, "SO_PEERCRED", 17 if os.path.isdir("/proc/self") else None)
    if option is None:  # all that protects it then is the folder that nobody else can enter
        return True
    user = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12))[1]
    return bool(user & 0xFFFFFFFF == os.getuid())


def read_line(sock: socket.socket) -> str:
    """Return a line, and read nothing of what follows it."""
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        if not data or len(line) > 200:
            raise EOFError("no request")
        line += data
    return str(line.decode("ascii"))
