"""Old files of a target that new content is built on.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.  Start at
``Bases._ask_for_blocks``.

The digests of the first blocks of an old file go with the request.  For the rest the source has
to say ``GO``, so that nothing is read and copied in vain when the whole content is new.  When
many blocks in a row differ it says ``SEEK`` instead, and gets ``CHUNKS``: of a few parts of a
very large old file first, and of all of it if the new one has any of those.
"""

from __future__ import annotations

import errno
import os
import stat

from .chunks import (
    LOOKED_AT_BYTES,
    SAMPLE_BYTES,
    SEARCHED_BYTES,
    average_bytes,
    choose_marks,
    pieces_of,
    sample_starts,
    table_of,
)
from .places import O_FILE, O_OLD, at, identity_of, open_same, read_full
from .requests import Requests
from .temps import Incoming, tag_in, tag_of
from .wire import (
    BLOCKS_MAX,
    CHUNKS,
    DELTA,
    DIGEST_BYTES,
    DIGESTS,
    FIRST_BYTES,
    PIECE_BYTES,
    SENT_BYTES,
    SMALL_MAX,
    WANT,
    Violation,
    block_bytes,
    checked_bytes,
    checksum,
    chunk_bytes,
    crc32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIGESTS_AT_ONCE = 4 * PIECE_BYTES  # bytes of a file whose digests go in one message


class Bases(Requests):
    """Offers old files to the source, and builds the new ones from them as it says."""

    def _ask_for_blocks(self, entry: Any, path: bytes, where: Any) -> None:
        """Send the digests of an old file's first blocks while they are copied to a new one."""
        try:
            old = os.open(path, O_OLD, **where)
        except OSError:
            self._ask(WANT, entry)
            return
        try:
            found = os.fstat(old)
            largest = max(found.st_size, entry[4])
            if largest > BLOCKS_MAX * block_bytes(largest) or not stat.S_ISREG(found.st_mode):
                self._ask(WANT, entry)
                return
            fd, temp = self._create_large(entry)
            entry[0].settled = False
            incoming = Incoming(fd, temp, self._digest, self._stream)
            incoming.set_base(found, block_bytes(largest), min(found.st_size, entry[4]))
            self._add_base(entry, incoming, old)
        finally:
            os.close(old)

    def _has_left(self, entry: Any) -> bool:
        """Ask for what a file that an earlier run left is missing; return whether there is one.

        It is compared like an old file, not trusted.  Where all of it is of the version that was
        announced now, checksums are enough: only the disk can have changed it.
        """
        directory, _, name, _, size, mtime = entry
        left = self._leftovers.pop(tag_of(name)[:-8], None)
        if left is None or self._dry_run:
            return False
        try:
            path, where = at(self._places.handle(directory), left)
            fd = os.open(path, O_FILE | os.O_RDWR, **where)
        except OSError:
            return False
        found = os.fstat(fd)
        tag = tag_in(left)
        is_same = tag == tag_of(name, size, mtime) and crc32 is not None
        block = (checked_bytes if is_same else block_bytes)(max(found.st_size, size))
        is_ours = found.st_nlink == 1 and found.st_uid == getattr(os, "geteuid", int)()
        if (
            not (stat.S_ISREG(found.st_mode) and is_ours and found.st_size > SMALL_MAX)
            or max(found.st_size, size) > BLOCKS_MAX * block
        ):
            os.close(fd)
            return False
        try:
            temp = self._temps.take_over(directory, left, tag if is_same else tag_of(name))
        except OSError:
            os.close(fd)
            return False
        directory.settled = False
        incoming = Incoming(fd, temp, checksum if is_same else self._digest, self._stream)
        incoming.set_base(found, block, min(found.st_size, size))
        incoming.is_own = True
        self._add_base(entry, incoming, fd, is_same)
        return True

    def _add_base(
        self, entry: Any, incoming: Incoming, old: int, is_checked: bool = False
    ) -> None:  # fmt: skip
        self._total += entry[4]
        self._compared[entry[1]] = identity_of(incoming.base)
        self._pending.append((entry, incoming))
        self._bases += 1
        self._bases_bytes += entry[4]
        self._out.say(DELTA, entry[1], incoming.base.st_size, is_checked)
        self._send_digests(entry[1], old, incoming, FIRST_BYTES)

    def _send_digests(self, number: int, old: Any, incoming: Incoming, limit: int) -> None:
        """Read, copy and digest in one go, so that what is proved later is what was copied.

        old: None if it is gone.  limit: where to stop, unless the end is near.
        """
        block, digests = incoming.block, incoming.digests
        base, told = incoming.base, len(incoming.digests)
        is_sparse = getattr(base, "st_blocks", 1 << 60) * 512 < base.st_size
        step, wanted = chunk_bytes(block), DIGESTS_AT_ONCE * DIGEST_BYTES
        if old is not None:
            os.lseek(old, incoming.known, os.SEEK_SET)
        while incoming.known < min(limit, incoming.common):
            size = min(step, incoming.common - incoming.known)
            data = b"" if old is None else read_full(old, size)
            view = memoryview(data)
            for start in range(0, size, block):
                digests += incoming.digest(view[start : start + block]) if data else NO_DIGEST
            incoming.copy(view, is_sparse and data.count(b"\0") == len(data))
            incoming.known += size
            is_over = incoming.known >= min(limit, incoming.common)
            if (len(digests) - told) * block >= wanted or is_over:
                new = range(told, len(digests), DIGEST_BYTES)
                short = b"".join([bytes(digests[start : start + SENT_BYTES]) for start in new])
                self._out.say(DIGESTS, number, short)
                told = len(digests)

    def _unopened_base(self, number: int) -> Any:
        entry, incoming = self._request(number)
        if incoming is None or incoming.base is None or incoming.size >= 0:
            raise Violation("entry %d has no old file, or was opened" % number)
        return entry, incoming

    def _reopen(self, entry: Any, incoming: Incoming) -> Any:
        """Open the old file again; OSError if it is another one by now."""
        if incoming.is_own:
            return os.dup(incoming.fd)
        return open_same(self._places.handle(entry[0]), entry[2], self._compared[entry[1]])

    def _on_go(self, number: int) -> None:
        """Send the rest of the digests; for a file that is gone, those of nothing."""
        entry, incoming = self._unopened_base(number)
        if incoming.known >= incoming.common:
            raise Violation("there are no more digests of entry %d" % number)
        try:
            old = self._reopen(entry, incoming)
        except OSError:
            self._send_digests(number, None, incoming, incoming.common)
            return
        try:
            self._send_digests(number, old, incoming, incoming.common)
        finally:
            os.close(old)

    # moved data

    def _on_seek(self, number: int) -> None:
        """Send the chunks of an old file, or ask for all of the new one if it is gone."""
        entry, incoming = self._unopened_base(number)
        is_all = incoming.marks is not None or incoming.base.st_size <= SEARCHED_BYTES
        if incoming.old >= 0:
            raise Violation("all chunks of entry %d are known" % number)
        try:
            if incoming.is_own:  # it would be overwritten while it is copied from
                raise OSError(errno.EBUSY, "taken over")
            incoming.old = self._reopen(entry, incoming)
            os.ftruncate(incoming.fd, 0)
            chunks = self._chunks_of(incoming, is_all)
        except OSError:
            self._without_base(entry)
            return
        if not is_all:
            incoming.close_old()
        self._pending.append(self._pending.popleft())
        self._out.say(CHUNKS, number, is_all, *(incoming.marks + chunks))

    def _chunks_of(self, incoming: Incoming, is_all: bool) -> Any:
        size, old = incoming.base.st_size, incoming.old
        average = average_bytes(size)
        if incoming.marks is None:
            step = max(size // 32, LOOKED_AT_BYTES // 32)
            sample = [piece_at(old, start, LOOKED_AT_BYTES // 32) for start in range(0, size, step)]
            incoming.marks = choose_marks(b"".join(sample), average)
        if is_all:
            os.lseek(old, 0, os.SEEK_SET)
            pieces = pieces_of(lambda count: read_full(old, count), 0, size)
            return table_of(pieces, incoming.marks, average, self._digest)
        keys, lengths = [], []
        for start in sample_starts(size):
            part = [piece_at(old, start, SAMPLE_BYTES)]
            found = table_of(part, incoming.marks, average, self._digest)
            keys.append(found[0])
            lengths.append(found[1])
        return b"".join(keys), b"".join(lengths)

    def _on_copy(self, number: int, offset: int, old_offset: int, length: int) -> None:
        if number == self._refused:
            return
        entry, incoming = self._opened(number)
        try:
            incoming.copy_old(offset, old_offset, length)
        except OSError as exc:
            self._refuse(entry, exc)

    def _on_hole(self, number: int, offset: int, length: int) -> None:
        if number == self._refused:
            return
        entry, incoming = self._opened(number)
        try:
            incoming.hole(offset, length)
        except OSError as exc:
            self._refuse(entry, exc)


NO_DIGEST = b"\0" * DIGEST_BYTES


def piece_at(fd: int, offset: int, size: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)
