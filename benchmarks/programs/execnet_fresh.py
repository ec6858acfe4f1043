"""Start of a fresh program's first or second gateway of a kind, to its answer, in milliseconds.

Arguments: ``python`` (another interpreter), ``socket``, ``via``, ``ssh`` or ``shared`` (over one
connection of ssh's, which is there); ``alone`` (with the import, and no gateway before it),
``first`` (after one plain popen gateway) or ``second``.
"""

from __future__ import annotations

import sys

from _fresh import first_or_second
from _measure import Result, Scaled, main

SPECS = {
    "python": "popen//python={python}",
    "socket": "socket//installvia=plain",
    "via": "popen//via=plain//python={python}",
    "ssh": "ssh={host}//ssh_config={config}//python={python}",
    "shared": "ssh={host}//ssh_config={config}//python={python}",
}
PLAIN = "group = execnet.Group(['popen//id=plain']); answer(group[0])"
START = "answer(group.makegateway({spec!r}))"
BEFORE = """
def answer(gateway):
    gateway.remote_exec("channel.send(1)").receive()
"""


def measure(scaled: Scaled, kind: str, which: str) -> Result:
    def statements(**words: str) -> tuple[str, ...]:
        spec = SPECS[kind].format(python=sys.executable, **words)
        group = "group = execnet.Group()" if which == "alone" else PLAIN
        return "import execnet", BEFORE + group, START.format(spec=spec), "group.terminate(5)"

    return first_or_second(statements, scaled, kind, which)


if __name__ == "__main__":
    main(measure)
