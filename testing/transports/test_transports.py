"""The table of transports: what is run for a spec, and which specs are refused."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from services import STAND_INS, script
from tools import BOUND_S, MakeGateway

from execnet import Group, XSpec
from execnet._specs import Settings
from execnet._transports.table import TRANSPORTS, command
from execnet.gateway_io import popen_args, popen_bootstrapline, ssh_args, vagrant_ssh_args

LINE = popen_bootstrapline
SCRIPT = (
    f'command -v python3 >/dev/null 2>&1&&exec python3 -u -c "{LINE}";exec python -u -c "{LINE}"'
)
FAR = ["sh", "-c", SCRIPT]
FAR_TEXT = f"sh -c '{SCRIPT}'"
OWN = f'[ -x /own/python ]&&exec /own/python -u -c "{LINE}";{SCRIPT}'
P = ["p", "-u", "-c", LINE]  # for specs with python=p
P_TEXT = f'p -u -c "{LINE}"'


class TestRows:
    def test_what_holds_of_each_transport_in_the_order_in_which_types_are_named(self) -> None:
        rows = [
            (row.key, row.captures_stderr, row.is_local, row.may_be_bare, row.serves_many)
            for row in TRANSPORTS.values()
        ]
        assert rows == [
            ("popen", False, True, True, False),
            ("ssh", True, False, False, True),
            ("vagrant_ssh", True, False, False, True),
            ("sudo", True, True, False, False),
            ("docker", True, False, False, True),
            ("podman", True, False, False, True),
            ("kubectl", True, False, False, True),
            ("lxc", True, False, False, True),
            ("srun", True, False, True, False),
        ]


class TestCommands:
    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("popen", ["/own/python", "-u", "-c", LINE]),
            ("popen//python=p", P),
            ("popen//python=p//dont_write_bytecode", ["p", "-u", "-B", "-c", LINE]),
            ("ssh=host", ["ssh", "host", "-T", FAR_TEXT]),
            ("ssh=-p 22100 me@host", ["ssh", "-p", "22100", "me@host", "-T", FAR_TEXT]),
            ("ssh=-i 'my key' host", ["ssh", "-i", "my key", "host", "-T", FAR_TEXT]),
            ("ssh=host//python=p", ["ssh", "host", "-T", P_TEXT]),
            ("ssh=host//ssh_config=file", ["ssh", "-F", "file", "host", "-T", FAR_TEXT]),
            ("ssh=host//ssh_compression=no//python=p", ["ssh", "host", "-T", P_TEXT]),
            ("ssh=host//ssh_compression=yes//python=p", ["ssh", "-C", "host", "-T", P_TEXT]),
            ("ssh=-C host//python=p", ["ssh", "-C", "host", "-T", P_TEXT]),
            ("vagrant_ssh=box", ["vagrant", "ssh", "box", "--", "-T", FAR_TEXT]),
            (
                "vagrant_ssh=box//ssh_config=file//python=p",
                ["vagrant", "ssh", "box", "--", "-F", "file", "-T", P_TEXT],
            ),
            ("sudo=me", ["sudo", "-n", "-u", "me", "--", "sh", "-c", OWN]),
            ("sudo=me//python=p", ["sudo", "-n", "-u", "me", "--", *P]),
            ("docker=box", ["docker", "exec", "-i", "box", *FAR]),
            ("docker=-u me box//python=p", ["docker", "exec", "-i", "-u", "me", "box", *P]),
            ("podman=box//python=p", ["podman", "exec", "-i", "box", *P]),
            ("kubectl=pod", ["kubectl", "exec", "-i", "pod", "--", *FAR]),
            (
                "kubectl=pod//namespace=ns//container=c//python=p",
                ["kubectl", "exec", "-i", "pod", "-n", "ns", "-c", "c", "--", *P],
            ),
            (
                "kubectl=--context prod pod//python=p",
                ["kubectl", "exec", "-i", "--context", "prod", "pod", "--", *P],
            ),
            ("lxc=box//python=p", ["lxc", "exec", "--mode=non-interactive", "box", "--", *P]),
            ("srun//python=p", ["srun", "--ntasks=1", "--unbuffered", *P]),
            (
                "srun=-p long --mem=1G//python=p",
                ["srun", "--ntasks=1", "--unbuffered", "-p", "long", "--mem=1G", *P],
            ),
        ],
    )
    def test_it_is_the_documented_one(self, spec: str, words: list[str]) -> None:
        assert command(XSpec(spec), "/own/python") == words

    def test_those_of_gateway_io_are_the_same(self) -> None:
        assert popen_args(XSpec("popen")) == command(XSpec("popen"), sys.executable)
        spec = XSpec("ssh=-p 2 host//ssh_config=file//python=p")
        assert ssh_args(spec) == ["ssh", "-C", "-F", "file", "-p", "2", "host", P_TEXT]
        spec = XSpec("vagrant_ssh=box//python=p")
        assert vagrant_ssh_args(spec) == ["vagrant", "ssh", "box", "--", "-C", P_TEXT]

    @pytest.mark.parametrize("key", sorted({*TRANSPORTS} - {"popen"}))
    def test_no_variable_shows_in_it(self, key: str) -> None:
        spec = XSpec(f"{key}=there//env:PASSWORD=swordfish//chdir=secret-folder")
        Settings(spec)
        assert not [word for word in command(spec) if "swordfish" in word or "secret" in word]

    @pytest.mark.parametrize("key", sorted(TRANSPORTS))
    def test_only_that_of_a_local_process_leaves_stderr_alone(self, key: str) -> None:
        assert command(XSpec(f"{key}=there")).captures_stderr == (key != "popen")


class TestWordsForAFarShell:
    """``python=`` is split here and quoted again, for whatever shell is over there."""

    def far(self, python: str) -> str:
        return ssh_args(XSpec(f"ssh=host//python={python}"))[-1]

    def test_a_plain_interpreter_needs_double_quotes_only(self) -> None:
        assert self.far("python2.7") == f'python2.7 -u -c "{LINE}"'

    def test_words_stay_words(self) -> None:
        assert shlex.split(self.far("sudo -u 'a b' python3"))[:4] == [
            "sudo",
            "-u",
            "a b",
            "python3",
        ]

    @pytest.mark.parametrize("path", ["/a b/python", "/it's/python", '/a "b"/py', "/$HOME/`x`/py"])
    def test_a_path_with_special_characters_stays_one_word(self, path: str) -> None:
        assert shlex.split(self.far(shlex.quote(path)))[0] == path

    def test_a_home_folder_is_found_over_there(self) -> None:
        assert self.far("~/venv/bin/python").startswith("~/venv/bin/python -u")
        assert self.far("'~me/my env/python'").startswith('~me/"my env/python" -u')


class TestBadSpecs:
    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("id=a", "no gateway type.*docker, kubectl, .*popen.*socket.*ssh"),
            ("python=python3//via=gw0", "no gateway type"),
            ("popen//ssh=x", "2 types: popen, ssh"),
            ("socket=a:1//docker=x", "2 types: docker, socket"),
            ("ssh", "ssh= needs a value"),
            ("ssh=", "ssh= needs a value"),
            ("docker", "docker= needs a value"),
            ("vagrant_ssh", "vagrant_ssh= needs a value"),
            ("popen//via", "via= needs a value"),
            ("ssh=host//ssh_config", "ssh_config= needs a value"),
            ("kubectl=pod//namespace=", "namespace= needs a value"),
            ("ssh=host//ssh_persist", "ssh_persist= needs a value"),
            ("ssh=host//ssh_persist=soon", "ssh_persist=soon"),
            ("ssh=host//ssh_persist=0", "ssh_persist=0.*above 0"),
            ("ssh=host//ssh_compression=maybe", "ssh_compression=maybe.*yes nor no"),
            ("ssh='host", "ssh='host.*quotation"),
            ("docker='box", "docker='box.*quotation"),
            ("docker=box//namespace=ns", "namespace= is for kubectl=, not docker="),
            ("podman=box//ssh_config=f", "ssh_config= is for ssh=, not podman="),
        ],
    )
    def test_one_that_cannot_work_says_why(self, group: Group, spec: str, words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            group.makegateway(spec)
        assert repr(spec) in str(caught.value)

    @pytest.mark.parametrize(
        "spec", ["popen", "popen=1", "popen//namespace=mine//container=mine", "popen//custom=1"]
    )
    def test_keys_that_are_a_programs_own_are_kept(self, spec: str) -> None:
        Settings(XSpec(spec))

    def test_a_type_may_be_assigned_afterwards(self) -> None:
        spec = XSpec("id=a")
        spec.ssh = "host"  # type: ignore[attr-defined]
        Settings(spec)
        assert command(spec)[:2] == ["ssh", "host"]


@pytest.fixture
def stand_in(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Put the program that the parameter names first in the PATH; return its name."""
    name: str = request.param
    bin = tmp_path / "bin"
    bin.mkdir()
    script(bin / name, STAND_INS[name])
    monkeypatch.setenv("PATH", f"{bin}:{Path(sys.executable).parent}:/usr/bin:/bin")
    return name


@pytest.mark.parametrize("stand_in", sorted(STAND_INS), indirect=True)
class TestStandIns:
    def test_code_runs_behind_it(self, stand_in: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"{stand_in}=box//env:WORD=some word//chdir=/")
        code = "import os; channel.send([os.environ['WORD'], os.getcwd()])"
        assert gateway.remote_exec(code).receive(BOUND_S) == ["some word", "/"]
        assert gateway.remoteaddress == "box"

    def test_python_says_which_interpreter(self, stand_in: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"{stand_in}=box//python={shlex.quote(sys.executable)} -X utf8")
        code = "import sys; channel.send([sys.executable, sys.flags.utf8_mode])"
        assert gateway.remote_exec(code).receive(BOUND_S) == [sys.executable, 1]

    def test_what_it_complains_of_is_told(self, stand_in: str, group: Group) -> None:
        with pytest.raises(OSError, match=f"{stand_in} exec") as caught:
            group.makegateway(f"{stand_in}=missing")
        assert "missing" in str(caught.value).partition(" on stderr:")[2]
        assert "exit status 1" in str(caught.value)

    def test_a_missing_interpreter_is_told(self, stand_in: str, group: Group) -> None:
        with pytest.raises(OSError, match="python= says which") as caught:
            group.makegateway(f"{stand_in}=box//python=no-such-python")
        assert "no-such-python" in str(caught.value).partition(" on stderr:")[2]

    def test_its_program_is_needed(
        self, stand_in: str, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(OSError, match=f"can't start {stand_in}: .*No such file"):
            group.makegateway(f"{stand_in}=box")


class TestDefaultInterpreter:
    def gateway_with(
        self, makegateway: MakeGateway, folder: Path, monkeypatch: pytest.MonkeyPatch, names: str
    ) -> str:
        """Start a worker where only these interpreters are; return which one it runs."""
        for name in names.split():
            script(folder / name, f'export WHICH={name}; exec {sys.executable} "$@"')
        for name in "sh", "env":
            (folder / name).symlink_to(f"/bin/{name}")
        script(folder / "docker", STAND_INS["docker"])
        monkeypatch.setenv("PATH", str(folder))
        gateway = makegateway("docker=box")
        which = gateway.remote_exec("import os; channel.send(os.environ['WHICH'])")
        return str(which.receive(BOUND_S))

    @pytest.mark.parametrize(
        ("names", "expected"),
        [("python3", "python3"), ("python", "python"), ("python python3", "python3")],
    )
    def test_it_is_python3_or_else_python(
        self,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        names: str,
        expected: str,
    ) -> None:
        assert self.gateway_with(makegateway, tmp_path, monkeypatch, names) == expected

    def test_without_any_the_error_says_what_to_do(
        self, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(OSError, match="python= says which interpreter to use"):
            self.gateway_with(makegateway, tmp_path, monkeypatch, "")
