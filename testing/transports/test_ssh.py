"""ssh, against a real sshd on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import Sshd, need, script
from tools import BOUND_S, MakeGateway, Resources, wait_until

from execnet import Group, HostNotFound, XSpec, _folders
from execnet._specs import Settings
from execnet._transports.table import command


class TestGateways:
    def test_code_runs_over_there(self, spec: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(spec)
        assert gateway.remote_exec("channel.send(1 + 1)").receive(BOUND_S) == 2
        assert gateway.remoteaddress == "loop"

    def test_options_may_stand_in_the_spec(
        self, shared_sshd: Sshd, makegateway: MakeGateway
    ) -> None:
        key, hosts = shared_sshd.folder / "user_key", shared_sshd.folder / "known_hosts"
        options = f"-F none -p {shared_sshd.port} -i {key} -o UserKnownHostsFile={hosts}"
        gateway = makegateway(f"ssh={options} 127.0.0.1")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_chdir_env_and_nice_are_set(
        self, spec: str, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        folder = tmp_path / "new folder"
        gateway = makegateway(f"{spec}//chdir={folder}//env:WORD=a 'b'//nice=3")
        code = "import os; channel.send([os.getcwd(), os.environ['WORD'], os.nice(0)])"
        got = gateway.remote_exec(code).receive(BOUND_S)
        assert got == [str(folder), "a 'b'", min(os.nice(0) + 3, 19)]

    def test_no_variable_shows_in_the_lists_of_processes(
        self, spec: str, makegateway: MakeGateway
    ) -> None:
        makegateway(f"{spec}//env:PASSWORD=swordfish")
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                found.append(path.read_bytes())
        assert not [words for words in found if b"swordfish" in words]

    def test_large_items_pass_whole(self, spec: str, makegateway: MakeGateway) -> None:
        item = bytes(range(256)) * 20000
        channel = makegateway(spec).remote_exec("channel.send(channel.receive())")
        channel.send(item)
        assert channel.receive(BOUND_S) == item

    @pytest.mark.parametrize("compression", ["yes", "no"])
    def test_compression_is_what_the_spec_says(
        self,
        shared_sshd: Sshd,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        compression: str,
    ) -> None:
        ssh = need("ssh", "openssh-client")
        script(tmp_path / "ssh", f'exec {ssh} -v -E {tmp_path}/log "$@"')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        config = shared_sshd.ssh_config
        gateway = makegateway(f"ssh=loop//ssh_config={config}//ssh_compression={compression}")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        agreed = "compression: none" not in (tmp_path / "log").read_text()
        assert agreed == (compression == "yes")

    def test_several_start_at_once(self, spec: str, group: Group) -> None:
        gateways = group.makegateways([spec] * 4)
        channels = [gateway.remote_exec("channel.send(1)") for gateway in gateways]
        assert [channel.receive(BOUND_S) for channel in channels] == [1] * 4

    def test_what_the_worker_writes_to_stderr_is_seen(
        self, spec: str, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        gateway = makegateway(spec)
        gateway.remote_exec("import os; os.write(2, b'a word')").waitclose(BOUND_S)
        seen = []
        wait_until(lambda: seen.append(capfd.readouterr().err) or "a word" in "".join(seen))
        assert gateway._io.stderr_tail() == "a word"


class TestInterpreters:
    @pytest.mark.parametrize("name", ["a b", "it's", 'a "b"', "a$HOME", "tick`s", "a!b", "back\\s"])
    def test_a_path_with_special_characters_is_run(
        self, spec: str, makegateway: MakeGateway, tmp_path: Path, name: str
    ) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "my python").symlink_to(sys.executable)
        python = shlex.quote(str(folder / "my python"))
        gateway = makegateway(f"{spec}//python=env WORD='one two' {python} -B")
        code = "import os, sys; channel.send([os.environ['WORD'], sys.dont_write_bytecode])"
        assert gateway.remote_exec(code).receive(BOUND_S) == ["one two", True]

    def test_one_in_the_home_folder_is_found(
        self, spec: str, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        home = makegateway(spec).remote_exec(
            "import os; channel.send(os.path.expanduser('~'))"
        ).receive(BOUND_S)  # fmt: skip
        path = os.path.relpath(sys.executable, os.path.realpath(str(home)))
        gateway = makegateway(f"{spec}//python=~/{path}")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_one_that_is_not_there_is_told(self, spec: str, group: Group) -> None:
        with pytest.raises(OSError, match="python= says which interpreter") as caught:
            group.makegateway(f"{spec}//python=no-such-python")
        assert "no-such-python: " in str(caught.value).partition(" on stderr:")[2]
        assert not isinstance(caught.value, HostNotFound)

    @pytest.mark.parametrize(
        ("shell", "package"),
        [("bash", "bash"), ("dash", "dash"), ("csh", "csh"), ("fish", "fish")],
    )
    @pytest.mark.parametrize("python", ["", "//python={} -X utf8", "//python=env 'W=a b' {}"])
    def test_any_login_shell_will_do(
        self,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        shell: str,
        package: str,
        python: str,
    ) -> None:
        shell = need(shell, package)
        script(tmp_path / "ssh", f'for last; do :; done; exec {shell} -c "$last"')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(tmp_path))  # no start files of the user's
        gateway = makegateway("ssh=host" + python.format(shlex.quote(sys.executable)))
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    @pytest.mark.parametrize("shell", ["bash", "dash", "csh", "fish"])
    @pytest.mark.parametrize(
        "word", ["a!b", "a\nb", "ends\\", "a\\\\b", "a\\'b", "\\'; id; '", "\xe4 %s!"]
    )
    def test_a_word_that_shells_read_differently_arrives_in_all(
        self,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        shell: str,
        word: str,
    ) -> None:
        path = need(shell, shell)
        script(tmp_path / "ssh", f'for last; do :; done; exec {path} -c "$last"')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(tmp_path))
        words = f"WORD={shlex.quote(word)} {shlex.quote(sys.executable)}"
        gateway = makegateway(f"ssh=host//python=env {words}")
        code = "import os; channel.send(os.environ['WORD'])"
        assert gateway.remote_exec(code).receive(BOUND_S) == word


class TestVagrant:
    def test_its_ssh_reaches_the_machine(
        self,
        shared_sshd: Sshd,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The stand-in does as vagrant: its own options, the host, then what is behind "--"."""
        options = f"-o UserKnownHostsFile={shared_sshd.folder}/known_hosts -o LogLevel=FATAL"
        script(
            tmp_path / "vagrant",
            f"""[ "$1 $2 $3" = "ssh box --" ] || {{ echo "no machine: $2" >&2; exit 1; }}
            shift 3
            exec ssh -p {shared_sshd.port} -i {shared_sshd.folder}/user_key {options} 127.0.0.1 "$@"
            """,
        )
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        gateway = makegateway("vagrant_ssh=box//chdir=/")
        got = gateway.remote_exec("import os; channel.send(os.getcwd())").receive(BOUND_S)
        assert (got, gateway.remoteaddress) == ("/", "box")


class TestErrors:
    def test_a_port_that_nobody_serves(self, shared_sshd: Sshd, group: Group) -> None:
        before = Resources.now()
        with pytest.raises(HostNotFound, match=r"Connection refused") as caught:
            group.makegateway(f"ssh=-p 1 loop//ssh_config={shared_sshd.ssh_config}")
        before.assert_nothing_new()
        assert "ssh -F" in str(caught.value)
        assert caught.value.command[0] == "ssh"
        assert caught.value.exitcode == 255
        assert "refused" in caught.value.stderr

    def test_a_name_that_does_not_resolve(self, group: Group) -> None:
        with pytest.raises(HostNotFound, match="Could not resolve hostname"):
            group.makegateway("ssh=-F none no-such-host.invalid")

    def test_a_key_that_is_not_accepted(
        self, shared_sshd: Sshd, group: Group, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        text = shared_sshd.ssh_config.read_text().replace("user_key", "host_key")
        config.write_text(text)
        with pytest.raises(HostNotFound, match="Permission denied"):
            group.makegateway(f"ssh=loop//ssh_config={config}")

    def test_a_worker_that_is_killed_is_told(self, spec: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(spec)
        channel = gateway.remote_exec(
            "import os; os.write(2, b'last words'); os.kill(os.getpid(), 9)"
        )
        with pytest.raises(EOFError, match="gw0"):
            channel.receive(BOUND_S)
        gateway.join(BOUND_S)
        assert gateway._io.stderr_tail().endswith("last words")  # a login may say more


def master_command(argv: list[str], what: str) -> subprocess.CompletedProcess[str]:
    """Ask ssh about the connection that a command would share."""
    words = [argv[0], "-O", what, *argv[1:-1]]
    return subprocess.run(words, capture_output=True, text=True, timeout=BOUND_S)


@pytest.fixture
def persistent(shared_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A spec whose connection is kept; it is ended behind the test."""
    yield from _persistent(shared_sshd, monkeypatch)


def _persistent(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    run = subprocess.run(
        ["mktemp", "-d", "/tmp/execnet-test-XXXXXX"], capture_output=True, text=True
    )
    runtime = run.stdout.strip()
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    spec = f"ssh=loop//ssh_config={sshd.ssh_config}//ssh_persist=60"
    yield spec
    argv = command(XSpec(spec))
    if master_command(argv, "check").returncode == 0:
        master_command(argv, "exit")
    wait_until(lambda: not os.listdir(f"{runtime}/execnet-ssh"))
    os.rmdir(f"{runtime}/execnet-ssh")
    os.rmdir(runtime)


class TestPersist:
    def client_of(self, gateway: object) -> str:
        """Return the client's end of the connection that a worker was reached by."""
        code = "import os; channel.send(os.environ['SSH_CONNECTION'])"
        return str(gateway.remote_exec(code).receive(BOUND_S))  # type: ignore[attr-defined]

    def test_the_second_gateway_needs_no_login(
        self, persistent: str, makegateway: MakeGateway
    ) -> None:
        first, second = makegateway(persistent), makegateway(persistent)
        assert self.client_of(first) == self.client_of(second)

    def test_without_it_each_has_a_login(self, spec: str, makegateway: MakeGateway) -> None:
        first, second = makegateway(spec), makegateway(spec)
        assert self.client_of(first) != self.client_of(second)

    def test_only_the_connection_stays_behind_a_group(self, persistent: str) -> None:
        before = Resources.now()
        with Group() as group:
            clients = {self.client_of(group.makegateway(persistent)) for _ in range(2)}
        before.assert_nothing_new()
        assert "Master running" in master_command(command(XSpec(persistent)), "check").stderr
        with Group() as group:
            clients.add(self.client_of(group.makegateway(persistent)))
        assert len(clients) == 1

    def test_killing_one_gateway_leaves_the_others(self, persistent: str, group: Group) -> None:
        first, second = group.makegateway(persistent), group.makegateway(persistent)
        first._io.kill()
        first.join(BOUND_S)
        assert second.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_the_socket_is_in_a_folder_of_this_user_alone(
        self, persistent: str, makegateway: MakeGateway
    ) -> None:
        makegateway(persistent)
        folder = f"{os.environ['XDG_RUNTIME_DIR']}/execnet-ssh"
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert len(os.listdir(folder)) == 1

    def test_several_at_once_all_come_up(self, persistent: str, group: Group) -> None:
        for gateway in group.makegateways([persistent] * 4):
            assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_it_falls_back_where_the_server_limits_sessions(
        self, tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sshd = Sshd(tmp_path / "sshd", "MaxSessions 1")
        try:
            for spec in _persistent(sshd, monkeypatch):
                first, second = group.makegateway(spec), group.makegateway(spec)
                assert self.client_of(first) != self.client_of(second)
                group.terminate(timeout=5)
        finally:
            sshd.stop()


class TestControlPaths:
    def path(self, spec: str) -> str:
        words = command(XSpec(spec))
        found = [word for word in words if word.startswith("ControlPath=")]
        return found[0].partition("=")[2] if found else ""

    @pytest.fixture(autouse=True)
    def runtime(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(_folders, "SOCKET_PATH_MAX", 1000)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        return tmp_path

    def test_the_options_are_those_of_openssh(self, runtime: Path) -> None:
        words = command(XSpec("ssh=-p 2 host//ssh_persist=600//ssh_compression=yes//python=p"))
        assert words[:6] == ["ssh", "-C", "-o", "ControlMaster=auto", "-o", "ControlPersist=600"]
        assert words[6] == "-o"
        assert words[7].startswith(f"ControlPath={runtime}/execnet-ssh/")
        assert words[8:11] == ["-p", "2", "host"]

    def test_specs_that_say_other_things_to_ssh_share_nothing(self) -> None:
        specs = [
            "ssh=host//ssh_persist=9",
            "ssh=me@host//ssh_persist=9",
            "ssh=-i key host//ssh_persist=9",
            "ssh=host//ssh_persist=9//ssh_config=a",
            "ssh=host//ssh_persist=9//ssh_config=b",
        ]
        assert len({self.path(spec) for spec in specs}) == len(specs)
        assert self.path("ssh=host//ssh_persist=9//python=p//chdir=x") == self.path(specs[0])

    def test_behind_another_gateway_nothing_is_shared(self) -> None:
        """ssh ends when the folder of the socket is not there."""
        assert self.path("ssh=host//ssh_persist=9//via=gw0") == ""

    def test_a_folder_that_others_can_enter_is_not_used(
        self, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (runtime / "execnet-ssh").mkdir(mode=0o755)
        monkeypatch.setenv("HOME", str(runtime / "home"))
        (runtime / "home").mkdir()
        assert self.path("ssh=host//ssh_persist=9").startswith(f"{runtime}/home/.ssh/execnet/")

    def test_a_link_is_not_used(self, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (runtime / "elsewhere").mkdir(mode=0o700)
        (runtime / "execnet-ssh").symlink_to(runtime / "elsewhere")
        monkeypatch.setenv("HOME", str(runtime))
        assert self.path("ssh=host//ssh_persist=9").startswith(f"{runtime}/.ssh/execnet/")

    def test_a_path_too_long_for_a_socket_is_not_used(
        self, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_folders, "SOCKET_PATH_MAX", 20)
        assert self.path("ssh=host//ssh_persist=9") == ""
        Settings(XSpec("ssh=host//ssh_persist=9"))
