"""What a new login runs: it hands its stdin and stdout over to a worker, or says why it can't.

This file is shipped as one line; it stands alone and keeps to what Python 2.7 and today's Python
both accept.  Start at ``connect``.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time

LAST_WORDS_S = 1.0  # after which a server or an sshd may end a connection
ANSWER_S = 60.0  # how long a supervisor may take, which may wait for a worker's end


def place() -> tuple[str, str]:
    """Return what identifies this boot, if the system tells, and the name of the host."""
    found = []
    for path in "/proc/sys/kernel/random/boot_id", "/etc/machine-id":
        try:
            with open(path) as file:
                found.append(file.read().strip())
        except EnvironmentError:
            found.append("")
    if not found[0]:
        try:
            import subprocess

            told = subprocess.check_output(["sysctl", "-n", "kern.boottime"])
            found[0] = "-".join(told.decode("ascii", "replace").split())
        except (EnvironmentError, ValueError, subprocess.CalledProcessError):
            pass
    return found[0], "-".join([os.uname()[1]] + found[1].split())


def send_fd(sock: socket.socket, fd: int) -> None:
    """Send a descriptor over a Unix socket, with one byte."""
    if hasattr(sock, "sendmsg"):
        data = struct.pack("i", fd)
        sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)])
    else:
        __import__("_multiprocessing").sendfd(sock.fileno(), fd)


def is_own(folder: str) -> bool:
    """Whether a folder is this user's and nobody else can enter it."""
    found = os.lstat(folder)
    mode = stat.S_IMODE(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not mode & 0o077


def connect(marker: bytes, folder: str, secret: str, verb: str, epoch: int) -> None:
    """Do what the coordinator wants of a session: "resume" it, or "kill" its worker.

    The answer is a line on stdout, after the marker: "ok", followed by the worker's own bytes;
    "ended" and the exit status; "older" if there was a higher epoch; "unknown" and the host; or
    "refused" and the reason.  Returns when the connection is not needed any more.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    answer = "gone"
    try:
        if not is_own(folder):
            raise ValueError("the folder of its socket is open to others")
        sock.settimeout(ANSWER_S)
        sock.connect(os.path.join(folder, "socket"))
        sock.sendall(("%s %s %d\n" % (secret, verb, epoch)).encode("ascii"))
        answer = _line(sock) or answer
    except (EnvironmentError, socket.error):
        pass
    except ValueError as exc:
        answer = "refused %s" % exc
    if answer == "gone":  # there is no supervisor, or it was about to end
        answer = "unknown %s %s" % place()
    _tell(marker + answer.encode("utf-8") + b"\n")
    if answer != "ok":
        sock.close()
        return
    for fd in 0, 1, 2:
        send_fd(sock, fd)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in 0, 1, 2:
        os.dup2(null, fd)
    sock.settimeout(None)
    told = _line(sock).split()
    if not told:  # the supervisor was killed; the worker says so over this connection
        time.sleep(LAST_WORDS_S)
    os._exit(int(told[-1]) & 255 if told else 0)


def _line(sock: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        if not data:
            return ""
        line += data
    return str(line.decode("ascii").strip())


def _tell(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
