"""Start of a fresh program's first or second context of a kind, to its answer, in milliseconds.

Arguments: ``python`` (an interpreter on this machine) or ``ssh``; ``alone`` (with the import, and
no context before it), ``first`` (after one on this machine) or ``second``.
"""

from __future__ import annotations

from pathlib import Path

from _fresh import first_or_second
from _measure import Result, Scaled, main

IMPORTS = f"""\
import os, sys
sys.path.append({str(Path(__file__).parent)!r})
from _mitogen import Router
"""
STARTS = {
    "python": "router.start().call(os.getpid)",
    "ssh": "router.start_by_ssh({host!r}, {config!r}).call(os.getpid)",
    "shared": "router.start_by_ssh({host!r}, {config!r}).call(os.getpid)",
}


def measure(scaled: Scaled, kind: str, which: str) -> Result:
    def statements(**words: str) -> tuple[str, ...]:
        plain = "router = Router()"
        if which != "alone":
            plain += "; router.start().call(os.getpid)"
        start = STARTS[kind].format(**words)
        return IMPORTS, plain, start, "router.stop()"

    return first_or_second(statements, scaled, kind, which)


if __name__ == "__main__":
    main(measure)
