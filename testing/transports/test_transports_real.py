"""sudo, podman, Slurm and OpenMPI: the real ones."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from interpreters import IS_THOROUGH
from services import common_python, need, script
from services_more import Podman, Slurm
from tools import BOUND_S, ROOT, MakeGateway, Resources, wait_until

from execnet import Gateway, Group, WorkerDied
from execnet._join import jobs

OTHER_USER = "nobody"
TASKS = int(os.environ.get("EXECNET_TEST_TASKS", "4"))  # of a launcher; 32 take long


def echoes(gateway: Gateway) -> bool:
    """Whether all bytes come back as they were sent, a few and many."""
    channel = gateway.remote_exec("while True: channel.send(channel.receive())")
    items = [b"", bytes(range(256)), "\r\n\x04\x03\x1a\x11\x13", "x", b"\xff" * 3_000_000, [1, 2.5]]
    for item in items:
        channel.send(item)
    return [channel.receive(BOUND_S) for _ in items] == items


@pytest.fixture
def sudo_spec() -> str:
    """A spec that becomes another user, without a password."""
    sudo = need("sudo", "sudo")
    if subprocess.run([sudo, "-n", "-u", OTHER_USER, "true"], capture_output=True).returncode:
        pytest.skip(f"this user may not become {OTHER_USER} without a password")
    return f"sudo={OTHER_USER}"


class TestSudo:
    def test_the_worker_is_the_other_user(self, sudo_spec: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"{sudo_spec}//env:WORD=a b//chdir=/tmp")
        code = "import os; channel.send([os.getuid(), os.environ['WORD'], os.getcwd()])"
        expected = [pwd.getpwnam(OTHER_USER).pw_uid, "a b", "/tmp"]
        assert gateway.remote_exec(code).receive(BOUND_S) == expected
        assert gateway.remoteaddress is None

    def test_all_bytes_pass(self, sudo_spec: str, makegateway: MakeGateway) -> None:
        assert echoes(makegateway(sudo_spec))

    def test_python_says_which_interpreter(self, sudo_spec: str, makegateway: MakeGateway) -> None:
        python = common_python()
        gateway = makegateway(f"{sudo_spec}//python={python} -X utf8")
        code = "import sys; channel.send(sys.flags.utf8_mode)"
        assert gateway.remote_exec(code).receive(BOUND_S) == 1

    def test_it_may_be_a_member_of_python_too(
        self, sudo_spec: str, makegateway: MakeGateway
    ) -> None:
        python = common_python()
        gateway = makegateway(f"popen//python=sudo -n -u {OTHER_USER} {python}")
        got = gateway.remote_exec("import os; channel.send(os.getuid())").receive(BOUND_S)
        assert got == pwd.getpwnam(OTHER_USER).pw_uid

    def test_a_user_that_is_not_there_is_told(self, sudo_spec: str, group: Group) -> None:
        before = Resources.now()
        with pytest.raises(OSError, match="sudo -n -u no-such-user") as caught:
            group.makegateway("sudo=no-such-user")
        before.assert_nothing_new()
        assert "unknown user" in str(caught.value).partition(" on stderr:")[2]

    @pytest.mark.skipif(os.getuid() != 0, reason="only root becomes a user who may do nothing")
    def test_a_password_is_not_waited_for(self, sudo_spec: str, makegateway: MakeGateway) -> None:
        python, source = common_python(), ROOT
        if (
            not os.access(source, os.R_OK)
            or subprocess.run(
                ["sudo", "-n", "-u", OTHER_USER, "test", "-r", f"{source}/execnet/__init__.py"]
            ).returncode
        ):
            pytest.skip(f"{OTHER_USER} may not read {source}")
        code = "import execnet; execnet.makegateway('sudo=root')"
        words = ["sudo", "-n", "-u", OTHER_USER, "env", f"PYTHONPATH={source}", python, "-c", code]
        result = subprocess.run(words, capture_output=True, text=True, timeout=BOUND_S)
        assert "a password is required" in result.stderr.partition("BootstrapError")[2]

    def test_a_worker_that_is_stuck_is_killed(self, sudo_spec: str, group: Group) -> None:
        before = Resources.now()
        gateway = group.makegateway(sudo_spec)
        channel = gateway.remote_exec(
            "import os, re\nchannel.send(os.getpid())\n"
            "re.match('(a+)+b', 'a' * 100)  # holds the interpreter's lock for years"
        )
        pid = channel.receive(BOUND_S)
        group.terminate(timeout=0.1)
        before.assert_nothing_new()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


@pytest.fixture(scope="module")
def shared_podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    podman = Podman(tmp_path_factory.mktemp("podman"))
    yield podman
    podman.stop()


class TestPodman:
    def test_the_worker_is_in_the_container(
        self, shared_podman: Podman, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway(f"podman={shared_podman.name}//env:WORD=a b//chdir=/tmp/new")
        code = f"""
            import os
            channel.send([os.environ["WORD"], os.getcwd(), os.path.exists({Podman.mark!r})])
            """
        assert gateway.remote_exec(code).receive(BOUND_S) == ["a b", "/tmp/new", True]
        assert gateway.remoteaddress == shared_podman.name

    def test_all_bytes_pass(self, shared_podman: Podman, makegateway: MakeGateway) -> None:
        assert echoes(makegateway(f"podman={shared_podman.name}"))

    def test_options_may_stand_in_the_spec(
        self, shared_podman: Podman, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway(f"podman=-u 65534 {shared_podman.name}//python=/usr/bin/python3")
        got = gateway.remote_exec("import os; channel.send(os.getuid())").receive(BOUND_S)
        assert got == 65534

    def test_a_container_that_is_not_there_is_told(
        self, shared_podman: Podman, group: Group
    ) -> None:
        with pytest.raises(OSError, match="podman exec -i no-such-container") as caught:
            group.makegateway("podman=no-such-container")
        assert "no such container" in str(caught.value).lower()

    def test_nothing_is_left_of_it(self, shared_podman: Podman, group: Group) -> None:
        before = Resources.now()
        gateway = group.makegateway(f"podman={shared_podman.name}")
        pid = gateway._rinfo().pid
        group.terminate(timeout=5)
        before.assert_nothing_new()
        words = ["podman", "exec", shared_podman.name, "/bin/sh", "-c", f"test -e /proc/{pid}"]
        wait_until(lambda: subprocess.run(words, capture_output=True).returncode == 1)


@pytest.fixture(scope="module")
def shared_slurm() -> Iterator[Slurm]:
    slurm = Slurm()
    yield slurm
    slurm.stop()


@pytest.fixture
def slurm(shared_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.config))
    return shared_slurm


@pytest.mark.usefixtures("slurm")
class TestSlurm:
    def test_the_worker_is_a_task_of_a_job(self, makegateway: MakeGateway, tmp_path: Path) -> None:
        gateway = makegateway(f"srun=--job-name 'a b'//env:WORD=a b//chdir={tmp_path}")
        code = """
            import os
            names = ["WORD", "SLURM_JOB_NAME", "SLURM_NTASKS"]
            channel.send([os.environ[name] for name in names] + [os.getcwd()])
            """
        assert gateway.remote_exec(code).receive(BOUND_S) == ["a b", "a b", "1", str(tmp_path)]

    def test_all_bytes_pass(self, makegateway: MakeGateway) -> None:
        assert echoes(makegateway("srun"))

    def test_several_run_at_once(self, group: Group) -> None:
        gateways = group.makegateways([f"srun//python={sys.executable}"] * 2)
        channels = [gateway.remote_exec("channel.send(1)") for gateway in gateways]
        assert [channel.receive(BOUND_S) for channel in channels] == [1, 1]

    @pytest.fixture
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Slurm may take its time to answer."""
        monkeypatch.setattr(jobs, "ANSWER_S", BOUND_S)
        monkeypatch.setattr(jobs, "STATE_S", BOUND_S)

    @pytest.mark.usefixtures("patience")
    def test_tasks_dial_in_and_are_told_of_when_they_are_cancelled(self, group: Group) -> None:
        need("openssl", "openssl")
        group.listen("127.0.0.1:0")
        group.launch(f"srun --overcommit -n {TASKS}", python=sys.executable)
        gateways = group.wait_for(TASKS, 4 * BOUND_S)
        infos = [gateway._rinfo() for gateway in gateways]
        assert {(info.launcher, info.rank, info.size) for info in infos} == {
            ("Slurm", rank, TASKS) for rank in range(TASKS)
        }
        channels = [gateway.remote_exec("channel.receive()") for gateway in gateways]
        (job,) = {info.job.partition(".")[0] for info in infos}
        subprocess.run(["scancel", job], check=True)
        for gateway, channel in zip(gateways, channels, strict=True):
            rank = gateway._rinfo().rank
            why = rf"\(rank {rank} of Slurm job {job}.*SIGTERM.*; Slurm job {job} step 0: CANCELLED"
            with pytest.raises(WorkerDied, match=why):
                channel.receive(3 * BOUND_S)
            assert gateway.exitcode == -signal.SIGTERM

    @pytest.mark.usefixtures("patience")
    def test_a_batch_job_that_is_requeued_is_told_of(self, group: Group, tmp_path: Path) -> None:
        need("openssl", "openssl")
        job_script = script(tmp_path / "job", 'exec srun --overcommit "$@"')
        group.listen("127.0.0.1:0")
        options = f"--requeue --ntasks=1 --chdir={tmp_path} --output=/dev/null"
        group.launch(f"sbatch {options} {job_script}", python=sys.executable)
        (gateway,) = group.wait_for(1, BOUND_S)
        job = gateway._rinfo().job.partition(".")[0]
        channel = gateway.remote_exec("channel.receive()")
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
            with pytest.raises(WorkerDied, match=rf"; Slurm job {job} step 0: REQUEUED"):
                channel.receive(3 * BOUND_S)
        finally:
            subprocess.run(["scancel", job], check=True)

    @pytest.mark.skipif(
        not IS_THOROUGH, reason="Slurm looks for jobs over their time twice a minute"
    )
    @pytest.mark.timeout(400)
    def test_a_time_limit_is_told_of(self, group: Group) -> None:
        need("openssl", "openssl")
        group.listen("127.0.0.1:0")
        group.launch("srun --time=1", python=sys.executable)
        (gateway,) = group.wait_for(1, BOUND_S)
        job = gateway._rinfo().job.partition(".")[0]
        with pytest.raises(WorkerDied, match=rf"; Slurm job {job} step 0: TIMEOUT"):
            gateway.remote_exec("channel.receive()").receive(300)

    def test_options_that_it_does_not_know_are_told(self, group: Group) -> None:
        with pytest.raises(OSError, match="srun --ntasks=1") as caught:
            group.makegateway("srun=--no-such-option")
        assert "no-such-option" in str(caught.value).partition(" on stderr:")[2]

    def test_a_partition_that_is_not_there_is_told(self, group: Group) -> None:
        with pytest.raises(OSError, match="invalid partition"):
            group.makegateway("srun=--partition=elsewhere")

    def test_nothing_is_left_of_it(self, group: Group) -> None:
        before = Resources.now()
        group.makegateway("srun")
        group.terminate(timeout=5)
        before.assert_nothing_new()
        assert shutil.which("squeue")
        jobs = ["squeue", "--noheader", "--states=RUNNING,PENDING"]
        wait_until(lambda: not subprocess.run(jobs, capture_output=True).stdout)

    def test_a_worker_that_is_stuck_is_killed(self, group: Group) -> None:
        before = Resources.now()
        gateway = group.makegateway("srun")
        channel = gateway.remote_exec(
            "import os\nchannel.send(os.getpid())\n"
            "while True:\n try:\n  while True: pass\n except BaseException: pass"
        )
        pid = channel.receive(BOUND_S)
        group.terminate(timeout=0.1)
        before.assert_nothing_new()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), timeout_s=BOUND_S)


class TestMPI:
    @pytest.fixture
    def ranks(self, group: Group) -> list[Gateway]:
        mpirun = need("mpirun", "openmpi-bin")
        need("openssl", "openssl")
        group.listen("127.0.0.1:0")
        options = ["--oversubscribe", "-n", str(TASKS)]
        if os.getuid() == 0:
            options.append("--allow-run-as-root")
        group.launch([mpirun, *options], python=sys.executable)
        return group.wait_for(TASKS, 4 * BOUND_S)

    def test_each_rank_is_a_worker_and_it_ends_well_after_them(
        self, group: Group, ranks: list[Gateway]
    ) -> None:
        before = [gateway._rinfo() for gateway in ranks]
        assert {(info.launcher, info.rank, info.size) for info in before} == {
            ("MPI", rank, TASKS) for rank in range(TASKS)
        }
        assert len({info.job for info in before}) == 1
        (mpirun,) = group._get_joins().launchers
        group.terminate(timeout=BOUND_S)
        assert mpirun.has_ended(monotonic() + BOUND_S)
        assert mpirun.failure() == ""

    def test_one_that_is_killed_takes_the_others_along_and_each_is_told_of(
        self, ranks: list[Gateway]
    ) -> None:
        channels = [gateway.remote_exec("channel.receive()") for gateway in ranks]
        os.kill(ranks[0]._rinfo().pid, signal.SIGKILL)
        for gateway, channel in zip(ranks, channels, strict=True):
            rank = gateway._rinfo().rank
            with pytest.raises(WorkerDied, match=rf"\(rank {rank} of MPI job .* on .*\) died"):
                channel.receive(BOUND_S)
        assert ranks[0].exitcode == -signal.SIGKILL
