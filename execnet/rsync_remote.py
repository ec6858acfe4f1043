"""The target's half of RSync: turns what a source announces into files.

This file is shipped; it stands alone and keeps to what Python 2.7 and today's Python both
accept.  It trusts nobody: names are single components, a path is entered component by
component without following links, and every file is written under a temporary name and
renamed when it is whole.

All messages are tuples that start with a code.  The source announces entries in ``LIST``;
an entry's id is its place in the order of announcement.  The target asks for files with
``WANT`` (nothing to build on), ``CHECK`` (small, same size, here is my digest) and ``DELTA``
(large, here are digests of my blocks), and gets its answers in the order of its requests:
``FILES`` (many small ones), ``OPEN`` ``PIECE``... ``CLOSE`` (a large one), ``SAME`` or
``FAIL``.  ``ACK`` says how much was worked off, so that the source can bound what is on its
way.  Start reading at ``Target.run``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import sys
import time
from collections import OrderedDict, deque

try:
    from zlib import crc32
except ImportError:  # an interpreter that was built without it
    crc32 = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    channel: Any

# source to target
LIST, LIST_END, FILES, OPEN, PIECE, CLOSE, SAME, FAIL, INSTEAD, REMARK = range(1, 11)
# target to source
HELLO, ACK, WANT, CHECK, DELTA, DIGESTS, LISTED = range(20, 27)
DONE, NOTE, PLAN, NOLINK, END, FATAL = range(27, 33)
# kinds of entries; LEADER is a file that others are hard links to, ROOTED a link into the tree
FILE, LEADER, HARDLINK, SYMLINK, ROOTED, DIRECTORY = range(1, 7)
MORE, COMPLETE, INCOMPLETE = range(3)  # what follows a directory's entries

HASHES = ("blake2b", "md5")  # the first that both have
DIGEST_BYTES = 16
SMALL_MAX = 32 * 1024  # bytes of a file that travels with others, and not by blocks
PIECE_BYTES = 1024 * 1024
TEXT_MAX = 1000
DIGESTS_AT_ONCE = 4 * PIECE_BYTES  # bytes of a file whose digests go in one message
WRITE_BYTES = 256 * 1024  # at once; measured to be faster than more
ACK_BYTES = 256 * 1024
BASES_BYTES = 256 * 1024 * 1024  # of old files whose new versions are awaited, unless one alone
BASES_MAX = 8
HANDLES_MAX = 64  # directories that are kept open
PREFIX = b".execnet-rsync-"
STRANGE_TEMP_S = 24 * 3600.0  # how long another host's temporary file is left in peace

PY2 = sys.version_info[0] == 2
HAS_NS = hasattr(os.stat_result, "st_mtime_ns")
HAS_FDS = (
    os.name == "posix"
    and {os.chmod, os.mkdir, os.open, os.rename, os.stat, os.unlink, os.utime} <= getattr(os, "supports_dir_fd", set())
    and {os.listdir, os.utime} <= os.supports_fd
)
O_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
O_NEW = O_FILE | os.O_CREAT | os.O_EXCL | os.O_RDWR
O_OLD = O_FILE | os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
FATAL_ERRORS = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE") if hasattr(errno, name)
)
BAD_NAMES = frozenset([b"", b".", b".."])
SEP = os.sep.encode()


class Violation(Exception):
    """The source said something that the protocol, or the safety of this host, forbids."""


def new_hash(names: Any) -> Any:
    """Return (name, factory of 16-byte hashes), the first of ``names`` that is to be had."""
    for name in names:
        try:
            if name == "blake2b":
                hashlib.blake2b(digest_size=DIGEST_BYTES)
                return name, lambda data: hashlib.blake2b(data, digest_size=DIGEST_BYTES)
            if name == "md5":
                hashlib.md5()
                return name, hashlib.md5
        except (AttributeError, ValueError):  # too old, or forbidden on this host
            continue
    raise Violation("no hash in common: %r" % (names,))


def block_bytes(size: int) -> int:
    """Return the bytes of a block of a file of this size; a power of two, at most a piece."""
    block = 16 * 1024
    while size > block * 16384 and block < PIECE_BYTES:
        block *= 2
    return block


def pack_ids(ids: Any) -> bytes:
    return struct.pack("!%dQ" % len(ids), *ids)


def unpack_ids(blob: bytes) -> Any:
    return struct.unpack("!%dQ" % (len(blob) // 8), blob)


def numbers(code: str, value: Any, count: int) -> Any:
    """Return ``count`` numbers that came packed, or as a list because one was too large."""
    if isinstance(value, bytes):
        return struct.unpack("!%d%s" % (count, code), value)
    if len(value) != count or [item for item in value if not isinstance(item, INTEGERS)]:
        raise Violation("not %d numbers: %r" % (count, value))
    return value


INTEGERS = (int, long) if PY2 else int


class Directory(object):
    """A directory of the target.  ``existing`` holds the names in it, None before a look."""

    __slots__ = ("number", "parent", "name", "mode", "mtime") + (
        "broken", "existing", "fresh", "listed", "settled",
    )  # fmt: skip

    def __init__(
        self, number: int, parent: Any, name: bytes, mode: Any, mtime: int, fresh: bool
    ) -> None:  # fmt: skip
        self.number = number
        self.parent = parent
        self.name = name  # the root's is its whole path
        self.mode = mode  # None: not ours, its attributes stay
        self.mtime = mtime
        self.fresh = fresh
        self.existing: Any = set() if fresh else None
        self.listed = False  # all its entries were announced
        self.broken = False  # cannot be had; its entries are left out
        self.settled = False  # mode and time are as they should be

    def entry(self) -> Any:
        return self.parent, self.number, self.name


def path_of(directory: Any, name: bytes) -> bytes:
    """Return the path below the root of a name in a directory; b"" for the root itself."""
    if directory is None:
        return b""
    parts = [name]
    while directory.parent is not None:
        parts.append(directory.name)
        directory = directory.parent
    return b"/".join(reversed(parts))


class Places(object):
    """How directories of the target are reached: by open descriptors where those can be had.

    A handle is a descriptor or a path; either was reached without following a link below
    the root.
    """

    def __init__(self) -> None:
        self._handles: Any = OrderedDict()

    def handle(self, directory: Any) -> Any:
        handle = self._handles.get(directory)
        if handle is not None:
            return handle
        chain = []
        while directory is not None and handle is None:
            chain.append(directory)
            directory = directory.parent
            handle = self._handles.get(directory)
        for directory in reversed(chain):
            handle = self._enter(directory, handle)
        return handle

    def _enter(self, directory: Any, parent: Any) -> Any:
        if HAS_FDS:
            flags = O_OLD | os.O_DIRECTORY
            if parent is None:
                handle: Any = os.open(directory.name, flags & ~os.O_NOFOLLOW)
            else:
                handle = os.open(directory.name, flags, dir_fd=parent)
        else:
            handle = directory.name if parent is None else parent + SEP + directory.name
            if parent is not None and not stat.S_ISDIR(os.lstat(handle).st_mode):
                raise OSError(errno.ENOTDIR, "no directory any more")
        self._handles[directory] = handle
        if len(self._handles) > HANDLES_MAX:
            self._leave(self._handles.popitem(last=False)[1])
        return handle

    def _leave(self, handle: Any) -> None:
        if HAS_FDS:
            os.close(handle)

    def close(self) -> None:
        while self._handles:
            self._leave(self._handles.popitem()[1])


def at(handle: Any, name: bytes) -> Any:
    """Return (path, keyword arguments) that reach a name in a directory."""
    if HAS_FDS:
        return name, {"dir_fd": handle}
    return handle + SEP + name, {}


def names_in(handle: Any) -> Any:
    return {name if isinstance(name, bytes) else os.fsencode(name) for name in os.listdir(handle)}


def rename(handle: Any, old: bytes, new: bytes) -> None:
    if HAS_FDS:
        os.rename(old, new, src_dir_fd=handle, dst_dir_fd=handle)
    elif hasattr(os, "replace"):
        os.replace(handle + SEP + old, handle + SEP + new)
    else:
        os.rename(handle + SEP + old, handle + SEP + new)


def set_time(path: Any, mtime: int, **where: Any) -> None:
    if HAS_NS:
        os.utime(path, ns=(mtime, mtime), **where)
    else:
        os.utime(path, (mtime / 1e9, mtime / 1e9))


def same_time(found: Any, mtime: int) -> bool:
    if HAS_NS:
        return bool(found.st_mtime_ns == mtime)
    return abs(found.st_mtime - mtime / 1e9) < 2e-6  # all that this Python can tell and set


def write_all(fd: int, data: Any) -> None:
    written = os.write(fd, data[:WRITE_BYTES])
    while written < len(data):
        written += os.write(fd, data[written : written + WRITE_BYTES])


def read_full(fd: int, size: int) -> bytes:
    """Return ``size`` bytes; zeros for what was cut off meanwhile, which no proof will accept."""
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            return data.ljust(size, b"\0")
        data += more
    return data


def remove(handle: Any, name: bytes) -> int:
    """Remove a name and all that is below it; return how many names that were."""
    path, where = at(handle, name)
    if not stat.S_ISDIR(os.lstat(path, **where).st_mode):
        os.unlink(path, **where)
        return 1
    os.chmod(path, 0o700, **where)
    inner = os.open(name, O_OLD | os.O_DIRECTORY, dir_fd=handle) if HAS_FDS else path
    try:
        count = sum([remove(inner, child) for child in names_in(inner)])
    finally:
        if HAS_FDS:
            os.close(inner)
    os.rmdir(path, **where)
    return count + 1


def reason_of(exc: Any) -> bytes:
    text = exc.strerror or str(exc)
    if not isinstance(text, bytes):
        text = text.encode("utf-8", "replace")
    return bytes(text[:TEXT_MAX])


class Temps(object):
    """The temporary files of one run.  Names tell those of dead runs, which are swept."""

    def __init__(self, places: Places) -> None:
        host = os.uname()[1] if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
        host = host if isinstance(host, bytes) else host.encode("utf-8", "replace")
        self._host = new_hash(HASHES)[1](host).hexdigest()[:8].encode()
        self._stem = b"%s%s-%d-" % (PREFIX, self._host, os.getpid())
        self._places = places
        self._count = 0
        self._live: Any = {}

    def _next_name(self, directory: Any) -> bytes:
        self._count += 1
        name = self._stem + str(self._count).encode()
        self._live[name] = directory
        return name

    def create(self, directory: Any, mode: int) -> Any:
        """Return (descriptor, name) of a new file in a directory."""
        handle = self._places.handle(directory)
        while True:
            name = self._next_name(directory)
            path, where = at(handle, name)
            try:
                return os.open(path, O_NEW, mode, **where), name
            except OSError as exc:
                del self._live[name]
                if exc.errno != errno.EEXIST:
                    raise

    def make(self, directory: Any, maker: Any) -> bytes:
        """Call ``maker(path, **where)`` with a new name in a directory; return the name."""
        handle = self._places.handle(directory)
        while True:
            name = self._next_name(directory)
            path, where = at(handle, name)
            try:
                maker(path, **where)
                return name
            except OSError as exc:
                del self._live[name]
                if exc.errno != errno.EEXIST:
                    raise

    def keep(self, directory: Any, temp: bytes, name: bytes) -> None:
        """Give a temporary file its name; what has it now goes, a directory with its content."""
        handle = self._places.handle(directory)
        try:
            rename(handle, temp, name)
        except OSError as exc:
            if exc.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove(handle, name)
            rename(handle, temp, name)
        del self._live[temp]

    def drop(self, temp: bytes) -> None:
        directory = self._live.pop(temp)
        try:
            path, where = at(self._places.handle(directory), temp)
            os.unlink(path, **where)
        except OSError:
            pass  # the next run sweeps it

    def drop_all(self) -> None:
        for temp in list(self._live):
            self.drop(temp)

    def is_left_over(self, handle: Any, name: bytes) -> bool:
        """Tell whether a file was left by a run that is dead."""
        host, _, rest = name[len(PREFIX) :].partition(b"-")
        pid, _, count = rest.partition(b"-")
        if not name.startswith(PREFIX) or not (pid.isdigit() and count.isdigit()):
            return False
        if host == self._host and os.name == "posix":
            return not is_running(int(pid))
        path, where = at(handle, name)
        return time.time() - os.lstat(path, **where).st_mtime > STRANGE_TEMP_S


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno != errno.ESRCH
    except OverflowError:
        return False
    return True


class Incoming(object):
    """A large file that is being received under a temporary name.

    With a base, the old content is there already, and ``digests`` has its blocks' digests;
    what comes replaces blocks, and the digest of all digests proves the whole.
    """

    def __init__(self, fd: int, temp: bytes, new_digest: Any) -> None:
        self.fd = fd
        self.temp = temp
        self.block = 0  # bytes; 0: no base
        self.digests = bytearray()
        self._new_digest = new_digest
        self._torn: Any = set()  # blocks that a piece covers in part
        self._crc = 0
        self._end = 0  # of the last piece
        self.size = -1  # not opened
        self.is_base = False  # it had a base when it was asked for
        self.base_bytes = 0
        self.is_shared = False  # the base has other names, so it must not be changed in place
        self.mode = 0
        self.mtime = 0

    def open(self, size: int, mode: int, mtime: int, based: bool) -> None:
        if self.size >= 0 or size < 0 or (based and not self.block):
            raise Violation("a file was opened twice, or has no base, or %d bytes" % size)
        self.size, self.mode, self.mtime = size, mode, mtime
        if based:
            blocks = -(-size // self.block)
            self.digests = self.digests[: blocks * DIGEST_BYTES].ljust(blocks * DIGEST_BYTES, b"\0")
        elif self.block:
            self.block = 0
            os.ftruncate(self.fd, 0)

    def piece(self, offset: int, data: bytes) -> None:
        if not self._end <= offset <= offset + len(data) <= self.size:
            raise Violation("%d bytes at %d of a file of %d" % (len(data), offset, self.size))
        self._end = offset + len(data)
        os.lseek(self.fd, offset, os.SEEK_SET)
        write_all(self.fd, memoryview(data))
        if self.block:
            self._digest(offset, data)
        elif crc32 is not None:
            self._crc = crc32(data, self._crc)

    def _digest(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        for number in range(offset // self.block, -(-self._end // self.block)):
            start = number * self.block
            stop = min(start + self.block, self.size)
            if start < offset or stop > self._end:
                self._torn.add(number)
                continue
            self._store(number, view[start - offset : stop - offset])

    def _store(self, number: int, data: Any) -> None:
        self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = self._new_digest(data).digest()

    def is_whole(self, proof: Any) -> bool:
        """Set the length; tell whether the content is what the source read."""
        if os.fstat(self.fd).st_size != self.size:  # it ends in a hole, or was longer
            os.ftruncate(self.fd, self.size)
        if not self.block:
            return proof is None or crc32 is None or self._crc & 0xFFFFFFFF == proof
        for number in self._torn:
            os.lseek(self.fd, number * self.block, os.SEEK_SET)
            self._store(number, os.read(self.fd, self.block))
        return bool(self._new_digest(bytes(self.digests)).digest() == proof)


class Fatal(Exception):
    """Nothing more can be written: (entry id, errno, reason)."""


class Target(object):
    """The receiving end of one synchronisation; belongs to one thread.

    send: takes a message for the source.  options: ``dest`` (path), ``root`` (kind, mode,
    time), ``hashes`` in the order of the source's liking, ``delete``, ``dry_run``.
    """

    def __init__(self, send: Callable[[Any], object], options: dict[str, Any]) -> None:
        self._send = send
        self._delete = options["delete"]
        self._dry_run = options["dry_run"]
        hash_name, self._new_digest = new_hash(options["hashes"])
        self._places = Places()
        self._temps = Temps(self._places)
        self._units: Any = deque()  # announced and not yet looked at; an int acknowledges
        self._unit: Any = None  # the one that is being looked at
        self._directories: Any = {}
        self._unlisted = 0  # directories of which entries are still to come
        self._listing: Any = None  # the directory of which they come now
        self._seen: Any = set()  # names announced in it
        self._listed = self._told_total = False
        self._pending: Any = deque()  # requests, in the order in which answers will come
        self._bases = self._bases_bytes = 0  # requests that hold a temporary file
        self._leaders: Any = {}  # id -> (directory, name), for hard links
        self._hardlinks: Any = deque()  # to be made when all leaders are there
        self._unlinked: Any = {}  # links that cannot be made and have no stand-in yet
        self._inodes: Any = set()  # of old files with several names, when one was announced
        self._refused = -1  # a file that cannot be written, of which pieces still come
        self._asked: Any = []
        self._asked_digests: Any = []
        self._asked_code = WANT
        self._done: Any = []
        self._planned: Any = []
        self._list_done = self._data_done = self._told_list = self._told_data = 0
        self._total = self._unchanged = self._deleted = self._settled = 0
        self._makers = {
            FILE: self._on_file,
            LEADER: self._on_leader,
            HARDLINK: self._on_hardlink,
            SYMLINK: self._on_symlink,
            ROOTED: self._on_rooted,
            DIRECTORY: self._on_directory,
        }
        self._handlers = {
            LIST: self._on_list,
            LIST_END: self._on_list_end,
            FILES: self._on_files,
            OPEN: self._on_open,
            PIECE: self._on_piece,
            CLOSE: self._on_close,
            SAME: self._on_same,
            FAIL: self._on_fail,
            INSTEAD: self._on_instead,
            REMARK: self._on_remark,
        }
        self._base = os.path.abspath(options["dest"])
        self._root = options["root"]
        self._only_name: Any = None  # of a source that is a single file
        send((HELLO, hash_name, crc32 is not None))

    def run(self, receive: Callable[[], Any]) -> None:
        """Work until all that was announced is there; raises what ``receive`` raises."""
        try:
            self._make_root(*self._root)
            while not self._is_finished():
                message = receive()
                self._handlers[message[0]](*message[1:])
                self._work()
                self._flush()
            self._settle_directories()
            self._flush()
            self._send((END, self._unchanged, self._settled, self._deleted))
        except Fatal as exc:
            self._flush()
            self._send((FATAL,) + exc.args)
        finally:
            self._temps.drop_all()
            for request in self._pending:
                if request[-1] is not None:
                    os.close(request[-1].fd)
            self._places.close()

    def _is_finished(self) -> bool:
        if not self._listed or self._units or self._unit or self._unlisted or self._unlinked:
            return False
        if not self._told_total:
            self._told_total = True
            self._flush()
            self._send((LISTED, self._total))
        while self._hardlinks and not self._pending:
            self._link(*self._hardlinks.popleft())
            self._flush()
        return not self._pending

    # the root

    def _make_root(self, kind: int, mode: int, mtime: int) -> None:
        try:
            if kind == DIRECTORY:
                fresh = self._make_root_directory()
                root = Directory(0, None, self._base, mode & 0o777, mtime, fresh)
                found = None if fresh else os.stat(self._base)
                root.settled = found is not None and self._is_settled(root, found)
            else:
                parent, self._only_name = os.path.split(self._base)
                there = self._make_place_of_file(parent)
                root = Directory(0, None, parent, None, 0, False)
                root.existing = {self._only_name} if there else set()
        except OSError as exc:
            raise Fatal(0, exc.errno or 0, reason_of(exc))
        self._directories[0] = root
        self._unlisted = 1

    def _make_root_directory(self) -> bool:
        try:
            found = os.stat(self._base)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            found = None  # type: ignore[assignment]
        if found is not None and stat.S_ISDIR(found.st_mode):
            if found.st_mode & 0o700 != 0o700 and not self._dry_run:
                self._try_chmod(self._base, found.st_mode & 0o777 | 0o700, {})
            return False
        if not self._dry_run:
            if found is not None:
                os.unlink(self._base)
            os.makedirs(self._base)
        return True

    def _make_place_of_file(self, parent: bytes) -> bool:
        if os.path.isdir(self._base) and not self._dry_run:
            if self._delete and not os.path.islink(self._base):
                places = Places()
                try:
                    remove(places.handle(Directory(0, None, parent, None, 0, False)), self._only_name)
                finally:
                    places.close()
            else:
                os.rmdir(self._base)  # says why when there is something in it
        if not os.path.isdir(parent) and not self._dry_run:
            os.makedirs(parent)
        return os.path.lexists(self._base)

    # what is announced

    def _on_list(self, cost: int, units: Any) -> None:
        self._units.extend(units)
        self._units.append(cost)

    def _on_list_end(self) -> None:
        self._listed = True

    def _work(self) -> None:
        """Look at announced entries, until too many old files wait for their new content."""
        while self._bases < BASES_MAX and (self._bases_bytes < BASES_BYTES):
            if self._unit is None:
                if not self._units:
                    return
                unit = self._units.popleft()
                if not isinstance(unit, tuple):
                    self._list_done += unit
                    continue
                self._unit = self._look_at(*unit)
            if next(self._unit, None) is None:
                self._unit = None

    def _look_at(
        self, directory_id: int, first_id: int, blob: bytes, kinds: bytes, modes: Any, sizes: Any, times: Any,
        extras: Any, last: int,
    ) -> Iterator[bool]:  # fmt: skip
        directory = self._directories[directory_id]
        self._begin_listing(directory)
        names = blob.split(b"\0") if kinds else []
        count = len(names)
        modes, sizes, times = numbers("H", modes, count), numbers("q", sizes, count), numbers("q", times, count)
        extras = iter(extras)
        for place, kind in enumerate(bytearray(kinds)):
            name = names[place] if self._only_name is None else self._only_name
            self._check_name(name)
            entry = directory, first_id + place, name, modes[place] & 0o777, sizes[place], times[place]
            extra = next(extras) if kind in (HARDLINK, SYMLINK, ROOTED) else None
            there = not directory.broken and name in directory.existing
            self._try(self._makers[kind], entry, there, extra)
            yield True
        if last != MORE:
            self._end_listing(directory, last == COMPLETE)

    def _begin_listing(self, directory: Any) -> None:
        if directory is self._listing:
            return
        if self._listing is not None or directory.listed:
            raise Violation("entries of a directory that was announced before")
        self._listing = directory
        if directory.existing is None and not directory.broken:
            try:
                directory.existing = names_in(self._places.handle(directory))
            except OSError as exc:
                self._break(directory, exc)

    def _break(self, directory: Any, exc: Any) -> None:
        directory.broken = True
        self._note(directory.entry(), exc)

    def _check_name(self, name: bytes) -> None:
        if name in BAD_NAMES or b"/" in name or SEP in name or name in self._seen:
            raise Violation("not a name, or announced twice: %r" % (name,))
        if os.name == "nt" and b":" in name:
            raise Violation("not a name on Windows: %r" % (name,))
        self._seen.add(name)

    def _end_listing(self, directory: Any, complete: bool) -> None:
        if not directory.broken and directory.mode is not None and not directory.fresh:
            for name in directory.existing - self._seen:
                self._try_sweep(directory, name, complete)
        directory.listed = True
        directory.existing = None
        self._listing = None
        self._seen = set()
        self._unlisted -= 1

    def _try_sweep(self, directory: Any, name: bytes, complete: bool) -> None:
        try:
            handle = self._places.handle(directory)
            is_left_over = name.startswith(PREFIX) and self._temps.is_left_over(handle, name)
            if not is_left_over and not (self._delete and complete):
                return
            if self._dry_run:
                self._planned.append(path_of(directory, name))
                return
            directory.settled = False
            count = remove(handle, name)
            if not is_left_over:
                self._deleted += count
        except (OSError, RuntimeError) as exc:  # also nested deeper than can be followed
            self._note(directory.entry(), exc, b"deleting " + name + b": ")

    def _try(self, maker: Any, entry: Any, *args: Any) -> None:
        """Act on one entry; what the host refuses is noted and the rest goes on."""
        try:
            if not entry[0].broken:
                maker(entry, *args)
                return
        except (OSError, RuntimeError) as exc:
            self._note(entry, exc)
        if maker == self._on_directory:  # its entries will come all the same
            self._add_directory(entry, True).broken = True

    def _note(self, entry: Any, exc: Any, what: bytes = b"") -> None:
        """Tell why an entry cannot be had; raise ``Fatal`` if no other can be either."""
        reason = reason_of(exc)
        if getattr(exc, "errno", None) in FATAL_ERRORS:
            raise Fatal(entry[1], exc.errno, reason)
        self.skip(entry, what + reason)

    def skip(self, entry: Any, reason: bytes) -> None:
        """Tell the source that an entry cannot be had; to be overridden."""
        self._flush()
        self._send((NOTE, entry[1], reason))

    def plan(self, entry: Any) -> None:
        """Tell what a run that is not dry would do; to be overridden."""
        self._planned.append(entry[1])

    def _on_directory(self, entry: Any, there: bool, extra: Any = None) -> None:
        parent, name = entry[0], entry[2]
        if not self._dry_run or there:
            path, where = at(self._places.handle(parent), name)
        found = os.lstat(path, **where) if there else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            directory = self._add_directory(entry, False)
            directory.settled = self._is_settled(directory, found)
            if found.st_mode & 0o700 != 0o700 and not self._dry_run:
                directory.settled = False
                self._try_chmod(path, found.st_mode & 0o777 | 0o700, where)
            return
        if self._dry_run:
            self._add_directory(entry, True)
            self.plan(entry)
            return
        parent.settled = False
        if found is not None:
            os.unlink(path, **where)
        os.mkdir(path, 0o700, **where)
        self._add_directory(entry, True)

    def _add_directory(self, entry: Any, fresh: bool) -> Any:
        parent, number, name, mode, _, mtime = entry
        if number in self._directories:
            raise Violation("directory %d was announced twice" % number)
        directory = Directory(number, parent, name, mode, mtime, fresh)
        self._directories[number] = directory
        self._unlisted += 1
        return directory

    def _is_settled(self, directory: Any, found: Any) -> bool:
        is_mode = stat.S_IMODE(found.st_mode) == directory.mode
        return is_mode and same_time(found, directory.mtime)

    def _try_chmod(self, path: bytes, mode: int, where: Any) -> None:
        try:
            os.chmod(path, mode, **where)
        except OSError:
            pass  # what needs it will fail with a better message

    def _on_leader(self, entry: Any, there: bool, extra: Any = None) -> None:
        self._leaders[entry[1]] = entry[0], entry[2]
        self._on_file(entry, there)

    def _on_file(self, entry: Any, there: bool, extra: Any = None) -> None:
        directory, number, name, mode, size, mtime = entry
        if not there:
            self._ask(WANT, entry)
            return
        path, where = at(self._places.handle(directory), name)
        found = os.lstat(path, **where)
        is_same_size = found.st_size == size
        if not stat.S_ISREG(found.st_mode):
            self._ask(WANT, entry)
        elif is_same_size and same_time(found, mtime) and self._is_alone(found):
            if stat.S_IMODE(found.st_mode) != mode:
                self._set_mode(entry, found)
            self._unchanged += 1
        elif size > SMALL_MAX and found.st_size > SMALL_MAX and not self._dry_run:
            self._ask_for_blocks(entry, path, where)
        elif is_same_size and size <= SMALL_MAX and found.st_nlink == 1:
            self._ask_with_digest(entry, path, where)
        else:
            self._ask(WANT, entry)

    def _is_alone(self, found: Any) -> bool:
        """Tell whether no other announced name is the same file."""
        if found.st_nlink == 1:
            return True
        inode = found.st_dev, found.st_ino
        alone = inode not in self._inodes
        self._inodes.add(inode)
        return alone

    def _set_mode(self, entry: Any, found: Any) -> None:
        if found.st_nlink > 1:
            self._ask(WANT, entry)
            self._unchanged -= 1
            return
        self._settled += 1
        if self._dry_run:
            self.plan(entry)
            return
        path, where = at(self._places.handle(entry[0]), entry[2])
        os.chmod(path, entry[3], **where)

    # asking

    def _ask(self, code: int, entry: Any, incoming: Any = None, digest: bytes = b"") -> None:
        self._total += entry[4]
        if self._dry_run:
            self.plan(entry)
            return
        self._pending.append((entry, incoming))
        if self._asked_code != code or len(self._asked) >= 1000:
            self._flush_asked()
        self._asked_code = code
        self._asked.append(entry[1])
        self._asked_digests.append(digest)

    def _flush_asked(self) -> None:
        if self._asked_code == WANT and self._asked:
            self._send((WANT, pack_ids(self._asked)))
        elif self._asked:
            self._send((CHECK, pack_ids(self._asked), b"".join(self._asked_digests)))
        self._asked, self._asked_digests = [], []

    def _flush(self) -> None:
        self._flush_asked()
        if self._done:
            self._send((DONE, pack_ids(self._done)))
            self._done = []
        if self._planned:
            self._send((PLAN, self._planned))
            self._planned = []
        if self._list_done > self._told_list or self._data_done - self._told_data >= ACK_BYTES:
            self._told_list, self._told_data = self._list_done, self._data_done
            self._send((ACK, self._list_done, self._data_done))

    def _ask_with_digest(self, entry: Any, path: bytes, where: Any) -> None:
        try:
            fd = os.open(path, O_OLD, **where)
            try:
                content = os.read(fd, SMALL_MAX + 1)
            finally:
                os.close(fd)
        except OSError:  # unreadable; what comes replaces it
            self._ask(WANT, entry)
            return
        self._ask(CHECK, entry, None, self._new_digest(content).digest())

    def _ask_for_blocks(self, entry: Any, path: bytes, where: Any) -> None:
        """Send the digests of an old file's blocks while it is copied to a temporary one."""
        try:
            old = os.open(path, O_OLD, **where)
        except OSError:
            self._ask(WANT, entry)
            return
        try:
            found = os.fstat(old)
            fd, temp = self._temps.create(entry[0], 0o600)
            entry[0].settled = False
            incoming = Incoming(fd, temp, self._new_digest)
            incoming.block, incoming.is_base = block_bytes(found.st_size), True
            incoming.base_bytes, incoming.is_shared = found.st_size, found.st_nlink > 1
            self._flush_asked()
            self._total += entry[4]
            self._pending.append((entry, incoming))
            self._bases += 1
            self._bases_bytes += entry[4]
            self._send((DELTA, entry[1], found.st_size))
            self._send_digests(entry[1], old, incoming, min(found.st_size, entry[4]), found)
        finally:
            os.close(old)

    def _send_digests(self, number: int, old: int, incoming: Incoming, size: int, found: Any) -> None:
        """Read, copy and digest in one go, so that what is proved later is what was copied."""
        block, digests, told = incoming.block, incoming.digests, 0
        is_sparse = getattr(found, "st_blocks", 1 << 60) * 512 < found.st_size
        position = 0
        while position < size:
            data = read_full(old, min(PIECE_BYTES, size - position))
            view = memoryview(data)
            for start in range(0, len(data), block):
                digests += self._new_digest(view[start : start + block]).digest()
            if is_sparse and data.count(b"\0") == len(data):
                os.lseek(incoming.fd, len(data), os.SEEK_CUR)
            else:
                write_all(incoming.fd, view)
            position += len(data)
            if len(digests) - told >= DIGESTS_AT_ONCE // block * DIGEST_BYTES or position >= size:
                self._send((DIGESTS, number, bytes(digests[told:])))
                told = len(digests)

    # answers

    def _request(self, number: int) -> Any:
        if not self._pending or self._pending[0][0][1] != number:
            raise Violation("an answer that was not asked for, to %r" % (number,))
        return self._pending[0]

    def _end_request(self, done: bool) -> None:
        entry, incoming = self._pending.popleft()
        if incoming is not None:
            os.close(incoming.fd)
            if incoming.is_base:
                self._bases -= 1
                self._bases_bytes -= entry[4]
        if done:
            self._done.append(entry[1])
        else:
            self._leaders.pop(entry[1], None)
            if incoming is not None:
                self._temps.drop(incoming.temp)

    def _on_files(self, ids: bytes, sizes: bytes, changed: Any, blob: bytes) -> None:
        """Write whole small files.  changed: {place: (mode, time)} of those not as announced."""
        if len(ids) != len(sizes):
            raise Violation("%d ids and %d sizes" % (len(ids) // 8, len(sizes) // 8))
        view = memoryview(blob)
        start = 0
        for place, (number, size) in enumerate(zip(unpack_ids(ids), unpack_ids(sizes))):
            entry, incoming = self._request(number)
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            try:
                self._write_small(entry[0], entry[2], view[start : start + size], mode & 0o777, mtime)
            except OSError as exc:
                self._note(entry, exc)
                self._end_request(False)
            else:
                if incoming is not None:  # it has become small since it was announced
                    self._temps.drop(incoming.temp)
                self._end_request(True)
            start += size
            if start > len(blob):
                raise Violation("files of more bytes than came")
        self._data_done += len(blob) + 32 * (len(ids) // 8)

    def _write_small(self, directory: Any, name: bytes, data: Any, mode: int, mtime: int) -> None:
        fd, temp = self._temps.create(directory, mode)
        try:
            try:
                if len(data):
                    write_all(fd, data)
                self._seal(fd, directory, temp, mode, mtime)
            finally:
                os.close(fd)
            directory.settled = False
            self._temps.keep(directory, temp, name)
        except OSError:
            self._temps.drop(temp)
            raise

    def _seal(self, fd: int, directory: Any, temp: bytes, mode: int, mtime: int) -> None:
        """Set time and mode of a temporary file."""
        if HAS_FDS:
            os.utime(fd, ns=(mtime, mtime))
            if os.fstat(fd).st_mode & 0o7777 != mode:
                os.fchmod(fd, mode)
            return
        path, where = at(self._places.handle(directory), temp)
        set_time(path, mtime, **where)
        os.chmod(path, mode, **where)

    def _on_open(self, number: int, size: int, mode: int, mtime: int, based: bool) -> None:
        entry, incoming = self._request(number)
        try:
            if incoming is None:
                entry[0].settled = False
                fd, temp = self._temps.create(entry[0], 0o600)
                incoming = Incoming(fd, temp, self._new_digest)
                self._pending[0] = entry, incoming
            incoming.open(size, mode & 0o777, mtime, based)
        except OSError as exc:
            self._refuse(entry, exc)

    def _refuse(self, entry: Any, exc: Any) -> None:
        """Note that a file cannot be written; what is still sent of it is dropped."""
        self._note(entry, exc)
        self._end_request(False)
        self._refused = entry[1]

    def _on_piece(self, number: int, offset: int, data: bytes) -> None:
        self._data_done += len(data) + 32
        if number == self._refused:
            return
        entry, incoming = self._request(number)
        try:
            incoming.piece(offset, data)
        except OSError as exc:
            self._refuse(entry, exc)

    def _on_close(self, number: int, proof: Any) -> None:
        if number == self._refused:
            return
        entry, incoming = self._request(number)
        directory, _, name = entry[:3]
        try:
            if not incoming.is_whole(proof):
                self._end_request(False)
                self._ask(WANT, entry)  # all of it; its base changed, or the line is faulty
                self._total -= entry[4]
                return
            self._seal(incoming.fd, directory, incoming.temp, incoming.mode, incoming.mtime)
            self._temps.keep(directory, incoming.temp, name)
        except OSError as exc:
            self._refuse(entry, exc)
            return
        self._end_request(True)

    def _on_same(self, ids: bytes, changed: Any) -> None:
        """Keep the content of old files, set what else is new of them."""
        for place, number in enumerate(unpack_ids(ids)):
            entry, incoming = self._request(number)
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            try:
                if incoming is not None and incoming.is_shared:
                    os.ftruncate(incoming.fd, incoming.base_bytes)
                    self._temps.keep(entry[0], incoming.temp, entry[2])
                elif incoming is not None:
                    self._temps.drop(incoming.temp)
                path, where = at(self._places.handle(entry[0]), entry[2])
                set_time(path, mtime, **where)
                if stat.S_IMODE(os.lstat(path, **where).st_mode) != mode & 0o777:
                    os.chmod(path, mode & 0o777, **where)
            except OSError as exc:
                self._note(entry, exc)
            self._settled += 1
            self._end_request(True)

    def _on_fail(self, number: int, reason: bytes) -> None:
        if number in self._unlinked:
            del self._unlinked[number]
        elif number != self._refused:
            self._request(number)
            self._end_request(False)

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        """Take note of what the source leaves out; ``RSync.pull`` overrides this."""

    # links

    def _on_rooted(self, entry: Any, there: bool, text: bytes) -> None:
        self._on_symlink(entry, there, self._base + text)

    def _on_symlink(self, entry: Any, there: bool, text: bytes) -> None:
        directory, number, name, _, _, mtime = entry
        path, where = at(self._places.handle(directory), name) if there else (b"", {})
        found = os.lstat(path, **where) if there else None
        if found is not None and stat.S_ISLNK(found.st_mode) and os.readlink(path, **where) == text:
            self._unchanged += 1
            if HAS_NS and found.st_mtime_ns != mtime:
                self._set_link_time(path, mtime, where)
            return
        if self._dry_run:
            self.plan(entry)
            return
        try:
            temp = self._temps.make(directory, lambda path, **where: os.symlink(text, path, **where))
        except (OSError, NotImplementedError, AttributeError):
            self._unlinked[number] = directory, name
            self._flush()
            self._send((NOLINK, number))
            return
        directory.settled = False
        path, where = at(self._places.handle(directory), temp)
        self._set_link_time(path, mtime, where)
        self._temps.keep(directory, temp, name)

    def _set_link_time(self, path: bytes, mtime: int, where: Any) -> None:
        if not HAS_NS or os.utime not in os.supports_follow_symlinks:
            return
        try:
            os.utime(path, ns=(mtime, mtime), follow_symlinks=False, **where)
        except (OSError, NotImplementedError):
            pass  # a link's time is for show

    def _on_instead(self, number: int, kind: int, new_number: int, mode: int, size: int, mtime: int) -> None:
        """Take a file or directory in place of a link that cannot be made."""
        directory, name = self._unlinked.pop(number)
        entry = directory, new_number, name, mode & 0o777, size, mtime
        if kind not in (FILE, DIRECTORY):
            raise Violation("kind %r in place of a link" % (kind,))
        try:
            path, where = at(self._places.handle(directory), name)
            os.lstat(path, **where)
            there = True
        except OSError:
            there = False
        self._try(self._makers[kind], entry, there, None)

    def _on_hardlink(self, entry: Any, there: bool, leader: int) -> None:
        self._hardlinks.append((entry, there, leader))

    def _link(self, entry: Any, there: bool, leader: int) -> None:
        """Make a hard link to a file that is there by now, or ask for the content."""
        directory, number, name = entry[:3]
        try:
            source, source_name = self._leaders[leader]
            old, where = at(self._places.handle(source), source_name)
            first = os.lstat(old, **where)
            if there:
                path, where = at(self._places.handle(directory), name)
                found = os.lstat(path, **where)
                if (found.st_dev, found.st_ino) == (first.st_dev, first.st_ino):
                    self._unchanged += 1
                    return
            if self._dry_run:
                self.plan(entry)
                return
            temp = self._temps.make(directory, lambda path, **where: self._make_link(source, source_name, path, where))
            directory.settled = False
            self._temps.keep(directory, temp, name)
            self._settled += 1
        except (OSError, KeyError, AttributeError, NotImplementedError):
            self._try(self._on_file, entry, there)

    def _make_link(self, source: Any, name: bytes, path: bytes, where: Any) -> None:
        old, old_where = at(self._places.handle(source), name)
        if where:
            handle = where["dir_fd"]
            os.link(old, path, src_dir_fd=old_where["dir_fd"], dst_dir_fd=handle, follow_symlinks=False)
        else:
            os.link(old, path)

    # the end

    def _settle_directories(self) -> None:
        """Set modes and times of directories, innermost first."""
        for number in sorted(self._directories, reverse=True):
            directory = self._directories[number]
            if directory.settled or directory.broken or directory.mode is None or self._dry_run:
                continue
            try:
                handle = self._places.handle(directory)
                set_time(handle, directory.mtime)
                os.chmod(handle, directory.mode)
            except OSError as exc:
                self._note(directory.entry(), exc)


def main(channel: Any) -> None:
    """Serve one source: the first item tells what it wants, then its messages follow."""
    Target(channel.send, channel.receive()).run(channel.receive)


if __name__ == "__channelexec__":
    main(channel)
