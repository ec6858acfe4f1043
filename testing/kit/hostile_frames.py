"""Hostile peers: what a worker that means harm puts on its stream.

All of it follows from a ``Random``. Start at ``frames``, which are many different ones, and at
``FLOODS``, which are one kind without end.
"""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

from workers import frame

from execnet.gateway_base import Message, dumps_fast, dumps_internal

CODES = sorted(Message._types)  # those of the library, so that a new one is sent as well
ITEMS = Message.CHANNEL_DATA, Message.CHANNEL_DATA_PART
ABOUT_ITEMS = Message.RECONFIGURE, Message.WINDOW, Message.CREDIT, Message.ACK
WORDS = [b"", dumps_internal(None), dumps_internal({}), dumps_internal(("os", "x", 1))]


def item(choose: random.Random) -> bytes:
    """Return an item, or what is nearly one."""
    good: Any = choose.choice([1, "x" * 50, [1, 2.5], {"a": (1, b"x")}, {(1, 2): 3}])
    data = choose.choice([dumps_fast, dumps_internal])(good)
    kind = choose.randrange(7)
    if kind == 0:
        return data
    if kind == 1:
        at = choose.randrange(len(data))
        return data[:at] + choose.randbytes(choose.randrange(1, 9)) + data[at + 1 :]
    if kind == 2:
        opcodes = b"]})(eaust2NKq\x94\x85\x86\x87\x90\x91\x96"
        return b"\x80\x04" + bytes(choose.choices(opcodes, k=200)) + b"."
    if kind == 3:
        return b"\x80\x04}" + b")" + b"\x85" * choose.randrange(100_000) + b"Ns."
    if kind == 4:
        return dumps_internal(
            {n * sys.hash_info.modulus: 0 for n in range(1, choose.randrange(2, 300))}
        )
    if kind == 5:
        return b"B" + struct.pack("!i", choose.randrange(-9, 99)) * choose.randrange(1, 9) + b"Q"
    return choose.randbytes(choose.randrange(200))


def _payload(choose: random.Random, code: int) -> bytes:
    """Return what may stand in a frame of that code, or what may not."""
    data = item(choose)
    if code == Message.CHANNEL_DATA_PART:
        return struct.pack("!iB", choose.randrange(9), choose.randrange(2)) + data
    if code in ABOUT_ITEMS:
        number = dumps_internal(choose.randrange(-5, 1 << 31))
        return choose.choice([b"", number, dumps_internal((True, False)), data])
    return data if code in ITEMS else choose.choice([*WORDS, data])


def frames(choose: random.Random, id: int) -> bytes:
    """Return frames of all kinds for a channel, for others, and for none."""
    said = b""
    for _ in range(choose.randrange(1, 40)):
        code = choose.choice([*ITEMS, *ITEMS, *CODES, -1, CODES[-1] + 1, 127])
        channel = choose.choice([id, id, 0, 2, choose.randrange(-2, 3000)])
        data = _payload(choose, code)
        size = choose.choice([len(data)] * 9 + [choose.randrange(-1, 1 << 30)])
        said += struct.pack("!bii", code, channel, size) + data
    return said


def one_frame(choose: random.Random, id: int) -> bytes:
    """Return a whole frame, for the channel or for none."""
    code = choose.choice(CODES)
    return frame(code, choose.choice([id, 0]), _payload(choose, code))


# ---------------------------------------------------------------- floods
#
# A flood is a source for the worker: an expression for its nth piece, where "id" is a channel of
# the coordinator, "pack" makes a header and "size" is a number of bytes.

_DATA = f"{Message.CHANNEL_DATA}, id"
_PART = f"{Message.CHANNEL_DATA_PART}, id, 5 + size"
OBJECTS = "items of very many objects"
FLOODS = {
    "large items, past the window": f"pack({_DATA}, size + 6) + text",
    "small items, past the window": f"(pack({_DATA}, 2) + none) * 1000",
    "an item without end": f"pack({_DATA}, 1 << 20) if n == 0 else b'x' * size",
    OBJECTS: (f"pack({_DATA}, 6 + (1 << 18)) + b'\\x80\\x04](' + b']' * (1 << 18) + b'e.'"),
    "an item that is too large": f"pack({_DATA}, (1 << 30) - 1) if n == 0 else b'x' * size",
    "pieces of one item, past max_item": f"pack({_PART}) + number(1) + b'\\0' + b'x' * size",
    "pieces of many items, past max_item": f"pack({_PART}) + number(n) + b'\\0' + b'x' * size",
    "empty pieces of many items": f"pack({_PART} - size) + number(n) + b'\\0'",
    "pieces of items, past the window": f"pack({_PART} + 6) + number(n) + b'\\1' + text",
    "items of channels that never were": f"pack({_DATA} + 2 * n + 1, size + 6) + text",
    "errors": f"pack({Message.CHANNEL_CLOSE_ERROR}, 2 * n + 2, size + 6) + text",
    "stacks": f"pack({Message.STACKS}, 0, size + 6) + text",
    "signs of life": f"pack({Message.PING}, 0, 0) * 1000",
    "goodbyes": f"pack({Message.GOODBYE}, 0, len(bye)) + bye",
    "requests for modules": f"pack({Message.IMPORT}, id, 2) + none",
    **{
        f"{name} of {which}": f"pack({code}, {id}, len({data})) + {data}"
        for name, code, data in [
            ("RECONFIGURE", Message.RECONFIGURE, "pair"),
            ("WINDOW", Message.WINDOW, "one"),
            ("CREDIT", Message.CREDIT, "one"),
        ]
        for which, id in [
            ("a channel that never comes", "4000"),
            ("many channels that never come", "4000 + 2 * n"),
            ("a channel", "id"),
        ]
    },
}
NAMES = {
    "none": dumps_internal(None),
    "one": dumps_internal(1),
    "pair": dumps_internal((True, False)),
    "bye": dumps_internal((0, "it", "is", "over")),
}


def flood(name: str, size: int) -> str:
    """Return the source that floods until more was said than may be kept, or nobody listens.

    It receives the id of the channel first, and sends 1 when it has said all.
    """
    total = (4 if size < 1000 or "size" not in FLOODS[name] else 100) << 20
    return f"""
import struct
id, size, total = channel.receive(), {size}, {total}
{"; ".join(f"{name} = {data!r}" for name, data in NAMES.items())}
text = b"N" + struct.pack("!i", size) + b"x" * size + b"Q"
pack = struct.Struct("!bii").pack
number = struct.Struct("!i").pack
write = channel.gateway._io.write
n = 0
while total > 0:
    piece = b""
    while len(piece) < 1 << 14:
        piece += {FLOODS[name]}
        n += 1
    write(piece)
    total -= len(piece)
channel.send(1)
channel.receive()
"""
