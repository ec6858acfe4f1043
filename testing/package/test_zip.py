"""All that needs source works where it is in a zip: one on ``sys.path``, a zipapp, a pex."""

from __future__ import annotations

import sys
import zipapp
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import IS_THOROUGH, SOURCE, run

PROGRAM = """
import sys, tempfile
import execnet
import zipped, zipped_latin

def function(channel, number: "not there" = 1) -> "not there":
    channel.send(number)

def main():
    failed = []
    for name, check in CHECKS.items():
        try:
            result = check(*ARGUMENTS.get(name, ()))
        except Exception as exc:
            result = repr(exc)
        if result != 1:
            failed.append((name, result))
    execnet.default_group.terminate(10)
    print("execnet" in execnet.__file__ and ".py" in execnet.__file__, failed)

def answer(spec, code="channel.send(1)"):
    return execnet.makegateway(spec).remote_exec(code).receive(60)

def imports():
    return answer("popen", "import execnet.xspec; channel.send(1)")

def traceback():
    channel = execnet.makegateway().remote_exec(zipped.failing)
    try:
        channel.waitclose(60)
    except channel.RemoteError as exc:
        return int('zipped.py", line 8, in failing' in str(exc)) or str(exc)

def rsync(target):
    sync = execnet.RSync(target + "/from", verbose=False)
    sync.add_target(execnet.makegateway("popen"), target + "/to")
    sync.send()
    with open(target + "/to/file") as file:
        return int(file.read())

def output():
    lines = []
    group = execnet.Group()
    group.on_output(lambda gateway, stream, line: lines.append(line))
    group.makegateway("popen//output=forward").remote_exec("print(1, flush=True)").waitclose(60)
    group.terminate(10)
    return int(lines[0])

PYTHON = "//python=" + sys.executable
ARGUMENTS = {"rsync": sys.argv[1:]}
CHECKS = {
    "popen": lambda: answer("popen//id=first"),
    "popen of another interpreter": lambda: answer("popen" + PYTHON),
    "via": lambda: answer("popen//via=first"),
    "installvia": lambda: answer("socket//installvia=first"),
    "forkserver": lambda: answer("popen//forkserver"),
    "forkserver of another interpreter": lambda: answer("popen//forkserver" + PYTHON),
    "a module": lambda: answer("popen", zipped),
    "a module in another encoding": lambda: answer("popen", zipped_latin),
    "a function": lambda: answer("popen", zipped.function),
    "a function of the program": lambda: answer("popen", function),
    "execnet over there": imports,
    "a traceback": traceback,
    "rsync": rsync,
    "output": output,
}
if __name__ == "__main__":
    main()
"""
ZIPPED = """
def function(channel, number: "not there" = 1) -> (
    "not there"
):
    channel.send(number)

def failing(channel):
    1 / 0

if __name__ == "__channelexec__":
    channel.send(1)
"""
LATIN = "# coding: latin-1\nif __name__ == '__channelexec__':\n    channel.send(len('\xe9'))\n"
# What pex does: each distribution is a folder in the zip, which goes on the path.
PEX = """
import os, sys
for name in "execnet-3.0.0-py3-none-any.whl", "program-1-py3-none-any.whl":
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".deps", name))
import program
program.main()
"""


def package() -> dict[str, bytes]:
    folder = SOURCE / "execnet"
    return {path.relative_to(SOURCE).as_posix(): path.read_bytes() for path in folder.rglob("*.py")}


def program() -> dict[str, bytes]:
    return {"zipped.py": ZIPPED.encode(), "zipped_latin.py": LATIN.encode("latin-1")}


def write(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def on_the_path(folder: Path) -> list[str]:
    write(folder / "lib.zip", {**package(), **program()})
    (folder / "program.py").write_text(
        f"import sys\nsys.path.insert(0, {str(folder / 'lib.zip')!r})\n{PROGRAM}"
    )
    return [str(folder / "program.py")]


def as_a_zipapp(folder: Path) -> list[str]:
    for name, data in {**package(), **program(), "__main__.py": PROGRAM.encode()}.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    zipapp.create_archive(folder / "app", folder / "app.pyz", compressed=True)
    return [str(folder / "app.pyz")]


def as_a_pex(folder: Path) -> list[str]:
    files = {f".deps/execnet-3.0.0-py3-none-any.whl/{n}": data for n, data in package().items()}
    inside = {**program(), "program.py": PROGRAM.encode()}
    files |= {f".deps/program-1-py3-none-any.whl/{name}": data for name, data in inside.items()}
    write(folder / "app.pex", {**files, "__main__.py": PEX.encode()})
    return [str(folder / "app.pex")]


WAYS = [as_a_pex, as_a_zipapp, on_the_path]


@pytest.mark.parametrize("make", WAYS if IS_THOROUGH else WAYS[:1])
def test_a_program_in_a_zip_can_do_all(make: Callable[[Path], list[str]], tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").write_text("1")
    command = [sys.executable, *make(tmp_path), str(tmp_path)]
    result = run(command, PYTHONPATH="", timeout_s=100)
    assert (result.stdout, result.stderr) == ("True []\n", "")


NAMES = ["execnet.pyz", "./execnet.pyz", "{folder}/execnet.pyz"]


@pytest.mark.parametrize("name", NAMES if IS_THOROUGH else NAMES[:1])
def test_the_command_line_may_be_a_zipapp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for path, data in package().items():
        (tmp_path / "app" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / path).write_bytes(data)
    zipapp.create_archive(tmp_path / "app", tmp_path / "execnet.pyz", main="execnet._cli:main")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, name.format(folder=tmp_path), "exec", "popen//id=a"]
    command += [f"popen//id=b//python={sys.executable}", "popen//id=c//via=a"]
    result = run([*command, "-c", "channel.send(1)"], PYTHONPATH="")
    assert result.stderr == ""
    assert sorted(result.stdout.splitlines()) == ["[a] 1", "[b] 1", "[c] 1"]


def test_a_module_that_is_run_from_a_zip_is_found(tmp_path: Path) -> None:
    module = LATIN.replace("__channelexec__", "__main__").encode("latin-1")
    write(tmp_path / "lib.zip", {**package(), "zipped_main.py": module})
    command = [sys.executable, "-m", "execnet", "exec", "popen", "-m", "zipped_main"]
    result = run(command, PYTHONPATH=str(tmp_path / "lib.zip"))
    assert (result.stdout, result.stderr) == ("[gw0] 1\n", "")
