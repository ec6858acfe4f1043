"""Checks items of workers that may be hostile before they are loaded.

Loading can't name, import or call anything in any case.  This module makes sure that it takes no
more time and memory than the bytes justify: nothing is shared within an item, nothing is nested
without end, and few keys of a dict have the same hash.  ``SCANNED`` is what our own pickler writes.

Items of workers that this process started with its own interpreter are not checked: these run as
the same user, on the same machine.  Start at ``load_checked``.
"""

from __future__ import annotations

import struct

from ..gateway_base import _CONSTANTS, _STRINGS, ISPYPY, LoadError, load_item, opcode
from .colliding import IS_FOLLOWED, MANY, Counter, check_keys, have_many
from .scan import FEW, LEAVES, LONG, SCANNED, SHORT, Scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ..gateway_base import StrConfig

    N = TypeVar("N", tuple[object, ...], frozenset[object])
    K = TypeVar("K")
    T = TypeVar("T")

NESTING_MAX = 1000
TOO_DEEP = f"nested too deeply: more than {NESTING_MAX} containers within one another"
CONTAINERS = frozenset([list, tuple, dict, set, frozenset])
# Bytes of an item that may have many keys in one dict or set.
LARGE = 3 * MANY
LARGE_CLASSIC = 5 * MANY
COUNTED_MAX = 1 << 16  # bytes of an item
CHANNELS_MAX = 1000  # in one item
DIGITS_MAX = 1 << 24  # of all decimal numbers of one item

RISKY_CLASSIC = (
    opcode.BUILDTUPLE, opcode.FROZENSET, opcode.LONGINT, opcode.LONGLONG, opcode.COMPLEX,
    opcode.CHANNEL,
)  # fmt: skip
KEYED_CLASSIC = opcode.NEWDICT, opcode.SET, opcode.FROZENSET
# One of these is there for each container that is not empty.
NESTING = b"\x85", b"\x86", b"\x87", b"t", b"e", b"a", b"u", b"s", b"\x90", b"\x91"
NESTING_CLASSIC = (
    opcode.SETITEM, opcode.BUILDTUPLE, opcode.SET, opcode.FROZENSET,
)  # fmt: skip


_scan: Scan | None = None


def load_checked(data: bytes, channel_or_factory: object, strconfig: StrConfig) -> Any:
    """Return an item of an untrusted worker; ``LoadError`` if it is refused."""
    global _scan
    if data[:1] == b"\x80":
        if _scan is None:
            _scan = Scan(SCANNED)
        is_large = len(data) > LARGE and IS_FOLLOWED
        if not _keys_are_sound(_scan, data) if is_large else _scan.check(data):
            item: object = _carefully(_Pickle(data).load)
        else:
            item = load_item(data, channel_or_factory, strconfig)
    elif len(data) > 5 * FEW and _is_risky(data):
        item = _carefully(_Classic(data, channel_or_factory, strconfig).load)
    else:
        item = load_item(data, channel_or_factory, strconfig)
    if _may_be_deep(data):
        check_nesting(item)
    return item


def _keys_are_sound(scan: Scan, data: bytes) -> bool:
    """Whether no dict or set of a large pickle has keys that collide; False for "with care".

    Raises ``LoadError`` for one that has some.  For that the keys are loaded as a list.
    """
    found = scan.find(data, 2 * MANY, MANY)
    if found is None or sum(keyed.size for keyed in found) > 2 * len(data):
        return False
    for keyed in found:  # what is within another one comes first
        every = 1 if keyed.is_set else 2
        keys = load_item(keyed.cut(data, has_text=False), None, (True, False))[::every]
        if have_many(keys):
            if keyed.chosen_size < keyed.size:
                keys = load_item(keyed.cut(data, has_text=True), None, (True, False))[::every]
            check_keys(keys, keyed.is_set)
    return True


def _is_risky(data: bytes) -> bool:
    """Whether an item in the classic format is to be loaded with care."""
    if len(data) > LARGE_CLASSIC and IS_FOLLOWED and any(op in data for op in KEYED_CLASSIC):
        return True
    return len(data) > DIGITS_MAX or sum(map(data.count, RISKY_CLASSIC)) > FEW


def _may_be_deep(data: bytes) -> bool:
    """Whether to look how deeply an item is nested; counting takes longer if it is large."""
    nesting = NESTING if data[:1] == b"\x80" else NESTING_CLASSIC
    return len(data) > COUNTED_MAX or (
        len(data) > NESTING_MAX and sum(map(data.count, nesting)) >= NESTING_MAX
    )


def check_nesting(item: object) -> None:
    """Raise ``LoadError`` if an item, which is a tree, is nested too deeply."""
    level = [item]
    for _ in range(NESTING_MAX):
        parts = _parts(level)
        kinds = {*map(type, parts)}
        if kinds.isdisjoint(CONTAINERS):
            return
        is_mixed = not kinds <= CONTAINERS
        level = [part for part in parts if type(part) in CONTAINERS] if is_mixed else parts
    raise LoadError(TOO_DEEP)


def _parts(level: list[Any]) -> list[object]:
    """Return what is directly in some objects."""
    if not ISPYPY:  # where dicts hide what is in them
        import gc

        return gc.get_referents(*level)
    parts: list[object] = []
    for one in level:
        if type(one) in CONTAINERS:
            parts += one
            parts += one.values() if type(one) is dict else ()
    return parts


def _carefully(load: Callable[[], T]) -> T:
    try:
        return load()
    except LoadError:
        raise
    except Exception as exc:  # an opcode is out of place, or something is too short
        raise LoadError(f"inconsistent data: {exc!r}") from None


class _Guarded:
    """Builds an item, with limits on the nesting of keys and on equal hashes.

    Each part is checked once, as it is made.
    """

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}  # of tuples and frozensets, by id
        self._kept: list[object] = []  # so that no other object gets their ids
        self._counters: dict[int, Counter] = {}  # of keys, by container

    def nested(self, value: N) -> N:
        """Return a new tuple or frozenset, unless it is nested too deeply."""
        depth = 1 + max([self._depths.get(id(part), 0) for part in value], default=0)
        if depth > NESTING_MAX:
            raise LoadError(TOO_DEEP)
        self._depths[id(value)] = depth
        self._kept.append(value)
        return value

    def key(self, container: object, key: K) -> K:
        """Return a key for a dict or a set, unless too many collide."""
        counter = self._counters.get(id(container))
        if counter is None:
            counter = self._counters[id(container)] = Counter(type(container) is not dict)
        counter.add(key)
        return key

    def frozen(self, parts: list[object]) -> frozenset[object]:
        """Return a frozenset of checked keys."""
        keys = [self.key(parts, part) for part in parts]
        self._kept.append(parts)
        return self.nested(frozenset(keys))


class _Pickle(_Guarded):
    """Loads a pickle that was scanned."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def load(self) -> object:
        """Return the item."""
        data, pos = self._data, 2
        stack: list[object] = []
        marks: list[int] = []
        while True:
            op = data[pos : pos + 1]
            pos += 1
            if op == b".":
                (item,) = stack
                return item
            if op in LEAVES:
                stack.append(self._leaf(op, data[pos : pos + LEAVES[op]]))
                pos += LEAVES[op]
            elif op == b"\x95":
                pos += 8
            elif op in LONG or op in SHORT:
                form = LONG.get(op, "<B")
                start = pos + struct.calcsize(form)
                pos = start + struct.unpack_from(form, data, pos)[0]
                stack.append(self._long(op, data[start:pos]))
            elif op == b"(":
                marks.append(len(stack))
            elif op in b"eut\x90\x91":
                first = marks.pop()
                parts = stack[first:]
                del stack[first:]
                self._many(op, parts, stack)
            else:
                self._one(op, stack)

    def _leaf(self, op: bytes, data: bytes) -> object:
        if op == b"G":
            return struct.unpack(">d", data)[0]
        if op in b"KMJ":
            return int.from_bytes(data, "little", signed=op == b"J")
        return {b"N": None, b"\x88": True, b"\x89": False}[op]

    def _long(self, op: bytes, data: bytes) -> object:
        if op in b"\x8a\x8b":
            return int.from_bytes(data, "little", signed=True)
        return data if op in b"CB\x8e" else data.decode("utf-8", "surrogatepass")

    def _many(self, op: bytes, parts: list[object], stack: list[object]) -> None:
        if op == b"t":
            stack.append(self.nested(tuple(parts)))
        elif op == b"\x91":
            stack.append(self.frozen(parts))
        elif op == b"e":
            self._top(stack, list).extend(parts)
        elif op == b"u":
            for key, value in zip(parts[::2], parts[1::2], strict=True):
                self._set(stack, key, value)
        else:
            found = self._top(stack, set)
            found.update([self.key(found, part) for part in parts])

    def _one(self, op: bytes, stack: list[object]) -> None:
        if op in b"\x85\x86\x87":
            size = op[0] - 0x84
            parts = stack[-size:]
            if len(parts) < size:
                raise LoadError("inconsistent data: a tuple of nothing")
            del stack[-size:]
            stack.append(self.nested(tuple(parts)))
        elif op in b"a":
            value = stack.pop()
            self._top(stack, list).append(value)
        elif op == b"s":
            value = stack.pop()
            key = stack.pop()
            self._set(stack, key, value)
        else:
            made: dict[bytes, Callable[[], object]] = {b"]": list, b"}": dict, b")": tuple}
            value = made.get(op, set)()
            self._kept.append(value)
            stack.append(value)

    def _set(self, stack: list[object], key: object, value: object) -> None:
        found = self._top(stack, dict)
        found[self.key(found, key)] = value

    def _top(self, stack: list[object], kind: type[T]) -> T:
        top = stack[-1]
        if not isinstance(top, kind):
            raise LoadError(f"inconsistent data: items for {type(top)!r}")
        return top


class _Classic(_Guarded):
    """Loads an item in the classic format, whose opcodes are those of ``dumps``."""

    def __init__(self, data: bytes, factory: Any, strconfig: StrConfig) -> None:
        super().__init__()
        self._data, self._factory, self._strconfig = data, factory, strconfig
        self._channels = self._digits = 0

    def load(self) -> object:
        """Return the item."""
        data, pos = self._data, 0
        stack: list[object] = []
        constants, strings = _CONSTANTS, _STRINGS
        while True:
            op = data[pos]
            pos += 1
            name = bytes([op])
            if name == opcode.STOP:
                (item,) = stack
                return item
            if op in constants:
                stack.append(constants[op])
            elif op in strings:
                start = pos + 4
                pos = start + self._number(pos)
                if not start <= pos <= len(data):
                    raise LoadError("inconsistent data: it is cut")
                if name in (opcode.LONGINT, opcode.LONGLONG):
                    self._digits += pos - start
                    if self._digits > DIGITS_MAX:
                        raise LoadError(f"numbers of more than {DIGITS_MAX} digits")
                stack.append(strings[op](data[start:pos], self._strconfig))
            elif name == opcode.NEWDICT:
                stack.append({})
                self._kept.append(stack[-1])
            elif name == opcode.FLOAT:
                stack.append(struct.unpack_from("!d", data, pos)[0])
                pos += 8
            elif name == opcode.COMPLEX:
                stack.append(complex(*struct.unpack_from("!dd", data, pos)))
                pos += 16
            elif name == opcode.SETITEM:
                self._set_item(stack)
            else:
                number = self._number(pos)
                pos += 4
                self._with_number(name, number, stack, len(data) - pos)

    def _number(self, pos: int) -> int:
        number: int = struct.unpack_from("!i", self._data, pos)[0]
        return number

    def _with_number(self, name: bytes, number: int, stack: list[object], left: int) -> None:
        if name in (opcode.INT, opcode.LONG):
            stack.append(number)
        elif name == opcode.NEWLIST:
            if not 0 <= number * 7 <= left:  # no item takes less than 7 bytes
                raise LoadError(f"a list of {number} items in {left} bytes")
            stack.append([])
        elif name == opcode.CHANNEL:
            self._channels += 1
            if self._channels > CHANNELS_MAX:
                raise LoadError(f"more than {CHANNELS_MAX} channels in one item")
            stack.append(self._factory.new(number))
        elif name in (opcode.BUILDTUPLE, opcode.SET, opcode.FROZENSET):
            first = len(stack) - number
            if not 0 <= first <= len(stack):
                raise LoadError(f"inconsistent data: {number} items out of {len(stack)}")
            parts = stack[first:]
            del stack[first:]
            if name == opcode.BUILDTUPLE:
                stack.append(self.nested(tuple(parts)))
            elif name == opcode.FROZENSET:
                stack.append(self.frozen(parts))
            else:
                stack.append({self.key(parts, part) for part in parts})
                self._kept.append(parts)
        else:
            raise LoadError(f"unknown opcode {name!r}")

    def _set_item(self, stack: list[object]) -> None:
        value = stack.pop()
        key = stack.pop()
        target = stack[-1]
        if type(target) is dict:
            target[self.key(target, key)] = value
        elif type(target) is list and key == len(target):
            target.append(value)
        else:
            raise LoadError(f"inconsistent data: item {key!r:.40} of a {type(target).__name__}")
