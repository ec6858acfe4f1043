"""Scans pickles of workers that may be hostile, before anything of them is loaded.

A scan passes what our own pickler writes, and finds out what needs care: many keys that can have
the same hash, and containers of many keys.  It runs in C but for what is long or nested.  Start at
``Scan.check``; ``Scan.find`` is for items large enough to have many keys in one container.
"""

from __future__ import annotations

import re
import struct

from ..gateway_base import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Opcodes of a pickle, and how many bytes follow.
LEAVES = {b"N": 0, b"\x88": 0, b"\x89": 0, b"K": 1, b"M": 2, b"J": 4, b"G": 8}
SHORT = b"\x8a", b"\x8c", b"C"  # a length in one byte
# Those with a longer length, and its form.
LONG = {b"\x8b": "<i", b"X": "<I", b"B": "<I", b"\x8d": "<Q", b"\x8e": "<Q"}
STRUCTURE = b"]})(eaust\x85\x86\x87\x8f\x90\x91"
SCANNED = {*LEAVES, *SHORT, *LONG, b"\x95"} | {bytes([byte]) for byte in STRUCTURE}
SHORT_IN_PATTERN = 64  # longer ones are rare, and each length makes the pattern longer
# Opcodes of keys that can have the same hash, or be nested: tuples, frozensets, large numbers.
RISKY = {b"\x85", b"\x86", b"\x87", b"t", b"\x91", b"\x8a", b"\x8b"}
HASHING = {b"s", b"u", b"\x90", b"\x91"}
SMALL_BYTES = 7  # numbers of this many bytes have distinct hashes
FEW = 64  # this many of them are harmless
# What begins or ends a container, or fills one.
SEEN = {b"(", b"}", b"\x8f", b"e", b"t", b"u", b"s", b"\x85", b"\x86", b"\x87", b"\x90", b"\x91"}
MARKED = {b"u", b"\x90", b"\x91", b"t", b"e"}  # those that take all after a mark
SHORT_IN_COMPOUND = 16  # as above, within small containers
NESTED_IN_COMPOUND = 4  # levels of containers that pass in C


class Keyed:
    """A dict or a set of a pickle: where its keys, with the values, stand in there."""

    def __init__(self, is_set: bool, frames: list[int]) -> None:
        self.is_set = is_set
        self._frames = frames  # where those of the pickle begin
        self.spans: list[tuple[int, int]] = []
        self.size = self.end = 0  # of the spans
        self._chosen: list[tuple[int, int]] = []  # those that may have keys other than text
        self.chosen_size = 0  # of these

    def add(self, start: int, end: int, is_text: bool) -> None:
        """Note a batch of keys."""
        self.spans.append((start, end))
        self.size += end - start
        if not is_text:
            self._chosen.append((start, end))
            self.chosen_size += end - start
        self.end = end

    def cut(self, data: bytes, has_text: bool) -> bytes:
        """Return a pickle of the list of the keys, and values, out of the whole pickle.

        has_text: with those that are known to be text.
        """
        spans = self.spans if has_text else self._chosen
        parts = [part for span in spans for part in self._unframed(data, *span)]
        return b"\x80\x04](" + b"".join(parts) + b"e."

    def _unframed(self, data: bytes, start: int, end: int) -> Iterator[bytes]:
        from bisect import bisect_left  # only for large items

        frames = self._frames
        for number in range(bisect_left(frames, start), bisect_left(frames, end)):
            yield data[start : frames[number]]
            start = frames[number] + 9
        yield data[start:end]


class Batches:
    """Tells which dict or set each batch of keys is for, as the opcodes of a pickle come.

    top: the container on top of the unpickler's stack, if it is one of these.
    """

    def __init__(self) -> None:
        self.frames: list[int] = []  # where the frames of the pickle begin
        self.top: Keyed | None = None
        self._found: list[Keyed] = []
        self._marks: list[tuple[Keyed | None, int]] = []

    def larger_than(self, many_bytes: int) -> list[Keyed]:
        """Return the containers of so many bytes of keys, what is within others first."""
        large = [keyed for keyed in self._found if keyed.chosen_size > many_bytes]
        return sorted(large, key=lambda keyed: keyed.end)

    def begin(self, pos: int) -> bool:
        """Note a mark, and where what follows it begins; return whether keys of a dict do."""
        owner, self.top = self.top, None
        self._marks.append((owner, pos))
        return owner is not None and not owner.is_set

    def note(self, op: bytes, pos: int, is_text: bool) -> bool:
        """Note one of ``SEEN`` but the mark; return False if it is not known whose keys end."""
        if op in (b"}", b"\x8f"):
            self.top = Keyed(op == b"\x8f", self.frames)
            return True
        if op not in MARKED:
            self.top = None
            return True
        if not self._marks:
            raise LoadError("a pickle with an end of nothing")
        owner, first = self._marks.pop()
        if op in (b"t", b"e"):  # of a tuple or a list
            self.top = None
            return True
        self.top = top = Keyed(True, self.frames) if op == b"\x91" else owner
        if top is not None:
            if not top.spans:
                self._found.append(top)
            top.add(first, pos, is_text)
        return top is not None


class Scan:
    """Finds out whether a pickle has only certain opcodes; in C, unless something is long.

    opcodes: those that pass, each as one byte.
    """

    def __init__(self, opcodes: set[bytes]) -> None:
        self._opcodes = opcodes
        self._harmless = self._pattern(opcodes - RISKY).match
        self._hashless = self._pattern(opcodes - HASHING).match
        self._any = self._pattern(opcodes).match
        self._flat: Callable[..., re.Match[bytes] | None] | None = None

    def _pattern(self, opcodes: set[bytes]) -> re.Pattern[bytes]:
        """Return a pattern for many opcodes; in parts, as the matcher remembers each round."""
        return re.compile(b"(?:" + self._ops(opcodes, SHORT_IN_PATTERN) + b"){0,4000}", re.DOTALL)

    def _ops(self, opcodes: set[bytes], shorts_end: int) -> bytes:
        """Return what matches one opcode, with text, bytes or a number of fewer bytes than that."""
        ops = [re.escape(op) + b".{%d}" % size for op, size in LEAVES.items() if op in opcodes]
        structure = re.escape(bytes(b for b in STRUCTURE if bytes([b]) in opcodes))
        ops += [b"[" + structure + b"]"] if structure else []
        lengths = [re.escape(bytes([n])) + b".{%d}" % n for n in range(shorts_end)]
        shorts = b"".join(re.escape(op) for op in SHORT if op in opcodes)
        ops.append(b"[" + shorts + b"](?:" + b"|".join(lengths) + b")")
        if b"\x8a" in self._opcodes:
            ops.append(b"\x8a(?:" + b"|".join(lengths[: SMALL_BYTES + 1]) + b")")
        return b"|".join(ops)

    def check(self, data: bytes) -> bool:
        """Return whether to load it with care; ``LoadError`` for a pickle that we don't write.

        A frame has to end where an opcode does: if it cuts one, the unpickler in C reads the rest
        after the frame, and takes other bytes for opcodes than we check here.
        """
        if data[:2] != b"\x80\x04":
            raise LoadError("a pickle of another protocol")
        pos, end, risky, hashes = 2, len(data) - 1, 0, False
        limit, is_framed = end, False  # of the frame, or of the pickle
        run = self._harmless
        while True:
            start = pos
            pos = run(data, pos, limit).end()  # type: ignore[union-attr]
            if pos == end and data[pos:] == b".":
                return risky > FEW and hashes
            if pos == limit < end:
                limit, is_framed = end, False
            elif pos >= limit:
                raise LoadError("a pickle without an end")
            elif data[pos : pos + 1] == b"\x95":
                pos, limit = self._enter_frame(data, pos, end, is_framed)
                is_framed = True
            elif pos == start:
                op = data[pos : pos + 1]
                if op in HASHING and risky > FEW:
                    hashes, run = True, self._any
                risky += op in RISKY
                if risky == FEW + 1 and run is self._harmless:
                    run, pos = self._hashless, 2  # again: maybe nothing is hashed
                    limit, is_framed = end, False
                else:
                    pos = self._skip(data, pos, limit)

    def _skip(self, data: bytes, pos: int, limit: int) -> int:
        """Return the position after one opcode."""
        op = data[pos : pos + 1]
        if op not in self._opcodes:
            raise LoadError(f"a pickle with opcode {op!r}, which nobody writes")
        if op in STRUCTURE:
            return pos + 1
        if op in LEAVES:  # whole ones match the pattern
            raise LoadError("a pickle that is cut within an opcode")
        start, size = self._length(data, pos + 1, limit, LONG.get(op, "<B"), limit)
        return start + size

    def _enter_frame(self, data: bytes, pos: int, end: int, is_framed: bool) -> tuple[int, int]:
        """Return where the content of a frame begins and ends."""
        if is_framed:
            raise LoadError("a pickle with a frame within a frame")
        start, size = self._length(data, pos + 1, end, "<Q", end + 1)
        return start, min(start + size, end)

    def _length(
        self, data: bytes, pos: int, limit: int, form: str, size_limit: int
    ) -> tuple[int, int]:
        """Return where the data after a length begins, and that length."""
        start = pos + struct.calcsize(form)
        if start > limit:
            raise LoadError("a pickle that is cut")
        (size,) = struct.unpack_from(form, data, pos)
        if not 0 <= size <= size_limit - start:
            raise LoadError(f"a pickle says {size} bytes, and has {size_limit - start}")
        return start, size

    def find(self, data: bytes, many_bytes: int, lone_max: int) -> list[Keyed] | None:
        """Return what has many keys, what is within other such containers first.

        many_bytes: that many are of no interest.  lone_max: how many keys may have come one by one,
        whose containers are not told apart.  None if the pickle is to be loaded with care;
        ``LoadError`` for one that we don't write.
        """
        if data[:2] != b"\x80\x04":
            raise LoadError("a pickle of another protocol")
        batches = Batches()
        pos, end, risky, lone = 2, len(data) - 1, 0, 0
        limit, is_framed = end, False
        text_end = -1  # where keys and values end that are all text and leaves
        run = self._flat or self._compile_flat()
        while True:
            start = pos
            pos = run(data, pos, limit).end()  # type: ignore[union-attr]
            if pos > start:
                batches.top = None
            if pos == end and data[pos:] == b".":
                return batches.larger_than(many_bytes)
            op = data[pos : pos + 1]
            if pos == limit < end:
                limit, is_framed = end, False
            elif pos >= limit:
                raise LoadError("a pickle without an end")
            elif op == b"\x95":
                batches.frames.append(pos)
                pos, limit = self._enter_frame(data, pos, end, is_framed)
                is_framed = True
            elif op == b"(":
                pos += 1
                if batches.begin(pos):
                    text_end = self._texts(data, pos, limit).end()  # type: ignore[union-attr]
                    pos = max(pos, text_end)
            elif op in SEEN:
                if not batches.note(op, pos, text_end == pos):
                    self.check(data)
                    return None
                pos += 1
                lone += op == b"s"
                risky += op in RISKY
            elif pos == start:
                risky += op in RISKY
                pos, batches.top = self._skip(data, pos, limit), None
            if risky > FEW or lone > lone_max:
                return None if self.check(data) or lone > lone_max else []

    def _compile_flat(self) -> Callable[..., re.Match[bytes] | None]:
        """Return what matches leaves, lists that are begun, and small containers of leaves."""
        leaves = self._opcodes - RISKY - {bytes([op]) for op in STRUCTURE}
        within = small = self._ops(leaves, SHORT_IN_COMPOUND)
        for _ in range(NESTED_IN_COMPOUND):
            few = rb"\]\((?:%b){1,200}e" % within, rb"\}\((?:%b){2,100}u" % within
            within = b"|".join((small, *few, rb"\](?:%b)a" % small))
        # One that a mark follows may go on with another batch of keys.
        compounds = (
            few[0],
            few[1] + rb"(?!\()",
            rb"\}(?:%b){2}s(?!\()" % small,
            rb"\x8f\((?:%b){1,100}\x90(?!\()" % small,
            b"[])a]",
        )
        leaf = self._ops(leaves, SHORT_IN_PATTERN)
        ops = b"|".join((leaf, *compounds))
        lengths = [re.escape(bytes([n])) + b".{%d}" % n for n in range(SHORT_IN_PATTERN)]
        text = rb"\x8c(?:%b)" % b"|".join(lengths)
        self._texts = re.compile(rb"(?:%b(?:%b)){0,2000}" % (text, leaf), re.DOTALL).match
        self._flat = re.compile(b"(?:" + ops + b"){0,4000}", re.DOTALL).match
        return self._flat
