"""Makes a worker that runs as another user leave the terminal that it was started from.

Otherwise it could type into the terminal as if it were the user.  sudo itself stays there, as it
keeps credentials for each terminal.  This file is shipped, in the first line; it keeps to what
Python 2.7 and today's Python both accept.  Start at ``leave_terminal``.
"""

from __future__ import annotations

import os


def leave_terminal() -> None:
    """Start a session of our own; in a child, if this process leads a group and can't."""
    try:
        os.setsid()
        return
    except EnvironmentError:
        pid = os.fork()
    if not pid:
        os.setsid()
        return
    null = os.open(os.devnull, os.O_RDWR)
    for fd in 0, 1:  # so that the stream ends with the worker
        os.dup2(null, fd)
    status = os.waitpid(pid, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
