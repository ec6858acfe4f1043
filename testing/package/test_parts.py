"""Modules as source, from a file or a loader; what is made of them is kept as bytecode is."""

from __future__ import annotations

import os
import stat
import sys
import threading
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from tools import run_python

from execnet import gateway_base
from execnet._errors import BootstrapError
from execnet._ship import parts
from execnet._ship.parts import kept, read, source_of


class Kept:
    """A module ``sample`` with a folder for its bytecode, and what was made of it."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "sample.py"
        self.source.write_text("")
        self.source.chmod(0o640)
        self.folder = folder / "__pycache__"
        self.folder.mkdir()
        self.path = self.folder / "sample.cpython-0-kind.pyc"
        self.cached: str | None = str(self.folder / "sample.cpython-0.pyc")
        self.made: list[object] = []

    def spec(self, name: str) -> Any:
        assert name == "sample"
        return types.SimpleNamespace(cached=self.cached, origin=str(self.source))

    def get(self, text: str = "text", value: object = (b"\0", "\xe9", 1)) -> object:
        def make() -> object:
            self.made.append(value)
            return value

        return kept("sample", "kind", ["first", text], make)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = Kept(tmp_path)
    monkeypatch.setattr(parts, "_spec_of", found.spec)
    return found


class TestKept:
    def test_it_is_made_once(self, sample: Kept) -> None:
        assert sample.get() == sample.get() == (b"\0", "\xe9", 1)
        assert len(sample.made) == 1
        assert sample.names() == [sample.path.name]

    def test_it_can_be_read_by_those_who_can_read_the_source(self, sample: Kept) -> None:
        sample.get()
        assert stat.S_IMODE(sample.path.stat().st_mode) == 0o640

    def test_other_sources_are_something_else(self, sample: Kept) -> None:
        assert [sample.get("a", 1), sample.get("b", 2), sample.get("b", 3)] == [1, 2, 2]
        assert sample.made == [1, 2]

    def test_another_bytecode_is_something_else(
        self, sample: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sample.get(value=1)
        monkeypatch.setattr("importlib.util.source_hash", lambda data: b"12345678")
        assert sample.get(value=2) == 2

    @pytest.mark.parametrize("size", [0, 1, 8, 15, 16, 17, 23, 24, 25, -1])
    def test_a_cut_file_only_costs_time(self, sample: Kept, size: int) -> None:
        sample.get(value=1)
        sample.path.write_bytes(sample.path.read_bytes()[:size])
        assert [sample.get(value=2), sample.get(value=3)] == [2, 2]

    def test_so_does_one_with_another_byte_anywhere(self, sample: Kept) -> None:
        sample.get(value=b"value")
        good = sample.path.read_bytes()
        for place in range(len(good)):
            sample.path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            assert sample.get(value=b"other") == b"other"
        assert len(sample.made) == 1 + len(good)

    def test_so_does_one_that_is_real_bytecode(self, sample: Kept) -> None:
        cached = gateway_base.__spec__.cached if gateway_base.__spec__ else None
        if cached is None or not os.path.exists(cached):
            pytest.skip("this Python keeps no bytecode")
        sample.path.write_bytes(Path(cached).read_bytes())
        assert sample.get() == (b"\0", "\xe9", 1)

    def test_so_does_a_folder_in_its_place(self, sample: Kept) -> None:
        sample.path.mkdir()
        assert [sample.get(value=1), sample.get(value=2)] == [1, 2]
        assert sample.names() == [sample.path.name]  # and nothing half written

    def test_so_does_the_want_of_a_folder(self, sample: Kept) -> None:
        sample.folder.rmdir()
        assert [sample.get(value=1), sample.get(value=2)] == [1, 2]

    def test_so_does_a_disk_that_is_full(
        self, sample: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        assert sample.get(value=1) == 1
        assert sample.names() == []

    def test_an_interrupt_leaves_nothing_half_written(
        self, sample: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sample.get()
        assert sample.names() == []

    def test_where_no_bytecode_is_written_it_is_read_but_not_written(
        self, sample: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        assert [sample.get(value=1), sample.get(value=2)] == [1, 2]
        assert sample.names() == []
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        sample.get(value=3)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        assert sample.get(value=4) == 3

    def test_where_a_module_has_no_place_for_bytecode_it_is_made(self, sample: Kept) -> None:
        sample.cached = None
        assert [sample.get(value=1), sample.get(value=2)] == [1, 2]

    def test_many_at_once_all_have_it_and_leave_one_file(self, sample: Kept) -> None:
        barrier = threading.Barrier(8)
        got: list[object] = []

        def make() -> object:
            barrier.wait(30)  # so that all write
            return "made"

        def get() -> None:
            got.append(kept("sample", "kind", [], make))

        threads = [threading.Thread(target=get) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == ["made"] * 8
        assert sample.names() == [sample.path.name]
        assert kept("sample", "kind", [], barrier.abort) == "made"


def test_parts_that_another_version_of_ours_has_packed_are_packed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_of: list[str] = []
    monkeypatch.setattr(parts, "kept", lambda name, kind, texts, make: made_of.extend(texts))
    parts._packed.__wrapped__("_rsync.far.target")
    assert {source_of("_rsync.far.target"), source_of("_ship.parts")} <= set(made_of)


SHIPPED = """
import sys
import execnet
gateway = execnet.makegateway("popen//python=" + sys.executable)
print(gateway.remote_exec("channel.send(channel.receive())").send(3))
print("execnet._ship.lower" in sys.modules)
gateway.exit()
execnet.default_group.terminate(10)
"""


class TestPrograms:
    """The first program of a machine makes what is sent, the others find it."""

    def made(self, prefix: Path, **variables: str) -> bool:
        result = run_python(SHIPPED, PYTHONPYCACHEPREFIX=str(prefix), **variables)
        assert result.stderr == ""
        return {"None\nTrue\n": True, "None\nFalse\n": False}[result.stdout]

    def test_it_is_where_python_was_told_to_keep_bytecode(self, tmp_path: Path) -> None:
        assert [self.made(tmp_path), self.made(tmp_path)] == [True, False]
        found = [path.name for path in tmp_path.rglob("*-shipment.pyc")]
        assert found == [f"gateway_base.{sys.implementation.cache_tag}-shipment.pyc"]

    def test_one_that_is_broken_is_replaced(self, tmp_path: Path) -> None:
        self.made(tmp_path)
        path = next(tmp_path.rglob("*-shipment.pyc"))
        path.write_bytes(path.read_bytes()[:-9])
        assert [self.made(tmp_path), self.made(tmp_path)] == [True, False]

    def test_without_bytecode_each_makes_it(self, tmp_path: Path) -> None:
        for _ in range(2):
            assert self.made(tmp_path, PYTHONDONTWRITEBYTECODE="1")
        assert list(tmp_path.rglob("*")) == []


INSTALLED = """
import execnet
from execnet._ship import source
from execnet.script import socketserver
files = []
def compiled_here(text, file_name, *options):
    files.append(file_name)
    return compile(text, file_name, *options)
source.compile = compiled_here
gateway = execnet.makegateway("popen//id=one")
execnet.makegateway("socket//installvia=one")
print(socketserver.__file__ in files)
execnet.default_group.terminate(10)
"""
WITH_A_KEY = """
import execnet
from execnet.script import socketserver
channel = execnet.makegateway("popen").remote_exec(socketserver)
channel.send(("127.0.0.1", 0))
print(len(channel.receive(60)))
execnet.default_group.terminate(10)
"""


class TestExecuted:
    """Modules of ours that a worker with the same Python executes."""

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in folder.rglob("*-executed.pyc")]

    def test_one_program_compiles_them(self, tmp_path: Path) -> None:
        for is_first in True, False:
            result = run_python(INSTALLED, PYTHONPYCACHEPREFIX=str(tmp_path))
            assert (result.stderr, result.stdout) == ("", f"{is_first}\n")
        tag = sys.implementation.cache_tag
        assert self.names(tmp_path) == [f"socketserver.{tag}-executed.pyc"]

    def test_keys_in_front_of_them_are_not_kept(self, tmp_path: Path) -> None:
        result = run_python(WITH_A_KEY, PYTHONPYCACHEPREFIX=str(tmp_path))
        assert (result.stderr, result.stdout) == ("", "2\n")
        assert self.names(tmp_path) == []


class Loader:
    """Has the source of one module in its memory."""

    def __init__(self, source: str | None) -> None:
        self.source = source

    def get_source(self, name: str) -> str | None:
        assert name == "sample"
        return self.source


class TestRead:
    def module(self, loader: object, file_name: str | None = None) -> types.ModuleType:
        module = types.ModuleType("sample")
        module.__spec__ = ModuleSpec("sample", loader)  # type: ignore[arg-type]
        if file_name:
            module.__file__ = file_name
        return module

    def test_a_file_is_read_before_a_loader_is_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "sample.py"
        path.write_bytes(b"\xef\xbb\xbf1\r\n'\xc3\xa9'\r")
        assert read(self.module(Loader("no"), str(path))) == ("1\n'\xe9'\n", str(path))

    def test_a_file_is_read_in_the_encoding_that_it_names(self, tmp_path: Path) -> None:
        path = tmp_path / "sample.py"
        path.write_bytes(b"# coding: latin-1\r\n'\xe9'\r\n")
        assert read(self.module(None, str(path)))[0] == "# coding: latin-1\n'\xe9'\n"

    def test_without_a_file_a_loader_is_asked(self) -> None:
        assert read(self.module(Loader("1\n"))) == ("1\n", None)
        assert read(self.module(Loader("1\n"), "/none/sample.py")) == ("1\n", "/none/sample.py")

    def test_a_module_without_a_spec_may_have_a_loader(self) -> None:
        module = types.ModuleType("sample")
        module.__loader__ = Loader("1\n")  # type: ignore[assignment]
        assert read(module) == ("1\n", None)

    def test_bytecode_is_not_taken_for_source(self, tmp_path: Path) -> None:
        path = tmp_path / "sample.pyc"
        path.write_bytes(b"bytecode")
        with pytest.raises(ValueError, match=r"sample.*no source"):
            read(self.module(Loader(None), str(path)))
        path.with_suffix(".py").write_text("1\n")
        assert read(self.module(Loader(None), str(path))) == ("1\n", str(path)[:-1])

    @pytest.mark.parametrize("name", ["sys", "_struct", "math"])
    def test_one_without_source_is_a_value_error(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"{name}.*no source"):
            read(__import__(name))


def test_ours_are_read_without_being_imported() -> None:
    code = (
        "import sys; from execnet._ship import parts; print(len(parts.source_of('_cli.exec')) > 99)"
    )
    result = run_python(code + "; print('execnet._cli.exec' in sys.modules)")
    assert result.stdout == "True\nFalse\n"


def test_one_of_ours_without_source_is_a_bootstrap_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("execnet.other", None, origin="other.pyc")
    monkeypatch.setattr(parts, "_spec_of", lambda name: spec)
    with pytest.raises(BootstrapError, match=r"source of execnet\.other.*can't be found here"):
        source_of("other")
