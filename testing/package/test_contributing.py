"""What CONTRIBUTING.rst says to do: its examples are done in a copy, and work."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import read
from tools import ROOT, clean_environment, run

PAGE = ROOT / "CONTRIBUTING.rst"
BLOCKS = read(PAGE)
PLACE = re.compile(r" *# ([\w/.]+)(?:, (before|after): (.+))?")


def put(block: str, root: Path) -> Path:
    """Do what the first line of a block says; return the file."""
    first, _, block = block.partition("\n")
    found = PLACE.fullmatch(first)
    assert found, first
    path = root / found[1]
    if not found[2]:
        assert not path.exists()
        path.write_text(block, "utf-8")
        return path
    lines = path.read_text("utf-8").splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.lstrip().startswith(found[3])]
    assert len(places) == 1, f"{first}: there are {len(places)} such lines"
    indent = " " * (len(lines[places[0]]) - len(lines[places[0]].lstrip()))
    if found[2] == "after" and lines[places[0]].rstrip().endswith("["):
        indent += "    "
    text = "".join(f"{indent}{line}\n" if line else "\n" for line in block.splitlines())
    lines.insert(places[0] + (found[2] == "after"), text)
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A copy of the checkout with all examples in it, and the test files among them."""
    folder = tmp_path_factory.mktemp("contributed") / "copy"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "_build")
    shutil.copytree(ROOT, folder, ignore=ignored)
    examples = [block for block in BLOCKS if block.language == "python"]
    paths = [put(block.text, folder) for block in examples]
    return folder, [path for path in paths if path.name.startswith("test_")]


def run_tests(folder: Path, *tests: Path | str) -> str:
    """Run tests in a copy; return what pytest says, once they have passed."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)],
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="one has a program of a Unix shell")
def test_the_examples_work(changed: tuple[Path, list[Path]]) -> None:
    folder, tests = changed
    assert len(tests) == 2
    assert "4 passed" in run_tests(folder, *tests)


def test_what_they_send_is_understood_by_python_2(changed: tuple[Path, list[Path]]) -> None:
    folder, _ = changed
    assert "passed" in run_tests(folder, "testing/package/test_lowering.py", "-k", "our or sent")


def test_the_commands_name_files_that_are_there() -> None:
    commands = " ".join(block.text for block in BLOCKS if block.language == "sh")
    named = re.findall(r"(?<!\S)(?:testing|\.ci)/[\w/.]+", commands)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_environments_of_tox_are_there() -> None:
    named = set(re.findall(r"tox -e ([\w,]+)", PAGE.read_text("utf-8")))
    settings = (ROOT / "tox.ini").read_text("utf-8")
    sections = re.findall(r"^\[testenv:(\w+)\]", settings, re.M)
    (listed,) = re.findall(r"^env_list = (.*)", settings, re.M)
    known = {*sections, *listed.split(", ")}
    assert {"bench", "interpreters", "links", "release", "xdist"} <= named <= {*known, "lint,docs"}


def test_types_are_checked_also_where_no_other_package_is_installed() -> None:
    """What ``tox -e lint`` does, though the environment of a developer has them all."""
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    (excused,) = re.findall(r"^module = \[(.*)\]", settings, re.M)
    imported = set()
    for path in (ROOT / "execnet").rglob("*.py"):
        names = re.findall(r"^\s*(?:import|from) ([A-Za-z]\w*)", path.read_text("utf-8"), re.M)
        imported |= {name for name in names if _is_installed(name)}
    assert imported <= set(re.findall(r'"(\w+)\.\*"', excused))
    assert "rich" in imported


def _is_installed(name: str) -> bool:
    """Whether a module is neither ours nor Python's own, as far as an import in a text can tell."""
    if name == "execnet" or name in sys.stdlib_module_names:
        return False
    return importlib.util.find_spec(name) is not None


def test_a_fault_can_be_had_again_by_the_command() -> None:
    (command,) = re.findall(r"python (testing/kit/faults\.py \d+)", PAGE.read_text("utf-8"))
    program, seed = command.split()
    ended = run([sys.executable, str(ROOT / program), seed])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"seeds {seed} to {seed}" in ended.stdout


def test_the_folders_of_the_tests_are_listed() -> None:
    listed = set(re.findall(r"^   (\w+) +[a-z]", PAGE.read_text("utf-8"), re.M))
    folders = {path.parent.name for path in (ROOT / "testing").glob("*/test_*.py")}
    assert folders <= listed


def test_the_hosted_service_tests_all_pythons_that_are_promised() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text("utf-8")
    (tested,) = re.findall(r"python: \[(.*)\]", workflow)
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    promised = re.findall(r"Python :: (3\.\d+)\"", settings)
    assert [name for name in re.findall(r'"([^"]+)"', tested) if name[0] == "3"] == promised
    assert "pypy" in tested
    (systems,) = re.findall(r"system: \[(.*)\]", workflow)
    assert systems == "ubuntu-latest, macos-latest, windows-latest"


def test_hooks_before_a_commit_fetch_nothing() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.findall(r"repo: (.*)", hooks) == ["local"]
    assert set(re.findall(r"language: (.*)", hooks)) == {"system"}
