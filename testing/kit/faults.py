"""Thousands of faults from seeds, and one invariant.

    python testing/kit/faults.py 1234               what seed 1234 does, and whether it went well
    python testing/kit/faults.py 0 --count 10000    seeds 0 to 9999

A round starts a gateway, has a few threads use it, lets something go wrong meanwhile, and ends
it. Every call that waits has to end within its bound with a result or a typed error, and of
threads, descriptors and processes nothing may be left. Start at ``run``.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

if __name__ == "__main__":  # what is beside this file is tested, not what is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fault_processes as processes
import fault_streams as streams
from fault_calls import SLACK_S, TYPED, Actor, Broken, Calls, check_the_dead
from tools import Resources

from execnet import Gateway, Group
from execnet._features.running import format_stacks

T = TypeVar("T")

PROCESS_SHARE = 0.06  # of the rounds: they take much longer than the others
HEARTBEATS = ("", "", "//heartbeat=0.01//dead_after=0.04")
WINDOWS = ("", "", "//window=5000", "//window=200000")
PATIENCE_S = 0.02  # how long actors may go on before their gateway is ended
TERMINATE_S = 0.05
CONNECT_S = 0.2
WITH_S = 10.0  # what the end of a with statement gives a worker
WITHOUT_WITH = (*streams.BYTE_FAULTS, *streams.FRAME_FAULTS, "stop")  # it would take all of it
BOOT_S = 30.0  # how long a real worker may take to start here, beside all else


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    kind: str
    fault: str
    option: str = ""  # of the command line, for a kind that was asked for
    violations: list[str] = field(default_factory=list)
    calls: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    hung: bool = False  # something still runs, so that others are of no use

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.fault}:", *self.violations]
        return (
            "\n  ".join(lines) + f"\n  again: python testing/kit/faults.py {self.seed}{self.option}"
        )


class Round:
    """One gateway, one fault."""

    def __init__(
        self, seed: int, kind: str | None = None, fault: streams.Fault | None = None
    ) -> None:
        self._random = Random(seed)
        self._later = processes.Later()
        self._group: Group
        self._storm_s = 0.0
        self._streams: list[streams.HereIO] = []
        option = f" --kind {kind!r}" if kind else ""
        if kind is None and fault is None and self._random.random() < PROCESS_SHARE:
            kind = self._random.choice(processes.PROCESS_FAULTS)
        if kind is not None:
            self.fault = kind
            self.exact = kind != "little memory there"
            self._boot_s = BOOT_S
            self._prepare_process(kind)
        else:
            fault = fault or streams.random_fault(self._random)
            self.fault = str(fault)
            self.exact = fault.kind in streams.EXACT
            self._boot_s = BOOT_S if fault.kind in streams.HARMLESS else CONNECT_S
            self._prepare_stream(fault)
        self.calls = Calls(self.exact)
        self.outcome = Outcome(seed, self._kind, self.fault, option)

    def _prepare_stream(self, fault: streams.Fault) -> None:
        self._kind = fault.kind
        group = self._group = streams.StreamGroup(fault)
        self._streams = group.ios
        self._spec = f"popen//connect_timeout={self._boot_s}"
        if fault.kind not in streams.HARMLESS:  # else this machine may be too slow for a heartbeat
            self._spec += self._random.choice(HEARTBEATS)
        self._spec += self._random.choice(WINDOWS)

    def _prepare_process(self, kind: str) -> None:
        self._kind = kind
        self._group = processes.ProcessGroup(self._on_start)
        self._spec = f"popen//grace=0.2//connect_timeout={BOOT_S}"
        if kind in ("stop", "kill"):
            self._spec += self._random.choice(HEARTBEATS) + self._random.choice(WINDOWS)

    def _on_start(self, pid: int) -> None:
        if self._kind == "kill at boot":
            delay_s = self._random.uniform(0.0, 0.06)
            self._later.do(delay_s, os.kill, pid, signal.SIGKILL)

    def run(self) -> Outcome:
        """Do it all; what went wrong is in the outcome."""
        before = Resources.now()
        atexit.unregister(self._group._cleanup_atexit)
        with self._conditions():
            gateways = self._start()
            if gateways:
                self._use(gateways)
            if not self.outcome.hung:
                self._end()
        for gateway in gateways if not self.outcome.hung else ():
            check_the_dead(gateway, self.calls)
        for stream in self._streams:
            if stream.worker is not None and stream.worker.hung:
                self.calls.violations.append("code in the worker did not end with its stream")
        gateways.clear()
        self._later.finish()
        self._look_for_leaks(before)
        self.outcome.violations = self.calls.violations
        self.outcome.calls, self.outcome.errors = self.calls.made, self.calls.outcomes
        return self.outcome

    @contextlib.contextmanager
    def _conditions(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._uncaught())
            if self._kind == "few descriptors here":
                stack.enter_context(processes.few_descriptors(self._random.randrange(16)))
            elif self._random.random() < 0.1:
                self._storm_s = self._random.uniform(2e-4, 2e-3)
                stack.enter_context(processes.interrupted_calls(self._storm_s))
            yield

    @contextlib.contextmanager
    def _uncaught(self) -> Iterator[None]:
        """Note what threads and finalizers raise and nobody would get."""
        before = threading.excepthook, sys.unraisablehook
        note = self.calls.violations.append
        threading.excepthook = lambda args: note(f"{args.thread} raised {args.exc_value!r}")
        sys.unraisablehook = lambda args: note(f"{args.object} raised {args.exc_value!r}")
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook = before

    def _start(self) -> list[Gateway]:
        count = self._random.choice([1, 1, 1, 2])
        try:
            make = self._group.makegateways
            return self._bounded("makegateways", self._boot_s, make, [self._spec] * count)
        except (*TYPED, Broken) as error:
            if self._kind in streams.HARMLESS:
                self.calls.violations.append(f"no gateway, though nothing was wrong: {error}")
            return []

    def _use(self, gateways: list[Gateway]) -> None:
        seed = self.outcome.seed
        numbers = range(self._random.randint(1, 3))
        pick = self._random.choice
        actors = [Actor(pick(gateways), self.calls, f"{seed}-{number}") for number in numbers]
        for actor in actors:
            actor.start()
        if self._storm_s:  # let it hit the other threads
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        if self._kind == "fork here":
            if wrong := processes.use_in_a_fork(gateways[0]):
                self.calls.violations.append(wrong)
        elif self._kind in processes.PROCESS_FAULTS:
            processes.make_it_happen(self._kind, gateways[0], self._random, self._later)
        deadline = time.monotonic() + PATIENCE_S
        for actor in actors:
            actor.join(max(0.0, deadline - time.monotonic()))
        self._end_somehow(gateways)
        deadline = time.monotonic() + SLACK_S
        for actor in actors:
            actor.join(max(0.0, deadline - time.monotonic()))
            if actor.is_alive():
                self._hangs(f"{actor.name} in {actor.does}")

    def _bounded(self, name: str, bound_s: float, func: Callable[..., T], *args: Any) -> T:
        """Make a call that this thread does not wait for longer than it may take."""
        outcome: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(self.calls.make(name, bound_s, func, *args))
            except BaseException as error:
                errors.append(error)

        caller = threading.Thread(target=call, name=name, daemon=True)
        caller.start()
        caller.join(bound_s + 2 * SLACK_S)
        if caller.is_alive():
            self._hangs(name)
        if not outcome:
            raise errors[0] if errors else Broken(name)
        return outcome[0]

    def _hangs(self, what: str) -> None:
        self.outcome.hung = True
        self.calls.violations += [f"{what} hangs", format_stacks()]

    def _end_somehow(self, gateways: list[Gateway]) -> None:
        """End the gateways in one of the ways in which programs do."""
        how = self._random.choice(["terminate", "terminate", "exit", "with", "twice at once"])
        if how == "exit":
            self._bounded("exit", 0.0, gateways[-1].exit)
        elif how == "with" and self._kind not in WITHOUT_WITH:
            self._bounded("the end of with", WITH_S, gateways[0].__exit__, None, None, None)
        elif how == "twice at once":
            self._later.do(0.0, self._end)
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(*TYPED, Broken):
            terminate = self._group.terminate
            self._bounded("terminate", TERMINATE_S + 1, terminate, TERMINATE_S)

    def _look_for_leaks(self, before: Resources) -> None:
        deadline = time.monotonic() + SLACK_S
        while (left := before.new()) and time.monotonic() < deadline:
            time.sleep(0.001)
        if left and not self.outcome.hung:
            self.outcome.hung = True
            self.calls.violations += ["left behind: " + ", ".join(left), format_stacks()]


def run(seed: int, kind: str | None = None) -> Outcome:
    """Return what became of a seed; kind: of the fault of a process, else the seed says."""
    unhandled = io.StringIO()  # errors of channels that nobody asked are told there
    with warnings.catch_warnings(), contextlib.redirect_stderr(unhandled):
        warnings.filterwarnings("ignore", "worker .* did not end in time", ResourceWarning)
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # we mean to
        return Round(seed, kind).run()


def run_all(first: int, count: int, kind: str | None = None) -> tuple[list[Outcome], int]:
    """Return what became of the seeds from ``first`` on that broke the rule, and how many ran."""
    kinds: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    bad: list[Outcome] = []
    calls = 0
    started = time.monotonic()
    ran = 0
    for seed in range(first, first + count):
        outcome = run(seed, kind)
        ran += 1
        calls += outcome.calls
        kinds[outcome.kind] += 1
        errors.update(outcome.errors)
        if outcome.violations:
            bad.append(outcome)
            print(outcome, flush=True)
        if ran % 1000 == 0 and ran < count:
            print(f"{ran} of {count}, {len(bad)} bad", file=sys.stderr, flush=True)
        if outcome.hung:
            break
    took_s = time.monotonic() - started
    print(f"{ran} faults, seeds {first} to {first + ran - 1}, in {took_s:.0f} s: {len(bad)} bad")
    print(f"{calls} calls, {sum(errors.values())} raised: {dict(errors.most_common())}")
    print(f"faults: {dict(kinds.most_common())}")
    return bad, ran


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seed", type=int, nargs="?", default=0, help="the first seed (0)")
    parser.add_argument("--count", type=int, default=1, help="how many seeds (1)")
    kinds = processes.PROCESS_FAULTS
    parser.add_argument("--kind", choices=kinds, help="only this; else the seed says which")
    options = parser.parse_args()
    bad, ran = run_all(options.seed, options.count, options.kind)
    return int(bool(bad) or ran < options.count)


if __name__ == "__main__":
    sys.exit(main())
