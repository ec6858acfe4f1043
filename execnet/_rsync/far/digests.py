"""Digests of content, by a hash that both halves have and that the slower one computes fast.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``choose``.

Comparing two large files costs little else than hashing them.  ``Gmac`` takes a fifth of the time
of SHA-256 with instructions of the processor, through the library that ``hashlib`` uses itself.
Its digests depend on a secret that each run chooses: whoever knows that could make up content
with a given digest, but whoever made a file before the run cannot have known.  The two halves of a
run do know it, and they might as well lie about the content.
"""

from __future__ import annotations

import hashlib
import os

from .wire import DIGEST_BYTES, NO_SUM, SUMS_OF_NOTHING, Violation, checksum, clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .wire import Buffer


    class Hash(Protocol):
        """An object of ``hashlib``."""

        def update(self, data: Buffer, /) -> object: ...
        def digest(self) -> bytes: ...

# blake2b where both have it; sha256 where both compute that faster, thanks to instructions of
# the processor, or where one is too old for blake2b; md5 where a host has neither
HASHES = ("blake2b", "sha256", "md5")
KEYED = "gmac"  # where both have it, and it is faster than these
SECRET_BYTES = 16
GET_TAG = 16  # EVP_CTRL_AEAD_GET_TAG
# what the first test case of the specification of GCM says: an empty text, key and nonce of zeros
TAG_OF_NOTHING = b"\x58\xe2\xfc\xce\xfa\x7e\x30\x61\x36\x7f\x1d\x57\xa4\xe7\x45\x5a"
MISSING = (AttributeError, ImportError, OSError, ValueError)  # what using a hash then raises


class Digest(object):
    """Computes digests of ``bytes`` or of a ``memoryview``.

    new: makes an object of ``hashlib`` from some data.
    """

    def __init__(self, new: Callable[[Buffer], Hash]) -> None:
        self._new = new

    def __call__(self, data: Buffer) -> bytes:
        digest: bytes = self._new(data).digest()[:DIGEST_BYTES]
        return digest

    def of_blocks(self, data: bytes, block: int) -> bytes:
        """Return the digests of the blocks of some content, one after the other."""
        view = memoryview(data)
        return b"".join([self(view[start : start + block]) for start in range(0, len(data), block)])


class Gmac(Digest):
    """Computes digests with the authentication of AES-GCM, which hashes what it does not encrypt.

    One thread may use it at a time.  Raises one of ``MISSING`` where Python's own library of
    cryptography has no such cipher, or cannot be reached.

    D. McGrew, J. Viega, "The Galois/Counter Mode of Operation (GCM)", 2004.
    """

    _context = None  # until there is one

    def __init__(self, secret: bytes) -> None:
        import _hashlib
        import ctypes  # the standard library offers no other way

        # Its calls are too short to let other threads run.
        library = ctypes.PyDLL(getattr(_hashlib, "__file__", None))
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._cast: Callable[..., ctypes.c_void_p] = ctypes.cast
        self._pointer = pointer

        def named(name: str, result: Any, *arguments: Any) -> Any:
            found = library["EVP_" + name]
            found.restype, found.argtypes = result, arguments
            return found

        self._free = named("CIPHER_CTX_free", None, pointer)
        self._begin = named("EncryptInit_ex", number, *[pointer] * 5)
        self._take = named("EncryptUpdate", number, *[pointer] * 4 + [number])
        self._end = named("EncryptFinal_ex", number, pointer, pointer, pointer)
        self._control = named("CIPHER_CTX_ctrl", number, pointer, number, number, pointer)
        cipher = named("aes_128_gcm", pointer)()
        self._tag = ctypes.create_string_buffer(DIGEST_BYTES)
        self._count = ctypes.byref(number())
        self._nonce = b"\0" * 12
        self._context = named("CIPHER_CTX_new", pointer)()
        if not cipher or not self._begin(self._context, cipher, None, secret, self._nonce):
            raise ValueError("no AES-GCM")

    def __call__(self, data: Buffer) -> bytes:
        return self._at(data if isinstance(data, bytes) else data.tobytes(), len(data))

    def of_blocks(self, data: bytes, block: int) -> bytes:
        """Return the digests of the blocks of some content, one after the other."""
        place, size = self._cast(data, self._pointer).value or 0, len(data)
        starts = range(0, size, block)
        return b"".join([self._at(place + start, min(block, size - start)) for start in starts])

    def _at(self, place: bytes | int, size: int) -> bytes:
        """Return the digest of what is at an address, or of bytes."""
        context, tag, count = self._context, self._tag, self._count
        if not (
            self._begin(context, None, None, None, self._nonce)
            and self._take(context, None, count, place, size)
            and self._end(context, tag, count)
            and self._control(context, GET_TAG, DIGEST_BYTES, tag)
        ):
            raise ValueError("AES-GCM failed")
        return bytes(tag.raw)

    def __del__(self) -> None:
        if self._context:
            self._free(self._context)


def costs() -> dict[str, float]:
    """Return {name: seconds for some data} for the hashes and checksums that this Python has."""
    found = {name: _cost(name) for name in HASHES + (KEYED,) + tuple(SUMS_OF_NOTHING)}
    return {name: cost for name, cost in found.items() if cost}


def _cost(name: str) -> float | None:
    """Return the seconds that hashing some data takes, None if this Python lacks the hash.

    The best of a few counts: other processes may be using this host.
    """
    data = b"x" * 32768  # a block of a large file
    try:
        if name in SUMS_OF_NOTHING:
            return _least_seconds(lambda data: checksum(data, SUMS_OF_NOTHING[name]), data)
        digest = Gmac(b"\0" * SECRET_BYTES) if name == KEYED else digest_of(name, b"")
        first = digest(b"")  # which may load a library
        if name == KEYED and first != TAG_OF_NOTHING:
            return None
        return _least_seconds(digest, data)
    except MISSING:  # too old, or forbidden on this host
        return None


def _least_seconds(compute: Callable[[bytes], object], data: bytes) -> float:
    return min([max(_seconds_of(compute, data), 1e-9) for _ in range(3)])


def _seconds_of(compute: Callable[[bytes], object], data: bytes) -> float:
    started = clock()
    compute(data)
    return float(clock() - started)


def digest_of(name: str, secret: bytes) -> Digest:
    """Return a ``Digest``.

    name, secret: what ``choose`` returned.
    """
    if secret:
        if len(secret) != SECRET_BYTES:
            raise Violation("a secret of %d bytes" % len(secret))
        try:
            return Gmac(secret)
        except MISSING as exc:
            raise Violation("no digests with a secret: %s" % exc)
    if name not in HASHES:
        raise Violation("no such hash: %.100r" % (name,))
    if name == "blake2b":
        return Digest(lambda data: hashlib.blake2b(data, digest_size=DIGEST_BYTES))
    return Digest(stream_of(name))


def stream_of(name: str) -> Callable[..., Hash]:
    """Return a function that makes an object of ``hashlib``."""
    found: Callable[..., Hash] = getattr(hashlib, name)
    return found


def choose(source_costs: dict[str, float]) -> tuple[str, bytes, int]:
    """Return (name of a hash, secret, checksum of nothing), the fastest for the slower of the two.

    The secret is empty where digests are those of the hash itself.  It is md5 if there is no other.
    The checksum is ``NO_SUM`` where one half has none.
    """
    common = {}
    for name, cost in costs().items():
        there = source_costs.get(name)
        if there:
            common[name] = max(cost, there)
    names = [name for name in HASHES if name in common]
    if not names:
        raise Violation("no hash in common: %.200r" % (source_costs,))
    best = min([name for name in names if name != "md5"] or names, key=common.__getitem__)
    is_keyed = common.get(KEYED, common[best]) < common[best]
    sums = sorted([name for name in SUMS_OF_NOTHING if name in common], key=common.__getitem__)
    nothing = SUMS_OF_NOTHING[sums[0]] if sums else NO_SUM
    return best, os.urandom(SECRET_BYTES) if is_keyed else b"", nothing
