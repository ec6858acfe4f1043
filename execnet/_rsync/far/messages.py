"""What each message of RSync holds after its code; either side rejects anything else.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.  What the
messages mean is explained in ``target``.  Start at ``checked``.
"""

from __future__ import annotations

from . import wire
from .wire import FIRST_STANDIN, INTEGERS, TooMuch, Violation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .wire import Message

    Kinds = tuple[Callable[[object], bool], ...]  # of the items of a message

COUNT_MAX = 2**63  # of sizes and ids
TIME_MAX = 2**63 * 10**9  # what fits into the seconds of a system call, in nanoseconds
MODE_MAX = 0o177777
PATH_MAX = 4096  # bytes of a path in a remark
TEXT = type(b"".decode("ascii"))


class Announced(object):
    """What a source has announced so far: ids, each once and in order, and the total size.

    most_files, most_bytes: limits that the target's user has set, None for none.
    """

    def __init__(self, most_files: int | None, most_bytes: int | None) -> None:
        self._most_files, self._most_bytes = most_files, most_bytes
        self._files = self._bytes = 0
        self._next_ids = {False: 1, True: FIRST_STANDIN}  # of the walk, and of stand-ins

    def add(self, first: int, count: int, size: int) -> None:
        """Note entries from an id on; raise ``Violation`` or ``TooMuch`` if that is not allowed."""
        is_standin = first >= FIRST_STANDIN
        if first < self._next_ids[is_standin]:
            raise Violation("entry %d was announced before" % first)
        self._next_ids[is_standin] = first + count
        self._files += count
        self.grow(size)

    def grow(self, size: int) -> None:
        """Add to the bytes announced, and check the limits."""
        self._bytes += size
        if self._most_files is not None and self._files > self._most_files:
            raise TooMuch("more than %d entries" % self._most_files)
        if self._most_bytes is not None and self._bytes > self._most_bytes:
            raise TooMuch("more than %d bytes" % self._most_bytes)


def is_count(value: object) -> bool:
    return isinstance(value, INTEGERS) and 0 <= value < COUNT_MAX


def is_mode(value: object) -> bool:
    return isinstance(value, INTEGERS) and 0 <= value <= MODE_MAX


def is_time(value: object) -> bool:
    return isinstance(value, INTEGERS) and -TIME_MAX <= value < TIME_MAX


def is_flag(value: object) -> bool:
    return value is True or value is False


def is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def is_ids(value: object) -> bool:
    return isinstance(value, bytes) and len(value) % 8 == 0


def is_name(value: object) -> bool:
    """Return whether it is text; Python 2 writes it as bytes."""
    return isinstance(value, (bytes, TEXT))


def is_proof(value: object) -> bool:
    """Return whether it is a checksum, a digest, or says that there is none."""
    return value is None or is_count(value) or isinstance(value, bytes)


def is_changes(value: object) -> bool:
    """Return whether it is {place: (mode, time)}."""
    return isinstance(value, dict) and all(
        is_count(place) and isinstance(pair, tuple) and len(pair) == 2
        and is_mode(pair[0]) and is_time(pair[1])
        for place, pair in value.items()
    )  # fmt: skip


def is_how(value: object) -> bool:
    return isinstance(value, INTEGERS) and wire.WHOLE <= value <= wire.CONTINUED


def is_kept(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_bytes, value))


def is_numbers(value: object) -> bool:
    return isinstance(value, (bytes, list))


def is_extras(value: object) -> bool:
    return isinstance(value, list) and all(is_bytes(item) or is_count(item) for item in value)


def is_last(value: object) -> bool:
    return isinstance(value, INTEGERS) and value in (wire.MORE, wire.COMPLETE, wire.INCOMPLETE)


# directory, first id, names, kinds, modes, sizes, times, extras, names that are kept, what follows
UNIT = (is_count, is_count, is_bytes, is_bytes, is_numbers, is_numbers, is_numbers, is_extras,
        is_kept, is_last)  # fmt: skip


def is_units(value: object) -> bool:
    return isinstance(value, list) and all(fits(unit, UNIT) for unit in value)


def is_paths(value: object) -> bool:
    return isinstance(value, list) and all(map(is_bytes, value))


def is_plan(value: object) -> bool:
    return isinstance(value, list) and all(is_bytes(item) or is_count(item) for item in value)


def is_costs(value: object) -> bool:
    """Return whether it is {name of a hash or checksum: seconds}."""
    return isinstance(value, dict) and all(
        is_name(name) and isinstance(cost, float) for name, cost in value.items()
    )


def is_names(value: object) -> bool:
    """Tell whether it is {number of a user or group: name}."""
    return isinstance(value, dict) and all(
        is_count(number) and number < 2**32 and is_bytes(name) for number, name in value.items()
    )


def fits(value: object, kinds: Kinds) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == len(kinds)
        and all(kind(item) for kind, item in zip(kinds, value))
    )


FROM_SOURCE: dict[int, Kinds] = {
    wire.LIST: (is_count, is_units),
    wire.LIST_END: (),
    wire.OWNERS: (is_count, is_bytes, is_names, is_names),
    wire.FILES: (is_ids, is_ids, is_changes, is_bytes, is_flag),
    wire.OPEN: (is_count, is_count, is_mode, is_time, is_how),
    wire.COPY: (is_count,) * 4,
    wire.HOLE: (is_count,) * 3,
    wire.PACKED: (is_count, is_count, is_count, is_bytes),
    wire.CLOSE: (is_count, is_proof),
    wire.SAME: (is_ids, is_changes, is_proof),
    wire.GO: (is_count,),
    wire.SEEK: (is_count,),
    wire.DIFFERS: (is_count,),
    wire.FAIL: (is_count, is_bytes),
    wire.INSTEAD: (is_count, is_count, is_count, is_mode, is_count, is_time),
    wire.REMARK: (is_bytes, is_bytes),
    wire.SPARED: (is_bytes,),
    wire.GONE: (is_count, is_bytes),
}
# what a source tells the coordinator, if it serves another worker
FROM_REPORTER: dict[int, Kinds] = {
    wire.TOLD: (is_name, lambda value: isinstance(value, tuple)),
}
FROM_TARGET: dict[int, Kinds] = {
    wire.HELLO: (is_name, is_bytes, is_count),
    wire.ACK: (is_count, is_count),
    wire.WANT: (is_ids,),
    wire.CHECK: (is_ids, is_bytes),
    wire.DELTA: (is_count, is_count),
    wire.REST: (is_count, is_count, is_count),
    wire.DIGESTS: (is_count, is_bytes),
    wire.CHUNKS: (is_count, is_flag, is_bytes, is_bytes, is_bytes, is_bytes),
    wire.LISTED: (is_count,),
    wire.DONE: (is_ids,),
    wire.NOTE: (is_count, is_bytes),
    wire.PLAN: (is_plan,),
    wire.NOLINK: (is_count,),
    wire.END: (is_count,) * 7,
    wire.FATAL: (is_count, is_count, is_bytes),
    wire.DOOMED: (is_paths,),
}


def checked(message: object, table: dict[int, Kinds]) -> Message:
    """Return a message that matches the table; raise ``Violation`` for any other."""
    if isinstance(message, tuple) and message and is_count(message[0]):
        kinds = table.get(message[0])
        if kinds is not None and fits(message[1:], kinds):
            return message
    raise Violation("not a message: %.200r" % (message,))
