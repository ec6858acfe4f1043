"""Codecs: items of more than plain builtins, by consent."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import pathlib
import queue
import uuid
from typing import Any, NamedTuple

import pytest
from interpreters import Interpreter, chosen
from tools import BOUND_S, MakeGateway, wait_until

from execnet import Channel, DumpError, Gateway, Group, LoadError, RemoteError, aio, codecs
from execnet._features.codecs import MARK, described

ECHO = "for item in channel: channel.send(item)"
UTC = datetime.timezone.utc
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Ways(enum.Flag):
    NORTH = 1
    EAST = 2


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0
    norm: Any = dataclasses.field(init=False, default=7)


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    def __hash__(self) -> int:
        return self.cents


STANDARD = [
    datetime.date(2026, 11, 28),
    datetime.time(23, 59, 1, 5),
    datetime.datetime(2026, 11, 28, 12, 0, 0, 999999),
    datetime.timedelta(days=-1, microseconds=3),
    decimal.Decimal("-1.50"),
    decimal.Decimal("NaN"),
    fractions.Fraction(-3, 7),
    uuid.UUID(int=2**127),
]
ZONED = [
    datetime.datetime(2026, 11, 28, 12, tzinfo=UTC),
    datetime.datetime(2026, 11, 28, 12, fold=1, tzinfo=EAST),
    datetime.time(1, 2, tzinfo=EAST),
    EAST,
]
PATHS = [
    pathlib.Path("a/b"),
    pathlib.PurePosixPath("/x"),
    pathlib.PureWindowsPath("c:\\x"),
]
TYPES = [Color.RED, Color.BLUE, Ways.NORTH | Ways.EAST, Pair(1, [Pair(2, 3)]), Point(1, Color.RED)]
NESTED = [
    [STANDARD[0], {"when": STANDARD[2], STANDARD[7]: (1, STANDARD[4])}],
    {STANDARD[0]},
    frozenset([Point(1, (2, 3))]),
    (MARK, "date", (1, 2)),  # no value, for all that it looks like one
    [(MARK, "", (MARK, "", ()))],
    [[1, 2], {"a": (None, 1.5, b"x")}],
]


def registered() -> codecs.Codec:
    codec = codecs.standard
    for kind in (Color, Ways, Pair, Point):
        codec.register(kind)
    return codec


@pytest.mark.parametrize(
    "item", STANDARD + ZONED + PATHS + TYPES + NESTED, ids=map(str, itertools.count())
)
def test_an_item_is_what_it_was(item: Any) -> None:
    codec = registered()
    got = codec.load(codec.dump(item))
    assert repr(got) == repr(item)
    assert type(got) is type(item)


def test_plain_items_stay_the_very_same() -> None:
    for item in ([1, "a", None], {"a": 1.5}, (1, b"x"), {1, 2}):
        assert codecs.standard.dump(item) is item
        assert codecs.standard.load(item) is item


@pytest.fixture(scope="module")
def worker() -> Any:
    with Group(["popen"]) as group:
        yield group[0]


def echo(gateway: Gateway, codec: codecs.Codec) -> Channel:
    """Return a channel whose other end has its codec before its code runs."""
    gateway.codec = codec
    try:
        return gateway.remote_exec(ECHO)
    finally:
        gateway.codec = None


class TestChannels:
    def test_values_go_there_and_back_on_every_python(
        self, makegateway: MakeGateway, interpreter: Interpreter
    ) -> None:
        channel = echo(makegateway(f"popen//python={interpreter.path}"), codecs.standard)
        for item in STANDARD:
            channel.send([item])
            (got,) = channel.receive(BOUND_S)
            assert (repr(got), type(got)) == (repr(item), type(item))

    def test_there_they_are_values_too(self, worker: Gateway) -> None:
        worker.codec = codecs.standard
        try:
            channel = worker.remote_exec(
                "from decimal import Decimal\n"
                "for item in channel: channel.send({'half': item / 2, 'type': type(item).__name__})"
            )
        finally:
            worker.codec = None
        channel.send(decimal.Decimal(3))
        assert channel.receive(BOUND_S) == {"half": decimal.Decimal("1.5"), "type": "Decimal"}

    def test_a_group_gives_one_to_all_its_members(self) -> None:
        with Group(["popen"]) as group:
            group.codec(codecs.standard)
            group.makegateway("popen")
            answers = group.remote_exec("channel.send(channel.receive())")
            answers.send_each(STANDARD[0])
            assert answers.receive_each() == [STANDARD[0]] * 2

    def test_a_worker_imports_what_was_registered(
        self, worker: Gateway, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "coded.py").write_text(
            "import collections\nCoded = collections.namedtuple('Coded', 'a b')\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        coded = __import__("coded")
        worker.codec = codecs.standard.register(coded.Coded)
        try:
            channel = worker.remote_exec(
                f"import sys; sys.path.append({str(tmp_path)!r}); item = channel.receive()\n"
                "channel.send(item.a)\nimport coded\nchannel.send(coded.Coded(3, 4))"
            )
        finally:
            worker.codec = None
        channel.send(coded.Coded(1, 2))
        assert channel.receive(BOUND_S) == 1
        assert repr(channel.receive(BOUND_S)) == "Coded(a=3, b=4)"

    def test_code_there_registers_what_it_can_not_import(self, worker: Gateway) -> None:
        worker.codec = codecs.Codec().register(
            Money, lambda money: money.cents, Money, name="money"
        )
        try:
            channel = worker.remote_exec(
                "class Cents(int): pass\n"
                "channel.codec.register(Cents, int, Cents, name='money')\n"
                "item = channel.receive()\nchannel.send([type(item).__name__, Cents(item + 1)])"
            )
        finally:
            worker.codec = None
        channel.send(Money(5))
        assert channel.receive(BOUND_S) == ["Cents", Money(6)]

    def test_what_is_not_registered_there_is_told_with_what_to_do(self, worker: Gateway) -> None:
        channel = echo(worker, codecs.Codec().register(Money, lambda money: money.cents, Money))
        channel.send(Money(5))
        with pytest.raises(RemoteError, match=r"LoadError: .*can't import here.*channel.codec.reg"):
            channel.receive(BOUND_S)

    def test_a_callback_gets_values_and_the_endmarker(self, worker: Gateway) -> None:
        items: list[Any] = []
        end = [STANDARD[0]]
        worker.codec = codecs.standard
        try:
            channel = worker.remote_exec("for _ in range(2): channel.send(channel.receive())")
        finally:
            worker.codec = None
        channel.send([STANDARD[0]])
        wait_until(lambda: channel._items.qsize() == 1)  # one comes before, one after
        channel.setcallback(items.append, endmarker=end)
        channel.send(None)
        channel.waitclose(BOUND_S)
        wait_until(lambda: len(items) == 3)
        assert items == [[STANDARD[0]], None, end]
        assert items[2] is end

    def test_an_item_may_have_the_channel_in_it(self, worker: Gateway) -> None:
        channel = worker.newchannel()
        channel.codec = codecs.standard
        carrier = worker.remote_exec("channel.receive().send(1)")
        carrier.send(channel)
        assert channel.receive(BOUND_S) == 1

    def test_none_makes_it_plain_again(self, worker: Gateway) -> None:
        channel = echo(worker, codecs.standard)
        channel.codec = None
        assert type(channel) is Channel
        with pytest.raises(DumpError):
            channel.send(STANDARD[0])
        channel.send(1)
        assert channel.receive(BOUND_S) == 1

    def test_with_a_callback_it_comes_too_late(self, worker: Gateway) -> None:
        channel = worker.remote_exec(ECHO)
        channel.setcallback(lambda item: None)
        with pytest.raises(OSError, match="set its codec first"):
            channel.codec = codecs.standard


class TestCalls:
    def test_arguments_and_results_are_values_of_the_codec_of_the_group(self) -> None:
        days = [datetime.date(2026, 12, 31), datetime.date(2027, 1, 1)]
        with Group(["popen"]) as group:
            group.codec(codecs.standard)
            assert group[0].call(max, days) == days[1]
            assert group[0].submit(max, [], default=days[0]).result(BOUND_S) == days[0]
            assert group[0].module("datetime").MAXYEAR == datetime.MAXYEAR
            with group.executor() as executor:
                assert list(executor.map(max, [days])) == [days[1]]
            group.codec(None)
            with pytest.raises(DumpError, match="max can't be called with that"):
                group[0].call(max, days)

    def test_so_they_are_in_a_loop(self) -> None:
        days = [datetime.date(2026, 12, 31), datetime.date(2027, 1, 1)]

        async def main() -> list[Any]:
            async with aio.Group(["popen"]) as group:
                group.codec(codecs.standard)
                async with group.executor() as executor:
                    results = [item async for item in executor.map(max, [days])]
                return [*results, await group[0].call(max, days), await group[0].submit(max, days)]

        assert asyncio.run(main()) == [days[1]] * 3


class TestPickle:
    def test_what_can_be_pickled_arrives(self, worker: Gateway) -> None:
        channel = echo(worker, codecs.pickle)
        for item in ([STANDARD, range(3)], 1, bytearray(b"x")):
            channel.send(item)
            assert repr(channel.receive(BOUND_S)) == repr(item)

    def test_what_can_not_is_refused(self, worker: Gateway) -> None:
        channel = echo(worker, codecs.pickle)
        with pytest.raises(DumpError, match="can't be pickled"):
            channel.send(lambda: 0)

    def test_on_every_python(self, makegateway: MakeGateway, interpreter: Interpreter) -> None:
        channel = echo(makegateway(f"popen//python={interpreter.path}"), codecs.pickle)
        channel.send([1, "a", decimal.Decimal("1.5")])
        assert channel.receive(BOUND_S) == [1, "a", decimal.Decimal("1.5")]


class TestNumpy:
    def test_arrays_and_scalars_are_what_they_were(self) -> None:
        numpy = pytest.importorskip("numpy")
        codec = codecs.standard | codecs.numpy
        arrays = [
            numpy.arange(6).astype(kind).reshape(2, 3) for kind in ("<i4", ">f8", "c16", "u1", "?")
        ]
        arrays += [numpy.array(["a", "bc"]), numpy.zeros((0, 3)), numpy.array(5), numpy.eye(3).T]
        for array in arrays:
            (got,) = codec.load(codec.dump([array]))
            assert got.dtype == array.dtype
            assert got.shape == array.shape
            assert (got == array).all()
            assert got.flags.writeable
        scalar = codec.load(codec.dump(numpy.float32(1.5)))
        assert type(scalar) is numpy.float32
        with pytest.raises(DumpError, match="only one of numbers or text"):
            codec.dump(numpy.array([object()]))

    @pytest.mark.parametrize(
        "item", [("|O", (1,), b"12345678"), ("<i4", (-1, -1), b"1234"), ("<i4", (9,), b"1234")]
    )
    def test_what_is_no_array_is_refused(self, item: Any) -> None:
        pytest.importorskip("numpy")
        with pytest.raises(LoadError):
            codecs.numpy.load((MARK, "numpy.ndarray", item))


class TestRefusals:
    @pytest.mark.parametrize(
        "item",
        [
            (MARK, "os:system", "true"),
            (MARK, "date", ("x",)),
            (MARK, "decimal", "1" * 20000),
            (MARK, "fraction", (1, 0)),
            (MARK, ["no name"], 1),
            (MARK, 5, 1),
            (MARK, "numpy.ndarray", ()),
        ],
    )
    def test_what_no_codec_made_is_a_load_error(self, item: Any) -> None:
        with pytest.raises(LoadError):
            codecs.standard.load([item])

    def test_a_coordinator_imports_nothing_that_a_worker_names(self) -> None:
        with pytest.raises(LoadError, match="nothing is registered as"):
            codecs.standard.load((MARK, f"{__name__}:Point", (("x", 1),)))

    def test_a_field_that_is_none_is_refused(self) -> None:
        with pytest.raises(LoadError, match="has no field '__class__'"):
            registered().load((MARK, f"{__name__}:Point", (("x", 1), ("__class__", 2))))

    def test_a_dataclass_has_to_be_registered(self) -> None:
        with pytest.raises(DumpError, match=r"has to be registered: codec.register\(Point\)"):
            codecs.standard.dump([Point(1)])

    def test_functions_of_the_user_that_fail_are_told(self) -> None:
        codec = codecs.Codec().register(Money, lambda money: 1 / 0, Money, name="money")
        with pytest.raises(DumpError, match="no item of money: ZeroDivisionError"):
            codec.dump(Money(1))

    def test_an_item_within_itself_is_refused(self) -> None:
        item: list[Any] = [STANDARD[0]]
        item.append(item)
        with pytest.raises(DumpError, match="nested too deeply"):
            codecs.standard.dump(item)

    def test_what_is_no_codec_or_no_type_is_refused(self, worker: Gateway) -> None:
        with pytest.raises(TypeError, match="expected a codec"):
            worker.newchannel().codec = "standard"
        with pytest.raises(TypeError, match="register it with two functions"):
            codecs.Codec().register(Money)
        with pytest.raises(TypeError, match="takes two functions, or none"):
            codecs.Codec().register(Money, from_item=Money)
        with pytest.raises(ValueError, match="no codec 'yaml'"):
            codecs.Codec(["yaml"])
        assert not hasattr(codecs, "yaml")


def test_a_description_has_what_its_codec_has() -> None:
    there = described(registered().describe())
    assert there.load(registered().dump([Point(1), STANDARD[0]])) == [Point(1), STANDARD[0]]
    assert there.dump(Color.RED) == registered().dump(Color.RED)
    assert repr(there).startswith("<Codec standard, ")


@pytest.fixture(params=chosen(), ids=str)
def interpreter(request: pytest.FixtureRequest) -> Interpreter:
    found: Interpreter = request.param
    return found


def test_the_path_in_a_keyword_argument_names_the_argument(worker: Gateway) -> None:
    def code(channel: Channel, x: Any) -> None: ...

    with pytest.raises(DumpError, match=r"^kwargs\['x'\]\[0\]: can't serialize"):
        worker.remote_exec(code, x=[object()])


def test_whoever_waits_for_an_item_wakes_up_to_the_new_queue(makegateway: MakeGateway) -> None:
    channel = makegateway().newchannel()
    found: list[bool] = []

    class Old(queue.SimpleQueue):  # type: ignore[type-arg]
        def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
            found.append(channel._items is self)
            super().put(item)

    channel._set_inbox(Old())
    channel.codec = codecs.standard
    assert found == [False]


def test_code_that_waits_already_uses_a_codec_that_comes(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    channel = gateway.remote_exec("for item in channel: channel.send(str(type(item)))")
    wait_until(lambda: " in receive" in gateway.dump_stacks(BOUND_S), BOUND_S)
    channel.codec = codecs.standard
    channel.send(decimal.Decimal(1))
    assert "Decimal" in channel.receive(BOUND_S)
