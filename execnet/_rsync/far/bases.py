"""Old files of a target that new content is built on.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.  Start at
``Bases._ask_for_blocks``.

The digests of the first blocks of an old file go with the request.  For the rest the source has
to say ``GO``, so that nothing is read and copied in vain when the whole content is new.  When
many blocks in a row differ it says ``SEEK`` instead, and gets ``CHUNKS``: of a few parts of a
very large old file first, and of all of it if the new one has any of those.

When the first block of a very large file differs, the source says ``DIFFERS``, which we look for
before its turn: only now is it certain that the new file is needed, and the disk gets what there
is of it, while the comparison goes on (see ``writeback``).

Where an earlier run was cut off, what it left is such an old file.  If it could say goodbye, and
the source has the same version now, ``REST`` asks for the rest only, while a thread finds out
whether the beginning is still what had arrived; if not, it is compared after all.
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
from .places import O_FILE, O_OLD, at, effective_user, identity_of, open_same, read_full
from .requests import Requests
from .temps import Incoming, Part, sum_in, tag_in, tag_of
from .wire import (
    BLOCKS_MAX,
    CHUNKS,
    DELTA,
    DIFFERS,
    DIGEST_BYTES,
    DIGESTS,
    EARLY_BYTES,
    FIRST_BYTES,
    PIECE_BYTES,
    REST,
    SENT_BYTES,
    SMALL_MAX,
    WANT,
    Violation,
    block_bytes,
    chunk_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .places import Entry, Where

EARLY_MAX = 16  # messages that are taken before their turn
DIGESTS_AT_ONCE = 4 * PIECE_BYTES  # bytes of a file whose digests go in one message


class Bases(Requests):
    """Offers old files to the source, and builds the new ones from them as it says."""

    def _ask_for_blocks(self, entry: Entry, path: bytes, where: Where) -> None:
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
            incoming = self._incoming(fd, temp)
            incoming.set_base(found, block_bytes(largest), min(found.st_size, entry[4]))
            self._total += entry[4]
            self._add_base(entry, incoming, found, old)
        finally:
            os.close(old)

    def _has_left(self, entry: Entry) -> bool:
        """Ask for what a file that an earlier run left is missing; return whether there is one."""
        incoming = None if self._dry_run else self._take_left(entry)
        if incoming is None:
            return False
        self._total += entry[4]
        if incoming.part is None:
            self._compare_own(entry, incoming)
        else:
            self._expect(entry, incoming)
            self._out.say(REST, entry[1], incoming.part.size, incoming.part.sum)
        return True

    def _take_left(self, entry: Entry) -> Incoming | None:
        """Return a file that an earlier run left, taken over, or None."""
        directory, _, name, _, size, mtime = entry
        left = self._leftovers.pop(tag_of(name)[:-8], None)
        if left is None:
            return None
        try:
            handle = self._places.handle(directory)
            path, where = at(handle, left)
            fd = os.open(path, O_FILE | os.O_RDWR, **where)
        except OSError:
            return None
        incoming = self._incoming(fd, left)
        incoming.is_own = True
        try:
            found = os.fstat(fd)
            check_left(found, size)
            is_same = tag_in(left) == tag_of(name, size, mtime)
            if is_same and sum_in(left) and found.st_size <= size and self._sum_of_nothing:
                fd = open_same(handle, left, identity_of(found))
                incoming.set_part(Part(fd, found.st_size, sum_in(left)), found)
            tag = tag_in(left) if incoming.part else tag_of(name)
            incoming.temp = self._temps.take_over(directory, left, tag)
        except OSError:
            incoming.close()
            return None
        directory.settled = False
        return incoming

    def _compare_own(self, entry: Entry, incoming: Incoming) -> None:
        """Compare what was left like an old file: all of it may be wrong."""
        found = os.fstat(incoming.fd)
        largest = max(found.st_size, entry[4])
        incoming.set_base(found, block_bytes(largest), min(found.st_size, entry[4]))
        self._add_base(entry, incoming, found, incoming.fd)

    def _add_base(
        self, entry: Entry, incoming: Incoming, found: os.stat_result, old: int
    ) -> None:  # fmt: skip
        self._compared[entry[1]] = identity_of(found)
        self._expect(entry, incoming)
        self._out.say(DELTA, entry[1], incoming.base_bytes)
        self._send_digests(entry[1], old, incoming, FIRST_BYTES)

    def _expect(self, entry: Entry, incoming: Incoming) -> None:
        self._pending.append((entry, incoming))
        self._bases += 1
        self._bases_bytes += entry[4]

    def _ask_again(self, entry: Entry) -> None:
        """Compare what was left if it is not what the earlier run wrote; otherwise as above."""
        incoming = self._pending[0][1]
        if incoming is None or incoming.part is None:
            Requests._ask_again(self, entry)
            return
        again = self._incoming(os.dup(incoming.fd), incoming.temp)
        again.is_own = True
        self._again.add(entry[1])
        self._take_request()
        self._compare_own(entry, again)

    def _send_digests(self, number: int, old: int | None, incoming: Incoming, limit: int) -> None:
        """Read, copy and digest in one go, so that what is proved later is what was copied.

        old: None if it is gone.  limit: where to stop, unless the end is near.
        """
        block, digests = incoming.block, incoming.digests
        told, is_sparse = len(incoming.digests), incoming.is_sparse
        step, wanted = chunk_bytes(block), DIGESTS_AT_ONCE * DIGEST_BYTES
        if old is not None:
            os.lseek(old, incoming.known, os.SEEK_SET)
        while incoming.known < min(limit, incoming.common):
            size = min(step, incoming.common - incoming.known)
            data = b"" if old is None else read_full(old, size)
            digests += incoming.digest.of_blocks(data, block) or NO_DIGEST * -(-size // block)
            incoming.copy(memoryview(data), is_sparse and data.count(b"\0") == len(data))
            incoming.known += size
            incoming.writeback.reach(incoming.known)
            is_over = incoming.known >= min(limit, incoming.common)
            if (len(digests) - told) * block >= wanted or is_over:
                new = range(told, len(digests), DIGEST_BYTES)
                short = b"".join([bytes(digests[start : start + SENT_BYTES]) for start in new])
                self._out.say(DIGESTS, number, short)
                told = len(digests)
                self._look_ahead(number, incoming)

    def _unopened_base(self, number: int) -> tuple[Entry, Incoming]:
        entry, incoming = self._request(number)
        if incoming is None or incoming.base is None or incoming.size >= 0:
            raise Violation("entry %d has no old file, or was opened" % number)
        return entry, incoming

    def _reopen(self, entry: Entry, incoming: Incoming) -> int:
        """Open the old file again; OSError if it is another one by now."""
        if incoming.is_own:
            return os.dup(incoming.fd)
        return open_same(self._places.handle(entry[0]), entry[2], self._compared[entry[1]])

    def _on_go(self, number: int) -> None:
        """Send the rest of the digests; for a file that is gone, those of nothing."""
        entry, incoming = self._unopened_base(number)
        if incoming.known >= incoming.common:
            raise Violation("there are no more digests of entry %d" % number)
        if incoming.base_bytes != entry[4]:
            self._write_early(incoming)
        try:
            old = self._reopen(entry, incoming)
        except OSError:
            self._send_digests(number, None, incoming, incoming.common)
            return
        try:
            self._send_digests(number, old, incoming, incoming.common)
        finally:
            os.close(old)

    # a new file that the disk gets early

    def _on_differs(self, number: int) -> None:
        _, incoming = self._unopened_base(number)
        self._write_early(incoming)

    def _write_early(self, incoming: Incoming) -> None:
        """Begin to write a file that will replace another one."""
        if incoming.base_bytes >= EARLY_BYTES and not incoming.is_own:
            incoming.writeback.start()

    def _look_ahead(self, number: int, incoming: Incoming) -> None:
        """Find out whether the source has said ``DIFFERS``; what else it has said is for later."""
        is_large = incoming.base_bytes >= EARLY_BYTES
        if is_large and not incoming.writeback.is_started and len(self._early) < EARLY_MAX:
            messages = self._look()
            self._early.extend(messages)
            if (DIFFERS, number) in messages:
                self._write_early(incoming)

    # moved data

    def _on_seek(self, number: int) -> None:
        """Send the chunks of an old file, or ask for all of the new one if it is gone."""
        entry, incoming = self._unopened_base(number)
        is_all = incoming.marks is not None or incoming.base_bytes <= SEARCHED_BYTES
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
        self._out.say(CHUNKS, number, is_all, *chunks)

    def _chunks_of(self, incoming: Incoming, is_all: bool) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the marks, and the keys and lengths of the chunks that they cut."""
        size, old, marks = incoming.base_bytes, incoming.old, incoming.marks
        average = average_bytes(size)
        if marks is None:
            step = max(size // 32, LOOKED_AT_BYTES // 32)
            sample = [piece_at(old, start, LOOKED_AT_BYTES // 32) for start in range(0, size, step)]
            incoming.marks = marks = choose_marks(b"".join(sample), average)
        if is_all:
            os.lseek(old, 0, os.SEEK_SET)
            pieces = pieces_of(lambda count: read_full(old, count), 0, size)
            return marks + table_of(pieces, marks, average, self._digest)
        keys, lengths = [], []
        for start in sample_starts(size):
            part = [piece_at(old, start, SAMPLE_BYTES)]
            found = table_of(part, marks, average, self._digest)
            keys.append(found[0])
            lengths.append(found[1])
        return marks + (b"".join(keys), b"".join(lengths))

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


def check_left(found: os.stat_result, size: int) -> None:
    """Raise OSError for what no run of ours has left, or what is too large to be compared.

    size: of the source's file.
    """
    largest = max(found.st_size, size)
    is_file = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    is_ours = found.st_uid == effective_user()
    if not (is_file and is_ours and found.st_size > SMALL_MAX):
        raise OSError(errno.EPERM, "is not what a run has left")
    if largest > BLOCKS_MAX * block_bytes(largest):
        raise OSError(errno.EFBIG, "is too large to be compared")


NO_DIGEST = b"\0" * DIGEST_BYTES


def piece_at(fd: int, offset: int, size: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)
