"""A process that waits for the worker's end and reports it, for workers across a network.

This file is shipped with the first line, and runs before the worker has any thread; it stands
alone and keeps to what Python 2.7 and today's Python both accept.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GOODBYE = 15
OF_WATCHER = 2
TELL_S = 60  # how long the report may take to be taken; nobody may be there to take it


def fork_watcher(frame_of: Callable[[object, int], bytes], farewell: bytes) -> bool:
    """Fork; the child goes on, and this process waits for its end and reports it.

    Returns whether there is such a process now.  It is the parent, so that it learns how the worker
    ended, and code in the worker never sees it.  It keeps nothing but the stream.
    """
    # Other threads would remain in the wrong process.
    if not hasattr(os, "fork") or len(sys._current_frames()) > 1:
        return False
    try:
        pid = os.fork()
    except EnvironmentError:  # no more processes can be started
        return False
    if not pid:
        return True
    status = None
    try:
        status = _wait_for(pid)
        os.write(1, frame_of((status, "", OF_WATCHER, farewell), GOODBYE))
    finally:
        os._exit(255 if status is None else status if status >= 0 else 128 - status)


def _wait_for(pid: int) -> int | None:
    """Return the exit status of a child, negative for a signal; None if it can't be known."""
    try:
        signal = __import__("_signal")  # quicker than the module around it
    except ImportError:  # Python 2
        signal = __import__("signal")

    def pass_on(signum: int, frame: object) -> None:
        try:
            os.kill(pid, signum)
        except EnvironmentError:  # it has ended, and its status is about to be known
            pass

    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, no status is kept
    for fd in 0, 2:
        try:
            os.close(fd)
        except EnvironmentError:  # it is closed
            pass
    while True:
        try:
            found = os.waitpid(pid, 0)[1]
            signal.alarm(TELL_S)
            return -(found & 127) or found >> 8
        except EnvironmentError as exc:
            if exc.errno != errno.EINTR:  # Python 2's way
                return None
