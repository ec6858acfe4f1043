"""Counts what a dict or a set does to find a place for each key, without making one.

Whoever knows the hashes of numbers and tuples can choose keys whose hashes differ, but which look
at one another's places in the table, so that each new key looks at all that came before.  CPython
looks in a fixed order, which is followed here step by step, through each size that the table has
as it grows: ``Objects/dictobject.c`` and ``Objects/setobject.c``, alike from 3.10 to 3.15.  PyPy
has other tables, which are not followed.  Start at ``check_keys``.
"""

from __future__ import annotations

import sys
from itertools import islice

from ..gateway_base import ISPYPY, LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# So many keys of one container take a few ms, however they collide; they are not looked at.
MANY = 4000
# Places that a key finds taken, on average, each time that it is put into a table: as many as if
# MANY all collide.  Keys by chance find one or two, and multiples of a power of two up to 170.
STEPS_MAX = 1000
SAME_HASH_MAX = 64  # keys of one dict or set
SAME_HASH = f"more than {SAME_HASH_MAX} keys of one dict have the same hash"
IS_FOLLOWED = not ISPYPY
SMALLEST = 8  # of the sizes of a table
SHIFT = 5
LINEAR = 9  # how many neighbours a set looks at
QUICK = 50_000  # keys, from which on a set is only doubled
WORD = (1 << sys.hash_info.width) - 1


def check_keys(keys: Sequence[object], is_set: bool) -> None:
    """Raise ``LoadError`` if a dict or a set of these many keys would take work without measure.

    keys: as they are added, in this order, to an empty one.
    """
    if IS_FOLLOWED and not _are_in_step(keys):
        table_of(is_set).add(keys)


def table_of(is_set: bool) -> Table:
    """Return an empty table, as a dict's or a set's."""
    return SetTable() if is_set else Table()


def have_many(keys: Sequence[object]) -> bool:
    """Whether a worker can have chosen the hashes of many keys; those of text have a secret."""
    if len(keys) <= MANY:
        return False
    kinds = [*map(type, keys)]
    return len(keys) - kinds.count(str) - kinds.count(bytes) > MANY


def _are_in_step(keys: Sequence[object]) -> bool:
    """Whether keys are numbers with the same odd distance, such as 0, 1, 2: none ever collide."""
    first, second = keys[:2]
    if not (type(first) is int and type(second) is int and (second - first) % 2):
        return False
    found = range(first, first + (second - first) * len(keys), second - first)
    most = sys.hash_info.modulus
    return (
        -most < min(first, found[-1])
        and max(first, found[-1]) < most
        and -1 not in found  # whose hash is that of -2
        and keys == [*found]
    )


class Counter:
    """Counts the keys of one dict or set as it is made, each before it is added."""

    def __init__(self, is_set: bool) -> None:
        self._is_set = is_set
        self._keys: list[object] = []
        self._hashes: dict[int, int] = {}  # of keys that are neither text nor bytes
        self._chosen = 0
        self._table: Table | None = None  # once there are many

    def add(self, key: object) -> None:
        """Note a key; ``LoadError`` if it is one too many that collide."""
        if self._table is not None:
            self._table.add([key])
            return
        self._keys.append(key)
        if type(key) is str or type(key) is bytes:
            return
        value = hash(key)
        count = self._hashes[value] = self._hashes.get(value, 0) + 1
        if count > SAME_HASH_MAX:
            raise LoadError(SAME_HASH)
        self._chosen += 1
        if self._chosen > MANY and IS_FOLLOWED:
            self._table = table_of(self._is_set)
            self._table.add(self._keys)
            self._keys = []


class Table:
    """The table of a dict, and how many places were looked at in vain.

    A hash leads through as many places as it has bits for; from there on every hash goes the same
    way, from ``place`` to ``place * 5 + 1``.  Taken places on that way are skipped, however many.
    """

    _looks = 1  # places that are looked at before it goes on

    def __init__(self) -> None:
        self._slots: list[object] = [None] * SMALLEST  # keys
        self._values: list[int | None] = [None] * SMALLEST  # their hashes; None: the place is free
        self._keys: list[object] = []
        self._room = self._most()  # keys that can be added before it grows
        self._clear()
        self.steps = 0
        self._allowed = 0

    def _clear(self) -> None:
        """Forget what is skipped: the next free place as far as is known, and how far it is."""
        self._skips: list[tuple[int, int] | None] = []
        self._afar: dict[str, list[object]] = {}  # keys that skipped, by hash

    def add(self, keys: Iterable[object]) -> None:
        """Add keys in this order; ``LoadError`` if this takes too many steps."""
        rest = iter(keys)
        while part := [*islice(rest, self._room)]:
            added = self._place(part)
            self._keys += added
            self._room -= len(added)
            if self._room <= 0:
                self._grow()

    def _most(self) -> int:
        return (len(self._slots) << 1) // 3

    def _grow(self) -> None:
        size, used = SMALLEST, len(self._keys)
        while size < used * 3:
            size <<= 1
        self._regrow(size, self._keys)

    def _regrow(self, size: int, keys: list[object]) -> None:
        self._slots = [None] * size
        self._values = [None] * size
        self._clear()
        self._place(keys)
        self._room = self._most() - len(keys)

    def _place(self, keys: list[object]) -> list[object]:
        """Put keys into the slots; return those that were not there."""
        slots, values = self._slots, self._values
        mask = len(slots) - 1
        self._allowed += STEPS_MAX * len(keys)
        refound = set()
        for number, (key, value) in enumerate(zip(keys, map(hash, keys), strict=True)):
            place = value & mask
            if values[place] is None:
                values[place] = value
                slots[place] = key
            elif not self._collide(key, value):
                refound.add(number)
        if self.steps > self._allowed:
            raise LoadError(f"keys of one dict or set collide, by more than {STEPS_MAX} on average")
        if not refound:
            return keys
        return [key for number, key in enumerate(keys) if number not in refound]

    def _collide(self, key: object, value: int) -> bool:
        """Put a key elsewhere; return False if it is there already."""
        values, mask = self._values, len(self._values) - 1
        place, perturb, steps = value & mask, value & WORD, 0
        if perturb and values[place] != value:  # most find the second place free
            second = (place * 5 + (perturb >> SHIFT) + 1) & mask
            if values[second] is None:
                values[second] = value
                self._slots[second] = key
                self.steps += 1
                return True
        same: list[object] = []
        is_afar = False
        while values[place] is not None:
            if values[place] == value:
                same.append(self._slots[place])
            steps += 1
            if not perturb:
                is_afar = True
                break
            perturb >>= SHIFT
            place = (place * 5 + perturb + 1) & mask
        return self._settle(key, value, place, steps, same, is_afar)

    def _settle(
        self, key: object, value: int, place: int, steps: int, same: list[object], is_afar: bool
    ) -> bool:
        """Put a key into a place, or into the next one that is free if it has come as far."""
        if is_afar:
            same += self._afar.get(str(value), [])
        if same and self._is_same(key, same):
            self.steps += steps
            return False
        if is_afar:
            self._afar.setdefault(str(value), []).append(key)
            place, skipped = self._skip((place * 5 + 1) & (len(self._slots) - 1))
            steps += skipped
        self.steps += steps
        self._slots[place], self._values[place] = key, value
        return True

    def _skip(self, place: int) -> tuple[int, int]:
        """Return the next free place for hashes that are used up, and how many come before."""
        skips, mask = self._skips, len(self._slots) - 1
        if not skips:
            skips += [None] * (mask + 1)
        way, total = [], 0
        while (free := self._free_at(place)) < 0:
            way.append((place, total))
            place, steps = skips[place] or ((place * 5 + 1) & mask, self._looks)
            total += steps
        for passed, before in way:
            skips[passed] = place, total - before
        return free, total

    def _free_at(self, place: int) -> int:
        """Return a free place where one is looked for at once, -1 if there is none."""
        return place if self._values[place] is None else -1

    def _is_same(self, key: object, same: list[object]) -> bool:
        """Whether a key is one of those with its hash; ``LoadError`` if these are many."""
        for other in same:
            if other is key or other == key:
                return True
        if len(same) >= SAME_HASH_MAX:
            raise LoadError(SAME_HASH)
        return False


class SetTable(Table):
    """The table of a set or a frozenset, where each place is looked at with those after it."""

    _looks = LINEAR + 1

    def _most(self) -> int:
        mask = len(self._slots) - 1
        return (mask * 3 + 4) // 5  # it grows with the key that makes it 3/5 full

    def _grow(self) -> None:
        size, used = SMALLEST, len(self._keys)
        while size <= used * (2 if used > QUICK else 4):
            size <<= 1
        there = zip(self._slots, self._values, strict=True)
        self._regrow(size, [key for key, value in there if value is not None])

    def _collide(self, key: object, value: int) -> bool:
        mask = len(self._values) - 1
        place, perturb, steps = value & mask, value & WORD, 0
        same: list[object] = []
        while True:
            there = self._values[place : self._end(place)]
            is_free = None in there
            if is_free:
                del there[there.index(None) :]
            if value in there:
                same += [self._slots[place + n] for n, one in enumerate(there) if one == value]
            steps += len(there)
            if is_free:
                return self._settle(key, value, place + len(there), steps, same, False)
            if not perturb:
                return self._settle(key, value, place, steps, same, True)
            perturb >>= SHIFT
            place = (place * 5 + perturb + 1) & mask

    def _end(self, place: int) -> int:
        """Return where the places end that are looked at from one on."""
        return place + 1 + (LINEAR if place + LINEAR < len(self._values) else 0)

    def _free_at(self, place: int) -> int:
        there = self._values[place : self._end(place)]
        return place + there.index(None) if None in there else -1
