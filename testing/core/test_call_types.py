"""What a type checker makes of calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import ROOT

PROGRAM = """
import execnet

def f(number: int, *, name: str = "") -> str:
    return name

group = execnet.Group(["popen"])
gateway = group[0]
executor = group.executor(retries=1)
reveal_type(gateway.call(f, 1, name="a"))
reveal_type(gateway.call("a:b", 1))
reveal_type(gateway.submit(f, 1))
reveal_type(gateway.module("a"))
reveal_type(gateway.module("a").b.c(1))
reveal_type(executor.submit(f, 1).result(1))
reveal_type(executor.map(f, [1]))
gateway.call(f, "1")
gateway.submit(f, 1, other=2)
executor.submit(f)
"""
REVEALED = ["str", "Any", "Future[str]", "RemoteModule", "Any", "str", "Iterator[str]"]
REFUSED = [
    'No overload variant of "call" of "Calling" matches',
    'Unexpected keyword argument "other" for "submit" of "Calling"',
    'Missing positional argument "number" in call to "submit" of "Executor"',
]


def test_results_and_arguments_have_the_types_of_the_function(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="a development tool; CI installs it after the others")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-color-output", str(program)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    revealed = re.findall(r'Revealed type is "(.*)"', told)
    # Without the modules that the types are in, which some versions leave out.
    assert [re.sub(r"[\w.]+\.", "", one) for one in revealed] == REVEALED
    for text in REFUSED:
        assert text in told
