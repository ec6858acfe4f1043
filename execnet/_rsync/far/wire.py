"""What both halves of RSync must agree on: codes, sizes, packing, checksums.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.  What the
messages mean is explained in ``target``.
"""

from __future__ import annotations

import struct
import sys
import time

try:
    import zlib
except ImportError:  # an interpreter built without it
    zlib = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypedDict

    Buffer = bytes | memoryview
    Numbers = bytes | list[Any]  # packed, or one by one because one is too large
    PackedUnit = tuple[Any, ...]  # entries of a directory, of the types in ``messages.UNIT``
    # A code and what it says, of the types that ``messages`` has for the code.
    Message = tuple[Any, ...]
    Send = Callable[[Message | bytes], object]  # bytes are a piece of a file
    Say = Callable[[Message], object]  # of a target, which sends no pieces
    Change = tuple[int, int]  # a file's new mode and time
    Changes = dict[int, Change]  # by the place in a message
    Proof = int | bytes | None  # a checksum, or a digest
    Root = tuple[int, int, int]  # kind, mode, time
    Place = tuple[bytes, list[bytes]]  # see ``apart.place_of``
    # regular expression for a path, whether it is included, for directories only
    Rule = tuple[bytes, bool, bool]

    class Wish(TypedDict, total=False):
        """What may be left out of ``Wishes``."""

        delete_excluded: bool
        expands: bool
        keeps_apart: bool

    class Wishes(Wish):
        """What a run's user wants; see ``target.Target`` and ``RSync.add_target``."""

        delete: bool
        dry_run: bool
        modes: bool
        times: bool
        owners: bool
        is_bounded: bool
        window_ns: int
        partial: bool
        compress: bool
        most_per_s: int
        mask: int
        links: str
        max_files: int | None
        max_bytes: int | None

    class Settings(Wishes):
        """The same for one target of ``RSync.send``."""

        dest: bytes
        rules: list[Rule]
        asks: bool
        expanduser: bool

    class Found(TypedDict, total=False):
        """Where the source is; see ``apart``."""

        source: Place | None
        is_left_out: bool

    class Options(Settings, Found):
        """What a target is told, with what only the source can tell."""

        root: Root
        name: bytes
        hashes: dict[str, float]

    class SourceOptions(TypedDict):
        """What the source of a pull is told."""

        compress: bool
        most_per_s: int
        expands: bool
        owners: bool
        reports: bool

# source to target
LIST, LIST_END, FILES, OPEN, CLOSE, SAME, FAIL, INSTEAD, REMARK, SPARED, GONE = range(1, 12)
# target to source
HELLO, ACK, WANT, CHECK, DELTA, DIGESTS, LISTED = range(20, 27)
DONE, NOTE, PLAN, NOLINK, END, FATAL, DOOMED, CHUNKS, REST = range(27, 36)
# source to target again
GO, SEEK, COPY, HOLE, PACKED, TOLD, OWNERS, DIFFERS = range(12, 20)
# how a file's content arrives: whole, as blocks for the old one, with chunks of the old one, or
# only what follows the part that is there
WHOLE, BLOCKS, CHUNKED, CONTINUED = range(4)
# kinds of entries; LEADER is a file that others are hard links to, ROOTED a link into the tree
FILE, LEADER, HARDLINK, SYMLINK, ROOTED, DIRECTORY = range(1, 7)
MORE, COMPLETE, INCOMPLETE = range(3)  # what follows a directory's entries

DIGEST_BYTES = 16  # kept of each digest
SENT_BYTES = 6  # of the digest of a block; a longer one proves the file in the end
SMALL_MAX = 32 * 1024  # bytes of a file that travels together with others, not in blocks
PIECE_BYTES = 1024 * 1024
FIRST_BYTES = PIECE_BYTES // 2  # of an old file that are compared first
# Of a large file in one message: what C libraries allocate without asking the system, which would
# have to clear each page, so that this is faster than more.
CHUNK_BYTES = 127 * 1024
EARLY_BYTES = 32 * PIECE_BYTES  # of a file that the disk gets before it is complete
BLOCKS_MAX = 2 * 1024 * 1024  # of a file that is compared at all; larger ones are sent whole
TEXT_MAX = 1000
SLACK_BYTES = 1024 * 1024  # by which a file may exceed twice its announced size
FIRST_STANDIN = 1 << 40  # ids from here on are copies in place of links, for one target only
PIPE_BYTES = 1024 * 1024  # the largest buffer that an ordinary user may have
F_SETPIPE_SZ = 1031  # Linux; ``fcntl`` names it since 3.10
PIECE = struct.Struct("!QQ")  # id and offset; a message of bytes is a piece: this, then content

PY2 = sys.version_info[0] == 2
INTEGERS = (int, long) if PY2 else int  # type: ignore[name-defined]

CAN_PACK = zlib is not None
CRC_32 = 2**32  # set in a checksum that is a CRC-32; others are Adler-32
SUMS_OF_NOTHING = {"adler32": 1, "crc32": CRC_32}  # see ``checksum``
NO_SUM = 0  # there is none, or it is not known
clock = getattr(time, "perf_counter", time.time)


class Violation(Exception):
    """The other half sent something that the protocol, or the safety of this host, forbids."""


class TooMuch(Exception):
    """The other half has more than the user allows; the text says of what."""


def widen(stream: object, name: str) -> None:
    """Give a worker's pipe a large buffer, so that more passes each time that it is waited for.

    One that sshd has made holds 64 KiB.  name: ``infile`` or ``outfile`` of the worker's stream;
    what is no pipe stays as it is, and so does a pipe if its user's share of buffers is used up.
    """
    try:
        import fcntl

        fcntl.fcntl(getattr(stream, name).fileno(), F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, EnvironmentError, ValueError):
        pass


def checksum(data: Buffer, before: int) -> int:
    """Return the checksum of some content that follows what has the checksum ``before``.

    It finds damage, not malice, and is of the same kind as ``before``.  Which kind takes less time
    depends on the version of ``zlib``; both halves time them and agree on one.
    """
    if PY2 and isinstance(data, memoryview):
        data = data.tobytes()
    if before & CRC_32:
        return zlib.crc32(data, before & 0xFFFFFFFF) & 0xFFFFFFFF | CRC_32
    return zlib.adler32(data, before) & 0xFFFFFFFF


def sum_of_nothing(sum: int) -> int:
    """Return what a checksum of this kind begins with."""
    return SUMS_OF_NOTHING["crc32" if sum & CRC_32 else "adler32"]


def block_bytes(size: int) -> int:
    """Return the block size for a file of this size: the power of two at or above its root.

    It is 1 KiB at least and a piece at most.  The program rsync uses the root as well.
    """
    block = 1024
    while size > block * block and block < PIECE_BYTES:
        block *= 2
    return block


def chunk_bytes(block: int) -> int:
    """Return how much of a file that is compared is read at once: whole blocks."""
    return max(1, CHUNK_BYTES // block) * block


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack("!%dQ" % len(ids), *ids)


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    if len(blob) % 8:
        raise Violation("%d bytes of ids" % len(blob))
    return struct.unpack("!%dQ" % (len(blob) // 8), blob)


def pack_numbers(code: str, values: Sequence[int]) -> bytes | list[int]:
    try:
        return struct.pack("!%d%s" % (len(values), code), *values)
    except struct.error:  # a time beyond the year 2262
        return list(values)


def numbers(code: str, value: Numbers, count: int) -> Sequence[int]:
    """Return ``count`` numbers that arrived packed, or as a list because one was too large."""
    if not isinstance(value, bytes):
        if len(value) != count or [item for item in value if not isinstance(item, INTEGERS)]:
            raise Violation("not %d numbers: %.200r" % (count, value))
        return value
    if len(value) != count * struct.calcsize("!" + code):
        raise Violation("%d bytes of %d numbers" % (len(value), count))
    return struct.unpack("!%d%s" % (count, code), value)


def packed(data: bytes) -> bytes | None:
    """Return some content compressed, None if that does not make it much smaller."""
    short = zlib.compress(data, 1)
    return short if len(short) < len(data) * 0.9 else None


def unpacked(short: bytes, size: int) -> bytes:
    """Decompress content of this size; raise ``Violation`` if it is anything else."""
    if zlib is None or size > PIECE_BYTES:
        raise Violation("%d compressed bytes of %d" % (len(short), size))
    try:
        data = zlib.decompressobj().decompress(short, size + 1)
    except zlib.error as exc:
        raise Violation("not compressed: %s" % exc)
    if len(data) != size:
        raise Violation("compressed: not %d bytes" % size)
    return data


def may_become(announced: int) -> int:
    """Return how large a file may be that was announced with a size and grew since."""
    return 2 * announced + SLACK_BYTES


def reason_of(exc: BaseException) -> bytes:
    """Return the text that a message has for an error."""
    text: str | bytes = (isinstance(exc, OSError) and exc.strerror) or str(exc)
    if not isinstance(text, bytes):
        text = text.encode("utf-8", "replace")
    return bytes(text[:TEXT_MAX])
