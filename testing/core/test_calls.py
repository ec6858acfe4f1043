"""Calls: functions of this program that run in a worker, by their name or by their source.

What is called here is sent as it stands, so a module of its own has functions to import.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import functools
import importlib
import os
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, call_in_receiver, find_python, run

from execnet import (
    DeadlockError,
    DumpError,
    Gateway,
    Group,
    LoadError,
    RemoteError,
    WorkerDied,
    WorkerGone,
)
from execnet._calls.near import Calls

pytestmark = pytest.mark.core

FACTOR = 3
TABLE = {"one": [1]}
LOCK = threading.Lock()


@pytest.fixture(scope="module", params=["popen", f"popen//python={sys.executable}"])
def worker(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A gateway that the tests of this module share, of a worker that has or has not our files."""
    with Group([request.param]) as group:
        yield group[0]


class Doubling:
    """Is sent as source."""

    def __init__(self, number: int) -> None:
        self.number = number * 2

    @classmethod
    def of(cls, number: int) -> int:
        return cls(number).number


class OwnError(Exception):
    pass


def tripled(number: int) -> int:
    return number * FACTOR


def many(number: int, *others: int, named: int = 0, **rest: int) -> list[object]:
    return [number, others, named, sorted(rest.items())]


def uses_all(number: int) -> tuple[object, ...]:
    def inner() -> int:
        return tripled(number)

    return inner(), Doubling(number).number, TABLE["one"], os.path.basename("a/b"), fib(10)


@functools.lru_cache(maxsize=64)
def fib(number: int) -> int:
    return number if number < 2 else fib(number - 1) + fib(number - 2)


def adder(first: int) -> Callable[[int], int]:
    def add(second: int) -> int:
        return tripled(first + second)

    return add


def uses_a_lock() -> bool:
    return LOCK.locked()


def raised(kind: str, *args: Any) -> None:
    import builtins

    raise getattr(builtins, kind)(*args)


def raises_own() -> None:
    raise OwnError("mine")


def opens(path: str) -> None:
    open(path).close()


def is_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def dies_with(path: str) -> None:
    """End as soon as there is a file."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.001)
    os._exit(3)


def dies() -> None:
    import os

    os._exit(3)


class TestWhatIsCalled:
    @pytest.mark.parametrize(
        ("function", "args", "result"),
        [
            (os.path.join, ("a", "b"), os.path.join("a", "b")),
            (len, ([1, 2],), 2),
            (dict, ([("a", 1)],), {"a": 1}),
            ("os.path:join", ("a", "b"), os.path.join("a", "b")),
            ("collections:OrderedDict.fromkeys.__name__.upper", (), "FROMKEYS"),
            (tripled, (2,), 6),
            (uses_all, (2,), (6, 4, [1], "b", 55)),
            (fib, (5,), 5),
            (adder(1), (2,), 9),
            (adder(2), (2,), 12),
            (lambda number: number + FACTOR, (2,), 5),
            (functools.partial(many, 1, named=5), (2,), [1, (2,), 5, []]),
            (Doubling.of, (4,), 8),
        ],
    )
    def test_it_returns_what_the_function_does(
        self, worker: Gateway, function: Any, args: tuple[Any, ...], result: object
    ) -> None:
        assert worker.call(function, *args) == result

    def test_the_first_call_may_be_of_a_partial_whose_module_is_only_here(self) -> None:
        with Group([f"popen//python={sys.executable}"]) as group:
            assert group[0].call(functools.partial(tripled, 2)) == 6
            assert group[0].submit(functools.partial(tripled, 3)).result(BOUND_S) == 9

    def test_arguments_may_have_any_name(self, worker: Gateway) -> None:
        expected = many(1, 2, named=3, self=4, func=5)
        assert worker.call(many, 1, 2, named=3, self=4, func=5) == expected

    def test_large_arguments_and_results_go_in_pieces(self, worker: Gateway) -> None:
        large = b"x" * 3_000_000
        assert worker.call("builtins:bytes.upper", large) == large.upper()
        assert worker.submit("builtins:len", large).result(BOUND_S) == len(large)

    def test_two_lambdas_of_a_line_are_told_apart(self, worker: Gateway) -> None:
        functions = [lambda number: number + 1, lambda number: number - 1]
        assert [worker.call(function, 5) for function in functions] == [6, 4]

    def test_what_changed_here_has_changed_there(
        self, worker: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert worker.call(tripled, 2) == 6
        monkeypatch.setitem(globals(), "FACTOR", 5)
        assert worker.call(tripled, 2) == 10
        assert worker.call(uses_all, 2)[0] == 10
        TABLE["one"].append(2)
        assert worker.call(uses_all, 2)[2] == [1, 2]
        monkeypatch.undo()
        TABLE["one"].pop()
        assert worker.call(uses_all, 2) == (6, 4, [1], "b", 55)

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            (
                uses_a_lock,
                "function uses_a_lock can't be sent: it uses 'LOCK', which is of type lock",
            ),
            (Doubling(1).__init__, "the object of the method"),  # type: ignore[misc]
            ("os.getpid", "is 'module:name', not 'os.getpid'"),
        ],
    )
    def test_what_can_t_go_is_named(self, worker: Gateway, function: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            worker.call(function)

    def test_it_goes_by_its_name_where_the_worker_has_it(
        self, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        for folder in (here, there):
            folder.mkdir()
            (folder / "both_ends.py").write_text(f"def place():\n    return {folder.name!r}\n")
        (here / "one_end.py").write_text("from both_ends import place\ndef f(): return place()")
        monkeypatch.syspath_prepend(here)
        gateway = makegateway("popen")
        gateway.call("sys:path.insert", 0, str(there))
        import both_ends  # type: ignore[import-not-found]
        import one_end  # type: ignore[import-not-found]

        assert gateway.call(both_ends.place) == "there"
        assert gateway.call(one_end.f) == "there"
        bare = makegateway(f"popen//python={sys.executable}//chdir={tmp_path}")
        assert [bare.call(both_ends.place), bare.call(one_end.f)] == ["here", "here"]


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "args"),
        [
            ("KeyError", ("a",)),
            ("ValueError", ()),
            ("UnicodeDecodeError", ("ascii", b"\xff", 0, 1, "no")),
            ("OSError", (17, "text", "name")),
            ("ZeroDivisionError", ("text",)),
        ],
    )
    def test_python_s_own_come_as_themselves(
        self, worker: Gateway, kind: str, args: tuple[Any, ...]
    ) -> None:
        expected = getattr(builtins, kind)
        with pytest.raises(expected) as caught:
            worker.call(raised, kind, *args)
        assert type(caught.value) is type(expected(*args))
        assert str(caught.value) == str(expected(*args))
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteError)
        assert cause.formatted.splitlines()[1].split(", ")[2] == "in raised"

    def test_an_os_error_keeps_its_file(self, worker: Gateway, tmp_path: Path) -> None:
        path = str(tmp_path / "none")
        with pytest.raises(FileNotFoundError) as caught:
            worker.call(opens, path)
        assert caught.value.filename == path

    @pytest.mark.parametrize(
        ("kind", "args"),
        [
            ("SystemExit", (3,)),
            ("KeyboardInterrupt", ()),
            ("GeneratorExit", ()),
            ("StopIteration", (1,)),
            ("StopAsyncIteration", ()),
        ],
    )
    def test_those_that_steer_a_program_do_not(
        self, worker: Gateway, kind: str, args: tuple[Any, ...]
    ) -> None:
        with pytest.raises(RemoteError) as caught:
            worker.call(raised, kind, *args)
        assert caught.value.type_name == kind
        assert worker.call(len, "a") == 1

    def test_others_tell_their_type_and_text(self, worker: Gateway) -> None:
        with pytest.raises(RemoteError) as caught:
            worker.call(raises_own)
        assert (caught.value.type_name, caught.value.message) == ("OwnError", "mine")
        with pytest.raises(RemoteError) as caught:
            worker.call(lambda: raised("ValueError", object()))
        assert caught.value.type_name == "ValueError"

    def test_a_module_that_is_not_there_is_named(self, worker: Gateway) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"can't import 'no_such\.module'") as caught:
            worker.call("no_such.module:name")
        assert caught.value.name == "no_such.module"

    def test_arguments_and_results_that_can_t_be_sent_are_named(self, worker: Gateway) -> None:
        with pytest.raises(DumpError, match=r"function many .* args\[1\]: can't serialize"):
            worker.call(many, 1, object())  # type: ignore[arg-type]
        with pytest.raises(DumpError, match=r"kwargs\['named'\]\[0\]: can't serialize"):
            worker.call(many, 1, named=[object()])  # type: ignore[arg-type]
        with pytest.raises(RemoteError, match=r"result\[0\]: can't serialize") as caught:
            worker.call(lambda: [object()])
        assert caught.value.type_name == "DumpError"

    def test_an_answer_that_fails_is_told(self, gateway: Gateway) -> None:
        fails_once = """
            factory = channel.gateway._channelfactory
            send = factory.send_item

            def fail(id, item):
                factory.send_item = send
                raise MemoryError("no room")

            factory.send_item = fail
            """
        gateway.remote_exec(fails_once).waitclose(BOUND_S)
        with pytest.raises(MemoryError, match="no room"):
            gateway.call(len, "")
        assert gateway.call(len, "") == 0

    def test_a_worker_chooses_only_among_errors_that_a_function_may_raise(
        self, worker: Gateway
    ) -> None:
        calls = Calls(worker)  # type: ignore[arg-type]
        answers: list[tuple[Any, type]] = [
            ((1, "SystemExit", (1,), "", ""), RemoteError),
            ((1, "exec", ("import os",), "", ""), RemoteError),
            ((1, "ValueError", ["x"], "", ""), RemoteError),
            ((1, "ValueError", ("x",), "", ""), ValueError),
            ((1, ["ValueError"], ("x",), "", ""), LoadError),
            ((1, "os", 5), LoadError),
            ((1, "os", "text"), ModuleNotFoundError),
            ("anything", LoadError),
        ]
        for answer, kind in answers:
            assert type(calls.error_of(answer, "a:b", False)) is kind
        missing = 1, __name__, "text"
        assert calls.error_of(missing, tripled, False) is None
        assert type(calls.error_of(missing, tripled, True)) is ModuleNotFoundError

    def test_a_call_in_a_callback_of_its_gateway_is_refused(self, gateway: Gateway) -> None:
        caught: list[BaseException] = []

        def call(item: object) -> None:
            try:
                gateway.call(len, "")
            except DeadlockError as exc:
                caught.append(exc)

        call_in_receiver(gateway, call).waitclose(BOUND_S)
        assert len(caught) == 1

    def test_it_ends_with_the_worker(self, gateway: Gateway) -> None:
        with pytest.raises(WorkerDied, match="exit status 3"):
            gateway.call(dies)
        with pytest.raises(WorkerGone):
            gateway.call(len, "")


class TestWhereItRuns:
    def test_a_call_and_what_comes_after_it_have_the_main_thread(self, gateway: Gateway) -> None:
        source = "import threading as t; channel.send(t.current_thread() is t.main_thread())"
        for _ in range(20):
            assert gateway.call(is_main_thread)
            assert gateway.submit(is_main_thread).result(BOUND_S)
            channel = gateway.remote_exec(source)
            assert channel.receive(BOUND_S)
            channel.waitclose(BOUND_S)  # that code may not have ended before

    def test_calls_of_several_threads_run_at_once(self, worker: Gateway) -> None:
        meet = "import threading; threading.meeting = threading.Barrier(3)"
        worker.remote_exec(meet).waitclose(BOUND_S)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(worker.call, "threading:meeting.wait", BOUND_S) for _ in range(3)]
            assert sorted(future.result(BOUND_S) for future in asked) == [0, 1, 2]

    def test_code_that_runs_leaves_a_call_another_thread(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("channel.send(channel.receive())")
        assert gateway.call(is_main_thread) is False
        channel.send(1)
        assert channel.receive(BOUND_S) == 1

    @pytest.mark.parametrize("options", ["window=100", "execmodel=main_thread_only"])
    def test_any_gateway_has_calls(self, makegateway: MakeGateway, options: str) -> None:
        gateway = makegateway(f"popen//{options}")
        text = "x" * 500
        for _ in range(20):
            assert gateway.call("builtins:str.upper", text) == text.upper()
        asked = [gateway.submit("builtins:str.upper", text) for _ in range(20)]
        assert {future.result(BOUND_S) for future in asked} == {text.upper()}


class TestAModule:
    def test_its_functions_are_called_and_its_values_copied(self, worker: Gateway) -> None:
        remote_os = worker.module("os")
        assert remote_os.getpid() == worker._rinfo().pid
        assert remote_os.sep == os.sep
        assert remote_os.path.join("a", "b") == os.path.join("a", "b")
        assert worker.module("logging").root.isEnabledFor(50) is True
        assert repr(remote_os.path) == f"<RemoteModule 'os:path' of {worker.id}>"

    def test_what_is_not_there_is_an_error(self, worker: Gateway) -> None:
        with pytest.raises(ModuleNotFoundError, match="'no_such_module'"):
            worker.module("no_such_module")
        with pytest.raises(AttributeError, match="no_such"):
            worker.module("os").no_such()
        with pytest.raises(TypeError, match="its functions can"):
            worker.module("os")()

    @pytest.mark.parametrize("version", ["2.7", "3.6"])
    def test_it_may_be_of_another_python(self, makegateway: MakeGateway, version: str) -> None:
        gateway = makegateway(f"popen//python={find_python(version)}")
        major = int(version[0])
        assert gateway.module("sys").version[0] == version[0]
        if major == 2:
            assert gateway.call("commands:getoutput", "echo 1") == "1"
        assert gateway.call(uses_all, 2) == (6, 4, [1], "b", 55) if major == 3 else True
        assert [gateway.call(adder(1), 2), gateway.call(Doubling.of, 4)] == [9, 8]
        assert gateway.call(dict, named=3, rest=[4]) == {"named": 3, "rest": [4]}
        with pytest.raises(KeyError, match="a"):
            gateway.call(raised_there, "a")


def test_a_package_that_the_far_python_does_not_understand_goes_as_source(
    makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 2 keeps an empty module of one that does not compile, and would find that next."""
    package = tmp_path / "newer"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from __future__ import annotations\nfrom .units import twice\n"
        "def four_times(number: int) -> int:\n    return twice(twice(number))\n"
    )
    (package / "units.py").write_text("def twice(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    newer: Any = importlib.import_module("newer")
    gateway = makegateway(f"popen//python={find_python('2.7')}//chdir={tmp_path}")
    assert gateway.call(newer.four_times, 3) == 12


def raised_there(key: str) -> None:
    empty: dict[str, str] = {}
    empty[key]


class TestTheSourceOfAPrompt:
    @pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
    def test_it_is_called_where_python_keeps_it_and_else_explained(self, version: str) -> None:
        program = textwrap.dedent(
            """
            import execnet
            def f(number):
                return number + 1

            with execnet.Group(["popen"]) as group:
                print(group[0].call(f, 1))

            def g(channel):
                channel.send(1)

            with execnet.Group(["popen"]) as group:
                group[0].remote_exec(g).receive()

            """
        )
        python = find_python(version)
        ended = run([python, "-S", "-i", "-q"], program)
        if version == "3.13":
            assert "\n2" in f"\n{ended.stdout}" or "only since 3.13" in ended.stderr
            return
        assert ended.stderr.count("Python keeps what is typed at its prompt only since 3.13") == 2


class TestSubmitted:
    def test_a_future_has_the_result_or_the_error(self, worker: Gateway) -> None:
        well, wrong = worker.submit(tripled, 2), worker.submit(raised, "KeyError", 1)
        assert well.result(BOUND_S) == 6
        assert [well.done(), well.running(), well.cancel(), well.cancelled()] == [True] + 3 * [
            False
        ]
        assert isinstance(wrong.exception(BOUND_S), KeyError)
        with pytest.raises(KeyError):
            wrong.result()

    def test_they_run_one_after_the_other(self, worker: Gateway) -> None:
        worker.remote_exec("import os; os.seen = []").waitclose(BOUND_S)
        asked = [worker.submit("os:seen.append", number) for number in range(50)]
        concurrent.futures.wait(asked, BOUND_S)
        assert worker.call("builtins:list", []) == []
        assert worker.module("os").seen == list(range(50))

    def test_all_that_waits_for_futures_is_told(self, worker: Gateway) -> None:
        asked = [worker.submit(tripled, number) for number in range(20)]
        done = {future.result() for future in concurrent.futures.as_completed(asked, BOUND_S)}
        assert done == {3 * number for number in range(20)}
        told = threading.Event()
        idents: list[int] = []
        last = worker.submit(tripled, 5)
        last.add_done_callback(lambda future: idents.append(threading.get_ident()))
        last.add_done_callback(lambda future: worker.call(len, "") or told.set())
        assert told.wait(BOUND_S)
        assert worker._receiver_ident not in idents

    def test_waiting_in_a_callback_of_its_gateway_is_refused(self, gateway: Gateway) -> None:
        future = gateway.submit("time:sleep", 0.2)
        caught: list[BaseException | None] = []

        def wait(item: object) -> None:
            try:
                future.result()
            except DeadlockError as exc:
                caught.append(exc)

        call_in_receiver(gateway, wait)
        future.result(BOUND_S)
        assert gateway.call(len, "") == 0
        assert len(caught) == 1

    def test_those_that_are_left_end_with_the_worker(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        assert gateway.call(tripled, 1) == 3  # so it is known how functions of here go
        asked = [gateway.submit(dies_with, str(tmp_path / "word")), gateway.submit(len, "")]
        (tmp_path / "word").touch()
        assert [type(future.exception(BOUND_S)) for future in asked] == [WorkerDied, WorkerDied]
        with pytest.raises(WorkerGone):
            gateway.submit(len, "")


def test_a_worker_that_knows_no_calls_is_told(worker: Gateway, monkeypatch: Any) -> None:
    hello = dict(worker.handshake.hello, features="goodbye")
    handshake = types.SimpleNamespace(hello=hello)
    monkeypatch.setattr(worker, "handshake", handshake)
    with pytest.raises(Exception, match="use remote_exec instead"):
        Calls(worker)  # type: ignore[arg-type]
