"""Keys whose hashes differ, and which collide in the table: refused where they are many."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execnet import LoadError
from execnet._ends import checked, colliding
from execnet._ends.checked import load_checked
from execnet._ends.colliding import LINEAR, SHIFT, Table, table_of
from execnet.gateway_base import ISPYPY, dumps_fast, dumps_internal, opcode


def parts_of(keys: list[Any]) -> list[bytes]:
    """Return pickles of keys, each followed by a None, without beginning and end."""
    dumped = [dumps_fast([key, None]) for key in keys]
    return [data[data.index(b"](") + 2 : -2] for data in dumped]


def as_set(keys: list[Any], dump: Callable[[Any], bytes]) -> bytes:
    """Return a dumped set whose keys are in this order, and not in that of a table."""
    if dump is dumps_internal:
        parts = [dump(key)[:-1] for key in keys]
        return b"".join(parts) + opcode.SET + struct.pack("!i", len(parts)) + opcode.STOP
    return b"\x80\x04\x8f(" + b"".join(part[:-1] for part in parts_of(keys)) + b"\x90."


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits for attacks of a size that is made at once."""
    monkeypatch.setattr(checked, "LARGE", 1000)
    monkeypatch.setattr(checked, "LARGE_CLASSIC", 1000)
    for module in checked, colliding:
        monkeypatch.setattr(module, "MANY", 400)
    monkeypatch.setattr(colliding, "STEPS_MAX", 10)


pytestmark = pytest.mark.skipif(ISPYPY, reason="only the tables of CPython are followed")
BITS = 13  # of the table that is attacked
FILLED = 2900  # of its places
MASK = (1 << BITS) - 1
WORD = (1 << 64) - 1
PRIMES = 11400714785074694791, 14029467366897019727, 2870177450012600261
UNDO = [pow(prime, -1, 1 << 64) for prime in PRIMES]


def way(hashed: int) -> Iterator[tuple[int, bool]]:
    """Yield places for a hash, and whether all hashes go on from there in the same way."""
    place, perturb = hashed & MASK, hashed
    while True:
        yield place, not perturb
        perturb >>= SHIFT
        place = (place * 5 + perturb + 1) & MASK


def attack(count: int, width: int, key_of: Callable[[int], Any]) -> list[Any]:
    """Return keys: the first ones fill places that follow one another, the others pass them all.

    width: how many neighbours are looked at as well.  key_of: makes a key of a hash, or None.
    """
    taken = dict.fromkeys(range(-1600 & MASK, MASK + 1)) if width else {}
    ranks: dict[int, int] = {}  # of the places that follow one another, as nothing perturbs them
    place = 1
    while len(taken) < FILLED:
        ranks[place] = len(ranks)
        taken.update(dict.fromkeys(near & MASK for near in range(place, place + width + 1)))
        place = (place * 5 + 1) & MASK
    full = {
        place for place in taken if all(place + near & MASK in taken for near in range(width + 1))
    }
    keys = []
    for place in taken:
        made = (key_of(place + (high << BITS)) for high in range(1000))
        keys.append(next(key for key in made if key is not None))
    chosen, starts = random.Random(count), [*full]
    used = {*map(hash, keys)}
    while len(keys) < count:
        hashed = one_within(full, chosen.choice(starts), chosen)
        if hashed in used or ranks.get(end_of(hashed, full), count) > len(ranks) // 2:
            continue
        used.add(hashed)
        if (key := key_of(hashed)) is not None:
            keys.append(key)
    return keys


def one_within(full: set[int], place: int, chosen: random.Random) -> int:
    """Return a hash that leads from one place to others of these, as far as that can be chosen."""
    hashed, bits = place, BITS
    for shift in SHIFT, 2 * SHIFT:
        ways = [hashed | top << bits for top in range(1 << SHIFT)]
        ways = [way for way in ways if (place * 5 + (way >> shift) + 1) & MASK in full]
        if not ways:
            break
        hashed, bits = chosen.choice(ways), bits + SHIFT
        place = (place * 5 + (hashed >> shift) + 1) & MASK
    return hashed


def end_of(hashed: int, full: set[int]) -> int:
    """Return the first place where nothing perturbs any more, -1 if another is free before."""
    for place, is_used_up in way(hashed):
        if is_used_up:
            return place
        if place not in full:
            return -1
    raise AssertionError("a way without an end")


def tuple_of(hashed: int) -> tuple[int] | None:
    """Return a tuple with a hash, if there is one of a small number: the hash can be undone."""
    five = PRIMES[2]
    value = (hashed - (1 ^ five ^ 3527539)) * UNDO[0] & WORD
    value = (value >> 31 | value << 33) & WORD
    value = (value - five) * UNDO[1] & WORD
    value -= (value >> 63) << 64
    if abs(value) >= sys.hash_info.modulus:
        return None
    assert hash((value,)) == hashed
    return (value,)


KEYS: dict[str, Callable[[int], Any]] = {"int": int, "float": float, "tuple": tuple_of}
made: dict[tuple[str, bool], list[Any]] = {}


def attacking(kind: str, is_set: bool) -> list[Any]:
    if (kind, is_set) not in made:
        made[kind, is_set] = attack(3050 if is_set else 4900, LINEAR * is_set, KEYS[kind])
    return made[kind, is_set]


@pytest.mark.parametrize("dump", [dumps_fast, dumps_internal])
@pytest.mark.parametrize(
    ("kind", "is_set"),
    [("int", False), ("float", False), ("tuple", False), ("int", True), ("float", True)],
)
def test_keys_that_collide_in_the_table_are_refused(
    small: None, kind: str, is_set: bool, dump: Callable[[Any], bytes]
) -> None:
    keys = attacking(kind, is_set)
    data = as_set(keys, dump) if is_set else dump([1, ("a", dict.fromkeys(keys))])
    with pytest.raises(LoadError, match="collide"):
        load_checked(data, None, (True, False))


def test_it_is_no_matter_how_large_the_table_becomes_later(small: None) -> None:
    keys = [*attacking("int", False), *range(1 << 40, (1 << 40) + 20_000)]
    with pytest.raises(LoadError, match="collide"):
        load_checked(dumps_fast(dict.fromkeys(keys)), None, (True, False))


@pytest.mark.parametrize("form", ["many", "lone", "one batch", "frozenset", "in a value"])
def test_it_is_no_matter_how_the_pickle_is_written(small: None, form: str) -> None:
    keys = attacking("int", form == "frozenset")
    parts = parts_of(keys)
    if form == "many":
        data = b"}" + b"".join(b"(" + part + b"u" for part in parts)
    elif form == "lone":
        data = b"}" + b"".join(part + b"s" for part in parts)
    elif form == "one batch":
        data = b"}(" + b"".join(parts) + b"u"
    elif form == "in a value":
        data = b"}(K\1}(" + b"".join(parts) + b"uK\2Nu"
    else:
        data = b"(" + b"".join(part.removesuffix(b"N") for part in parts) + b"\x91"
    with pytest.raises(LoadError, match="collide"):
        load_checked(b"\x80\x04" + data + b".", None, (True, False))


def test_steps_are_those_of_a_dict() -> None:
    keys = attack(3000, 0, int)
    steps = 0
    table: dict[int, int] = {}
    for key in keys:
        for place, _ in way(key):
            if place not in table:
                table[place] = key
                break
            steps += 1
    found = Table()
    found._regrow(MASK + 1, [*keys])
    assert found.steps == steps > 50_000
    assert [found._values[place] for place in table] == [*table.values()]


def test_a_set_is_in_the_order_of_its_table() -> None:
    chosen = random.Random(7)
    for count in 1, 4, 5, 19, 20, 77, 78, 1000, 4915, 4916, 60_000:
        keys = [chosen.randrange(-(1 << 61), 1 << 61) for _ in range(count)]
        table = table_of(is_set=True)
        table.add(keys + keys[: count // 2])
        assert [key for key in table._slots if key is not None] == [*set(keys)]


@pytest.mark.parametrize("is_set", [False, True], ids=["dict", "set"])
def test_honest_keys_are_taken(is_set: bool) -> None:
    count, chosen = 5000, random.Random(7)
    for keys in (
        range(count),
        range(-count, count),
        *([n << bits for n in range(count)] for bits in (4, 12, 32, 44, 50, 56, 70)),
        [n * 10**9 for n in range(count)],
        [1_790_000_000_000 + 50 * n + chosen.randrange(50) for n in range(count)],
        [chosen.getrandbits(63) for _ in range(count)],
        chosen.sample(range(count), count),
        [n / 1024 for n in range(count)],
        [n * 2.0**60 for n in range(count)],
        [chosen.random() for _ in range(count)],
        [(n % 200 - 100, n // 200 - 100) for n in range(count)],
    ):
        item: Any = set(keys) if is_set else dict.fromkeys(keys, 0)
        assert load_checked(dumps_fast(item), None, (True, False)) == item


def test_keys_among_texts_are_found(small: None) -> None:
    keys = attacking("int", False)
    item = {f"{n}": n for n in range(9000)}
    load_checked(dumps_fast(item), None, (True, False))
    with pytest.raises(LoadError, match="collide"):
        load_checked(dumps_fast(dict.fromkeys(keys) | item), None, (True, False))


@st.composite
def keyed(draw: st.DrawFn) -> list[Any]:
    """Return dicts and sets, with various keys, in one another."""
    plain = st.integers() | st.floats(allow_nan=False) | st.none() | st.text(max_size=4)
    key = plain | st.tuples(plain, plain) | st.frozensets(plain, max_size=3)
    item = draw(st.dictionaries(key, plain | st.lists(plain, max_size=2)))
    keys = draw(st.sets(key))
    return draw(st.permutations([item, keys, [item], {"a": item, "b": {1: keys, 2: item}}]))


@given(keyed())
def test_no_honest_item_is_refused_however_small_the_limits(item: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "LARGE", 0)
        patch.setattr(checked, "LARGE_CLASSIC", 0)
        patch.setattr(checked, "MANY", 2)
        patch.setattr(colliding, "MANY", 2)
        for dump in dumps_fast, dumps_internal:
            assert load_checked(dump(item), None, (True, False)) == item
