"""Finds a service of this user on this machine, or starts it.

A service has a folder that only its user can enter.  It contains its socket, its record, its log
and a lock, which it holds as long as it lives: a process that gets the lock knows that there is no
service, and passes the locked descriptor on to the one that it starts.  Others wait and poll.

This file is shipped as well; it keeps to what Python 2.7 and today's Python both accept.  Start
at ``connect``.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import time

from ..gateway_base import Message, _frame_of, above_stdio, loads_internal, new_lock, real_select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import Callable
    from typing import Any

    # What the two sides of a connection say, and what a record or a wish for a service has; each
    # value is checked where it is used.
    Said = dict[str, Any]
    Prove = Callable[[Any], object]  # gets the socket
    LineFor = Callable[[Said], bytes]

PROTOCOL = 1  # of the messages; part of the key, so that versions run side by side
PATH_BYTES = 103  # of a socket's path, on all systems
TRIES = 3  # with services that end before they greet
FIRST_PAUSE_S, LAST_PAUSE_S = 0.002, 0.05  # between checks while another process starts it
LISTENER_S = 5.0  # for the system to say who listens
LONGEST_S = 1e6  # of one wait
LOG_BYTES = 4096  # of the log in the error when a service can't start
LOOPBACK = "127.0.0.1"

# The shell ends at once, so that the service is not a child of the program.
_START = 'exec 3<&0; "$@" <&3 >&2 3<&- & echo $!'


class ServiceError(Exception):
    """A service can't be reached or started; the text says why."""


class _Nobody(Exception):
    """There is no service, or it ended before it greeted."""


clock = time.monotonic if sys.version_info[0] > 2 else time.time
_starting = new_lock()  # only one thread at a time makes descriptors inheritable


# ---------------------------------------------------------------- where it is


def key_of(name: str, words: list[str] | None, port: int | None = None) -> str:
    """Return the key of a service: 16 hex digits, since the path of a socket must be short.

    words: the command of its interpreter.  If there is a port, that alone makes the key.
    """
    what = ["port", str(port)] if port else ["name", name, str(PROTOCOL)] + (words or [])
    said = [str(_user()), socket.gethostname()] + what
    text = "\0".join(said)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return str(_sha256()(data).hexdigest()[:16])


def _sha256() -> Callable[[bytes], HASH]:
    # ``hashlib`` is slow to import, and so is a module that is not there.
    for name in "_sha2" if sys.version_info >= (3, 12) else "_sha256", "hashlib":
        try:
            sha256: Callable[[bytes], HASH] = __import__(name).sha256
            return sha256
        except (ImportError, AttributeError):
            pass
    raise ServiceError("this Python has no SHA-256")


def _user() -> int:
    if sys.platform == "win32":
        raise ServiceError("services need a system with Unix sockets and flock, not Windows")
    return os.geteuid()


def services_folder(makes: bool = True) -> str:
    """Return the folder for the folders of this user's services.

    makes: whether to make it.  Raises ``ServiceError`` if another user could change it.
    """
    user = _user()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_own(runtime, user):  # after ``su`` it is another user's
        folder = os.path.join(runtime, "execnet")
    else:
        home = os.environ.get("EXECNET_HOME") or os.path.expanduser("~/.execnet")
        folder = os.path.join(os.path.realpath(home), "services")
        if makes:
            _make(os.path.dirname(folder))
    if makes or os.path.lexists(folder):
        _check_above(os.path.dirname(os.path.realpath(folder)), user)
        be_private(folder, makes)
    return folder


def _is_own(folder: str, user: int) -> bool:
    try:
        found = os.lstat(folder)
    except EnvironmentError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077


def _make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except EnvironmentError as exc:
        if exc.errno != errno.EEXIST:
            raise ServiceError("can't make the folder %s: %s" % (folder, exc.strerror))


def _check_above(folder: str, user: int) -> None:
    """Refuse a folder that others could replace."""
    while True:
        found = os.lstat(folder)
        open_to_others = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, user) or open_to_others:
            raise ServiceError("%s can be changed by others, so it can't hold services" % folder)
        if folder == os.path.dirname(folder):
            return
        folder = os.path.dirname(folder)


def be_private(folder: str, makes: bool = True) -> None:
    """Refuse a folder that another user owns or can enter; nothing is repaired."""
    if makes:
        _make(folder)
    try:
        found = os.lstat(folder)
    except EnvironmentError as exc:
        raise ServiceError("can't use the folder %s: %s" % (folder, exc.strerror))
    if not stat.S_ISDIR(found.st_mode):
        raise ServiceError("%s is not a folder" % folder)
    if found.st_uid != _user():
        raise ServiceError("%s belongs to user %d, not to this one" % (folder, found.st_uid))
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ServiceError("%s has mode %o: others can enter it; it has to be 700" % (folder, mode))


def socket_of(folder: str) -> str:
    """Return the path of a service's socket."""
    path = os.path.join(folder, "socket")
    if len(path if isinstance(path, bytes) else path.encode("utf-8", "replace")) > PATH_BYTES:
        raise ServiceError("%s is too long for a socket; set EXECNET_HOME to a shorter path" % path)
    return path


def open_private(path: str, flags: int) -> int:
    """Return a descriptor of a regular file of this user; make it if it does not exist."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0), 0o600)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_uid == _user():
        return fd
    os.close(fd)
    raise ServiceError("%s is not a file of this user" % path)


def remove(path: str) -> None:
    """Remove a file, if it is there and can be removed."""
    try:
        os.unlink(path)
    except EnvironmentError:
        pass


def try_lock(folder: str) -> int:
    """Return the locked descriptor, -1 if a service holds it, or a process that starts one."""
    import fcntl

    try:
        fd = open_private(os.path.join(folder, "lock"), os.O_RDWR)
    except EnvironmentError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return -1  # "execnet clean" removes the folder
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_lock_of(folder, fd):
            return fd
    except EnvironmentError as exc:
        if exc.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            os.close(fd)
            raise
    os.close(fd)
    return -1


def is_lock_of(folder: str, fd: int) -> bool:
    """Whether a descriptor is that of a folder's lock, which nobody has removed or replaced."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(os.path.join(folder, "lock")))
    except EnvironmentError:
        return False


# ---------------------------------------------------------------- the connection


class Reader(object):
    """Reads exactly what is asked for from a socket, until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            left = self._deadline - clock()
            if left <= 0:
                raise socket.timeout("timed out")
            self._sock.settimeout(min(left, LONGEST_S))
            more = self._sock.recv(size - len(data))
            if not more:
                raise EOFError("the connection has ended")
            data += more
        return data


def read_dict(sock: socket.socket, deadline: float) -> Said:
    """Receive a greeting, request or answer from the other side."""
    found = loads_internal(Message.from_io(Reader(sock, deadline)).data)
    if type(found) is not dict:
        raise ServiceError("what listens there is not a service")
    return found


def say(sock: socket.socket, said: Said) -> None:
    """Send the same."""
    sock.sendall(_frame_of(said))


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return (process id or 0, user) of the other end of a Unix socket."""
    peercred = getattr(socket, "SO_PEERCRED", 17 if sys.platform.startswith("linux") else None)
    if peercred is not None:
        told = struct.unpack("3I", sock.getsockopt(socket.SOL_SOCKET, peercred, 12))
        if sys.platform.startswith("openbsd"):  # struct sockpeercred: user, group, process
            return told[2], told[0]
        return told[0], told[1]  # Linux's struct ucred: process, user, group
    if sys.platform == "darwin" or "bsd" in sys.platform:  # LOCAL_PEERCRED and its struct xucred
        found = sock.getsockopt(0, 1, 76)
        if len(found) > 8 and found[:4] == struct.pack("I", 0):  # else another option, or version
            return 0, struct.unpack("2I", found[:8])[1]
    return 0, _user()  # then the folder, which nobody else can enter, has to do


def listener_of(folder: str, record: Said) -> int:
    """Return the process of a service even if it does not answer, 0 if there is none.

    A record can be older than the service, so for a Unix socket the system is asked.
    """
    known = int(record.get("pid", 0))
    if record.get("port"):
        return known  # the record is this user's own
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(LISTENER_S)
        sock.connect(socket_of(folder))
        return peer_of(sock)[0] or known
    except EnvironmentError as exc:
        return 0 if exc.errno in (errno.ENOENT, errno.ECONNREFUSED) else known
    finally:
        sock.close()


def _greeted(sock: socket.socket, deadline: float, name: str) -> Said:
    """Return the greeting of a service; ``_Nobody`` if it ends before."""
    try:
        return read_dict(sock, deadline)
    except socket.timeout:
        raise ServiceError("service %s does not answer; it may be stopped" % name)
    except (EnvironmentError, EOFError):
        raise _Nobody()
    except Exception as exc:
        raise ServiceError("what listens for %s is not a service: %s" % (name, exc))


def attach(
    folder: str, port: int | None, deadline: float, prove: Prove = int
) -> tuple[socket.socket, Said] | None:
    """Return a connection to a service and its greeting, None if there is none.

    prove: makes both sides authenticate, if they are connected through a port.
    """
    name = str(port) if port else folder
    sock = socket.socket(socket.AF_INET if port else socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if sock.fileno() <= 2 and sys.version_info[0] > 2:  # a standard one is closed
            sock = socket.socket(sock.family, sock.type, 0, above_stdio(sock.detach()))
        sock.settimeout(min(max(0.001, deadline - clock()), LONGEST_S))
        if port:
            sock.connect((LOOPBACK, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            prove(sock)
        else:
            sock.connect(socket_of(folder))
            pid, user = peer_of(sock)
            if user != _user():
                raise ServiceError("user %d listens at %s, not this one" % (user, folder))
        greeting = _greeted(sock, deadline, name)
        if not port and pid:
            greeting["pid"] = pid  # the system's words
        sock.settimeout(None)
        return sock, greeting
    except _Nobody:
        sock.close()
        return None
    except BaseException as exc:
        sock.close()
        gone = errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ECONNRESET
        if isinstance(exc, EnvironmentError) and exc.errno in gone:
            return None
        raise


def connect(
    want: Said,
    deadline: float,
    line_for: LineFor,
    prove: Prove = int,
) -> tuple[socket.socket, Said]:
    """Return a connection to a service and its greeting; start it if it is not running.

    want: ``name``, ``words`` (the command of an interpreter that reads a line), ``port`` (or None)
    and other options of the service.  line_for: returns that line for a dict of everything that
    the service has to know.  Raises ``ServiceError``.
    """
    services = services_folder()
    folder = os.path.join(services, key_of(want["name"], want["words"], want["port"]))
    be_private(folder)
    socket_of(folder)
    pause_s, starts = FIRST_PAUSE_S, 0
    while True:
        found = attach(folder, want["port"], deadline, prove)
        if found is not None:
            return found
        be_private(folder)  # "execnet clean" may have removed it
        lock = try_lock(folder)
        if lock >= 0:
            try:
                if starts == TRIES:
                    text = "the service %s ended %d times before it greeted: %s"
                    raise ServiceError(text % (want["name"], starts, _said(folder + "/log", 0)))
                starts += 1
                found = attach(folder, want["port"], deadline, prove)
                if found is not None:
                    return found
                _start(folder, lock, want, deadline, line_for)
            finally:
                os.close(lock)
            continue
        _wait_for_another(folder, deadline, pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _wait_for_another(folder: str, deadline: float, pause_s: float) -> None:
    if clock() > deadline:
        text = "another process holds the lock in %s, and no service answers: %s"
        raise ServiceError(text % (folder, record_of(folder)))
    time.sleep(pause_s)


def record_of(folder: str) -> Said:
    """Return the record that a service wrote; empty if it can't be read."""
    import json

    try:
        with open(os.path.join(folder, "record")) as file:
            found: Said = json.load(file)
        return found if isinstance(found, dict) else {}
    except (EnvironmentError, ValueError):
        return {}


# ---------------------------------------------------------------- the start


def _start(
    folder: str,
    lock: int,
    want: Said,
    deadline: float,
    line_for: LineFor,
) -> None:
    """Start a service, which then holds a lock; return when it accepts connections."""
    # Of one that was killed: its process id can be another process's by now.
    remove(os.path.join(folder, "record"))
    log = os.path.join(folder, "log")
    log_fd = open_private(log, os.O_WRONLY | os.O_APPEND)
    log_start = os.fstat(log_fd).st_size
    ready_fd, tells_fd = os.pipe()
    passed: list[int] = []
    boot = os.path.join(folder, "boot")
    pid = 0
    try:
        with _starting:
            passed += [_high(lock), _high(tells_fd)]
            os.close(tells_fd)
            tells_fd = -1
            more = {"folder": folder, "lock": passed[0], "ready": passed[1]}
            line = line_for(dict(want, **more))
            boot_fd = _written(boot, line)
            try:
                pid = _spawn(want["words"], boot_fd, log_fd, passed)
            finally:
                os.close(boot_fd)
                while passed:
                    os.close(passed.pop())
        why_not = _why_not_ready(_await(ready_fd, deadline), log, log_start)
        if why_not:
            raise ServiceError("the service %s can't start: %s" % (want["name"], why_not))
        pid = 0
    finally:
        if pid:
            kill(pid)
        for fd in [ready_fd, log_fd] + passed + [tells_fd] * (tells_fd >= 0):
            os.close(fd)


def line_of(boot: bytes, want: Said) -> bytes:
    """Return the line that turns an interpreter into a service.

    boot: a literal in ASCII of code that defines ``boot(options)``.  want: all that it has to know.
    """
    options = {name: want[name] for name in ("name", "port", "idle", "lock", "ready", "version")}
    folder = want["folder"]
    options["folder"] = os.fsencode(folder) if sys.version_info[0] > 2 else str(folder)
    python = want["python"]
    if not isinstance(python, bytes):
        python = python.encode("utf-8", "surrogateescape")
    options["python"] = python
    shown = repr if sys.version_info[0] == 2 else ascii
    text = shown("boot(%s)\n" % shown(options))
    return boot + b"+" + (text if isinstance(text, bytes) else text.encode("ascii")) + b"\n"


def _high(fd: int) -> int:
    """Return a duplicate with a number that shells do not use, for a process to inherit."""
    import fcntl

    found: int = fcntl.fcntl(fd, fcntl.F_DUPFD, 20)
    if sys.version_info[0] > 2:  # ``pass_fds`` makes it inheritable
        fcntl.fcntl(found, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return found


def _written(path: str, data: bytes) -> int:
    """Return a descriptor to read data from; a file, as a pipe might be full."""
    remove(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.unlink(path)
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _spawn(words: list[str], boot_fd: int, log_fd: int, passed: list[int]) -> int:
    """Start a command that is not our child; return its process id."""
    more: dict[str, Any] = {"close_fds": False}  # the service closes unknown ones
    if sys.version_info[0] > 2:
        more = {"pass_fds": passed}
    try:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _START, "sh"] + words,
            stdin=boot_fd,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            **more
        )
        return int(shell.communicate()[0] or b"0")
    except (EnvironmentError, ValueError) as exc:
        raise ServiceError("can't start a service: %s" % exc)


def _await(fd: int, deadline: float) -> bytes:
    """Return what a service writes to a descriptor before it closes it."""
    said = b""
    poll, poll_error = real_select().poll(), real_select().error
    poll.register(fd, 1)  # POLLIN
    while True:
        left = deadline - clock()
        try:
            if left <= 0 or not poll.poll(min(left, LONGEST_S) * 1000):
                return said or b"it was not ready in time"
            data = os.read(fd, 65536)
        except (EnvironmentError, poll_error) as exc:
            if exc.args[0] != errno.EINTR:
                raise
            continue
        if not data:
            return said
        said += data


def _why_not_ready(said: bytes, log: str, log_start: int) -> str:
    """Return why a service can't start, in its own words or those in its log; "" if it has."""
    if said == b"ready\n":
        return ""
    return said.decode("utf-8", "replace").strip() or _said(log, log_start)


def _said(path: str, start: int) -> str:
    """Return the content of a log from an offset on."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(start, file.tell() - LOG_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except EnvironmentError:
        return ""


def log_of(folder: str) -> str:
    """Return the text of both files of a log."""
    found = b""
    for name in "log.1", "log":
        try:
            with open(os.path.join(folder, name), "rb") as file:
                found += file.read()
        except EnvironmentError:  # there is no older one
            pass
    return found.decode("utf-8", "replace")


def kill(pid: int) -> None:
    """Kill a process, if it is there."""
    try:
        os.kill(pid, 9)
    except EnvironmentError:
        pass
