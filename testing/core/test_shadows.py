"""Modules in the working folder that have names of the standard library."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from interpreters import Interpreter, found
from tools import BOUND_S, MakeGateway, run, run_python
from workers import ask

from execnet import Group

NAMES = (
    "ast", "select", "traceback", "struct", "zlib", "threading", "queue", "linecache", "tempfile",
    "_pickle", "pickle", "ctypes", "hashlib", "stat", "errno", "heapq", "tokenize", "socket",
    "signal", "weakref", "collections", "fnmatch", "shutil", "random",
    # what the library tries to import where there is none
    "msvcrt", "_winapi", "winreg", "_overlapped", "_scproxy", "nt", "org", "vms_lib",
)  # fmt: skip
# What PyPy itself imports for "python -c" can't be kept from it.
CPYTHONS = [one for one in found() if one.version >= (3, 6) and one.implementation == "cpython"]
CODE = """
import sys
channel.send({1: [2.5, "x"], "y": (None, b"z" * 20000)})
channel.send(channel.receive())
try:
    1 / 0
except ZeroDivisionError:
    pass
inner = channel.gateway.newchannel()
inner.setcallback(print)
channel.send([entry for entry in sys.path if not entry])
"""


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder of modules, each of which leaves a file when it is imported."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    for name in NAMES:
        if name == "linecache" and sys.version_info >= (3, 13):
            continue  # "python -c" itself imports it, before anything of ours can run
        ran = tmp_path / f"{name}.ran"
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\n1/0\n")
    return folder


def use(gateway: object, tmp_path: Path) -> None:
    channel = gateway.remote_exec(CODE)  # type: ignore[attr-defined]
    channel.send({2: [("a", 1.5)] * 300})
    for _ in range(2):
        channel.receive(BOUND_S)
    assert channel.receive(BOUND_S) in ([""], [])
    channel.waitclose(BOUND_S)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        gateway.remote_exec("def f():\n  1/0\nf()").waitclose(BOUND_S)  # type: ignore[attr-defined]
    gateway.remote_status()  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.glob("*.ran")] == []


@pytest.mark.parametrize("spec", ["popen", "popen//python={python}", "popen//forkserver"])
def test_a_worker_runs_none_of_them(
    makegateway: MakeGateway,
    shadows: Path,
    spec: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    templates: None,
) -> None:
    monkeypatch.chdir(shadows)
    use(makegateway(spec.format(python=sys.executable)), tmp_path)


def test_nor_after_it_has_changed_there(
    makegateway: MakeGateway, shadows: Path, tmp_path: Path
) -> None:
    use(makegateway(f"popen//chdir={shadows}"), tmp_path)
    use(makegateway(f"popen//python={sys.executable}//chdir={shadows}"), tmp_path)


@pytest.mark.parametrize("spec", ["popen//via=first", "socket//installvia=first"])
def test_nor_does_what_starts_others(
    group: Group, shadows: Path, tmp_path: Path, spec: str
) -> None:
    group.makegateway(f"popen//python={sys.executable}//chdir={shadows}//id=first")
    assert ask(group.makegateway(spec), "channel.send(1)") == 1
    assert [path.name for path in tmp_path.glob("*.ran")] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has -P since 3.11")
@pytest.mark.parametrize("how", ["-P", "PYTHONSAFEPATH"])
@pytest.mark.parametrize("spec", ["popen", "popen//forkserver"])
def test_the_users_code_does_not_find_its_own_if_python_is_not_to(how: str, spec: str) -> None:
    code = f"""
        import execnet
        group = execnet.Group()
        gateway = group.makegateway({spec!r})
        print(gateway.remote_exec("import sys; channel.send('' in sys.path)").receive())
        group.terminate(5)
    """
    words = [sys.executable, "-P"] if how == "-P" else [sys.executable]
    environment = {"PYTHONSAFEPATH": "1"} if how != "-P" else {}
    assert run([*words, "-c", textwrap.dedent(code)], **environment).stdout == "False\n"


@pytest.mark.parametrize("python", CPYTHONS, ids=str)
def test_on_every_python(
    python: Interpreter,
    makegateway: MakeGateway,
    shadows: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(shadows)
    if python.version >= (3, 13):
        (shadows / "linecache.py").unlink(missing_ok=True)
    use(makegateway(python.spec), tmp_path)


def test_the_users_code_finds_its_own(makegateway: MakeGateway, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("mine = 1")
    (tmp_path / "helper_of_mine.py").write_text("import colorsys")
    gateway = makegateway(f"popen//chdir={tmp_path}")
    code = "import helper_of_mine; channel.send(helper_of_mine.colorsys.mine)"
    assert ask(gateway, code) == 1


def test_execnet_itself_may_come_from_there(tmp_path: Path) -> None:
    code = "import execnet; print(execnet.makegateway().remote_exec('channel.send(1)').receive())"
    assert run_python(code).stdout == "1\n"
