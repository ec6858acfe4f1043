"""Forks the worker of a gateway that should outlive its connections, with a supervisor beside it.

This takes the place of ``_ends.far_watcher``.  It is shipped with the first line, and runs before
the worker has any thread; it stands alone and keeps to what Python 2.7 and today's Python both
accept.  The supervisor runs ``far_supervisor``, which the worker sends it later.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LAST_WORDS_S = 1.0  # as in ``far_connector``
IN_SERVER = False  # whether a server waits for this process; set by a line that follows


def fork_watcher(frame_of: Callable[[object, int], bytes], farewell: bytes) -> int:
    """Fork; the child goes on, and this process becomes its supervisor.

    Returns the child's socket to the supervisor; 0 if there can't be one.  A server that waits for
    this process ends its connection afterwards, and kills its session when the connection ends:
    then the supervisor is a process of its own, and this one ends with the first connection.
    """
    # Other threads would stay in the parent, which becomes the supervisor.
    if not hasattr(os, "fork") or len(sys._current_frames()) > 1:
        return 0
    try:
        kept_fd = leave_server() if IN_SERVER else -1
        pair = __import__("_socket").socketpair()  # quicker than the module around it
        pid = os.fork()
    except EnvironmentError:  # there can be no more processes, or descriptors
        return 0
    fd = os.dup(pair[bool(pid)].fileno())
    for end in pair:
        end.close()
    if not pid:
        if kept_fd >= 0:
            os.close(kept_fd)
        return fd
    try:
        code = _read_code(fd)
        namespace: dict[str, Any] = {}
        if code:
            exec(compile(code, "<execnet supervisor>", "exec"), namespace)
            namespace["supervise"](pid, fd, kept_fd, frame_of, farewell)
        else:  # it ended before it could be resumed
            os.waitpid(pid, 0)
    finally:
        os._exit(1)


def _read_code(fd: int) -> bytes:
    """Return the supervisor's code, after its size; nothing if there is an end before."""
    code = size = b""
    while len(size) < 8 or len(code) < int(size):
        data = os.read(fd, 8 - len(size) if len(size) < 8 else int(size) - len(code))
        if not data:
            return b""
        if len(size) < 8:
            size += data
        else:
            code += data
    return code


def leave_server() -> int:
    """Go on in another process, of a session of its own; return its socket to this one.

    This process keeps nothing, and ends when nobody has the other end of the socket any more, with
    the status that it was told.
    """
    pair = __import__("_socket").socketpair()
    pid = os.fork()
    fd = os.dup(pair[bool(pid)].fileno())
    for end in pair:
        end.close()
    if not pid:
        os.setsid()
        if os.fork():  # so that whoever ends this process and all below it does not find that one
            os._exit(0)
        return fd
    told, data = b"", b"-"
    try:
        os.waitpid(pid, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in 0, 1, 2:
            os.dup2(null, number)
        while data:
            try:
                data = os.read(fd, 4096)
                told += data
            except EnvironmentError:  # a signal, in Python 2
                pass
        if not told:  # the supervisor was killed; the worker says so over this connection
            __import__("time").sleep(LAST_WORDS_S)
    finally:
        os._exit(int(told.split()[-1]) & 255 if told else 0)
    return -1
