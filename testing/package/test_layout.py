"""The shape of the package: floors, file sizes, what is shipped and what is built.

Imports are read from the syntax trees, so that those inside functions and under
``TYPE_CHECKING`` count as well. Start at ``FLOORS``.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import KIT, ROOT, missing

import execnet

PACKAGE = ROOT / "execnet"

# Module or folder -> floor. An import goes to a lower floor, or stays on its own.
FLOORS = {
    "gateway_base": 0,
    "xspec": 0,
    "_clock": 0,
    "_conditions": 0,
    "codecs": 2,
    "_rsync.far": 0,
    "script": 0,
    "_broadcast": 1,
    "_endpoint": 1,
    "_errors": 1,
    "_features": 1,
    "_folders": 1,
    "_log": 1,
    "_mistakes": 1,
    "_multichannel": 1,
    "_reports": 1,
    "_aio": 5,
    "aio": 5,
    "joblib": 5,
    "_calls": 2,
    "_ends": 2,
    "_forkserver": 2,
    "_imports": 2,
    "_inside": 2,
    "_ship": 2,
    "_speclists": 1,
    "_specs": 2,
    "_transports": 2,
    "_resume": 2,
    "_respawn": 3,
    "_service": 2,
    "_shared": 2,
    "_via": 2,
    "gateway": 2,
    "gateway_io": 2,
    "gateway_socket": 2,
    "_frozen": 3,
    "_join": 3,
    "_output": 3,
    "_readers": 2,
    "_service.factory": 3,
    "_service.keeper": 3,
    "_service.splice": 3,
    "_starts": 3,
    "_tree": 3,
    "gateway_bootstrap": 3,
    "multi": 4,
    "_rsync": 5,
    "rsync": 5,
    "rsync_remote": 5,
    "_xdeploy": 5,
    "service": 5,
    "xdeploy": 5,
    "_deprecated": 5,
    "__init__": 6,
    "__main__": 6,
    "_cli": 6,
    "_pyinstaller": 6,
}

# The shipped module also runs on Python 2.7, whose standard library has other names.
CPYTHON_STDLIB = {"_frozen_importlib", "_frozen_importlib_external", "_queue"}  # not PyPy's
PYTHON2_STDLIB = {"Queue", "StringIO", "__builtin__", "cPickle", "thread"}
# Imported by the execution models of that name, inside functions.
GREENLET_LIBRARIES = {"eventlet", "gevent"}

Graph = dict[str, set[str]]


def floor_of(module: str) -> int | None:
    """Return the floor of a module by its name in the package, None when it has none."""
    while module and module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS.get(module)


def modules_in(package: Path) -> dict[str, Path]:
    """Return {name in the package: file}; ``script/__init__.py`` is named ``script``."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    return modules


def imported_names(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield (absolute module, names taken from it); ``parts`` is the importer's package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called, name = ast.unparse(node.func).rpartition(".")[2], node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                dots = len(name.value) - len(name.value.lstrip("."))
                base = parts[: len(parts) - dots + 1] if dots else ()
                yield ".".join((*base, name.value.lstrip("."))), []


def import_graph(package: Path) -> Graph:
    """Return {module: modules of the same package that it imports, wherever it does so}."""
    modules = modules_in(package)
    graph: Graph = {}
    for module, path in modules.items():
        parts = (package.name, *path.relative_to(package).parent.parts)
        graph[module] = edges = set()
        for name, taken in imported_names(ast.parse(path.read_text("utf-8")), parts):
            if name == package.name or name.startswith(package.name + "."):
                inner = name[len(package.name) + 1 :]
                found = {n for n in (f"{inner}.{t}".lstrip(".") for t in taken) if n in modules}
                edges |= found
                if len(found) < len(taken) or not taken:
                    edges.add(inner or "__init__")
    return graph


def find_cycle(graph: Graph) -> list[str]:
    """Return the modules of one import circle in order, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(graph.get(module, ())):
            if cycle := visit(imported, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def climbing_imports(graph: Graph) -> list[str]:
    """Return one line for each import that goes up."""
    return [
        f"{module} (floor {floor_of(module)}) imports {imported} (floor {floor_of(imported)})"
        for module, edges in graph.items()
        for imported in sorted(edges)
        if (floor_of(imported) or 0) > (floor_of(module) or 0)
    ]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph(PACKAGE)


class TestFloors:
    def test_each_module_has_a_floor(self) -> None:
        homeless = [module for module in modules_in(PACKAGE) if floor_of(module) is None]
        assert homeless == [], "add them to FLOORS, where they belong"

    def test_imports_only_go_down(self, graph: Graph) -> None:
        assert climbing_imports(graph) == []

    def test_each_imported_module_exists(self, graph: Graph) -> None:
        assert set().union(*graph.values()) - set(graph) == set()

    def test_there_is_no_import_circle(self, graph: Graph) -> None:
        assert find_cycle(graph) == []

    def test_the_graph_is_not_empty(self, graph: Graph) -> None:
        assert {"gateway_base", "xspec"} <= graph["multi"] | graph["gateway_bootstrap"]


class TestTheGraphItself:
    """The checks above are worth something only if they see every kind of import."""

    @pytest.mark.parametrize(
        "source",
        [
            "import pkg.multi",
            "import pkg.multi as m",
            "from pkg import multi",
            "from pkg.multi import Group",
            "from . import multi",
            "from .multi import Group",
            "def f():\n    from .multi import Group",
            "if TYPE_CHECKING:\n    from .multi import Group",
            "import importlib\nimportlib.import_module('pkg.multi')",
            "from importlib import import_module\nimport_module('.multi', __package__)",
            "__import__('pkg.multi')",
        ],
    )
    def test_it_sees_every_kind_of_import(self, tmp_path: Path, source: str) -> None:
        graph = self.graph_of(tmp_path, {"gateway": source, "multi": ""})
        assert graph["gateway"] == {"multi"}
        assert climbing_imports(graph) == ["gateway (floor 2) imports multi (floor 4)"]

    def test_a_name_of_the_package_itself_leads_to_its_init(self, tmp_path: Path) -> None:
        graph = self.graph_of(tmp_path, {"gateway": "from pkg import Group, multi", "multi": ""})
        assert graph["gateway"] == {"__init__", "multi"}

    def test_it_follows_relative_imports_from_a_folder(self, tmp_path: Path) -> None:
        graph = self.graph_of(tmp_path, {"script/shell": "from ..multi import x", "multi": ""})
        assert graph["script.shell"] == {"multi"}

    def test_it_finds_a_circle_on_one_floor(self, tmp_path: Path) -> None:
        graph = self.graph_of(tmp_path, {"gateway": "import pkg.gateway_io", "gateway_io": ""})
        assert find_cycle(graph) == []
        graph["gateway_io"].add("gateway")
        assert find_cycle(graph) == ["gateway", "gateway_io", "gateway"]

    def test_a_new_file_has_no_floor(self) -> None:
        assert floor_of("helpers") is None
        assert floor_of("_cli.table") == 6

    def graph_of(self, folder: Path, sources: dict[str, str]) -> Graph:
        package = folder / "pkg"
        for name, source in sources.items():
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        (package / "__init__.py").write_text("")
        return import_graph(package)


class TestFiles:
    def test_the_shipped_module_imports_only_the_standard_library(self) -> None:
        tree = ast.parse((PACKAGE / "gateway_base.py").read_text("utf-8"))
        allowed = sys.stdlib_module_names | CPYTHON_STDLIB | PYTHON2_STDLIB | GREENLET_LIBRARIES
        names = {name.partition(".")[0] for name, _ in imported_names(tree, ("execnet",))}
        assert names - allowed == set()

    def test_the_shipped_module_takes_greenlet_libraries_only_when_asked(self) -> None:
        tree = ast.parse((PACKAGE / "gateway_base.py").read_text("utf-8"))
        tree.body = [
            node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ]
        names = {name.partition(".")[0] for name, _ in imported_names(tree, ("execnet",))}
        assert names & GREENLET_LIBRARIES == set()

    def test_only_the_core_waits_at_queues_in_c_with_a_timeout(self) -> None:
        """These waits may never end; ``timed_inbox`` knows where."""
        texts = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
        made = [path.name for path, text in texts.items() if "SimpleQueue" in text]
        waits = [path.name for path, text in texts.items() if re.search(r"\.get\(.*timeout=", text)]
        assert "gateway_base.py" in made
        assert set(made) & set(waits) == set()

    def test_locks_that_an_interrupt_may_leave_taken_are_where_none_comes(self) -> None:
        """``new_lock`` and ``Condition`` take their place: doc/interrupts.rst, "Locks"."""
        excused = {
            "_conditions.py": "it makes them safe",
            "_service/keeper.py": "used by threads of a service",
        }
        made = re.compile(r"\bthreading\.(Lock|RLock|Condition|(Bounded)?Semaphore)\(")
        paths = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
        found = [
            relative.as_posix()
            for relative, path in paths.items()
            if not any(part.startswith(("far", "script")) for part in relative.parts)
            and made.search(path.read_text("utf-8"))
        ]
        assert set(found) - set(excused) == set()

    def test_no_file_is_too_long(self) -> None:
        # These are one file each as that is how they travel.
        limits = {"gateway_base.py": 3421, "socketserver.py": 1560}
        too_long = {}
        for path in PACKAGE.rglob("*.py"):
            lines = len(path.read_text("utf-8").splitlines())
            if lines >= limits.get(path.name, 600):
                too_long[path.name] = lines
        assert too_long == {}

    def test_nothing_is_left_to_do_in_the_source(self) -> None:
        marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
        found = [
            f"{path.relative_to(ROOT)}:{number}"
            for path in PACKAGE.rglob("*.py")
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if marks.search(line)
        ]
        assert found == []

    def test_the_newest_entry_of_the_changelog_is_this_version(self) -> None:
        headings = re.findall(r"^(\d\S*)\n=+$", (ROOT / "CHANGELOG").read_text("utf-8"), re.M)
        assert headings[0] == execnet.__version__

    def test_the_numbers_of_issues_rise(self) -> None:
        text = (ROOT / "ISSUES.txt").read_text("utf-8")
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", text, re.M)]
        assert len(numbers) == len(set(numbers))
        for section in text.split("\nWishes\n"):
            numbers = [int(number) for number in re.findall(r"^(\d+)\. ", section, re.M)]
            assert numbers == sorted(numbers)

    def test_the_page_of_the_tests_kit_has_a_line_for_each_module(self) -> None:
        listed = re.findall(r"^(\w+)  +\S", (KIT / "README.txt").read_text("utf-8"), re.M)
        assert listed == sorted(path.stem for path in KIT.glob("*.py"))

    def test_importing_execnet_does_not_look_for_installed_distributions(self) -> None:
        # -S: what an environment's .pth files import is not execnet's doing
        code = "import sys; sys.path.insert(0, sys.argv[1]); import execnet; print(*sys.modules)"
        command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert "execnet" in loaded
        assert "importlib.metadata" not in loaded


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, without a network: with the setuptools that is installed."""
    try:
        setuptools_version = importlib.metadata.version("setuptools")
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as absent:
        missing(f"building a wheel needs {absent.name}")
    if int(setuptools_version.partition(".")[0]) < 77:
        missing(f"building a wheel needs setuptools 77, not {setuptools_version}")
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "_build")
    shutil.copytree(ROOT, folder / "tree", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")]
    built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert built.returncode == 0, built.stdout
    return next(folder.glob("*.whl"))


class TestWheel:
    def test_it_has_exactly_the_files_of_the_package(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        files = {
            path.relative_to(ROOT).as_posix()
            for path in PACKAGE.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert inside == files
        assert "execnet/py.typed" in inside

    def test_it_is_named_after_the_version_in_the_source(self, wheel: Path) -> None:
        assert wheel.name == f"execnet-{execnet.__version__}-py3-none-any.whl"

    def test_it_needs_nothing_and_brings_one_command(self, wheel: Path) -> None:
        metadata = self.read(wheel, "METADATA")
        needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
        assert [line for line in needs if "extra ==" not in line] == []
        assert "Requires-Python: >=3.10" in metadata
        assert "License-Expression: MIT" in metadata
        assert "execnet = execnet._cli:main" in self.read(wheel, "entry_points.txt")

    def read(self, wheel: Path, name: str) -> str:
        path = f"execnet-{execnet.__version__}.dist-info/{name}"
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(path).decode("utf-8")
