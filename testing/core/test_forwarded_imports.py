"""Modules of the coordinator that workers import: what comes, in how many requests, what does not.

Requests are counted where they arrive. Whoever waits while the receiver thread is busy is in
``test_waiting_imports.py``.
"""

from __future__ import annotations

import importlib.machinery
import re
import sys
import textwrap
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
from import_projects import Project, Worker
from import_trees import compare
from tools import BOUND_S, MakeGateway, find_python, run_python

from execnet import Gateway, Group, ProtocolError, RemoteError
from execnet._imports.library import Library
from execnet.gateway_base import Message, dumps_internal

PYTHONS = ["2.7", "3.6", "3.13"]


@pytest.fixture
def worker(makegateway: MakeGateway, tmp_path: Path) -> Worker:
    """A worker in an empty folder."""
    return Worker(makegateway(f"popen//chdir={tmp_path / 'there'}"))


@pytest.fixture(params=PYTHONS)
def any_worker(request: pytest.FixtureRequest, group: Group, tmp_path: Path) -> Worker:
    """As above, on old and new Pythons that share nothing with this one."""
    python = find_python(request.param)
    return Worker(group.makegateway(f"popen//python={python}//chdir={tmp_path / 'there'}"))


class TestWhatComes:
    def test_a_package_comes_with_all_that_it_imports_in_one_request(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(
            pkg__init="from .sub import deep\nfrom pkg import other as there\n",
            pkg__sub__init="",
            pkg__sub__deep="from ..star import *\nfrom .. import late\nfound = shared + late.one\n",
            pkg__star="shared = 40\n",
            pkg__late="one = 2\n",
            pkg__other="import json\n",
        )
        any_worker.gateway.forward_imports(["pkg"])
        assert any_worker.run("import pkg; found = pkg.deep.found") == 42
        assert any_worker.requests == 1

    def test_200_modules_take_two_requests_at_the_most(
        self, any_worker: Worker, project: Project
    ) -> None:
        names = [f"m{number}" for number in range(100)]
        later = [f"later{number}" for number in range(98)]
        project.write(big__init=f"from . import {', '.join(names)}\n", big__sub__init="")
        project.write(**{f"big__{name}": "X = 1\n" for name in names})
        project.write(**{f"big__sub__{name}": "X = 1\n" for name in later})
        any_worker.gateway.forward_imports(["big"])
        code = f"""
import big, importlib, sys
for name in {later!r}:
    importlib.import_module("big.sub." + name)
found = len([name for name, module in list(sys.modules.items()) if name[:3] == "big" and module])
"""
        assert any_worker.run(code) == 200
        assert any_worker.requests == 2

    def test_nothing_is_written_there(
        self, any_worker: Worker, project: Project, tmp_path: Path
    ) -> None:
        project.write(pkg__init="from . import one\n", pkg__one="")
        any_worker.gateway.forward_imports(["pkg"])
        assert any_worker.run("import pkg; found = 1") == 1
        assert list((tmp_path / "there").iterdir()) == []
        assert list(project.folder.rglob("*.pyc")) == []

    def test_it_comes_before_what_is_installed_there(
        self, worker: Worker, project: Project, tmp_path: Path
    ) -> None:
        project.write(pkg__init="found = 'new'\n")
        old = Project(tmp_path / "old")
        old.write(pkg__init="found = 'old'\n", pkg__gone="", lib="found = 'old'\n")
        project.write(lib="found = 'new'\n", more="found = 'more'\n")
        worker.gateway.forward_imports(["pkg"], allow=["lib", "mo*"])
        worker.run(f"import sys; sys.path.insert(0, {str(tmp_path / 'old')!r}); found = 1")
        assert worker.run("from pkg import found") == "new"
        assert "No module named 'pkg.gone'" in worker.run("import pkg.gone")
        assert worker.run("from lib import found") == "old", "what is allowed is a reserve"
        assert worker.run("from more import found") == "more"

    def test_what_was_imported_before_stays(
        self, worker: Worker, project: Project, tmp_path: Path
    ) -> None:
        project.write(pkg__init="found = 'new'\n", pkg__sub="found = 'new'\n")
        Project(tmp_path / "old").write(pkg__init="found = 'old'\n", pkg__sub="found = 'old'\n")
        worker.run(
            f"import sys; sys.path.insert(0, {str(tmp_path / 'old')!r}); import pkg; found=1"
        )
        worker.gateway.forward_imports(["pkg"])
        assert worker.run("from pkg.sub import found") == "old"

    def test_a_namespace_a_zip_and_a_generated_module_come(
        self, worker: Worker, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.write(space__part="found = 1\n", space__deep__er="from ..part import found\n")
        with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
            archive.writestr("packed/__init__.py", "from .inner import found\n")
            archive.writestr("packed/inner.py", "found = 2\n")
            archive.writestr("packed/data/words.txt", "three")
        monkeypatch.syspath_prepend(tmp_path / "packed.zip")
        made = types.ModuleType("made")
        made.__spec__ = importlib.machinery.ModuleSpec("made", Told("found = 3\n"), origin="<made>")
        monkeypatch.setitem(sys.modules, "made", made)

        worker.gateway.forward_imports(["space", "packed", "made"])
        assert worker.run("from space.deep.er import found") == 1
        assert worker.run("import space; found = getattr(space, '__file__', None)") is None
        assert worker.run("from packed import found") == 2
        text = "import pkgutil; found = pkgutil.get_data('packed', 'data/words.txt')"
        assert worker.run(text) == b"three"
        assert worker.run("from made import found") == 3

    def test_pkgutil_sees_what_is_below(self, any_worker: Worker, project: Project) -> None:
        project.write(pkg__init="", pkg__one="", pkg__sub__init="", pkg__sub__two="")
        project.write(pkg__space__three="")  # of which Python tells nothing
        any_worker.gateway.forward_imports(["pkg"], deny=["pkg.sub.two"])
        code = """
import pkg, pkgutil
found = [list(one)[1:] for one in pkgutil.walk_packages(pkg.__path__, "pkg.")]
"""
        assert any_worker.run(code) == [["pkg.one", False], ["pkg.sub", True]]

    def test_a_traceback_has_the_lines_that_were_sent(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(pkg="def fail():\n    raise KeyError('told')  # here\n")
        any_worker.gateway.forward_imports(["pkg"])
        channel = any_worker.gateway.remote_exec("import pkg; pkg.fail()")
        with pytest.raises(RemoteError) as caught:
            channel.waitclose(BOUND_S)
        file = re.escape(str(project.folder / "pkg.py"))
        assert re.search(f'File "{file}", line 2, in fail', caught.value.formatted)
        assert "raise KeyError('told')  # here" in caught.value.formatted

    def test_modules_go_as_they_are_found(
        self, any_worker: Worker, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.write(
            pkg__init=f"TEXT = {'x' * 70_000!r}\nimport sys; sys.begun()\nfrom . import late\n",
            pkg__late="from . import last\n",
            pkg__last="found = 3\n",
        )
        begun, find = threading.Event(), Library.find

        def find_late(library: Library, name: str) -> Any:
            assert name != "pkg.late" or begun.wait(BOUND_S)
            return find(library, name)

        any_worker.gateway.forward_imports(["pkg"])
        code = "import sys; sys.begun = lambda: channel.send(0); sys.begun(); channel.receive()"
        channel = any_worker.gateway.remote_exec(code)
        channel.receive(BOUND_S)
        channel.setcallback(lambda item: begun.set())
        monkeypatch.setattr(Library, "find", find_late)
        assert any_worker.run("import pkg; found = pkg.late.last.found") == 3
        assert any_worker.requests == 1
        channel.send(None)

    def test_it_goes_via_another_worker(self, group: Group, project: Project) -> None:
        project.write(pkg__init="from . import one\n", pkg__one="found = 1\n")
        python = f"python={find_python('3.6')}"
        group.makegateways(["popen//id=hop", f"popen//{python}//via=hop//id=end//imports=pkg"])
        worker = Worker(group["end"])
        assert worker.run("from pkg.one import found") == 1
        assert worker.requests == 1

    def test_python_2_gets_it_without_annotations(self, group: Group, project: Project) -> None:
        project.write(
            pkg="# \u00fc\nfrom __future__ import division\ndef found(a: int) -> int: return a\n",
            data="from dataclasses import dataclass\n@dataclass\nclass A:\n    a: int\n",
        )
        worker = Worker(group.makegateway(f"popen//python={find_python('2.7')}"))
        worker.gateway.forward_imports(["pkg", "data"])
        assert worker.run("import pkg; found = pkg.found(1)") == 1
        assert "reads annotations (dataclass" in worker.run("import data")

    @pytest.mark.parametrize("version", ["2.7", "3.6"])
    def test_annotations_of_the_future_do_not_travel_to_the_past(
        self, group: Group, project: Project, version: str
    ) -> None:
        pkg = """
            from __future__ import (division,
                annotations)
            limit: int = 7

            class Row:
                cells: list[str | int]
                count: Unknown = 3

            def found(a: list[str] | None = None) -> dict[str, int]:
                half: float = limit / 2
                return [a, half, Row.count]
        """
        project.write(pkg=textwrap.dedent(pkg))
        worker = Worker(group.makegateway(f"popen//python={find_python(version)}"))
        worker.gateway.forward_imports(["pkg"])
        assert worker.run("import pkg; found = pkg.found()") == [None, 3.5, 3]


class Told:
    """A loader that has a source and no file."""

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, name: str) -> str:
        return self.source

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(self.source, vars(module))


@pytest.mark.parametrize("seed", range(8))
def test_a_random_package_imports_there_as_here(tmp_path: Path, seed: int) -> None:
    here, there = compare(tmp_path, seed)
    assert there == here


class TestWhatDoesNotCome:
    def test_only_what_was_named_leaves_this_machine(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(pkg__init="", pkg__secret__init="", pkg__secret__key="", other="")
        any_worker.gateway.forward_imports(["pkg"], deny=["pkg.secret"])
        assert "No module named" in any_worker.run("import pkg.secret")
        assert "No module named" in any_worker.run("import pkg.secret.key")
        assert "other" in any_worker.run("import other")

    def test_a_missing_module_says_what_would_help(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(pkg="import other\n", other="")
        any_worker.gateway.forward_imports(["pkg"])
        text = any_worker.run("import pkg")
        assert re.match("(Module|Import).*Error: No module named 'other' in Python ", text)
        assert "forward_imports(allow=['other'])" in text
        assert "xdeploy" in text

    def test_one_that_is_only_looked_for_is_no_error(
        self, worker: Worker, project: Project
    ) -> None:
        project.write(pkg__init="")
        worker.gateway.forward_imports(["pkg"], allow=["extra"])
        code = "from importlib.util import find_spec as f; import pkg; "
        code += "found = [f('other'), f('extra'), f('pkg.none')]"
        assert worker.run(code) == [None, None, None]

    def test_an_extension_in_c_says_so_and_can_be_done_without(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(
            pkg__init="try:\n    from . import fast\nexcept ImportError:\n    fast = None\n"
        )
        (project.folder / "pkg" / f"fast{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
        any_worker.gateway.forward_imports(["pkg"])
        assert any_worker.run("import pkg; found = pkg.fast") is None
        text = any_worker.run("import pkg.fast")
        assert text.startswith("ImportError: pkg.fast is a C extension (")
        assert "xdeploy" in text

    def test_bytecode_alone_says_so(self, worker: Worker, project: Project) -> None:
        (project.folder / "bare.pyc").write_bytes(b"")
        worker.gateway.forward_imports(["bare"])
        assert "has no source that could be sent" in worker.run("import bare")

    @pytest.mark.parametrize("version", ["2.7", "3.6"])
    def test_a_syntax_that_is_too_new_says_for_whom(
        self, group: Group, project: Project, version: str
    ) -> None:
        project.write(newer="\nif (found := 1):\n    pass\n", wrong="def :\n")
        worker = Worker(group.makegateway(f"popen//python={find_python(version)}"))
        worker.gateway.forward_imports(["newer", "wrong"])
        text = worker.run("import newer")
        assert re.match(rf"ImportError: newer, .*newer\.py.* than {version} of .*: line 2: ", text)
        assert worker.run("import wrong").startswith("SyntaxError"), "as it would here"

    @pytest.mark.parametrize(
        ("names", "more", "error"),
        [
            ("pkg", {}, TypeError),
            (["no_such_module"], {}, ValueError),
            (["json"], {}, ValueError),
            (["__main__"], {}, ValueError),
            (["a b"], {}, ValueError),
            (["p*"], {}, ValueError),
            ([], {"allow": "lib"}, TypeError),
            ([], {"deny": ["a-b"]}, ValueError),
        ],
    )
    def test_names_that_make_no_sense_are_refused_here(
        self, gateway: Gateway, names: Any, more: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            gateway.forward_imports(names, **more)

    def test_the_standard_library_of_the_worker_is_its_own(
        self, group: Group, project: Project
    ) -> None:
        project.write(asynchat="found = 'ours'\n", smtpd="found = 'ours'\n")
        worker = Worker(group.makegateway(f"popen//python={find_python('3.6')}"))
        known = sys.version_info < (3, 12)  # which has these no more
        if not known:
            worker.gateway.forward_imports(["asynchat", "smtpd"])
            assert worker.run("import asynchat, smtpd; found = smtpd.__doc__[:3]") == "An "

    def test_a_forked_process_asks_for_nothing(self, worker: Worker, project: Project) -> None:
        project.write(pkg__init="", pkg__one="", later="")
        worker.gateway.forward_imports(["pkg", "later"])
        code = """
import os, pkg
read, write = os.pipe()
if not os.fork():
    try:
        import later
    except ImportError as exc:
        os.write(write, str(exc).encode())
    os._exit(0)
os.wait()
found = os.read(read, 1000)
"""
        assert b"forked" in worker.run(code)
        assert worker.run("import later; found = 1") == 1


class TestFiles:
    @pytest.fixture(autouse=True)
    def package(self, project: Project) -> None:
        project.write(pkg__init="", pkg__secret="KEY = 1\n")
        folder = project.folder / "pkg"
        (folder / "data" / "more").mkdir(parents=True)
        (folder / "data" / "words.txt").write_text("wörds", "utf-8")
        (folder / "data" / "more" / "x").write_bytes(b"x")
        (folder / ".hidden").touch()
        (project.folder / "outside.txt").touch()
        (folder / "link.txt").symlink_to(project.folder / "outside.txt")

    def test_they_are_read_with_pkgutil(self, any_worker: Worker) -> None:
        any_worker.gateway.forward_imports(["pkg"])
        code = "import pkgutil; found = pkgutil.get_data('pkg', 'data/words.txt').decode('utf-8')"
        assert any_worker.run(code) == "wörds"

    @pytest.mark.parametrize("version", ["3.10", "3.13"])
    def test_they_are_read_with_importlib_resources(self, group: Group, version: str) -> None:
        worker = Worker(group.makegateway(f"popen//python={find_python(version)}"))
        worker.gateway.forward_imports(["pkg"])
        code = """
from importlib.resources import files
data = files("pkg") / "data"
found = [
    data.joinpath("words.txt").read_text("utf-8"),
    (data / "more" / "x").read_bytes(),
    sorted((one.name, one.is_dir(), one.is_file()) for one in data.iterdir()),
    (data / "none").is_file(), sorted(one.name for one in files("pkg").iterdir()),
]
"""
        assert worker.run(code) == [
            "wörds",
            b"x",
            [("more", True, False), ("words.txt", False, True)],
            False,
            ["__init__.py", "data", "secret.py"],
        ]

    def test_old_versions_read_them_with_its_functions(self, group: Group) -> None:
        worker = Worker(group.makegateway(f"popen//python={find_python('3.8')}"))
        worker.gateway.forward_imports(["pkg"])
        code = "import importlib.resources as r; found = [r.read_text('pkg', 'secret.py'), "
        code += "sorted(r.contents('pkg')), r.is_resource('pkg', 'data')]"
        assert worker.run(code) == ["KEY = 1\n", ["__init__.py", "data", "secret.py"], False]

    @pytest.mark.parametrize(
        "place", ["../outside.txt", "link.txt", ".hidden", "secret.py", "Secret.PY", "none", "data"]
    )
    def test_no_others_leave_this_machine(self, worker: Worker, place: str) -> None:
        worker.gateway.forward_imports(["pkg"], deny=["pkg.secret"])
        text = worker.run(f"import pkgutil; found = pkgutil.get_data('pkg', {place!r})")
        assert re.match("FileNotFoundError: .*no such file of package pkg", text)


class TestReload:
    def test_a_file_that_was_edited_is_imported_anew(
        self, any_worker: Worker, project: Project
    ) -> None:
        project.write(pkg__init="from . import one\n", pkg__one="found = 1\n", pkg__two="")
        any_worker.gateway.forward_imports(["pkg"])
        assert any_worker.run("from pkg.one import found") == 1
        project.write(pkg__one="found = 2222\n", pkg__three="found = 3\n")
        assert any_worker.run("from pkg.one import found") == 1
        assert any_worker.gateway.reload_imports() == ["pkg.one"]
        assert any_worker.run("import pkg; found = pkg.one.found") == 2222
        assert any_worker.run("from pkg.three import found") == 3
        assert any_worker.gateway.reload_imports() == []

    def test_late_workers_get_what_was_read_first(self, group: Group, project: Project) -> None:
        project.write(pkg="found = 1\n")
        first = Worker(group.makegateway("popen//imports=pkg"))
        assert first.run("from pkg import found") == 1
        project.write(pkg="found = 2222\n")
        late = Worker(group.makegateway("popen//imports=pkg"))
        assert late.run("from pkg import found") == 1
        assert group.reload_imports() == ["pkg"]
        assert [worker.run("from pkg import found") for worker in (first, late)] == [2222, 2222]


PROGRAM = """
import execnet
with execnet.Group() as group:
    channel = group.makegateway("popen//imports=True//chdir=there").remote_exec(
        "import helper, sub.deep; channel.send((helper.found, sub.deep.found))"
    )
    print(channel.receive(30))
"""


class TestSpecs:
    def test_true_forwards_what_is_beside_the_main_program(
        self, project: Project, tmp_path: Path
    ) -> None:
        project.write(main=PROGRAM, helper="found = 1\n", sub__deep="found = 2\n")
        code = (
            f"import runpy; runpy.run_path({str(project.folder / 'main.py')!r}, None, '__main__')"
        )
        result = run_python(
            "import sys; sys.path.insert(0, sys.argv[1]); import os; os.chdir(sys.argv[1]);"
            "sys.modules['__main__'].__file__ = sys.argv[1] + '/main.py';"
            f"{code}",
            str(project.folder),
        )
        assert result.stdout == "(1, 2)\n", result.stderr

    @pytest.mark.parametrize("place", ["home", "/", "lib/site-packages"])
    def test_true_is_refused_for_folders_that_have_all_sorts_of_things(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        main = sys.modules["__main__"]  # in a worker of pytest-xdist it has no file
        monkeypatch.setattr(main, "__file__", str(folder / "main.py"), raising=False)
        monkeypatch.setattr(main, "__spec__", None, raising=False)
        with pytest.raises(ValueError, match=r"imports=True .* so say which modules"):
            group.makegateway("popen//imports=True")
        assert len(group) == 0

    @pytest.mark.parametrize("value", ["", "=a-b", "=no_such_module", "=json"])
    def test_others_are_refused_before_a_worker_is_started(self, group: Group, value: str) -> None:
        with pytest.raises(ValueError, match="spec 'popen//imports"):
            group.makegateway(f"popen//imports{value}")


class TestDoors:
    """What a worker asks that means harm."""

    def ask(self, gateway: Gateway, *requests: object) -> None:
        data = b"".join(
            Frame(Message.IMPORT, number, request) for number, request in enumerate(requests, 1)
        )
        gateway.remote_exec("channel.gateway._io.write(channel.receive())").send(data)

    @pytest.mark.parametrize(
        "request_",
        [7, (), ("source", "pkg", "", True), ("module", b"pkg", "", 1), ("module", 1, 1, 1)],
    )
    def test_a_request_that_is_none_ends_its_gateway(
        self, gateway: Gateway, project: Project, request_: object
    ) -> None:
        project.write(pkg="")
        gateway.forward_imports(["pkg"])
        waiting = gateway.newchannel()
        self.ask(gateway, request_)
        with pytest.raises(ProtocolError, match="asked for what is not a module"):
            waiting.receive(BOUND_S)

    def test_no_others_are_read_or_imported(self, gateway: Gateway, project: Project) -> None:
        project.write(pkg="", other="raise SystemExit\n")
        gateway.forward_imports(["pkg"])
        answers = []
        gateway._send = lambda *frame: answers.append(frame)  # type: ignore[method-assign]
        for name in ["other", "os", "pkg.none", "pkg..x", "", "../other", "__main__", "x" * 900]:
            forwarding = gateway.get_forwarding()
            payloads = list(forwarding._answers("module", name, "", False))
            assert b"SystemExit" not in b"".join(payloads)
            assert len(b"".join(payloads)) < 200
        assert "other" not in sys.modules

    def test_a_worker_that_asks_and_never_reads_keeps_no_other_waiting(
        self, group: Group, project: Project
    ) -> None:
        project.write(pkg=f"found = 1\nX = {'x' * 100_000!r}\n")
        bad, good = group.makegateways(["popen//imports=pkg"] * 2)
        waiting = bad.newchannel()
        self.ask(bad, *[("file", "pkg", "", False)] * 900)
        assert Worker(good).run("from pkg import found") == 1
        self.ask(bad, *[("syntax", "pkg", "", False)] * 5000)
        with pytest.raises(ProtocolError, match="more than 1000"):
            waiting.receive(BOUND_S)


def Frame(code: int, channel_id: int, item: object) -> bytes:
    import struct

    data = dumps_internal(item)
    return struct.pack("!bii", code, channel_id, len(data)) + data
