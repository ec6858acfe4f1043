"""Names on a file system that ignores differences of case or of Unicode normal form.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Spellings``.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import islice

from .places import at, identity_of, names_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable

    from .places import Blind, Directory, Handle, Places
    from .temps import Temps

LOOKED_AT = 50  # names looked at, to find one that has another spelling
ESCAPE = "replace" if sys.version_info[0] == 2 else "surrogateescape"
IGNORES_FORMS = True if sys.platform == "darwin" else False if os.name == "nt" else None
# a tag as temporary files have; in NFD, so that it is found again where names are stored so
FORM_TAG = b"." + b"-" * 13 + b"e\xcc\x81"
not_ascii = re.compile(b"[\x80-\xff]").search


class Spellings(object):
    """Finds out in which directories of a target different names can be the same file."""

    def __init__(self, places: Places, temps: Temps, dry_run: bool) -> None:
        self._places = places
        self._temps = temps
        self._dry_run = dry_run
        self._ignores_forms: bool | None = IGNORES_FORMS  # if no name shows it; None: not known yet

    def of(self, directory: Directory) -> Spelling | None:
        """Return the ``Spelling`` of a directory whose names are known; None if it needs none."""
        directory.blind = False, False
        if directory.broken:
            return None
        try:
            assumed = (
                self._of_root(directory) if directory.parent is None else directory.parent.blind
            )
            there = directory.existing or set()
            handle = self._places.handle(directory) if there else None
            directory.blind = blindness(handle, there, assumed)
        except OSError:  # writing there will fail as well
            return None
        return Spelling(there, directory.blind) if any(directory.blind) else None

    def _of_root(self, root: Directory) -> Blind:
        """Find out with a temporary file whether case is ignored, if no existing name shows it."""
        forms = self._ignores_forms
        if self._dry_run and root.fresh:
            return os.name == "nt" or bool(forms), forms
        if self._dry_run or any(name.lower() != name.upper() for name in root.existing or ()):
            return False, forms
        return self._try_in(root, b"", (False, forms))

    def with_forms(
        self, directory: Directory, spelling: Spelling | None, names: bytes
    ) -> Spelling | None:  # fmt: skip
        """Return what takes the place of a ``Spelling`` once more names were announced.

        Only names that are not ASCII have different forms, so what comes of them is found out when
        there is such a name, with a temporary file.
        """
        if directory.blind[1] is not None or not_ascii(names) is None:
            return spelling
        if self._ignores_forms is None and not self._dry_run:
            try:
                found = self._try_in(directory, FORM_TAG, (False, False))
            except OSError:  # the file system has no such names
                found = False, False
            self._ignores_forms = found[1]
        directory.blind = directory.blind[0], bool(self._ignores_forms)
        if not any(directory.blind):
            return None
        more = Spelling(directory.existing or (), directory.blind)
        if spelling is not None:
            more.take_all(spelling)
        return more

    def _try_in(self, directory: Directory, tag: bytes, assumed: Blind) -> Blind:
        fd, temp = self._temps.create(directory, 0o600, tag)
        os.close(fd)
        try:
            return blindness(self._places.handle(directory), {temp}, assumed)
        finally:
            self._temps.drop(temp)
            directory.settled = False


class Spelling(object):
    """The names of one directory, and how each is spelled there.

    names: that exist.  blind: what the file system does not distinguish, see ``blindness``.
    """

    def __init__(self, names: Iterable[bytes], blind: Blind) -> None:
        self._blind = blind
        self._there = {self._folded(name): name for name in names}
        self.taken: dict[str, bytes] = {}  # by the names that were announced

    def take(self, name: bytes) -> tuple[bytes, bytes | None]:
        """Return (how an announced name is spelled here, another announced name that means it)."""
        folded = self._folded(name)
        other = self.taken.setdefault(folded, name)
        return self._there.get(folded, name), None if other == name else other

    def take_all(self, other: Spelling) -> None:
        """Take the names that were taken from another one."""
        for name in other.taken.values():
            self.take(name)

    def _folded(self, name: bytes) -> str:
        text = name.decode("utf-8", ESCAPE)
        if self._blind[1]:
            text = normalized("NFC", text)
        return text.lower() if self._blind[0] else text


def normalized(form: str, text: str) -> str:
    import unicodedata  # few hosts need it

    return unicodedata.normalize(form, text)  # type: ignore[arg-type]


def blindness(handle: Handle | None, names: Collection[bytes], assumed: Blind) -> Blind:
    """Return (whether a directory ignores case, whether it ignores normal forms).

    names: that exist; some are looked up in another spelling.  assumed: what to return if none of
    them shows it.
    """
    ignores_case = ignores_form = None
    if handle is None:  # there are no names
        return assumed
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


def _is_also(handle: Handle, name: bytes, text: str, names: Container[bytes]) -> bool | None:
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
