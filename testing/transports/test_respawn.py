"""``Group(respawn=N)``: a worker that died is started anew, and nothing is left of either."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pytest
from processes import wait_reaped
from services import FakeSsh
from tools import BOUND_S, run_python, some_of, wait_until

import execnet
from execnet import BootstrapError, Gateway, Group, WorkerDied, aio
from execnet._respawn import respawner
from execnet.gateway_base import ProtocolError

Event = tuple[Gateway, Any, Exception]
MANY = 5

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
EXIT = "import os; os._exit(0)"
GARBAGE = "channel.gateway._io.write(b'\\x63' * 9)"
HANGS_LATER = "if [ $(wc -l < $here/runs) -gt 1 ]; then exec sleep 600; fi\n" + FakeSsh.RUN
FAILS_LATER = "if [ $(wc -l < $here/runs) -gt 1 ]; then exit 3; fi\n" + FakeSsh.RUN


class Respawning:
    """A group that starts workers anew; ``next_event`` is what ``on_respawn`` tells."""

    def __init__(self) -> None:
        self.group = Group(respawn=MANY)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self.group.on_respawn(lambda *event: self._events.put(event))

    def next_event(self) -> Event:
        return self._events.get(timeout=BOUND_S)

    def is_quiet(self) -> bool:
        return self._events.empty()

    def is_at_rest(self) -> bool:
        return not self.group._awaits_workers()


@pytest.fixture
def one(nothing_is_left: None) -> Iterator[Respawning]:
    one = Respawning()
    yield one
    one.group.terminate(timeout=5.0)


def lose(gateway: Gateway, code: str = KILL) -> None:
    gateway.remote_exec(code)
    wait_until(lambda: not gateway.hasreceiver())


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


@pytest.mark.parametrize(("code", "kind"), [(KILL, WorkerDied), (EXIT, WorkerDied),
                                            (GARBAGE, ProtocolError)])  # fmt: skip
def test_another_takes_the_place_and_the_id_of_one_that_was_lost(
    one: Respawning, code: str, kind: type[Exception]
) -> None:
    old, other = one.group.makegateways(["popen//id=a//nice=1", "popen//id=b"])
    channel = old.remote_exec("channel.receive()")
    lose(old, code)
    with pytest.raises(kind):
        channel.receive(BOUND_S)
    lost, new, error = one.next_event()
    assert (lost, type(error)) == (old, kind)
    assert [*one.group] == [new, other]
    assert one.group["a"] is new
    assert (new.id, str(new.spec)) == ("a", "popen//id=a//nice=1")
    assert new.remote_exec("channel.send(1)").receive(BOUND_S) == 1
    wait_reaped(pid_of(old))


def test_one_that_was_ended_is_not_started_anew(one: Respawning) -> None:
    first, second = one.group.makegateways(["popen"] * 2)
    first.exit()
    first.join(BOUND_S)
    assert [*one.group] == [second]
    lose(second)
    assert one.next_event()[0] is second  # and was told of nothing before
    one.group.terminate(timeout=5)
    assert one.is_at_rest()
    assert one.is_quiet()


def test_one_that_dies_at_once_is_started_a_number_of_times(one: Respawning) -> None:
    def kill(old: Gateway, new: Gateway | None, error: Exception) -> None:
        told.put(error)
        if new is not None:
            os.kill(pid_of(new), signal.SIGKILL)

    told: SimpleQueue[Exception] = SimpleQueue()
    one.group.on_respawn(kill)
    lose(one.group.makegateway("popen"))
    for _ in range(MANY):
        assert isinstance(told.get(timeout=BOUND_S), WorkerDied)
    wait_until(one.is_at_rest)
    last = one.group["gw0"]
    wait_until(lambda: not last.hasreceiver())
    assert told.empty()


def test_the_pauses_grow_to_a_bound_until_one_has_lived_for_a_while() -> None:
    member = respawner._Member(0.0)
    pauses = [member.begin(1.0) for _ in range(20)]
    assert pauses[:4] == [0.0, 0.1, 0.2, 0.4]
    assert pauses[10:] == [respawner.PAUSE_MAX_S] * 10
    assert member.begun == 20
    assert member.begin(1.0 + respawner.STEADY_S) == 0.0
    assert member.begin(2.0 + respawner.STEADY_S) == 0.1


def test_a_start_that_fails_counts_and_is_told(
    one: Respawning, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(respawner, "PAUSE_S", 0.001)
    fake_ssh(FAILS_LATER)
    old = one.group.makegateway("ssh=host")
    lose(old)
    for _ in range(MANY):
        lost, new, error = one.next_event()
        assert (lost, new) == (old, None)
        assert isinstance(error, BootstrapError)
        assert isinstance(error.__cause__, WorkerDied)
    wait_until(one.is_at_rest)
    assert len(fake_ssh.runs()) == 1 + MANY
    assert one.group["gw0"] is old
    assert one.is_quiet()


def test_several_that_die_at_once_return_after_what_they_go_through(one: Respawning) -> None:
    names = "first", "second", "third", "other"
    specs = ["", "//via=first", "//via=second", ""]
    gateways = one.group.makegateways(
        f"popen{spec}//id={name}" for spec, name in zip(specs, names, strict=True)
    )
    for gateway in (gateways[0], gateways[3]):
        os.kill(pid_of(gateway), signal.SIGKILL)
    told = [one.next_event() for _ in names]
    assert all(new is not None for _, new, _ in told)
    assert {old.id for old, _, _ in told} == set(names)
    assert [gateway.id for gateway in one.group] == [*names]
    assert len({gateway.call("os:getpid") for gateway in one.group}) == 4


def test_one_that_dies_before_it_is_a_member_is_started_anew(
    one: Respawning, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Group._forward_output
    deaths = iter([True, True, False])

    def forward_output(group: Group, started: list[Gateway], deadlines: Any) -> None:
        forward(group, started, deadlines)
        if next(deaths, False):
            os.kill(pid_of(started[0]), signal.SIGKILL)
            started[0].await_receiver()

    monkeypatch.setattr(Group, "_forward_output", forward_output)
    one.group.makegateway("popen")
    for _ in range(2):
        assert isinstance(one.next_event()[2], WorkerDied)
    assert one.group["gw0"].call(abs, -1) == 1


@pytest.mark.parametrize("ends", ["terminate", "exit"])
def test_an_end_while_one_is_started_anew_leaves_nothing(
    one: Respawning, fake_ssh: FakeSsh, ends: str
) -> None:
    fake_ssh(HANGS_LATER)
    lost, other = one.group.makegateway("ssh=host"), one.group.makegateway("popen")
    lose(lost)
    wait_until(lambda: len(fake_ssh.runs()) == 2)
    if ends == "terminate":
        one.group.terminate(timeout=2)
        assert len(one.group) == 0
    else:
        lost.exit()
        assert [*one.group] == [other]
    wait_reaped(*fake_ssh.pids())
    assert one.is_at_rest()
    assert one.is_quiet()


def test_a_group_can_be_used_again_after_its_end(one: Respawning) -> None:
    for _ in range(2):
        lose(one.group.makegateway("popen//id=a"))
        assert one.next_event()[1] is one.group["a"]
        one.group.terminate(timeout=5)


@pytest.mark.parametrize("seed", range(some_of(50, 0.06)))
def test_deaths_while_the_group_ends_leave_nothing(one: Respawning, seed: int) -> None:
    chance = random.Random(seed)
    gateways = one.group.makegateways(["popen//grace=0", "popen//via=gw0"])
    victim = pid_of(chance.choice(gateways))
    begin = threading.Barrier(2)

    def kill() -> None:
        begin.wait()
        for _ in range(chance.randrange(20_000)):
            pass
        with suppress(ProcessLookupError):  # it has ended before
            os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    begin.wait()
    for _ in range(chance.randrange(20_000)):
        pass
    one.group.terminate(timeout=BOUND_S)
    killer.join()
    assert len(one.group) == 0
    assert one.is_at_rest()


class TestExecutor:
    def test_calls_wait_for_the_new_worker(self, one: Respawning) -> None:
        old = one.group.makegateway("popen")
        with one.group.executor(retries=1) as executor:
            first = executor.submit(os.getpid).result(BOUND_S)
            assert first == pid_of(old)
            executor.submit(os.kill, first, int(signal.SIGKILL))
            second = executor.submit(os.getpid)
            assert one.next_event()[0] is old
            assert second.result(BOUND_S) == pid_of(one.group["gw0"])

    def test_they_fail_when_there_will_be_none(
        self, one: Respawning, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(respawner, "PAUSE_S", 0.001)
        fake_ssh(FAILS_LATER)
        with_one = one.group.executor()
        lose(one.group.makegateway("ssh=host"))
        with pytest.raises(RuntimeError, match="no workers"):
            with_one.submit(os.getpid).result(BOUND_S)


def test_an_interrupt_while_the_end_waits_for_a_start_leaves_nothing(
    one: Respawning, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: respawner.Respawner, deadline: float | None) -> None:
        raise KeyboardInterrupt

    fake_ssh(HANGS_LATER)
    lose(one.group.makegateway("ssh=host"))
    wait_until(lambda: len(fake_ssh.runs()) == 2)
    with monkeypatch.context() as patch:
        patch.setattr(respawner.Respawner, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.group.terminate()
    wait_reaped(*fake_ssh.pids())
    assert one.is_quiet()
    one.group.terminate(timeout=5)
    assert len(one.group) == 0


def test_a_group_of_a_loop_has_it_too() -> None:
    async def main() -> None:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with aio.Group(["popen"], respawn=1) as group:
            group.on_respawn(lambda *event: told.set_result(event))
            old = group[0]
            with pytest.raises(WorkerDied):
                await old.remote_exec(KILL).receive()
            assert (await asyncio.wait_for(told, BOUND_S))[:2] == (old, group["gw0"])
            assert await group[0].call(abs, -1) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Group(respawn=-1),
        lambda: Group(respawn=True),
        lambda: Group(respawn="2"),
        lambda: Group(respawn=1).set_execmodel("gevent"),
        lambda: Group().on_respawn(print),
        lambda: aio.Group(respawn=1.5),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="respawn"):
        make()


def test_a_program_that_asks_for_nothing_loads_nothing() -> None:
    code = "import execnet, sys; execnet.Group(['popen']).terminate(); print(*sys.modules)"
    assert "execnet._respawn" not in run_python(code).stdout
    assert execnet.default_group._respawner is None
