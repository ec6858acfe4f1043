# ruff: noqa: RUF005, UP
"""What both halves of RSync must agree on: codes, sizes, packing, digests.

``rsync_remote`` stands alone when it is shipped and has its own copy of these names; a test
keeps the two equal.  What the messages mean is told there.
"""

from __future__ import annotations

import hashlib
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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


class Violation(Exception):
    """The other half said something that the protocol, or the safety of this host, forbids."""


def usable_hashes() -> Any:
    """Return the names of the hashes that this Python has, the best first."""
    return [name for name in HASHES if is_usable(name)]


def is_usable(name: str) -> bool:
    try:
        new_digest(name)(b"")
    except (AttributeError, ValueError):  # too old, or forbidden on this host
        return False
    return True


def new_digest(name: Any) -> Any:
    """Return the factory of hashes of a name; it was chosen by the target."""
    if isinstance(name, bytes):  # as Python 2 writes it
        name = name.decode("ascii")
    if name not in HASHES:
        raise Violation("no such hash: %.100r" % (name,))
    if name == "blake2b":
        return lambda data: hashlib.blake2b(data, digest_size=DIGEST_BYTES)
    return hashlib.md5


def block_bytes(size: int) -> int:
    """Return the bytes of a block of a file of this size; a power of two, at most a piece."""
    block = 16 * 1024
    while size > block * 16384 and block < PIECE_BYTES:
        block *= 2
    return block


def pack_ids(ids: Any) -> bytes:
    return struct.pack("!%dQ" % len(ids), *ids)


def unpack_ids(blob: bytes) -> Any:
    if len(blob) % 8:
        raise Violation("%d bytes of ids" % len(blob))
    return struct.unpack("!%dQ" % (len(blob) // 8), blob)


def pack_numbers(code: str, values: Any) -> Any:
    try:
        return struct.pack("!%d%s" % (len(values), code), *values)
    except struct.error:  # a time beyond the year 2262
        return list(values)


def reason_of(exc: Any) -> bytes:
    """Return what a message says of an error."""
    text = getattr(exc, "strerror", None) or str(exc)
    if not isinstance(text, bytes):
        text = text.encode("utf-8", "replace")
    return bytes(text[:TEXT_MAX])
