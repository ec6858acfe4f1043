"""What a program does with a gateway while something goes wrong, and what it must meet.

``Calls`` makes the calls and keeps what breaks the invariant: each ends within its bound, with
a result or a typed error. Start at ``Actor``, which makes up a program from a seed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from execnet import Channel, Gateway
from execnet.gateway_base import ExecnetError

T = TypeVar("T")

TYPED = (ExecnetError, OSError, EOFError)
SLACK_S = 5.0  # a machine may be busy; what hangs does so for longer
RECEIVE_S = 0.05  # how long an actor waits for an item that may never come

PROGRAMS = {
    "echo": "for item in channel: channel.send(item)",
    "flood": """
for number in range(min(channel.receive(), 300)):
    channel.send(number)
""",
    "count": """
count = 0
while channel.receive() is not None:
    count += 1
channel.send(count)
""",
    "inner": """
inner = channel.receive()
for item in inner:
    inner.send(item)
""",
    "fail": "raise ValueError('as asked')",
    "idle": "channel.receive()",
    "call back": """
ended = channel.gateway.execmodel.Event()
channel.setcallback(lambda item: ended.set() if item is None else channel.send(item), None)
ended.wait()
""",
}


class Broken(Exception):
    """A call broke the invariant; ``Calls`` has noted how."""


class Calls:
    """Makes calls, any thread may; ``violations`` says in words what went against the rule."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact  # whether what comes back must be what was sent
        self.violations: list[str] = []
        self.made = 0
        self.outcomes: dict[str, int] = {}

    def make(self, name: str, bound_s: float | None, func: Callable[..., T], *args: Any) -> T:
        """Return the result of a call or raise its typed error.

        bound_s: how long it may take; None: until the gateway has ended.
        """
        started = time.monotonic()
        self.made += 1
        try:
            return func(*args)
        except TYPED as error:
            kind = type(error).__name__
            self.outcomes[kind] = self.outcomes.get(kind, 0) + 1
            raise
        except BaseException as error:
            self.violations.append(f"{name} raised an untyped {error!r}{_where(error)}")
            raise Broken(name) from error
        finally:
            took_s = time.monotonic() - started
            if bound_s is not None and took_s > bound_s + SLACK_S:
                self.violations.append(f"{name} took {took_s:.1f} s, {bound_s:g} s was its bound")

    def expect(self, what: str, got: object, wanted: object) -> None:
        """Note what came back wrong although nothing had garbled it."""
        if self.exact and got != wanted:
            self.violations.append(f"{what}: {repr(got)[:80]} in place of {repr(wanted)[:80]}")


def _where(error: BaseException) -> str:
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " at " + " > ".join(places[1:])


class Actor(threading.Thread):
    """A user of a gateway: a few pieces of work in a row, from a seed.

    Each goes on when the one before met an error, so that what comes after a death is
    tried as well.
    """

    def __init__(self, gateway: Gateway, calls: Calls, seed: str) -> None:
        super().__init__(name=f"actor-{seed}", daemon=True)
        self._gateway = gateway
        self._calls = calls
        self._random = Random(seed)
        self.does = ""

    def run(self) -> None:
        for _ in range(self._random.randint(1, 5)):
            work = self._random.choice(WORK)
            self.does = work.__name__.strip("_")
            try:
                work(self)
            except (*TYPED, Broken):
                continue
            except BaseException as error:  # a defect of the harness
                self._calls.violations.append(f"{self.name} in {self.does}: {error!r}")
        self.does = "done"

    def _item(self) -> Any:
        kind = self._random.choice(
            ["int", "int", "list", "small", "small", "page", "large", "huge"]
        )
        if kind == "int":
            return self._random.randint(-10, 10**12)
        if kind == "list":
            return [{"number": number, "text": "x" * number} for number in range(20)]
        sizes = {"small": 900, "page": 5000, "large": 150_000, "huge": 1_300_000}
        return bytes([self._random.randrange(256)]) * sizes[kind]

    def _open(self, program: str) -> Channel:
        return self._calls.make("remote_exec", None, self._gateway.remote_exec, PROGRAMS[program])

    def _send(self, channel: Channel, item: Any) -> None:
        self._calls.make("send", None, channel.send, item)

    def _receive(self, channel: Channel) -> Any:
        return self._calls.make("receive", RECEIVE_S, channel.receive, RECEIVE_S)

    def _waitclose(self, channel: Channel) -> None:
        self._calls.make("waitclose", RECEIVE_S, channel.waitclose, RECEIVE_S)

    def _echo(self) -> None:
        channel = self._open(self._random.choice(["echo", "call back"]))
        if self._random.random() < 0.2:
            self._calls.make("set_window", None, channel.set_window, 2000)
        for _ in range(self._random.randint(1, 6)):
            item = self._item()
            self._send(channel, item)
            self._calls.expect("echo", self._receive(channel), item)
        self._calls.make("close", None, channel.close)

    def _echo_many(self) -> None:
        channel = self._open("echo")
        items = [self._item() for _ in range(self._random.randint(1, 8))]
        for item in items:
            self._send(channel, item)
        for item in items:
            self._calls.expect("echo", self._receive(channel), item)

    def _flood(self) -> None:
        channel = self._open("flood")
        count = self._random.randint(0, 300)
        self._send(channel, count)
        for number in range(count):
            self._calls.expect("flood", self._receive(channel), number)
        self._waitclose(channel)

    def _flood_a_callback(self) -> None:
        channel = self._open("flood")
        got: list[Any] = []
        ended = threading.Event()

        def callback(item: Any) -> None:
            if item == "end":
                ended.set()
            got.append(item)

        count = self._random.randint(0, 300)
        self._calls.make("setcallback", RECEIVE_S, channel.setcallback, callback, "end")
        self._send(channel, count)
        if self._random.random() < 0.5:
            self._waitclose(channel)
        del channel  # its callback lives on
        self._calls.make("wait for the endmarker", None, ended.wait)
        numbers = [item for item in got if item != "end"]
        self._calls.expect("flood of a callback", numbers, list(range(len(numbers))))

    def _count(self) -> None:
        channel = self._open("count")
        count = self._random.randint(1, 30)
        for _ in range(count):
            self._send(channel, self._item())
        self._send(channel, None)
        self._calls.expect("count", self._receive(channel), count)

    def _fail(self) -> None:
        channel = self._open("fail")
        if self._random.random() < 0.5:
            self._receive(channel)
        else:
            self._waitclose(channel)

    def _inner(self) -> None:
        channel, inner = (
            self._open("inner"),
            self._calls.make("newchannel", None, self._gateway.newchannel),
        )
        self._send(channel, inner)
        self._send(inner, 1)
        self._calls.expect("inner", self._receive(inner), 1)
        self._calls.make("close", None, inner.close, "enough")

    def _files(self) -> None:
        channel = self._open("echo")
        out, into = channel.makefile("w"), channel.makefile("r")
        self._calls.make("write", None, out.write, "one\ntwo\n")
        self._calls.make("close", None, channel.send, "")
        if line := self._calls.make("readline", None, into.readline):  # "" is the end
            self._calls.expect("line", line, "one\n")

    def _ask(self) -> None:
        gateway, make = self._gateway, self._calls.make
        make("remote_status", None, gateway.remote_status)
        make("dump_stacks", RECEIVE_S, gateway.dump_stacks, RECEIVE_S)
        make("_rinfo", None, gateway._rinfo, True)

    def _drop(self) -> None:
        channel = self._open("idle")
        self._send(channel, self._item())
        del channel
        self._calls.make("reconfigure", None, self._gateway.reconfigure)

    def _wait_for_ever(self) -> None:
        """Until the gateway ends, as programs do."""
        channel = self._open("idle")
        if self._random.random() < 0.5:
            self._calls.make("receive", None, channel.receive)
        else:
            self._calls.make("waitclose", None, channel.waitclose)


WORK: list[Callable[[Actor], None]] = [
    Actor._echo,
    Actor._echo,
    Actor._echo_many,
    Actor._flood,
    Actor._flood_a_callback,
    Actor._count,
    Actor._fail,
    Actor._inner,
    Actor._files,
    Actor._ask,
    Actor._drop,
    Actor._wait_for_ever,
]


def check_the_dead(gateway: Gateway, calls: Calls) -> None:
    """Everything that is asked of a gateway that has ended raises at once."""
    asked: list[tuple[str, Callable[..., object], tuple[object, ...]]] = [
        ("remote_exec", gateway.remote_exec, ("1",)),
        ("remote_status", gateway.remote_status, ()),
        ("dump_stacks", gateway.dump_stacks, (1.0,)),
        ("newchannel", gateway.newchannel, ()),
    ]
    for name, func, args in asked:
        try:
            calls.make(f"{name} after the end", 0.0, func, *args)
        except (*TYPED, Broken):
            continue
        calls.violations.append(f"{name} after the end raised nothing")
    if gateway.hasreceiver():
        calls.violations.append("it receives after its end")
