"""Many logins to one address: few at once, a refused one again, and nothing else again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import interrupt_asleep
from services import FakeSsh, Sshd, common_python
from tools import BOUND_S, Resources, clean_environment, wait_until

from execnet import BootstrapError, Group, HostNotFound, XSpec, gateway_bootstrap, gateway_io
from execnet._specs import Settings
from execnet._transports import logins as transports_logins
from execnet._transports.logins import AT_ONCE, Logins, address_of, pause_s

CLOSED = "kex_exchange_identification: Connection closed by remote host"
RESET = "kex_exchange_identification: read: Connection reset by peer"
SPEC = f"ssh=host//python={sys.executable}"


def refuse_first(count: int, text: str = CLOSED) -> str:
    """Return commands that refuse so many logins and take the next."""
    said = f"printf '%s\\nConnection closed by 127.0.0.1 port 22\\n' '{text}' >&2"
    return f"[ $(wc -l < $here/runs) -gt {count} ] || {{ {said}; exit 255; }}\n{FakeSsh.RUN}"


class TestRefusedLogins:
    @pytest.mark.parametrize(
        "text",
        [
            CLOSED,
            RESET,
            "ssh_exchange_identification: Connection closed by remote host",
            "ssh_exchange_identification: read: Connection reset by peer",
            "mux_client_request_session: session request failed: Session open refused by peer",
            f"Warning: Permanently added 'jump' to the list of known hosts.\n{CLOSED}",
        ],
    )
    def test_one_is_tried_again(self, group: Group, fake_ssh: FakeSsh, text: str) -> None:
        fake_ssh(refuse_first(1, text))
        gateway = group.makegateway(SPEC)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        assert len(fake_ssh.runs()) == 2
        assert gateway.id == "gw0"

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("me@host: Permission denied (publickey).", 255),
            ("Host key verification failed.", 255),
            ("ssh: Could not resolve hostname host: Name or service not known", 255),
            ("ssh: connect to host host port 22: Connection refused", 255),
            (f"me@jump: Permission denied (publickey).\n{CLOSED}", 255),
            ("", 255),
            (CLOSED, 1),
        ],
    )
    def test_nothing_else_is(self, group: Group, fake_ssh: FakeSsh, text: str, status: int) -> None:
        fake_ssh(f"echo '{text}' >&2; exit {status}")
        with pytest.raises(BootstrapError):
            group.makegateway(SPEC)
        assert len(fake_ssh.runs()) == 1

    def test_one_that_was_closed_without_a_reason_is_tried_some_times(
        self,
        group: Group,
        fake_ssh: FakeSsh,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(transports_logins, "FIRST_PAUSE_S", 0.001)
        fake_ssh("echo 'Connection closed by 127.0.0.1 port 22' >&2; exit 255")
        with pytest.raises(BootstrapError):
            group.makegateway(SPEC)
        assert len(fake_ssh.runs()) == transports_logins.CLOSED_TRIES

    def test_a_host_that_answered_is_not_one(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh(f"echo Welcome; echo '{CLOSED}' >&2; exit 255")
        with pytest.raises(HostNotFound):
            group.makegateway(SPEC)
        assert len(fake_ssh.runs()) == 1

    def test_each_try_is_one_stream_of_gateway_io(
        self, group: Group, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        class Noted(gateway_io.Popen2IOMaster):
            def __init__(self, *args: Any) -> None:
                made.append(args[0])
                super().__init__(*args)

        monkeypatch.setattr(gateway_io, "Popen2IOMaster", Noted)
        fake_ssh(refuse_first(3))
        group.makegateway(SPEC)
        assert len(made) == 4

    def test_it_is_given_up_within_connect_timeout(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh(refuse_first(10**9))
        before = Resources.now()
        start = time.monotonic()
        with pytest.raises(HostNotFound, match="the host accepts no logins now") as caught:
            group.makegateway(f"{SPEC}//connect_timeout=8")
        assert time.monotonic() - start < 40
        assert len(fake_ssh.runs()) > 1
        assert CLOSED in caught.value.stderr
        before.assert_nothing_new()

    def test_a_refusal_tells_more_than_that_the_last_try_took_too_long(
        self, group: Group, fake_ssh: FakeSsh
    ) -> None:
        fake_ssh(f"{refuse_first(1).removesuffix(FakeSsh.RUN)} exec sleep 1000")
        with pytest.raises(HostNotFound, match="the host accepts no logins now"):
            group.makegateway(f"{SPEC}//connect_timeout=8")

    def test_the_failure_of_another_ends_the_pause(self, group: Group, fake_ssh: FakeSsh) -> None:
        said = "echo 'Permission denied (none).' >&2"
        denied = f"[ $(wc -l < $here/runs) -lt 4 ] || {{ {said}; exit 255; }}"
        fake_ssh(f"case $* in *other*) sleep 1; {denied};; esac\n{refuse_first(10**9)}")
        before = Resources.now()
        start = time.monotonic()
        with pytest.raises(HostNotFound, match="Permission denied"):
            group.makegateways([f"{SPEC}//connect_timeout=1000", SPEC.replace("host", "other")])
        assert time.monotonic() - start < 100
        before.assert_nothing_new()

    def test_an_interrupt_ends_the_pause(self, fake_ssh: FakeSsh, tmp_path: Path) -> None:
        fake_ssh(refuse_first(10**9))
        code = f"""
import execnet, threading
from execnet import _starts
_starts.pause_s = lambda tries: print("pausing", flush=True) or 1000.0
try:
    execnet.makegateway("{SPEC}//connect_timeout=0")
except KeyboardInterrupt:
    print("interrupted", len(execnet.default_group))
"""
        popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
        )
        with popen:
            assert popen.stdout is not None
            assert popen.stdout.readline() == "pausing\n"
            interrupt_asleep(popen.pid)
            assert popen.communicate(timeout=BOUND_S)[0] == "interrupted 0\n"

    def test_pauses_grow_up_to_a_limit(self) -> None:
        assert 0.15 <= pause_s(1) <= 0.2 < 0.3 <= pause_s(2) <= 0.4
        assert all(3 < pause_s(tries) <= 5 for tries in (6, 7, 50))


def note_turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets "begin" for each start, "ready" for each that has ended well."""
    notes = []
    deadline, wait_ready = Settings.deadline, gateway_bootstrap.wait_ready

    def begin(settings: Settings) -> float | None:
        notes.append("begin")
        return deadline(settings)

    def ready(*args: Any) -> None:
        wait_ready(*args)
        notes.append("ready")

    monkeypatch.setattr(Settings, "deadline", begin)
    monkeypatch.setattr(gateway_bootstrap, "wait_ready", ready)
    return notes


def most_at_once(notes: list[str]) -> int:
    counts = [Counter(notes[: index + 1]) for index in range(len(notes))]
    return max(count["begin"] - count["ready"] for count in counts)


class TestTurns:
    def test_at_most_eight_log_in_at_once_and_the_time_of_each_begins_with_its_turn(
        self, group: Group, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_ssh(FakeSsh.RUN)
        notes = note_turns(monkeypatch)
        gateways = group.makegateways([SPEC] * 20)
        assert [gateway.id for gateway in gateways] == [f"gw{n}" for n in range(20)]
        assert most_at_once(notes) == AT_ONCE == 8

    def test_all_groups_of_the_process_count(self, fake_ssh: FakeSsh, tmp_path: Path) -> None:
        """What the fake notes is over before the login counts as over."""
        counting = "touch $here/on.$$; ls $here/on.* | wc -l >> $here/counts; sleep 0.05"
        fake_ssh(f"{counting}; rm $here/on.$$; {FakeSsh.RUN}")
        groups = [Group() for _ in range(12)]
        threads = [threading.Thread(target=group.makegateway, args=(SPEC,)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert [len(group) for group in groups] == [1] * 12
        for group in groups:
            group.terminate(timeout=5)
        counts = [int(count) for count in (tmp_path / "counts").read_text().split()]
        assert len(counts) == 12
        assert max(counts) <= AT_ONCE

    def test_others_go_on_meanwhile(
        self, group: Group, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The logins to one host end when a worker of another one has begun."""
        fake_ssh(
            "case $* in *slow*) until [ -e $here/began ]; do sleep 0.01; done;; "
            "*) touch $here/began;; esac\n"
            f"{FakeSsh.RUN}"
        )
        slow = SPEC.replace("host", "slow")
        gateways = group.makegateways(
            [slow] * 9 + [SPEC, "popen", "popen//via=last//id=on", f"{SPEC}//id=last"]
        )
        assert len(gateways) == 13
        assert group["on"].remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_addresses_are_the_words_of_specs(self) -> None:
        one = address_of(XSpec("ssh=-p 2 host//python=p//chdir=x"))
        assert one == address_of(XSpec("ssh=-p  2 'host'//ssh_persist=5"))
        others = [
            "ssh=host",
            "ssh=-p 2 host//ssh_config=f",
            "ssh=-p 2 host//via=a",
            "vagrant_ssh=host",
        ]
        assert len({one, *(address_of(XSpec(other)) for other in others)}) == 5
        assert address_of(XSpec("docker=host")) is None

    def test_an_end_makes_room_once(self) -> None:
        logins, address = Logins(), ("host",)
        begun = [object() for _ in range(AT_ONCE)]
        assert all(logins.begin(address, login) for login in begun)
        assert not logins.begin(address, "one more")
        assert logins.begin(("other",), "one more")
        for _ in range(3):
            logins.end(address, begun[0])
        assert [logins.begin(address, number) for number in range(2)] == [True, False]

    def test_a_failed_start_gives_its_turn_back(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("exit 3")
        for _ in range(AT_ONCE + 1):
            with pytest.raises(BootstrapError, match="exit status 3"):
                group.makegateways([SPEC] * 2)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
    def test_a_forked_process_has_all_turns(self) -> None:
        logins = Logins()
        for number in range(AT_ONCE):
            logins.begin(("host",), number)
        pid = os.fork()
        if not pid:
            os._exit(0 if logins.begin(("host",), "child") else 1)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def strict_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """An sshd that takes two logins at once, and gives two sessions on a connection."""
    sshd = Sshd(tmp_path / "sshd", "MaxStartups 2\nMaxSessions 2")
    yield sshd
    sshd.stop()


class TestServersThatRefuse:
    def test_all_come_up(self, strict_sshd: Sshd, group: Group) -> None:
        spec = f"ssh=loop//ssh_config={strict_sshd.ssh_config}//python={common_python()}"
        group.makegateways([spec] * 8)
        pids = group.remote_exec("import os; channel.send(os.getpid())").receive_each()
        assert len(set(pids)) == 8

    def test_so_they_do_where_sessions_are_refused(
        self, strict_sshd: Sshd, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = subprocess.run(["mktemp", "-d"], capture_output=True, text=True).stdout.strip()
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        spec = f"ssh=loop//ssh_config={strict_sshd.ssh_config}//python={common_python()}"
        group.makegateways([f"{spec}//ssh_persist=1"] * 6)
        pids = group.remote_exec("import os; channel.send(os.getpid())").receive_each()
        assert len(set(pids)) == 6
        group.terminate(timeout=10)
        wait_until(lambda: not os.listdir(f"{runtime}/execnet-ssh"))
        os.rmdir(f"{runtime}/execnet-ssh")
        os.rmdir(runtime)
