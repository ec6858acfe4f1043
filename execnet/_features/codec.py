"""The fast codec: the C pickler, made strict, for containers of plain builtins.

The first byte distinguishes its items (0x80, a pickle of protocol 4) from those in the classic
format.  Items that it refuses go through the classic codec, which also words the error.  It can't
name, import or call anything.
"""

from __future__ import annotations

import sys
from io import BytesIO

from ..gateway_base import (
    _CONTAINERS,
    _NESTING_MAX,
    DumpError,
    LoadError,
    _import,
    _Parts,
    dumps_internal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

try:
    _pickle: Any = _import("_pickle")
except ImportError:  # an interpreter without its C accelerator
    _pickle = _import("pickle")


class StrictPickler(_pickle.Pickler):  # type: ignore[misc]
    """Pickles plain builtins, and refuses anything that pickle would have to name."""

    def reducer_override(self, obj: object) -> NoReturn:
        raise DumpError("not a plain builtin")


class StrictUnpickler(_pickle.Unpickler):  # type: ignore[misc]
    """Loads plain builtins."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise LoadError("a pickle asks for %s.%s" % (module, name))


_PICKLED_CONTAINERS = (b"]", b"}", b"(", b"\x85", b"\x86", b"\x87", b"\x8f")
# Of picklers that succeeded: ``dump``, and what it writes to.
_idle_picklers: list[tuple[Callable[[object], object], _Parts]] = []


def _nested_too_deeply(pickled: bytes, item: object) -> bool:
    """Whether a pickled item is nested more deeply than the classic codec allows."""
    # Before 3.12 the pickler has the same limit.
    if sys.version_info < (3, 12) or sum(map(pickled.count, _PICKLED_CONTAINERS)) < _NESTING_MAX:
        return False
    import gc

    level = [item]
    for _ in range(_NESTING_MAX):
        level = [part for part in gc.get_referents(*level) if type(part) in _CONTAINERS]
    return bool(level)


def dump_pickled(item: object, gateway: object = None) -> bytes:
    """Return a container pickled, or in the classic format."""
    written: list[bytes] | None = None
    try:
        try:
            dump, written = taken = _idle_picklers.pop()  # so that no other thread uses it
        except IndexError:
            parts = _Parts()
            pickler = StrictPickler(parts, 4)
            pickler.fast = True  # no memo: an item is a tree, like in the classic format
            dump, written = taken = pickler.dump, parts
        dump(item)
    except Exception:  # it can't be pickled
        written = None
    if written is None:  # the classic codec dumps it, or refuses it with a reason
        return dumps_internal(item, gateway)
    data = written[0] if len(written) == 1 else b"".join(written)
    del written[:]
    if len(data) < 4096 and not _idle_picklers:  # a pickler remembers its largest item's size
        _idle_picklers.append(taken)
    # A bytearray never asks ``reducer_override``; it has an opcode of its own.
    if (0x93 in data and b"bytearray" in data) or (
        len(data) > _NESTING_MAX and _nested_too_deeply(data, item)
    ):
        return dumps_internal(item, gateway)
    return data


def _refuse_extensions(data: bytes) -> None:
    """Raise for a pickle with an extension code whose object this process has loaded before.

    Only such codes are looked up without ``find_class``; programs hardly ever have any.
    """
    copyreg = sys.modules.get("copyreg")
    if copyreg is not None and getattr(copyreg, "_extension_cache", None):
        import pickletools

        if any(op.name.startswith("EXT") for op, _, _ in pickletools.genops(data)):
            raise LoadError("a pickle asks for an extension")


def load_pickled(data: bytes) -> Any:
    """Return the item that ``dump_pickled`` pickled; raises for any other pickle."""
    # These bytes import something: STACK_GLOBAL, the extensions, and the ends of the two lines
    # that GLOBAL and INST read.
    if len(data) < 500 and not (
        (0x93 in data or 0x82 in data or 0x83 in data or 0x84 in data)
        or (10 in data and data.count(b"\n") > 1)
    ):
        return _pickle.loads(data)
    _refuse_extensions(data)
    return StrictUnpickler(BytesIO(data)).load()
