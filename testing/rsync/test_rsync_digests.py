"""Digests by which old and new content are compared, and which hash two halves agree on."""

from __future__ import annotations

import sys
import zlib
from typing import Any

import pytest

from execnet._rsync.far import digests
from execnet._rsync.far.digests import KEYED, SECRET_BYTES, Gmac, choose, costs, digest_of
from execnet._rsync.far.pump import Pump
from execnet._rsync.far.tree import Tree
from execnet._rsync.far.watcher import Watcher
from execnet._rsync.far.wire import CRC_32, HELLO, NO_SUM, Violation, checksum, sum_of_nothing

needs_gmac = pytest.mark.skipif(KEYED not in costs(), reason="this Python has no AES-GCM")
SECRET = b"0123456789abcdef"
# of AES with a key of zeros: the encrypted zeros, by which GCM hashes
HASH_KEY = 0x66E94BD4EF8A2C3B884CFA59CA342B2E
POLYNOMIAL = 0xE1 << 120


def product(left: int, right: int) -> int:
    """Return the product of two elements of the field that GCM computes in."""
    total = 0
    for place in range(127, -1, -1):
        if left >> place & 1:
            total ^= right
        right = right >> 1 ^ (POLYNOMIAL if right & 1 else 0)
    return total


def tag_of(data: bytes) -> bytes:
    """Return the tag of GCM, computed with nothing but integers, for a key of zeros."""
    code = 0
    sizes = (len(data) * 8).to_bytes(8, "big") + bytes(8)
    padded = data + bytes(-len(data) % 16) + sizes
    for start in range(0, len(padded), 16):
        code = product(code ^ int.from_bytes(padded[start : start + 16], "big"), HASH_KEY)
    mask = int.from_bytes(digests.TAG_OF_NOTHING, "big")
    return (code ^ mask).to_bytes(16, "big")


@needs_gmac
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000])
def test_a_keyed_digest_is_what_the_specification_says(size: int) -> None:
    data = bytes(range(256)) * 4
    assert Gmac(bytes(SECRET_BYTES))(data[:size]) == tag_of(data[:size])


@needs_gmac
def test_a_keyed_digest_depends_on_content_length_and_secret_alone() -> None:
    digest = Gmac(SECRET)
    found = {digest(b""), digest(b"\0"), digest(b"\0\0"), digest(b"\0\1"), Gmac(b"x" * 16)(b"\0")}
    assert len(found) == 5
    assert digest(memoryview(b"abcd")[1:3]) == Gmac(SECRET)(b"bc")


COSTS = {"blake2b": 4.0, "sha256": 2.0, "md5": 1.0, KEYED: 0.5}


@pytest.mark.parametrize(
    ("source", "name", "has_secret"),
    [
        (COSTS, "sha256", True),
        (COSTS | {"sha256": 5.0}, "blake2b", True),
        (COSTS | {KEYED: 3.0}, "sha256", False),  # it is slower there
        ({"sha256": 2.0}, "sha256", False),
        ({"md5": 1.0, KEYED: 0.5}, "md5", True),
    ],
)
def test_the_hash_is_the_fastest_for_the_slower_half(
    monkeypatch: pytest.MonkeyPatch, source: Any, name: str, has_secret: bool
) -> None:
    monkeypatch.setattr(digests, "costs", lambda: COSTS)
    chosen, secret, _ = choose(source)
    assert (chosen, len(secret)) == (name, SECRET_BYTES if has_secret else 0)


@pytest.mark.parametrize(
    ("adler", "crc", "nothing"),
    [
        (1.0, 1.0, CRC_32),
        (1.0, 2.5, 1),
        (3.0, 2.5, CRC_32),
        (None, 9.0, CRC_32),
        (None, None, NO_SUM),
    ],
)
def test_the_checksum_is_the_fastest_for_the_slower_half(
    monkeypatch: pytest.MonkeyPatch, adler: float | None, crc: float | None, nothing: int
) -> None:
    monkeypatch.setattr(digests, "costs", lambda: {**COSTS, "adler32": 2.0, "crc32": 1.5})
    source = {"sha256": 2.0, "adler32": adler, "crc32": crc}
    assert choose({name: cost for name, cost in source.items() if cost})[2] == nothing


@pytest.mark.parametrize("nothing", [1, CRC_32])
def test_a_checksum_goes_on_as_it_began(nothing: int) -> None:
    compute = zlib.crc32 if nothing == CRC_32 else zlib.adler32
    begun = checksum(b"a", nothing)
    assert (checksum(b"b", begun), sum_of_nothing(begun)) == (
        compute(b"ab") | nothing & CRC_32,
        nothing,
    )


def test_each_run_has_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "costs", lambda: COSTS)
    assert len({choose(COSTS)[1] for _ in range(3)}) == 3


@pytest.mark.parametrize("secret", [b"", pytest.param(SECRET, marks=needs_gmac)])
@pytest.mark.parametrize("size", [0, 1, 8, 20])
def test_digests_of_blocks_are_those_of_each_block(secret: bytes, size: int) -> None:
    digest = digest_of("sha256", secret)
    data = bytes(range(size))
    blocks = [data[start : start + 8] for start in range(0, size, 8)]
    assert digest.of_blocks(data, 8) == b"".join(map(digest, blocks))


def test_a_python_that_cannot_reach_its_cryptography_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "_hashlib", None)
    assert KEYED not in costs()
    assert choose({"sha256": 1e-9, KEYED: 1e-9}) == ("sha256", b"", NO_SUM)
    with pytest.raises(Violation, match="secret"):
        digest_of("sha256", SECRET)


def test_a_library_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "Gmac", lambda secret: lambda data: bytes(16))
    assert KEYED not in costs()


def test_a_secret_of_another_length_breaks_the_protocol(tmp_path: Any) -> None:
    tree = Tree(bytes(tmp_path), None, lambda *_: None)
    said = iter([(HELLO, "sha256", b"short", 1)])
    with pytest.raises(Violation, match="5 bytes"):
        Pump(tree, tree.walk().__next__, lambda _: None, said.__next__, Watcher()).run()


@pytest.mark.parametrize("nothing", [2, 2**31, CRC_32 + 1, 2 * CRC_32])
def test_a_checksum_of_nothing_that_is_none_breaks_the_protocol(
    tmp_path: Any, nothing: int
) -> None:
    tree = Tree(bytes(tmp_path), None, lambda *_: None)
    said = iter([(HELLO, "sha256", b"", nothing)])
    with pytest.raises(Violation, match="no such checksum"):
        Pump(tree, tree.walk().__next__, lambda _: None, said.__next__, Watcher()).run()
