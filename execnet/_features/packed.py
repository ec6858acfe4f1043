"""Arrays of numpy; large ones travel as they are in memory, after the item that they are in.

An item with large arrays is one item of bytes.  It begins with ``MAGIC`` and the size of an
ordinary item, in which a large array is its type, its shape and where its bytes begin; then come
that item and the bytes of the arrays.  So these are sent from where they are, and arrays are made
of the memory in which they have come.  Start at ``pieces_of``.
"""

from __future__ import annotations

import struct

from ..gateway_base import DumpError, LoadError, _import, dumps_fast, dumps_internal, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any, TypeVar

    from ..gateway_base import Channel, Piece
    from .codecs import Codec

    Whole = bytes | bytearray
    K = TypeVar("K")
    T = TypeVar("T")
    V = TypeVar("V")

_DTYPE = r"[<>|=][biufcSUmM][1-9][0-9]*(\[[0-9a-zA-Z]+\])?\Z"
MAGIC = b"\0packed\1"
LARGE_BYTES = 1 << 16  # a smaller array is cheaper within the item
ALIGNED_BYTES = 64  # so that numpy is as fast with them as with its own
_SIZE = struct.Struct("!Q")
_START = len(MAGIC) + _SIZE.size
# What threads are packing or unpacking.
_raws: dict[int, list[memoryview] | None] = {}
_wholes: dict[int, tuple[Whole, int]] = {}


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES


def with_raws(raws: list[memoryview] | None, function: Callable[[T], V], item: T) -> V:
    """Call a function of an item; ``add_raw`` adds to a list meanwhile, or to none."""
    return _with(_raws, raws, function, item)


def _with(table: dict[int, K], value: K, function: Callable[[T], V], item: T) -> V:
    ident = get_ident()
    before = table.get(ident)
    table[ident] = value
    try:
        return function(item)
    finally:
        if before is None:
            table.pop(ident, None)
        else:
            table[ident] = before


def add_raw(view: memoryview) -> int | None:
    """Have bytes sent after the item; return where they begin, None if they have to be in it."""
    raws = _raws.get(get_ident())
    if raws is None or len(view) < LARGE_BYTES:
        return None
    start = sum([_aligned(len(raw)) for raw in raws])
    raws.append(view)
    return start


def pieces_of(channel: Channel, plain: object, raws: list[memoryview]) -> list[Piece]:
    """Return the pieces of an item of bytes for a plain item and what is to come after it."""
    dump = dumps_fast if channel._factory.fast else dumps_internal
    data = dump(plain, channel.gateway)
    head = MAGIC + _SIZE.pack(len(data)) + data
    pieces: list[Piece] = [head + bytes(bytearray(_aligned(len(head)) - len(head)))]
    for raw in raws:
        pieces += [raw, bytes(bytearray(_aligned(len(raw)) - len(raw)))]
    return pieces


def unpacked(whole: Whole, channel: Channel | None, value_of: Callable[[object], V]) -> V:
    """Return what ``value_of`` makes of the item in bytes that begin with ``MAGIC``.

    channel: the one that they came over.  Raises ``LoadError`` where there is no such item.
    """
    if channel is None or len(whole) < _START:
        raise LoadError("packed bytes out of place")
    end = _START + _SIZE.unpack_from(whole, len(MAGIC))[0]
    if end > len(whole):
        raise LoadError("packed bytes that end in their item")
    plain = channel._factory.load_item(
        bytes(whole[_START:end]), channel._factory, channel._strconfig
    )
    return _with(_wholes, (whole, _aligned(end)), value_of, plain)


def raw_of(start: object, size: int) -> tuple[Whole, int]:
    """Return the memory that has the bytes of an array, and where they begin in it."""
    whole, first = _wholes.get(get_ident(), (b"", 0))
    if type(start) is not int or start < 0 or first + start + size > len(whole):
        raise LoadError("an array of %d bytes that have not come" % size)
    return whole, first + start


# ---------------------------------------------------------------- arrays


def register_numpy(codec: Codec) -> None:
    numpy = __import__("numpy")
    codec._add(numpy.ndarray, "numpy.ndarray", _array_item, lambda item: _array(numpy, *item))
    codec._from_item["numpy.scalar"] = lambda item: _array(numpy, *item)[()]
    codec._to_item["numpy.scalar"] = _array_item
    for kind in set(numpy.sctypeDict.values()):
        codec._names.setdefault(kind, "numpy.scalar")


def _array_item(array: Any) -> object:
    text = array.dtype.str
    if array.dtype.hasobject or not _import("re").match(_DTYPE, text):
        raise DumpError("an array of %s can't be sent, only one of numbers or text" % array.dtype)
    shape = tuple(map(int, array.shape))
    if array.nbytes >= LARGE_BYTES and array.flags.c_contiguous:
        start = add_raw(memoryview(array.reshape(-1).view("u1")))
        if start is not None:
            return text, shape, None, start
    return text, shape, array.tobytes()


def _array(
    numpy: ModuleType,
    text: str,
    shape: Sequence[int],
    data: Any,
    start: object = None,
) -> Any:
    if not _import("re").match(_DTYPE, text) or len(shape) > 32:
        raise LoadError("no array: %.40r" % (text,))
    dtype, count = numpy.dtype(str(text)), 1
    for size in shape:
        if type(size) is bool or size < 0:
            raise LoadError("an array of the shape %.80r" % (shape,))
        count *= size
    if start is not None:
        data, start = raw_of(start, count * dtype.itemsize)
        array = numpy.frombuffer(data, dtype, count, start).reshape(shape)
        return array if type(data) is bytearray else array.copy()
    data = octets(data)
    if count * dtype.itemsize != len(data):
        raise LoadError("an array of %d values in %d bytes" % (count, len(data)))
    if not count:
        return numpy.zeros(shape, dtype)
    return numpy.frombuffer(data, dtype).reshape(shape).copy()  # received arrays are writable


def octets(data: bytes | str) -> bytes:
    """Return bytes; those of Python 2 arrive as another type."""
    return data if isinstance(data, bytes) else data.encode("latin-1")
