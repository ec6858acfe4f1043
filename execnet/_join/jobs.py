"""What has ended a worker that dialled in, as far as its launcher and Slurm know.

Start at ``Jobs.why``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .._clock import monotonic
from ..gateway_base import new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .launcher import Launcher

ANSWER_S = 2.0  # how long Slurm may take to answer
STATE_S = 1.0  # how long a job may take to get from COMPLETING to the state that it ends with
PAUSE_S = 0.1  # between two questions
FRESH_S = 2.0  # how long an answer is good for the other workers of a job
ALIVE = {"RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "COMPLETED"}
TIME_LIMIT = "TimeLimit"  # the reason, which is there before the state


class _Answer(NamedTuple):
    state: str  # "" if there is nothing to tell
    good_until: float


class Jobs:
    """The launchers of a group, and the jobs that its workers belong to; any thread may call.

    launchers: a list that grows.
    """

    def __init__(self, launchers: Sequence[Launcher]) -> None:
        self._launchers = launchers
        self._lock = new_lock()  # one question at a time
        self._answers: dict[str, _Answer] = {}

    def why(self, facts: Mapping[str, object]) -> str:
        """Return why a worker has ended, "" if nobody knows; may wait for some seconds.

        facts: what its joiner said of itself.
        """
        told = [one.failure() for one in self._launchers if one.was_killed()]
        found = re.fullmatch(r"([0-9]+)(?:\.([0-9]{1,6}))?", str(facts["job"]))
        if facts["launcher"] == "Slurm" and found is not None:
            job, step = found.groups()
            state = self._state_of(job)
            if state:
                told.append(f"Slurm job {job}{f' step {step}' if step else ''}: {state}")
        return "; ".join(told)

    def _state_of(self, job: str) -> str:
        with self._lock:
            known = self._answers.get(job)
            if known is None or known.good_until < monotonic():
                state = _ask_slurm(job)
                self._answers[job] = known = _Answer(state, monotonic() + FRESH_S)
            return known.state


def _ask_slurm(job: str) -> str:
    """Return the state that a job ends with, "" if it goes on or is not known here."""
    import shutil
    import time

    program = shutil.which("scontrol")
    if program is None:
        return ""
    until = monotonic() + STATE_S
    while True:
        text = _output([program, "--oneliner", "show", "job", job])
        found = re.search(r"\bJobState=([A-Z_]+) Reason=(\w*)", text)
        if found is None or found[1] in ALIVE:
            return ""
        if found[1] == "COMPLETING" and found[2] == TIME_LIMIT:
            return "TIMEOUT"
        if found[1] == "PENDING":  # again
            return "REQUEUED"
        if found[1] != "COMPLETING" or monotonic() > until:
            return found[1]
        time.sleep(PAUSE_S)


def _output(words: list[str]) -> str:
    """Return what a program prints, "" if it fails or takes too long."""
    import subprocess

    try:
        result = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.decode("ascii", "replace") if result.returncode == 0 else ""
