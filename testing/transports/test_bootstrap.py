"""Starting workers: what they find, and what is said when they can't be started."""

from __future__ import annotations

import itertools
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import BOUND_S, MakeGateway, Resources, error_of, find_python, run_python, wait_until

import execnet
from execnet import (
    ExecnetError,
    Gateway,
    Group,
    XSpec,
    gateway_base,
    gateway_bootstrap,
    gateway_io,
)
from execnet._forkserver import templates
from execnet._specs import Settings
from execnet.gateway_io import BootstrapError, HostNotFound, popen_args, popen_bootstrapline

pytestmark = pytest.mark.core


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes an executable program of shell commands."""

    def make(commands: str) -> str:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{commands}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


class TestFailures:
    def test_a_program_that_ends_at_once_is_named_with_its_exit_status(self, group: Group) -> None:
        error = error_of(group, "popen//python=/bin/false")
        assert "/bin/false -u -c" in str(error)
        assert "exit status 1" in str(error)
        assert "gw0" in str(error)

    def test_the_error_is_of_a_class_that_callers_catch(self, group: Group) -> None:
        error = error_of(group, "popen//python=/bin/false")
        assert isinstance(error, (ExecnetError, OSError, EOFError))
        assert issubclass(HostNotFound, BootstrapError)
        assert execnet.HostNotFound is HostNotFound is gateway_bootstrap.HostNotFound
        assert execnet.BootstrapError is BootstrapError

    @pytest.mark.parametrize("path", ["/does/not/exist", "does-not-exist", "/", "/etc/passwd"])
    def test_a_path_that_is_no_program_is_named(self, group: Group, path: str) -> None:
        error = error_of(group, f"popen//python={path}")
        assert path in str(error)
        assert os.strerror(2) in str(error) or os.strerror(13) in str(error)

    @pytest.mark.parametrize(
        ("commands", "words"),
        [
            ("exit 7", "exit status 7"),
            ("kill -9 $$", "killed by SIGKILL"),
            ("echo 'no such module'; exit 3", "no such module"),
            ("exec <&-; exit 5", "exit status 5"),
            ("read line; exit 6", "exit status 6"),
        ],
    )
    def test_how_a_program_ended_and_what_it_said_is_told(
        self, group: Group, program: Callable[[str], str], commands: str, words: str
    ) -> None:
        path = program(commands)
        error = error_of(group, f"popen//python={path}")
        assert path in str(error)
        assert words in str(error)

    def test_a_program_that_talks_without_end_is_stopped(
        self, group: Group, program: Callable[[str], str]
    ) -> None:
        error = error_of(group, f"popen//python={program('exec yes blah')}")
        assert "65536 bytes" in str(error)
        assert "blah\n  blah\n" in str(error)
        assert len(str(error)) < 10000

    def test_a_program_that_never_answers_is_given_up_in_time(
        self, group: Group, program: Callable[[str], str]
    ) -> None:
        start = time.monotonic()
        spec = f"popen//connect_timeout=0.2//python={program('echo so far; exec sleep 100')}"
        error = error_of(group, spec)
        assert time.monotonic() - start < 5
        assert "no answer" in str(error)
        assert "so far" in str(error)

    def test_a_program_that_closes_its_output_and_stays_is_ended(
        self, group: Group, program: Callable[[str], str]
    ) -> None:
        start = time.monotonic()
        error_of(group, f"popen//python={program('exec sleep 100 >&-')}")
        assert time.monotonic() - start < 5

    def test_a_marker_without_a_hello_is_no_worker(
        self, group: Group, program: Callable[[str], str]
    ) -> None:
        # It answers with the marker of the line that it was sent, and garbage behind it.
        echo = shlex.quote(
            "import sys, re; line = sys.stdin.readline()\n"
            "marker = re.search(r'execnet.{1,8}?([0-9a-f]{16})', line).group(1)\n"
            "sys.stdout.buffer.write(b'\\0execnet\\0' + marker.encode() + b'\\n' + b'garbage' * 9)"
        )
        error = error_of(group, f"popen//python={program(f'exec {sys.executable} -c {echo}')}")
        assert "garbage" in str(error)

    def test_an_interpreter_that_is_none_says_so(self, group: Group) -> None:
        error = error_of(group, "popen//python=/bin/cat")
        assert "/bin/cat" in str(error)

    def test_a_folder_that_cannot_be_made_is_named(self, group: Group) -> None:
        error = error_of(group, "popen//chdir=/etc/passwd/sub")
        assert "/etc/passwd/sub" in str(error)
        assert "is not a folder that it can enter or make" in str(error)

    @pytest.mark.parametrize("model", ["gevent", "eventlet"])
    def test_an_execution_model_that_the_worker_does_not_have_is_named(
        self, group: Group, model: str, tmp_path: Path
    ) -> None:
        (tmp_path / f"{model}.py").write_text("raise ImportError('not for you')")
        spec = (
            f"popen//execmodel={model}//env:X=1//python=env PYTHONPATH={tmp_path} {sys.executable}"
        )
        error = error_of(group, spec)
        assert "not for you" in str(error)


class TestFailuresOfThisSide:
    """What goes wrong here, when the process is there already, leaves nothing of it."""

    def test_a_first_line_that_cannot_be_made(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> bytes:
            raise ValueError("no first line")

        before = Resources.now()
        monkeypatch.setattr(gateway_bootstrap, "first_line", fail)
        with pytest.raises(ValueError, match="no first line"):
            group.makegateways(["popen"] * 2)
        before.assert_nothing_new()
        monkeypatch.undo()
        assert group.makegateway("popen").remote_exec("channel.send(1)").receive(BOUND_S) == 1

    @pytest.mark.parametrize(
        ("spec", "step"),
        [
            *itertools.product(
                ["popen", "popen//forkserver", "popen//via=carrier"], ["__init__", "_initreceive"]
            ),
            *itertools.product(["popen", "popen//via=carrier"], ["post_first_line"]),
        ],
    )
    def test_an_interrupt_in_each_step_of_a_gateway(
        self, group: Group, monkeypatch: pytest.MonkeyPatch, spec: str, step: str
    ) -> None:
        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        group.makegateways(["popen//id=carrier", *([spec] if "via" not in spec else [])])
        before = Resources.now()
        monkeypatch.setattr(Gateway, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            group.makegateway(spec)
        monkeypatch.undo()
        before.assert_nothing_new()
        templates.shutdown()

    def test_a_thread_that_cannot_be_started(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("can't start new thread")

        before = Resources.now()
        monkeypatch.setattr(gateway_base._thread, "start_new_thread", fail)
        with pytest.raises((RuntimeError, BootstrapError), match="new thread"):
            group.makegateway("popen")
        monkeypatch.undo()
        before.assert_nothing_new()
        assert len(group) == 0

    def test_an_id_that_somebody_else_took_meanwhile(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Member:
            id = "gw1"
            spec = XSpec("popen")

        wait_ready = gateway_bootstrap.wait_ready

        def take_its_id(gateway: Gateway, deadline: float | None) -> None:
            wait_ready(gateway, deadline)
            if "gw1" not in group:
                group._register(Member())

        before = Resources.now()
        monkeypatch.setattr(gateway_bootstrap, "wait_ready", take_its_id)
        with pytest.raises(ValueError, match="gw1"):
            group.makegateways(["popen"] * 3)
        group._gateways = [member for member in group if not isinstance(member, Member)]
        group.terminate(timeout=5)
        before.assert_nothing_new()

    def test_a_lack_of_descriptors(self) -> None:
        code = """
import os, resource, time, execnet
def left():
    return sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task")
execnet.makegateway().exit()  # whatever is opened once
while len(left()[1]) > 1: pass
highest, before = max(map(int, left()[0])), left()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
failures = 0
for room in range(12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, hard))
    try:
        gateway = execnet.makegateway()
    except OSError as exc:
        assert "Too many open files" in str(exc), exc
        failures += 1
    else:
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1
        gateway.exit()
        gateway.join()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    execnet.default_group.terminate(5)
    for _ in range(1000):  # a thread that was joined is in the lists for a moment still
        if left() == before: break
        time.sleep(0.005)
    assert left() == before, (room, left(), before)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("failed, then worked:", 0 < failures < 12)
"""
        result = run_python(code)
        assert result.stderr == ""
        assert result.stdout == "failed, then worked: True\n"


class TestBadSpecs:
    """Refused before anything is started, in words that say what is wrong and where."""

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("popen//nice=abc", "nice.*abc|abc.*nice"),
            ("popen//connect_timeout=abc", "connect_timeout.*abc|abc.*connect_timeout"),
            ("popen//python", "python"),
            ("popen//python='unclosed", "python.*unclosed|unclosed.*python"),
            ("popen//chdir", "chdir"),
            ("popen//id", "id"),
            ("popen//id=", "id"),
            ("popen//execmodel", "execmodel|execution model"),
            ("popen//execmodel=fibers", "fibers"),
            ("popen//python=a\0b", "null|NUL|\0"),
            ("popen//chdir=a\0b", "null|NUL|\0"),
            ("popen//env:A=a\0b", "null|NUL|\0"),
            ("popen//popen", "duplicate.*popen"),
            ("popen//", "empty key"),
            ("//popen", "empty key"),
            ("popen//env:A", "env:"),
        ],
    )
    def test_a_spec_that_cannot_work_says_why(self, group: Group, spec: str, words: str) -> None:
        before = Resources.now()
        with pytest.raises((ValueError, BootstrapError), match=words) as caught:
            group.makegateway(spec)
        before.assert_nothing_new()
        assert len(group) == 0
        if isinstance(caught.value, ValueError):
            assert "popen" in str(caught.value) or "execution model" in str(caught.value)

    def test_a_private_key_is_an_attribute_error(self, group: Group) -> None:
        with pytest.raises(AttributeError, match="_private"):
            group.makegateway("popen//_private=1")

    @pytest.mark.parametrize("spec", [5, b"popen", ["popen"], object()])
    def test_what_is_no_spec_at_all_is_refused(self, group: Group, spec: object) -> None:
        with pytest.raises((TypeError, ValueError)):
            group.makegateway(spec)  # type: ignore[arg-type]
        assert len(group) == 0


class TestWhatAWorkerFinds:
    def ask(self, makegateway: MakeGateway, spec: str, expression: str) -> object:
        code = f"import os, sys, stat\nchannel.send({expression})"
        return makegateway(spec).remote_exec(code).receive(BOUND_S)

    def test_its_arguments_and_name_are_those_of_python_c(self, makegateway: MakeGateway) -> None:
        for spec in "popen", f"popen//python={sys.executable}":
            assert self.ask(makegateway, spec, "[sys.argv, __name__]") == [
                ["-c"],
                "__channelexec__",
            ]

    def test_its_path_is_that_of_python_c(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = run_python("import sys; print(sys.path)").stdout.strip()
        monkeypatch.setenv("PYTHONPATH", str(Path(execnet.__file__).parent.parent))
        for spec in "popen", f"popen//python={sys.executable}":
            assert repr(self.ask(makegateway, spec, "sys.path")) == expected

    def test_execnet_can_be_imported_there(self, makegateway: MakeGateway) -> None:
        code = """
            import execnet, execnet.gateway_base
            channel.send([execnet.__file__, isinstance(channel, execnet.Channel),
                          execnet.gateway_base.__file__])
            """
        channel = makegateway("popen").remote_exec(code)
        base = Path(execnet.__file__).parent / "gateway_base.py"
        assert channel.receive(BOUND_S) == [execnet.__file__, True, str(base)]

    def test_execnet_is_taken_from_where_the_coordinator_has_it(self, tmp_path: Path) -> None:
        """Also when neither the environment nor the working directory leads there."""
        folder = str(Path(execnet.__file__).parent.parent)
        code = f"""
import os, sys
sys.path.insert(0, {folder!r})
import execnet
os.chdir({str(tmp_path)!r})
gw = execnet.makegateway("popen")
channel = gw.remote_exec("import execnet, execnet.multi; channel.send(execnet.__file__)")
assert channel.receive(10) == execnet.__file__
"""
        result = run_python(code, PYTHONPATH="")
        assert result.stderr == ""

    def test_an_execnet_in_the_working_directory_is_not_taken(self, tmp_path: Path) -> None:
        (tmp_path / "execnet.py").write_text("raise ImportError('the wrong one')")
        code = f"""
import os, execnet
makegateway = execnet.makegateway  # an import may be lazy
os.chdir({str(tmp_path)!r})
gw = makegateway("popen")
assert gw.remote_exec("channel.send(1)").receive(10) == 1
"""
        assert run_python(code).stderr == ""

    def test_its_stdin_is_empty_and_its_stdout_leads_nowhere(
        self, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        channel = makegateway("popen").remote_exec(
            """
            import os, subprocess, sys
            print("lost")
            sys.stdout.flush()
            os.write(1, b"lost as well")
            subprocess.call("echo lost too", shell=True)
            channel.send([sys.stdin.read(), os.read(0, 10), subprocess.check_output("cat")])
            try:
                input()
            except EOFError:
                channel.send("EOFError")
            """
        )
        assert channel.receive(BOUND_S) == ["", b"", b""]
        assert channel.receive(BOUND_S) == "EOFError"
        assert capfd.readouterr().out == ""

    def test_its_stderr_is_the_coordinators(
        self, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import sys; sys.stderr.write('seen'); sys.stderr.flush()"
        makegateway("popen").remote_exec(code).waitclose(BOUND_S)
        assert capfd.readouterr().err == "seen"

    def test_its_children_do_not_hold_the_stream(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen")
        channel = gateway.remote_exec(
            """
            import subprocess, os
            child = subprocess.Popen(["sleep", "20"], close_fds=False)
            channel.send(child.pid)
            os._exit(0)
            """
        )
        pid = channel.receive(BOUND_S)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        os.kill(pid, 9)  # type: ignore[arg-type]

    def test_the_hash_of_strings_differs_between_workers(self, makegateway: MakeGateway) -> None:
        hashes = {self.ask(makegateway, "popen", "hash('x' * 50)") for _ in range(2)}
        assert len(hashes) == (1 if os.environ.get("PYTHONHASHSEED", "random") != "random" else 2)


class TestKeysOfASpec:
    def ask(self, makegateway: MakeGateway, spec: str, expression: str) -> object:
        code = f"import os, sys\nchannel.send({expression})"
        return makegateway(spec).remote_exec(code).receive(BOUND_S)

    def test_chdir_is_entered_and_made_if_need_be(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        new = tmp_path / "new" / "folder with spaces"
        for folder in tmp_path, new, new:
            gateway = makegateway(f"popen//chdir={folder}")
            got = gateway.remote_exec("import os; channel.send(os.getcwd())").receive(BOUND_S)
            assert got == gateway._rinfo().cwd == str(folder)

    def test_chdir_may_be_relative(
        self, makegateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.ask(makegateway, "popen//chdir=sub", "os.getcwd()") == str(tmp_path / "sub")

    @pytest.mark.skipif(not hasattr(os, "nice"), reason="needs os.nice")
    def test_nice_is_added(self, makegateway: MakeGateway) -> None:
        expected = min(os.nice(0) + 5, 19)
        assert self.ask(makegateway, "popen//nice=5", "os.nice(0)") == expected
        assert self.ask(makegateway, "popen//nice=0", "os.nice(0)") == os.nice(0)

    def test_env_sets_variables(self, makegateway: MakeGateway) -> None:
        spec = "popen//env:EXECNET_T1=a=b//env:EXECNET_T2=//env:EXECNET_T3=\u20ac 'x' \"y\""
        values = [os.environ.get(f"EXECNET_T{n}") for n in (1, 2, 3)]
        assert values == [None] * 3
        got = self.ask(makegateway, spec, "[os.environ['EXECNET_T%d' % n] for n in (1, 2, 3)]")
        assert got == ["a=b", "", "\u20ac 'x' \"y\""]

    @pytest.mark.parametrize(("key", "expected"), [("//dont_write_bytecode", True), ("", False)])
    def test_dont_write_bytecode_is_passed_on(
        self,
        makegateway: MakeGateway,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
        expected: bool,
    ) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        assert self.ask(makegateway, f"popen{key}", "sys.dont_write_bytecode") is expected

    def test_unknown_keys_harm_nothing(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//custom=1//flag")
        assert (gateway.spec.custom, gateway.spec.flag) == ("1", True)

    def test_the_words_of_python_are_split_as_a_shell_does(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        folder = tmp_path / 'a folder\'s "name"'
        folder.mkdir()
        (folder / "my python").symlink_to(sys.executable)
        quoted = shlex.quote(str(folder / "my python"))
        spec = f"popen//python=env EXECNET_T1='one two' {quoted} -X utf8"
        code = "[os.environ['EXECNET_T1'], sys.flags.utf8_mode]"
        assert self.ask(makegateway, spec, code) == ["one two", 1]

    @pytest.mark.parametrize("options", ["-S", "-I", "-E -s", "-W error", "-X dev"])
    def test_python_may_have_options(self, makegateway: MakeGateway, options: str) -> None:
        spec = f"popen//python={sys.executable} {options}"
        assert self.ask(makegateway, spec, "sys.version_info[:2]") == sys.version_info[:2]

    @pytest.mark.parametrize("version", ["3.8", "3.10", "3.13"])
    def test_python_may_be_of_another_version(self, makegateway: MakeGateway, version: str) -> None:
        gateway = makegateway(f"popen//python={find_python(version)}")
        assert ".".join(map(str, gateway._rinfo().version_info[:2])) == version
        channel = gateway.remote_exec("channel.send(channel.receive())")
        channel.send({"item": [1, (2.5, b"x")]})
        assert channel.receive(BOUND_S) == {"item": [1, (2.5, b"x")]}


class TestNoise:
    """What comes before the worker's first word is skipped, and kept for an error."""

    def test_what_a_start_file_prints_is_skipped(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import os; os.write(1, b'Welcome!\\n\\0execnet\\0' + b'0' * 16 + b'\\n' + b'x' * 5000)"
        )
        spec = f"popen//python=env PYTHONPATH={tmp_path} {sys.executable}"
        gateway = makegateway(spec)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_a_shell_that_talks_before_is_skipped(
        self, makegateway: MakeGateway, program: Callable[[str], str]
    ) -> None:
        path = program(f'head -c 60000 /dev/zero; echo; exec {sys.executable} "$@"')
        gateway = makegateway(f"popen//python={path}")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_one_that_trickles_is_waited_for(
        self, makegateway: MakeGateway, program: Callable[[str], str]
    ) -> None:
        loop = "for i in 1 2 3 4 5; do printf a; sleep 0.02; done"
        gateway = makegateway(
            f'popen//python={program(f"""{loop}; exec {sys.executable} "$@" """)}'
        )
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1


class TestConnectTimeout:
    def test_it_is_a_minute_unless_told_otherwise(self) -> None:
        now = time.monotonic()
        assert 59 < (Settings(XSpec("popen")).deadline() or 0) - now < 61
        assert 4 < (Settings(XSpec("popen//connect_timeout=5")).deadline() or 0) - now < 6
        assert Settings(XSpec("popen//connect_timeout=0")).deadline() is None

    def test_without_one_a_worker_may_take_its_time(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//connect_timeout=0")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_it_counts_from_the_start_of_each(
        self, group: Group, program: Callable[[str], str]
    ) -> None:
        slow = f"popen//connect_timeout=1.5//python={program('exec sleep 100')}"
        start = time.monotonic()
        with pytest.raises(BootstrapError, match="no answer"):
            group.makegateways([slow] * 4)
        assert time.monotonic() - start < 5


class TestInterrupts:
    def test_one_while_a_worker_starts_leaves_nothing(self, program: Callable[[str], str]) -> None:
        path = program("exec sleep 100")
        code = f"""
import os, signal, sys, threading, time, execnet
def interrupt():
    main = threading.main_thread()
    while not interrupted:
        frame, names = sys._current_frames()[main.ident], []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if "wait_ready" in names and names[0] in ("wait", "get", "__next__"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # and again: one that comes just before the wait is not seen
interrupted = []
interrupter = threading.Thread(target=interrupt, daemon=True)
interrupter.start()
try:
    execnet.makegateway("popen//python={path}")
except KeyboardInterrupt:
    interrupted.append(True)
    interrupter.join()
    print("interrupted", len(execnet.default_group), threading.active_count() <= 2)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child")
"""
        result = run_python(code)
        assert result.stdout.split() == ["interrupted", "0", "True", "no", "child"]
        assert result.stderr == ""


class TestTheCommand:
    def test_it_is_the_interpreter_and_one_line(self) -> None:
        assert popen_bootstrapline == "import sys;exec(eval(sys.stdin.readline()))"
        assert popen_args(XSpec("popen")) == [sys.executable, "-u", "-c", popen_bootstrapline]

    def test_no_secret_of_the_spec_shows_in_the_list_of_processes(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway("popen//env:PASSWORD=swordfish//chdir=.")
        pid = gateway._rinfo().pid
        wait_until(lambda: os.path.exists(f"/proc/{pid}"))
        assert b"swordfish" not in Path(f"/proc/{pid}/cmdline").read_bytes()

    def test_the_module_is_looked_up_when_it_is_used(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[list[str]] = []
        original = gateway_io.Popen2IOMaster

        def spy(args: list[str], execmodel: object) -> object:
            made.append(args)
            return original(args, execmodel)  # type: ignore[arg-type]

        monkeypatch.setattr(gateway_io, "Popen2IOMaster", spy)
        group.makegateway("popen")
        assert [args[-1] for args in made] == [popen_bootstrapline]

    def test_a_stream_of_your_own_becomes_a_gateway(self) -> None:
        args = [sys.executable, "-c", popen_bootstrapline]
        spec = XSpec("popen//python=any//id=mine")
        io = gateway_io.Popen2IOMaster(args, gateway_base.get_execmodel("thread"))
        with gateway_bootstrap.bootstrap(io, spec) as gateway:
            assert (gateway.id, gateway.spec, spec.execmodel) == ("mine", spec, "thread")
            assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_a_stream_that_ends_becomes_none(self) -> None:
        io = gateway_io.Popen2IOMaster(["/bin/false"], gateway_base.get_execmodel("thread"))
        with pytest.raises(gateway_bootstrap.BootstrapError, match="exit status 1"):
            gateway_bootstrap.bootstrap(io, XSpec("popen//id=mine"))
        assert io.popen.returncode == 1
