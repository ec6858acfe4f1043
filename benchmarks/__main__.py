"""The command line: ``python -m benchmarks [NAME...]``. What it prints: see the package.

With a name of ``_proofs`` in front, the rest are that proof's own options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import _report
from benchmarks._catalog import Benchmark, Peer, UnknownName, benchmarks_named, peers_named
from benchmarks._environments import ROOT, Environments, check_programs, variables_for
from benchmarks._processes import run_program
from benchmarks._proofs import PROOFS, list_proofs, run_proof
from benchmarks._rounds import Row, compare

WARM_UP_SCALE = 0.001


class Runner:
    """Runs a benchmark with one peer, in its environment, and warms that up before its first."""

    def __init__(self, environments: Environments, options: argparse.Namespace) -> None:
        self._environments = environments
        self._options = options
        self._warm: set[tuple[Peer, Path]] = set()

    def run(self, benchmark: Benchmark, peer: Peer) -> dict[str, Any]:
        """Return the result of one turn; raise what ``Environments`` and ``run_program`` do."""
        check_programs(*peer.needs, *benchmark.needs)
        python = self._environments.python_for(peer, benchmark.tools)
        script = benchmark.program_for(peer)
        assert script is not None  # compare() asks only those that take part
        if (peer, script) not in self._warm:
            # Afterwards all .pyc files are there, those that only workers import too.
            self._run_once(python, script, benchmark, peer, WARM_UP_SCALE)
            self._warm.add((peer, script))
        return self._run_once(python, script, benchmark, peer, self._options.scale)

    def _run_once(
        self, python: Path, script: Path, benchmark: Benchmark, peer: Peer, scale: float
    ) -> dict[str, Any]:
        pin = ["--pin"] if benchmark.pinned and _report.can_pin() else []
        command: list[str | Path] = [python, script, *benchmark.arguments, *pin]
        command.append(f"--scale={scale}")
        timeout_s, place = self._options.timeout, self._options.folder
        return run_program(command, variables_for(peer), timeout_s, place)


def measure(
    chosen: list[Benchmark], peers: list[Peer], runner: Runner, options: argparse.Namespace
) -> int:
    """Measure, tell each figure as soon as it is there, and return the exit status."""
    facts = _report.machine()
    to_stdout = str(options.json) == "-"
    tables = sys.stderr if to_stdout else sys.stdout
    print(_report.heading(facts, options.runs, options.scale), file=tables, flush=True)
    results: dict[str, list[Row]] = {}
    for benchmark in chosen:
        rows = results[benchmark.name] = compare(benchmark, peers, options.runs, runner.run)
        print("", _report.table(benchmark, rows), sep="\n", file=tables, flush=True)
    data = [_report.as_data(benchmark, results[benchmark.name]) for benchmark in chosen]
    text = json.dumps(_report.document(facts, options.runs, options.scale, data), indent=1)
    if to_stdout:
        print(text)
    else:
        options.json.write_text(text + "\n")
        print(f"\nas JSON: {options.json}")
    return int(any(row.status == "failed" for rows in results.values() for row in rows))


def print_list(chosen: list[Benchmark], peers: list[Peer]) -> None:
    """Print the benchmarks and, below each, the peers that take part."""
    for benchmark in chosen:
        names = [peer.name for peer in peers if benchmark.program_for(peer) is not None]
        print(f"{benchmark.name}: {benchmark.title}\n    {', '.join(names)}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    a_number = _positive(float, "a number")
    add("names", nargs="*", metavar="NAME", help="name, first parts of names, or pattern (all)")
    add("--list", action="store_true", help="print the benchmarks and who takes part; run none")
    add("--runs", type=_positive(int, "a whole number"), default=5, metavar="N", help="rounds (5)")
    add("--scale", type=a_number, default=1.0, metavar="F", help="share of the usual work (1)")
    add("--peers", type=_names, metavar="NAME,...", help="with these only; ours is always there")
    add("--offline", action="store_true", help="install nothing, skip the peers that are missing")
    add("--timeout", type=a_number, default=120, metavar="S", help="of each process (120)")
    add("--folder", type=Path, help="where programs have their empty folders (in memory)")
    add("--json", type=Path, metavar="FILE", help="- for stdout (CACHE/results.json)")
    add("--cache", type=Path, default=ROOT / ".benchmarks", help="for environments (.benchmarks)")
    return parser


def _positive(kind: type[int] | type[float], what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if (number := kind(text)) > 0:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")

    return convert


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    if sys.argv[1:2] and sys.argv[1] in PROOFS:
        return run_proof(sys.argv[1], sys.argv[2:])
    parser = make_parser()
    options = parser.parse_args()
    try:
        chosen, peers = benchmarks_named(options.names), peers_named(options.peers)
    except UnknownName as error:
        parser.error(str(error))
    if options.list:
        print_list(chosen, peers)
        if not options.names:
            print(f"Shown, not measured, each by itself:\n{list_proofs()}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        # An exception, so that the program that is running is ended.
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    # Now, not after all has been measured, is the time to find out that there is no such folder.
    options.json = options.json or options.cache / "results.json"
    options.cache.mkdir(parents=True, exist_ok=True)
    if not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder: there is no folder {options.folder}")
    environments = Environments(options.cache.absolute(), options.offline)
    return measure(chosen, peers, Runner(environments, options), options)


if __name__ == "__main__":
    sys.exit(main())
