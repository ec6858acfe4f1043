"""Slips in specs: which key was meant, and what a word was meant to say.

Knows names and texts only, and starts nothing.  Start at ``meant`` and ``place_meant``.
"""

from __future__ import annotations

import re
import sys
import warnings

from ._errors import SpecWarning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from .xspec import XSpec

    class Checked(Protocol):
        """A spec that was checked."""

        spec: XSpec
        unknown: list[str]

        def slip(self, name: str, is_sure: bool = False) -> str: ...


_looked_at: set[str] = set()  # keys of specs that mean nothing to us
SURE, LIKELY = 0.8, 0.7  # how alike words are, of 1


def meant(word: str, known: Iterable[str], likeness: float = SURE) -> str | None:
    """Return the known word that was meant, if one is close to it."""
    from difflib import get_close_matches

    names = list(known)
    turned = [name for name in names if len(name) > 1 and sorted(name) == sorted(word)]
    if turned:
        return turned[0]
    if len(word) < 3:
        return None
    return next(iter(get_close_matches(word.lower(), names, 1, likeness)), None)


def place_meant(text: str, types: Iterable[str]) -> str | None:
    """Return the spec that a text without a type was meant to be, if that can be told."""
    first, slashes, rest = text.partition("//")
    key, equals, value = first.partition("=")
    name = meant(key, types, LIKELY)
    if name is not None:
        return f"{name}{equals}{value}{slashes}{rest}"
    host = r"(?:[\w.-]+@)?[\w.-]+"
    match = re.fullmatch(rf"({host}):(\d+)", first)
    if match:
        return f"ssh=-p {match[2]} {match[1]}{slashes}{rest}"
    match = re.fullmatch(rf"({host}):([^:=]*)", first)
    if match:
        folder = f"//chdir={match[2]}" if match[2] else ""
        return f"ssh={match[1]}{folder}{slashes}{rest}"
    if re.fullmatch(r"[\w.-]+@[\w.-]+|[\w-]+(?:\.[\w-]+)+", first):
        return f"ssh={text}"
    return None


def host_meant(value: str) -> str | None:
    """Return what the value of ``ssh=`` was meant to be, where its host has a colon in it."""
    match = re.fullmatch(r"(?:ssh:)?((?:[\w.-]+@)?[\w.-]+):(\d+)?([^:\s]*)", value)
    if match is None:
        return None
    port = f"-p {match[2]} " if match[2] and not match[3] else ""
    folder = f"{match[2] or ''}{match[3]}" if not port else ""
    return f"ssh={port}{match[1]}{f'//chdir={folder}' if folder else ''}"


def warn_of_slips(settings: Checked) -> None:
    """Warn, once a key, about unknown keys that are very much like known ones."""
    for name in settings.unknown:
        if name in _looked_at:
            continue
        _looked_at.add(name)
        text = settings.slip(name, is_sure=True)
        if text:
            text = f"{text} (in spec {settings.spec.shown()!r})"
            warnings.warn(text, SpecWarning, stacklevel=levels_to_user())


def levels_to_user() -> int:
    """Return how many frames are ours, from the caller on, for a warning that names the user's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("execnet."):
        level, frame = level + 1, frame.f_back
    return level
