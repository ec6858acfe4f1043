"""What tests of several modules need: waiting, Pythons, subprocesses, leaks.

The fixtures made of it are in the ``conftest.py`` of ``testing`` and of its folders.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import lazily
import pytest
from interpreters import DEMANDED, found
from interpreters import IS_THOROUGH as IS_THOROUGH
from interpreters import Interpreter as Interpreter

import execnet
from execnet import BootstrapError, Channel, Gateway, Group, RemoteError
from execnet._ends import watch
from execnet._folders import HOME_VARIABLE
from execnet.gateway_base import ISPYPY, ChannelFactory, ExecModel, get_execmodel

T = TypeVar("T")
BOUND_S = 30  # for what ought to happen at once, on however busy a machine
KIT = Path(__file__).resolve().parent
ROOT = KIT.parents[1]  # of the checkout or the source distribution
# The folder that ``import execnet`` takes it from, for processes that tests start.
SOURCE = Path(execnet.__file__).resolve().parent.parent

# A mark for tests of code that is interrupted in another thread.
needs_other_threads = pytest.mark.skipif(
    ISPYPY, reason="there only the main thread can be interrupted"
)

pause: Callable[[float], object] = time.sleep  # of the coordinator that is tested: in a fixture


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = BOUND_S,
    sleep: Callable[[float], object] | None = None,
) -> T:
    """Return the condition's value as soon as it is true; fail after ``timeout_s`` seconds.

    sleep: that of an execution model whose greenlets have to run meanwhile; ``pause`` if there is
    none.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"still not so after {timeout_s} seconds: {condition!r}")
        (sleep or pause)(0.005)
    return value


def wait_collecting(condition: Callable[[], object]) -> None:
    """Wait for what follows once something is collected, which PyPy does late."""

    def is_so() -> object:
        gc.collect()
        return condition()

    wait_until(is_so)


async def wait_in_loop(condition: Callable[[], object], pause_s: float = 0.001) -> None:
    """Let a loop of asyncio go on until the condition is true; fail after ``BOUND_S`` seconds.

    pause_s: between two looks; 0 misses no turn of the loop.
    """
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"still not so after {BOUND_S} seconds: {condition!r}")
        await asyncio.sleep(pause_s)


def some_of(many: int, share: float = 0.2) -> int:
    """Return how many of many random cases to try: all of them in a thorough run."""
    return many if IS_THOROUGH else max(1, round(many * share))


def missing(reason: str) -> NoReturn:
    """Report a tool that is not there: CI has to have it, others may do without."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}")
    pytest.skip(reason)


# Pythons

interpreters = found


def find_python(version: str) -> str:
    """Return the path of a Python like "3.12" or "pypy3.10", or skip the test.

    It skips in CI as well: which Pythons there are is up to the machine.
    """
    for interpreter in interpreters():
        if interpreter.meets(version):
            return interpreter.path
    pytest.skip(f"no Python {version} here: put its path into {DEMANDED}")


# Garbage


def collect(weak: weakref.ref[object]) -> None:
    """Collect garbage until an object is gone; fail if that does not help.

    An object whose finalizer made it known again for a moment needs a second time on CPython
    3.15, and PyPy promises no number of times.
    """
    for _ in range(10):
        gc.collect()
        if weak() is None:
            return
    pytest.fail(f"still there: {weak()!r}")


# Subprocesses


KEPT = lazily.VARIABLE, HOME_VARIABLE


def clean_environment(**variables: str) -> dict[str, str]:
    """Return an environment in which ``import execnet`` gives what is tested here.

    What would change the output of a Python program or of execnet is not in it.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(("PYTHON", "EXECNET_", "COV_"))
    }
    return environment | {"PYTHONPATH": str(SOURCE)} | variables


def call_in_receiver(gateway: Gateway, callback: Callable[[Any], object]) -> Channel:
    """Have the gateway's receiver thread call a callback once; return the channel that it is for.

    An item that is there before the callback would be passed on by the thread that sets it.
    """
    channel = gateway.remote_exec("channel.send(channel.receive())")
    channel.setcallback(callback)
    channel.send(1)
    return channel


def run_python(
    code: str, *args: str, python: str = sys.executable, timeout_s: float = 60.0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in ``clean_environment(**variables)``."""
    return run([python, "-c", code, *args], timeout_s=timeout_s, **variables)


# For programs that fork: from 3.12 on Python warns of threads there, such as a gateway's.
FORKING = {"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}


def run(
    command: Sequence[str], stdin: str = "", timeout_s: float = 60.0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in ``clean_environment(**variables)``."""
    environment = clean_environment(**variables)
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment
    )


# Leaks


@dataclass(frozen=True)
class Resources:
    """What this process has; of descriptors and children it knows only with Linux's /proc."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]

    @classmethod
    def now(cls) -> Resources:
        """Return what there is at this moment."""
        return cls(frozenset(threads()), frozenset(_descriptors()), frozenset(_children()))

    def new(self) -> list[str]:
        """Return in words what has come since and is still there; zombies count."""
        now = Resources.now()
        # Gateways that are older may have begun to listen.
        bells = {bell.fd for bell in list(watch._children._bells.values())}
        words = [f"thread {thread.name!r}" for thread in now.threads - self.threads]
        words += [
            f"descriptor {fd} -> {to}"
            for fd, to in sorted(now.descriptors - self.descriptors)
            if fd not in bells
        ]
        words += [
            f"process {pid} ({_command(pid)})" for pid in sorted(now.children - self.children)
        ]
        return words

    def assert_nothing_new(self, timeout_s: float = 5.0) -> None:
        """Fail unless all that has come since is gone, at once or soon."""
        deadline = time.monotonic() + timeout_s
        while left := self.new():
            if time.monotonic() > deadline:
                pytest.fail("left behind: " + ", ".join(left), pytrace=False)
            if sys.implementation.name == "pypy":
                gc.collect()  # closes what CPython closes as soon as nobody refers to it
            time.sleep(0.005)


def threads() -> set[threading.Thread]:
    """Return the threads, but what watches children: it stays while there are any."""
    return {thread for thread in threading.enumerate() if thread.name != "execnet-ends"}


def _descriptors() -> Iterator[tuple[int, str]]:
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:  # the one that listed the folder
            continue
        if "/libffi." not in target:  # which keeps itself open from its first use on
            yield int(name), target


def _children() -> Iterator[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # none at all, as nearly always; or Windows
        return
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:  # not every kernel has them, and to look at all processes takes milliseconds
        yield from _children_among_all()
    for path in lists:
        try:
            yield from map(int, path.read_bytes().split())
        except OSError:  # the thread has gone meanwhile
            continue


def _children_among_all() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_bytes().rpartition(b") ")[2].split()[1]
        except (OSError, IndexError):  # it has gone meanwhile
            continue
        if int(parent) == os.getpid():
            yield int(path.parent.name)


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80] or "zombie"
        )
    except OSError:
        return "gone"


# At once


class Task:
    """A function that runs beside the test, in a thread or a greenlet of the execution model."""

    def __init__(self, execmodel: ExecModel, func: Callable[..., Any], *args: Any) -> None:
        self._ended = execmodel.Event()
        self._call = func, args
        self._outcome: Any = None
        execmodel.start(self._run)

    def _run(self) -> None:
        func, args = self._call
        try:
            self._outcome = func(*args)
        except BaseException as error:
            self._outcome = error
        self._ended.set()

    def result(self) -> Any:
        """Return what the function returned; raise what it raised."""
        assert self._ended.wait(BOUND_S), "it still runs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


# Stand-ins


class LonelyGateway:
    """Offers what a channel factory asks of a gateway, and keeps what would be sent."""

    as_error = RemoteError

    def __init__(self, execmodel: ExecModel | None = None) -> None:
        self.execmodel = execmodel or get_execmodel("thread")
        self.sent: list[tuple[int, int, bytes]] = []
        self._channelfactory = ChannelFactory(self)

    def _send(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        self.sent.append((msgcode, channelid, data))

    def _trace(self, *msg: Any) -> None:
        pass


class Trickle:
    """A stream that gives a byte at a time; it has nothing but ``read``."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, 1))


MakeGateway = Callable[..., Gateway]
FAILED = pytest.StashKey[bool]()


def error_of(group: Group, spec: str) -> BootstrapError:
    """Fail to make a gateway; return the error, after which nothing is left."""
    before = Resources.now()
    with pytest.raises(BootstrapError) as caught:
        group.makegateway(spec)
    before.assert_nothing_new()
    assert len(group) == 0
    return caught.value


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether a thread runs a function of that name, or what that calls."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


def run_all(functions: list[Callable[[], object]]) -> None:
    """Run all at once in threads; raise what one of them raises."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        try:
            start.wait(BOUND_S)
            function()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert not any(thread.is_alive() for thread in threads), "stuck"
    if errors:
        raise errors[0]
