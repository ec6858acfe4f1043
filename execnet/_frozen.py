"""Frozen programs: made of a program and its Python, by PyInstaller and the like.

There ``sys.executable`` is the program, which is no interpreter.  It is started with the words
of an interpreter all the same, as everywhere, and ``freeze_support`` knows them.
"""

from __future__ import annotations

import sys

from ._transports import table as transports_table

READS_CODE = "import sys;", "eval(sys.stdin.readline())"  # all that we start does


def freeze_support() -> None:
    """Let a frozen program be a worker: it never returns in a process that was started as one.

    Call it first thing in the main module of a program that is to be frozen, before it looks
    at its arguments and before it makes gateways.  Does nothing in a program that is not
    frozen, and nothing more in one that was started by its user.
    """
    transports_table.is_freeze_supported = True
    code = _code(sys.argv[1:]) if getattr(sys, "frozen", False) else None
    if code is not None:
        del sys.argv[: sys.argv.index("-c")]
        del sys.argv[1]
        if sys.stdin is None:  # a program without a console
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as it lives
        exec(code, {"__name__": "__main__"})
        sys.exit()


def _code(arguments: list[str]) -> str | None:
    """Return the code if these are the words by which an interpreter is made a worker."""
    words = [word for word in arguments[:3] if word != "-B"] + arguments[3:]
    if arguments[:1] != ["-u"] or words[1:2] != ["-c"] or len(words) < 3:
        return None
    begin, reads = READS_CODE
    return words[2] if words[2].startswith(begin) and reads in words[2] else None
