"""Fork servers seen from outside: which processes there are."""

from __future__ import annotations

from processes import children_of
from tools import wait_until

import execnet

PIDS = "import os; channel.send((os.getpid(), os.getppid()))"


def spare_of(gateway: execnet.Gateway) -> int:
    """Wait until a template has forked a process in reserve; return its id."""
    _, template = gateway.remote_exec(PIDS).receive(10)
    assert gateway._group is not None
    workers = {member._rinfo().pid for member in gateway._group}
    wait_until(lambda: children_of(template) - workers)
    [spare] = children_of(template) - workers
    return spare
