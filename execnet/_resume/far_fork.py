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


def fork_watcher(frame_of: Callable[[Any, int], bytes], farewell: bytes) -> int:
    """Fork; the child goes on, and this process becomes its supervisor.

    Returns the child's socket to the supervisor; 0 if there can't be one.
    """
    # Other threads would stay in the parent, which becomes the supervisor.
    if not hasattr(os, "fork") or len(sys._current_frames()) > 1:
        return 0
    try:
        pair = __import__("_socket").socketpair()  # quicker than the module around it
        pid = os.fork()
    except EnvironmentError:  # there can be no more processes, or descriptors
        return 0
    fd = os.dup(pair[bool(pid)].fileno())
    for end in pair:
        end.close()
    if not pid:
        return fd
    try:
        code = size = b""
        while len(size) < 8 or len(code) < int(size):
            data = os.read(fd, 8 - len(size) if len(size) < 8 else int(size) - len(code))
            if not data:
                break
            if len(size) < 8:
                size += data
            else:
                code += data
        namespace: dict[str, Any] = {}
        if size and len(code) == int(size):
            exec(compile(code, "<execnet supervisor>", "exec"), namespace)
            namespace["supervise"](pid, fd, frame_of, farewell)
        else:  # it ended before it could be resumed
            os.waitpid(pid, 0)
    finally:
        os._exit(1)
