"""What a target asks a source for, and what it does with the answers.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Requests``.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import abstractmethod
from collections import deque

from . import digests
from .owners import Owners
from .places import (
    HAS_FDS,
    O_OLD,
    REFUSALS,
    Places,
    at,
    identity_of,
    open_same,
    same_time,
    set_time,
    time_of,
    write_all,
)
from .temps import Incoming, Temps, tag_of
from .wire import (
    ACK,
    CHECK,
    DONE,
    HELLO,
    NOTE,
    PIECE_BYTES,
    PLAN,
    SMALL_MAX,
    WANT,
    WHOLE,
    Violation,
    pack_ids,
    reason_of,
    unpack_ids,
    unpacked,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Directory, Entry, Handle, Identity, Named, Where
    from .removal import Spare
    from .temps import Request
    from .wire import Buffer, Changes, Options, Proof, Say

    Look = Callable[[], list[object]]  # returns the next message, an empty list if there is none
    Placed = tuple[Directory, bytes]  # the directory that something is in, and its name

ACK_BYTES = PIECE_BYTES
ASKED_MAX = 1000  # requests in one message
# after these, trying the next file is pointless
FATAL_NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE")
COARSE_NS = 2 * 10**9  # no file system in use rounds times more coarsely than FAT does
SETTLE_TRIES = 10  # how often a directory's time is set while others change the directory
ODD_TIME_NS = 1000000001123456789  # that every rounding changes
IN_THE_WAY = (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # the last on Windows
FATAL_ERRORS = frozenset([code for name, code in vars(errno).items() if name in FATAL_NAMES])


class Fatal(Exception):
    """Nothing can be written any more: (entry id, errno, reason)."""


class Outbox(object):
    """What a target has to say, gathered into a few messages.  ``send`` takes each."""

    def __init__(self, send: Say) -> None:
        self._send = send
        self._code = WANT
        self._ids: list[int] = []  # asked for with this code
        self._digests: list[bytes] = []
        self._done: list[int] = []
        self._plan: list[int | bytes] = []
        self.list_done = self.data_done = 0  # worked off
        self._list_told = self._data_told = 0

    def ask(self, code: int, number: int, digest: bytes) -> None:
        if self._code != code or len(self._ids) >= ASKED_MAX:
            self._flush_asked()
        self._code = code
        self._ids.append(number)
        self._digests.append(digest)

    def done(self, number: int) -> None:
        self._done.append(number)

    def plan(self, item: int | bytes) -> None:
        self._plan.append(item)

    def say(self, *message: object) -> None:
        """Send a message after all that was gathered before."""
        self.flush()
        self._send(message)

    def flush(self) -> None:
        self._flush_asked()
        if self._done:
            self._send((DONE, pack_ids(self._done)))
            self._done = []
        if self._plan:
            self._send((PLAN, self._plan))
            self._plan = []
        if self.list_done > self._list_told or self.data_done - self._data_told >= ACK_BYTES:
            self._list_told, self._data_told = self.list_done, self.data_done
            self._send((ACK, self.list_done, self.data_done))

    def _flush_asked(self) -> None:
        if self._ids and self._code == WANT:
            self._send((WANT, pack_ids(self._ids)))
        elif self._ids:
            self._send((CHECK, pack_ids(self._ids), b"".join(self._digests)))
        self._ids, self._digests = [], []


class Requests(object):
    """Asks for files, and puts them in place; ``Target`` finds out which are needed.

    An entry is (directory, id, name, mode, size, time).  A request is (entry, incoming), with
    an ``Incoming`` if there is a temporary file for it already.
    """

    def __init__(self, send: Say, options: Options) -> None:
        dest = options["dest"]
        if options["expanduser"]:
            dest = os.path.expanduser(dest)
        self._has_no_home = options["expanduser"] and dest.startswith(b"~")
        self._dest = os.path.abspath(dest)
        self._dry_run = options["dry_run"]
        self._delete = options["delete"]
        hash_name, secret, nothing = digests.choose(options["hashes"])
        self._digest = digests.digest_of(hash_name, secret)
        self._stream = digests.stream_of(hash_name)
        self._sum_of_nothing = nothing
        self._places = Places()
        self._temps = Temps(self._places)
        self._out = Outbox(send)
        self._pending: deque[Request] = deque()  # in the order in which the answers will come
        self._look: Look = list
        self._early: deque[object] = deque()  # those that were taken before their turn
        self._bases = self._bases_bytes = 0  # of requests that hold a copy of an old file
        # id -> identity of the old file that is compared with the new
        self._compared: dict[int, Identity] = {}
        self._refused = -1  # a file that cannot be written, of which pieces still come
        self._leaders: dict[int, Placed] = {}  # by id, for hard links
        self._unlinked: dict[int, Placed] = {}  # links that cannot be made, without a stand-in yet
        # id -> (whether a directory goes for it, or another kind, and what in there stays)
        self._replaced: dict[int, tuple[bool, Spare | None]] = {}
        self._keeps_modes, self._keeps_times = options["modes"], options["times"]
        self._owners = Owners(options["owners"], options["max_files"])
        mask = options["mask"]
        self._file_bits, self._directory_bits = 0o777 & ~mask, 0o1777 & ~mask  # kept of modes
        self._is_resumed = options["partial"]
        # tag -> name of what was left in the directory at hand
        self._leftovers: dict[bytes, bytes] = {}
        self._again: set[int] = set()  # what was asked for again, since it arrived damaged
        self._window_ns = options["window_ns"]  # by which equal times may differ
        # by which the file system rounds them; None: not known yet
        self._grain_ns: int | None = None
        self._times_refused = self._modes_refused = 0  # entries whose content is there
        self._total = 0  # bytes that are needed
        self._unchanged = self._settled = self._deleted = 0
        self._out.say(HELLO, hash_name, secret, nothing)

    def _incoming(self, fd: int, temp: bytes) -> Incoming:
        return Incoming(fd, temp, self._digest, self._stream, self._sum_of_nothing)

    # reports; a target in the coordinator's process overrides these

    def skip(self, entry: Named, reason: bytes) -> None:
        """Report that an entry could not be transferred."""
        self._out.say(NOTE, entry[1], reason)

    def plan(self, entry: Entry) -> None:
        """Report that a run that is not dry would make this."""
        self._out.plan(entry[1])

    def plan_deletion(self, path: bytes) -> None:
        """Report that a run that is not dry would delete this."""
        self._out.plan(path)

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        """Note what the source leaves out."""

    def _on_gone(self, code: int, reason: bytes) -> None:
        """End because the source is gone; only a worker says so."""
        raise Violation("the source is gone: %r" % (reason,))

    def _note(self, entry: Named, exc: Exception, what: bytes = b"") -> None:
        """Report why an entry was not transferred; raise ``Fatal`` if no other can be either."""
        reason = reason_of(exc)
        if isinstance(exc, OSError) and exc.errno in FATAL_ERRORS:
            raise Fatal(entry[1], exc.errno, reason)
        self.skip(entry, what + reason)

    @abstractmethod
    def _clear(self, directory: Directory, name: bytes, spare: Spare | None) -> None:
        """Remove a directory that is in the way."""

    def _place(self, entry: Entry, temp: bytes) -> None:
        """Give a temporary file its final name, after removing what may be removed for it."""
        directory, number, name = entry[:3]
        try:
            self._temps.keep(directory, temp, name)
        except OSError as exc:
            is_directory, spare = self._replaced.get(number, (False, None))
            if exc.errno not in IN_THE_WAY or not is_directory:
                raise
            self._clear(directory, name, spare)
            self._temps.keep(directory, temp, name)
        else:
            self._deleted += number in self._replaced

    # asking

    def _ask(self, code: int, entry: Entry, digest: bytes = b"") -> None:
        self._total += entry[4]
        if self._dry_run:
            self.plan(entry)
        else:
            self._pending.append((entry, None))
            self._out.ask(code, entry[1], digest)

    def _ask_with_digest(self, entry: Entry, path: bytes, where: Where) -> None:
        try:
            fd = os.open(path, O_OLD, **where)
            try:
                found = os.fstat(fd)
                content = os.read(fd, SMALL_MAX + 1) if stat.S_ISREG(found.st_mode) else None
            finally:
                os.close(fd)
        except OSError:  # unreadable; what comes replaces it
            content = None
        if content is None:
            self._ask(WANT, entry)
            return
        self._compared[entry[1]] = identity_of(found)
        self._ask(CHECK, entry, self._digest(content))

    # answers

    def _request(self, number: int) -> Request:
        if not self._pending or self._pending[0][0][1] != number:
            raise Violation("an answer that was not asked for, to %.100r" % (number,))
        return self._pending[0]

    def _opened(self, number: int) -> tuple[Entry, Incoming]:
        """Return the request that is being answered, for which a file was opened."""
        entry, incoming = self._request(number)
        if incoming is None or incoming.size < 0:
            raise Violation("content of entry %d, which was not opened" % number)
        return entry, incoming

    def _take_request(self) -> Request:
        """Take the request that is being answered from those that wait; return it."""
        entry, incoming = self._pending.popleft()
        self._compared.pop(entry[1], None)
        if incoming is not None:
            incoming.close()
            if incoming.base is not None:
                self._bases -= 1
                self._bases_bytes -= entry[4]
        return entry, incoming

    def _end_request(self, is_done: bool) -> None:
        entry, incoming = self._take_request()
        if is_done:
            self._out.done(entry[1])
        else:
            self._leaders.pop(entry[1], None)
            if incoming is not None:
                self._temps.drop(incoming.temp)

    def _leave(self) -> None:
        """Close the files that are still coming; keep what a later run wants, drop the rest."""
        while self._pending:
            _, incoming = self._pending.popleft()
            if incoming is not None:
                self._cut_off(incoming)
                incoming.close()
        self._temps.drop_all()

    def _cut_off(self, incoming: Incoming) -> None:
        """Cut to size what a later run wants, unless it is complete: we may be interrupted then."""
        if self._is_resumed and self._temps.has(incoming.temp, incoming.fd):
            try:
                self._temps.sums[incoming.temp] = incoming.cut_off()
            except OSError:
                pass  # what is there has no checksum then

    def _refuse(self, entry: Entry, exc: OSError) -> None:
        """Note that a file cannot be written; the rest of it is dropped as it arrives."""
        self._note(entry, exc)
        self._end_request(False)
        self._refused = entry[1]

    def _on_packed(self, number: int, offset: int, size: int, short: bytes) -> None:
        self._on_piece(number, offset, memoryview(unpacked(short, size)))

    def _on_files(
        self, ids: bytes, sizes: bytes, changed: Changes, blob: bytes, is_packed: bool
    ) -> None:  # fmt: skip
        """Write whole small files.  changed: {place: (mode, time)} of those not as announced."""
        ids_there, lengths = unpack_ids(ids), unpack_ids(sizes)
        blob = unpacked(blob, sum(lengths)) if is_packed else blob
        if len(ids_there) != len(lengths) or sum(lengths) != len(blob):
            raise Violation("not %d files in %d bytes" % (len(ids_there), len(blob)))
        if lengths and max(lengths) > SMALL_MAX:
            raise Violation("a small file of %d bytes" % max(lengths))
        view = memoryview(blob)
        start = 0
        for place, number in enumerate(ids_there):
            entry, incoming = self._request(number)
            self._check_growth(entry, lengths[place])
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            stop = start + lengths[place]
            try:
                self._write_small(entry, view[start:stop], mode & self._file_bits, mtime)
            except OSError as exc:
                self._note(entry, exc)
                self._end_request(False)
            else:
                if incoming is not None:  # it became small since it was announced
                    self._temps.drop(incoming.temp)
                self._end_request(True)
            start = stop
        self._out.data_done += len(blob) + 32 * len(ids_there)

    def _write_small(self, entry: Entry, data: Buffer, mode: int, mtime: int) -> None:
        directory = entry[0]
        fd, temp = self._temps.create(directory, mode)
        try:
            try:
                if len(data):
                    write_all(fd, data)
                self._seal(fd, entry, temp, mode, mtime)
            finally:
                os.close(fd)
            directory.settled = False
            self._place(entry, temp)
        except OSError:
            self._temps.drop(temp)
            raise

    def _create_large(self, entry: Entry, *version: int) -> tuple[int, bytes]:
        """Create the temporary file of a large one; a later run may use what has arrived.

        version: size and time of the source's file, if everything in it will be of one version.
        """
        tag = tag_of(entry[2], *version) if self._is_resumed else b""
        return self._temps.create(entry[0], self._mode_while_coming(entry), tag)

    def _mode_while_coming(self, entry: Entry) -> int:
        return 0o600 if self._keeps_modes else int(entry[3])  # the umask is applied to the latter

    def _seal(self, fd: int, entry: Entry, temp: bytes, mode: int, mtime: int) -> None:
        """Set time, owner and mode of a temporary file."""
        path, where = (fd, {}) if HAS_FDS else at(self._places.handle(entry[0]), temp)
        if self._keeps_times:
            self._set_time(path, where, mtime)
        found = os.fstat(fd)
        self._count_refused_time(entry[0], found, mtime)
        found = self._owners.give_open(entry[1], fd, found)
        if not self._keeps_modes:
            mode = self._mode_there(entry, found)
        if stat.S_IMODE(found.st_mode) != mode:
            self._set_mode_of(path, where, mode, fd)

    def _mode_there(self, entry: Entry, new: os.stat_result) -> int:
        """Return the mode of the file that is being replaced, or that of the new one."""
        path, where = at(self._places.handle(entry[0]), entry[2])
        try:
            old = os.lstat(path, **where)
        except OSError:
            old = new
        return stat.S_IMODE(old.st_mode if stat.S_ISREG(old.st_mode) else new.st_mode)

    def _set_time(self, path: int | bytes, where: Where, mtime: int) -> None:
        """Set a time.  If the host refuses, the content still counts; a second look reports it."""
        try:
            set_time(path, mtime, **where)
        except OSError as exc:
            if exc.errno not in REFUSALS:
                raise

    def _settle_time(self, directory: Directory, handle: Handle) -> os.stat_result:
        """Set a directory's time, and count it if it was refused; return what is found then.

        If other processes change the directory just then, the time is set again.  Finding the same
        wrong time twice need not mean a refusal: most kernels' clocks tick every few milliseconds.
        """
        mtime, found = directory.mtime, os.stat(handle)
        for _ in range(SETTLE_TRIES if self._keeps_times else 0):
            self._set_time(handle, {}, mtime)
            found = os.stat(handle)
            is_near = same_time(found, mtime) or abs(time_of(found) - mtime) < (self._grain_ns or 0)
            if is_near or self._times_refused:
                break
        self._count_refused_time(directory, found, mtime)
        return found

    def _set_mode_of(self, path: int | bytes, where: Where, mode: int, fd: int) -> None:
        """Set a mode, check through a descriptor that it took effect, and count it if not."""
        try:
            os.chmod(path, mode, **where)
        except OSError as exc:
            if exc.errno not in REFUSALS:
                raise
        self._count_refused_mode(os.fstat(fd), mode)

    def _count_refused_time(self, directory: Directory, found: os.stat_result, mtime: int) -> None:
        """Count a time that could not be set, unless the file system just rounds it."""
        difference = abs(time_of(found) - mtime)
        if difference == 0 or not self._keeps_times or same_time(found, mtime):
            return
        if difference < COARSE_NS:
            if self._grain_ns is None:
                self._grain_ns = self._find_grain(directory)
            if difference < self._grain_ns:
                return
        self._times_refused += 1

    def _count_refused_mode(self, found: os.stat_result, mode: int) -> None:
        if os.name != "nt":  # which has one bit of it, and says so of no other
            self._modes_refused += stat.S_IMODE(found.st_mode) != mode

    def _is_near(self, directory: Directory, found: os.stat_result, mtime: int) -> bool:
        """Return whether two times are the same as far as the target can store them."""
        difference = abs(time_of(found) - mtime)
        if difference <= self._window_ns:
            return True
        if difference >= COARSE_NS or self._dry_run:
            return False
        if self._grain_ns is None:
            self._grain_ns = self._find_grain(directory)
        return bool(difference < self._grain_ns)

    def _find_grain(self, directory: Directory) -> int:
        """Return the nanoseconds to which times are rounded where a directory is."""
        fd, temp = self._temps.create(directory, 0o600)
        try:
            path, where = (fd, {}) if HAS_FDS else at(self._places.handle(directory), temp)
            self._set_time(path, where, ODD_TIME_NS)
            difference = abs(time_of(os.fstat(fd)) - ODD_TIME_NS)
        finally:
            os.close(fd)
            self._temps.drop(temp)
            directory.settled = False
        if difference >= COARSE_NS:  # it does not let us set any time
            return 0
        grains = [10**power for power in range(1, 10)] + [COARSE_NS]
        return min([grain for grain in grains if grain > difference]) if difference else 0

    def _on_open(self, number: int, size: int, mode: int, mtime: int, how: int) -> None:
        entry, incoming = self._request(number)
        self._check_growth(entry, size)
        try:
            if incoming is None:
                fd, temp = self._create_large(entry, size, mtime)
                entry[0].settled = False
                incoming = self._incoming(fd, temp)
                self._pending[0] = entry, incoming
            elif incoming.is_own and (size, mtime) != (entry[4], entry[5]):  # another version
                version = (size, mtime) if how == WHOLE else ()
                tag = tag_of(entry[2], *version)
                incoming.temp = self._temps.take_over(entry[0], incoming.temp, tag)
            incoming.open(size, mode & self._file_bits, mtime, how)
        except OSError as exc:
            self._refuse(entry, exc)

    def _check_growth(self, entry: Entry, size: int) -> None:
        """Refuse a file that grew beyond what is allowed; only a pull does."""

    def _on_piece(self, number: int, offset: int, data: Buffer) -> None:
        self._out.data_done += len(data) + 32
        if number == self._refused:
            return
        entry, incoming = self._opened(number)
        try:
            incoming.piece(offset, data)
        except OSError as exc:
            self._refuse(entry, exc)

    def _on_close(self, number: int, proof: Proof) -> None:
        if number == self._refused:
            return
        entry, incoming = self._opened(number)
        try:
            if not incoming.is_whole(proof):
                self._ask_again(entry)
                return
            self._seal(incoming.fd, entry, incoming.temp, incoming.mode, incoming.mtime)
            self._place(entry, incoming.temp)
        except OSError as exc:
            self._refuse(entry, exc)
        else:
            self._end_request(True)

    def _ask_again(self, entry: Entry) -> None:
        """Ask for the whole file if its base changed meanwhile, or it arrived damaged."""
        if entry[1] in self._again:
            raise Violation("the content of entry %d failed its check twice" % entry[1])
        self._again.add(entry[1])
        self._without_base(entry)

    def _without_base(self, entry: Entry) -> None:
        """Ask for the whole file, in place of the request that is being answered."""
        leader = self._leaders.get(entry[1])
        self._end_request(False)
        if leader is not None:
            self._leaders[entry[1]] = leader
        self._total -= entry[4]
        self._ask(WANT, entry)

    def _on_same(self, ids: bytes, changed: Changes, proof: Proof) -> None:
        """Keep the content of old files; set their new modes and times."""
        for place, number in enumerate(unpack_ids(ids)):
            entry, incoming = self._request(number)
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            if number not in self._compared:
                raise Violation("SAME for entry %d, whose content nobody asked to compare" % number)
            if incoming is not None and proof != incoming.digest(bytes(incoming.digests)):
                self._ask_again(entry)
                continue
            try:
                if incoming is not None and incoming.is_own:
                    self._keep_own(entry, incoming, mode & self._file_bits, mtime)
                    self._end_request(True)
                    continue
                self._keep_content(entry, incoming)
                self._settle_file(entry, mode & self._file_bits, mtime)
            except OSError as exc:
                self._note(entry, exc)
            self._settled += 1
            self._end_request(True)

    def _settle_file(self, entry: Entry, mode: int, mtime: int) -> None:
        """Set time, owner and mode of the file that was compared, never of a link's target."""
        handle, name = self._places.handle(entry[0]), entry[2]
        fd = open_same(handle, name, self._compared[entry[1]])
        try:
            path, where = (fd, {}) if HAS_FDS else at(handle, name)
            if self._keeps_times:
                self._set_time(path, where, mtime)
            found = os.fstat(fd)
            self._count_refused_time(entry[0], found, mtime)
            found = self._owners.give_same(entry[1], handle, name, found)
            if self._keeps_modes and stat.S_IMODE(found.st_mode) != mode:
                self._set_mode_of(path, where, mode, fd)
        finally:
            os.close(fd)

    def _keep_own(self, entry: Entry, incoming: Incoming, mode: int, mtime: int) -> None:
        """Give its final name to a file that an earlier run left complete."""
        self._seal(incoming.fd, entry, incoming.temp, mode, mtime)
        self._place(entry, incoming.temp)

    def _keep_content(self, entry: Entry, incoming: Incoming | None) -> None:
        if incoming is None:
            return
        if incoming.base is None or incoming.base.st_nlink == 1:
            self._temps.drop(incoming.temp)
        else:  # the old file has other names, which must not get the new time
            incoming.check_copy()
            os.ftruncate(incoming.fd, incoming.base.st_size)
            self._place(entry, incoming.temp)
            self._compared[entry[1]] = identity_of(os.fstat(incoming.fd))

    def _on_fail(self, number: int, reason: bytes) -> None:
        if number in self._unlinked:
            del self._unlinked[number]
        elif number != self._refused:
            self._request(number)
            self._end_request(False)
