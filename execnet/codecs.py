"""Codecs: what makes items of values that are no plain builtins, and values of items again.

    channel.codec = execnet.codecs.standard

``standard`` has dates and times, ``Decimal``, ``Fraction``, ``UUID`` and paths, and takes
dataclasses, enums and named tuples once they are registered; ``numpy`` has arrays and scalars;
``pickle`` has all that can be pickled, for those who trust both ends: either can run code in the
other.  ``standard | numpy`` has what both have.  Each access makes a codec of its own.
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
