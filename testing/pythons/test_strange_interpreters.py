"""Interpreters that lack something, are slow, or talk before they are asked; on every Python.

All of them become workers. Plain options and locales are in ``test_interpreters_boot``.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from interpreters import Interpreter
from services import script
from tools import KIT, MakeGateway
from workers import ask

from execnet import Gateway

pytest_plugins = ["worker_fixtures"]

RELAY = KIT / "relay.py"
C_LOCALE = "LC_ALL=C LANG=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"


def works(gateway: Gateway) -> bool:
    """Whether it does what a worker does, with what is sent behind its hello too."""
    item = {"\u20ac": [1, 2.5, None, b"\xff"], "many": list(range(1000))}
    answer = ask(gateway, "channel.send(channel.receive())", item)
    return bool(
        answer["many"] == item["many"]
        and len(answer) == 2
        and gateway.remote_status().execmodel == "thread"
    )


def with_start_file(folder: Path, code: str, python: Interpreter) -> str:
    """Return a spec for a Python that runs this code when it starts."""
    (folder / "sitecustomize.py").write_text(code)
    return f"popen//python=env PYTHONPATH={folder} {shlex.quote(python.path)}"


def behind_relay(options: str, python: Interpreter) -> str:
    relay = shlex.join([sys.executable, "-S", "-E", str(RELAY)])
    return f"popen//python={relay} {options} -- {shlex.quote(python.path)}"


class TestLacking:
    def test_one_without_zlib(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        code = "import sys\nsys.modules['zlib'] = None\n"
        gateway = makegateway(with_start_file(tmp_path, code, python))
        assert works(gateway)
        check = "try:\n import zlib\nexcept ImportError:\n channel.send('none')"
        assert ask(gateway, check) == "none"

    def test_one_without_zlib_and_with_noise(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        code = "import os, sys\nsys.modules['zlib'] = None\nos.write(1, b'\\0execnet\\0?' * 9)\n"
        assert works(makegateway(with_start_file(tmp_path, code, python)))

    def test_one_without_a_site(self, makegateway: MakeGateway, python: Interpreter) -> None:
        assert works(makegateway(f"{python.spec} -S -E -s"))

    def test_one_without_a_home_or_an_environment(
        self, makegateway: MakeGateway, python: Interpreter
    ) -> None:
        gateway = makegateway(f"popen//python=env -i {shlex.quote(python.path)}")
        assert works(gateway)

    def test_one_without_the_fast_codec(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        code = "import sys\nsys.modules['_pickle'] = None\n"
        assert works(makegateway(with_start_file(tmp_path, code, python)))


class TestSlow:
    def test_one_whose_stdin_trickles(self, makegateway: MakeGateway, python: Interpreter) -> None:
        assert works(makegateway(behind_relay("--trickle 20000", python)))

    def test_one_whose_stdin_trickles_without_zlib(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['zlib'] = None\n")
        relay = shlex.join([sys.executable, "-S", "-E", str(RELAY)])
        words = f"env PYTHONPATH={tmp_path} {relay} --trickle 20000"
        assert works(makegateway(f"popen//python={words} -- {shlex.quote(python.path)}"))


class TestTalking:
    def test_one_whose_start_file_prints_what_looks_like_a_marker(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        beginning = "b'\\0execnet\\0' + b'0123456789abcdef\\n' + b'\\0execnet\\0' * 3 + b'\\0exec'"
        code = f"import os\nos.write(1, b'Welcome!\\n' + {beginning})\n"
        gateway = makegateway(with_start_file(tmp_path, code, python))
        assert works(gateway)
        assert gateway.noise.startswith(b"Welcome!\n\0execnet\0")

    def test_one_whose_shell_prints_a_marker_in_pieces(
        self, makegateway: MakeGateway, python: Interpreter, tmp_path: Path
    ) -> None:
        pieces = r"for c in '\0' e x e c n e t '\0' '\0' exec; do printf \"$c\"; sleep 0.01; done"
        shell = script(tmp_path / "shell", f'{pieces}\nexec "$@"'.replace('\\"', '"'))
        gateway = makegateway(f"popen//python={shell} {shlex.quote(python.path)}")
        assert works(gateway)
        assert gateway.noise == b"\0execnet\0\0exec"

    def test_one_whose_login_shell_greets(
        self,
        makegateway: MakeGateway,
        python: Interpreter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        greeting = "echo 'Last login: yesterday'; head -c 60000 /dev/zero; echo 'no mail' >&2"
        script(tmp_path / "ssh", f'{greeting}\nfor last; do :; done; exec sh -c "$last"')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        gateway = makegateway(f"ssh=host//python={shlex.quote(python.path)}")
        assert works(gateway)
        assert gateway.noise.startswith(b"Last login: yesterday\n\0\0")


class TestSomewhereElse:
    @pytest.mark.parametrize("name", ["a b", "it's", 'the "one"', "$HOME `x` ;&|<>*?", "\u20ac"])
    def test_one_in_a_folder_of_any_name_through_ssh(
        self,
        makegateway: MakeGateway,
        python: Interpreter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        folder = tmp_path / name
        folder.mkdir()
        script(folder / "a python", f'exec {shlex.quote(python.path)} "$@"')
        script(tmp_path / "ssh", 'for last; do :; done; exec sh -c "$last"')
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        path = shlex.quote(str(folder / "a python"))
        assert works(makegateway(f"ssh=host//python=env {C_LOCALE} {path}"))
