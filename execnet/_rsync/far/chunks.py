"""Finds data that moved within a file, by cutting old and new file where their content says.

This file is shipped, to either side: it keeps to what Python 2.7 and today's Python both accept.

A file is cut after each "mark", a sequence of a few bytes about as frequent as chunks should be;
the old file determines which.  Inserting or removing something before some data does not change
where the data itself is cut, so its chunks have the same digests as before.  Regular expressions
find marks faster than any loop in Python could roll a checksum.  Start at ``cut``.

The idea of content-defined chunks is that of LBFS: Muthitacharoen, Chen, Mazieres, "A
Low-bandwidth Network File System", 2001.
"""

from __future__ import annotations

import re
import struct
from collections import Counter

from .wire import PIECE_BYTES, Violation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .digests import Digest

    Marks = tuple[bytes, bytes]  # a prefix, and what follows it
    Run = tuple[int | None, int, int]  # offset in the old file, if any; in the new one; bytes

KEY_BYTES = 8  # kept of a chunk's digest; a longer one proves the whole
MARK_BYTES = 8  # of a mark, at most
SEARCHED_BYTES = 4 * 1024 * 1024  # the old file is sampled once in this many bytes
SAMPLE_BYTES = 256 * 1024
BUCKETS = 32  # parts of the sample that marks must be spread over
CANDIDATES_MAX = 60  # marks that are tried
LOOKED_AT_BYTES = 128 * 1024  # of the old file, to choose marks from


def average_bytes(size: int) -> int:
    """Return roughly how large the chunks of an old file of this size are."""
    return max(1024, 2 * int(size**0.5))


def choose_marks(sample: bytes, average: int) -> Marks:
    """Return (bytes, bytes one of which follows them), once in ``average`` bytes or so.

    They have to be spread over the whole sample.  If there are none, because the content is too
    regular, the second part is empty.
    """
    wanted = max(1, len(sample) // average)
    expected = BUCKETS * (1 - (1 - 1.0 / BUCKETS) ** wanted)  # if they were spread by chance
    best, most = (b"", b""), 0
    for place, marks in enumerate(_candidates(sample, wanted)):
        find = finder(marks)
        found = find(sample) if find else ()
        spread = len({match.start() * BUCKETS // len(sample) for match in found})
        if spread > most:
            best, most = marks, spread
        if most >= 0.8 * expected or place >= CANDIDATES_MAX:
            break
    return best


def _candidates(sample: bytes, wanted: int) -> Iterator[Marks]:
    """Yield candidate marks about as frequent as wanted, of one byte and its followers, or more."""
    pairs: dict[bytes, Counter[int]] = {}
    for count, byte in sorted((count, byte) for byte, count in Counter(bytearray(sample)).items()):
        if count >= wanted:
            first = bytes(bytearray([byte]))
            pairs[first] = _counts_after(first, sample)
            for followers in _some_followers(pairs[first], wanted):
                yield first, followers
    frequent = sorted(
        (count, first + bytes(bytearray([second])))
        for first, counts in pairs.items()
        for second, count in counts.items()
        if count > wanted
    )
    for _, prefix in frequent:
        while prefix and len(prefix) < MARK_BYTES:
            counts = _counts_after(prefix, sample)
            for followers in _some_followers(counts, wanted):
                yield prefix, followers
            rest = [(count, byte) for byte, count in counts.items() if count > 2 * wanted]
            prefix = prefix + bytes(bytearray(min(rest)[1:])) if rest else b""


def _counts_after(prefix: bytes, sample: bytes) -> Counter[int]:
    """Return how often each byte follows a prefix."""
    found = re.findall(_expression(prefix) + b"(?=(.))", sample, re.DOTALL)
    return Counter(bytearray(b"".join(found)))


def _some_followers(counts: dict[int, int], wanted: int) -> Iterator[bytes]:
    """Yield sets of bytes about as frequent together as wanted: a single byte, and rare ones."""
    for byte, count in sorted(counts.items()):
        if wanted <= count <= 2 * wanted:
            yield bytes(bytearray([byte]))
            break
    total, followers = 0, bytearray()
    for byte, count in sorted(counts.items(), key=lambda item: item[::-1]):
        if total < wanted and total + count <= 2 * wanted:
            total += count
            followers.append(byte)
    if total >= wanted:
        yield bytes(followers)


def _expression(text: bytes) -> bytes:
    return b"".join([("\\x%02x" % byte).encode("ascii") for byte in bytearray(text)])


def finder(marks: Marks) -> Callable[[bytes], Iterator[re.Match[bytes]]] | None:
    """Return a function from data to matches of marks, None if there are none."""
    prefix, followers = marks
    if not followers:
        return None
    if len(prefix) > MARK_BYTES or len(followers) > 256:
        raise Violation("marks of %d and %d bytes" % (len(prefix), len(followers)))
    expression = _expression(prefix) + b"[" + _expression(followers) + b"]"
    return re.compile(expression, re.DOTALL).finditer


def cut(pieces: Iterable[bytes], marks: Marks, average: int) -> Iterator[memoryview]:
    """Yield the chunks of content that arrives in pieces."""
    find = finder(marks)
    low, high = average // 4, average * 4
    rest = b""
    for piece in pieces:
        data = rest + piece if rest else piece
        view = memoryview(data)
        start = 0
        for match in find(data) if find else ():
            end = match.end()
            while end - start > high:
                yield view[start : start + high]
                start += high
            if end - start >= low:
                yield view[start:end]
                start = end
        while len(data) - start > high:
            yield view[start : start + high]
            start += high
        rest = data[start:]
    if rest:
        yield memoryview(rest)


def table_of(
    pieces: Iterable[bytes], marks: Marks, average: int, digest: Digest
) -> tuple[bytes, bytes]:  # fmt: skip
    """Return (keys, lengths) of the chunks of some content, packed."""
    keys, lengths = [], []
    for chunk in cut(pieces, marks, average):
        keys.append(digest(chunk)[:KEY_BYTES])
        lengths.append(len(chunk))
    return b"".join(keys), struct.pack("!%dI" % len(lengths), *lengths)


def keys_of(keys: bytes) -> list[bytes]:
    return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]


def lengths_of(lengths: bytes) -> tuple[int, ...]:
    return struct.unpack("!%dI" % (len(lengths) // 4), lengths)


class Table(object):
    """The chunks of an old file.  size: of the file.  is_sample: these are only a few of them."""

    def __init__(
        self, size: int, is_sample: bool, marks: Marks, keys: bytes, lengths: bytes
    ) -> None:  # fmt: skip
        if len(keys) // KEY_BYTES * 4 != len(lengths) or len(keys) % KEY_BYTES:
            raise Violation("%d bytes of keys, %d of lengths" % (len(keys), len(lengths)))
        finder(marks)  # refuses bad marks
        self.size = size
        self.is_sample = is_sample
        self.average = average_bytes(size)
        self.marks = marks
        self._keys = keys_of(keys)
        self._lengths = lengths_of(lengths)
        self._offsets = [0]
        for length in self._lengths:
            self._offsets.append(self._offsets[-1] + length)
        if self._offsets[-1] > size:
            raise Violation("chunks of %d bytes in %d" % (self._offsets[-1], size))
        self._places = {key: place for place, key in enumerate(self._keys)}
        self._next = 0  # the place after the one that was found last

    def find(self, key: bytes, length: int) -> int | None:
        """Return the offset of a chunk in the old file, None if the file does not have it."""
        place = self._next
        if place >= len(self._keys) or self._keys[place] != key:
            place = self._places.get(key, -1)
        if place < 0 or self._lengths[place] != length:
            return None
        self._next = place + 1
        return self._offsets[place]

    def runs(self, keys: bytes, lengths: bytes) -> Iterator[Run]:
        """Yield (offset in the old file or None, offset in the new, bytes), for all of the new.

        keys, lengths: of the chunks of the new file.
        """
        begin: int | None = None
        start = size = 0
        for key, length in zip(keys_of(keys), lengths_of(lengths)):
            old = self.find(key, length)
            goes_on = old is None if begin is None else old == begin + size
            if not goes_on:
                if size:
                    yield begin, start, size
                begin, start, size = old, start + size, 0
            size += length
        if size:
            yield begin, start, size

    def has_any(self, keys: bytes, lengths: bytes) -> bool:
        """Return whether any chunk of some content is in the old file."""
        found = zip(keys_of(keys), lengths_of(lengths))
        return any(self.find(key, length) is not None for key, length in found)


def pieces_of(read: Callable[[int], bytes], start: int, stop: int) -> Iterator[bytes]:
    """Yield the content of a part of a file; read: takes a number of bytes, at most a piece."""
    while start < stop:
        data = read(min(PIECE_BYTES // 4, stop - start))
        start += len(data)
        yield data


def sample_starts(size: int) -> range:
    """Return where samples of an old file begin: spread over what the new one is searched for."""
    return range(0, size, SEARCHED_BYTES)
