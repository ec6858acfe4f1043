"""Specs that stand for several: ``4*popen`` and ``ssh=node[01-16]``.

Knows the text only.  Start at ``expand``.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 10_000  # specs of one word: more is a slip of the finger
PLACES = "host", "socket", "ssh", "docker", "podman", "kubectl", "lxc", "vagrant_ssh"

_TIMES = re.compile(r"(\d+)\*(.*)", re.DOTALL)
# At least one "-" or ",", and nothing but numbers: [::1] and [fe80::1] are addresses.
_RANGE = re.compile(r"\[(\d+-\d+|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)+)\]")


def expand(text: str) -> list[str]:
    """Return the specs that a text stands for, itself if it is one spec.

    ``4*SPEC`` stands for four.  In the name of a place, ``[01-16]`` stands for each of the numbers
    with as many digits, and ``[1,4-6]`` for 1, 4, 5 and 6.  Raises ValueError for a list of none,
    for one of more than ``MOST``, and where ``id=`` would name several.
    """
    match = _TIMES.fullmatch(text)
    times, spec = (int(match[1]), match[2]) if match else (1, text)
    places, count = _places(spec), times
    for numbers in places[1::2]:
        count *= _count(numbers)
    if not count:
        raise ValueError(f"spec {text!r}: there is nothing to start")
    if count > MOST:
        raise ValueError(f"spec {text!r}: that is {count} specs, and more than {MOST}")
    if (match or len(places) > 1) and re.search(r"(?:^|//)id=", spec):
        raise ValueError(f"spec {text!r}: id= names one gateway, this may be several")
    return list(_filled(places)) * times


def check_single(text: str) -> None:
    """Raise ValueError for a list in short, even if it is one of a single spec."""
    if _TIMES.fullmatch(text) is not None or len(_places(text)) > 1:
        count = f"is a list of {len(expand(text))}, makegateways([...]) takes it"
        raise ValueError(f"spec {text!r} {count}")


def _places(spec: str) -> list[str]:
    """Return the text before the first range, its numbers, the text after it, and so on."""
    pieces = [""]
    for number, part in enumerate(spec.split("//")):
        pieces[-1] += "//" if number else ""
        key, _, _ = part.partition("=")
        found = _RANGE.split(part) if key in PLACES else [part]
        pieces[-1] += found[0]
        pieces += found[1:]
    return pieces


def _numbers(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield (first, last, digits) of the parts of a range."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        digits = len(first) if first.startswith("0") else 1
        yield int(first), int(last or first), digits


def _count(text: str) -> int:
    return sum(max(0, last - first + 1) for first, last, _ in _numbers(text))


def _filled(pieces: list[str]) -> Iterator[str]:
    if len(pieces) == 1:
        yield pieces[0]
        return
    before, numbers, *after = pieces
    for first, last, digits in _numbers(numbers):
        for number in range(first, last + 1):
            for rest in _filled(after):
                yield f"{before}{number:0{digits}d}{rest}"
