"""What befalls processes: killed, stopped, forked, out of descriptors or of memory.

Real workers, and for some faults this process itself. Start at ``PROCESS_FAULTS``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from execnet import Gateway, Group
from execnet._specs import Settings
from execnet.gateway_base import ExecnetError

PROCESS_FAULTS = (
    "kill",
    "kill at boot",
    "stop",
    "stop for a moment",
    "exit",
    "fork and die",
    "fork here",
    "few descriptors here",
    "few descriptors there",
    "little memory there",
    "interrupted calls there",
)
FORK_S = 10.0  # for a forked process, to find out that it can't use a gateway

EXIT = "import os; os._exit(7)"
# What it forked holds the stream open until the other side has closed it.
FORK_AND_DIE = """
import os, select, signal
stream = select.poll()
stream.register(channel.gateway._io.outfile.fileno(), 0)
if os.fork() == 0:
    stream.poll(10000)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
FEW_DESCRIPTORS = """
import os, resource
spare = os.open(os.devnull, os.O_RDONLY)
os.close(spare)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, spare + %d), hard))
"""
LITTLE_MEMORY = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + %d
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
INTERRUPTED_CALLS = """
import signal
signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.setitimer(signal.ITIMER_REAL, %f, %f)
"""


class ProcessGroup(Group):
    """Starts real workers; ``on_start`` is told the pid of each at once."""

    def __init__(self, on_start: Callable[[int], object] = int) -> None:
        super().__init__()
        self._on_start = on_start

    def _start(self, settings: Settings, *others: Any) -> Gateway:
        gateway = super()._start(settings, *others)
        self._on_start(gateway._io.popen.pid)
        return gateway


class Later:
    """Does things at random moments; ``finish`` waits for them."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []

    def do(self, delay_s: float, func: Callable[..., object], *args: object) -> None:
        timer = threading.Timer(delay_s, self._try, (func, *args))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _try(self, func: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(OSError, EOFError, ExecnetError):  # it was too late
            func(*args)

    def finish(self) -> None:
        for timer in self._timers:
            timer.join()


def make_it_happen(kind: str, gateway: Gateway, random: Random, later: Later) -> None:
    """Have a fault befall the worker of a gateway, now or soon."""
    delay_s = random.choice([0.0, random.uniform(0.0, 0.03)])
    pid = gateway._io.popen.pid
    if kind == "kill":
        number = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
        later.do(delay_s, _signal, gateway, pid, number)
    elif kind in ("stop", "stop for a moment"):
        later.do(delay_s, _signal, gateway, pid, signal.SIGSTOP)
        if kind != "stop":
            later.do(delay_s + 0.02, _signal, gateway, pid, signal.SIGCONT)
    else:
        source = _source(kind, random)
        if source:
            later.do(delay_s, gateway.remote_exec, source)


def _source(kind: str, random: Random) -> str:
    if kind == "few descriptors there":
        return FEW_DESCRIPTORS % random.randrange(4)
    if kind == "little memory there":
        return LITTLE_MEMORY % random.randint(1 << 18, 1 << 23)
    if kind == "interrupted calls there":
        interval_s = random.uniform(2e-4, 2e-3)
        return INTERRUPTED_CALLS % (interval_s, interval_s)
    return {"exit": EXIT, "fork and die": FORK_AND_DIE}.get(kind, "")


def _signal(gateway: Gateway, pid: int, number: signal.Signals) -> None:
    if gateway._io.popen.returncode is None:
        os.kill(pid, number)


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Let this process open no more than so many."""
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def interrupted_calls(interval_s: float) -> Iterator[None]:
    """Interrupt system calls of this process with a signal that has no other effect.

    The main thread gets it; others where that one blocks it meanwhile.
    """
    # The handler stays: one that is still to be called can't be told from the next.
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, interval_s, interval_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


def use_in_a_fork(gateway: Gateway) -> str:
    """Fork; return what was wrong with the child, which can't use the gateway, or ""."""
    channel = gateway.newchannel()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = _try_all(gateway, channel)
        finally:
            os._exit(status)
    deadline = time.monotonic() + FORK_S
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "a call hangs in a forked process"
        time.sleep(0.001)
    status = os.waitstatus_to_exitcode(ended[1])
    return "" if status == 0 else f"in a forked process {status} calls raised no OSError"


def _try_all(gateway: Gateway, channel: object) -> int:
    failures = 0
    for func, args in (
        (gateway.remote_exec, ("1",)),
        (gateway.remote_status, ()),
        (gateway.newchannel, ()),
        (channel.send, (1,)),  # type: ignore[attr-defined]
        (channel.receive, (1.0,)),  # type: ignore[attr-defined]
    ):
        try:
            func(*args)
            failures += 1
        except (OSError, EOFError):
            pass
    gateway.exit()
    return failures
