"""Gateways that go via others: bytes pass, however slow a side is, and what goes wrong is told.

How they end is in ``test_via_death.py``.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chains import MIB, echoed, make_chain, pid_of, posix_only
from processes import stop
from services import FakeSsh, Sshd, script
from socketservers import Servers
from tools import BOUND_S, MakeGateway, find_python, threads, wait_until
from workers import ECHO

from execnet import Gateway, Group, HostNotFound, RemoteError, WorkerDied
from execnet._via.stream import ViaIO
from execnet.gateway_base import ExecModel
from execnet.gateway_bootstrap import BootstrapError

ALL_BYTES = bytes(range(256))

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def peak_bytes(gateway: Gateway) -> int:
    """Return the most memory that a worker has ever taken."""
    status = Path(f"/proc/{pid_of(gateway)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def threads_and_descriptors(gateway: Gateway) -> tuple[int, int]:
    proc = f"/proc/{pid_of(gateway)}"
    return len(os.listdir(f"{proc}/task")), len(os.listdir(f"{proc}/fd"))


class TestChains:
    def test_code_runs_at_each_of_three_hops(self, group: Group) -> None:
        gateways = make_chain(group, "", "", "")
        for gateway in gateways:
            code = "import os; channel.send((os.getpid(), os.getppid()))"
            pid, parent = gateway.remote_exec(code).receive(BOUND_S)
            assert pid == pid_of(gateway)
            before = gateways.index(gateway) - 1
            assert parent == (pid_of(gateways[before]) if before >= 0 else os.getpid())

    @pytest.mark.parametrize("end", ["2.7", "3.6", "3.13"])
    @pytest.mark.parametrize("middle", ["2.7", "3.6", "3.13", "pypy3.9"])
    def test_bytes_pass_unchanged_whatever_the_pythons(
        self, group: Group, middle: str, end: str
    ) -> None:
        pythons = [f"//python={find_python(version)}" for version in (middle, end)]
        gateway = make_chain(group, *pythons)[1]
        assert echoed(gateway, ALL_BYTES) == ALL_BYTES
        large = ALL_BYTES * (3 * MIB // 256)
        assert echoed(gateway, large) == large

    @pytest.mark.parametrize("size", [0, 1, 4000, 70000, (1 << 18) - 20, 1 << 18, MIB, 5 * MIB])
    def test_items_of_any_size_pass_in_order(self, group: Group, size: int) -> None:
        channel = make_chain(group, "", "")[1].remote_exec(ECHO)
        items = [(number, b"x" * size) for number in range(5)]
        for item in items:
            channel.send(item)
        assert [channel.receive(BOUND_S) for _ in items] == items

    def test_every_execution_model_can_go_via(self, execmodel: ExecModel) -> None:
        group = Group(execmodel=execmodel)
        try:
            for gateway in make_chain(group, "", "", "")[1:]:
                assert echoed(gateway, [1, b"2" * MIB]) == [1, b"2" * MIB]
        finally:
            group.terminate(timeout=5)

    def test_a_worker_of_any_execution_model_can_be_gone_via(
        self, group: Group, execmodel: ExecModel
    ) -> None:
        gateway = make_chain(group, f"//execmodel={execmodel.backend}", "//execmodel=thread")[1]
        assert echoed(gateway, b"2" * MIB) == b"2" * MIB

    def test_what_code_prints_and_reads_disturbs_nothing(self, group: Group) -> None:
        channel = make_chain(group, "", "")[1].remote_exec(
            "import os, sys; print('x' * 100000); os.write(1, b'y'); channel.send(sys.stdin.read())"
        )
        assert channel.receive(BOUND_S) == ""

    def test_popen_takes_the_interpreter_of_the_gateway_it_goes_via(self, group: Group) -> None:
        old, behind = make_chain(group, f"//python={find_python('3.8')}", "")
        assert behind._rinfo().version_info[:2] == (3, 8)
        assert behind._rinfo().executable == old._rinfo().executable

    def test_source_is_sent_and_nothing_imported_there(self, group: Group) -> None:
        channel = make_chain(group, "", "")[1].remote_exec(
            "import sys; channel.send([name for name in list(sys.modules) if 'execnet' in name])"
        )
        assert "execnet" not in channel.receive(BOUND_S)

    def test_chdir_and_env_are_set_there(self, group: Group, tmp_path: Path) -> None:
        folder = tmp_path / "new folder"
        channel = make_chain(group, "", f"//chdir={folder}//env:WORD=a b")[1].remote_exec(
            "import os; channel.send((os.getcwd(), os.environ['WORD']))"
        )
        assert channel.receive(BOUND_S) == (str(folder), "a b")

    def test_several_start_at_once(self, makegateway: MakeGateway, group: Group) -> None:
        makegateway("popen//id=first")
        gateways = group.makegateways(["popen//via=first"] * 4)
        assert len({pid_of(gateway) for gateway in gateways}) == 4

    def test_each_costs_one_thread_here(self, makegateway: MakeGateway) -> None:
        makegateway("popen//id=first")
        before = threads()
        gateway = makegateway("popen//via=first")

        def names() -> list[str]:
            new = [thread.name for thread in threads() - before]
            return [name for name in new if name != "execnet-heartbeat"]  # one for all gateways

        wait_until(lambda: names() == [f"execnet-receiver-{gateway.id}"])  # a flusher may end

    def test_the_main_thread_of_the_gateway_between_stays_free(self, group: Group) -> None:
        between, behind = make_chain(group, "//execmodel=main_thread_only", "")
        assert between.remote_status().numexecuting == 0
        assert echoed(between, 1) == echoed(behind, 1) == 1

    @linux_only
    def test_nothing_of_one_that_ended_is_left_in_the_gateway_between(
        self, makegateway: MakeGateway
    ) -> None:
        between = makegateway("popen//id=between")
        makegateway("popen//via=between").exit()  # loads what is needed for all
        wait_until(lambda: not between._channelfactory._callbacks)
        wait_until(lambda: threads_and_descriptors(between)[0] <= 2)
        before = threads_and_descriptors(between)
        for _ in range(3):
            gateway = makegateway("popen//via=between")
            assert threads_and_descriptors(between) > before
            gateway.exit()
            gateway.join(BOUND_S)
        wait_until(lambda: threads_and_descriptors(between) == before)
        wait_until(lambda: between.remote_status().numchannels == 0)


@posix_only
class TestSlowSides:
    @linux_only
    def test_a_worker_that_takes_nothing_neither_fills_nor_stalls_the_one_between(
        self, group: Group
    ) -> None:
        between, behind = make_chain(group, "", "")
        channel = behind.remote_exec("channel.send(sum(len(channel.receive()) for _ in range(64)))")
        other = between.remote_exec(ECHO)
        other.send(0)
        assert other.receive(BOUND_S) == 0
        before = peak_bytes(between)
        stop(pid_of(behind))
        sender = threading.Thread(target=lambda: [channel.send(b"x" * MIB) for _ in range(64)])
        sender.start()
        try:
            # Its pipe and its window are full.
            wait_until(lambda: behind._io.input.under_way >= MIB)
            for number in range(2000):
                other.send(number)
                assert other.receive(BOUND_S) == number
            assert peak_bytes(between) - before < 8 * MIB
        finally:
            os.kill(pid_of(behind), signal.SIGCONT)
        assert channel.receive(BOUND_S) == 64 * MIB
        sender.join(BOUND_S)
        assert peak_bytes(between) - before < 8 * MIB

    @linux_only
    def test_a_coordinator_that_takes_nothing_neither_fills_nor_stalls_the_one_between(
        self, group: Group, tmp_path: Path
    ) -> None:
        between, behind = make_chain(group, "", "")
        other = between.remote_exec(ECHO)
        other.send(0)
        assert other.receive(BOUND_S) == 0
        before = [peak_bytes(gateway) for gateway in (between, behind)]
        go_on, sizes = threading.Event(), queue.Queue[int]()

        def take(item: bytes) -> None:
            sizes.put(len(item))
            assert go_on.wait(BOUND_S)

        all_sent = tmp_path / "all sent"
        code = "for _ in range(64): channel.send(b'x' * (1 << 20))\nopen({!r}, 'w').close()"
        channel = behind.remote_exec(code.format(str(all_sent)))
        channel.setcallback(take)
        assert sizes.get(timeout=BOUND_S) == MIB
        wait_until(lambda: behind._io._data._items.qsize() >= 3)
        for number in range(2000):
            other.send(number)
            assert other.receive(BOUND_S) == number
        assert not all_sent.exists()
        for gateway, size in zip((between, behind), before, strict=True):
            assert peak_bytes(gateway) - size < 8 * MIB
        go_on.set()
        channel.waitclose(BOUND_S)
        assert sizes.qsize() == 63
        assert all_sent.exists()

    def test_small_frames_do_not_outgrow_the_window(self, group: Group) -> None:
        channel = make_chain(group, "", "")[1].remote_exec(ECHO)
        numbers: list[int] = []
        done = threading.Event()

        def take(number: int) -> None:
            numbers.append(number)
            if len(numbers) == 50000:
                done.set()

        channel.setcallback(take)
        for number in range(50000):
            channel.send(number)
        assert done.wait(BOUND_S)
        assert numbers == list(range(50000))


class TestFailures:
    def test_an_unknown_gateway_is_named_with_those_that_there_are(
        self, makegateway: MakeGateway
    ) -> None:
        makegateway("popen//id=here")
        with pytest.raises(ValueError, match="via=gone: there is no such gateway, there are: here"):
            makegateway("popen//via=gone")

    def test_a_gateway_that_has_ended_can_not_be_gone_via(
        self, makegateway: MakeGateway, group: Group
    ) -> None:
        between = makegateway("popen//id=between")
        channel = between.remote_exec("import os; os._exit(3)")
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)
        with pytest.raises(BootstrapError, match="via between"):
            makegateway("popen//via=between")
        assert list(group) == [between]

    def test_a_program_that_is_not_there_is_told(self, makegateway: MakeGateway) -> None:
        makegateway("popen//id=between")
        with pytest.raises(BootstrapError, match="between can't start it: No such file") as failure:
            makegateway("popen//via=between//python=/no/such/python")
        assert "/no/such/python -u -c" in str(failure.value)

    def test_exit_status_and_noise_of_a_program_that_is_no_python_are_told(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        makegateway("popen//id=between")
        program = script(tmp_path / "program", "echo hello; exit 7")
        with pytest.raises(BootstrapError, match="exit status 7") as failure:
            makegateway(f"popen//via=between//python={program}")
        assert failure.value.exitcode == 7
        assert failure.value.noise == b"hello\n"

    @posix_only
    def test_a_program_that_never_answers_is_killed_with_what_it_started(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        makegateway("popen//id=between")
        pids = tmp_path / "pids"
        program = script(tmp_path / "program", f"sleep 100 & echo $$ $! > {pids}; wait")
        with pytest.raises(BootstrapError, match="no answer in time"):
            makegateway(f"popen//via=between//python={program}//connect_timeout=1")
        for pid in pids.read_text().split():
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))

    def test_a_busy_main_thread_that_takes_no_more_code_is_told(self, group: Group) -> None:
        between = group.makegateway("popen//execmodel=main_thread_only//id=between")
        channel = between.remote_exec("channel.send(1); channel.receive()")
        assert channel.receive(BOUND_S) == 1
        with pytest.raises(BootstrapError, match="main_thread_only"):
            group.makegateway("popen//via=between")
        channel.send(2)
        channel.waitclose(BOUND_S)

    def test_errors_of_code_come_as_from_any_gateway(self, group: Group) -> None:
        channel = make_chain(group, "", "", "")[2].remote_exec("1 / 0")
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            channel.waitclose(BOUND_S)


@posix_only
class TestStream:
    """The stream alone, to programs that are no workers."""

    def start(self, makegateway: MakeGateway, *args: str, before: str = "") -> ViaIO:
        request = {"args": list(args), "address": None, "stderr": False, "timeout": None}
        between = makegateway()
        between.remote_exec(before).waitclose(BOUND_S)
        return ViaIO(between, request, list(args), None, between.execmodel)

    def test_the_end_is_read_behind_the_bytes_and_then_the_status_is_known(
        self, makegateway: MakeGateway
    ) -> None:
        stream = self.start(makegateway, "sh", "-c", "cat; exit 5")
        stream.write(ALL_BYTES)
        stream.close_write()
        assert stream.read_some(65536) == ALL_BYTES
        assert [stream.read_some(65536) for _ in range(4)] == [b""] * 4
        assert stream.wait() == stream.poll_until(0) == 5

    def test_a_status_that_the_worker_between_can_not_have_is_none(
        self, makegateway: MakeGateway
    ) -> None:
        ignored = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
        stream = self.start(makegateway, "sh", "-c", "exit 3", before=ignored)
        assert stream.wait() is None
        assert stream.has_ended()

    def test_a_program_that_has_ended_takes_no_bytes(self, makegateway: MakeGateway) -> None:
        stream = self.start(makegateway, "true")
        assert stream.wait() == 0
        with pytest.raises(OSError, match="has ended"):
            stream.write(b"x")

    def test_a_program_that_reads_no_more_does_not_stall_the_writer_for_ever(
        self, makegateway: MakeGateway
    ) -> None:
        stream = self.start(makegateway, "sh", "-c", "exec <&-; echo; exec sleep 100")
        assert stream.read_some(10) == b"\n"
        stream.write(b"x" * (5 * MIB))
        stream.kill()
        assert stream.wait() == -9

    def test_what_nobody_reads_any_more_does_not_stall_the_program(
        self, makegateway: MakeGateway
    ) -> None:
        stream = self.start(makegateway, "sh", "-c", "head -c 10000000 /dev/zero; exit 3")
        stream.close_read()
        assert stream.wait() == 3


@posix_only
class TestTransports:
    @pytest.fixture
    def far_ssh(self, tmp_path: Path) -> FakeSsh:
        """An ``ssh`` that runs its command here, whatever the host."""
        folder = tmp_path / "bin"
        folder.mkdir()
        ssh = FakeSsh(folder)
        ssh(FakeSsh.RUN)
        return ssh

    def between(self, makegateway: MakeGateway, ssh: FakeSsh) -> Gateway:
        return makegateway(f"popen//id=between//env:PATH={ssh.folder}:{os.environ['PATH']}")

    def test_the_ssh_of_the_gateway_between_is_run(
        self, makegateway: MakeGateway, far_ssh: FakeSsh
    ) -> None:
        between = self.between(makegateway, far_ssh)
        gateway = makegateway(f"ssh=host//via=between//python={sys.executable}")
        assert echoed(gateway, ALL_BYTES) == ALL_BYTES
        assert gateway.remoteaddress == "host"
        assert between.remoteaddress is None

    def test_what_ssh_says_is_shown_and_kept(
        self, makegateway: MakeGateway, far_ssh: FakeSsh, capfd: pytest.CaptureFixture[str]
    ) -> None:
        far_ssh("echo 'Permission denied' >&2; exit 255")
        self.between(makegateway, far_ssh)
        with pytest.raises(HostNotFound, match="Permission denied") as failure:
            makegateway("ssh=host//via=between")
        assert failure.value.exitcode == 255
        assert failure.value.stderr == "Permission denied"
        assert "Permission denied" in capfd.readouterr().err

    def test_a_real_ssh_leads_on(self, makegateway: MakeGateway, sshd: Sshd) -> None:
        makegateway("popen//id=between")
        spec = f"ssh=loop//ssh_config={sshd.ssh_config}//id=far"
        gateway = makegateway(f"{spec}//via=between")
        assert echoed(gateway, ALL_BYTES * 10000) == ALL_BYTES * 10000
        further = makegateway("popen//via=far")
        assert echoed(further, ALL_BYTES * 10000) == ALL_BYTES * 10000
        assert further.remoteaddress == "loop"

    @pytest.fixture
    def sshd(self, tmp_path: Path) -> Iterator[Sshd]:
        sshd = Sshd(tmp_path)
        yield sshd
        sshd.stop()

    @pytest.mark.parametrize("version", ["2.7", "3.11"])
    @pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:socket"])
    def test_the_worker_between_connects_to_a_socket(
        self, makegateway: MakeGateway, tmp_path: Path, address: str, version: str
    ) -> None:
        makegateway(f"popen//id=between//python={find_python(version)}")
        with Servers(tmp_path) as servers:
            address = address.replace("unix:", f"unix:{tmp_path}/")
            address = servers.start(address).address
            gateway = makegateway(f"socket={address}//via=between")
            assert echoed(gateway, ALL_BYTES * 10000) == ALL_BYTES * 10000
            assert gateway.remoteaddress == address
            channel = gateway.remote_exec("import os; os._exit(3)")
            with pytest.raises(WorkerDied):
                channel.receive(BOUND_S)

    def test_a_socket_where_nobody_listens_is_told(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        makegateway("popen//id=between")
        with pytest.raises(BootstrapError, match=r"between can't connect to .*: No such file"):
            makegateway(f"socket=unix:{tmp_path}/none//via=between")
