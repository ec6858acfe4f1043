"""``share=yes``: one login for each address, and what the connection behind it is and is not."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import is_running
from programs import STUBBORN
from services import FakeSsh, Sshd, common_python, script
from tools import BOUND_S, Resources, wait_until
from workers import GETPID, ask

from execnet import BootstrapError, Gateway, Group, HostNotFound, RSync, WorkerDied, XSpec
from execnet._specs import Settings

SPEC = "ssh=host//share=yes"


@pytest.fixture
def logins(fake_ssh: FakeSsh) -> Callable[[], int]:
    """Return a function that counts how often ssh was run; it runs what it is told to."""
    fake_ssh(FakeSsh.RUN)
    return lambda: len(fake_ssh.runs())


def connection_of(group: Group) -> Gateway:
    (connection,) = group._connections.gateways()
    return connection


class TestLogins:
    def test_several_workers_take_one(self, group: Group, logins: Callable[[], int]) -> None:
        gateways = group.makegateways([SPEC] * 6)
        assert len({ask(gateway, GETPID) for gateway in gateways}) == 6
        assert logins() == 1
        group.makegateway(SPEC)
        assert logins() == 1

    def test_each_address_takes_its_own(self, group: Group, logins: Callable[[], int]) -> None:
        group.makegateways(
            [SPEC, "ssh=-p 2 host//share=yes", SPEC, "ssh=other//share=yes", "popen"]
        )
        assert logins() == 3

    def test_without_it_each_worker_does(self, group: Group, logins: Callable[[], int]) -> None:
        group.makegateways(["ssh=host", SPEC, "ssh=host//share=no", SPEC])
        assert logins() == 3

    def test_threads_that_start_workers_at_once_share_it(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        threads = [threading.Thread(target=group.makegateway, args=(SPEC,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert (len(group), logins()) == (5, 1)

    def test_it_may_lead_through_another_gateway(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        group.makegateways([f"{SPEC}//via=jump", "popen//id=jump", f"{SPEC}//via=jump"])
        assert logins() == 1
        assert connection_of(group)._io._via is group["jump"]
        group.terminate(timeout=10)
        assert len(group) == 0


class TestWorkers:
    def test_the_group_has_these_alone(self, group: Group, logins: Callable[[], int]) -> None:
        group.makegateways([SPEC] * 2)
        assert repr(group) == "<Group ['gw0', 'gw1']>"
        assert (len(group), [gateway.id for gateway in group]) == (2, ["gw0", "gw1"])
        assert connection_of(group).id not in group
        assert len(group.remote_exec(GETPID)) == 2
        assert group[0].remoteaddress == "host"
        assert str(group[0].spec) == SPEC

    def test_what_is_said_of_a_process_holds_for_them(
        self,
        group: Group,
        logins: Callable[[], int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        words = f"python=env WORD=x {shlex.quote(sys.executable)}//chdir={tmp_path}/new//nice=3"
        own = group.makegateway(f"{SPEC}//{words}//env:OTHER=y//dont_write_bytecode//kill=group")
        other = group.makegateway(SPEC)
        code = """if 1:
            import os, sys
            env = [os.environ.get(name) for name in ("WORD", "OTHER")]
            channel.send([os.getcwd(), env, os.nice(0), sys.dont_write_bytecode])
            """
        nice = os.nice(0)
        assert ask(own, code) == [f"{tmp_path}/new", ["x", "y"], min(nice + 3, 19), True]
        for gateway in other, connection_of(group):
            assert ask(gateway, code) == [os.getcwd(), [None, None], nice, False]
        assert connection_of(group)._rinfo().executable != own.spec.python

    def test_an_interpreter_in_the_home_folder_is_found(
        self,
        group: Group,
        logins: Callable[[], int],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        script(tmp_path / "my python", f'exec {sys.executable} "$@"')
        gateway = group.makegateway(f"{SPEC}//python='~/my python'")
        assert ask(gateway, "channel.send(1)") == 1
        assert logins() == 1

    def test_others_go_via_one_and_trees_are_sent_to_one(
        self, group: Group, logins: Callable[[], int], tmp_path: Path
    ) -> None:
        group.makegateways([f"{SPEC}//id=a", "popen//via=a//id=b"])
        assert ask(group["b"], "import os; channel.send(os.getppid())") == ask(group["a"], GETPID)
        (tmp_path / "from").mkdir()
        (tmp_path / "from" / "file").write_bytes(bytes(range(256)) * 4000)
        rsync = RSync(str(tmp_path / "from"), verbose=False)
        rsync.add_target(group["a"], str(tmp_path / "to"))
        rsync.send()
        assert (tmp_path / "to" / "file").stat().st_size == 1024000

    @pytest.mark.parametrize("end", ["exit", "stubborn", "kill"])
    def test_their_groups_are_killed_with_them(
        self, group: Group, logins: Callable[[], int], end: str
    ) -> None:
        gateway = group.makegateway(f"{SPEC}//kill=group//grace=0.1")
        code = "import subprocess; channel.send(subprocess.Popen(['sleep', '100']).pid)"
        child = ask(gateway, code)
        if end == "kill":
            os.kill(ask(gateway, GETPID), signal.SIGKILL)
        elif end == "stubborn":
            gateway.remote_exec(STUBBORN).receive(BOUND_S)
        if end != "kill":
            group.terminate(timeout=1)
        wait_until(lambda: not is_running(child))


class TestEnds:
    def test_the_connection_ends_with_the_last_worker(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        before = Resources.now()
        first, second = group.makegateways([SPEC] * 2)
        connection = connection_of(group)
        first.exit()
        first.join(BOUND_S)
        assert ask(second, "channel.send(1)") == 1
        assert connection.hasreceiver()
        second.exit()
        connection.join(BOUND_S)
        assert not connection.hasreceiver()
        before.assert_nothing_new()
        assert ask(group.makegateway(SPEC), "channel.send(1)") == 1
        assert logins() == 2

    def test_it_ends_with_the_group(self, logins: Callable[[], int]) -> None:
        before = Resources.now()
        with Group([SPEC] * 3) as group:
            connection = connection_of(group)
        assert not connection.hasreceiver()
        before.assert_nothing_new()

    def test_its_death_is_told_to_those_behind_it(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        gateways = group.makegateways([SPEC] * 2)
        channels = [gateway.newchannel() for gateway in gateways]
        os.kill(ask(connection_of(group), GETPID), signal.SIGKILL)
        for channel in channels:
            with pytest.raises(WorkerDied, match="shared connection to host, which it goes via"):
                channel.receive(BOUND_S)
        assert ask(group.makegateway(SPEC), "channel.send(1)") == 1
        assert logins() == 2

    def test_a_worker_that_dies_leaves_the_others(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        first, second = group.makegateways([SPEC] * 2)
        with pytest.raises(WorkerDied, match="gw0 died, exit status 3"):
            first.remote_exec("import os; os._exit(3)").receive(BOUND_S)
        assert ask(second, "channel.send(1)") == 1

    def test_one_that_fails_leaves_none_of_its_call(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        before = Resources.now()
        with pytest.raises(BootstrapError, match="chdir=/proc/no"):
            group.makegateways([SPEC, f"{SPEC}//chdir=/proc/no/such", "popen"])
        assert (len(group), group._connections.gateways()) == (0, [])
        before.assert_nothing_new()

    def test_it_stays_where_an_earlier_worker_uses_it(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        gateway = group.makegateway(SPEC)
        with pytest.raises(BootstrapError, match="chdir=/proc/no"):
            group.makegateway(f"{SPEC}//chdir=/proc/no/such")
        assert ask(gateway, "channel.send(1)") == 1
        assert (len(group), logins()) == (1, 1)


class TestFailures:
    def test_a_host_that_is_not_reached_is_tried_once(
        self, group: Group, fake_ssh: FakeSsh
    ) -> None:
        fake_ssh("echo 'me@host: Permission denied (publickey).' >&2; exit 255")
        before = Resources.now()
        with pytest.raises(HostNotFound, match="none of the keys"):
            group.makegateways([SPEC] * 5)
        before.assert_nothing_new()
        assert len(fake_ssh.runs()) == 1

    def test_a_refused_login_is_tried_again(self, group: Group, fake_ssh: FakeSsh) -> None:
        said = "kex_exchange_identification: Connection closed by remote host"
        first = f"[ $(wc -l < $here/runs) -gt 1 ] || {{ echo '{said}' >&2; exit 255; }}"
        fake_ssh(f"{first}\n{FakeSsh.RUN}")
        assert len(group.makegateways([SPEC] * 3)) == 3
        assert len(fake_ssh.runs()) == 2

    def test_where_only_some_commands_are_allowed_each_worker_logs_in(
        self, group: Group, fake_ssh: FakeSsh
    ) -> None:
        """As a forced command does, which looks at what it is asked for."""
        allowed = 'case "$last" in *ALLOWED=1*) exec sh -c "$last";; esac'
        fake_ssh(f"for last; do :; done; {allowed}; echo 'not allowed' >&2; exit 1")
        spec = f"{SPEC}//python=env ALLOWED=1 {sys.executable}"
        gateways = group.makegateways([spec] * 3)
        assert len({ask(gateway, GETPID) for gateway in gateways}) == 3
        group.makegateway(spec)
        assert len(fake_ssh.runs()) == 1 + 4

    def test_a_program_that_the_connection_cannot_start_gets_a_login(
        self, group: Group, logins: Callable[[], int]
    ) -> None:
        with pytest.raises(BootstrapError, match="python= says which interpreter to use"):
            group.makegateway(f"{SPEC}//python=no-such-python")
        assert logins() == 2
        assert group._connections.gateways() == []

    @pytest.mark.parametrize("value", ["maybe", "", "1"])
    def test_other_values_are_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="share="):
            Settings(XSpec(f"ssh=host//share={value}"))

    def test_it_is_for_ssh(self) -> None:
        with pytest.raises(ValueError, match="share= is for ssh="):
            Settings(XSpec("docker=box//share=yes"))
        Settings(XSpec("popen//share=a program's own"))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path / "sshd", "MaxSessions 1\nMaxStartups 1")
    yield sshd
    sshd.stop()


def test_a_server_that_allows_next_to_nothing_is_enough(sshd: Sshd, group: Group) -> None:
    spec = f"ssh=loop//ssh_config={sshd.ssh_config}//share=yes//python={common_python()}"
    group.makegateways([spec] * 12)
    clients = group.remote_exec("import os; channel.send(os.environ['SSH_CONNECTION'])")
    assert len(set(clients.receive_each())) == 1
