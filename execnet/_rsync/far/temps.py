"""Temporary files of a target: made next to what they will replace, verified, then renamed.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Temps``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time

from .places import (
    O_NEW,
    WRITE_BYTES,
    at,
    identity_of,
    is_sparse,
    read_full,
    rename,
    write_all,
)
from .wire import (
    BLOCKS,
    BLOCKS_MAX,
    CHUNKED,
    CONTINUED,
    CRC_32,
    DIGEST_BYTES,
    PIECE_BYTES,
    Violation,
    checksum,
    sum_of_nothing,
)
from .writeback import Writeback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from .chunks import Marks
    from .digests import Digest, Hash
    from .places import Directory, Entry, Handle, Places
    from .wire import Buffer, Proof

    T = TypeVar("T")

    Maker = Callable[..., T]  # makes something at a path: called with that, and a ``Where``
    Request = tuple[Entry, "Incoming | None"]  # with a temporary file, if there is one already

PREFIX = b".execnet-rsync-"
NO_VERSION = b"-" * 8  # in a tag: the content may be of several
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE of Linux
STRANGE_TEMP_S = 24 * 3600.0  # how long another host's temporary file is left alone
# What is read again at a time: with less, two threads pass the interpreter to each other too often.
PART_BYTES = 4 << 20


class Temps(object):
    """The temporary files of one run.  Their names identify those of dead runs, which are swept.

    Only for processes in this one's PID namespace can we see that they are dead; files of others
    are swept when they are old.
    """

    def __init__(self, places: Places) -> None:
        self._host = host_tag()
        self._stem = self._stem_of(os.getpid())
        self._places = places
        self._count = 0
        self._live: dict[bytes, Directory] = {}  # name -> directory
        # name -> checksum of what is in a file that is for the next run
        self.sums: dict[bytes, int] = {}

    def make(self, directory: Directory, maker: Maker[T], tag: bytes = b"") -> tuple[T, bytes]:
        """Call ``maker(path, **where)`` with a new name; return (what it returns, the name)."""
        handle = self._places.handle(directory)
        while True:
            self._count += 1
            name = self._stem + str(self._count).encode() + tag
            path, where = at(handle, name)
            self._live[name] = directory  # noted first, so that no end loses it
            try:
                return maker(path, **where), name
            except OSError as exc:
                del self._live[name]
                if exc.errno != errno.EEXIST:
                    raise

    def create(self, directory: Directory, mode: int, tag: bytes = b"") -> tuple[int, bytes]:
        """Return (descriptor, name) of a new file in a directory.

        tag: finds its content again if this run ends early.
        """
        handle = self._places.handle(directory)
        if not isinstance(handle, int):
            return self.make(directory, lambda path, **_: os.open(path, O_NEW, mode), tag)
        while True:  # the same as ``make``, but inline: there may be many
            self._count += 1
            name = b"%s%d%s" % (self._stem, self._count, tag)
            self._live[name] = directory
            try:
                return os.open(name, O_NEW, mode, dir_fd=handle), name
            except OSError as exc:
                del self._live[name]
                if exc.errno != errno.EEXIST:
                    raise

    def keep(self, directory: Directory, temp: bytes, name: bytes) -> None:
        """Give a temporary file its final name, replacing whatever has it but a directory."""
        rename(self._places.handle(directory), temp, name)
        del self._live[temp]

    def drop(self, temp: bytes) -> None:
        directory = self._live.pop(temp)
        try:
            path, where = at(self._places.handle(directory), temp)
            try:
                os.unlink(path, **where)
            except OSError:
                os.rmdir(path, **where)  # it may be about to become a directory
        except OSError:
            pass  # the next run sweeps it

    def has(self, temp: bytes, fd: int) -> bool:
        """Return whether a file still has the temporary name that it was made under."""
        try:
            path, where = at(self._places.handle(self._live[temp]), temp)
            return bool(identity_of(os.lstat(path, **where)) == identity_of(os.fstat(fd)))
        except (KeyError, OSError):
            return False

    def drop_all(self) -> None:
        """Remove everything that is left, except files with a tag: those are for the next run."""
        for temp, directory in list(self._live.items()):
            tag = tag_in(temp)
            if not tag:
                self.drop(temp)
                continue
            try:
                number = str(self.sums.get(temp, 0)).encode()
                self.keep(directory, temp, self._stem_of(0) + number + tag)
            except OSError:
                self.drop(temp)

    def take_over(self, directory: Directory, left: bytes, tag: bytes) -> bytes:
        """Rename what a run left to a name of this run; return that."""
        self._count += 1
        name = self._stem + str(self._count).encode() + tag
        rename(self._places.handle(directory), left, name)
        self._live.pop(left, None)
        self._live[name] = directory
        return name

    def _stem_of(self, pid: int) -> bytes:
        return PREFIX + self._host + b"-" + str(pid).encode() + b"-"

    def is_left_over(self, handle: Handle, name: bytes) -> bool:
        """Return whether a temporary file was left by a run that is dead."""
        parts = parts_of(name)
        if parts is None:
            return False
        host, pid, _ = parts
        if int(pid) == 0:  # its run has let go of it
            return True
        if host == self._host and os.name == "posix":
            return not is_running(int(pid))
        path, where = at(handle, name)
        return bool(time.time() - os.lstat(path, **where).st_mtime > STRANGE_TEMP_S)


def tag_of(name: bytes, size: int = -1, mtime: int = 0) -> bytes:
    """Return the tag for the temporary file of this name.

    size, mtime: of the source's file, if all of the content is of that one version.
    """
    version = ("%d %d" % (size, mtime)).encode("ascii")
    return b"." + short_of(name) + (NO_VERSION if size < 0 else short_of(version))


def short_of(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:8].encode("ascii")


def tag_in(temp: bytes) -> bytes:
    """Return the tag of a temporary file, b"" if it has none."""
    tag = temp[-17:]
    return tag if tag[:1] == b"." and temp.startswith(PREFIX) and len(temp) > 17 else b""


def parts_of(temp: bytes) -> list[bytes] | None:
    """Return (host, process, number) that the name of a temporary file tells; None for others."""
    parts = temp[len(PREFIX) : len(temp) - len(tag_in(temp))].split(b"-")
    is_temp = temp.startswith(PREFIX) and len(parts) == 3
    return parts if is_temp and parts[1].isdigit() and parts[2].isdigit() else None


def sum_in(temp: bytes) -> int:
    """Return the checksum in the name of a file that its run has let go of, or 0."""
    parts = parts_of(temp)
    code = int(parts[2]) if parts is not None and parts[1] == b"0" else 0
    return code if code < 2 * CRC_32 else 0


def host_tag() -> bytes:
    """Return what identifies this host, and the PID namespace on it."""
    host: bytes | str = os.environ.get("COMPUTERNAME", "") if os.name == "nt" else os.uname()[1]
    if not isinstance(host, bytes):
        host = host.encode("utf-8", "replace")
    try:  # a container has PIDs of its own
        host += os.readlink(b"/proc/self/ns/pid")
    except OSError:
        pass
    code = 0
    for byte in bytearray(host):
        code = (code * 31 + byte) % 2**32
    return b"%08x" % code


def is_running(pid: int) -> bool:
    """Return whether there is such a process, and not just its exit status for its parent."""
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno != errno.ESRCH
    except OverflowError:
        return False
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (EnvironmentError, IndexError):  # not Linux, or it has just ended
        return True


def punch(fd: int, offset: int, length: int) -> bool:
    """Make a hole in a file; return whether that worked."""
    try:
        import ctypes  # the standard library offers no other way

        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        is_wide = ctypes.sizeof(ctypes.c_long) == 8  # else offsets have another type
        return bool(is_wide and fallocate(fd, PUNCH_HOLE, offset, length) == 0)
    except (ImportError, AttributeError, OSError, TypeError):
        return False


class Part(object):
    """The beginning of a file, as an earlier run left it: a thread reads it again meanwhile.

    fd: another descriptor of the file, which this closes.  sum: the checksum that it should have.
    """

    def __init__(self, fd: int, size: int, expected: int) -> None:
        self.size, self.sum = size, expected
        self._fd = fd
        self._left = size  # still to be read
        self._found = sum_of_nothing(expected)
        self._is_over = False
        self._thread = threading.Thread(target=self._read, name="execnet-rsync-part")
        self._thread.daemon = True

    def start(self) -> None:
        self._thread.start()

    def is_right(self) -> bool:
        """Wait until all of it was read; return whether it is what the earlier run wrote."""
        self._thread.join()
        return not self._left and self._found == self.sum

    def end(self) -> None:
        self._is_over = True
        if self._thread.ident is None:
            os.close(self._fd)
        else:
            self._thread.join()

    def _read(self) -> None:
        try:
            while self._left and not self._is_over:
                data = os.read(self._fd, min(PART_BYTES, self._left))
                if not data:
                    break
                self._found = checksum(data, self._found)
                self._left -= len(data)
        except OSError:
            pass  # what can't be read is as bad as damaged
        finally:
            os.close(self._fd)


class Incoming(object):
    """A large file being received under a temporary name.

    With a base, the old content is already in it, and ``digests`` has the digests of its blocks;
    what arrives replaces blocks, and the digest of all digests proves the whole.  With a ``part``,
    the beginning is there, and only the rest arrives.
    """

    def __init__(
        self, fd: int, temp: bytes, digest: Digest, stream: Callable[[], Hash], nothing: int
    ) -> None:  # fmt: skip
        self.fd = fd
        self.temp = temp
        self.writeback = Writeback(fd)
        # Status of the old file, if there is one to build on, its size, whether it has holes.
        self.base: os.stat_result | None = None
        self.base_bytes = 0
        self.is_sparse = False
        self._no_copy: OSError | None = None  # the error that kept it from being copied
        self.block = 0  # bytes; 0: what comes is the whole file
        self.digests = bytearray()
        self.is_own = False  # the base is what an earlier run left, taken over
        self.common = 0  # bytes of the old file that the new one may have in the same place
        self.known = 0  # how many of those were digested
        self.marks: Marks | None = None  # by which the old file was cut into chunks
        self.old = -1  # descriptor of the old file, if its chunks are copied
        self.digest = digest
        self._new_stream = stream
        self._stream: Hash | None = None  # of everything that arrived, if chunks are copied
        self._torn: set[int] = set()  # blocks that a piece covers in part
        self.part: Part | None = None  # reads again what was there when only the rest is to come
        self._nothing = self._sum = nothing  # the latter of everything up to the last piece
        self._has_gaps = False  # in which case that is not known
        self._end = 0  # of the last piece
        self.size = -1  # not opened
        self.mode = 0
        self.mtime = 0

    def set_base(self, base: os.stat_result, block: int, common: int) -> None:
        self.base, self.base_bytes, self.is_sparse = base, base.st_size, is_sparse(base)
        self.block, self.common = block, common

    def set_part(self, part: Part, base: os.stat_result) -> None:
        self.part, self.base, self.base_bytes = part, base, base.st_size
        self._sum, self._end = part.sum, part.size

    def close(self) -> None:
        if self.part is not None:
            self.part.end()
        self.writeback.give_up()
        os.close(self.fd)
        self.close_old()

    def cut_off(self) -> int:
        """Keep what has arrived, for a later run; return its checksum, 0 if that is not known."""
        is_known = self.size >= 0 or self.part is not None
        if not is_known or self.block or self._has_gaps or self._stream is not None:
            return 0
        os.ftruncate(self.fd, self._end)
        return self._sum

    def close_old(self) -> None:
        if self.old >= 0:
            old, self.old = self.old, -1
            os.close(old)

    def open(self, size: int, mode: int, mtime: int, how: int) -> None:
        if self.size >= 0:
            raise Violation("a file was opened twice")
        if how == BLOCKS and (self.known < self.common or not self.block or self.marks):
            raise Violation("blocks into a file that is not known")
        if how == CHUNKED and self.old < 0:
            raise Violation("chunks of a file that is not known")
        if how == CONTINUED and self.part is None:
            raise Violation("the rest of a file that is not there")
        self.size, self.mode, self.mtime = size, mode, mtime
        if how == BLOCKS:
            self.check_copy()
            self.writeback.finish()
            blocks = -(-size // self.block)
            if blocks > BLOCKS_MAX:
                raise Violation("a file of %d blocks" % blocks)
            kept = self.digests[: blocks * DIGEST_BYTES]
            self.digests = kept.ljust(blocks * DIGEST_BYTES, b"\0")
        elif self.part is not None and how == CONTINUED:
            self.part.start()
        elif self.block or self.part is not None:
            self._begin_anew()
        if how == CHUNKED:
            self._stream = self._new_stream()

    def _begin_anew(self) -> None:
        self.writeback.give_up()
        os.ftruncate(self.fd, 0)
        self.block = self._end = 0
        self._sum = self._nothing
        if self.part is not None:
            self.part.end()
            self.part = None

    def copy(self, data: Buffer, is_hole: bool) -> None:
        """Take in the next part of the old file, if there is room; it may not be needed."""
        try:
            if self.is_own:
                return
            if is_hole:
                os.lseek(self.fd, len(data), os.SEEK_CUR)
            elif self._no_copy is None:
                write_all(self.fd, data)
        except OSError as exc:
            self._no_copy = exc
            os.ftruncate(self.fd, 0)

    def check_copy(self) -> None:
        """Raise the error that kept the old file from being copied."""
        if self._no_copy is not None:
            raise self._no_copy

    def piece(self, offset: int, data: Buffer) -> None:
        if not self._end <= offset <= offset + len(data) <= self.size:
            raise Violation("%d bytes at %d of a file of %d" % (len(data), offset, self.size))
        if self._stream is not None:
            self._add_to_stream(self._stream, offset, data)
        self.writeback.before_change(offset, len(data))
        os.lseek(self.fd, offset, os.SEEK_SET)
        write_all(self.fd, data)
        self._has_gaps = self._has_gaps or offset > self._end
        self._end = offset + len(data)
        if self.block:
            self._note_digests(offset, data)
        elif self._stream is None and self._nothing:
            self._sum = checksum(data, self._sum)

    def _add_to_stream(self, stream: Hash, offset: int, data: Buffer) -> None:
        if offset != self._end:
            raise Violation("a gap at %d, before %d" % (self._end, offset))
        stream.update(data)

    def copy_old(self, offset: int, old_offset: int, length: int) -> None:
        """Copy a part of the new file from the old one."""
        if self.old < 0 or self._stream is None or old_offset + length > self.base_bytes:
            raise Violation("%d bytes at %d of an old file" % (length, old_offset))
        for done in range(0, length, WRITE_BYTES):
            os.lseek(self.old, old_offset + done, os.SEEK_SET)
            self.piece(offset + done, read_full(self.old, min(WRITE_BYTES, length - done)))

    def hole(self, offset: int, length: int) -> None:
        """Make a hole in what was copied from the old file, or leave one where parts of it go."""
        if self._stream is not None and length <= PIECE_BYTES and offset + length <= self.size:
            self._add_to_stream(self._stream, offset, bytes(bytearray(length)))
            self._end = offset + length
            return
        if not (self.block and self._end <= offset <= offset + length <= self.size):
            raise Violation("a hole of %d bytes at %d of %d" % (length, offset, self.size))
        self._end = offset + length
        there = min(self._end, os.fstat(self.fd).st_size)
        if offset < there and not punch(self.fd, offset, there - offset):
            self.writeback.before_change(offset, there - offset)
            os.lseek(self.fd, offset, os.SEEK_SET)
            for start in range(offset, there, WRITE_BYTES):
                write_all(self.fd, bytes(bytearray(min(WRITE_BYTES, there - start))))
        first, last = -(-offset // self.block), self._end // self.block
        self._torn.update((offset // self.block, (self._end - 1) // self.block))
        if last > first:
            zeros = self.digest(bytes(bytearray(self.block)))
            self.digests[first * DIGEST_BYTES : last * DIGEST_BYTES] = zeros * (last - first)

    def _note_digests(self, offset: int, data: Buffer) -> None:
        for number in range(offset // self.block, -(-self._end // self.block)):
            start = number * self.block
            stop = min(start + self.block, self.size)
            if start < offset or stop > self._end:
                self._torn.add(number)
            else:
                self._store(number, data[start - offset : stop - offset])

    def _store(self, number: int, data: Buffer) -> None:
        start = number * DIGEST_BYTES
        self.digests[start : start + DIGEST_BYTES] = self.digest(data)

    def is_whole(self, proof: Proof) -> bool:
        """Set the length; return whether the content is what the source read."""
        if os.fstat(self.fd).st_size != self.size:  # it ends in a hole, or was longer
            os.ftruncate(self.fd, self.size)
        if self._stream is not None:
            return bool(self._stream.digest()[:DIGEST_BYTES] == proof)
        if not self.block:
            is_right = proof is None or self._sum == proof
            return is_right and (self.part is None or self.part.is_right())
        for number in self._torn:
            os.lseek(self.fd, number * self.block, os.SEEK_SET)
            self._store(number, os.read(self.fd, self.block))
        return bool(self.digest(bytes(self.digests)) == proof)
