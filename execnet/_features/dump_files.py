"""Dumps in files, and items that are read from a stream one by one.

``gateway_base`` has the format, and the names of what is here.
"""

from __future__ import annotations

from ..gateway_base import (
    _STRINGS,
    LoadError,
    _check_version,
    _unpack_int4,
    dumps,
    loads_internal,
    opcode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..gateway_base import Reads, StrConfig, Writes


def dump(byteio: Writes, obj: object) -> None:
    """Write ``dumps(obj)`` to a file that takes bytes."""
    byteio.write(dumps(obj))


_SIZES = dict(zip("CJLPQR@BEFGKODT", [0] * 6 + [4] * 7 + [8, 16]))  # bytes after an opcode


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size > 0:
        data = read(min(size, 1 << 20))  # so that a false size does not allocate much
        if not data:
            raise EOFError("%d bytes are missing" % size)
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _read_item(read: Callable[[int], bytes]) -> bytes:
    """Read the bytes of one item, up to its STOP and not a byte more."""
    parts = []
    op = b""
    while op != opcode.STOP:
        op = _read_exactly(read, 1)
        size = _SIZES.get(op.decode("latin-1"))
        parts.append(op)
        if size is None:
            if op[0] not in _STRINGS:
                raise LoadError("unknown opcode %r" % (op,))
            parts.append(_read_exactly(read, 4))
            size = _unpack_int4(parts[-1])[0]
        parts.append(_read_exactly(read, size))
    return b"".join(parts)


class Unserializer(object):
    """Reads items in the classic format from a stream that has ``read``.

    ``channel_or_gateway`` makes the channels that an item may contain and gives the default
    of ``strconfig``, the pair (py2str_as_py3str, py3str_as_py2str).
    """

    def __init__(
        self, stream: Reads, channel_or_gateway: object = None, strconfig: StrConfig | None = None
    ) -> None:
        self.stream = stream
        self.channel_or_gateway = channel_or_gateway
        self.strconfig = strconfig

    def load(self, versioned: bool = False) -> Any:
        """Return the next item.

        Raises ``LoadError`` for data that no serializer wrote and ``EOFError`` where the
        stream ends within an item.
        """
        if versioned:
            _check_version(self.stream.read(1))
        data = _read_item(self.stream.read)
        return loads_internal(data, self.channel_or_gateway, self.strconfig)


def load(io: Reads, py2str_as_py3str: bool = False, py3str_as_py2str: bool = False) -> Any:
    """Return the object whose dump comes next in a file that gives bytes.

    Takes options and raises errors as ``loads``.
    """
    return Unserializer(io, None, (py2str_as_py3str, py3str_as_py2str)).load(True)
