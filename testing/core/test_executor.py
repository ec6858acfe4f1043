"""An executor over a group: who gets a call, and how each future ends whatever happens.

``SEEDS`` rounds of faults by chance are more with EXECNET_TEST_EXECUTOR_SEEDS.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import functools
import itertools
import os
import random
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interpreters import far_sides
from tools import BOUND_S, MakeGateway, call_in_receiver, wait_until

from execnet import DeadlockError, DumpError, Gateway, Group, TimeoutError, WorkerDied, codecs
from execnet._calls.executor import Executor, chunks
from execnet._calls.lane import Work
from execnet._features.codecs import Codec
from execnet.gateway_base import LoadError

pytestmark = pytest.mark.core

SEEDS = int(os.environ.get("EXECNET_TEST_EXECUTOR_SEEDS", "4"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Group]:
    """Two workers that the tests of this module share, and leave as they are."""
    with Group(["popen", "popen"]) as group:
        yield group


@pytest.fixture
def executor(pair: Group) -> Iterator[Executor]:
    with pair.executor() as executor:
        yield executor


def add(first: int, second: int = 0) -> int:
    return first + second


def pid() -> int:
    import os

    return os.getpid()


def inverse(number: int) -> float:
    return 1 / number


def noted(path: str, number: int, kills: bool = False) -> int:
    import os

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    if kills:
        os._exit(1)
    return number


def dies() -> None:
    import os

    os._exit(7)


def dies_once(path: str) -> str:
    import os

    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except OSError:
        return "well"
    os._exit(7)


class Gate:
    """Has a call of a worker wait until it is opened; only one at a time for each worker."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        code = (
            "import threading; threading.gate, threading.came = [threading.Event() for _ in '12']"
        )
        gateway.remote_exec(code).waitclose(BOUND_S)

    def wait_for_one(self) -> None:
        assert self._gateway.call("threading:came.wait", BOUND_S)

    def open(self) -> None:
        self._gateway.call("threading:gate.set")


def passes_gate(result: Any = None) -> Any:
    import threading

    threading.came.set()  # type: ignore[attr-defined]
    threading.gate.wait()  # type: ignore[attr-defined]
    return result


class TestAnExecutor:
    def test_it_is_one_of_concurrent_futures(self, executor: Executor) -> None:
        assert isinstance(executor, concurrent.futures.Executor)
        future = executor.submit(add, 1, second=2)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(BOUND_S) == 3
        with pytest.raises(ZeroDivisionError):
            executor.submit(inverse, 0).result(BOUND_S)

    def test_asyncio_runs_calls_in_it(self, executor: Executor) -> None:
        async def run() -> list[int]:
            loop = asyncio.get_running_loop()
            asked = [loop.run_in_executor(executor, add, number, 1) for number in range(5)]
            return await asyncio.gather(*asked)

        assert asyncio.run(run()) == [1, 2, 3, 4, 5]

    def test_a_call_goes_to_the_worker_that_is_free(self, pair: Group, executor: Executor) -> None:
        gates = [Gate(gateway) for gateway in pair]
        held = executor.submit(passes_gate, 5)
        wait_until(held.running)
        pids = {executor.submit(pid).result(BOUND_S) for _ in range(10)}
        assert len(pids) == 1
        for gate in gates:
            gate.open()
        assert held.result(BOUND_S) == 5

    def test_a_worker_has_as_many_at_once_as_it_may(self, gateway: Gateway, group: Group) -> None:
        gateway.remote_exec("import threading; threading.two = threading.Barrier(2)").waitclose()
        with group.executor(max_per_worker=2) as executor:
            both = executor.map(lambda number: __import__("threading").two.wait(30), range(2))
            assert sorted(both) == [0, 1]
        with group.executor() as executor:
            gate, asked = Gate(gateway), [executor.submit(passes_gate) for _ in range(3)]
            gate.wait_for_one()
            assert [future.running() for future in asked] == [True, False, False]
            assert asked[2].cancel()
            assert asked[2].cancelled()
            gate.open()
            assert concurrent.futures.wait(asked, BOUND_S).not_done == set()

    @pytest.mark.parametrize("options", [{"max_per_worker": 0}, {"retries": -1}, {"retries": True}])
    def test_numbers_that_make_no_sense_are_refused(self, options: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="is a number from"):
            Group().executor(**options)

    def test_a_codec_is_for_arguments_and_results(self, pair: Group) -> None:
        day = datetime.date(2024, 2, 28)
        with pair.executor(codec=codecs.standard) as executor:
            assert executor.submit(add, day, datetime.timedelta(2)).result(BOUND_S).month == 3  # type: ignore[arg-type]
            days = executor.map(
                add, [day] * 3, [datetime.timedelta(n) for n in range(3)], chunksize=2
            )  # type: ignore[list-item]
            assert [one.day for one in days] == [28, 29, 1]  # type: ignore[attr-defined]
            refused = executor.submit(add, 1, second=object()).exception(BOUND_S)  # type: ignore[arg-type]
            assert isinstance(refused, DumpError)
            assert "add can't be called with that: kwargs['second']" in str(refused)
        with pair.executor(codec=codecs.pickle) as executor:
            values = executor.submit(lambda: __import__("types").SimpleNamespace(a=1))
            assert values.result(BOUND_S) == types.SimpleNamespace(a=1)
        with pytest.raises(TypeError, match="expected a codec"):
            pair.executor(codec=1)  # type: ignore[arg-type]

    def test_what_a_codec_can_not_load_fails_its_future(self, pair: Group) -> None:
        with pair.executor(codec=codecs.standard) as executor:
            lies = executor.submit(lambda: ("\0codec", "no-such-name", 1))
            assert lies.result(BOUND_S) == ("\0codec", "no-such-name", 1)
            executor._codec = codecs.standard
            executor._codec._from_item.clear()
            asked = executor.submit(lambda: __import__("decimal").Decimal(1))
            assert isinstance(asked.exception(BOUND_S), LoadError)
            assert executor.submit(add, 1).result(BOUND_S) == 1

    def test_its_workers_import_what_was_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: Group
    ) -> None:
        (tmp_path / "only_here.py").write_text("def double(number): return number * 2")
        monkeypatch.syspath_prepend(tmp_path)
        group.makegateway(f"popen//python={sys.executable}//chdir=/")
        with group.executor(imports=["only_here"]) as executor:
            assert executor.submit("only_here:double", 4).result(BOUND_S) == 8  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no module nowhere_at_all here"):
            group.executor(imports=["nowhere_at_all"])

    def test_what_can_t_be_sent_is_the_error_of_its_future(self, executor: Executor) -> None:
        asked = [executor.submit(add, object()), executor.submit(threading.Lock().locked)]  # type: ignore[arg-type]
        assert [type(future.exception(BOUND_S)) for future in asked] == [DumpError, ValueError]
        assert executor.submit(add, 1).result(BOUND_S) == 1


class TestMap:
    @pytest.mark.parametrize("options", [{}, {"chunksize": 7}, {"buffersize": 3}])
    def test_it_is_the_built_in_one(self, executor: Executor, options: dict[str, int]) -> None:
        assert list(executor.map(add, range(50), range(100, 0, -1), **options)) == [100] * 50
        after = functools.partial(add, second=1)
        assert list(executor.map(after, range(5), **options)) == [1, 2, 3, 4, 5]
        assert list(executor.map(add, [], **options)) == []

    @pytest.mark.parametrize(
        "numbers",
        [range(0), range(7), range(50, -50, -7), range(10**30, 10**30 + 5), range(10**30)],
        ids=str,
    )
    @pytest.mark.parametrize("codec", [None, codecs.standard])
    def test_a_range_travels_as_its_bounds(
        self, pair: Group, numbers: range, codec: Codec | None
    ) -> None:
        parts = [range(*bounds) for ((bounds,),) in itertools.islice(chunks((numbers,), 3), 9)]
        assert list(itertools.chain(*parts)) == list(itertools.islice(numbers, 27))
        few = numbers[:27]
        with pair.executor(codec=codec) as executor:
            assert list(executor.map(add, few, chunksize=3)) == list(few)

    @pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
    def test_other_pythons_take_chunks_of_all_kinds(self, group: Group, python: str) -> None:
        group.makegateway(f"popen//python={python}")
        with group.executor() as executor:
            for numbers in range(10), range(9, -4, -2), list(range(5)):
                expected = [number + 1 for number in numbers]
                assert (
                    list(executor.map("operator:add", numbers, [1] * 10, chunksize=2)) == expected
                )
                assert list(executor.map("operator:neg", numbers, chunksize=2)) == [
                    -number for number in numbers
                ]

    @pytest.mark.parametrize("chunksize", [1, 2])
    def test_an_error_comes_in_its_place(self, executor: Executor, chunksize: int) -> None:
        results = executor.map(inverse, [1, 2, 0, 4], chunksize=chunksize)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_a_buffer_bounds_what_is_taken_ahead(self, executor: Executor) -> None:
        taken = itertools.count()
        results = executor.map(add, taken, buffersize=4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert next(taken) == 7
        results.close()  # type: ignore[attr-defined]

    def test_the_workers_begin_before_all_calls_are_made_ready(
        self, executor: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submit, numbers = executor._submit, []

        def count(*works: Work) -> None:
            numbers.append(len(works))
            submit(*works)

        monkeypatch.setattr(executor, "_submit", count)
        assert list(executor.map(add, range(100))) == list(range(100))
        assert numbers == [64, 36]

    @pytest.mark.parametrize(("call_s", "room"), [(0.00001, 32), (0.0001, 20), (0.003, 1)])
    def test_few_short_calls_go_to_one_worker_when_no_other_is_free(
        self, executor: Executor, monkeypatch: pytest.MonkeyPatch, call_s: float, room: int
    ) -> None:
        lane = executor._free[0]
        executor._free.clear()
        monkeypatch.setattr("execnet._calls.lane.monotonic", lambda: 100.0)
        lane._posted_s, lane._answered, lane._pace_s = 100.0 - 7.999 * call_s, 8, 0.0
        lane.measure()
        assert (lane.depth, executor._room(lane)) == (min(32, int(0.01 / call_s)), room)

    def test_time_runs_out_for_all_together(self, gateway: Gateway, group: Group) -> None:
        gate = Gate(gateway)
        with group.executor() as executor:
            results = executor.map(passes_gate, range(3), timeout=0.05)
            with pytest.raises(TimeoutError, match="no result within the timeout"):
                next(results)
            gate.open()

    @pytest.mark.parametrize("options", [{"chunksize": 0}, {"buffersize": 0}])
    def test_numbers_that_make_no_sense_are_refused(
        self, executor: Executor, options: dict[str, int]
    ) -> None:
        with pytest.raises(ValueError, match="must be"):
            executor.map(add, [1], **options)


class TestShutdown:
    def test_it_waits_for_all_and_takes_no_more(self, pair: Group) -> None:
        executor = pair.executor()
        asked = [executor.submit(add, number) for number in range(20)]
        executor.shutdown()
        assert all(future.done() for future in asked)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(add, 1)
        executor.shutdown()
        assert executor not in pair._executors
        assert all(not lanes for lanes in executor._lanes.values())

    def test_it_may_cancel_what_was_not_sent(self, gateway: Gateway, group: Group) -> None:
        gate, executor = Gate(gateway), group.executor()
        running, waiting = executor.submit(passes_gate, 1), executor.submit(add, 1)
        executor.shutdown(wait=False, cancel_futures=True)
        assert [running.cancelled(), waiting.cancelled()] == [False, True]
        gate.open()
        assert running.result(BOUND_S) == 1
        wait_until(lambda: executor not in group._executors)

    def test_a_callback_of_a_worker_can_t_wait_for_it(self, gateway: Gateway, group: Group) -> None:
        gate, executor = Gate(gateway), group.executor()
        held, caught = executor.submit(passes_gate), []

        def wait(item: object) -> None:
            for waits in (held.result, executor.shutdown, executor.map(add, [1]).__next__):
                with pytest.raises(DeadlockError):
                    waits()
                caught.append(waits)

        call_in_receiver(gateway, wait)
        wait_until(lambda: len(caught) == 2 or len(caught) == 3)
        gate.open()
        held.result(BOUND_S)


class TestWorkersThatEnd:
    def test_a_call_that_ran_fails_and_those_that_wait_go_elsewhere(
        self, makegateway: MakeGateway, group: Group
    ) -> None:
        makegateway(), makegateway()
        with group.executor() as executor:
            dead = executor.submit(dies)
            results = list(executor.map(add, range(20)))
            assert results == list(range(20))
            error = dead.exception(BOUND_S)
            assert isinstance(error, WorkerDied)
            assert error.exitcode == 7

    def test_one_that_is_safe_runs_again(
        self, makegateway: MakeGateway, group: Group, tmp_path: Path
    ) -> None:
        makegateway(), makegateway()
        with group.executor(retries=1) as executor:
            assert executor.submit(dies_once, str(tmp_path / "mark")).result(BOUND_S) == "well"
            assert isinstance(executor.submit(dies).exception(BOUND_S), (WorkerDied, RuntimeError))

    def test_without_a_worker_nothing_waits(self, gateway: Gateway, group: Group) -> None:
        with group.executor() as executor:
            asked = [executor.submit(dies), executor.submit(add, 1)]
            errors = [future.exception(BOUND_S) for future in asked]
            assert [type(error) for error in errors] == [WorkerDied, RuntimeError]
            assert isinstance(errors[1].__cause__, WorkerDied)  # type: ignore[union-attr]
            with pytest.raises(RuntimeError, match="no workers that can be called"):
                executor.submit(add, 1)

    def test_a_group_is_used_as_it_is(self, makegateway: MakeGateway, group: Group) -> None:
        first = makegateway()
        with group.executor() as executor:
            gate, held = Gate(first), executor.submit(passes_gate, 1)
            waiting = executor.submit(pid)
            gate.wait_for_one()
            second = makegateway()  # and it gets what waits
            assert waiting.result(BOUND_S) == second._rinfo().pid
            gate.open()
            assert held.result(BOUND_S) == 1
            first.exit()
            pids = {executor.submit(pid).result(BOUND_S) for _ in range(10)}
            assert pids == {second._rinfo().pid}

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_each_future_ends_whatever_happens(self, seed: int, tmp_path: Path) -> None:
        """Workers are killed, ended and started by chance, and calls are cancelled."""
        chance = random.Random(seed)
        path, retries = str(tmp_path / "noted"), chance.choice([0, 0, 2])
        Path(path).touch()
        ended: Counter[int] = Counter()
        asked: list[concurrent.futures.Future[int]] = []
        at_once = chance.choice([1, 2])
        with Group(["popen"] * 3) as group, group.executor(at_once, retries=retries) as executor:
            for number in range(120):
                drawn = chance.random()
                try:
                    future = executor.submit(noted, path, number, drawn < 0.02)
                except RuntimeError:  # no worker is left
                    group.makegateway()
                    future = executor.submit(noted, path, number)
                future.add_done_callback(functools.partial(_count, ended, number))
                asked.append(future)
                _do_by_chance(chance, drawn, group, asked)
            concurrent.futures.wait(asked, BOUND_S)
        wait_until(lambda: len(ended) == len(asked))
        assert set(ended.values()) == {1}
        ran = Counter(map(int, Path(path).read_text().split()))
        for number, future in enumerate(asked):
            if future.cancelled():
                assert ran[number] <= 1 + retries
                continue
            error = future.exception(0)
            if error is None:
                assert future.result() == number
                assert ran[number] >= 1
            else:
                assert isinstance(error, (WorkerDied, EOFError, RuntimeError))
            assert ran[number] <= 1 + retries


def _count(ended: Counter[int], number: int, future: concurrent.futures.Future[int]) -> None:
    ended[number] += 1


def _do_by_chance(chance: random.Random, drawn: float, group: Group, asked: list[Any]) -> None:
    choices: list[Callable[[Gateway], object]] = [
        lambda gateway: gateway._io.kill(),
        lambda gateway: gateway.exit() if len(group) > 2 else None,
        lambda gateway: group.makegateway(),
    ]
    if drawn > 0.95 and len(group):
        chance.choice(choices)(chance.choice(list(group)))
    if 0.5 < drawn < 0.6:
        chance.choice(asked).cancel()
    if 0.6 < drawn < 0.65:
        concurrent.futures.wait(asked[:-3], BOUND_S)
