"""What is said when a host behind a real ssh gives no worker, and what ssh's config may say."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest
from services import Sshd, script
from tools import BOUND_S, MakeGateway

from execnet import BootstrapError, Group, HostNotFound, XSpec
from execnet._errors import indented
from execnet._transports.ssh import without_terminal
from execnet._transports.table import split_place
from execnet.gateway_io import ssh_args


def with_config(sshd: Sshd, folder: Path, old: str, new: str) -> str:
    """Return a spec for a client's config that differs in one place."""
    config = folder / "config"
    config.write_text(sshd.ssh_config.read_text().replace(old, new))
    return f"ssh=loop//ssh_config={config}"


def failure(group: Group, spec: str) -> BootstrapError:
    """Return the error of a start, whose text has its three parts in order."""
    with pytest.raises(BootstrapError) as caught:
        group.makegateway(spec)
    error = caught.value
    first, *_, last = str(error).splitlines()
    assert first.startswith("gw0 could not be started: ")
    assert last.startswith("the command: ssh ")
    assert str(error).count(" on stderr:") == bool(error.stderr)
    said = indented(":\n" + error.stderr.replace("\r\n", "\n"))
    assert str(error).count(said if error.stderr else "the command: ") == 1
    return error


def sentence(error: BootstrapError) -> str:
    return str(error).splitlines()[0].partition(": ")[2]


class TestHostsThatAreNotReached:
    def test_a_name_that_nobody_has(self, group: Group) -> None:
        error = failure(group, "ssh=-F none no-such-host.invalid")
        assert type(error) is HostNotFound
        assert sentence(error).startswith("there is no host of this name")

    def test_a_port_after_the_name(self, group: Group) -> None:
        error = failure(group, "ssh=-F none me@no-such-host.invalid:2222")
        assert type(error) is HostNotFound
        assert sentence(error).endswith("write ssh=-p 2222 me@no-such-host.invalid")

    def test_a_port_that_nobody_serves(self, shared_sshd: Sshd, group: Group) -> None:
        error = failure(group, f"ssh=-p 1 loop//ssh_config={shared_sshd.ssh_config}")
        assert type(error) is HostNotFound
        assert sentence(error).startswith("no ssh server listens there")

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
    def test_one_that_does_not_answer_at_all(self, group: Group) -> None:
        """A listener whose queue is full drops what comes."""
        with contextlib.ExitStack() as sockets:
            listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):
                client = sockets.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            port = listener.getsockname()[1]
            error = failure(group, f"ssh=-F none -p {port} 127.0.0.1//connect_timeout=1")
        assert (type(error), error.exitcode) == (HostNotFound, None)
        assert sentence(error).startswith("the host does not answer")

    def test_a_key_that_is_not_accepted(
        self, shared_sshd: Sshd, group: Group, tmp_path: Path
    ) -> None:
        error = failure(group, with_config(shared_sshd, tmp_path, "user_key", "host_key"))
        assert type(error) is HostNotFound
        assert sentence(error).startswith("the host accepts none of the keys")
        assert "ssh -v loop" in sentence(error)

    def test_a_host_that_is_not_known(
        self, shared_sshd: Sshd, group: Group, tmp_path: Path
    ) -> None:
        error = failure(group, with_config(shared_sshd, tmp_path, "/known_hosts", "/nothing"))
        assert type(error) is HostNotFound
        assert sentence(error).startswith("the host's key is not known")

    def test_a_host_whose_key_has_changed(
        self, shared_sshd: Sshd, group: Group, tmp_path: Path
    ) -> None:
        known = (shared_sshd.folder / "known_hosts").read_text().split()[0]
        other = (shared_sshd.folder / "user_key.pub").read_text()
        (shared_sshd.folder / "others").write_text(f"{known} {other}")
        error = failure(group, with_config(shared_sshd, tmp_path, "/known_hosts", "/others"))
        assert type(error) is HostNotFound
        assert sentence(error).startswith("the host has another key than known_hosts says")

    def test_a_command_of_its_own_in_the_config(
        self, shared_sshd: Sshd, group: Group, tmp_path: Path
    ) -> None:
        spec = with_config(shared_sshd, tmp_path, "Host loop", "Host loop\nRemoteCommand true")
        error = failure(group, spec)
        assert sentence(error).endswith("write ssh=-o RemoteCommand=none loop")
        told = spec.replace("ssh=loop", "ssh=-o RemoteCommand=none loop")
        assert group.makegateway(told).hasreceiver()


class TestHostsThatAreReached:
    """ssh ends with 255 as well when we end it: that is not its word on the host."""

    def test_no_python(self, spec: str, group: Group) -> None:
        error = failure(group, f"{spec}//python=no-such-python")
        assert (type(error), error.exitcode) == (BootstrapError, 127)
        assert "python= says which interpreter to use" in sentence(error)

    def test_a_python_too_old(self, spec: str, group: Group, tmp_path: Path) -> None:
        script(tmp_path / "old", "echo 'SyntaxError: invalid syntax' >&2; exit 1")
        error = failure(group, f"{spec}//python={tmp_path}/old")
        assert (type(error), error.exitcode) == (BootstrapError, 1)
        assert "too old" in sentence(error)

    def test_one_that_ends_at_once(self, spec: str, group: Group) -> None:
        error = failure(group, f"{spec}//python=sh -c 'exit 3'")
        assert (type(error), error.exitcode) == (BootstrapError, 3)
        assert sentence(error).startswith("exit status 3")

    def test_a_folder_that_cannot_be_made(self, spec: str, group: Group) -> None:
        error = failure(group, f"{spec}//chdir=/proc/no/such")
        assert type(error) is BootstrapError
        assert "chdir=/proc/no/such is not a folder" in sentence(error)

    def test_a_priority_that_is_not_allowed(self, spec: str, group: Group, tmp_path: Path) -> None:
        error = failure(group, f"{spec}//nice=1{'0' * 30}")
        assert type(error) is BootstrapError
        assert "OverflowError" in sentence(error)
        assert "Traceback" in str(error)

    def test_an_execution_model_that_is_not_installed(
        self, spec: str, group: Group, tmp_path: Path
    ) -> None:
        (tmp_path / "gevent.py").write_text("raise ImportError(\"No module named 'gevent'\")")
        error = failure(group, f"{spec}//execmodel=gevent//env:PYTHONPATH=//python="
                        f"env PYTHONPATH={tmp_path} python3")  # fmt: skip
        assert type(error) is BootstrapError
        assert "execmodel=gevent needs gevent to be installed there" in sentence(error)

    def test_one_that_does_not_answer(self, spec: str, group: Group, tmp_path: Path) -> None:
        script(tmp_path / "slow", "exec cat > /dev/null")
        error = failure(group, f"{spec}//python={tmp_path}/slow//connect_timeout=1")
        assert (type(error), error.exitcode) == (BootstrapError, None)
        assert sentence(error).startswith("no answer in time (1 s); a longer connect_timeout=")


class TestTerminals:
    def test_a_config_that_forces_one_is_overruled(
        self, shared_sshd: Sshd, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        spec = with_config(shared_sshd, tmp_path, "Host loop", "Host loop\nRequestTTY force")
        item = bytes(range(256))
        channel = makegateway(spec).remote_exec("channel.send(channel.receive())")
        channel.send(item)
        assert channel.receive(BOUND_S) == item

    def test_options_that_end_with_dashes_keep_the_command_whole(
        self, shared_sshd: Sshd, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway(f"ssh=-F {shared_sshd.ssh_config} -- loop")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        assert without_terminal(["ssh", "--", "loop", "c"]) == ["ssh", "-T", "--", "loop", "c"]

    def test_what_ssh_args_returns_does_not_have_it(self) -> None:
        assert "-T" not in ssh_args(XSpec("ssh=host//python=p"))


class TestBackslashes:
    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ("CORP\\joe@host", ["CORP\\joe@host"]),
            ("-p 2222 CORP\\joe@host", ["-p", "2222", "CORP\\joe@host"]),
            ("CORP\\\\joe@host", ["CORP\\joe@host"]),
            ("'CORP\\joe'@host", ["CORP\\joe@host"]),
            ('"CORP\\joe"@host', ["CORP\\joe@host"]),
            ("-o User=CORP\\_joe host", ["-o", "User=CORP\\_joe", "host"]),
            ("-i my\\ key host", ["-i", "my key", "host"]),
            ("-i it\\'s host", ["-i", "it's", "host"]),
            ("-i \\\"x\\y\\\" host", ["-i", '"x\\y"', "host"]),
            ("'it\"s' \"a\\\"b\" c\\d", ['it"s', 'a"b', "c\\d"]),
        ],
    )  # fmt: skip
    def test_one_in_a_name_stays_and_one_that_escapes_does(
        self, said: str, words: list[str]
    ) -> None:
        assert split_place(said) == words

    def test_ssh_is_given_the_user_of_a_domain(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script(tmp_path / "ssh", 'echo "user: $1" >&2; exit 1')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(BootstrapError) as caught:
            group.makegateway("ssh=CORP\\joe@host")
        assert caught.value.stderr == "user: CORP\\joe@host"
