"""``popen//forkserver``: each worker is a fork of a template, and otherwise as a fresh one.

How templates and workers end is in ``test_forkserver_ends.py``.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forkservers import PIDS, spare_of
from tools import MakeGateway, find_python, run_python, wait_until

import execnet
from execnet import BootstrapError, Group
from execnet.gateway_base import ExecModel

pytestmark = [
    pytest.mark.usefixtures("templates"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

SPEC = "popen//forkserver"
MODULE = "import os\nPID = os.getpid()\n"
PYTHONS = ["3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13"]


@pytest.fixture(params=["spare", "fork"])
def warm(request: pytest.FixtureRequest, makegateway: MakeGateway) -> None:
    """Have a template whose next worker is the one in reserve, or forked when it is asked for."""
    spare = spare_of(makegateway(SPEC))
    if request.param == "fork":
        os.kill(spare, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{spare}").exists())


def evaluate(gateway: execnet.Gateway, code: str, imports: str = "os, sys") -> Any:
    return gateway.remote_exec(f"import {imports}; channel.send({code})").receive(10)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that workers import from, with a module and one in a package."""
    (tmp_path / "preloaded.py").write_text(MODULE)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


class TestTemplate:
    def test_workers_are_children_of_one_process_that_is_a_child_of_ours(
        self, group: Group
    ) -> None:
        gateways = group.makegateways([SPEC] * 3)
        pids = [gateway.remote_exec(PIDS).receive(10) for gateway in gateways]
        [template] = {parent for _, parent in pids}
        assert len({pid for pid, _ in pids} | {template, os.getpid()}) == 5
        stat = Path(f"/proc/{template}/stat")
        if stat.exists():
            assert int(stat.read_bytes().rpartition(b") ")[2].split()[1]) == os.getpid()

    def test_it_serves_all_groups(self, makegateway: MakeGateway) -> None:
        first = evaluate(makegateway(SPEC), "os.getppid()")
        with Group([SPEC]) as other:
            assert evaluate(other["gw0"], "os.getppid()") == first

    def test_a_worker_says_its_own_process_id(self, makegateway: MakeGateway) -> None:
        gateway = makegateway(SPEC)
        assert gateway._rinfo().pid == evaluate(gateway, "os.getpid()")

    def test_there_is_one_for_each_list_of_modules(self, makegateway: MakeGateway) -> None:
        specs = [SPEC, f"{SPEC}//preload=calendar", f"{SPEC}//preload=calendar,json"]
        parents = [evaluate(makegateway(spec), "os.getppid()") for spec in specs * 2]
        assert parents[:3] == parents[3:]
        assert len(set(parents)) == 3

    def test_there_is_one_for_what_decides_about_imports(
        self, makegateway: MakeGateway, module: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = makegateway(SPEC)
        monkeypatch.setenv("PYTHONPATH", str(module / "package"))
        second = makegateway(SPEC)
        folders = [str(module), str(module / "package")]
        for gateway, folder, other in (first, *folders), (second, *folders[::-1]):
            assert evaluate(gateway, f"({folder!r} in sys.path, {other!r} in sys.path)") == (
                True,
                False,
            )

    def test_its_workers_write_no_bytecode_if_the_spec_says_so(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        specs = f"{SPEC}//dont_write_bytecode", SPEC
        flags = [evaluate(makegateway(spec), "sys.dont_write_bytecode") for spec in specs]
        assert flags == [True, False]

    def test_many_workers_at_once(self, group: Group) -> None:
        gateways = group.makegateways([SPEC] * 32)
        channels = [gateway.remote_exec(PIDS) for gateway in gateways]
        assert len({channel.receive(30) for channel in channels}) == 32

    def test_it_keeps_one_in_reserve(self, makegateway: MakeGateway) -> None:
        spare = spare_of(makegateway(SPEC))
        gateway = makegateway(SPEC)
        assert evaluate(gateway, "os.getpid()") == spare
        assert spare_of(gateway) != spare

    def test_a_large_environment_reaches_the_one_in_reserve(
        self, warm: None, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(10):
            monkeypatch.setenv(f"LARGE{number}", "x" * 100_000)
        code = "sum(len(os.environ['LARGE%d' % n]) for n in range(10))"
        assert evaluate(makegateway(SPEC), code) == 1_000_000

    def test_gateways_from_several_threads_get_one_template(self, group: Group) -> None:
        with ThreadPoolExecutor(8) as threads:
            gateways = list(threads.map(lambda _: group.makegateway(SPEC), range(8)))
        assert len({evaluate(gateway, "os.getppid()") for gateway in gateways}) == 1

    def test_workers_share_what_it_loaded(self, makegateway: MakeGateway) -> None:
        # Objects that no collection looks at; else each worker would get copies of all pages.
        if sys.implementation.name == "cpython":
            assert evaluate(makegateway(SPEC), "gc.get_freeze_count()", "gc") > 1000


class TestPreload:
    def test_a_module_is_imported_once_for_all_workers(self, group: Group, module: Path) -> None:
        gateways = group.makegateways([f"{SPEC}//preload=preloaded"] * 2)
        for gateway in gateways:
            code = "sys.modules['preloaded'].PID == os.getppid()"
            assert evaluate(gateway, code) is True

    def test_modules_in_packages_and_several(self, makegateway: MakeGateway, module: Path) -> None:
        gateway = makegateway(f"{SPEC}//preload=package.inner,preloaded")
        names = "package", "package.inner", "preloaded"
        assert evaluate(gateway, f"[name in sys.modules for name in {names}]") == [True] * 3

    def test_what_is_not_asked_for_is_not_imported(
        self, makegateway: MakeGateway, module: Path
    ) -> None:
        assert evaluate(makegateway(SPEC), "'preloaded' in sys.modules") is False

    def test_a_module_is_found_where_the_coordinator_stands(
        self, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "here", "there":
            (tmp_path / name).mkdir()
            (tmp_path / name / "local.py").write_text(f"NAME = {name!r}\n")
            monkeypatch.chdir(tmp_path / name)
            gateway = makegateway(f"{SPEC}//preload=local")
            assert evaluate(gateway, "sys.modules['local'].NAME") == name

    def test_one_that_is_missing_is_reported_by_name(self, makegateway: MakeGateway) -> None:
        with pytest.raises(BootstrapError, match="'no_such_module' can't be imported") as info:
            makegateway(f"{SPEC}//preload=calendar,no_such_module")
        assert str(info.value).startswith("gw0 could not be started: the template ")
        assert "ModuleNotFoundError: No module named 'no_such_module'" in str(info.value)

    @pytest.mark.parametrize("failure", ["1 / 0", "raise SystemExit(3)", "not python"])
    def test_one_that_fails_is_reported_with_its_traceback(
        self, failure: str, makegateway: MakeGateway, module: Path
    ) -> None:
        (module / "failing.py").write_text(f"import os\n{failure}\n")
        with pytest.raises(BootstrapError, match="'failing' can't be imported") as info:
            makegateway(f"{SPEC}//preload=failing")
        assert f'{module / "failing.py"}", line 2' in str(info.value)

    def test_it_is_tried_again_by_the_next_gateway(
        self, makegateway: MakeGateway, module: Path
    ) -> None:
        (module / "failing.py").write_text("1 / 0\n")
        with pytest.raises(BootstrapError):
            makegateway(f"{SPEC}//preload=failing")
        (module / "failing.py").write_text("VALUE = 'mended'\n")
        gateway = makegateway(f"{SPEC}//preload=failing")
        assert evaluate(gateway, "sys.modules['failing'].VALUE") == "mended"

    def test_one_that_starts_a_thread_is_refused(
        self, makegateway: MakeGateway, module: Path
    ) -> None:
        (module / "threaded.py").write_text(
            "import threading\n"
            "wait = threading.Event().wait\n"
            "threading.Thread(target=wait, name='pacemaker', daemon=True).start()\n"
        )
        with pytest.raises(BootstrapError, match="started threads, which no fork has: pacemaker"):
            makegateway(f"{SPEC}//preload=threaded")

    def test_what_it_prints_and_reads_does_no_harm(
        self, makegateway: MakeGateway, module: Path
    ) -> None:
        (module / "noisy.py").write_text("import sys\nprint('noise')\nREAD = sys.stdin.read()\n")
        gateway = makegateway(f"{SPEC}//preload=noisy")
        assert evaluate(gateway, "sys.modules['noisy'].READ") == ""

    def test_ctrl_c_does_not_reach_it(self, makegateway: MakeGateway, module: Path) -> None:
        interrupt = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
        reset = "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        (module / "interrupted.py").write_text(interrupt + reset)
        spec = f"{SPEC}//preload=interrupted"
        template = evaluate(makegateway(spec), "os.getppid()")
        os.kill(template, signal.SIGINT)  # what Ctrl-C in a terminal sends to all
        assert evaluate(makegateway(spec), "os.getppid()") == template


class TestFreshness:
    """A forked worker differs from one that was started as little as can be."""

    STATE = """
import os, signal, sys, traceback
stacks = map(traceback.format_stack, sys._current_frames().values())
stacks = [stack for stack in stacks if "in _run_starter\\n" not in "".join(stack)]  # a moment
channel.send({
    "argv": sys.argv,
    "path": sys.path,
    "handlers": [repr(signal.getsignal(n)).split(" of ")[0] for n in range(1, signal.NSIG)],
    "environment": dict(os.environ),
    "cwd": os.getcwd(),
    "stdio": [os.readlink("/proc/self/fd/%d" % fd) for fd in range(3)],
    "descriptors": len(os.listdir("/proc/self/fd")),
    "group": os.getpgid(0) == os.getpgid(os.getppid()),
    "session": os.getsid(0),
    "executable": sys.executable,
    "flags": str(sys.flags),
    "mask": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.getfilesystemencoding()],
    "threads": len(stacks) == 2 or stacks,  # the main thread and the receiver
    "main": __import__("threading").current_thread() is __import__("threading").main_thread(),
})
"""

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
    def test_it_is_as_a_worker_that_was_started(
        self,
        warm: None,
        makegateway: MakeGateway,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # What came since the template was started reaches a fork as well.
        monkeypatch.setenv("NEW_VARIABLE", "now")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.chdir(tmp_path)
        states = [makegateway(spec).remote_exec(self.STATE).receive(10) for spec in (SPEC, "popen")]
        assert states[0] == states[1]
        assert states[0]["environment"]["NEW_VARIABLE"] == "now"
        assert states[0]["argv"] == ["-c"]

    def test_it_has_a_folder_environment_and_niceness_of_its_own(
        self, warm: None, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        own = makegateway(f"{SPEC}//chdir={tmp_path}/new//nice=3//env:VARIABLE=value")
        other = makegateway(SPEC)
        code = "(os.getcwd(), os.nice(0), os.environ.get('VARIABLE'))"
        assert evaluate(own, code) == (f"{tmp_path}/new", os.nice(0) + 3, "value")
        assert evaluate(other, code) == (os.getcwd(), os.nice(0), None)

    def test_a_folder_that_was_removed_is_where_it_stands(
        self, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "gone").mkdir()
        with monkeypatch.context() as context:
            context.chdir(tmp_path / "gone")
            (tmp_path / "gone").rmdir()
            gateway = makegateway(SPEC)
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1
        assert gateway._rinfo().cwd == ""

    def test_its_stderr_is_what_the_coordinator_has_now(
        self,
        warm: None,
        makegateway: MakeGateway,
        capfd: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        saved = os.dup(2)
        with open(tmp_path / "stderr", "wb") as file:
            os.dup2(file.fileno(), 2)
            try:
                gateway = makegateway(SPEC)
            finally:
                os.dup2(saved, 2)
                os.close(saved)
        gateway.remote_exec("import os; os.write(2, b'to the file')").waitclose(10)
        assert (tmp_path / "stderr").read_text() == "to the file"
        assert capfd.readouterr() == ("", "")

    def test_a_coordinator_without_stderr_has_workers_too(self) -> None:
        program = """
import os
os.close(2)
import execnet
with execnet.Group(["popen//forkserver"]) as group:
    code = "import os; channel.send(os.readlink('/proc/self/fd/2'))"
    print(group["gw0"].remote_exec(code).receive(), flush=True)
"""
        assert run_python(program).stdout == f"{os.devnull}\n"

    def test_random_numbers_are_its_own(self, group: Group, module: Path) -> None:
        (module / "seeded.py").write_text("import random\nrandom.seed(1)\n")
        gateways = group.makegateways([f"{SPEC}//preload=seeded"] * 3)
        numbers = {evaluate(gateway, "random.random()", "random") for gateway in gateways}
        assert len(numbers) == 3

    def test_numbers_of_numpy_are_its_own(self, group: Group, module: Path) -> None:
        (module / "numpy").mkdir()  # a stand-in: what counts is that it is asked to
        (module / "numpy" / "__init__.py").write_text("from numpy import random\n")
        (module / "numpy" / "random.py").write_text(
            "import os\nSEEDED_IN = []\ndef seed():\n    SEEDED_IN.append(os.getpid())\n"
        )
        [gateway] = group.makegateways([f"{SPEC}//preload=numpy"])
        code = "sys.modules['numpy.random'].SEEDED_IN == [os.getpid()]"
        assert evaluate(gateway, code) is True

    def test_a_handler_that_a_preloaded_module_set_is_reset(
        self, makegateway: MakeGateway, module: Path
    ) -> None:
        (module / "handling.py").write_text(
            "import signal\n"
            "signal.signal(signal.SIGUSR1, lambda *a: None)\n"
            "signal.signal(signal.SIGINT, lambda *a: None)\n"
        )
        gateway = makegateway(f"{SPEC}//preload=handling")
        # In one call: a second could begin, in another thread, before the first has ended.
        code = "import os, signal; channel.send(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)"
        channel = gateway.remote_exec(f"{code}; os.kill(os.getpid(), signal.SIGINT)")
        assert channel.receive(10) is True
        with pytest.raises(channel.RemoteError, match="keyboard-interrupted"):
            channel.waitclose(10)

    def test_it_knows_the_time_zone_of_now(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TZ", "UTC")
        makegateway(SPEC)
        monkeypatch.setenv("TZ", "XYZ-5")
        assert evaluate(makegateway(SPEC), "time.tzname[0]", "time") == "XYZ"

    def test_it_can_import_execnet_and_start_workers_itself(self, makegateway: MakeGateway) -> None:
        code = """
import execnet
with execnet.Group(["popen//forkserver", "popen"]) as group:
    channel.send(group.remote_exec("channel.send(1)").receive_each())
"""
        assert makegateway(SPEC).remote_exec(code).receive(20) == [1, 1]

    def test_it_can_start_processes_and_wait_for_them(self, makegateway: MakeGateway) -> None:
        code = "subprocess.call([sys.executable, '-c', 'raise SystemExit(5)'])"
        assert evaluate(makegateway(SPEC), code, "subprocess, sys") == 5

    def test_it_traces_into_a_file_of_its_own(self, tmp_path: Path) -> None:
        program = """
import execnet
with execnet.Group(["popen//forkserver"]) as group:
    print(group["gw0"].remote_exec("import os; channel.send(os.getpid())").receive())
"""
        run = run_python(program, EXECNET_DEBUG="1", TMPDIR=str(tmp_path))
        trace = next(tmp_path.glob(f"execnet-debug-{run.stdout.strip()}-*"))
        assert "creating workergateway" in trace.read_text()

    def test_it_ends_with_its_group_of_processes_if_asked_to(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway(f"{SPEC}//kill=group")
        assert evaluate(gateway, "os.getpgid(0) == os.getpid()") is True

    def test_execution_models(self, group: Group, execmodel: ExecModel) -> None:
        gateway = group.makegateway(f"{SPEC}//execmodel={execmodel.backend}")
        assert gateway.remote_status().execmodel == execmodel.backend
        assert gateway.remote_exec("channel.send(channel.receive())").isclosed() is False

    def test_execution_models_of_the_coordinator(self, execmodel: ExecModel) -> None:
        with Group(execmodel=execmodel.backend) as group:
            gateways = group.makegateways([SPEC] * 2)
            pids = [gateway.remote_exec(PIDS).receive(10) for gateway in gateways]
            assert len(set(pids)) == 2


class TestOtherPythons:
    @pytest.mark.parametrize("version", PYTHONS)
    def test_it_forks_any_cpython_from_3_6_on(self, version: str, group: Group) -> None:
        python = find_python(version)
        spec = f"{SPEC}//python={python}//preload=json.decoder"
        for gateway in group.makegateways([spec] * 2):
            code = "(list(sys.version_info[:2]), 'json.decoder' in sys.modules)"
            assert evaluate(gateway, code) == ([int(n) for n in version.split(".")], True)
            assert gateway.remote_exec("channel.send(channel.receive())").isclosed() is False

    def test_nothing_is_read_from_disk_there(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        gateway = makegateway(f"{SPEC}//python={sys.executable} -I -S")
        names = evaluate(gateway, "[name for name in list(sys.modules) if 'execnet' in name]")
        assert all(name.startswith("_execnet") for name in names)

    @pytest.mark.parametrize("implementation", ["pypy3.9", "pypy3.10", "pypy3.11"])
    def test_it_forks_pypy(self, implementation: str, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"{SPEC}//python={find_python(implementation)}")
        assert evaluate(gateway, "sys.implementation.name") == "pypy"

    def test_an_older_one_is_refused_in_words(self, makegateway: MakeGateway) -> None:
        with pytest.raises(BootstrapError, match=r"forkserver needs Python 3\.6 or newer"):
            makegateway(f"{SPEC}//python={find_python('2.7')}")

    @pytest.mark.parametrize("version", [PYTHONS[0], PYTHONS[-1]])
    def test_it_keeps_one_in_reserve_there_too(
        self, version: str, makegateway: MakeGateway
    ) -> None:
        spec = f"{SPEC}//python={find_python(version)}"
        spare = spare_of(makegateway(spec))
        assert evaluate(makegateway(spec), "os.getpid()") == spare

    def test_a_command_that_is_missing_is_named(self, makegateway: MakeGateway) -> None:
        with pytest.raises(BootstrapError, match=r"gw0.*no-such-python"):
            makegateway(f"{SPEC}//python=no-such-python")

    def test_a_command_that_ends_at_once_is_told_with_its_status(
        self, makegateway: MakeGateway
    ) -> None:
        with pytest.raises(BootstrapError, match="exit status 3") as info:
            makegateway(f"{SPEC}//python=sh -c 'exit 3'")
        assert info.value.exitcode == 3


class TestSpec:
    @pytest.mark.parametrize(
        ("spec", "text"),
        [
            ("forkserver", "no gateway type"),
            ("popen//forkserver=2", "forkserver has no value"),
            ("popen//forkserver=", "forkserver has no value"),
            ("ssh=nowhere//forkserver", "forkserver is for popen"),
            ("socket=localhost:1//forkserver", "forkserver is for popen"),
            ("popen//via=gw0//forkserver", "forkserver is for popen"),
            ("popen//forkserver//preload", "preload= needs a value: names of modules"),
            ("popen//forkserver//preload=", "preload= needs a value: names of modules"),
            ("popen//forkserver//preload=a,,b", "needs names of modules"),
            ("popen//forkserver//preload=a b", "needs names of modules"),
            ("popen//forkserver//preload=.a", "needs names of modules"),
        ],
    )
    def test_what_can_not_work_is_refused(self, spec: str, text: str, group: Group) -> None:
        with pytest.raises(ValueError, match=re.escape(text)):
            group.makegateway(spec)

    def test_a_system_without_fork_is_named(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "fork")
        monkeypatch.setattr(sys, "platform", "win32")
        with pytest.raises(ValueError, match="no forkserver on win32"):
            group._prepare(SPEC)

    def test_programs_may_have_a_key_preload_of_their_own(self, group: Group) -> None:
        gateway = group.makegateway("popen//preload=whatever they like")
        assert gateway.spec.preload == "whatever they like"
