"""``execnet doctor`` on staged faults: which stage fails, and what it says to try."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import FakeSsh, Sshd, common_python, free_port, script
from tools import wait_until

from execnet import Gateway, _cli, gateway_bootstrap
from execnet._cli import examine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stages its faults with sh")


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Any:
    """Examine a spec; return what was found of it, the last one of several."""

    def examined(*specs: str) -> Any:
        status = _cli.main(["doctor", *specs, "--json"])
        found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert status == (0 if all(one["ok"] for one in found) else 1)
        return found[-1]

    return examined


def stages(found: Any) -> list[str]:
    return [f"{stage['name']}: {stage['state']}" for stage in found["stages"]]


def assert_fails(found: Any, stage: str, advice: str) -> None:
    assert stages(found)[-1] == f"{stage}: failed", found
    assert advice in found["advice"]
    assert not found["ok"]


class TestAFakeSsh:
    """What ssh would say, or do, where the real one would need a network for it."""

    @pytest.mark.parametrize(
        ("commands", "stage", "advice"),
        [
            ("echo 'Permission denied (publickey).' >&2; exit 255", "login", "none of the keys"),
            ("echo 'Permission denied (password).' >&2; exit 255", "login", "ssh-copy-id"),
            ("echo 'kex_exchange_identification: x' >&2; exit 255", "login", "MaxStartups"),
            ("echo 'HOST IDENTIFICATION HAS CHANGED!' >&2; exit 255", "login", "ssh-keygen -R"),
            ("echo 'stdio forwarding failed' >&2; exit 255", "login", "another host"),
            ("echo 'only for rsync'; exit 0", "shell", "forced command"),
            ("echo 'unknown shell' >&2; exit 127", "shell", "forced command"),
        ],
    )
    def test_fails(
        self, doctor: Any, fake_ssh: FakeSsh, commands: str, stage: str, advice: str
    ) -> None:
        fake_ssh(f'[ "$1" = -G ] && exit; {commands}')
        found = doctor("ssh=host//connect_timeout=3")
        assert_fails(found, stage, advice)
        assert found["command"].startswith("ssh host -T ")
        assert found["answer"]

    @pytest.mark.parametrize(
        ("commands", "stage", "advice"),
        [
            ("exit 127", "interpreter", "no such program"),
            ("echo 'SyntaxError: invalid syntax' >&2; exit 1", "interpreter", "too old"),
            ("echo 'No space left on device' >&2; exit 1", "bootstrap", "a disk there is full"),
            ("exit 3", "bootstrap", "exit status 3"),
        ],
    )
    def test_leads_to_a_python_that_fails(
        self, doctor: Any, fake_ssh: FakeSsh, commands: str, stage: str, advice: str
    ) -> None:
        fake_ssh(f'[ "$1" = -G ] && exit; {FakeSsh.RUN}')
        python = script(fake_ssh.folder / "python", commands)
        found = doctor(f"ssh=host//python={python}")
        assert_fails(found, stage, advice)
        assert "login: ok" in stages(found)

    def test_may_say_things_that_are_skipped(self, doctor: Any, fake_ssh: FakeSsh) -> None:
        """A shell and a Python that print, one without zlib, and a home that is only read."""
        fake_ssh(f'[ "$1" = -G ] && exit; echo "Good morning"; {FakeSsh.RUN}')
        code = "import sys; sys.modules['zlib'] = None; exec(eval(sys.stdin.readline()))"
        python = script(
            fake_ssh.folder / "python", f'echo hello; exec {sys.executable} -u -c "{code}"'
        )
        found = doctor(f"ssh=host//python={python}//env:HOME=/does/not/exist")
        assert found["ok"]
        notes = " ".join(found["notes"])
        for told in "the shell prints", "Python prints", "'hello'", "no zlib", "not writable":
            assert told in notes

    def test_may_answer_before_its_gateway_is_returned(
        self, doctor: Any, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(*arguments: Any) -> Gateway:
            gateway = started(*arguments)
            wait_until(lambda: gateway.handshake.noise)
            return gateway

        started = gateway_bootstrap.start
        monkeypatch.setattr(gateway_bootstrap, "start", start)
        fake_ssh(f'[ "$1" = -G ] && exit; {FakeSsh.RUN}')
        found = doctor(f"ssh=host//python={common_python()}")
        assert stages(found)[2:4] == ["login: ok", "shell: ok"]

    @pytest.mark.parametrize("shell", ["csh", "fish"])
    def test_may_have_another_shell(self, doctor: Any, fake_ssh: FakeSsh, shell: str) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"there is no {shell}")
        fake_ssh(f'[ "$1" = -G ] && exit; for last; do :; done; exec {shell} -c "$last"')
        found = doctor(f"ssh=host//python={common_python()}")
        assert found["ok"]
        assert stages(found)[2:4] == ["login: ok", "shell: ok"]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    yield sshd
    sshd.stop()


class TestARealSsh:
    def test_is_fine_also_where_a_terminal_is_forced(self, doctor: Any, sshd: Sshd) -> None:
        spec = sshd.host("terminal", "RequestTTY force")
        found = doctor(f"{spec}//python={common_python()}")
        assert [stage["name"] for stage in found["stages"]] == [
            *("name", "TCP", "login", "shell", "interpreter", "bootstrap", "hello"),
            *("round trip", "throughput"),
        ]
        assert found["ok"]
        times = {stage["name"]: stage["ms"] for stage in found["stages"]}
        assert times["login"] > 0 < times["round trip"]

    @pytest.mark.parametrize(
        ("options", "stage", "advice"),
        [
            ("HostName no-such-host.invalid", "name", "no host of this name"),
            ("Port {closed}", "TCP", "no ssh server listens there"),
            ("IdentityFile /dev/null\nIdentitiesOnly yes", "login", "none of the keys"),
            ("UserKnownHostsFile {folder}/others", "login", "another key"),
            ("ProxyCommand ssh -F {folder}/ssh_config -W %h:%p absent", "login", "another host"),
        ],
    )
    def test_fails(self, doctor: Any, sshd: Sshd, options: str, stage: str, advice: str) -> None:
        key = (sshd.folder / "user_key.pub").read_text()
        (sshd.folder / "others").write_text(f"[127.0.0.1]:{sshd.port} {key}")
        config = sshd.ssh_config.read_text()
        filled = options.format(closed=free_port(), folder=sshd.folder)
        broken = sshd.folder / "broken_config"
        if "IdentityFile" in filled:
            config = "".join(line for line in config.splitlines(True) if "Identity" not in line)
        broken.write_text(f"Host loop\n{filled}\n\n{config}")
        found = doctor(f"ssh=loop//ssh_config={broken}//connect_timeout=20")
        assert_fails(found, stage, advice)

    def test_waits_no_longer_for_a_host_that_drops_what_comes(
        self, doctor: Any, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(examine, "REACH_S", 0.5)
        with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for waiting in first, second:  # they fill the queue, so a third is not answered
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            port = listener.getsockname()[1]
            config = sshd.ssh_config.read_text()
            (tmp_path / "config").write_text(f"Host loop\nPort {port}\n\n{config}")
            found = doctor(f"ssh=loop//ssh_config={tmp_path}/config")
        assert_fails(found, "TCP", "a firewall")


class TestOtherSpecs:
    def test_a_worker_here_is_fine(self, doctor: Any) -> None:
        found = doctor("popen")
        assert stages(found)[0] == "interpreter: ok"
        assert found["ok"]

    def test_a_via_that_is_not_there_is_told(self, doctor: Any) -> None:
        assert_fails(doctor("popen//via=nobody"), "via", "SPEC//id=nobody")
        found = doctor("popen//id=jump", "popen//via=jump")
        assert found["ok"]

    def test_what_is_no_login_is_not_taken_for_one(self, doctor: Any, fake_ssh: FakeSsh) -> None:
        script(fake_ssh.folder / "docker", "echo 'no such container' >&2; exit 1")
        found = doctor("docker=web")
        assert_fails(found, "start", "docker could not run it")
        assert "no such container" in found["answer"]

    def test_a_program_that_is_not_there_is_told(self, doctor: Any) -> None:
        found = doctor("popen//python=/does/not/exist")
        assert_fails(found, "interpreter", "No such file")
        assert "/does/not/exist" in found["command"]


def test_a_page_for_people_has_run_got_and_try(capfd: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(["doctor", "popen", "popen//python=false"]) == 1
    out = capfd.readouterr().out
    assert "popen\n  ok      interpreter " in out
    lines = out.splitlines()
    failed = lines[lines.index("popen//python=false") + 1 :]
    assert failed[0].split()[:2] == ["failed", "bootstrap"]
    assert [line.split()[0] for line in failed[1:]] == ["run", "got", "try"]
    assert _cli.main(["doctor", "poepn"]) == 1
    assert (
        "\n  got     no gateway type in spec 'poepn', did you mean 'popen'?"
        in capfd.readouterr().out
    )
