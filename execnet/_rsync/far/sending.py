"""Sends one file to a target: all of it, or the parts that the target's old file does not have.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  Start at ``Sending._send_large``.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque

from . import wire
from .blocks import data_ranges, read_exactly
from .chunks import SAMPLE_BYTES, SEARCHED_BYTES, pieces_of, table_of
from .tree import Unstable, has_grown, identity_of, mtime_of
from .wire import BLOCKS, CHUNK_BYTES, CHUNKED, CONTINUED, PIECE_BYTES, WHOLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .blocks import Comparison
    from .chunks import Run, Table
    from .digests import Digest, Hash
    from .tree import Entries, Tree, Version
    from .watcher import Watcher
    from .wire import Message, Proof, Send

    Ranges = list[tuple[int, int]]
    Prove = Callable[[int, os.stat_result], Proof]  # computes the proof of a file again
    Sent = tuple[Message, Prove]  # the last message, which has a proof
    Cut = tuple[Version, bytes, bytes, bytes]  # what it is of, keys, lengths, proof

DATA_WINDOW_BYTES = 8 * 1024 * 1024  # sent and not yet worked off
SOUGHT_MIN = 64 * 1024  # bytes of an old file in which moved data is searched
MOVED_BLOCKS = 16  # that differ one after the other, before moved data is searched
PACE_S = 0.05  # by which sending may be ahead of a pace that is to be kept
GREW = b"grew while it was read; the copy has its content from before"


class Sending(object):
    """The half of ``Pump`` that answers requests for large files."""

    def __init__(self, tree: Tree, send: Send, watcher: Watcher) -> None:
        self._tree = tree
        self._folders = tree.folders()
        self._send = send
        self._watcher = watcher
        self.is_bounded = False  # the target takes no file that is far larger than announced
        self.compresses = False  # what is sent, where that makes it smaller
        self._failures = self._incompressible = 0  # contents in a row; how many not to try
        self.most_per_s = 0  # bytes, 0 for any number
        self.sleep: Callable[[float], object] = time.sleep
        self._next_time = 0.0  # when everything sent so far would be through, at that pace
        self._digest: Digest | None = None
        # makes a digest that takes data part by part
        self._stream: Callable[[], Hash] | None = None
        # with which the proof of a file that is sent whole begins; NO_SUM: there are no checksums
        self._sum_of_nothing = wire.NO_SUM
        self._moved_bytes = 0  # of the large file that is being sent
        # id -> (size of the old file, bytes told), while chunks are awaited
        self._sought: dict[int, tuple[int, int]] = {}
        # id -> (identity, keys, lengths, proof) of a file that was cut
        self._cuts: dict[int, Cut] = {}
        self._data_sent = self._data_done = 0
        self._answered = 0  # files

    if TYPE_CHECKING:  # what ``Pump`` does meanwhile, while a large file waits for room

        def _take(self) -> None: ...
        def _announce(self) -> bool: ...
        def _entries_of(self, number: object) -> Entries: ...

    def _known_digest(self) -> Digest:
        if self._digest is None:
            raise wire.Violation("no hash was named")
        return self._digest

    def _new_stream(self) -> Hash:
        if self._stream is None:
            raise wire.Violation("no hash was named")
        return self._stream()

    def _path_of(self, number: int) -> bytes:
        return self._entries_of(number).path_of(number)

    def _size_of(self, number: int) -> int:
        return self._entries_of(number).size_of(number)

    def _is_window_full(self) -> bool:
        return bool(self._data_sent - self._data_done >= DATA_WINDOW_BYTES)

    def _fail(self, number: int, reason: bytes) -> None:
        self._send((wire.FAIL, number, reason))
        self._watcher.skipped(self._path_of(number), reason)

    def _remark(self, number: int, reason: bytes) -> None:
        """Report something that was sent but is not quite as it should be."""
        self._send((wire.REMARK, self._path_of(number), reason))
        self._watcher.skipped(self._path_of(number), reason)

    def _send_large(self, number: int, code: int, extra: object, told: int = 0) -> None:
        """Answer with a large file, in pieces, or ask for digests that allow sending less of it.

        extra: what came with the request, a ``Comparison``, a ``Table``, or (bytes, checksum).
        """
        try:
            fd = self._entries_of(number).open(number, self._folders)
        except (OSError, Unstable) as exc:
            self._entries_of(number).check_source(exc)
            self._fail(number, wire.reason_of(exc))
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Unstable("is not a file any more")
            if self.is_bounded and found.st_size > wire.may_become(self._size_of(number)):
                raise Unstable("grew too much since it was listed")
            self._moved_bytes = told
            self._failures = self._incompressible = 0
            send: dict[int, Callable[..., Sent | None]] = {
                wire.DELTA: self._send_changes, wire.CHUNKS: self._send_moved,
                wire.REST: self._send_rest,
            }  # fmt: skip
            sent = send.get(code, self._send_whole)(number, fd, found, extra)
            if sent is None:  # chunks are to come
                return
            last, prove = sent
            grew = self._has_grown(fd, found, last[-1], prove)
        except (OSError, Unstable) as exc:
            self._fail(number, wire.reason_of(exc))
        else:
            if grew:
                self._remark(number, GREW)
            self._moved(number, self._size_of(number))  # holes, too
            self._answered += 1
            self._send(last)
        finally:
            os.close(fd)

    def _has_grown(
        self, fd: int, before: os.stat_result, proof: Proof, prove: Prove
    ) -> bool:  # fmt: skip
        """Return whether a file only grew while it was sent; reading it again proves that.

        Raises ``Unstable`` if it changed in any other way: then what was sent is worthless.
        """
        after = os.fstat(fd)
        if identity_of(after) == identity_of(before):
            return False
        if not has_grown(before, after) or proof is None or proof != prove(fd, before):
            raise Unstable("changed while it was read")
        return True

    def _open_far(self, number: int, found: os.stat_result, how: int) -> None:
        self._watcher.sending([self._path_of(number)])
        meta = found.st_size, found.st_mode & 0o777, mtime_of(found)
        self._send((wire.OPEN, number) + meta + (how,))

    def _send_range(self, number: int, fd: int, start: int, stop: int) -> None:
        """Send a part of a file as the window allows; announce more entries meanwhile."""
        os.lseek(fd, start, os.SEEK_SET)
        while start < stop:
            data = read_exactly(fd, min(CHUNK_BYTES, stop - start))
            self._send_piece(number, start, data)
            start += len(data)
            self._moved(number, start)

    def _send_piece(self, number: int, offset: int, data: bytes) -> None:
        while self._is_window_full():
            self._take()
        self._data_sent += len(data) + 32
        short = self._packed(data)
        if short is None:
            short = data
            self._send(wire.PIECE.pack(number, offset) + data)
        else:
            self._send((wire.PACKED, number, offset, len(data), short))
        self._watcher.sent(len(short))
        self._keep_pace(len(short))
        while self._announce():
            pass

    def _packed(self, data: bytes) -> bytes | None:
        """Return some content compressed; None if that does not pay, and for a while after that."""
        if not self.compresses or not data:
            return None
        if self._incompressible > 0:
            self._incompressible -= 1
            return None
        short = wire.packed(data)
        if short is None:
            self._failures += 1
            self._incompressible = min(2**self._failures, 64) - 1
        else:
            self._failures = 0
        return short

    def _keep_pace(self, count: int) -> None:
        """Wait until this many more bytes may be sent."""
        if self.most_per_s:
            now = wire.clock()
            self._next_time = max(self._next_time, now) + float(count) / self.most_per_s
            if self._next_time - now > PACE_S:
                self.sleep(self._next_time - now)

    def _moved(self, number: int, position: int) -> None:
        """Report progress up to ``position``, when another piece or the whole file is done."""
        size = self._size_of(number)
        count = min(position, size) - self._moved_bytes
        if count >= PIECE_BYTES or (count > 0 and position >= size):
            self._moved_bytes += count
            self._watcher.moved(self._path_of(number), count)

    # all of it, or the rest

    def _send_whole(self, number: int, fd: int, found: os.stat_result, _: object) -> Sent | None:
        self._open_far(number, found, WHOLE)
        proof = self._sum_of_nothing or None
        return self._send_from(number, fd, found, 0, proof)

    def _send_rest(
        self, number: int, fd: int, found: os.stat_result, there: tuple[int, int]
    ) -> Sent | None:  # fmt: skip
        """Send what follows on the part that a target has of the version that was listed.

        there: (bytes of that part, its checksum).
        """
        is_listed = (found.st_size, mtime_of(found)) == self._entries_of(number).version_of(number)
        if not (is_listed and self._sum_of_nothing):
            return self._send_whole(number, fd, found, None)
        self._open_far(number, found, CONTINUED)
        self._moved(number, there[0])
        return self._send_from(number, fd, found, *there)

    def _send_from(
        self, number: int, fd: int, found: os.stat_result, begin: int, proof: int | None
    ) -> Sent:  # fmt: skip
        """Send a file from an offset on.  proof: checksum of what is before it, or None."""
        nothing = wire.sum_of_nothing(proof or wire.NO_SUM)
        for position, data in content_of(fd, found, begin):
            if proof is not None:
                proof = wire.checksum(data, proof)
            self._send_piece(number, position, data)
            self._moved(number, position + len(data))
        return (wire.CLOSE, number, proof), lambda fd, found: sum_of(fd, found, nothing)

    # blocks that differ from those of an old file

    def _send_changes(
        self, number: int, fd: int, found: os.stat_result, old: Comparison
    ) -> Sent | None:  # fmt: skip
        """Compare the old and the new file as far as both reach, then send what differs."""
        size = found.st_size
        if size > wire.BLOCKS_MAX * old.block:  # it grew far beyond its announced size
            return self._send_whole(number, fd, found, old)
        digests, changes = bytearray(), []
        position, stop = 0, min(size, old.common_bytes())
        step = wire.chunk_bytes(old.block)
        while position < stop:
            data = read_exactly(fd, min(step, stop - position))
            self._await_digests(number, old, position + len(data) - 1)
            changes += old.changes(position, data, digests)
            position += len(data)
            self._moved(number, position)
            if old.run >= MOVED_BLOCKS and min(old.size, size) >= SOUGHT_MIN:
                self._seek(number, old.size)
                return None
            if changes and not old.is_told and size >= wire.EARLY_BYTES:
                old.is_told = True
                self._send((wire.DIFFERS, number))
        if not changes and size == old.size:
            changed = {0: (found.st_mode & 0o777, mtime_of(found))}
            proof = old.digest(bytes(digests))
            return (wire.SAME, wire.pack_ids([number]), changed, proof), self._prover(old)
        self._open_far(number, found, BLOCKS)
        ranges = list(data_ranges(fd, found))
        self._send_parts(number, fd, joined(changes), ranges)
        self._send_tail(number, fd, position, size, old, digests, ranges)
        proof = old.digest(bytes(digests))
        return (wire.CLOSE, number, proof), self._prover(old)

    def _await_digests(self, number: int, old: Comparison, position: int) -> None:
        while not old.is_known(position):
            if position >= wire.FIRST_BYTES and not old.is_wanted:
                old.is_wanted = True
                self._send((wire.GO, number))
            self._take()

    def _send_tail(
        self, number: int, fd: int, position: int, size: int, old: Comparison, digests: bytearray,
        ranges: Ranges,
    ) -> None:  # fmt: skip
        """Send the part of the file beyond the end of the old one."""
        block, is_dense, begin = old.block, ranges == [(0, size)], position
        os.lseek(fd, position, os.SEEK_SET)
        while position < size:
            data = read_exactly(fd, min(wire.chunk_bytes(block), size - position))
            digests += old.digest.of_blocks(data, block)
            for start in range(0, len(data) if is_dense else 0, CHUNK_BYTES):
                self._send_piece(number, position + start, data[start : start + CHUNK_BYTES])
            position += len(data)
            self._moved(number, position)
        if not is_dense:
            self._send_parts(number, fd, [(begin, size)], ranges)

    def _send_parts(
        self, number: int, fd: int, parts: Iterable[Sequence[int]], ranges: Ranges
    ) -> None:  # fmt: skip
        """Send parts of a file, or say that they are holes.  ranges: of the data between holes."""
        for start, stop, is_hole in with_holes(parts, ranges):
            if is_hole:
                self._send((wire.HOLE, number, start, stop - start))
            else:
                self._send_range(number, fd, start, stop)

    def _prover(self, old: Comparison) -> Prove:
        """Return a function that computes the proof of a file again, from its blocks."""

        def prove(fd: int, found: os.stat_result) -> bytes:
            os.lseek(fd, 0, os.SEEK_SET)
            digests = bytearray()
            for position in range(0, found.st_size, old.block):
                digests += old.digest(read_exactly(fd, min(old.block, found.st_size - position)))
            return bytes(old.digest(bytes(digests)))

        return prove

    # chunks that were elsewhere in an old file

    def _seek(self, number: int, old_size: int) -> None:
        self._sought[number] = old_size, self._moved_bytes
        self._send((wire.SEEK, number))

    def _send_moved(self, number: int, fd: int, found: os.stat_result, table: Table) -> Sent | None:
        if table.is_sample:
            part = min(found.st_size, SEARCHED_BYTES + SAMPLE_BYTES)
            digest = self._known_digest()
            found_there = table_of(parts(fd, part), table.marks, table.average, digest)
            if not table.has_any(*found_there):
                return self._send_whole(number, fd, found, None)
            self._seek(number, table.size)
            self._cuts[number] = self._cut(fd, found, table)  # while the target cuts the old one
            return None
        cuts = self._cuts.pop(number, None)
        if cuts is None or cuts[0] != identity_of(found):
            cuts = self._cut(fd, found, table)
        _, keys, lengths, proof = cuts
        self._open_far(number, found, CHUNKED)
        self._send_runs(number, fd, table.runs(keys, lengths), list(data_ranges(fd, found)))
        return (wire.CLOSE, number, proof), self._whole_digest

    def _send_runs(self, number: int, fd: int, runs: Iterable[Run], ranges: Ranges) -> None:
        """Send parts of a file, say where the old one has them, or that they are holes."""
        # of the parts that ``with_holes`` has taken
        olds: deque[tuple[int | None, int, int]] = deque()

        def taken() -> Iterator[tuple[int, int]]:
            for old, start, length in runs:
                olds.append((old, start, start + length))
                yield start, start + length

        for start, stop, is_hole in with_holes(taken(), ranges):
            while olds[0][2] <= start:
                olds.popleft()
            old, begin, _ = olds[0]
            if old is None and not is_hole:
                self._send_range(number, fd, start, stop)
                continue
            for position in range(start, stop, PIECE_BYTES):
                part = min(PIECE_BYTES, stop - position)
                if is_hole or old is None:
                    self._send((wire.HOLE, number, position, part))
                else:
                    self._send((wire.COPY, number, position, old + position - begin, part))
                self._moved(number, position + part)

    def _cut(self, fd: int, found: os.stat_result, table: Table) -> Cut:
        """Return (identity, keys and lengths of the chunks, digest) of a whole file."""
        stream = self._new_stream()
        pieces = updating(stream, parts(fd, found.st_size))
        keys, lengths = table_of(pieces, table.marks, table.average, self._known_digest())
        return identity_of(found), keys, lengths, stream.digest()[: wire.DIGEST_BYTES]

    def _whole_digest(self, fd: int, found: os.stat_result) -> bytes:
        stream = self._new_stream()
        for _ in updating(stream, parts(fd, found.st_size)):
            pass
        digest: bytes = stream.digest()[: wire.DIGEST_BYTES]
        return digest


def content_of(fd: int, found: os.stat_result, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of what is not a hole in a file, from an offset on."""
    for start, stop in data_ranges(fd, found):
        start = max(start, begin)
        os.lseek(fd, start, os.SEEK_SET)
        while start < stop:
            data = read_exactly(fd, min(CHUNK_BYTES, stop - start))
            yield start, data
            start += len(data)


def sum_of(fd: int, found: os.stat_result, nothing: int) -> int:
    """Return the checksum of what is not a hole in a file; ``nothing`` is the one of nothing."""
    code = nothing
    for _, data in content_of(fd, found):
        code = wire.checksum(data, code)
    return code


def joined(ranges: Iterable[Iterable[int]]) -> list[list[int]]:
    """Return [[start, stop]] with those merged that touch."""
    whole: list[list[int]] = []
    for start, stop in ranges:
        if whole and whole[-1][1] == start:
            whole[-1][1] = stop
        else:
            whole.append([start, stop])
    return whole


def with_holes(
    parts: Iterable[Sequence[int]], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, bool]]:  # fmt: skip
    """Yield (start, stop, whether it is a hole) of parts of a file.  ranges: of the data."""
    rest = deque(ranges)
    for start, stop in parts:
        while start < stop:
            while rest and rest[0][1] <= start:
                rest.popleft()
            first, last = rest[0] if rest else (stop, stop)
            end = min(first if first > start else last, stop)
            yield start, end, first > start
            start = end


def parts(fd: int, size: int) -> Iterator[bytes]:
    """Yield the first bytes of a file, piece by piece."""
    os.lseek(fd, 0, os.SEEK_SET)
    return pieces_of(lambda count: read_exactly(fd, count), 0, size)


def updating(stream: Hash, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        stream.update(piece)
        yield piece
