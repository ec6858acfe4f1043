"""Why a worker that dialled in has ended: what its launcher and Slurm, played by a script, tell."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from services import script
from test_join import KEY, Start, command, start, ticket  # noqa: F401 - fixtures
from tools import BOUND_S, wait_until

from execnet import Gateway, Group, WorkerDied, aio
from execnet._join import jobs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

TASK = {"SLURM_PROCID": "1", "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
Says = Callable[..., Path]


@pytest.fixture
def slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """A function that has scontrol print a line after the other, the last one again and again.

    It returns a file with a line for each question.
    """

    def say(*lines: str, status: int = 0) -> Path:
        asked = tmp_path / "asked"
        (tmp_path / "lines").write_text("\n".join(lines) + "\n")
        count = f'echo "$@" >> {asked}; n=$(wc -l < {asked})'
        last = f"[ $n -gt {len(lines)} ] && n={len(lines)}"
        script(
            tmp_path / "scontrol",
            f"{count}; {last}\nsed -n ${{n}}p {tmp_path}/lines\nexit {status}",
        )
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(jobs, "ANSWER_S", BOUND_S)
        monkeypatch.setattr(jobs, "FRESH_S", BOUND_S)
        return asked

    return say


def line(state: str, reason: str = "None") -> str:
    return f"JobId=17 JobName=a Restarts=0 JobState={state} Reason={reason} Dependency=(null)"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([line("COMPLETING", "TimeLimit")], "Slurm job 17 step 0: TIMEOUT"),
        ([line("COMPLETING"), line("PREEMPTED")], "Slurm job 17 step 0: PREEMPTED"),
        ([line("COMPLETING"), line("PENDING", "BeginTime")], "Slurm job 17 step 0: REQUEUED"),
        ([line("OUT_OF_MEMORY")], "Slurm job 17 step 0: OUT_OF_MEMORY"),
        ([line("RUNNING")], ""),
        (["Job 17 is not what it was"], ""),
    ],
)
def test_the_state_of_a_job_is_told_once_it_has_ended(
    slurm_says: Says, monkeypatch: pytest.MonkeyPatch, lines: list[str], told: str
) -> None:
    monkeypatch.setattr(jobs, "STATE_S", BOUND_S)
    asked = slurm_says(*lines)
    known = jobs.Jobs([])
    for _ in range(2):
        assert known.why({"launcher": "Slurm", "job": "17.0"}) == told
    assert asked.read_text() == "--oneliner show job 17\n" * len(lines)


@pytest.mark.parametrize("job", [None, "", "17;reboot", "-1", "\u0661"])
def test_nobody_is_asked_about_what_is_no_job(slurm_says: Says, job: str | None) -> None:
    asked = slurm_says(line("TIMEOUT"))
    assert jobs.Jobs([]).why({"launcher": "Slurm", "job": job}) == ""
    assert not asked.exists()


def test_without_an_answer_nothing_is_told(
    slurm_says: Says, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slurm_says(line("TIMEOUT"), status=1)
    facts = {"launcher": "Slurm", "job": "17"}
    assert jobs.Jobs([]).why(facts) == ""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert jobs.Jobs([]).why(facts) == ""
    monkeypatch.undo()
    slurm_says(line("COMPLETING"))
    monkeypatch.setattr(jobs, "STATE_S", 0.0)
    assert jobs.Jobs([]).why(facts) == "Slurm job 17: COMPLETING"


@pytest.fixture
def joined(
    group: Group,
    ticket: str,  # noqa: F811
    start: Start,  # noqa: F811
) -> tuple[subprocess.Popen[str], Gateway]:
    """The joiner of a task of Slurm, and the gateway of its worker."""
    joiner = start(command(group), **TASK)
    (gateway,) = group.wait_for(1, BOUND_S)
    return joiner, gateway


class TestError:
    def test_it_says_what_slurm_says(
        self, joined: tuple[subprocess.Popen[str], Gateway], slurm_says: Says
    ) -> None:
        slurm_says(line("COMPLETING", "TimeLimit"))
        joiner, gateway = joined
        joiner.send_signal(signal.SIGTERM)
        how = r"\(rank 1 of Slurm job 17\.0, on .*\) died, killed by SIGTERM: .*"
        with pytest.raises(WorkerDied, match=f"{how}; Slurm job 17 step 0: TIMEOUT"):
            gateway.newchannel().receive(BOUND_S)

    def test_slurm_has_no_part_in_an_end_of_the_worker_s_own(
        self, joined: tuple[subprocess.Popen[str], Gateway], slurm_says: Says
    ) -> None:
        asked = slurm_says(line("TIMEOUT"))
        _, gateway = joined
        with pytest.raises(WorkerDied, match="exit status 0: ") as caught:
            gateway.remote_exec("import os; os._exit(0)").receive(BOUND_S)
        assert "TIMEOUT" not in str(caught.value)
        assert not asked.exists()

    def test_in_a_loop_it_says_so_too(
        self,
        pem: str,
        start: Start,  # noqa: F811
        slurm_says: Says,
    ) -> None:
        asked = slurm_says(line("COMPLETING", "TimeLimit"))

        async def main() -> None:
            async with aio.Group() as group:
                await group.listen("127.0.0.1:0", KEY, pem)
                joiner = start(group.join_command(python=sys.executable), **TASK)
                (gateway,) = await group.wait_for(1, BOUND_S)
                joiner.send_signal(signal.SIGTERM)
                channel = gateway.newchannel()
                with pytest.raises(WorkerDied, match="; Slurm job 17 step 0: TIMEOUT"):
                    await channel.receive(BOUND_S)

        asyncio.run(main())
        assert asked.read_text().count("show") == 1

    def test_it_says_that_the_launcher_was_killed(self, group: Group, pem: str) -> None:
        group.listen("127.0.0.1:0", KEY, pem)
        group.launch(["sh", "-c", '"$@" & wait', "sh"], python=sys.executable)
        (gateway,) = group.wait_for(1, BOUND_S)
        (launcher,) = group._get_joins().launchers
        launcher.stop("kill")
        wait_until(launcher.was_killed, BOUND_S)
        os.kill(gateway._rinfo().pid, signal.SIGTERM)
        with pytest.raises(WorkerDied, match=r"SIGTERM: .*; sh has failed, signal 9 has ended it"):
            gateway.newchannel().receive(BOUND_S)


def waits_when_first(mark: str, seconds: float) -> int:
    """Leave a mark and wait, or return the process id if somebody has left it."""
    import os
    import time

    if not os.path.exists(mark):
        with open(mark, "w"):
            pass
        time.sleep(seconds)
    return os.getpid()


def test_an_executor_uses_workers_as_they_come_and_go(
    group: Group,
    ticket: str,  # noqa: F811
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    with group.executor(retries=1) as executor:
        start(command(group))
        (first,) = group.wait_for(1, BOUND_S)
        future = executor.submit(waits_when_first, str(mark), 10 * BOUND_S)
        wait_until(mark.exists, BOUND_S)
        start(command(group))
        (second,) = [one for one in group.wait_for(2, BOUND_S) if one is not first]
        pid = second._rinfo().pid
        assert executor.submit(os.getpid).result(BOUND_S) == pid
        os.kill(first._rinfo().pid, signal.SIGKILL)  # as in a preemption
        assert future.result(BOUND_S) == pid
