"""Time of a few statements in fresh interpreters: imports, and what a program does first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _measure import Result, Scaled, milliseconds
from _sshd import HOST, sshd

TIMED = """\
from time import perf_counter
{before}
started = perf_counter()
{timed}
print(perf_counter() - started, flush=True)
{afterwards}
"""


def measure_of(timed: str, afterwards: str = "", before: str = "") -> Callable[[Scaled], Result]:
    """Return a ``measure`` function for the statements ``timed``."""
    source = TIMED.format(timed=timed, afterwards=afterwards, before=before)

    def measure(scaled: Scaled) -> Result:
        command = [sys.executable, "-c", source]
        samples = [
            float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(scaled(10))
        ]
        return milliseconds(samples)

    return measure


def first_or_second(
    statements: Callable[..., tuple[str, ...]], scaled: Scaled, kind: str, which: str
) -> Result:
    """Measure the first or second start of a kind in fresh interpreters.

    statements: returns what imports, prepares, starts and ends; called with ``host`` and
    ``config`` for ssh where ``kind`` is ssh or shared.  which: alone (the first start, and what
    comes before it), first or second.
    """
    with where(kind) as words:
        imports, before, start, afterwards = statements(**words)
        if which == "alone":
            return measure_of(f"{imports}\n{before}\n{start}", afterwards)(scaled)
        if which == "second":
            before = f"{before}\n{start}"
        return measure_of(start, afterwards, f"{imports}\n{before}")(scaled)


@contextmanager
def where(kind: str) -> Iterator[dict[str, str]]:
    """Yield the host and the config for ssh, whose connection is there if it is shared."""
    if kind not in ("ssh", "shared"):
        yield {}
        return
    with sshd(Path.cwd()) as config:
        command = ["ssh", "-F", str(config), HOST]
        if kind == "shared":
            with config.open("a") as file:
                file.write("ControlMaster auto\nControlPersist 600\nControlPath ./%C\n")
            subprocess.run([*command, "true"], check=True)
        try:
            yield {"host": HOST, "config": str(config)}
        finally:
            if kind == "shared":
                subprocess.run([*command, "-O", "exit"], check=True, stderr=subprocess.DEVNULL)
