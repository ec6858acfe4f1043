"""What others say, and what they must not: on terminals, in specs, in messages."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import BOUND_S, MakeGateway, run_python
from workers import ask

from execnet import Group, RemoteError, XSpec
from execnet._cli.session import CommandError
from execnet._cli.words import parse_specs
from execnet._transports.table import command
from execnet.xspec import build

EVIL = "\x1b]0;title\x07\r\x9b1m\u202e"


class TestTerminals:
    def test_an_error_can_not_control_one(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(f"raise ValueError({EVIL!r} + chr(10) + chr(233))")
        with pytest.raises(RemoteError) as caught:
            channel.waitclose(BOUND_S)
        for shown in str(caught.value), repr(caught.value):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
            assert "\\x1b]0;title" in shown
            assert chr(233) in shown
        assert EVIL in caught.value.formatted

    def test_output_can_not_and_names_its_worker_on_each_line(
        self, group: Group, capfd: pytest.CaptureFixture[str]
    ) -> None:
        gateway = group.makegateway("popen//output=forward")
        code = f"print({EVIL!r} + '[gw7] no', chr(10) + '[gw7] no')"
        gateway.remote_exec(code).waitclose(BOUND_S)
        group.terminate(timeout=5)
        lines = capfd.readouterr().out.split("\n")
        assert "\x1b" not in str(lines).replace("\\x1b", "")
        assert [line[:6] for line in lines if "gw7" in line] == ["[gw0] "] * 2

    def test_last_words_can_not(self, group: Group) -> None:
        gateway = group.makegateway("popen")
        with pytest.raises(EOFError) as caught:
            ask(gateway, f"import os; os.write(2, {EVIL!r}.encode()); os._exit(3)")
        assert "\x1b" not in str(caught.value)


class TestVariables:
    def test_their_values_are_never_shown(
        self, group: Group, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spec = XSpec("popen//env:TOKEN=secret//nice=much")
        assert str(spec) == "popen//env:TOKEN=secret//nice=much"
        assert repr(spec) == "<XSpec 'popen//env:TOKEN=...//nice=much'>"
        for text in str(spec), "env:TOKEN=secret", "popen//env:TOKEN=secret//env:TOKEN=secret":
            with pytest.raises(ValueError, match="TOKEN") as caught:
                group.makegateway(text)
            assert "secret" not in str(caught.value)
        for word in "2*popen//env:TOKEN=secret//id=a", "popen//env:TOKEN=secret//id":
            with pytest.raises((CommandError, ValueError)) as error:
                group.makegateways(parse_specs([word]))
            assert "secret" not in str(error.value)

    def test_one_without_a_value_has_that_of_here(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OF_HERE", "x//y z")
        gateway = group.makegateway("popen//env:OF_HERE")
        assert ask(gateway, "import os; channel.send(os.environ['OF_HERE'])") == "x//y z"
        monkeypatch.delenv("OF_HERE")
        with pytest.raises(ValueError, match="the variable OF_HERE is not set here"):
            XSpec("popen//env:OF_HERE")

    def test_a_file_stands_for_its_lines(self, tmp_path: Path) -> None:
        (tmp_path / "specs").write_text("# two\npopen//env:TOKEN=secret\n\n2*popen\n")
        specs = parse_specs([f"@{tmp_path}/specs", "ssh=x"])
        assert list(map(str, specs)) == ["popen//env:TOKEN=secret", "popen", "popen", "ssh=x"]
        with pytest.raises(CommandError, match="can't read specs from file"):
            parse_specs(["@/does/not/exist"])


class TestBuild:
    @given(st.dictionaries(st.sampled_from(["chdir", "id", "python", "host"]), st.text()))
    def test_what_it_says_is_what_was_meant_or_it_is_refused(self, keys: dict[str, str]) -> None:
        try:
            spec = build(popen=True, **keys)
        except ValueError:
            assert any("//" in value or value.endswith("/") for value in keys.values())
            return
        assert {key: getattr(spec, key) for key in keys} == keys

    def test_words_are_quoted_and_variables_named(self) -> None:
        spec = build(popen=True, python=["env", "A=b c", "python3"], nice=5, env={"X": "1=2"})
        assert str(spec) == "popen//python=env 'A=b c' python3//nice=5//env:X=1=2"
        assert build(ssh="a", kill=None, forkserver=False) == XSpec("ssh=a")


class TestHosts:
    def test_options_come_first_and_then_the_host_whatever_it_is_called(self) -> None:
        spec = build(ssh=True, host="lab", user="me", port=2222, options="-i 'a b'")
        words = command(spec)
        at = words.index("--")
        assert [word for word in words[: at + 2] if word != "-T"][-8:] == [
            "-i", "a b", "-l", "me", "-p", "2222", "--", "lab",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "keys",
        [{"host": "-oProxyCommand=x"}, {"host": "a", "user": "-x"}, {"host": "a", "port": "22x"}],
    )
    def test_what_could_be_an_option_is_refused(self, group: Group, keys: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"begins with '-'|not the number of a port"):
            group.makegateway(build(ssh=True, **keys))

    def test_a_bare_ssh_needs_one(self, group: Group) -> None:
        with pytest.raises(ValueError, match="ssh= needs a value"):
            group.makegateway("ssh")

    def test_other_types_have_these_keys_for_themselves(self, group: Group) -> None:
        group.makegateway("popen//host=-x//user=-y//options=z")


@pytest.mark.parametrize(("mask", "mode"), [(0, 0o755), (0o077, 0o700), (0o002, 0o755)])
def test_a_new_folder_is_as_the_umask_says_and_never_for_others_to_write(
    makegateway: MakeGateway, tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        makegateway(f"popen//chdir={tmp_path}/new/inner/")
    finally:
        os.umask(before)
    for folder in tmp_path / "new", tmp_path / "new" / "inner":
        assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_trace_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Whoever knows which number a process will have could lay one."""
    program = """if 1:
        import os, sys
        os.symlink("/dev/null/x", os.path.join(sys.argv[1], "execnet-debug-%d" % os.getpid()))
        from execnet import gateway_base
        print(os.path.islink(gateway_base.fn), os.stat(gateway_base.fn).st_mode & 0o777)
    """
    done = run_python(program, str(tmp_path), EXECNET_DEBUG="1", TMPDIR=str(tmp_path))
    assert done.stdout.split() == ["False", str(0o600)]
