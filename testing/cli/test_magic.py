"""``%%execnet``: cells that run in workers, called as IPython would."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tools import BOUND_S, find_python, wait_until

import execnet
from execnet import Group
from execnet._cli.magic import CellError, Cells

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the far half needs signals")


@pytest.fixture
def cells() -> Iterator[Cells]:
    cells = Cells(SimpleNamespace(user_ns={}))
    yield cells
    cells.close()


def test_a_cell_shows_what_it_prints_and_its_last_value(
    cells: Cells, capsys: pytest.CaptureFixture[str]
) -> None:
    cells.run("popen", "import os\nfor i in 1, 2:\n    print(i)\nos.getpid()")
    one, two, pid = map(int, capsys.readouterr().out.split())
    assert (one, two) == (1, 2)
    assert pid != os.getpid()
    cells.run("popen", "os.getpid()")
    assert capsys.readouterr().out == f"{pid}\n", "it is not the same worker"


@pytest.mark.parametrize("version", ["", "2.7"])
def test_variables_come_and_go(cells: Cells, version: str) -> None:
    spec = f"popen//python={find_python(version)}" if version else "popen"
    cells._shell.user_ns["numbers"] = [1, 2]
    cells.run(f"-i numbers -o total {spec}", "total = sum(numbers)")
    assert cells._shell.user_ns["total"] == 3
    if not version:
        cells.run("-o total '2*popen'", "total = 4")
        assert cells._shell.user_ns["total"] == [4, 4]
    for name, told in ("nothing", "there is no nothing"), ("cells", "can't serialize"):
        with pytest.raises(CellError, match=told):
            cells.run(f"-o {name} {spec}", "import sys\ncells = sys")


@pytest.mark.parametrize("version", ["", "2.7"])
def test_an_error_has_the_traceback_of_the_cell_alone(cells: Cells, version: str) -> None:
    spec = f"popen//python={find_python(version)}" if version else "popen"
    with pytest.raises(CellError) as caught:
        cells.run(spec, "def divide(a):\n    return a / 0\n\ndivide(1)")
    lines = caught.value._render_traceback_()
    assert lines[0].startswith("Traceback")
    assert "    return a / 0" in lines
    assert lines[-1].startswith("ZeroDivisionError")
    assert [line for line in lines if line.startswith("  File")] == [
        line for line in lines if '  File "<cell ' in line
    ]
    with pytest.raises(CellError, match="SyntaxError"):
        cells.run(spec, "a b")
    with pytest.raises(CellError, match="a title") as caught:
        cells.run(spec, "raise ValueError('a title' + chr(7))")
    assert "\x07" not in "".join(caught.value._render_traceback_())


def test_interrupting_a_cell_interrupts_its_code(cells: Cells, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def interrupt() -> None:
        wait_until(mark.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(CellError, match=r"time.sleep\(600\)\n( +[~^]+\n)?KeyboardInterrupt$"):
        cells.run("popen", f"x = 5\nopen({str(mark)!r}, 'w').close()\nimport time\ntime.sleep(600)")
    thread.join(BOUND_S)
    cells.run("-o x popen", "")
    assert cells._shell.user_ns["x"] == 5


def test_gateways_of_the_notebook_run_cells(
    cells: Cells, group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    group.makegateways(["popen//id=a", "popen//id=b"])
    cells._shell.user_ns.update(both=group, second=group["b"])
    cells.run("both", "print(__name__)")
    assert sorted(capsys.readouterr().out.splitlines()) == ["[a] __main__", "[b] __main__"]
    cells.run("second", "x = 1")
    with pytest.raises(CellError, match=r"^\[a\] (.|\n)*'x' is not defined"):
        cells.run("both", "assert x == 1")
    cells.close()
    assert len(group) == 2
    wait_until(lambda: group["a"].remote_status().numexecuting == 0)


def test_after_a_worker_has_died_a_new_one_starts(
    cells: Cells, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CellError, match="exit status 3"):
        cells.run("popen//id=short", "import os; os._exit(3)")
    cells.run("popen//id=short", "2 + 2")
    assert capsys.readouterr().out == "4\n"
    with pytest.raises(CellError, match="could not be started"):
        cells.run("popen//python=/does/not/exist", "1")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "SPEC"),
        ("nowhere", "nowhere"),
        ("'popen", "quotation"),
        ("-i absent popen", "no variable absent"),
        ("--wrong popen", "wrong"),
    ],
)
def test_a_wrong_line_is_told_in_one_line(cells: Cells, line: str, told: str) -> None:
    error = pytest.importorskip("IPython.core.error").UsageError
    with pytest.raises(error, match=told):
        cells.run(line, "1")


def test_ipython_finds_it() -> None:
    registered = {}
    shell = SimpleNamespace(
        user_ns={},
        register_magic_function=lambda function, kind, name: registered.update({name: function}),
        magics_manager=SimpleNamespace(magics={"cell": registered}),
    )
    execnet.load_ipython_extension(shell)
    assert "SPEC" in registered["execnet"].__doc__
    execnet.unload_ipython_extension(shell)
    assert registered == {}
