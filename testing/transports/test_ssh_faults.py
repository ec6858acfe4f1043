"""A fake ssh that fails in every way: each a typed error, in time, and nothing left running."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
from services import FakeSsh
from tools import BOUND_S, Resources, error_of, run_python, wait_until

from execnet import BootstrapError, Group, HostNotFound, WorkerDied

SPEC = "ssh=host//env:PASSWORD=swordfish"


def fails(group: Group, spec: str, words: str) -> BootstrapError:
    """Try to make a gateway; return the error, behind which nothing is left."""
    error = error_of(group, spec)
    assert re.search(words, str(error))
    assert "swordfish" not in str(error)
    lines = str(error).splitlines()
    assert lines[0].startswith("gw0 could not be started: ")
    assert lines[-1].startswith("the command: ssh host -T ")
    assert not [line for line in lines[:-1] if "ssh host -T" in line]
    return error


class TestHowItFails:
    def test_one_that_is_denied(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("echo 'me@host: Permission denied (publickey).' >&2; exit 255")
        error = fails(group, SPEC, r"Permission denied \(publickey\)")
        assert type(error) is HostNotFound
        assert error.exitcode == 255
        assert error.stderr == "me@host: Permission denied (publickey)."
        assert "none of the keys" in str(error).splitlines()[0]

    def test_one_that_sleeps(self, group: Group, fake_ssh: FakeSsh) -> None:
        """Not the shell is what must go, but what it runs."""
        fake_ssh("echo dialling >&2; sleep 1000 & echo $! >> $here/children; wait")
        start = time.monotonic()
        error = fails(group, f"{SPEC}//connect_timeout=1", "no answer in time")
        assert time.monotonic() - start < 5
        assert error.stderr == "dialling"
        assert str(error).count("dialling") == 1
        assert len(fake_ssh.pids()) == 2
        wait_until(lambda: not [pid for pid in fake_ssh.pids() if os.path.exists(f"/proc/{pid}")])

    def test_one_that_ignores_being_asked_to_end(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("trap '' TERM INT HUP; while :; do sleep 1; done")
        fails(group, f"{SPEC}//connect_timeout=0.3", "no answer in time")

    def test_one_that_may_tidy_up_first(
        self, group: Group, fake_ssh: FakeSsh, tmp_path: Path
    ) -> None:
        """As the real one does, which has turned off the echo for a password."""
        tidy = f"trap 'touch {tmp_path}/tidy; exit 0' TERM"
        fake_ssh(f"{tidy}; echo up >&2; sleep 1000 & wait")
        error = fails(group, f"{SPEC}//connect_timeout=1", "no answer in time")
        assert error.stderr == "up"
        assert (tmp_path / "tidy").exists()

    def test_one_that_ends_at_once(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("exit 0")
        error = fails(group, SPEC, "exit status 0")
        assert type(error) is BootstrapError

    def test_one_that_closes_its_streams_and_stays(self, group: Group, fake_ssh: FakeSsh) -> None:
        start = time.monotonic()
        fake_ssh("exec sleep 1000 <&- >&-")
        fails(group, SPEC, "the stream ended")
        assert time.monotonic() - start < 5

    def test_one_that_answers_garbage_and_ends(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("printf 'SSH-2.0-garbage\\000\\377'; echo oh >&2; read line; exit 3")
        error = fails(group, SPEC, "SSH-2.0-garbage")
        assert error.noise == b"SSH-2.0-garbage\0\xff"
        assert (error.exitcode, error.stderr) == (3, "oh")

    def test_one_that_answers_garbage_and_stays(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("echo garbage; exec sleep 1000")
        fails(group, f"{SPEC}//connect_timeout=1", "it said: garbage")

    def test_one_that_prints_for_ever(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("exec yes welcome")
        error = fails(group, SPEC, "no worker answered within 65536 bytes")
        assert len(str(error)) < 5000

    def test_one_that_complains_for_ever(
        self, group: Group, fake_ssh: FakeSsh, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fake_ssh("exec yes 'still trying' >&2")
        error = fails(group, f"{SPEC}//connect_timeout=0.3", "no answer in time")
        assert 1000 < len(error.stderr) <= 4096
        assert "still trying\nstill trying" in capfd.readouterr().err

    def test_one_that_leaves_a_child_with_its_streams(
        self, group: Group, fake_ssh: FakeSsh
    ) -> None:
        fake_ssh("echo bye >&2; sleep 1000 & echo $! >> $here/children; exit 255")
        start = time.monotonic()
        error = fails(group, SPEC, r"on stderr:\n  bye")
        assert time.monotonic() - start < 5
        assert type(error) is HostNotFound
        os.kill(fake_ssh.pids()[1], 9)

    def test_one_that_is_killed(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("kill -9 $$")
        fails(group, SPEC, "killed by SIGKILL")

    def test_one_among_several_takes_all_with_it(self, group: Group, fake_ssh: FakeSsh) -> None:
        fake_ssh("sleep 1000 & echo $! >> $here/children; wait")
        before = Resources.now()
        with pytest.raises(BootstrapError, match="no answer in time"):
            group.makegateways([f"{SPEC}//connect_timeout=1"] * 3 + ["popen"])
        before.assert_nothing_new()
        assert len(fake_ssh.pids()) == 6
        wait_until(lambda: not [pid for pid in fake_ssh.pids() if os.path.exists(f"/proc/{pid}")])

    def test_there_is_none(self, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(BootstrapError, match=r"can't start ssh: .*No such file"):
            group.makegateway("ssh=host")


class TestStderr:
    def test_it_reaches_the_user_while_ssh_still_connects(
        self, fake_ssh: FakeSsh, tmp_path: Path
    ) -> None:
        """The fake waits until what it said was seen."""
        fake_ssh(
            f'echo "The authenticity of host cannot be established" >&2\n'
            f"until [ -e {tmp_path}/seen ]; do sleep 0.01; done\n"
            f"{FakeSsh.RUN}"
        )
        code = f"""
import os, sys, threading, execnet
read, write = os.pipe()
terminal = os.dup(2)
os.dup2(write, 2)
def see():
    assert b"authenticity" in os.read(read, 1000)
    open("{tmp_path}/seen", "x").close()
thread = threading.Thread(target=see)
thread.start()
gateway = execnet.makegateway("ssh=host//python={sys.executable}//connect_timeout=10")
assert gateway.remote_exec("channel.send(1)").receive(10) == 1
thread.join()
os.dup2(terminal, 2)
print("seen in time")
"""
        result = run_python(code)
        assert (result.stdout, result.stderr) == ("seen in time\n", "")

    def test_the_last_of_it_tells_why_a_worker_died(self, group: Group, fake_ssh: FakeSsh) -> None:
        relayed = 'for last; do :; done; sh -c "$last"; echo "Connection to host closed." >&2'
        fake_ssh(f"{relayed}; exit 255")
        gateway = group.makegateway(SPEC)
        channel = gateway.remote_exec("import os; os._exit(1)")
        with pytest.raises(WorkerDied, match=r"(?s)exit status 1:.*Connection to host closed\."):
            channel.receive(BOUND_S)

    def test_nobody_has_to_see_it(self, fake_ssh: FakeSsh) -> None:
        fake_ssh(f'yes "a word" | head -c 200000 >&2\n{FakeSsh.RUN}')
        code = f"""
import os, execnet
os.close(2)
gateway = execnet.makegateway("ssh=host//python={sys.executable}")
print(gateway.remote_exec("channel.send(1)").receive(10), len(gateway._io.stderr_tail()) > 4000)
"""
        assert run_python(code).stdout == "1 True\n"
