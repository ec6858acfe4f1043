"""A mutation tester: changes a module in small ways and sees whether its tests notice.

    python testing/mutants.py multi xspec            30 random mutants of each
    python testing/mutants.py multi --count 0        all of them
    python testing/mutants.py multi --lines 170-250 --tests testing/core/test_multi.py

It works on a copy of the checkout, prints what the tests did not notice, and exits with status 1
if there is such a thing. Each survivor is a test that is missing, or a change that makes no
difference. Packages for this change operators and numbers; most of our mistakes would be calls
that are left out, so that deleting a statement is the first thing done here.
Start at ``Finder``.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COUNT = 30
SPARE_S = 60.0  # what a run may take beyond twice the time of the one without a change

# Module -> the tests that are to notice; another is looked for in test files of its name.
TESTS = {
    "multi": [
        "core/test_abandoned_starts.py",
        "core/test_multi.py",
        "core/test_gateway.py",
        "ends/test_termination.py",
    ],
    "_starts": [
        "core/test_abandoned_starts.py",
        "core/test_multi.py",
        "transports/test_ssh_logins.py",
    ],
    "gateway_bootstrap": [
        "core/test_abandoned_starts.py",
        "transports/test_bootstrap.py",
        "transports/test_ssh_faults.py",
    ],
    "_transports/table": ["transports/test_transports.py", "package/test_documented_specs.py"],
    "xspec": ["core/test_xspec.py"],
    "gateway_base": ["core", "streams/test_streams.py", "streams/test_conformance.py"],
}

SWAPS: dict[type[ast.AST], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.And: "or", ast.Or: "and", ast.Add: "-", ast.Sub: "+",
}  # fmt: skip


class Mutant(NamedTuple):
    """A change of one place, by offsets into the source."""

    line: int
    what: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


class Finder(ast.NodeVisitor):
    """Collects the mutants of a source; docstrings and annotations are left alone."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.mutants: list[Mutant] = []
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self.visit(ast.parse(source))

    def _offset(self, line: int, column: int) -> int:
        """Return the place of a column that counts bytes."""
        text = self._lines[line - 1].encode()[:column].decode()
        return self._starts[line - 1] + len(text)

    def _range(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._offset(node.lineno, node.col_offset)
        return start, self._offset(node.end_lineno, node.end_col_offset)

    def _text(self, node: ast.stmt | ast.expr) -> str:
        start, end = self._range(node)
        return self.source[start:end]

    def _add(self, node: ast.stmt | ast.expr, what: str, text: str) -> None:
        start, end = self._range(node)
        text += "\n" * (self.source.count("\n", start, end) - text.count("\n"))
        self.mutants.append(Mutant(node.lineno, what, start, end, text))

    def _delete(self, node: ast.stmt) -> None:
        self._add(node, f"without {self._text(node).splitlines()[0]}", "pass")

    def _between(self, left: ast.expr, right: ast.expr, operator: ast.AST) -> None:
        if text := SWAPS.get(type(operator)):
            start, end = self._range(left)[1], self._range(right)[0]
            said = self.source[start:end]
            word = said.strip(" ()\n")
            if word and "#" not in said and said.count(word) == 1:
                at = start + said.index(word)
                what = f"{word} becomes {text}"
                self.mutants.append(Mutant(left.lineno, what, at, at + len(word), text))

    # statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self._delete(node)
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._delete(node)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._delete(node)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._delete(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._delete(node)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and self._text(node.value) != "None":
            self._add(node, f"None for {self._text(node).splitlines()[0]}", "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if self._text(node.test) != "TYPE_CHECKING":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if self._text(node.test) != "True":
            self._negate(node.test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        text = self._text(test)
        self._add(test, f"not {text}", f"(not ({text}))")

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "break becomes continue", "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "continue becomes break", "break")

    # expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        lefts = [node.left, *node.comparators]
        for left, operator, right in zip(lefts, node.ops, node.comparators, strict=False):
            self._between(left, right, operator)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, node.op)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._between(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, f"{node.value} becomes {not node.value}", str(not node.value))
        elif type(node.value) is int:
            self._add(node, f"{node.value} becomes {node.value + 1}", str(node.value + 1))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts alone; where they are in the source is known from 3.12 on only."""

    def visit_Dict(self, node: ast.Dict) -> None:
        keys = [self._range(key) for key in node.keys[:2] if key is not None]
        values = [self._range(value) for value in node.values[:2]]
        if len(keys) == 2:
            first, second = ((k[0], v[1]) for k, v in zip(keys, values, strict=True))
            self._swap(node.lineno, first, second)
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        if len(node.elts) > 1:
            self._swap(node.lineno, self._range(node.elts[0]), self._range(node.elts[1]))
        self.generic_visit(node)

    def _swap(self, line: int, first: tuple[int, int], second: tuple[int, int]) -> None:
        """Exchange two parts of the source; what is between them stays."""
        one, other = self.source[slice(*first)], self.source[slice(*second)]
        between = self.source[first[1] : second[0]]
        if one != other:
            what = f"{one.splitlines()[0]} after the one that follows"
            self.mutants.append(Mutant(line, what, first[0], second[1], other + between + one))

    # what is left alone

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)


def mutants_of(source: str) -> list[Mutant]:
    """Return the mutants that Python accepts, in the order of the source."""

    def is_accepted(mutant: Mutant) -> bool:
        try:
            compile(mutant.apply(source), "mutant", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
        return True

    return sorted(filter(is_accepted, Finder(source).mutants))


class Copy:
    """A copy of the checkout in which tests run, in a process group of their own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "copy"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "_build")
        shutil.copytree(root, self.root, ignore=ignored)

    def passes(self, tests: list[str], limit_s: float | None = None) -> bool:
        """Whether the tests pass; those that take too long do not."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        popen = subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return popen.wait(limit_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if popen.poll() is None:
                os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()


def tests_of(module: str, root: Path) -> list[str]:
    """Return the test files for a module."""
    if module in TESTS:
        return [f"testing/{name}" for name in TESTS[module]]
    name = module.rpartition("/")[2].strip("_")
    return [str(path.relative_to(root)) for path in root.glob(f"testing/*/test_{name}*.py")]


def survivors(
    copy: Copy, module: str, tests: list[str], options: argparse.Namespace
) -> Iterator[tuple[Mutant, bool]]:
    """Yield mutants of a module and whether the tests passed all the same."""
    count, (first, _, last) = options.count, options.lines.partition("-")
    path = copy.root / "execnet" / f"{module}.py"
    source = path.read_text("utf-8")
    mutants = [m for m in mutants_of(source) if int(first or 1) <= m.line <= int(last or m.line)]
    if 0 < count < len(mutants):
        mutants = sorted(random.Random(options.seed).sample(mutants, count))
    start = time.monotonic()
    if not copy.passes(tests):
        raise SystemExit(f"{module}: the tests fail without a change: {' '.join(tests)}")
    limit_s = 2 * (time.monotonic() - start) + SPARE_S
    for mutant in mutants:
        path.write_text(mutant.apply(source), "utf-8")
        yield mutant, copy.passes(tests, limit_s)
    path.write_text(source, "utf-8")


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print what survived of each module; return 1 if anything did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="+", help="as in: multi, _transports/table")
    parser.add_argument("--count", type=int, default=COUNT, help="how many of each; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--lines", default="-", help="only these, as in 10-20, 10- or -20")
    parser.add_argument("--tests", nargs="+", help="the test files that are to notice")
    options = parser.parse_args(arguments)
    total = survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Copy(root, Path(folder))
        for module in options.modules:
            tests = options.tests or tests_of(module, root)
            for mutant, passed in survivors(copy, module, tests, options):
                total, survived = total + 1, survived + passed
                if passed:
                    print(f"execnet/{module}.py:{mutant.line}: {mutant.what}", flush=True)
    print(f"{survived} of {total} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
