"""The target's half of RSync: turns what a source announces into files.

This file is shipped; it stands alone and keeps to what Python 2.7 and today's Python both
accept.  It trusts nobody: names are single components, a path is entered component by
component without following links, and every file is written under a temporary name and
renamed when it is whole.

Messages are tuples that start with a code, or bytes, which are a piece of a large file.  The
source announces entries in ``LIST``; an entry's id is its place in the order of announcement.
The target asks for files with ``WANT`` (nothing to build on), ``CHECK`` (small, same size,
here is my digest) and ``DELTA`` (large, ``DIGESTS`` of my blocks follow), and gets its answers
in the order of its requests: ``FILES`` (many small ones), ``OPEN``, bytes, ``CLOSE`` (a large
one), ``SAME`` or ``FAIL``.  ``ACK`` says how much was worked off, so that the source can bound
what is on its way.  For a link that cannot be made, ``NOLINK`` asks for a copy, which comes as
``INSTEAD``.  Start reading at ``Target.run``.
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

# ---------------------------------------------------------------- the wire

# source to target
LIST, LIST_END, FILES, OPEN, CLOSE, SAME, FAIL, INSTEAD, REMARK = range(1, 10)
# target to source
HELLO, ACK, WANT, CHECK, DELTA, DIGESTS, LISTED = range(20, 27)
DONE, NOTE, PLAN, NOLINK, END, FATAL = range(27, 33)
# kinds of entries; LEADER is a file that others are hard links to, ROOTED a link into the tree
FILE, LEADER, HARDLINK, SYMLINK, ROOTED, DIRECTORY = range(1, 7)
MORE, COMPLETE, INCOMPLETE = range(3)  # what follows a directory's entries

# blake2b where both have it; sha256 where both compute that faster, with instructions of the
# processor, or one is too old for blake2b; md5 where a host has neither
HASHES = ("blake2b", "sha256", "md5")
DIGEST_BYTES = 16  # kept of each digest
SMALL_MAX = 32 * 1024  # bytes of a file that travels with others, and not by blocks
PIECE_BYTES = 1024 * 1024
BLOCKS_MAX = 2 * 1024 * 1024  # of a file that is compared; larger ones are sent whole
TEXT_MAX = 1000
PIECE = struct.Struct("!QQ")  # id and offset; a message of bytes is a piece, with content behind

# ---------------------------------------------------------------- this host

DIGESTS_AT_ONCE = 4 * PIECE_BYTES  # bytes of a file whose digests go in one message
WRITE_BYTES = 256 * 1024  # at once; measured to be faster than more
ACK_BYTES = 256 * 1024
ASKED_MAX = 1000  # requests in one message
BASES_BYTES = 256 * 1024 * 1024  # of old files whose new versions are awaited, unless one alone
BASES_MAX = 8
HANDLES_MAX = 64  # directories that are kept open
PREFIX = b".execnet-rsync-"
STRANGE_TEMP_S = 24 * 3600.0  # how long another host's temporary file is left in peace

PY2 = sys.version_info[0] == 2
INTEGERS = (int, long) if PY2 else int  # type: ignore[name-defined]
HAS_NS = hasattr(os.stat_result, "st_mtime_ns")
HAS_FDS = (
    os.name == "posix"
    and {os.chmod, os.mkdir, os.open, os.rename, os.stat, os.unlink, os.utime}
    <= getattr(os, "supports_dir_fd", set())
    and {os.listdir, os.utime} <= os.supports_fd
)
O_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
O_NEW = O_FILE | os.O_CREAT | os.O_EXCL | os.O_RDWR
O_OLD = O_FILE | os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
# behind these there is no use in trying the next file
FATAL_NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE")
FATAL_ERRORS = frozenset([getattr(errno, name) for name in FATAL_NAMES if hasattr(errno, name)])
BAD_NAMES = frozenset([b"", b".", b".."])
SEP = os.sep.encode()

clock = getattr(time, "perf_counter", time.time)


class Violation(Exception):
    """The source said something that the protocol, or the safety of this host, forbids."""


class Fatal(Exception):
    """Nothing more can be written: (entry id, errno, reason)."""


# ---------------------------------------------------------------- numbers, digests, texts


def hash_cost(name: str) -> Any:
    """Return the seconds that some data takes, None if there is no such hash here."""
    data = b"x" * 65536
    try:
        digest = digest_function(name)
        digest(data)  # the first call may load a library
        started = clock()
        digest(data)
        return max(clock() - started, 1e-9)
    except (AttributeError, ValueError):  # too old, or forbidden on this host
        return None


def digest_function(name: Any) -> Any:
    """Return a function from data to its digest."""
    if name not in HASHES:
        raise Violation("no such hash: %.100r" % (name,))
    if name == "blake2b":
        return lambda data: hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
    new = getattr(hashlib, name)
    return lambda data: new(data).digest()[:DIGEST_BYTES]


def choose_hash(source_costs: Any) -> str:
    """Return the hash that is fastest for the slower of both; md5 if there is no other."""
    costs = {name: (hash_cost(name), source_costs.get(name)) for name in HASHES}
    common = [(max(pair), name) for name, pair in costs.items() if all(pair)]
    strong = [item for item in common if item[1] != "md5"]
    if not common:
        raise Violation("no hash in common: %.200r" % (source_costs,))
    return min(strong or common)[1]


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
        raise Violation("not %d numbers: %.200r" % (count, value))
    return value


def reason_of(exc: Any) -> bytes:
    """Return what a message says of an error."""
    text = getattr(exc, "strerror", None) or str(exc)
    if not isinstance(text, bytes):
        text = text.encode("utf-8", "replace")
    return bytes(text[:TEXT_MAX])


# ---------------------------------------------------------------- directories and names


class Directory(object):
    """A directory of the target.  ``existing`` holds the names in it, None before a look."""

    __slots__ = (
        "broken", "existing", "fresh", "listed", "mode", "mtime", "name", "number", "parent",
        "settled",
    )  # fmt: skip

    def __init__(self, number: int, parent: Any, name: bytes, mode: Any, mtime: int) -> None:
        self.number = number
        self.parent = parent
        self.name = name  # the root's is its whole path
        self.mode = mode  # None: not ours, its attributes stay
        self.mtime = mtime
        self.existing: Any = None
        self.fresh = False  # made by this run
        self.listed = False  # all its entries were announced
        self.broken = False  # cannot be had; its entries are left out
        self.settled = False  # mode and time are as they should be

    def entry(self) -> Any:
        """Return what stands for it where an entry is wanted."""
        return self.parent, self.number, self.name

    def is_like(self, found: Any) -> bool:
        """Tell whether mode and time are as they should be."""
        return stat.S_IMODE(found.st_mode) == self.mode and same_time(found, self.mtime)


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
        """Return the handle of a directory; OSError if it is none any more."""
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
    return {
        name if isinstance(name, bytes) else os.fsencode(name) for name in os.listdir(handle)
    }  # fmt: skip


def rename(handle: Any, old: bytes, new: bytes) -> None:
    if HAS_FDS:
        os.rename(old, new, src_dir_fd=handle, dst_dir_fd=handle)
    elif hasattr(os, "replace"):
        os.replace(handle + SEP + old, handle + SEP + new)
    else:
        os.rename(handle + SEP + old, handle + SEP + new)


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


# ---------------------------------------------------------------- times and content


def set_time(path: Any, mtime: int, **where: Any) -> None:
    if HAS_NS:
        os.utime(path, ns=(mtime, mtime), **where)
    else:
        os.utime(path, (mtime / 1e9, mtime / 1e9))


def same_time(found: Any, mtime: int) -> bool:
    if HAS_NS:
        return bool(found.st_mtime_ns == mtime)
    return bool(abs(found.st_mtime - mtime / 1e9) < 2e-6)  # all that this Python can tell


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


class Temps(object):
    """The temporary files of one run.  Names tell those of dead runs, which are swept."""

    def __init__(self, places: Places) -> None:
        host: Any = os.uname()[1] if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
        code = 0
        for byte in bytearray(host if isinstance(host, bytes) else host.encode("utf-8", "replace")):
            code = (code * 31 + byte) % 2**32
        self._host = b"%08x" % code
        self._stem = b"%s%s-%d-" % (PREFIX, self._host, os.getpid())
        self._places = places
        self._count = 0
        self._live: Any = {}  # name -> directory

    def make(self, directory: Any, maker: Any) -> Any:
        """Call ``maker(path, **where)`` with a new name; return (what it returns, the name)."""
        handle = self._places.handle(directory)
        while True:
            self._count += 1
            name = self._stem + str(self._count).encode()
            path, where = at(handle, name)
            self._live[name] = directory  # before it is made, so that no end loses it
            try:
                return maker(path, **where), name
            except OSError as exc:
                del self._live[name]
                if exc.errno != errno.EEXIST:
                    raise

    def create(self, directory: Any, mode: int) -> Any:
        """Return (descriptor, name) of a new file in a directory."""
        return self.make(directory, lambda path, **where: os.open(path, O_NEW, mode, **where))

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
        return bool(time.time() - os.lstat(path, **where).st_mtime > STRANGE_TEMP_S)


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

    def __init__(self, fd: int, temp: bytes, digest: Any) -> None:
        self.fd = fd
        self.temp = temp
        self.base: Any = None  # status of the old file, if there is one to build on
        self.block = 0  # bytes; 0: what comes is the whole file
        self.digests = bytearray()
        self._digest = digest
        self._torn: Any = set()  # blocks that a piece covers in part
        self._crc = 0
        self._end = 0  # of the last piece
        self.size = -1  # not opened
        self.mode = 0
        self.mtime = 0

    def open(self, size: int, mode: int, mtime: int, based: bool) -> None:
        if self.size >= 0 or size < 0 or (based and not self.block):
            raise Violation("a file was opened twice, or has no base, or %r bytes" % (size,))
        self.size, self.mode, self.mtime = size, mode & 0o777, mtime
        if based:
            blocks = -(-size // self.block)
            if blocks > BLOCKS_MAX:
                raise Violation("a file of %d blocks" % blocks)
            kept = self.digests[: blocks * DIGEST_BYTES]
            self.digests = kept.ljust(blocks * DIGEST_BYTES, b"\0")
        elif self.block:
            self.block = 0
            os.ftruncate(self.fd, 0)

    def piece(self, offset: int, data: Any) -> None:
        if not self._end <= offset <= offset + len(data) <= self.size:
            raise Violation("%d bytes at %d of a file of %d" % (len(data), offset, self.size))
        self._end = offset + len(data)
        os.lseek(self.fd, offset, os.SEEK_SET)
        write_all(self.fd, data)
        if self.block:
            self._note_digests(offset, data)
        elif crc32 is not None:
            self._crc = crc32(data.tobytes() if PY2 else data, self._crc)

    def _note_digests(self, offset: int, data: Any) -> None:
        for number in range(offset // self.block, -(-self._end // self.block)):
            start = number * self.block
            stop = min(start + self.block, self.size)
            if start < offset or stop > self._end:
                self._torn.add(number)
            else:
                self._store(number, data[start - offset : stop - offset])

    def _store(self, number: int, data: Any) -> None:
        start = number * DIGEST_BYTES
        self.digests[start : start + DIGEST_BYTES] = self._digest(data)

    def is_whole(self, proof: Any) -> bool:
        """Set the length; tell whether the content is what the source read."""
        if os.fstat(self.fd).st_size != self.size:  # it ends in a hole, or was longer
            os.ftruncate(self.fd, self.size)
        if not self.block:
            return proof is None or crc32 is None or self._crc & 0xFFFFFFFF == proof
        for number in self._torn:
            os.lseek(self.fd, number * self.block, os.SEEK_SET)
            self._store(number, os.read(self.fd, self.block))
        return bool(self._digest(bytes(self.digests)) == proof)


# ---------------------------------------------------------------- the target


class Outbox(object):
    """What a target has to say, gathered into few messages.  ``send`` takes each."""

    def __init__(self, send: Callable[[Any], object]) -> None:
        self._send = send
        self._code = WANT
        self._ids: Any = []  # asked for with this code
        self._digests: Any = []
        self._done: Any = []
        self._plan: Any = []
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

    def plan(self, item: Any) -> None:
        self._plan.append(item)

    def say(self, *message: Any) -> None:
        """Send a message behind all that was gathered before."""
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


class Target(object):
    """The receiving end of one synchronisation; belongs to one thread.

    send: takes a message for the source.  options: ``dest`` (path), ``root`` (kind, mode,
    time), ``hashes`` with what they cost the source, ``delete``, ``dry_run``.

    An entry is (directory, id, name, mode, size, time).  A request is (entry, incoming), with
    an ``Incoming`` if there is a temporary file for it already.
    """

    def __init__(self, send: Callable[[Any], object], options: dict[str, Any]) -> None:
        self._dest = os.path.abspath(options["dest"])
        self._root = options["root"]
        self._delete = options["delete"]
        self._dry_run = options["dry_run"]
        hash_name = choose_hash(options["hashes"])
        self._digest = digest_function(hash_name)
        self._places = Places()
        self._temps = Temps(self._places)
        self._out = Outbox(send)
        # announcements
        self._only_name: Any = None  # of a source that is a single file
        self._units: Any = deque()  # announced and not yet looked at; an int acknowledges
        self._unit: Any = None  # the one that is being looked at
        self._directories: Any = {}
        self._unlisted = 0  # directories of which entries are still to come
        self._listing: Any = None  # the directory of which they come now
        self._seen: Any = set()  # names announced in it
        self._is_listed = False  # all was announced
        self._has_told_total = False
        # requests
        self._pending: Any = deque()  # in the order in which answers will come
        self._bases = self._bases_bytes = 0  # of requests that hold a copy of an old file
        self._refused = -1  # a file that cannot be written, of which pieces still come
        # links
        self._leaders: Any = {}  # id -> (directory, name), for hard links
        self._hardlinks: Any = deque()  # to be made when all leaders are there
        self._unlinked: Any = {}  # links that cannot be made and have no stand-in yet
        self._inodes: Any = set()  # of old files with several names, when one was announced
        # results
        self._total = 0  # bytes that are needed
        self._unchanged = self._settled = self._deleted = 0
        self._makers: Any = {
            FILE: self._on_file,
            LEADER: self._on_leader,
            HARDLINK: self._on_hardlink,
            SYMLINK: self._on_symlink,
            ROOTED: self._on_rooted,
            DIRECTORY: self._on_directory,
        }
        self._handlers: Any = {
            LIST: self._on_list,
            LIST_END: self._on_list_end,
            FILES: self._on_files,
            OPEN: self._on_open,
            CLOSE: self._on_close,
            SAME: self._on_same,
            FAIL: self._on_fail,
            INSTEAD: self._on_instead,
            REMARK: self._on_remark,
        }
        self._out.say(HELLO, hash_name, crc32 is not None)

    def run(self, receive: Callable[[], Any]) -> None:
        """Work until all that was announced is there; raises what ``receive`` raises."""
        try:
            self._make_root(*self._root)
            while not self._is_finished():
                message = receive()
                if isinstance(message, bytes):
                    number, offset = PIECE.unpack_from(message)
                    self._on_piece(number, offset, memoryview(message)[PIECE.size :])
                else:
                    self._handlers[message[0]](*message[1:])
                self._work()
                self._out.flush()
            self._settle_directories()
            self._out.say(END, self._unchanged, self._settled, self._deleted)
        except Fatal as exc:
            self._temps.drop_all()  # before the other half goes on
            self._out.say(FATAL, *exc.args)
        finally:
            self._temps.drop_all()
            for _, incoming in self._pending:
                if incoming is not None:
                    os.close(incoming.fd)
            self._places.close()

    def _is_finished(self) -> bool:
        is_looked_at = not (self._units or self._unit or self._unlisted or self._unlinked)
        if not (self._is_listed and is_looked_at):
            return False
        if not self._has_told_total:
            self._has_told_total = True
            self._out.say(LISTED, self._total)
        while self._hardlinks and not self._pending:
            self._link(*self._hardlinks.popleft())
            self._out.flush()
        return not self._pending

    # what is told; a target in the coordinator's process overrides these

    def skip(self, entry: Any, reason: bytes) -> None:
        """Tell that an entry cannot be had."""
        self._out.say(NOTE, entry[1], reason)

    def plan(self, entry: Any) -> None:
        """Tell that a run that is not dry would make this."""
        self._out.plan(entry[1])

    def plan_deletion(self, path: bytes) -> None:
        """Tell that a run that is not dry would delete this."""
        self._out.plan(path)

    def _on_remark(self, path: bytes, reason: bytes) -> None:
        """Take note of what the source leaves out."""

    def _note(self, entry: Any, exc: Any, what: bytes = b"") -> None:
        """Tell why an entry cannot be had; raise ``Fatal`` if no other can be either."""
        reason = reason_of(exc)
        if getattr(exc, "errno", None) in FATAL_ERRORS:
            raise Fatal(entry[1], exc.errno, reason)
        self.skip(entry, what + reason)

    # the root

    def _make_root(self, kind: int, mode: int, mtime: int) -> None:
        try:
            if kind == DIRECTORY:
                root = Directory(0, None, self._dest, mode & 0o777, mtime)
                root.fresh = self._make_root_directory()
                root.settled = not root.fresh and root.is_like(os.stat(self._dest))
            else:
                parent, self._only_name = os.path.split(self._dest)
                root = Directory(0, None, parent, None, 0)
                self._make_room_for_file(root)
                there = os.path.lexists(self._dest)
                root.existing = {self._only_name} if there else set()
        except OSError as exc:
            raise Fatal(0, exc.errno or 0, reason_of(exc))
        self._directories[0] = root
        self._unlisted = 1

    def _make_root_directory(self) -> bool:
        """Make the root if it is not there; tell whether it was not."""
        try:
            found: Any = os.stat(self._dest)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            self._open_up(self._dest, found, {})
            return False
        if not self._dry_run:
            if found is not None:
                os.unlink(self._dest)
            os.makedirs(self._dest)
        return True

    def _make_room_for_file(self, parent: Directory) -> None:
        if self._dry_run:
            return
        if not os.path.isdir(parent.name):
            os.makedirs(parent.name)
        if os.path.isdir(self._dest) and not os.path.islink(self._dest):
            if self._delete:
                remove(self._places.handle(parent), self._only_name)
            else:
                os.rmdir(self._dest)  # says why when there is something in it

    def _open_up(self, path: bytes, found: Any, where: Any) -> bool:
        """Let us into a directory of ours if its mode does not; tell whether that was tried."""
        if found.st_mode & 0o700 == 0o700 or self._dry_run:
            return False
        try:
            os.chmod(path, found.st_mode & 0o777 | 0o700, **where)
        except OSError:
            pass  # what needs it will fail with a better message
        return True

    # what is announced

    def _on_list(self, cost: int, units: Any) -> None:
        self._units.extend(units)
        self._units.append(cost)

    def _on_list_end(self) -> None:
        self._is_listed = True

    def _work(self) -> None:
        """Look at announced entries, until too many old files wait for their new content."""
        while self._bases < BASES_MAX and self._bases_bytes < BASES_BYTES:
            if self._unit is None:
                if not self._units:
                    return
                unit = self._units.popleft()
                if not isinstance(unit, tuple):
                    self._out.list_done += unit
                    continue
                self._unit = self._look_at(*unit)
            if next(self._unit, None) is None:
                self._unit = None

    def _look_at(
        self, number: int, first: int, blob: bytes, kinds: bytes, modes: Any, sizes: Any,
        times: Any, extras: Any, last: int,
    ) -> Iterator[bool]:  # fmt: skip
        """Act on the entries of one unit, and yield behind each."""
        directory = self._directories[number]
        self._begin_listing(directory)
        names = blob.split(b"\0") if kinds else []
        count = len(names)
        modes, sizes = numbers("H", modes, count), numbers("q", sizes, count)
        times, extras = numbers("q", times, count), iter(extras)
        for place, kind in enumerate(bytearray(kinds)):
            name = names[place] if self._only_name is None else self._only_name
            self._check_name(name)
            mode = modes[place] & 0o777
            entry = directory, first + place, name, mode, sizes[place], times[place]
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
        if directory.fresh:
            directory.existing = set()
        elif directory.existing is None and not directory.broken:
            try:
                directory.existing = names_in(self._places.handle(directory))
            except OSError as exc:
                directory.broken = True
                self._note(directory.entry(), exc)

    def _check_name(self, name: bytes) -> None:
        if name in BAD_NAMES or b"/" in name or SEP in name or name in self._seen:
            raise Violation("not a name, or announced twice: %r" % (name,))
        if os.name == "nt" and b":" in name:
            raise Violation("not a name on Windows: %r" % (name,))
        self._seen.add(name)

    def _end_listing(self, directory: Any, is_complete: bool) -> None:
        if directory.mode is not None and not directory.broken:
            for name in sorted(directory.existing - self._seen):
                self._sweep(directory, name, is_complete)
        directory.listed = True
        directory.existing = None
        self._listing = None
        self._seen = set()
        self._unlisted -= 1

    def _sweep(self, directory: Any, name: bytes, is_complete: bool) -> None:
        """Remove what was not announced, if that is wanted, and what dead runs have left."""
        try:
            handle = self._places.handle(directory)
            is_left_over = name.startswith(PREFIX) and self._temps.is_left_over(handle, name)
            if not is_left_over and not (self._delete and is_complete):
                return
            if self._dry_run:
                self.plan_deletion(path_of(directory, name))
                return
            directory.settled = False
            count = remove(handle, name)
            self._deleted += 0 if is_left_over else count
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
            self._add_directory(entry).broken = True

    def _on_directory(self, entry: Any, there: bool, _: Any = None) -> None:
        parent, _, name = entry[:3]
        if not there and self._dry_run:
            self._add_directory(entry).fresh = True
            self.plan(entry)
            return
        path, where = at(self._places.handle(parent), name)
        found = os.lstat(path, **where) if there else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            opened = self._open_up(path, found, where)
            directory = self._add_directory(entry)
            directory.settled = directory.is_like(found) and not opened
            return
        if not self._dry_run:
            parent.settled = False
            if found is not None:
                os.unlink(path, **where)
            os.mkdir(path, 0o700, **where)
        else:
            self.plan(entry)
        self._add_directory(entry).fresh = True

    def _add_directory(self, entry: Any) -> Directory:
        parent, number, name, mode, _, mtime = entry
        if number in self._directories:
            raise Violation("directory %d was announced twice" % number)
        directory = Directory(number, parent, name, mode, mtime)
        self._directories[number] = directory
        self._unlisted += 1
        return directory

    def _on_leader(self, entry: Any, there: bool, _: Any = None) -> None:
        self._leaders[entry[1]] = entry[0], entry[2]
        self._on_file(entry, there)

    def _on_file(self, entry: Any, there: bool, _: Any = None) -> None:
        directory, _, name, mode, size, mtime = entry
        if not there:
            self._ask(WANT, entry)
            return
        path, where = at(self._places.handle(directory), name)
        found = os.lstat(path, **where)
        same_size = found.st_size == size
        if not stat.S_ISREG(found.st_mode):
            self._ask(WANT, entry)
        elif same_size and same_time(found, mtime) and self._is_alone(found):
            if stat.S_IMODE(found.st_mode) == mode:
                self._unchanged += 1
            elif found.st_nlink == 1:
                self._set_mode(entry, path, where)
            else:
                self._ask(WANT, entry)  # its other names are not ours to change
        elif self._dry_run:
            self._ask(WANT, entry)
        elif size > SMALL_MAX and found.st_size > SMALL_MAX:
            self._ask_for_blocks(entry, path, where)
        elif same_size and size <= SMALL_MAX and found.st_nlink == 1:
            self._ask_with_digest(entry, path, where)
        else:
            self._ask(WANT, entry)

    def _is_alone(self, found: Any) -> bool:
        """Tell whether no other announced name is the same file."""
        if found.st_nlink == 1:
            return True
        inode = found.st_dev, found.st_ino
        is_alone = inode not in self._inodes
        self._inodes.add(inode)
        return is_alone

    def _set_mode(self, entry: Any, path: bytes, where: Any) -> None:
        self._settled += 1
        if self._dry_run:
            self.plan(entry)
        else:
            os.chmod(path, entry[3], **where)

    # asking

    def _ask(self, code: int, entry: Any, digest: bytes = b"") -> None:
        self._total += entry[4]
        if self._dry_run:
            self.plan(entry)
        else:
            self._pending.append((entry, None))
            self._out.ask(code, entry[1], digest)

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
        self._ask(CHECK, entry, self._digest(content))

    def _ask_for_blocks(self, entry: Any, path: bytes, where: Any) -> None:
        """Send the digests of an old file's blocks while it is copied to a temporary one."""
        try:
            old = os.open(path, O_OLD, **where)
        except OSError:
            self._ask(WANT, entry)
            return
        try:
            found = os.fstat(old)
            largest = max(found.st_size, entry[4])
            if largest > BLOCKS_MAX * block_bytes(largest):
                self._ask(WANT, entry)
                return
            fd, temp = self._temps.create(entry[0], 0o600)
            entry[0].settled = False
            incoming = Incoming(fd, temp, self._digest)
            incoming.base, incoming.block = found, block_bytes(largest)
            self._total += entry[4]
            self._pending.append((entry, incoming))
            self._bases += 1
            self._bases_bytes += entry[4]
            self._out.say(DELTA, entry[1], found.st_size)
            self._send_digests(entry[1], old, incoming, min(found.st_size, entry[4]))
        finally:
            os.close(old)

    def _send_digests(self, number: int, old: int, incoming: Incoming, size: int) -> None:
        """Read, copy and digest in one go, so that what is proved later is what was copied."""
        block, digests, told = incoming.block, incoming.digests, 0
        base = incoming.base
        is_sparse = getattr(base, "st_blocks", 1 << 60) * 512 < base.st_size
        position = 0
        while position < size:
            data = read_full(old, min(PIECE_BYTES, size - position))
            view = memoryview(data)
            for start in range(0, len(data), block):
                digests += self._digest(view[start : start + block])
            if is_sparse and data.count(b"\0") == len(data):
                os.lseek(incoming.fd, len(data), os.SEEK_CUR)
            else:
                write_all(incoming.fd, view)
            position += len(data)
            if position % DIGESTS_AT_ONCE == 0 or position >= size:
                self._out.say(DIGESTS, number, bytes(digests[told:]))
                told = len(digests)

    # answers

    def _request(self, number: int) -> Any:
        if not self._pending or self._pending[0][0][1] != number:
            raise Violation("an answer that was not asked for, to %.100r" % (number,))
        return self._pending[0]

    def _end_request(self, is_done: bool) -> None:
        entry, incoming = self._pending.popleft()
        if incoming is not None:
            os.close(incoming.fd)
            if incoming.base is not None:
                self._bases -= 1
                self._bases_bytes -= entry[4]
        if is_done:
            self._out.done(entry[1])
        else:
            self._leaders.pop(entry[1], None)
            if incoming is not None:
                self._temps.drop(incoming.temp)

    def _refuse(self, entry: Any, exc: Any) -> None:
        """Note that a file cannot be written; what is still sent of it is dropped."""
        self._note(entry, exc)
        self._end_request(False)
        self._refused = entry[1]

    def _on_files(self, ids: bytes, sizes: bytes, changed: Any, blob: bytes) -> None:
        """Write whole small files.  changed: {place: (mode, time)} of those not as announced."""
        numbers, lengths = unpack_ids(ids), unpack_ids(sizes)
        if len(numbers) != len(lengths) or sum(lengths) != len(blob):
            raise Violation("not %d files in %d bytes" % (len(numbers), len(blob)))
        view = memoryview(blob)
        start = 0
        for place, number in enumerate(numbers):
            entry, incoming = self._request(number)
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            stop = start + lengths[place]
            try:
                self._write_small(entry, view[start:stop], mode & 0o777, mtime)
            except OSError as exc:
                self._note(entry, exc)
                self._end_request(False)
            else:
                if incoming is not None:  # it has become small since it was announced
                    self._temps.drop(incoming.temp)
                self._end_request(True)
            start = stop
        self._out.data_done += len(blob) + 32 * len(numbers)

    def _write_small(self, entry: Any, data: Any, mode: int, mtime: int) -> None:
        directory = entry[0]
        fd, temp = self._temps.create(directory, mode)
        try:
            try:
                if len(data):
                    write_all(fd, data)
                self._seal(fd, directory, temp, mode, mtime)
            finally:
                os.close(fd)
            directory.settled = False
            self._temps.keep(directory, temp, entry[2])
        except OSError:
            self._temps.drop(temp)
            raise

    def _seal(self, fd: int, directory: Any, temp: bytes, mode: int, mtime: int) -> None:
        """Set time and mode of a temporary file."""
        if HAS_FDS:
            os.utime(fd, ns=(mtime, mtime))
            if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                os.fchmod(fd, mode)
            return
        path, where = at(self._places.handle(directory), temp)
        set_time(path, mtime, **where)
        os.chmod(path, mode, **where)

    def _on_open(self, number: int, size: int, mode: int, mtime: int, based: bool) -> None:
        entry, incoming = self._request(number)
        try:
            if incoming is None:
                fd, temp = self._temps.create(entry[0], 0o600)
                entry[0].settled = False
                incoming = Incoming(fd, temp, self._digest)
                self._pending[0] = entry, incoming
            incoming.open(size, mode, mtime, based)
        except OSError as exc:
            self._refuse(entry, exc)

    def _on_piece(self, number: int, offset: int, data: Any) -> None:
        self._out.data_done += len(data) + 32
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
        try:
            if not incoming.is_whole(proof):
                self._ask_again(entry)
                return
            self._seal(incoming.fd, entry[0], incoming.temp, incoming.mode, incoming.mtime)
            self._temps.keep(entry[0], incoming.temp, entry[2])
        except OSError as exc:
            self._refuse(entry, exc)
        else:
            self._end_request(True)

    def _ask_again(self, entry: Any) -> None:
        """Ask for all of a file whose base changed meanwhile, or that came over a faulty line."""
        leader = self._leaders.get(entry[1])
        self._end_request(False)
        if leader is not None:
            self._leaders[entry[1]] = leader
        self._total -= entry[4]
        self._ask(WANT, entry)

    def _on_same(self, ids: bytes, changed: Any) -> None:
        """Keep the content of old files, set what else is new of them."""
        for place, number in enumerate(unpack_ids(ids)):
            entry, incoming = self._request(number)
            mode, mtime = changed.get(place, (entry[3], entry[5]))
            try:
                self._keep_content(entry, incoming)
                path, where = at(self._places.handle(entry[0]), entry[2])
                set_time(path, mtime, **where)
                if stat.S_IMODE(os.lstat(path, **where).st_mode) != mode & 0o777:
                    os.chmod(path, mode & 0o777, **where)
            except OSError as exc:
                self._note(entry, exc)
            self._settled += 1
            self._end_request(True)

    def _keep_content(self, entry: Any, incoming: Any) -> None:
        if incoming is None:
            return
        if incoming.base is None or incoming.base.st_nlink == 1:
            self._temps.drop(incoming.temp)
        else:  # the old file has other names, which must not get the new time
            os.ftruncate(incoming.fd, incoming.base.st_size)
            self._temps.keep(entry[0], incoming.temp, entry[2])

    def _on_fail(self, number: int, reason: bytes) -> None:
        if number in self._unlinked:
            del self._unlinked[number]
        elif number != self._refused:
            self._request(number)
            self._end_request(False)

    # links

    def _on_rooted(self, entry: Any, there: bool, text: bytes) -> None:
        self._on_symlink(entry, there, self._dest + text)

    def _on_symlink(self, entry: Any, there: bool, text: bytes) -> None:
        directory, number, name, _, _, mtime = entry
        path, where = at(self._places.handle(directory), name) if there else (b"", {})
        found = os.lstat(path, **where) if there else None
        is_link = found is not None and stat.S_ISLNK(found.st_mode)
        if found is not None and is_link and os.readlink(path, **where) == text:
            self._unchanged += 1
            if HAS_NS and found.st_mtime_ns != mtime and not self._dry_run:
                self._set_link_time(path, mtime, where)
            return
        if self._dry_run:
            self.plan(entry)
            return
        try:
            _, temp = self._temps.make(directory, lambda path, **at: os.symlink(text, path, **at))
        except (OSError, NotImplementedError, AttributeError):
            self._unlinked[number] = directory, name
            self._out.say(NOLINK, number)
            return
        directory.settled = False
        path, where = at(self._places.handle(directory), temp)
        self._set_link_time(path, mtime, where)
        self._temps.keep(directory, temp, name)

    def _set_link_time(self, path: bytes, mtime: int, where: Any) -> None:
        if HAS_NS and os.utime in os.supports_follow_symlinks:
            try:
                os.utime(path, ns=(mtime, mtime), follow_symlinks=False, **where)
            except (OSError, NotImplementedError):
                pass  # a link's time is for show

    def _on_instead(
        self, number: int, kind: int, new_number: int, mode: int, size: int, mtime: int
    ) -> None:  # fmt: skip
        """Take a file or directory in place of a link that cannot be made."""
        directory, name = self._unlinked.pop(number)
        if kind not in (FILE, DIRECTORY):
            raise Violation("kind %.100r in place of a link" % (kind,))
        try:
            path, where = at(self._places.handle(directory), name)
            os.lstat(path, **where)
            there = True
        except OSError:
            there = False
        entry = directory, new_number, name, mode & 0o777, size, mtime
        self._try(self._makers[kind], entry, there, None)

    def _on_hardlink(self, entry: Any, there: bool, leader: int) -> None:
        self._hardlinks.append((entry, there, leader))

    def _link(self, entry: Any, there: bool, leader: int) -> None:
        """Make a hard link to a file that is there by now, or ask for the content."""
        directory, _, name = entry[:3]
        try:
            source, source_name = self._leaders[leader]
            if there and self._is_linked(directory, name, source, source_name):
                self._unchanged += 1
                return
            if self._dry_run:
                self.plan(entry)
                return
            _, temp = self._temps.make(directory, self._linker(source, source_name))
            directory.settled = False
            self._temps.keep(directory, temp, name)
            self._settled += 1
        except (OSError, KeyError, AttributeError, NotImplementedError):
            self._try(self._on_file, entry, there)

    def _is_linked(self, directory: Any, name: bytes, source: Any, source_name: bytes) -> bool:
        """Tell whether two names are one file already; renaming would then do nothing."""
        path, where = at(self._places.handle(directory), name)
        found = os.lstat(path, **where)
        path, where = at(self._places.handle(source), source_name)
        first = os.lstat(path, **where)
        return bool((found.st_dev, found.st_ino) == (first.st_dev, first.st_ino))

    def _linker(self, source: Any, source_name: bytes) -> Any:
        """Return a function that makes a hard link to a file at a path."""

        def link(path: bytes, **where: Any) -> None:
            old, old_where = at(self._places.handle(source), source_name)
            if where:
                fds = {"src_dir_fd": old_where["dir_fd"], "dst_dir_fd": where["dir_fd"]}
                os.link(old, path, follow_symlinks=False, **fds)
            else:
                os.link(old, path)

        return link

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
    main(channel)  # noqa: F821 it is in the globals there
