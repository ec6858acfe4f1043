"""How workers start on every Python: options, environments, locales, preparations."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from interpreters import Interpreter, found
from tools import BOUND_S, MakeGateway
from workers import ECHO, ask

from execnet import Gateway, RemoteError

pytest_plugins = ["worker_fixtures"]

# The C locale, and nothing that makes Python use UTF-8 in it all the same.
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


# Sends the bytes of a variable, as a process that the worker starts has it.
CHILD_SEES = """
import subprocess
process = subprocess.Popen(["printenv", "T_ONE"], stdout=subprocess.PIPE)
value = process.communicate()[0].rstrip(b"\\n")
channel.send(value.encode("hex") if str is bytes else value.hex())
"""


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def check_quiet_end(gateway: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    gateway.exit()
    gateway.join(BOUND_S)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("python", found(), ids=str)
def test_one_of_every_version_answers_fails_and_ends_in_silence(
    python: Interpreter, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway = makegateway(python.spec)
    assert gateway._rinfo().version_info[:2] == python.version[:2]
    channel = gateway.remote_exec(ECHO)
    for item in 1, [2.5, {"a": (None,)}], "\N{EURO SIGN}" * 100_000:
        channel.send(item)
        assert channel.receive(BOUND_S) == item
    channel.close()
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        gateway.remote_exec("1 // 0").receive(BOUND_S)
    assert gateway.call("os.path:basename", "a/b") == "b"
    check_quiet_end(gateway, capfd)


class TestOptions:
    @pytest.mark.parametrize("option", ["-S", "-E -OO", "-I -O", "-W error"])
    def test_a_worker_runs_with_it_and_says_nothing(
        self,
        option: str,
        makegateway: MakeGateway,
        python: Interpreter,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        if python.version[0] == 2:  # it has no -I, and -3 warns of more
            option = {"-I -O": "-s -O", "-W error": "-3 -W error"}.get(option, option)
        elif option == "-W error" and python.version >= (3, 7) and python.implementation != "pypy":
            option = "-X dev -W error"
        gateway = makegateway(f"{python.spec} {option}")
        channel = gateway.remote_exec(ECHO)
        for item in 1, [2.5, {"a": (None,)}], "x" * 100_000:
            channel.send(item)
            assert channel.receive(BOUND_S) == item
        channel.close()
        check_quiet_end(gateway, capfd)

    def test_byte_code_is_written_unless_that_is_turned_off(
        self, makegateway: MakeGateway, python: Interpreter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        for option, off in ("", False), ("//dont_write_bytecode", True):
            gateway = makegateway(python.spec + option)
            assert ask(gateway, "import sys; channel.send(sys.dont_write_bytecode)") == off


class TestEnvironments:
    @pytest.mark.parametrize(
        "variables",
        [
            {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1", "PYTHONHASHSEED": "0"},
            {"PYTHONHASHSEED": "4294967295", "PYTHONOPTIMIZE": "2", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "random", "PYTHONIOENCODING": "ascii:strict"},
            C_LOCALE,
        ],
        ids=["warnings are errors", "optimised in C", "ASCII", "C"],
    )
    def test_a_worker_runs_in_it_and_says_nothing(
        self,
        variables: dict[str, str],
        makegateway: MakeGateway,
        python: Interpreter,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        set_environment(monkeypatch, variables)
        gateway = makegateway(python.spec)
        channel = gateway.remote_exec(ECHO)
        channel.reconfigure(py2str_as_py3str=False)
        items = [
            "\xe9\u20ac",
            {"\xe9": {"a", "b", "\u20ac", 1, None}},
            frozenset(map(str, range(99))),
        ]
        for item in items:
            channel.send(item)
            assert channel.receive(BOUND_S) == item
        channel.close()
        assert ask(gateway, "channel.send(u'\\xe9\\u20ac')") == "\xe9\u20ac"
        self.check_error_text(gateway)
        check_quiet_end(gateway, capfd)

    def check_error_text(self, gateway: Gateway) -> None:
        with pytest.raises(RemoteError) as caught:
            ask(gateway, "x = u'\xe9\u20ac'\nraise ValueError(u'\xe9' + x)  # \xe9")
        text = str(caught.value)
        assert "raise ValueError(u'\xe9' + x)" in text
        assert text.endswith(("ValueError: \xe9\xe9\u20ac\n", "ValueError: \\xe9\\xe9\\u20ac\n"))


class TestPreparations:
    @pytest.mark.parametrize("name", ["with a space", "\xe9\u20ac'\"\\n"])
    @pytest.mark.parametrize("variables", [{}, C_LOCALE], ids=["as it is", "C"])
    def test_names_and_values_of_any_kind_arrive(
        self,
        name: str,
        variables: dict[str, str],
        makegateway: MakeGateway,
        python: Interpreter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        set_environment(monkeypatch, variables)
        spec = (
            f"{python.spec}//nice=3//chdir={tmp_path}/{name}//env:T_ONE= a{name}\U0001f600 %s $HOME"
        )
        gateway = makegateway(spec + "//env:T_TWO=plain")
        code = """
import os
value = os.environ["T_ONE"]
os.mkdir("made")
channel.send((value.encode("hex") if str is bytes else os.fsencode(value).hex(), os.nice(0)))
"""
        value = f" a{name}\U0001f600 %s $HOME"
        assert ask(gateway, code) == (value.encode().hex(), min(os.nice(0) + 3, 19))
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name / "made").is_dir()
        assert ask(gateway, CHILD_SEES) == value.encode().hex()

    def test_a_python_with_spaces_and_quotes_in_its_path(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        path = tmp_path / 'it\'s a "python"'
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(python.path)} "$@"\n')
        path.chmod(0o755)
        named = Interpreter(python.version, python.implementation, str(path))
        assert ask(makegateway(named.spec), "channel.send(1)") == 1

    def test_a_worker_imports_nothing_of_this_package_from_its_disk(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        (tmp_path / "execnet.py").write_text("1 / 0")
        gateway = makegateway(f"{python.spec}//chdir={tmp_path}")
        code = """
import sys
loaded = [name for name in list(sys.modules) if name.split(".")[0] == "execnet"]
channel.send((loaded, type(channel).__module__ in sys.modules))
"""
        assert ask(gateway, code) == ([], True)
        assert sorted(os.listdir(tmp_path)) == ["execnet.py"]
