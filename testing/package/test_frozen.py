"""A frozen program starts itself as a worker, and never again and again.

A script that calls itself frozen stands in for one; PyInstaller makes a real one where it can.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tools import IS_THOROUGH, SOURCE, clean_environment, missing, run

import execnet
from execnet import _pyinstaller
from execnet._transports import table as transports_table

# A program like any other.  It notes each time that it runs.
PROGRAM = """
import os, sys
with open(<log>, "a") as log:
    log.write(" ".join(sys.argv[1:2]) + "\\n")
import execnet
<support>

def answer(spec, code="channel.send(1)"):
    return execnet.makegateway(spec).remote_exec(code).receive(30)

def rsync():
    target = <log> + ".copy"
    sync = execnet.RSync(os.path.dirname(<log>) + "/tree", verbose=False)
    sync.add_target(execnet.makegateway("popen"), target)
    sync.send()
    return int(open(target + "/file").read())

def main():
    if sys.argv[1:] != ["go"]:
        sys.exit("what else? " + repr(sys.argv))
    for name, check in CHECKS.items():
        try:
            result = check()
        except execnet.BootstrapError as exc:
            result = "BootstrapError: " + str(exc)
        except Exception as exc:
            result = repr(exc)
        print(name.replace(" ", "-"), result)
    execnet.default_group.terminate(10)

PLACES = "import sys, execnet.xspec; channel.send([sys.argv, sys.executable, sys.frozen])"
CHECKS = <checks>
if __name__ == "__main__":
    main()
"""
LOCAL = """{
    "popen": lambda: answer("popen//id=first"),
    "places": lambda: answer("popen", PLACES) == [["-c"], sys.executable, True],
    "no bytecode": lambda: answer("popen//dont_write_bytecode"),
    "forkserver": lambda: answer("popen//forkserver"),
}"""
SHIPPED = """{
    "popen": lambda: answer("popen//id=first"),
    "python": lambda: answer("popen//python={python}"),
    "via": lambda: answer("popen//via=first"),
    "installvia": lambda: answer("socket//installvia=first"),
    "forkserver of python": lambda: answer("popen//forkserver//python={python}"),
    "rsync": rsync,
}""".replace("{python}", sys.executable)
STAND_IN = """\
#!/bin/sh
exec {python} -c 'import runpy, sys
sys.frozen, sys.executable = True, "{name}"
sys.argv[:] = ["{name}"] + sys.argv[1:]
runpy.run_path("{program}", run_name="__main__")' "$@"
"""
SPEC = """\
others = ["gevent", "pygments", "pytest", "rich", "setuptools"]
analysis = Analysis([{program!r}], pathex=[{source!r}], hookspath=[{hooks!r}], excludes=others)
archive = PYZ(analysis.pure)
EXE(archive, analysis.scripts, analysis.binaries, analysis.datas, name="onefile")
program = EXE(archive, analysis.scripts, exclude_binaries=True, name="program")
COLLECT(program, analysis.binaries, analysis.datas, name="folder")
"""
SUPPORT = "execnet.freeze_support()"
BEFORE_GATEWAYS = "call execnet.freeze_support() first thing in its main module"


def write(folder: Path, checks: str, support: str = SUPPORT) -> Path:
    """Write the program; it notes in ``log`` when it runs."""
    (folder / "tree").mkdir()
    (folder / "tree/file").write_text("1")
    path = folder / "program.py"
    words = {"log": repr(str(folder / "log")), "support": support, "checks": checks}
    text = PROGRAM
    for name, value in words.items():
        text = text.replace(f"<{name}>", value)
    path.write_text(text)
    return path


def freeze(folder: Path, checks: str, support: str = SUPPORT) -> Path:
    """Return a program that takes itself for frozen."""
    program, frozen = write(folder, checks, support), folder / "frozen"
    words = {"python": sys.executable, "name": frozen, "program": program}
    frozen.write_text(STAND_IN.format(**words))
    frozen.chmod(0o755)
    return frozen


def result(program: Path) -> dict[str, str]:
    done = run([str(program), "go"], timeout_s=100)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")


class TestStandIn:
    def test_it_is_its_own_worker(self, tmp_path: Path) -> None:
        found = result(freeze(tmp_path, LOCAL))
        expected = {"popen": "1", "places": "True", "no-bytecode": "1", "forkserver": "1"}
        assert found == expected
        ran = (tmp_path / "log").read_text().split()
        assert ran == ["go", *["-u"] * 4]

    def test_it_sends_its_source_like_any_other(self, tmp_path: Path) -> None:
        found = result(freeze(tmp_path, SHIPPED))
        assert set(found.values()) == {"1"}, found

    def test_without_support_it_starts_nothing_and_says_what_to_do(self, tmp_path: Path) -> None:
        found = result(freeze(tmp_path, LOCAL, support=""))
        for text in found.values():
            assert BEFORE_GATEWAYS in text
        assert (tmp_path / "log").read_text() == "go\n"

    def test_a_gateway_made_too_early_is_refused(self, tmp_path: Path) -> None:
        support = "try: execnet.makegateway()\nexcept execnet.BootstrapError: print('early 1')\n"
        found = result(freeze(tmp_path, LOCAL, support + SUPPORT))
        assert (found["early"], found["popen"]) == ("1", "1")
        assert (tmp_path / "log").read_text().split() == ["go", *["-u"] * 4]

    def test_others_can_be_started_without_support(self, tmp_path: Path) -> None:
        checks = f'{{"python": lambda: answer("popen//python={sys.executable}")}}'
        assert result(freeze(tmp_path, checks, support="")) == {"python": "1"}

    @pytest.mark.parametrize(
        "words", ["", "-u", "-u -c", "-u -c pass", "-c import\tsys;", "-B -c x"]
    )
    def test_other_arguments_make_no_worker(self, tmp_path: Path, words: str) -> None:
        done = run([str(freeze(tmp_path, LOCAL)), *words.split(" ")])
        assert done.returncode == 1
        assert "what else?" in done.stderr


def test_a_program_that_is_not_frozen_needs_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    line = execnet.gateway_io.popen_bootstrapline
    monkeypatch.setattr(sys, "argv", ["program", "-u", "-c", line])
    monkeypatch.setattr("execnet._transports.table.is_freeze_supported", False)
    execnet.freeze_support()  # does not read stdin
    assert sys.argv[0] == "program"


def test_sudo_takes_no_frozen_program_for_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = execnet.XSpec("sudo=nobody")
    assert sys.executable in transports_table.command(spec)[-1]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert sys.executable not in transports_table.command(spec)[-1]
    assert "exec python3" in transports_table.command(spec)[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the program as PyInstaller makes it: in a folder and as one file."""
    if importlib.util.find_spec("PyInstaller") is None:
        if sys.version_info >= (3, 15) or platform.python_implementation() != "CPython":
            pytest.skip("PyInstaller does not support this Python yet")
        missing("PyInstaller is not installed")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        missing("PyInstaller needs a Python with a shared library")
    folder = tmp_path_factory.mktemp("frozen")
    program = write(folder, LOCAL.rstrip("}") + SHIPPED.strip().lstrip("{"))
    hooks = SOURCE / "execnet/_pyinstaller"  # given here for a tree that is not installed
    words = {"program": str(program), "source": str(SOURCE), "hooks": str(hooks)}
    (folder / "program.spec").write_text(SPEC.format(**words))
    command = [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", "program.spec"]
    environment = clean_environment(PYINSTALLER_CONFIG_DIR=str(folder / "config"))
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return folder / "dist"


@pytest.mark.skipif(not IS_THOROUGH, reason="half a minute's work, for a thorough run")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["folder/program", "onefile"])
def test_pyinstaller_makes_a_program_that_can_do_all(built: Path, name: str) -> None:
    found = result(built / name)
    assert len(found) == 9
    assert found.pop("places") == "True"
    assert set(found.values()) == {"1"}, found


def test_pyinstaller_finds_the_hook() -> None:
    (folder,) = _pyinstaller.hook_dirs()
    assert "hook-execnet.py" in os.listdir(folder)
    settings = (SOURCE / "pyproject.toml").read_text("utf-8")
    assert 'hook-dirs = "execnet._pyinstaller:hook_dirs"' in settings
