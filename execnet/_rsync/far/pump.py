"""The source's half of RSync: announces a tree to one target, and answers what it asks for.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  What crosses the wire is told in ``target``.  Start reading at ``Pump.run``.
"""

from __future__ import annotations

import os
import stat
from collections import deque

from . import wire
from .blocks import Batch, Comparison, data_ranges, read_exactly
from .messages import FROM_TARGET, checked
from .standin import Refused, StandIns
from .tree import Unstable, has_grown, identity_of, mtime_of
from .watcher import TargetFailed, Watcher
from .wire import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    FIRST_STANDIN,
    INTEGERS,
    PIECE_BYTES,
    SMALL_MAX,
    TEXT_MAX,
    Violation,
    crc32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .tree import Entries, Tree

LIST_WINDOW_BYTES = 2 * 1024 * 1024  # announced and not yet looked at
DATA_WINDOW_BYTES = 8 * 1024 * 1024  # sent and not yet worked off
BATCH_BYTES = 256 * 1024  # of small files in one message
BATCH_FILES = 500
GREW = b"grew while it was read, and is there as it was before"
WAKE = None  # what ``receive`` returns when there is no message, but more of the walk


class Pump(object):
    """Serves one target: announces the tree as it is walked, and answers requests.

    One thread runs it.  supply: returns the next (ids announced by then, cost, message) of
    the walk, None when there is none yet.  receive: returns the next message, or ``WAKE``.
    What is on its way is bounded by two windows: announcements that the target has not
    looked at, and data that it has not worked off.
    """

    def __init__(self, tree: Tree, supply: Any, send: Any, receive: Any, watcher: Watcher) -> None:
        self._tree = tree
        self._folders = tree.folders()
        self._supply = supply
        self._send = send
        self._receive = receive
        self._watcher = watcher
        self._digest: Any = None
        self.is_bounded = False  # the target takes no file that is far larger than announced
        self._wants_crc = False
        self._announced = 1  # ids below this one were; the root is known
        self._asked: Any = {}  # how often, by id
        self._requests: Any = deque()  # (code, id, digest or comparison), in order
        self._comparison: Any = None  # whose digests are arriving
        self._moved_bytes = 0  # of the large file that is being sent
        self._links: Any = deque()  # that the target cannot make
        self._standins: Any = None
        self._announcing: Any = iter(())
        self._listed = self._ended = self._has_listed = False
        self._answered = self._placed = 0  # files
        self._list_sent = self._list_done = self._data_sent = self._data_done = 0
        self._handlers: Any = {
            wire.HELLO: self._on_hello,
            wire.ACK: self._on_ack,
            wire.WANT: self._on_want,
            wire.CHECK: self._on_check,
            wire.DELTA: self._on_delta,
            wire.DIGESTS: self._on_digests,
            wire.LISTED: self._on_listed,
            wire.DONE: self._on_done,
            wire.NOTE: self._on_note,
            wire.PLAN: self._on_plan,
            wire.NOLINK: self._on_nolink,
            wire.END: self._on_end,
            wire.FATAL: self._on_fatal,
            wire.DOOMED: self._on_doomed,
        }

    def run(self) -> None:
        """Serve until the target is done.

        Raises what ``send`` and ``receive`` raise, ``TargetFailed``, ``SourceGone`` and
        ``Violation``.
        """
        try:
            while not self._ended:
                if not self._announce() and not self._answer():
                    self._take()
        finally:
            self._folders.close()
            if self._standins is not None:
                self._standins.close()

    def take_rest(self) -> None:
        """Take what the target said before it went; raises what it ends with."""
        while not self._ended:
            self._take()

    def _take(self) -> None:
        message = self._receive()
        if message is WAKE:
            return
        code = checked(message, FROM_TARGET)[0]
        self._handlers[code](*message[1:])

    def _announce(self) -> bool:
        """Send the next part of the walk, if there is one and the target can take it."""
        if self._list_sent - self._list_done >= LIST_WINDOW_BYTES:
            return False
        if self._listed:
            return self._announce_standin()
        supplied = self._supply()
        if supplied is None:
            return False
        self._announced, cost, message = supplied
        self._listed = message[0] == wire.LIST_END
        self._list_sent += cost
        self._send(message)
        return True

    def _announce_standin(self) -> bool:
        """Send the next part of a copy in place of a link; they follow the walk, one by one."""
        item = next(self._announcing, None)
        if item is None:
            if not self._links:
                return False
            return self._begin_standin(self._links.popleft())
        self._list_sent += item[0]
        self._send(item[1])
        return True

    def _begin_standin(self, number: int) -> bool:
        if self._standins is None:
            watcher = self._watcher
            self._standins = StandIns(self._tree, watcher.accept, watcher.skipped)
        self._announcing = self._standins.announce(number, self._path_of(number))
        try:
            return self._announce_standin()
        except Refused as exc:
            self._fail(number, str(exc).encode("utf-8"))
            return True

    def _entries_of(self, number: Any) -> Entries:
        """Return where an id belongs; refuse what was not announced."""
        if isinstance(number, INTEGERS):
            if 0 <= number < self._announced:
                return self._tree
            entries = self._standins and self._standins.entries
            if entries and FIRST_STANDIN <= number < entries.count():
                return entries  # type: ignore[no-any-return]
        raise Violation("entry %.100r was not announced" % (number,))

    def _path_of(self, number: Any) -> bytes:
        return self._entries_of(number).path_of(number)

    def _size_of(self, number: int) -> int:
        return self._entries_of(number).size_of(number)

    # what the target says

    def _on_hello(self, hash_name: Any, has_crc: bool) -> None:
        if isinstance(hash_name, bytes):  # as Python 2 writes it
            hash_name = hash_name.decode("latin-1")
        self._digest = wire.digest_function(hash_name)
        self._wants_crc = bool(has_crc) and crc32 is not None

    def _on_ack(self, list_done: int, data_done: int) -> None:
        known = self._list_done <= list_done <= self._list_sent
        if not known or not self._data_done <= data_done <= self._data_sent:
            raise Violation("it worked off %.100r and %.100r bytes" % (list_done, data_done))
        self._list_done, self._data_done = list_done, data_done

    def _ask(self, number: Any, often: int) -> None:
        """Note that a file was asked for; refuse what is none, or was asked for too often."""
        entries = self._entries_of(number)
        if not entries.is_file(number) or self._asked.get(number, 0) >= often:
            raise Violation("it asked for entry %r, which is no file or was sent" % number)
        self._asked[number] = self._asked.get(number, 0) + 1
        if self._asked[number] == 1:
            self._watcher.asked(entries.size_of(number))

    def _on_want(self, ids: bytes) -> None:
        total = 0
        for number in wire.unpack_ids(ids):
            size = self._tree.file_size(number) if number < self._announced else None
            if size is None or number in self._asked:
                self._ask(number, 2)  # again when the proof of a delta failed
            else:  # the same, without its calls: there may be many
                self._asked[number] = 1
                total += size
            self._requests.append((wire.WANT, number, None))
        self._watcher.asked(total)

    def _on_check(self, ids: bytes, digests: bytes) -> None:
        if self._digest is None or len(digests) != len(ids) // 8 * DIGEST_BYTES:
            raise Violation("%d bytes of digests for %d files" % (len(digests), len(ids) // 8))
        for place, number in enumerate(wire.unpack_ids(ids)):
            self._ask(number, 1)
            digest = digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
            self._requests.append((wire.CHECK, number, digest))

    def _on_delta(self, number: int, size: int) -> None:
        self._ask(number, 1)
        if self._comparison is not None or self._digest is None:
            raise Violation("two old files at once, or no digest to compare them by")
        comparison = Comparison(size, self._size_of(number), self._digest)
        self._requests.append((wire.DELTA, number, comparison))
        self._comparison = None if comparison.is_complete() else comparison

    def _on_digests(self, number: int, digests: bytes) -> None:
        if self._comparison is None:
            raise Violation("digests that were not announced")
        self._comparison.add(digests)
        if self._comparison.is_complete():
            self._comparison = None

    def _on_listed(self, total: int) -> None:
        if self._has_listed:
            raise Violation("the list was done before")
        self._has_listed = True
        self._watcher.listed(total)

    def _on_done(self, ids: bytes) -> None:
        numbers = wire.unpack_ids(ids)
        self._placed += len(numbers)
        if self._placed > self._answered or not all(map(self._asked.__contains__, numbers)):
            raise Violation("files are done that were not sent")
        self._watcher.done([self._size_of(number) for number in numbers])

    def _on_note(self, number: int, reason: bytes) -> None:
        self._watcher.skipped(self._path_of(number), bytes(reason[:TEXT_MAX]))

    def _on_plan(self, items: Any) -> None:
        if not self._watcher.plans():
            raise Violation("a plan, and the run is not dry")
        paths = [self._path_of(item) for item in items if not isinstance(item, bytes)]
        self._watcher.planned(paths, [item for item in items if isinstance(item, bytes)])

    def _on_nolink(self, number: int) -> None:
        entries = self._entries_of(number)
        if not entries.is_link(number) or number in self._asked:
            raise Violation("entry %r is no link, or has its copy" % number)
        self._asked[number] = 1
        self._links.append(number)

    def _on_doomed(self, paths: Any) -> None:
        """Tell which of some paths, which only the target has, the user's filter leaves out."""
        for path in paths:
            if {b"", b".", b".."} & set(path.split(b"/")):
                raise Violation("not a path below the root: %.100r" % (path,))
        self._send((wire.SPARED, self._watcher.spared(paths)))

    def _on_end(self, unchanged: int, settled: int, deleted: int, times: int, modes: int) -> None:
        self._ended = True
        self._watcher.ended(unchanged, settled, deleted, times, modes)

    def _on_fatal(self, number: int, code: int, reason: bytes) -> None:
        raise TargetFailed(self._path_of(number), code, bytes(reason[:TEXT_MAX]))

    # answers

    def _answer(self) -> bool:
        """Answer the next requests, if there are any and the target can take it."""
        if not self._requests or self._is_window_full():
            return False
        code, number, comparison = self._requests[0]
        if code != wire.DELTA and self._size_of(number) <= SMALL_MAX:
            self._send_small()
        else:
            self._requests.popleft()
            self._send_large(number, comparison)
        return True

    def _is_window_full(self) -> bool:
        return bool(self._data_sent - self._data_done >= DATA_WINDOW_BYTES)

    def _fail(self, number: int, reason: bytes) -> None:
        self._send((wire.FAIL, number, reason))
        self._watcher.skipped(self._path_of(number), reason)

    def _remark(self, number: int, reason: bytes) -> None:
        """Tell of something that is not quite as it should be, but was sent."""
        self._send((wire.REMARK, self._path_of(number), reason))
        self._watcher.skipped(self._path_of(number), reason)

    def _send_small(self) -> None:
        """Answer a run of requests for small files in few messages."""
        batch = Batch(wire.FILES)
        while self._requests and batch.bytes < BATCH_BYTES and len(batch.ids) < BATCH_FILES:
            code, number, digest = self._requests[0]
            entries = self._tree if number < FIRST_STANDIN else self._entries_of(number)
            size = entries.size_of(number)
            if code == wire.DELTA or size > SMALL_MAX:
                break
            self._requests.popleft()
            try:
                found = entries.read_small(number, self._folders)
            except (OSError, Unstable) as exc:
                entries.check_source(exc)
                self._send_batch(batch)
                batch = Batch(wire.FILES)
                self._fail(number, wire.reason_of(exc))
                continue
            if found is None:  # it has grown
                self._send_batch(batch)
                self._send_large(number, None)
                return
            is_same = code == wire.CHECK and self._digest(found[0]) == digest
            if (batch.code == wire.SAME) != is_same:
                self._send_batch(batch)
                batch = Batch(wire.SAME if is_same else wire.FILES)
            data, changed, grew = found
            if grew:
                self._remark(number, GREW)
            batch.add(number, entries.path_of(number), size, data, changed)
        self._send_batch(batch)

    def _send_batch(self, batch: Batch) -> None:
        if not batch.ids:
            return
        self._answered += len(batch.ids)
        if batch.code == wire.FILES:
            self._watcher.sending(batch.paths)
        self._data_sent += batch.cost()
        self._send(batch.message())
        self._watcher.sent(batch.bytes)
        self._watcher.moved(batch.paths[-1], batch.listed_bytes)

    def _send_large(self, number: int, comparison: Any) -> None:
        """Answer with a large file, in pieces: all of it, or where it differs from the old."""
        try:
            fd = self._entries_of(number).open(number, self._folders)
        except (OSError, Unstable) as exc:
            self._entries_of(number).check_source(exc)
            self._fail(number, wire.reason_of(exc))
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Unstable("is no file any more")
            if self.is_bounded and found.st_size > wire.may_become(self._size_of(number)):
                raise Unstable("has become very much larger since it was listed")
            self._moved_bytes = 0
            send = self._send_whole if comparison is None else self._send_changes
            last, proof, block = send(number, fd, found, comparison)
            has_grown = self._has_grown(fd, found, proof, block)
        except (OSError, Unstable) as exc:
            self._fail(number, wire.reason_of(exc))
        else:
            if has_grown:
                self._remark(number, GREW)
            self._moved(number, self._size_of(number))  # holes, too
            self._answered += 1
            self._send(last)
        finally:
            os.close(fd)

    def _has_grown(self, fd: int, before: Any, proof: Any, block: int) -> bool:
        """Tell whether a file has only grown while it was sent, which reading it again proves.

        Raises ``Unstable`` if it has changed otherwise: what was sent is then of no moment.
        """
        after = os.fstat(fd)
        if identity_of(after) == identity_of(before):
            return False
        if not has_grown(before, after) or proof is None:
            raise Unstable("changed while it was read")
        if proof != (self._crc_of(fd, before) if not block else self._digest_of(fd, before, block)):
            raise Unstable("changed while it was read")
        return True

    def _crc_of(self, fd: int, found: Any) -> int:
        crc = 0
        for position, stop in data_ranges(fd, found):
            os.lseek(fd, position, os.SEEK_SET)
            while position < stop:
                data = read_exactly(fd, min(CHUNK_BYTES, stop - position))
                crc = crc32(data, crc) & 0xFFFFFFFF
                position += len(data)
        return crc

    def _digest_of(self, fd: int, found: Any, block: int) -> bytes:
        os.lseek(fd, 0, os.SEEK_SET)
        digests = bytearray()
        for position in range(0, found.st_size, block):
            digests += self._digest(read_exactly(fd, min(block, found.st_size - position)))
        return bytes(self._digest(bytes(digests)))

    def _open_far(self, number: int, found: Any, based: bool) -> None:
        self._watcher.sending([self._path_of(number)])
        meta = found.st_size, found.st_mode & 0o777, mtime_of(found)
        self._send((wire.OPEN, number) + meta + (based,))

    def _send_piece(self, number: int, offset: int, data: Any) -> None:
        """Send a piece as soon as the window lets it; announce meanwhile."""
        for start in range(0, len(data), CHUNK_BYTES):
            while self._is_window_full():
                self._take()
            part = data[start : start + CHUNK_BYTES]
            self._data_sent += len(part) + 32
            self._send(wire.PIECE.pack(number, offset + start) + part)
            self._watcher.sent(len(part))
        while self._announce():
            pass

    def _moved(self, number: int, position: int) -> None:
        """Tell of the progress to ``position``, when another piece or the whole file is done."""
        size = self._size_of(number)
        count = min(position, size) - self._moved_bytes
        if count >= PIECE_BYTES or (count and position >= size):
            self._moved_bytes += count
            self._watcher.moved(self._path_of(number), count)

    def _send_whole(self, number: int, fd: int, found: Any, _: Any) -> Any:
        self._open_far(number, found, False)
        proof = 0 if self._wants_crc else None
        for position, stop in data_ranges(fd, found):
            os.lseek(fd, position, os.SEEK_SET)
            while position < stop:
                data = read_exactly(fd, min(CHUNK_BYTES, stop - position))
                if proof is not None:
                    proof = crc32(data, proof) & 0xFFFFFFFF
                self._send_piece(number, position, data)
                position += len(data)
                self._moved(number, position)
        return (wire.CLOSE, number, proof), proof, 0

    def _send_changes(self, number: int, fd: int, found: Any, old: Comparison) -> Any:
        if found.st_size > wire.BLOCKS_MAX * old.block:  # it has grown very much
            return self._send_whole(number, fd, found, old)
        is_open = False
        digests = bytearray()
        position, size, step = 0, found.st_size, wire.chunk_bytes(old.block)
        while position < size:
            data = read_exactly(fd, min(step, size - position))
            while not old.is_known(position + len(data) - 1):
                self._take()
            for start, stop in old.changes(position, data, digests):
                if not is_open:
                    is_open = True
                    self._open_far(number, found, True)
                self._send_piece(number, position + start, data[start:stop])
            position += len(data)
            self._moved(number, position)
        proof = self._digest(bytes(digests))
        if not is_open and size == old.size:
            changed = {0: (found.st_mode & 0o777, mtime_of(found))}
            return (wire.SAME, wire.pack_ids([number]), changed), proof, old.block
        if not is_open:
            self._open_far(number, found, True)
        return (wire.CLOSE, number, proof), proof, old.block
