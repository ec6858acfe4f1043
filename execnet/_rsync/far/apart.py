"""Whether a source and a target lie in each other, whatever the way to either of them.

Both halves may see one file system: directly, by ``sudo``, in a container.  So a source tells which
directory it is and which ones it is in, and the target compares that with its own place.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``place_of`` and ``Apart``.
"""

from __future__ import annotations

import errno
import hashlib
import os

from .messages import fits, is_bytes, is_paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .places import Identity
    from .wire import Place

SALT_BYTES = TAG_BYTES = 16
BOOT_ID = "/proc/sys/kernel/random/boot_id"  # of Linux; the same in all of a machine's containers


def place_of(path: bytes) -> Place:
    """Return (salt, tags): first a directory's own, then those of the directories that it is in.

    A tag is equal for the same directory on the same machine only, and tells nothing else.
    """
    salt = os.urandom(SALT_BYTES)
    key = salt + machine()
    own = tag_at(path, key)
    return salt, [] if own is None else [own] + list(tags_above(path, key))


def is_place(value: object) -> bool:
    return value is None or fits(value, (is_bytes, is_paths))


class Apart(object):
    """Where the source of a target is.

    source: what ``place_of`` says of it; None for a single file, which is in nobody's way.
    """

    def __init__(self, source: Place | None) -> None:
        salt, self._tags = source or (b"", [])
        self._key = salt + machine() if self._tags else b""

    def check(self, dest: bytes, deletes: bool, keeps_apart: bool, is_left_out: bool) -> None:
        """Raise OSError if the target must not be where it is.

        keeps_apart: neither may be in the other.  is_left_out: the source leaves the target out;
        otherwise a target in the source would be copied into itself, without an end.
        """
        if not self._tags:
            return
        own = tag_at(dest, self._key)
        if deletes and own in self._tags:
            raise OSError(errno.EINVAL, "deleting there would remove the source")
        if keeps_apart and own in self._tags[1:]:
            raise OSError(errno.EINVAL, "the source is inside of it")
        may_be_inside = is_left_out and not keeps_apart
        if not may_be_inside and self._tags[0] in tags_above(dest, self._key):
            raise OSError(errno.EINVAL, "is inside of the source")

    def is_source(self, identity: Identity) -> bool:
        """Return whether a directory is the source, which another mount may have hidden so far."""
        return bool(self._tags) and tag_of(identity, self._key) == self._tags[0]


def tags_above(path: bytes, key: bytes) -> Iterator[bytes]:
    """Yield the tags of the directories that a path is in, or would be in."""
    path = os.path.realpath(path)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        tag = tag_at(path, key)
        if tag is not None:
            yield tag


def tag_at(path: bytes, key: bytes) -> bytes | None:
    """Return the tag of a directory; None if it cannot be found, or told from others."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return tag_of((found.st_dev, found.st_ino), key) if found.st_ino else None


def tag_of(identity: Identity, key: bytes) -> bytes:
    return hashlib.sha256(key + b" %d %d" % identity).digest()[:TAG_BYTES]


def machine() -> bytes:
    """Return what tells this machine from others."""
    try:
        with open(BOOT_ID, "rb") as file:
            return file.read()
    except EnvironmentError:
        name: bytes | str = os.environ.get("COMPUTERNAME", "") if os.name == "nt" else os.uname()[1]
        return name if isinstance(name, bytes) else name.encode("utf-8", "replace")
