"""Writes the pytest projects that ``test_xdist.py`` runs.

Nothing is run here. Each project has a ``conftest.py`` that writes what
reaches pytest's reporting process, one JSON object a line, into the file that
the variable ``OUTCOMES`` names. Start at ``write_big_project``.
"""

from __future__ import annotations

from pathlib import Path

RECORDER = '''
import json
import os

import pytest


def text_of(longrepr):
    return None if longrepr is None else str(longrepr)


def worker_of(report):
    """Name the worker that sent a report, without xdist the process itself."""
    node = getattr(report, "node", None)
    return "main" if node is None else node.gateway.id


class Recorder:
    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")

    def write(self, kind, **fields):
        print(json.dumps(dict(fields, kind=kind)), file=self.file, flush=True)

    def pytest_runtest_logreport(self, report):
        self.write(
            "phase",
            nodeid=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            worker=worker_of(report),
            location=report.location,
            wasxfail=getattr(report, "wasxfail", None),
            longrepr=text_of(report.longrepr),
            sections=report.sections,
            properties=report.user_properties,
            keywords=sorted(report.keywords),
        )

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        if when != "runtest":
            return  # each worker collects for itself, and warns for itself
        message = warning_message.message
        self.write(
            "warning",
            nodeid=nodeid,
            category=type(message).__name__,
            text=str(message),
            args=[repr(arg) for arg in message.args],
        )


def pytest_configure(config):
    path = os.environ.get("OUTCOMES")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path))
'''

INI = """
[pytest]
markers = smoke: a mark of this project
disable_test_id_escaping_and_forfeit_all_rights_to_community_support = true
junit_family = xunit2
"""

SHARED_FIXTURES = """

@pytest.fixture(scope="session")
def store():
    return {"opened": 1}


@pytest.fixture(scope="module")
def shelf(store):
    shelf = list(store)
    yield shelf
    shelf.clear()


@pytest.fixture(params=["small", "large"])
def size(request):
    return request.param


@pytest.fixture
def doubled(request):
    return request.param * 2


@pytest.fixture
def broken():
    raise LookupError("the fixture is broken")


@pytest.fixture
def breaks_after():
    yield
    raise LookupError("the fixture breaks afterwards")
"""

OUTCOMES = """
import unittest

import pytest


def test_passes():
    pass


def test_fails():
    assert [1, 2, 3] == [1, 2, 4], "lists differ"


def test_long_difference():
    assert list(range(300)) == list(range(299)) + [None]


def test_raises_a_chain():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("no such key") from error


def test_recurses_too_deep():
    def down(n):
        return down(n + 1)
    with pytest.raises(RecursionError):
        down(0)


def test_exits():
    raise SystemExit(7)


def test_fails_without_traceback():
    pytest.fail("told to fail", pytrace=False)


def test_skips():
    pytest.skip("told to skip")


@pytest.mark.skipif(True, reason="the condition holds")
def test_skipped_by_mark():
    raise AssertionError


@pytest.mark.xfail(reason="known", strict=True)
def test_xfails():
    raise AssertionError


@pytest.mark.xfail(reason="was known", strict=False)
def test_xpasses():
    pass


@pytest.mark.xfail(reason="was known, strictly", strict=True)
def test_xpasses_strictly():
    pass


@pytest.mark.xfail(raises=ValueError)
def test_xfails_in_another_way():
    raise TypeError("not the error that was expected")


def test_error_in_setup(broken):
    pass


def test_error_in_teardown(breaks_after):
    pass


def test_fails_and_then_breaks(breaks_after):
    raise AssertionError("first the test")


@pytest.mark.smoke
def test_records(record_property):
    for value in [1, -(2**31), 2**60, 10**30, 1.5, True, None, "\\u20ac", [1, ["\\x00"]]]:
        record_property("value", value)


class OldStyle(unittest.TestCase):
    def test_passes(self):
        pass

    def test_fails(self):
        self.assertEqual({"a": 1}, {"a": 2})

    @unittest.skip("told to skip")
    def test_skips(self):
        raise AssertionError

    @unittest.expectedFailure
    def test_fails_as_expected(self):
        raise AssertionError
"""

FIXTURES = """
import pytest


@pytest.mark.parametrize("n", range(10))
def test_shelf(shelf, size, n):
    assert shelf == ["opened"] and size in ("small", "large")


@pytest.mark.parametrize("doubled", [1, 2, "ab"], indirect=True)
def test_indirect(doubled):
    assert doubled in (2, 4, "abab")


@pytest.mark.parametrize("n", range(6))
def test_folder(tmp_path, monkeypatch, n):
    monkeypatch.chdir(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text(str(n))


@pytest.mark.parametrize("n", range(6))
def test_broken(broken, n):
    pass
"""

CLASSES = """
import pytest


@pytest.fixture(scope="class")
def bench():
    return object()


class TestOuter:
    @pytest.mark.parametrize("n", range({count}))
    def test_outer(self, bench, n):
        assert n != {fails_at}

    class TestInner:
        @pytest.mark.parametrize("n", range({count}))
        def test_inner(self, n):
            pass


class TestOldStyle:
    def setup_method(self):
        self.ready = True

    def teardown_method(self):
        self.ready = False

    @pytest.mark.parametrize("n", range({count}))
    def test_ready(self, n):
        assert self.ready


class TestHeir(TestOldStyle):
    pass
"""

GROUPS = """
import pytest


@pytest.mark.xdist_group("alpha")
@pytest.mark.parametrize("n", range(10))
def test_alpha(n):
    assert n != 4


@pytest.mark.xdist_group(name="beta")
class TestBeta:
    @pytest.mark.parametrize("n", range(10))
    def test_beta(self, n):
        pass


@pytest.mark.parametrize(
    "n", [pytest.param(n, marks=pytest.mark.xdist_group(f"part{n % 3}")) for n in range(12)]
)
def test_parts(n):
    assert n != 7


@pytest.mark.parametrize("n", range(8))
def test_without_a_group(n):
    pass
"""

OUTPUT = """
import logging
import os
import sys
import warnings

import pytest


class OwnWarning(UserWarning):
    pass


@pytest.mark.parametrize("n", range(10))
def test_captured(n):
    print("line", n, "\\u2713 \\U0001f600")
    print("to stderr", n, file=sys.stderr)
    os.write(1, b"straight to the descriptor\\n")
    logging.getLogger("project").warning("logged %d", n)
    assert n % 5


def test_every_latin1_character():
    print("".join(map(chr, range(1, 256))))


def test_output_of_a_child(capfd):
    os.system("echo from a child")
    assert capfd.readouterr().out == "from a child\\n"


@pytest.mark.parametrize("n", range(6))
def test_warns(n):
    warnings.warn(f"warning {n}", [UserWarning, OwnWarning, DeprecationWarning][n % 3])
"""

UNICODE = """
import pytest

WORDS = ["", " ", "\\u00fcber", "\\u65e5\\u672c\\u8a9e", "\\u05e9\\u05dc\\u05d5\\u05dd",
         "e\\u0301", "\\U0001f40d", "a/b", "a::b", "[x]", "a@b", "tab\\tnewline\\n"]


@pytest.mark.parametrize("word", WORDS)
def test_word(word):
    assert word.strip() == word


@pytest.mark.parametrize("a", WORDS[2:7])
@pytest.mark.parametrize("b", WORDS[2:7])
def test_pair(a, b):
    assert a == a, b


def test_\u00e4hnlich():
    raise ValueError("\u00e4hnlich ist nicht gleich \\U0001f40d")
"""

NUMBERS = """
import pytest


@pytest.mark.parametrize("n", range({count}))
def test_number(n):
    assert n != {fails_at}


@pytest.mark.parametrize("a", [1, -2.5, None, True, object(), (1, 2), int])
@pytest.mark.parametrize("b", ["x", "y"])
def test_product(a, b):
    if a is None:
        pytest.skip(f"nothing to do for {{b}}")
"""

NOT_HERE = """
import pytest

pytest.importorskip("no_module_has_this_name")


def test_never_runs():
    raise AssertionError
"""

# What --dist=loadgroup adds to the node ids of the tests in GROUPS.
GROUP = r"@(alpha|beta|part[0-2])$"

BIG_OUTPUT_LINES = 65_536
BIG_OUTPUT_WIDTH = 80

BIG_OUTPUT = f"""
import sys


def lines(word):
    for n in range({BIG_OUTPUT_LINES}):
        yield f"{{word}} {{n}} ".ljust({BIG_OUTPUT_WIDTH} - 1, ".") + "\\n"


def test_passes():
    sys.stdout.writelines(lines("out"))


def test_fails():
    sys.stderr.writelines(lines("err"))
    raise AssertionError("x" * 1_000_000)
"""


DYING = """
import os
import signal

import pytest


@pytest.mark.parametrize("n", range(20))
def test_one(n):
    if n == 7:
        {death}
"""

FAILING_COUNT = 200

FAILING = f"""
import pytest


@pytest.mark.parametrize("n", range({FAILING_COUNT}))
def test_one(n):
    assert n % 2
"""

HANGING_ONCE = """
import threading

import pytest


@pytest.mark.parametrize("n", range(10))
def test_one(n):
    if n == 3:
        threading.Event().wait()
"""

HANGING = """
import os
import pathlib
import threading

import pytest


@pytest.mark.parametrize("n", range(10))
def test_one(n):
    pathlib.Path(f"started-{os.getpid()}").touch()
    threading.Event().wait()
"""

PLACE = """
import os


def test_place():
    print(os.getcwd())
    assert __file__ == os.path.join(os.getcwd(), "package", "test_it.py")
"""

CHANGING = """
def test_stays():
    pass


def test_changes():
    assert "{value}" == "right again"
"""


def big_output(word: str) -> str:
    """Return what a test of the project ``BIG_OUTPUT`` writes, some 5 MB."""
    width = BIG_OUTPUT_WIDTH - 1
    return "".join(f"{word} {n} ".ljust(width, ".") + "\n" for n in range(BIG_OUTPUT_LINES))


def write_project(folder: Path, files: dict[str, str]) -> Path:
    """Write a project of these files, and the recorder, to a new folder."""
    folder.mkdir()
    for name, text in {"pytest.ini": INI, "conftest.py": RECORDER, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_big_project(folder: Path) -> Path:
    """Write some 500 tests of every kind that pytest has a report for."""
    files = {
        "conftest.py": RECORDER + SHARED_FIXTURES,
        "test_outcomes.py": OUTCOMES,
        "test_fixtures.py": FIXTURES,
        "test_output.py": OUTPUT,
        "test_\u00fcnicode.py": UNICODE,
        "test_not_here.py": NOT_HERE,
        "groups/test_first.py": GROUPS,
        "groups/test_second.py": GROUPS,
    }
    for n in range(3):
        files[f"classes/test_class{n}.py"] = CLASSES.format(count=10, fails_at=n)
        files[f"deep/er/test_numbers{n}.py"] = NUMBERS.format(count=50, fails_at=9 * n)
    return write_project(folder, files)
