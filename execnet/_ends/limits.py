"""What ``memory=`` and ``cpus=`` of a spec mean, and how errors tell of them.

The worker sets the limits itself: ``far_limits``.  Start at ``options_of``.
"""

from __future__ import annotations

import os
import re
from functools import partial

from ..gateway_base import RemoteError, new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..xspec import XSpec

    class Settings(Protocol):
        """What limits need of a spec's values."""

        spec: XSpec
        type: str
        memory_bytes: int | None
        cpus: int | tuple[int, ...] | None

        @property
        def has_source(self) -> bool: ...


BYTES_MAX = 1 << 62
CPUS_MAX = 4096
SUFFIXES = "KMGT"  # powers of 1024

_turns: dict[object, int] = {}  # where the next worker's processors begin, by place
_turns_lock = new_lock()


def bytes_of(value: str) -> int:
    """Return the number of bytes that a text says: "1000000", "512M", "2Gi"; or ValueError."""
    match = re.fullmatch(r"([0-9]{1,20})(?:([KMGT])i?)?", str(value), re.ASCII | re.IGNORECASE)
    power = SUFFIXES.index(match[2].upper()) + 1 if match is not None and match[2] else 0
    number = 0 if match is None else int(match[1]) << 10 * power
    if not 0 < number <= BYTES_MAX:
        raise ValueError("not a number of bytes, or one with K, M, G or T after it: memory=512M")
    return number


def cpus_of(value: str) -> int | tuple[int, ...]:
    """Return how many processors a text says, or which: "2", "0,2-3"; or ValueError."""
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", text, re.ASCII):
        raise ValueError("neither how many, cpus=2, nor which, cpus=0,2-3")
    if text.isdigit():
        if not int(text):
            raise ValueError("a worker needs at least one")
        return int(text)
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise ValueError(f"{part} is no range")
        numbers.update(range(int(first), int(last or first) + 1))
    if max(numbers) >= CPUS_MAX:
        raise ValueError(f"there is no processor {max(numbers)}")
    return tuple(sorted(numbers))


def shown(spec: XSpec) -> str:
    """Return the limits of a worker in words, "" if it has none."""
    given = {"memory": spec.memory, "cpus": spec.cpus}
    return " and ".join(f"{key}={value}" for key, value in given.items() if value)


def told(spec: XSpec) -> str:
    """Return a line of an error about a worker's end that tells its limits, "" if it has none."""
    limits = shown(spec)
    return f"\nit had {limits}" if limits else ""


def options_of(settings: Settings, lowered: Callable[[str], str]) -> dict[str, object]:
    """Return what ``start_worker`` is told of a worker's limits.

    lowered: returns the source of a part, as it is sent.
    """
    memory, cpus = settings.memory_bytes, settings.cpus
    part: object = True if settings.has_source else lowered("_ends.far_limits")
    turn = _turn_of(settings, cpus) if isinstance(cpus, int) else 0
    which = list(cpus) if isinstance(cpus, tuple) else cpus
    return {"part": part, "memory": memory, "cpus": which, "turn": turn}


def _turn_of(settings: Settings, count: int) -> int:
    """Return which processor comes first, so that workers of one place share out its processors.

    Other programs there begin elsewhere.
    """
    keys = vars(settings.spec)
    place = tuple(str(keys.get(key)) for key in (settings.type, "host", "via"))
    with _turns_lock:
        turn = _turns.get(place, os.getpid())
        _turns[place] = turn + count
    return turn


def error_maker(settings: Settings) -> Callable[..., RemoteError]:
    """Return what makes the errors of code in a worker, which may have met its limit of memory."""
    return partial(_error_of, shown(settings.spec))


def _error_of(
    limits: str, text: str, type_name: str | None = None, message: str | None = None
) -> RemoteError:
    said = f"{type_name} {message}" if type_name else text
    if re.search("MemoryError|Cannot allocate memory|can't start new thread", said):
        text = f"{text.rstrip()}\nits worker had {limits}\n"
    return RemoteError(text, type_name, message)
