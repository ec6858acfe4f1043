"""The source's half of RSync: announces a tree to one target, and answers what it asks for.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  The messages are explained in ``target``.  Start at ``Pump.run``.
"""

from __future__ import annotations

from collections import deque

from . import digests, wire
from .blocks import Batch, Comparison
from .chunks import Table
from .messages import FROM_TARGET, checked
from .sending import GREW, Sending
from .standin import Refused, StandIns
from .tree import Unstable
from .watcher import TargetFailed, Watcher
from .wire import (
    DIGEST_BYTES,
    FIRST_STANDIN,
    INTEGERS,
    SMALL_MAX,
    TEXT_MAX,
    Violation,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .tree import Entries, Step, Tree
    from .wire import Message, Send

LIST_WINDOW_BYTES = 2 * 1024 * 1024  # announced and not yet processed
BATCH_BYTES = 256 * 1024  # of small files in one message
BATCH_FILES = 500
LARGE_CODES = (wire.DELTA, wire.CHUNKS, wire.REST)
WAKE = None  # what ``receive`` returns when there is no message, but the walk has gone on


class Pump(Sending):
    """Serves one target: announces the tree as it is walked, and answers requests.

    One thread runs it.  supply: returns the next (ids announced by then, cost, message) of the
    walk, None when there is none yet.  receive: returns the next message, or ``WAKE``.  Two
    windows bound what is in transit: announcements and data that the target has not processed.
    """

    def __init__(
        self, tree: Tree, supply: Callable[[], Step | None], send: Send,
        receive: Callable[[], object], watcher: Watcher
    ) -> None:  # fmt: skip
        Sending.__init__(self, tree, send, watcher)
        self._supply = supply
        self._receive = receive
        self._announced = 1  # ids below this one were; the root is known
        self._asked: dict[int, int] = {}  # how often, by id
        # (code, id, digest or comparison), in order
        self._requests: deque[tuple[int, int, object]] = deque()
        self._comparisons: dict[int, Comparison] = {}  # id -> of those whose digests are arriving
        self._links: deque[int] = deque()  # that the target cannot make
        self._standins: StandIns | None = None
        self._announcing: Iterator[tuple[int, Message]] = iter(())
        self._listed = self._ended = self._has_listed = False
        self._placed = 0  # files
        self._list_sent = self._list_done = 0
        self._handlers: dict[int, Callable[..., object]] = {
            wire.HELLO: self._on_hello,
            wire.ACK: self._on_ack,
            wire.WANT: self._on_want,
            wire.CHECK: self._on_check,
            wire.DELTA: self._on_delta,
            wire.REST: self._on_rest,
            wire.DIGESTS: self._on_digests,
            wire.CHUNKS: self._on_chunks,
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
        """Take what the target said before it ended; raises the error that it ended with."""
        while not self._ended:
            self._take()

    def _take(self) -> None:
        item = self._receive()
        if item is WAKE:
            return
        message = checked(item, FROM_TARGET)
        self._handlers[message[0]](*message[1:])

    def _announce(self) -> bool:
        """Send the next part of the walk, if there is one and the target has room."""
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

    def _entries_of(self, number: object) -> Entries:
        """Return the tree or copy that an id belongs to; refuse an id that was not announced."""
        if isinstance(number, INTEGERS):
            if 0 <= number < self._announced:
                return self._tree
            entries = self._standins and self._standins.entries
            if entries and FIRST_STANDIN <= number < entries.count():
                return entries
        raise Violation("entry %.100r was not announced" % (number,))

    # what the target says

    def _on_hello(self, hash_name: str | bytes, secret: bytes, nothing: int) -> None:
        if isinstance(hash_name, bytes):  # as Python 2 writes it
            hash_name = hash_name.decode("latin-1")
        self._digest = digests.digest_of(hash_name, secret)
        self._stream = digests.stream_of(hash_name)
        if nothing != wire.NO_SUM and nothing not in wire.SUMS_OF_NOTHING.values():
            raise Violation("no such checksum: %.100r" % (nothing,))
        self._sum_of_nothing = nothing

    def _on_ack(self, list_done: int, data_done: int) -> None:
        known = self._list_done <= list_done <= self._list_sent
        if not known or not self._data_done <= data_done <= self._data_sent:
            raise Violation("it processed %.100r and %.100r bytes" % (list_done, data_done))
        self._list_done, self._data_done = list_done, data_done

    def _ask(self, number: int, often: int) -> None:
        """Note that a file was asked for; refuse other entries, and files asked for too often."""
        entries = self._entries_of(number)
        if not entries.is_file(number) or self._asked.get(number, 0) >= often:
            raise Violation("it asked for entry %r, which is no file or was sent already" % number)
        self._asked[number] = self._asked.get(number, 0) + 1
        if self._asked[number] == 1:
            self._watcher.asked(entries.size_of(number))

    def _on_want(self, ids: bytes) -> None:
        total = 0
        for number in wire.unpack_ids(ids):
            size = self._tree.file_size(number) if number < self._announced else None
            if number in self._sought:  # the old file has gone
                self._requests.append((wire.WANT, number, None))
                del self._sought[number]
                self._comparisons.pop(number, None)
                continue
            if size is None or number in self._asked:
                self._ask(number, 2)  # again when the proof of a delta failed
            else:  # the same, but inline: there may be many
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
        self._ask(number, 2)  # again when what it had, and did not want again, was damaged
        comparison = Comparison(size, self._size_of(number), self._known_digest())
        self._requests.append((wire.DELTA, number, comparison))
        if not comparison.is_complete():
            self._comparisons[number] = comparison

    def _on_rest(self, number: int, there: int, proof: int) -> None:
        self._ask(number, 1)
        if there > self._size_of(number):
            raise Violation("the rest of a file beyond its %d bytes" % self._size_of(number))
        self._requests.append((wire.REST, number, (there, proof)))

    def _on_digests(self, number: int, digests: bytes) -> None:
        if number not in self._comparisons:
            raise Violation("digests that were not announced")
        comparison = self._comparisons[number]
        comparison.add(digests)
        if comparison.is_complete():
            del self._comparisons[number]

    def _on_chunks(
        self, number: int, is_all: bool, prefix: bytes, followers: bytes, keys: bytes,
        lengths: bytes,
    ) -> None:  # fmt: skip
        if number not in self._sought:
            raise Violation("chunks that were not asked for")
        self._comparisons.pop(number, None)
        table = Table(self._sought[number][0], not is_all, (prefix, followers), keys, lengths)
        self._requests.append((wire.CHUNKS, number, table))

    def _on_listed(self, total: int) -> None:
        if self._has_listed:
            raise Violation("it finished the list twice")
        self._has_listed = True
        self._watcher.listed(total)

    def _on_done(self, ids: bytes) -> None:
        numbers = wire.unpack_ids(ids)
        self._placed += len(numbers)
        if self._placed > self._answered or not all(map(self._asked.__contains__, numbers)):
            raise Violation("it finished files that were not sent")
        self._watcher.done([self._size_of(number) for number in numbers])

    def _on_note(self, number: int, reason: bytes) -> None:
        self._watcher.skipped(self._path_of(number), bytes(reason[:TEXT_MAX]))

    def _on_plan(self, items: list[int | bytes]) -> None:
        if not self._watcher.plans():
            raise Violation("a plan in a run that is not dry")
        paths = [self._path_of(item) for item in items if not isinstance(item, bytes)]
        self._watcher.planned(paths, [item for item in items if isinstance(item, bytes)])

    def _on_nolink(self, number: int) -> None:
        entries = self._entries_of(number)
        if not entries.is_link(number) or number in self._asked:
            raise Violation("entry %r is not a link, or was copied already" % number)
        self._asked[number] = 1
        self._links.append(number)

    def _on_doomed(self, paths: list[bytes]) -> None:
        """Answer which of some paths, which only the target has, the user's filter leaves out."""
        for path in paths:
            if {b"", b".", b".."} & set(path.split(b"/")):
                raise Violation("not a path below the root: %.100r" % (path,))
        self._send((wire.SPARED, self._watcher.spared(paths)))

    def _on_end(self, unchanged: int, settled: int, deleted: int, *refused: int) -> None:
        self._ended = True
        self._watcher.ended(unchanged, settled, deleted, refused)

    def _on_fatal(self, number: int, code: int, reason: bytes) -> None:
        raise TargetFailed(self._path_of(number), code, bytes(reason[:TEXT_MAX]))

    # answers

    def _answer(self) -> bool:
        """Answer the next requests, if there are any and the target has room."""
        if not self._requests or self._is_window_full():
            return False
        code, number, extra = self._requests[0]
        if code in LARGE_CODES or self._size_of(number) > SMALL_MAX:
            self._requests.popleft()
            self._send_large(number, code, extra, self._sought.pop(number, (0, 0))[1])
        else:
            self._send_small()
        return True

    def _send_small(self) -> None:
        """Answer a run of requests for small files in as few messages as possible."""
        batch = Batch(wire.FILES)
        while self._requests and batch.bytes < BATCH_BYTES and len(batch.ids) < BATCH_FILES:
            code, number, digest = self._requests[0]
            entries = self._tree if number < FIRST_STANDIN else self._entries_of(number)
            size = entries.size_of(number)
            if code in LARGE_CODES or size > SMALL_MAX:
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
                self._send_large(number, wire.WANT, None)
                return
            is_same = (
                code == wire.CHECK
                and self._digest is not None
                and self._digest(found[0]) == digest
            )
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
        self._send(batch.message(self._packed))
        self._keep_pace(batch.bytes)
        self._watcher.sent(batch.bytes)
        self._watcher.moved(batch.paths[-1], batch.listed_bytes)
