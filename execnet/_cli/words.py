"""What the words of a command line mean: specs, numbers of seconds.

Start at ``parse_specs``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from .._speclists import expand
from ..xspec import XSpec
from .session import CommandError

SPEC_HELP = """\
A SPEC says where an interpreter is to run and how: "popen" is one like this one, on this machine,
"popen//python=python3.12" another one, "ssh=user@host" one on another host. There are docker=,
podman=, kubectl=, lxc=, sudo=, srun= and socket= as well, and "ssh=inner//via=ID" goes through the
gateway of another SPEC. N*SPEC means N of them, "ssh=node[01-16]" is sixteen hosts, and @FILE
stands for the lines of a file, which may have comments after "#".
"""


def parse_specs(words: Sequence[str]) -> list[XSpec]:
    """Return the specs of the words, ``3*popen`` as three; ``CommandError`` for a bad one.

    ``@FILE`` stands for the lines of a file, so that no list of processes shows what is in there.
    """
    words = [line for word in words for line in _lines_of(word)]
    specs: list[XSpec] = []
    word_of: dict[str, str] = {}
    for word in words:
        for text in _expanded(word):
            try:
                spec = XSpec(text)
            except (AttributeError, ValueError) as exc:
                where = "" if word == text else f"spec {_shown(word)!r}: "
                raise CommandError(f"{where}{exc}") from exc
            if spec.id is not None and spec.id in word_of:
                raise CommandError(
                    f"spec {_shown(word)!r}: id {spec.id!r} is taken, "
                    f"by spec {_shown(word_of[spec.id])!r}"
                )
            if spec.id is not None:
                word_of[spec.id] = word
            specs.append(spec)
    return specs


def _expanded(word: str) -> list[str]:
    try:
        return expand(word)
    except ValueError as exc:
        raise CommandError(str(exc).replace(repr(word), repr(_shown(word)))) from exc


def _lines_of(word: str) -> list[str]:
    if not word.startswith("@"):
        return [word]
    try:
        with open(word[1:], encoding="utf-8") as file:
            lines = [re.sub(r"(?:^|\s)#.*", "", line).strip() for line in file]
    except (OSError, ValueError) as exc:
        raise CommandError(f"can't read specs from file {word[1:]!r}: {exc}") from exc
    return [line for line in lines if line]


def _shown(word: str) -> str:
    return re.sub(r"((?:^|\*|//)env:[^=/]+)=.*?(?=//|$)", r"\1=...", word, flags=re.DOTALL)


def seconds(text: str) -> float:
    """Return a number of seconds above 0, or raise what ``argparse`` expects."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
