"""Codecs, which turn values of other types than plain builtins into items, and back.

    channel.codec = execnet.codecs.standard

``standard`` has dates and times, ``Decimal``, ``Fraction``, ``UUID`` and paths, and takes
dataclasses, enums and named tuples once they are registered; ``numpy`` has arrays and scalars;
``pickle`` has everything that can be pickled; use it only if you trust both ends, since either can
run code in the other.  ``standard | numpy`` has the types of both.  Each access makes a new codec.
"""

from __future__ import annotations

from ._features.codecs import Codec as Codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    standard: Codec
    numpy: Codec
    pickle: Codec

__all__ = ["Codec", "numpy", "pickle", "standard"]


def __getattr__(name: str) -> Codec:
    if name in ("standard", "numpy", "pickle"):
        return Codec([name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
