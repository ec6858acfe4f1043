"""The words of a command line: subcommands, specs, numbers of seconds.

Start at ``parse_specs``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TypeAlias

from .._speclists import expand
from ..xspec import XSpec
from .session import CommandError

# What a subcommand is added to.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
SPEC_HELP = """\
A SPEC says where and how to run an interpreter: "popen" means this machine and this Python,
"popen//python=python3.12" another Python, "ssh=user@host" another host. There are docker=, podman=,
kubectl=, lxc=, sudo=, srun= and socket= as well, and "ssh=inner//via=ID" goes through the gateway
of another SPEC. N*SPEC means N of them, "ssh=node[01-16]" is sixteen hosts, and @FILE stands for
the lines of a file, which may have comments after "#".
"""


def add_command(
    subparsers: Commands,
    name: str,
    text: str,
    description: str,
    epilog: str | None = None,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """Add the parser of a subcommand and return it; text: what the list of subcommands says."""
    return subparsers.add_parser(
        name,
        help=text,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=usage,
    )


def parse_specs(words: Sequence[str]) -> list[XSpec]:
    """Return the specs in the words, ``3*popen`` as three; ``CommandError`` for a bad one.

    ``@FILE`` stands for the lines of a file, so that its content shows in no list of processes.
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
    """Return a positive number of seconds, or raise what ``argparse`` expects."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def seconds_or_never(text: str) -> float:
    """Return a number of seconds, as ``seconds``; 0 is allowed, and stands for never."""
    return 0.0 if text == "0" else seconds(text)
