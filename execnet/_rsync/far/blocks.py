"""What is sent of files: batches of small ones, differences from old ones, data between holes.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.
"""

from __future__ import annotations

import errno
import os
import sys

from .places import is_sparse
from .tree import Unstable
from .wire import (
    DIGEST_BYTES,
    FILES,
    SAME,
    SENT_BYTES,
    Violation,
    block_bytes,
    pack_ids,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .digests import Digest
    from .wire import Buffer, Change, Message


# Whether the system says where they are, and how to ask; PyPy and Python 2 have no names for that.
HAS_HOLES = hasattr(os, "SEEK_DATA") or sys.platform.startswith("linux")
SEEK_DATA, SEEK_HOLE = getattr(os, "SEEK_DATA", 3), getattr(os, "SEEK_HOLE", 4)


class Comparison(object):
    """An old file of a target: the digests of its blocks, as they arrive.

    size: of the old file.  announced: that of the new one, when it was listed.
    """

    def __init__(self, size: int, announced: int, digest: Digest) -> None:
        self.size = size
        self.block = block_bytes(max(size, announced))
        self._common = min(size, announced)  # bytes that can be the same in both
        self._count = -(-self._common // self.block)
        self._digests = bytearray()
        self.digest = digest
        self.is_wanted = False  # the digests after the first ones were asked for
        self.is_told = False  # that the files differ
        self.run = 0  # how many blocks in a row, up to here, differ

    def add(self, digests: bytes) -> None:
        self._digests += digests
        if len(self._digests) % SENT_BYTES or len(self._digests) > self._count * SENT_BYTES:
            raise Violation("%d bytes of digests for %d blocks" % (len(self._digests), self._count))

    def is_complete(self) -> bool:
        return len(self._digests) == self._count * SENT_BYTES

    def common_bytes(self) -> int:
        """Return how many bytes are in blocks that the old file has as well."""
        return self._count * self.block

    def is_known(self, offset: int) -> bool:
        """Return whether the digests up to the block at ``offset`` have arrived."""
        number = min(offset // self.block, self._count - 1)
        return len(self._digests) >= (number + 1) * SENT_BYTES

    def same_bytes(self, offset: int, data: Buffer, digest: bytes) -> int:
        """Return how many bytes of the block at ``offset`` are unchanged: all, or none.

        In the block where the old file ended, that is all or none of what it had there.
        """
        number = offset // self.block
        known = self._digests[number * SENT_BYTES : (number + 1) * SENT_BYTES]
        old = min(self.block, self._common - offset)
        if old < len(data):
            digest = self.digest(data[:old])
        return min(old, len(data)) if known == digest[:SENT_BYTES] else 0

    def changes(self, position: int, data: bytes, digests: bytearray) -> list[list[int]]:
        """Return [[start, stop]] of what changed in a part of a file; add its blocks' digests.

        position: of the part.  There must be digests for all of it.
        """
        changes: list[list[int]] = []
        view = memoryview(data)
        found = self.digest.of_blocks(data, self.block)
        digests += found
        for start in range(0, len(data), self.block):
            block = view[start : start + self.block]
            digest, found = found[:DIGEST_BYTES], found[DIGEST_BYTES:]
            same = self.same_bytes(position + start, block, digest)
            if same:
                self.run = 0
            elif data.count(b"\0", start, start + self.block) < len(block):  # nobody moves zeros
                self.run += 1
            if same < len(block):
                changes.append([position + start + same, position + start + len(block)])
        return changes


class Batch(object):
    """Answers for small files that go in one message, all with the same code."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.ids: list[int] = []
        self.paths: list[bytes] = []
        self.bytes = 0  # of content
        self.listed_bytes = 0  # of the files, when they were listed
        self._sizes: list[int] = []
        self._changed: dict[int, Change] = {}  # place -> (mode, time)
        self._parts: list[bytes] = []

    def add(self, number: int, path: bytes, size: int, data: bytes, changed: Change | None) -> None:
        """Add a file.  size: as it was listed.  changed: None, or its new (mode, time)."""
        if changed is not None:
            self._changed[len(self.ids)] = changed
        self.ids.append(number)
        self.paths.append(path)
        self.listed_bytes += size
        if self.code == FILES:
            self._sizes.append(len(data))
            self._parts.append(data)
            self.bytes += len(data)

    def cost(self) -> int:
        return self.bytes + 32 * len(self.ids) if self.code == FILES else 0

    def message(self, pack: Callable[[bytes], bytes | None]) -> Message:
        """Return the message.  pack: compresses content, or returns None."""
        ids = pack_ids(self.ids)
        if self.code == SAME:
            return SAME, ids, self._changed, None
        content = b"".join(self._parts)
        short = pack(content)
        is_packed = short is not None
        content = content if short is None else short
        self.bytes = len(content)
        return FILES, ids, pack_ids(self._sizes), self._changed, content, is_packed


def read_exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise Unstable("became shorter while it was read")
        data += more
    return data


def data_ranges(fd: int, found: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of what is not a hole in a file."""
    size = found.st_size
    if not (HAS_HOLES and is_sparse(found)):
        yield 0, size
        return
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, SEEK_DATA)
            stop = min(os.lseek(fd, start, SEEK_HOLE), size)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            if exc.errno != errno.EINVAL or stop:
                raise
            start, stop = 0, size  # the file system does not say where holes are
        if start < size:
            yield start, stop
