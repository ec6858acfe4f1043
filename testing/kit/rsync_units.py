"""What one side of an RSync tells the other, made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from execnet._rsync.far.wire import COMPLETE


def unit(
    entries: list[tuple[bytes, int, int]], extras: Iterable[Any] = (), directory: int = 0,
    first: int = 1, last: int = COMPLETE, mode: int = 0o755,
    kept: bytes = b"", left_out: bytes = b"",
) -> tuple[Any, ...]:  # fmt: skip
    """Return a unit with (name, kind, size) entries."""
    names = b"\0".join(name for name, _, _ in entries)
    kinds = bytes(kind for _, kind, _ in entries)
    count = len(entries)
    modes = struct.pack(f"!{count}H", *[mode] * count)
    sizes = struct.pack(f"!{count}q", *[size for _, _, size in entries])
    times = struct.pack(f"!{count}q", *[1] * count)
    return directory, first, names, kinds, modes, sizes, times, list(extras), (kept, left_out), last


# What a ``Target`` is told, besides the place and what comes there.
OPTIONS: dict[str, Any] = {
    "hashes": {"md5": 1.0}, "name": b"source", "rules": [], "asks": False, "expanduser": False,
    "modes": True, "times": True, "window_ns": 0, "delete": False, "dry_run": False,
    "mask": 0, "links": "as-is", "max_files": None, "max_bytes": None, "owners": False,
    "is_bounded": False, "partial": False,
}  # fmt: skip

# What may stand in a message in place of what belongs there.
LIES: list[Any] = [
    None, True, -1, 0, 1, 2, 77, 2**40, 2**63, 2**100, -(2**100), 1.5, "x", b"", b"x", b"\0" * 8,
    b"\xff" * 8, b"\xff" * 4096, [], [0], [None], [()], [b"x", 5], {}, {0: 1}, {0: (2**70, 2**99)},
    {"x": (1, 1)}, (), (1,), (b"", b""), [[]],
]  # fmt: skip
