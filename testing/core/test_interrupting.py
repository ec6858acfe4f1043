"""Interrupts that the coordinator asks for: they end what they are meant for and nothing else."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, find_python, needs_other_threads, threads, wait_until

from execnet import Gateway, Group, RemoteError, WorkerDied
from execnet._calls.executor import Executor
from execnet._features.interrupts import interrupt_main
from execnet.gateway_base import Process, get_execmodel

pytestmark = pytest.mark.core

BUSY = "channel.send(1)\nwhile True: pass"
WAITS = "import time; channel.send(1); time.sleep(1000)"
RECEIVES = "channel.send(1); channel.receive()"


@pytest.fixture(scope="module", params=["popen", f"popen//python={sys.executable}"])
def worker(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A gateway that the tests of this module share."""
    with Group([request.param]) as group:
        yield group[0]


@pytest.fixture(
    params=["main thread", pytest.param("another thread", marks=needs_other_threads)],
)
def place(request: pytest.FixtureRequest, worker: Gateway) -> Iterator[str]:
    """Where calls of the worker run: other code keeps its main thread, or does not."""
    channel = worker.remote_exec(RECEIVES) if request.param == "another thread" else None
    if channel is not None:
        assert channel.receive(BOUND_S) == 1
    yield request.param
    if channel is not None:
        channel.send(None)
        channel.waitclose(BOUND_S)


def add(first: int, second: int) -> int:
    return first + second


def spins(name: str) -> None:
    import sys

    setattr(sys, name, True)
    while True:
        pass


def spins_beside(path: str) -> None:
    """Make a file, and run until it is ended."""
    open(path, "w").close()
    while True:
        pass


def spins_from_one_on(number: int) -> int:
    if number:
        spins("spun")
    return number


def interrupts(earlier: int) -> str:
    """Interrupt the call that came so many before this one."""
    import sys

    calls = sys.calls  # type: ignore[attr-defined]
    ((lane, (number, _)),) = calls._current.items()
    calls.interrupt(lane, number - earlier)
    return "well" if sum(range(1000)) else ""


def dawdles() -> int:
    return sum(number % 7 for number in range(3000))


def test_a_signal_that_is_not_meant_for_what_runs_is_ignored_once() -> None:
    process = Process()
    process.is_interruptible, process.is_meant = True, lambda: False
    process._on_interrupt(2, None)
    with pytest.raises(KeyboardInterrupt):
        process._on_interrupt(2, None)


@pytest.mark.usefixtures("coordinator")
class TestAChannel:
    @pytest.fixture(params=["popen", f"popen//python={sys.executable}"])
    def worker(self, request: pytest.FixtureRequest, makegateway: MakeGateway) -> Gateway:
        """A gateway of its own, as its coordinator may be one of greenlets."""
        return makegateway(request.param)

    @pytest.mark.parametrize("code", [BUSY, WAITS, RECEIVES])
    def test_its_code_gets_a_keyboard_interrupt(self, worker: Gateway, code: str) -> None:
        channel = worker.remote_exec(code)
        assert channel.receive(BOUND_S) == 1
        channel.interrupt()
        with pytest.raises(RemoteError, match="keyboard-interrupted"):
            channel.waitclose(BOUND_S)

    @needs_other_threads
    def test_no_other_code_does(self, worker: Gateway) -> None:
        first, second = worker.remote_exec(RECEIVES), worker.remote_exec(BUSY)
        assert [first.receive(BOUND_S), second.receive(BOUND_S)] == [1, 1]
        second.interrupt()
        with pytest.raises(RemoteError, match="keyboard-interrupted"):
            second.waitclose(BOUND_S)
        second.interrupt()  # it has ended
        first.send(None)
        first.waitclose(BOUND_S)

    def test_code_may_catch_it_and_go_on(self, worker: Gateway) -> None:
        code = f"try:\n  {WAITS}\nexcept KeyboardInterrupt:\n  channel.send('caught')"
        channel = worker.remote_exec(code)
        assert channel.receive(BOUND_S) == 1
        channel.interrupt()
        assert channel.receive(BOUND_S) == "caught"
        channel.waitclose(BOUND_S)

    @pytest.mark.parametrize("version", ["2.7", "3.6"])
    def test_it_goes_for_other_pythons(self, makegateway: MakeGateway, version: str) -> None:
        gateway = makegateway(f"popen//python={find_python(version)}")
        channels = [gateway.remote_exec(code) for code in (WAITS, BUSY)]
        for channel in channels:
            assert channel.receive(BOUND_S) == 1
            channel.interrupt()
        for channel in channels:
            with pytest.raises(RemoteError, match="keyboard-interrupted"):
                channel.waitclose(BOUND_S)

    def test_where_it_can_t_be_it_is_refused(
        self, worker: Gateway, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        far = worker.remote_exec("channel.interrupt()")
        with pytest.raises(RemoteError, match="can't be interrupted from this side"):
            far.waitclose(BOUND_S)
        channel = gateway.newchannel()
        with monkeypatch.context() as patch:
            patch.setitem(gateway.handshake.hello, "features", "goodbye")
            with pytest.raises(OSError, match="its worker does not support that"):
                channel.interrupt()
        gateway.exit()
        gateway.join(BOUND_S)
        with pytest.raises(OSError, match="cannot interrupt"):
            channel.interrupt()


def spinning(worker: Gateway, executor: Executor, name: str) -> concurrent.futures.Future[None]:
    """Return the future of a call that runs until it is ended."""
    future = executor.submit(spins, name)
    wait_until(lambda: _has(worker, name))
    return future


def _has(worker: Gateway, name: str) -> bool:
    channel = worker.remote_exec(f"import sys; channel.send(bool(sys.__dict__.pop({name!r}, 0)))")
    return bool(channel.receive(BOUND_S))


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_in_a_call_interrupts_the_function(
    worker: Gateway, place: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"

    def press() -> None:
        wait_until(made.exists)  # code that asks the worker might get its main thread
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        worker.call(spins_beside, str(made))
    thread.join(BOUND_S)
    calls = "channel.send(len(channel.gateway.calls._lanes))"
    wait_until(lambda: worker.remote_exec(calls).receive(BOUND_S) == 0)


class TestACancelledCall:
    def test_it_is_interrupted_and_the_worker_goes_on(self, worker: Gateway, place: str) -> None:
        assert worker._group is not None
        with worker._group.executor(cancel="interrupt") as executor:  # type: ignore[attr-defined]
            future = spinning(worker, executor, "spun")
            assert future.cancel()
            assert future.cancelled()
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(BOUND_S)
            assert executor.submit(add, 1, 2).result(BOUND_S) == 3
            assert not future.cancel() or future.cancelled()

    def test_one_that_comes_after_its_call_does_nothing(self, worker: Gateway, place: str) -> None:
        worker.call("builtins:len", "")
        worker.remote_exec("import sys; sys.calls = channel.gateway.calls").waitclose(BOUND_S)
        assert worker._group is not None
        with worker._group.executor() as executor:  # type: ignore[attr-defined]
            assert executor.submit(add, 1, 2).result(BOUND_S) == 3
            assert executor.submit(interrupts, 1).result(BOUND_S) == "well"
            with pytest.raises(RemoteError) as caught:
                executor.submit(interrupts, 0).result(BOUND_S)
            assert caught.value.type_name == "KeyboardInterrupt"
            assert executor.submit(add, 1, 2).result(BOUND_S) == 3

    def test_a_late_interrupt_hits_no_other_call(self, worker: Gateway, place: str) -> None:
        ended = {True: 0, False: 0}
        assert worker._group is not None
        with worker._group.executor(cancel="interrupt") as executor:  # type: ignore[attr-defined]
            for number in range(150):
                cancelled, other = executor.submit(dawdles), executor.submit(add, number, 1)
                if number % 3:
                    worker.call("builtins:len", "a" * (number % 50))
                ended[cancelled.cancel()] += 1
                assert other.result(BOUND_S) == number + 1
        assert ended[True]

    def test_one_that_was_asked_to_end_leaves_nothing(self, worker: Gateway) -> None:
        assert worker.call("builtins:len", "ab") == 2
        calls = worker.remote_exec(
            "calls = channel.gateway.calls\n"
            "channel.send([len(calls._lanes), len(calls._current), len(calls._interrupted)])"
        )
        assert calls.receive(BOUND_S) == [0, 0, 0]

    def test_without_the_option_it_runs_on(self, gateway: Gateway, group: Group) -> None:
        with group.executor() as executor:
            future = executor.submit("time:sleep", 0.05)  # type: ignore[arg-type]
            wait_until(future.running)
            assert not future.cancel()
            assert future.result(BOUND_S) is None

    def test_its_worker_may_be_killed(self, makegateway: MakeGateway, group: Group) -> None:
        workers = [makegateway(), makegateway()]
        with group.executor(max_per_worker=2, cancel="kill") as executor:
            asked: list[Any] = [executor.submit("time:sleep", 1000) for _ in range(4)]  # type: ignore[arg-type]
            wait_until(lambda: all(future.running() for future in asked))
            assert asked[0].cancel()
            assert asked[0].cancelled()
            lost = wait_until(lambda: [one for one in asked[1:] if one.done()])
            assert [type(one.exception(0)) for one in lost] == [WorkerDied]
            for future in asked:
                future.cancel()
            wait_until(lambda: all(not gateway.hasreceiver() for gateway in workers))

    def test_a_map_that_is_left_ends_what_it_asked_for(self, worker: Gateway) -> None:
        assert worker._group is not None
        with worker._group.executor(cancel="interrupt") as executor:  # type: ignore[attr-defined]
            results = executor.map(spins_from_one_on, range(3))
            assert next(results) == 0
            wait_until(lambda: _has(worker, "spun"))
            results.close()  # type: ignore[attr-defined]
            assert executor.submit(add, 1, 2).result(BOUND_S) == 3

    def test_other_words_are_refused(self, group: Group) -> None:
        with pytest.raises(ValueError, match="cancel must be 'interrupt', 'kill' or None"):
            group.executor(cancel="stop")


def test_one_that_python_did_not_see_is_sent_again_and_is_the_same_one() -> None:
    class Deaf:
        """A process that does not see the first signal, and sees the second one twice."""

        is_meant: Any = None
        raised: list[bool] = []  # noqa: RUF012
        signals = 0

        def interrupt_main(self) -> None:
            self.signals += 1
            for _ in range(0 if self.signals == 1 else 2):
                is_meant, self.is_meant = self.is_meant, None
                self.raised.append(is_meant())

    class Worker:
        process = Deaf()
        execmodel = get_execmodel("thread")

    interrupt_main(Worker, lambda: True)
    process = Worker.process
    wait_until(lambda: len(process.raised) == 2 and process.is_meant is None)
    assert process.raised == [True, False]
    wait_until(lambda: "execnet-interrupt" not in {thread.name for thread in threads()})
    assert process.signals == 2
