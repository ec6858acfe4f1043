"""The ends of gateways that go via others: in whichever order the parts die, nothing is left.

A process behind another one is no child of this one, so each test here looks for it by its
number; that nothing of ours is left is proved behind each test by a fixture.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from chains import make_chain, pid_of
from processes import is_gone, stop
from tools import (
    BOUND_S,
    IS_THOROUGH,
    MakeGateway,
    clean_environment,
    find_python,
    run_python,
    wait_until,
)

from execnet import Gateway, Group, WorkerDied

TIMEOUT_S = 0.3  # given to terminate() where a worker will not end by itself
MIB = 1 << 20

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.usefixtures("readers"),
]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="knows who descends from whom")


def make_hops(group: Group, length: int = 3, option: str = "") -> list[Gateway]:
    """Return gateways hop0, hop1, ...; each but the first goes via the one before."""
    return make_chain(group, *[f"//id=hop{number}{option}" for number in range(length)])


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes that have to be gone, in the end, within the bound."""
    pids: list[int] = []
    yield pids
    try:
        wait_until(lambda: all(map(is_gone, pids)), BOUND_S)
    finally:
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


def waiting(gateway: Gateway) -> Any:
    channel = gateway.remote_exec("channel.send(1); channel.receive()")
    assert channel.receive(BOUND_S) == 1
    return channel


class TestAWorkerDies:
    @pytest.mark.parametrize("python", ["", "2.7"])
    @pytest.mark.parametrize("victim", range(3))
    def test_all_behind_it_end_and_say_which_hop_it_was(
        self, pids: list[int], group: Group, victim: int, python: str
    ) -> None:
        gateways = make_hops(group, option=f"//python={find_python(python)}" if python else "")
        channels = [waiting(gateway) for gateway in gateways]
        pids += [pid_of(gateway) for gateway in gateways]
        os.kill(pids[victim], signal.SIGKILL)
        for number in range(victim, 3):
            with pytest.raises(
                WorkerDied, match=f"worker hop{victim} died, killed by SIGKILL"
            ) as e:
                channels[number].receive(BOUND_S)
            assert f"worker hop{number} died" in str(e.value)
            assert e.value.exitcode == (-9 if number == victim else None)
        wait_until(lambda: all(map(is_gone, pids[victim:])))
        for channel in channels[:victim]:  # they go on
            channel.send(2)
            channel.waitclose(BOUND_S)

    def test_its_exit_status_comes_behind_its_data(self, pids: list[int], group: Group) -> None:
        gateway = make_hops(group)[2]
        pids.append(pid_of(gateway))
        channel = gateway.remote_exec("""
            import os
            for _ in range(20):
                channel.send(b"x" * (1 << 20))
            os._exit(3)
            """)
        for _ in range(20):
            assert len(channel.receive(BOUND_S)) == MIB
        with pytest.raises(WorkerDied, match="worker hop2 died, exit status 3") as error:
            channel.receive(BOUND_S)
        assert error.value.exitcode == 3
        with pytest.raises(OSError, match="hop2"):
            gateway.remote_exec("")

    def test_a_process_that_it_forked_does_not_hide_its_end(
        self, pids: list[int], group: Group
    ) -> None:
        gateway = make_hops(group, 2)[1]
        channel = gateway.remote_exec("""
            import os, time
            pid = os.fork()
            if pid == 0:
                time.sleep(100)
                os._exit(0)
            channel.send((os.getpid(), pid))
            channel.receive()
            """)
        worker, forked = channel.receive(BOUND_S)
        try:
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(WorkerDied) as error:
                channel.receive(BOUND_S)
            assert error.value.exitcode == -9
            assert not is_gone(forked)
        finally:
            os.kill(forked, signal.SIGKILL)
        pids += [worker, forked]

    def test_who_waits_to_send_to_it_is_told(self, pids: list[int], group: Group) -> None:
        gateway = make_hops(group, 2)[1]
        pids.append(pid_of(gateway))
        channel = gateway.remote_exec("import time; channel.send(1); time.sleep(100)")
        assert channel.receive(BOUND_S) == 1
        stop(pids[0])
        errors: list[OSError] = []

        def send() -> None:
            try:
                while True:
                    channel.send(b"x" * MIB)
            except OSError as error:
                errors.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: gateway._io.input.under_way >= MIB)
        gateway._io.kill()  # overtakes what is choked
        assert gateway._io.wait() == -9
        sender.join(BOUND_S)
        assert len(errors) == 1

    def test_how_one_ended_that_is_lost_with_its_hop_is_not_made_up(
        self, pids: list[int], group: Group
    ) -> None:
        gateways: list[Any] = make_hops(group, 2)
        pids += [pid_of(gateway) for gateway in gateways]
        stop(pids[1])
        gateways[1].exit()  # which it does not see
        os.kill(pids[0], signal.SIGKILL)
        assert gateways[1]._io.wait() is None
        assert gateways[1]._io.poll_until(time.monotonic()) is None
        assert gateways[1]._io.has_ended()
        os.kill(pids[1], signal.SIGKILL)


class TestTermination:
    @pytest.mark.parametrize("length", [2, 3, 5])
    def test_all_end_as_asked(self, pids: list[int], length: int) -> None:
        group = Group()
        gateways = make_hops(group, length)
        pids += [pid_of(gateway) for gateway in gateways]
        start = time.monotonic()
        group.terminate(timeout=BOUND_S)
        assert all(map(is_gone, pids))
        assert [gateway._io.wait() for gateway in gateways] == [0] * length
        assert time.monotonic() - start < BOUND_S

    @linux_only
    @pytest.mark.parametrize("stopped", ["0", "1", "2", "01", "02", "12", "012"])
    def test_stopped_workers_are_gone_within_a_second_of_its_time(
        self, pids: list[int], stopped: str
    ) -> None:
        group = Group()
        pids += [pid_of(gateway) for gateway in make_hops(group)]
        for number in map(int, stopped):
            stop(pids[number])
        start = time.monotonic()
        group.terminate(timeout=TIMEOUT_S)
        assert time.monotonic() - start < TIMEOUT_S + 1
        wait_until(lambda: all(map(is_gone, pids)))

    def test_one_that_is_choked_by_data_is_killed_in_time(self, pids: list[int]) -> None:
        group = Group()
        gateways = make_hops(group)
        pids += [pid_of(gateway) for gateway in gateways]
        channel = waiting(gateways[2])
        stop(pids[2])

        def send() -> None:
            with suppress(OSError):
                while True:
                    channel.send(b"x" * MIB)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: gateways[2]._io.input.under_way >= MIB)
        start = time.monotonic()
        group.terminate(timeout=TIMEOUT_S)
        assert time.monotonic() - start < TIMEOUT_S + 1
        sender.join(BOUND_S)
        assert all(map(is_gone, pids))

    def test_the_exit_of_the_first_ends_those_behind_it(
        self, pids: list[int], group: Group
    ) -> None:
        gateways = make_hops(group)
        pids += [pid_of(gateway) for gateway in gateways]
        channel = waiting(gateways[2])
        gateways[0].exit()
        with pytest.raises(WorkerDied, match="hop1, which it goes via, has ended"):
            channel.receive(BOUND_S)
        wait_until(lambda: all(map(is_gone, pids)))

    def test_the_exit_of_the_last_leaves_the_others(
        self, pids: list[int], makegateway: MakeGateway, group: Group
    ) -> None:
        gateways = make_hops(group)
        channels = [waiting(gateway) for gateway in gateways[:2]]
        pids.append(pid_of(gateways[2]))
        gateways[2].exit()
        wait_until(lambda: is_gone(pids[0]))
        for channel in channels:
            channel.send(2)
            channel.waitclose(BOUND_S)
        assert makegateway("popen//via=hop1").remote_status().numexecuting == 0

    def test_a_program_that_ends_leaves_nothing_and_says_nothing(self, pids: list[int]) -> None:
        result = run_python("""if True:
            import execnet
            execnet.makegateway("popen//id=a")
            execnet.makegateway("popen//via=a//id=b")
            execnet.makegateway("popen//via=b//id=c")
            print(*[gateway._rinfo().pid for gateway in execnet.default_group])
            """)
        assert (result.returncode, result.stderr) == (0, "")
        pids += map(int, result.stdout.split())
        assert len(pids) == 3


class TestTheCoordinatorDies:
    PROGRAM = """if True:
        import sys
        import execnet
        group = execnet.Group()
        group.makegateway("popen//id=hop0")
        group.makegateway("popen//id=hop1//via=hop0" + sys.argv[2])
        group.makegateway("popen//id=hop2//via=hop1")
        channels = [gateway.remote_exec(sys.argv[1]) for gateway in group]
        for channel in channels:
            assert channel.receive(20) == 1
        print(*[gateway._rinfo().pid for gateway in group], flush=True)
        sys.stdin.read()
        """

    def start(self, code: str, option: str = "") -> subprocess.Popen[str]:
        """Return a process that has a chain, whose workers run code that sends 1 first."""
        return subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, code, option],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
        )

    def kill(self, coordinator: subprocess.Popen[str], pids: list[int], stopped: str = "") -> None:
        assert coordinator.stdout is not None
        pids += map(int, coordinator.stdout.readline().split())
        assert len(pids) == 3
        for number in map(int, stopped):
            stop(pids[number])
        coordinator.kill()
        coordinator.wait(BOUND_S)

    @pytest.mark.parametrize(
        "code",
        [
            "channel.send(1); channel.receive()",
            "import time; channel.send(1); time.sleep(100)",
            "channel.send(1)\nwhile True: channel.send(b'x' * 100000)",
        ],
        ids=["receiving", "sleeping", "sending"],
    )
    def test_all_end_at_once(self, pids: list[int], code: str) -> None:
        with self.start(code) as coordinator:
            self.kill(coordinator, pids)
        wait_until(lambda: all(map(is_gone, pids)), 5)

    @linux_only
    @pytest.mark.parametrize("stopped", ["1", "2", "12"] if IS_THOROUGH else ["12"])
    def test_stopped_workers_are_killed_by_those_before_them(
        self, pids: list[int], stopped: str
    ) -> None:
        with self.start("channel.send(1)") as coordinator:
            self.kill(coordinator, pids, stopped)
        wait_until(lambda: all(map(is_gone, pids)), 15)

    @pytest.mark.parametrize("version", ["2.7", "3.6"])
    def test_an_old_python_kills_a_stopped_worker_as_well(
        self, pids: list[int], version: str
    ) -> None:
        option = f"//python={find_python(version)}"
        with self.start("channel.send(1)", option) as coordinator:
            self.kill(coordinator, pids, "2")
        wait_until(lambda: all(map(is_gone, pids)), 15)
