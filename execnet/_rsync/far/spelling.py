"""Names on a file system that ignores differences of case or of Unicode normal form.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Spelling``.
"""

from __future__ import annotations

import os
import sys
from itertools import islice

from .places import at, identity_of, names_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOOKED_AT = 50  # names looked at, to find one that has another spelling
ESCAPE = "replace" if sys.version_info[0] == 2 else "surrogateescape"


class Spelling(object):
    """The names of one directory, and how each is spelled there.

    names: that exist.  blind: what the file system does not distinguish, see ``blindness``.
    """

    def __init__(self, names: Any, blind: Any) -> None:
        self._blind = blind
        self._there = {self._folded(name): name for name in names}
        self._taken: Any = {}  # by the names that were announced

    def take(self, name: bytes) -> Any:
        """Return (how an announced name is spelled here, another announced name that means it)."""
        folded = self._folded(name)
        other = self._taken.setdefault(folded, name)
        return self._there.get(folded, name), None if other == name else other

    def _folded(self, name: bytes) -> Any:
        text = name.decode("utf-8", ESCAPE)
        if self._blind[1]:
            text = normalized("NFC", text)
        return text.lower() if self._blind[0] else text


def normalized(form: str, text: Any) -> Any:
    import unicodedata  # few hosts need it

    return unicodedata.normalize(form, text)  # type: ignore[arg-type]


def blindness(handle: Any, names: Any, assumed: Any) -> Any:
    """Return (whether a directory ignores case, whether it ignores normal forms).

    names: that exist; some are looked up in another spelling.  assumed: what to return if none of
    them shows it.
    """
    ignores_case = ignores_form = None
    for name in islice(names, LOOKED_AT):
        text = name.decode("utf-8", ESCAPE)
        if ignores_case is None:
            ignores_case = _is_also(handle, name, text.swapcase(), names)
        if ignores_form is None and len(text) != len(name):
            forms = {normalized("NFC", text), normalized("NFD", text)} - {text}
            ignores_form = _is_also(handle, name, forms.pop() if forms else text, names)
        if ignores_case is not None and ignores_form is not None:
            break
    return (
        assumed[0] if ignores_case is None else ignores_case,
        assumed[1] if ignores_form is None else ignores_form,
    )


def _is_also(handle: Any, name: bytes, text: Any, names: Any) -> Any:
    """Return whether a name is found in another spelling; None if that is the same, or exists."""
    try:
        other = text.encode("utf-8", ESCAPE)
    except UnicodeError:
        return None
    if other == name or other in names:
        return None
    try:
        path, where = at(handle, name)
        known = os.lstat(path, **where)
        path, where = at(handle, other)
        found = os.lstat(path, **where)
        if identity_of(found) == identity_of(known):
            return True
        # by FUSE a file may have a number for each spelling; or somebody has made another one
        return other not in names_in(handle)
    except OSError:
        return False
