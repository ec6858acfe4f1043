"""The mutation tester: which changes it makes, and that it tells what no test has noticed."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

import pytest
from tools import IS_THOROUGH, ROOT, SOURCE

spec = importlib.util.spec_from_file_location("mutants", ROOT / "testing" / "mutants.py")
assert spec is not None
mutants = importlib.util.module_from_spec(spec)
assert spec.loader is not None
spec.loader.exec_module(mutants)


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("f()", ["pass"]),
        ("raise E", ["pass"]),
        ("a.b = 'c'", ["pass"]),
        ("del a['b']", ["pass"]),
        ("def f(): return a", ["def f(): return None"]),
        ("while a: f()", ["while (not (a)): f()", "while a: pass"]),
        ("x = a < b", ["x = a <= b"]),
        ("x = a not in b", ["x = a in b"]),
        ("x = (a) is b", ["x = (a) is not b"]),
        ("x = a and b and c", ["x = a or b and c", "x = a and b or c"]),
        ("x = a + 1", ["x = a - 1", "x = a + 2"]),
        ("x = 'ä', True", ["x = 'ä', False"]),
        ("x = {'a': b, 'c': d}", ["x = {'c': d, 'a': b}"]),
        ("for a in b: break", ["for a in b: continue"]),
        ("f(\n a,\n)\nb = 'c'", ["pass\n\n\nb = 'c'"]),
    ],
)
def test_what_it_changes(source: str, changed: list[str]) -> None:
    assert [mutant.apply(source) for mutant in mutants.mutants_of(source)] == changed


@pytest.mark.parametrize(
    "source",
    [
        "'a text'",
        "def f(a: int | None = None) -> 'int + 1':\n    'its text'",
        "a: dict[str, 1 + 1]",
        "if TYPE_CHECKING:\n    import a",
        "x = f'{a + 1}'",
        "x = y",
    ],
)
def test_what_it_leaves_alone(source: str) -> None:
    assert mutants.mutants_of(source) == []


def test_all_of_a_module_are_accepted_by_python_and_keep_its_lines() -> None:
    source = (SOURCE / "execnet" / "multi.py").read_text("utf-8")
    found = mutants.mutants_of(source)
    assert len(found) > 100
    for mutant in found[::20]:
        changed = mutant.apply(source)
        assert changed != source
        assert changed.count("\n") == source.count("\n")


@pytest.mark.skipif(not IS_THOROUGH, reason="a quarter of a minute, for a thorough run")
def test_it_tells_what_no_test_has_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "execnet/__init__.py": "",
        "execnet/sample.py": """
            def f(a):
                g(a)
                return a + 1

            def g(a):
                a.append(3)
            """,
        "testing/core/test_sample.py": """
            from execnet.sample import f
            class A(list):
                def __add__(self, other):
                    return other
            def test_it():
                assert f(A()) == 1
            """,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    assert mutants.main(["sample", "--count", "0"], tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "execnet/sample.py:3: without g(a)",
        "execnet/sample.py:7: 3 becomes 4",
        "execnet/sample.py:7: without a.append(3)",
        "3 of 6 survived",
    ]
    assert "g(a)" in (tmp_path / "execnet/sample.py").read_text(), "it works on a copy"
