"""The four execution models under one set of names, and the pools and replies made of them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools import BOUND_S, Task, wait_until

from execnet.gateway_base import ExecModel, Reply, WorkerPool, get_execmodel

THREADS = ("thread", "main_thread_only")


class TestExecModel:
    def test_its_backend_is_its_name(self, execmodel: ExecModel) -> None:
        assert get_execmodel(execmodel.backend).backend == execmodel.backend
        assert execmodel.backend in repr(execmodel)

    def test_one_is_given_as_it_is(self, execmodel: ExecModel) -> None:
        assert get_execmodel(execmodel) is execmodel

    @pytest.mark.parametrize("name", ["", "threads", "Thread", "asyncio"])
    def test_an_unknown_name_is_a_value_error_that_lists_the_known(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=r"eventlet.*gevent.*main_thread_only.*thread"
        ) as caught:
            get_execmodel(name)
        assert repr(name) in str(caught.value)

    def test_start_runs_a_function_with_its_arguments(self, execmodel: ExecModel) -> None:
        done, got = execmodel.Event(), []

        def run(*args: Any) -> None:
            got.append((args, execmodel.get_ident()))
            done.set()

        execmodel.start(run)
        assert done.wait(BOUND_S)
        done = execmodel.Event()
        execmodel.start(run, (1, "two"))
        assert done.wait(BOUND_S)
        assert [args for args, _ in got] == [(), (1, "two")]
        assert execmodel.get_ident() not in [ident for _, ident in got]

    def test_events_wait_until_they_are_set(self, execmodel: ExecModel) -> None:
        event = execmodel.Event()
        assert not event.is_set()
        assert not event.wait(0.01)
        waiting = Task(execmodel, event.wait)
        event.set()
        assert waiting.result()
        assert event.is_set()
        event.clear()
        assert not event.wait(timeout=0)

    def test_locks_let_one_in_at_a_time(self, execmodel: ExecModel) -> None:
        lock, inside, most = execmodel.Lock(), [], []

        def enter() -> None:
            for _ in range(20):
                with lock:
                    inside.append(1)
                    execmodel.sleep(0)
                    most.append(len(inside))
                    inside.pop()

        for task in [Task(execmodel, enter) for _ in range(5)]:
            task.result()
        assert most == [1] * 100

    def test_a_lock_that_is_taken_can_be_tried(self, execmodel: ExecModel) -> None:
        lock = execmodel.Lock()
        assert lock.acquire()
        assert not lock.acquire(False)
        lock.release()
        assert lock.acquire(False)
        lock.release()

    def test_a_reentrant_lock_lets_its_holder_in_again(self, execmodel: ExecModel) -> None:
        lock = execmodel.RLock()
        with lock, lock:
            assert not Task(execmodel, lock.acquire, False).result()

        def take_it() -> None:
            with lock:
                pass

        Task(execmodel, take_it).result()

    def test_queues_give_what_is_put_in(self, execmodel: ExecModel) -> None:
        queue = execmodel.queue.Queue()
        getting = Task(execmodel, queue.get)
        queue.put("a")
        assert getting.result() == "a"
        for blocking in ({"block": False}, {"timeout": 0.01}):
            with pytest.raises(execmodel.queue.Empty):
                queue.get(**blocking)

    def test_sleeping_lets_others_run(self, execmodel: ExecModel) -> None:
        ran: list[bool] = []
        execmodel.start(ran.append, (True,))
        wait_until(lambda: ran, sleep=execmodel.sleep)

    def test_a_subprocess_can_be_waited_for(self, execmodel: ExecModel) -> None:
        subprocess = execmodel.subprocess
        process = subprocess.Popen([sys.executable, "-c", "print(7)"], stdout=subprocess.PIPE)
        output, _ = process.communicate()
        assert (output.strip(), process.returncode) == (b"7", 0)

    def test_sockets_talk_to_each_other(self, execmodel: ExecModel) -> None:
        server = execmodel.socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        accepting = Task(execmodel, server.accept)
        client = execmodel.socket.socket()
        client.connect(server.getsockname())
        accepted, _ = accepting.result()
        receiving = Task(execmodel, client.recv, 10)
        accepted.sendall(b"hello")
        assert receiving.result() == b"hello"
        for socket in (client, accepted, server):
            socket.close()

    def test_files_over_descriptors_carry_bytes(self, execmodel: ExecModel) -> None:
        reader, writer = os.pipe()
        outfile, infile = execmodel.fdopen(writer, "wb"), execmodel.fdopen(reader, "rb", 0)
        assert (infile.fileno(), outfile.fileno()) == (reader, writer)
        reading = Task(execmodel, infile.read, 100)
        assert outfile.write(b"ab") == 2
        assert reading.result() == b"ab"
        outfile.close()
        assert infile.read(1) == b""
        infile.close()
        for file in (infile, outfile):
            with pytest.raises(ValueError, match="closed"):
                file.fileno()
            file.close()

    def test_files_over_descriptors_are_text_where_their_mode_says_no_other(
        self, execmodel: ExecModel
    ) -> None:
        reader, writer = os.pipe()
        outfile, infile = execmodel.fdopen(writer, "w"), execmodel.fdopen(reader, "r")
        reading = Task(execmodel, infile.readline)
        outfile.write("a line\nand ")
        outfile.flush()
        assert reading.result() == "a line\n"
        reading = Task(execmodel, infile.read)  # without a size: all
        outfile.write("text")
        outfile.close()
        assert reading.result() == "and text"
        infile.close()

    def test_files_over_descriptors_may_have_a_buffer(self, execmodel: ExecModel) -> None:
        reader, writer = os.pipe()
        with execmodel.fdopen(reader, "r", -1) as infile:
            with execmodel.fdopen(writer, "w", -1) as outfile:
                outfile.write("text")
            assert infile.read() == "text"


class Gate:
    """A function that a pool runs, and that ends when the test says so."""

    def __init__(self, execmodel: ExecModel) -> None:
        self.entered = execmodel.Event()
        self.left = execmodel.Event()
        self.idents: list[int] = []

    def __call__(self, result: Any = None) -> Any:
        self.idents.append(threading.get_ident())
        self.entered.set()
        self.left.wait(20)
        return result

    def leave(self) -> None:
        self.left.set()


@pytest.fixture
def pool(execmodel: ExecModel) -> Iterator[WorkerPool]:
    """A pool of an execution model; all that it runs ends with the test."""
    pool = WorkerPool(execmodel)
    yield pool
    assert pool.terminate(timeout=5)


@pytest.fixture
def gate(pool: WorkerPool) -> Iterator[Gate]:
    """A function for ``pool`` that the test holds back."""
    gate = Gate(pool.execmodel)
    yield gate
    gate.leave()


class TestReply:
    def test_it_gives_the_result_at_every_call(self, pool: WorkerPool) -> None:
        reply = pool.spawn(lambda *args, **kwargs: (args, kwargs), 1, 2, three=3)
        assert isinstance(reply, Reply)
        assert [reply.get(), reply.get(timeout=0)] == [((1, 2), {"three": 3})] * 2

    @pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt("k")])
    def test_it_raises_the_exception_at_every_call(
        self, pool: WorkerPool, error: BaseException
    ) -> None:
        def fail() -> None:
            raise error

        reply = pool.spawn(fail)
        for _ in range(3):
            with pytest.raises(type(error)) as caught:
                reply.get(timeout=BOUND_S)
            assert caught.value is error
        reply.waitfinish()
        assert not reply.running
        error.__traceback__ = None  # the parameter lives on, the frames need not

    def test_waiting_too_long_is_an_os_error(self, pool: WorkerPool, gate: Gate) -> None:
        reply = pool.spawn(gate, 7)
        for wait in (reply.get, reply.waitfinish):
            for timeout in (0, 0.01):
                with pytest.raises(OSError, match=str(timeout)):
                    wait(timeout)
        gate.leave()
        reply.waitfinish(timeout=BOUND_S)
        assert reply.get() == 7

    def test_it_runs_until_the_function_has_ended(self, pool: WorkerPool, gate: Gate) -> None:
        reply = pool.spawn(gate)
        assert reply.running
        assert gate.entered.wait(BOUND_S)
        assert reply.running
        gate.leave()
        reply.waitfinish()
        assert not reply.running


class TestWorkerPool:
    def test_it_runs_functions_at_once(self, pool: WorkerPool) -> None:
        gates = [Gate(pool.execmodel) for _ in range(5)]
        replies = [pool.spawn(gate, number) for number, gate in enumerate(gates)]
        assert all(gate.entered.wait(BOUND_S) for gate in gates)
        for gate in reversed(gates):
            gate.leave()
        assert [reply.get(BOUND_S) for reply in replies] == [0, 1, 2, 3, 4]

    def test_it_counts_what_runs(self, pool: WorkerPool) -> None:
        gates = [Gate(pool.execmodel) for _ in range(3)]
        assert pool.active_count() == len(pool._running) == 0
        replies = []
        for count, gate in enumerate(gates, 1):
            replies.append(pool.spawn(gate))
            assert pool.active_count() == len(pool._running) == count
        gates[1].leave()
        replies[1].waitfinish()
        assert pool.active_count() == len(pool._running) == 2
        for gate in gates:
            gate.leave()
        assert pool.waitall(5)
        assert pool.active_count() == len(pool._running) == 0

    def test_waiting_for_all_of_nothing_is_over_at_once(self, pool: WorkerPool) -> None:
        assert pool.waitall()
        assert pool.waitall(timeout=0)

    def test_waiting_for_all_says_whether_it_came_to_that(
        self, pool: WorkerPool, gate: Gate
    ) -> None:
        pool.spawn(gate)
        assert not pool.waitall(timeout=0)
        assert not pool.waitall(timeout=0.01)
        waiting = [Task(pool.execmodel, pool.waitall) for _ in range(3)]
        gate.leave()
        assert [task.result() for task in waiting] == [True] * 3

    def test_waiting_for_all_includes_what_failed(self, pool: WorkerPool) -> None:
        def fail() -> None:
            raise SystemExit

        pool.spawn(fail)
        assert pool.waitall(5)

    def test_after_a_shutdown_nothing_is_started(self, pool: WorkerPool, gate: Gate) -> None:
        reply = pool.spawn(gate, "goes on")
        pool.trigger_shutdown()
        with pytest.raises(ValueError, match="shut"):
            pool.spawn(gate)
        pool.trigger_shutdown()
        gate.leave()
        assert reply.get(BOUND_S) == "goes on"

    def test_termination_says_whether_all_has_ended(self, pool: WorkerPool, gate: Gate) -> None:
        pool.spawn(gate)
        assert not pool.terminate(timeout=0.01)
        with pytest.raises(ValueError, match="shut"):
            pool.spawn(gate)
        gate.leave()
        assert pool.terminate(timeout=5)
        assert pool.terminate()

    def test_many_may_spawn_at_once(self, pool: WorkerPool) -> None:
        def spawn_some(first: int) -> list[int]:
            return [reply.get(BOUND_S) for reply in [pool.spawn(int, first + n) for n in range(20)]]

        tasks = [Task(pool.execmodel, spawn_some, first) for first in range(0, 160, 20)]
        assert [number for task in tasks for number in task.result()] == list(range(160))
        assert pool.waitall(5)

    def test_functions_may_spawn_more(self, pool: WorkerPool) -> None:
        def count_down(number: int) -> int:
            return number and 1 + pool.spawn(count_down, number - 1).get(BOUND_S)

        assert pool.spawn(count_down, 5).get(BOUND_S) == 5

    def test_a_thread_that_cannot_be_had_is_an_error_that_leaves_nothing(
        self, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(pool, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.spawn(int)
        assert pool.active_count() == 0
        assert pool.waitall(timeout=0)


@pytest.fixture(params=THREADS)
def primary(request: pytest.FixtureRequest) -> Iterator[tuple[WorkerPool, int]]:
    """A pool with a primary thread, and that thread's number."""
    pool = WorkerPool(get_execmodel(request.param), hasprimary=True)
    thread = threading.Thread(target=pool.integrate_as_primary_thread)
    thread.start()
    yield pool, thread.ident or 0
    assert pool.terminate(timeout=5)
    thread.join(BOUND_S)
    assert not thread.is_alive()


class TestPrimaryThread:
    @pytest.mark.parametrize("execmodel", ["gevent", "eventlet"], indirect=True)
    def test_greenlets_have_none(self, execmodel: ExecModel) -> None:
        with pytest.raises(ValueError, match=execmodel.backend):
            WorkerPool(execmodel, hasprimary=True)

    def test_the_first_function_runs_in_it(self, primary: tuple[WorkerPool, int]) -> None:
        pool, ident = primary
        assert pool.spawn(threading.get_ident).get(BOUND_S) == ident

    def test_it_is_used_whenever_it_is_free(self, primary: tuple[WorkerPool, int]) -> None:
        pool, ident = primary

        def fail() -> None:
            raise SystemExit(threading.get_ident())

        for _ in range(30):
            assert pool.spawn(threading.get_ident).get(BOUND_S) == ident
            with pytest.raises(SystemExit) as caught:
                pool.spawn(fail).get(BOUND_S)
            assert caught.value.code == ident

    def test_what_comes_meanwhile_runs_elsewhere_or_waits_for_it(
        self, primary: tuple[WorkerPool, int]
    ) -> None:
        pool, ident = primary
        gate = Gate(pool.execmodel)
        first = pool.spawn(gate)
        assert gate.entered.wait(BOUND_S)
        second = pool.spawn(threading.get_ident)
        if pool.execmodel.backend == "thread":
            assert second.get(BOUND_S) != ident
            gate.leave()
        else:
            with pytest.raises(OSError, match=r"0\.05"):
                second.waitfinish(0.05)
            gate.leave()
            assert second.get(BOUND_S) == ident
        first.waitfinish(5)
        assert gate.idents == [ident]

    def test_in_main_thread_only_all_run_in_it_in_order(self) -> None:
        pool, order = WorkerPool(get_execmodel("main_thread_only"), hasprimary=True), []

        def note(number: int) -> None:
            order.append((number, threading.get_ident()))

        for number in range(10):
            pool.spawn(note, number)
        assert pool.active_count() == 10
        pool.trigger_shutdown()
        pool.integrate_as_primary_thread()  # what was spawned before is still run
        assert order == [(number, threading.get_ident()) for number in range(10)]
        assert pool.waitall(0)

    @pytest.mark.parametrize("model", THREADS)
    def test_after_a_shutdown_it_is_let_go_at_once(self, model: str) -> None:
        pool = WorkerPool(get_execmodel(model), hasprimary=True)
        pool.trigger_shutdown()
        pool.trigger_shutdown()
        Task(pool.execmodel, pool.integrate_as_primary_thread).result()

    def test_an_interrupt_does_not_end_it(
        self, primary: tuple[WorkerPool, int], interrupt: Callable[[], None]
    ) -> None:
        pool, ident = primary
        reply = pool.spawn(interrupt)
        with pytest.raises(KeyboardInterrupt):
            reply.get(BOUND_S)
        assert pool.spawn(threading.get_ident).get(BOUND_S) == ident

    @pytest.fixture
    def interrupt(self) -> Callable[[], None]:
        def interrupt() -> None:
            raise KeyboardInterrupt

        return interrupt
