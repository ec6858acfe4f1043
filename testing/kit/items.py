"""Items that can be dumped, and things that look like it but can't.

Needs the standard library only, so that every Python can import it.
"""

from __future__ import annotations

import collections
import datetime
import enum
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Number(enum.IntEnum):
    """An int that is none."""

    ONE = 1


class Point(NamedTuple):
    """A tuple that is none."""

    x: int = 1
    y: int = 2


class Text(str):
    """A str that is none."""


class Raw(bytes):
    """Bytes that are none."""


class Whole(int):
    """An int that is none."""


class Ratio(float):
    """A float that is none."""


class Wave(complex):
    """A complex that is none."""


class Rows(list):  # type: ignore[type-arg]
    """A list that is none."""


class Row(dict):  # type: ignore[type-arg]
    """A dict that is none."""


class Bag(set):  # type: ignore[type-arg]
    """A set that is none."""


class FrozenBag(frozenset):  # type: ignore[type-arg]
    """A frozenset that is none."""


class Foo:
    """Nothing like any of them."""


# What can't be dumped, by a name for it. Those that are hashable may be keys and elements.
REFUSED_HASHABLE: dict[str, Any] = {
    "an object": Foo(),
    "a class": Foo,
    "a builtin type": int,
    "a function": len,
    "an ellipsis": ...,
    "NotImplemented": NotImplemented,
    "a range": range(3),
    "a memoryview": memoryview(b"abc"),
    "a date": datetime.date(2000, 1, 1),
    "an exception": ValueError("x"),
    "an enum member": Number.ONE,
    "a named tuple": Point(),
    "a subclass of str": Text("x"),
    "a subclass of bytes": Raw(b"x"),
    "a subclass of int": Whole(1),
    "a subclass of float": Ratio(1.5),
    "a subclass of complex": Wave(1j),
    "a subclass of frozenset": FrozenBag([1]),
}
REFUSED: dict[str, Any] = REFUSED_HASHABLE | {
    "a bytearray": bytearray(b"abc"),
    "a subclass of list": Rows([1]),
    "a subclass of dict": Row(a=1),
    "a subclass of set": Bag([1]),
    "an ordered dict": collections.OrderedDict(a=1),
    "a default dict": collections.defaultdict(int, a=1),
    "a deque": collections.deque([1]),
    "a view of a dict": {"a": 1}.keys(),
    "a slice": slice(1),
}


def canonical(item: Any) -> Any:
    """Return a value that two items share only if they are the same, type by type, bit by bit."""
    kind = type(item)
    if kind is float:
        return kind, struct.pack("!d", item)
    if kind is complex:
        return kind, struct.pack("!dd", item.real, item.imag)
    if kind in (list, tuple):
        return kind, tuple(map(canonical, item))
    if kind in (set, frozenset):
        return kind, frozenset(map(canonical, item))
    if kind is dict:
        return kind, tuple((canonical(key), canonical(value)) for key, value in item.items())
    return kind, item


def nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    """Return None in that many containers."""
    item = None
    for _ in range(depth):
        item = wrap(item)
    return item


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "lists": lambda item: [item],
    "tuples": lambda item: (item,),
    "dicts": lambda item: {"key": item},
    "frozensets": lambda item: frozenset([item]),
    "a mixture": lambda item: [({"key": item},)],
}
# Something of everything, to be cut and garbled.
SAMPLE: dict[Any, Any] = {
    "rows": [1, -(2**40), 1.5, 2j, None, True, False, b"\x00\xff", "é", "x" * 30],
    (1, ("a", b"b")): [{1, 2}, frozenset(["c"]), (), [], {}, set()],
    -3: {"deep": [[[{"deeper": ((1,),)}]]]},
}


def containing_themselves() -> Iterator[tuple[str, Any]]:
    """Yield items with a part that is in itself, by a name for each."""
    rows: list[Any] = []
    rows.append(rows)
    yield "a list", rows
    row: dict[str, Any] = {}
    row["a"] = row
    yield "a dict", row
    pair: tuple[Any, ...] = ([],)
    pair[0].append(pair)
    yield "a tuple", pair
    far: list[Any] = [1, {"rows": [2]}]
    far[1]["rows"].append(far)
    yield "a list in a dict in it", far
