"""Workers at the limits of their machine: no thread, no descriptor, no memory, no import.

What fails there is told, on its channel; all else runs on.
"""

from __future__ import annotations

import _imp
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from interpreters import Interpreter
from tools import BOUND_S, MakeGateway, run_python, wait_until
from workers import ask

from execnet import Gateway, RemoteError, gateway_base
from execnet._features import idle
from execnet.gateway_base import WorkerGateway

pytest_plugins = ["worker_fixtures"]

# Code that leaves no descriptor; it keeps going when there is none.
FILL = """
import os
keep = []
try:
    while 1:
        keep.append(os.open(os.devnull, 0))
except EnvironmentError:
    pass
"""
FEW_DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
FAILS = "{}['what fails']"


def failure(gateway: Gateway, code: str) -> str:
    """Execute code that fails; return the text."""
    with pytest.raises(RemoteError) as caught:
        gateway.remote_exec(textwrap.dedent(code)).waitclose(BOUND_S)
    return caught.value.formatted


class TestNoThread:
    NO_MORE = """
        import sys
        def no_more(*args, **kwargs):
            raise RuntimeError("can't start new thread")
        sys.modules[type(channel).__module__]._thread.start_new_thread = no_more
        """

    @pytest.fixture
    def busy_gateway(self, fresh: Gateway) -> Gateway:
        """Return a gateway whose worker executes something and can start no more threads."""
        fresh.remote_exec(textwrap.dedent(self.NO_MORE)).waitclose(BOUND_S)
        return fresh

    def test_the_channel_of_code_for_which_there_is_none_says_so(
        self, busy_gateway: Gateway
    ) -> None:
        first = busy_gateway.remote_exec("channel.send(1)\nchannel.send(channel.receive())")
        assert first.receive(BOUND_S) == 1
        text = failure(busy_gateway, "pass")
        assert text.startswith(f"no thread could be started in {busy_gateway.id}-worker")
        assert "can't start new thread" in text
        first.send(2)
        assert first.receive(BOUND_S) == 2
        first.waitclose(BOUND_S)
        assert ask(busy_gateway, "channel.send(3)") == 3

    def test_main_thread_only_says_so_too(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//execmodel=main_thread_only")
        gateway.remote_exec(textwrap.dedent(self.NO_MORE)).waitclose(BOUND_S)
        first = gateway.remote_exec("channel.send(1)\nchannel.receive()")
        assert first.receive(BOUND_S) == 1
        assert "no thread could be started" in failure(gateway, "pass")
        first.send(None)
        first.waitclose(BOUND_S)

    def test_a_heartbeat_goes_on_without_one(self, busy_gateway: Gateway) -> None:
        beats = gateway_base.dumps_internal((0.05, 0.2))
        busy_gateway._post(gateway_base.Message.PING, 0, beats)
        assert ask(busy_gateway, "channel.send(1)") == 1
        heard = busy_gateway._heard
        busy_gateway._post(gateway_base.Message.PING)
        wait_until(lambda: busy_gateway._heard > heard)


class TestErrorsAreTold:
    @pytest.mark.parametrize(
        "code",
        [
            f"{FILL}{FAILS}",
            f"import sys; del sys.path[:]\n{FAILS}",
            "import sys; sys.path[:] = ['/nowhere']; sys.modules.pop('traceback', None)\n"
            f"sys.modules.pop('linecache', None)\n{FAILS}",
            f"import sys; sys.modules['traceback'] = sys.modules['linecache'] = None\n{FAILS}",
            f"import sys; sys.modules['traceback'] = object()\n{FAILS}",
        ],
        ids=["descriptors", "path", "modules", "none", "another"],
    )
    def test_when_nothing_can_be_imported(self, fresh: Gateway, code: str) -> None:
        text = failure(fresh, FEW_DESCRIPTORS + code)
        assert text.startswith("Traceback (most recent call last):\n")
        assert 'File "<remote exec>", line' in text
        assert text.strip().endswith("KeyError: 'what fails'")

    @pytest.mark.parametrize("name", ["token", "re", "enum", "keyword", "linecache", "traceback"])
    def test_when_a_file_has_the_name_of_a_module_of_the_standard_library(
        self, makegateway: MakeGateway, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / f"{name}.py").write_text("KIND = 1\n")
        gateway = makegateway(f"popen//python={sys.executable} -S -E//chdir={tmp_path}")
        assert "KeyError: 'what fails'" in failure(gateway, FAILS)

    @pytest.mark.skipif(
        sys.implementation.name == "pypy", reason="PyPy ends a process that has no memory"
    )
    def test_when_there_is_no_memory(self, makegateway: MakeGateway) -> None:
        text = failure(
            makegateway(),
            """
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (10**8, 10**8))
            keep = []
            while True:
                keep.append(bytearray(10**5))
            """,
        )
        assert text.strip().endswith("MemoryError")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    @pytest.mark.parametrize("call", ["os.chroot('{}')", "os.setuid(65534)"])
    def test_when_the_process_has_left(self, fresh: Gateway, tmp_path: Path, call: str) -> None:
        code = f"import os; {call.format(tmp_path)}\n{FAILS}"
        assert "KeyError" in failure(fresh, code)

    @pytest.mark.parametrize("method", ["__str__", "__repr__", "__class__"])
    @pytest.mark.parametrize("raised", ["ValueError", "KeyboardInterrupt", "SystemExit"])
    def test_when_the_error_can_not_be_looked_at(
        self, shared: Gateway, method: str, raised: str
    ) -> None:
        text = failure(
            shared,
            f"""
            class Odd(Exception):
                def fails(self):
                    raise {raised}
                {method} = {"property(fails)" if method == "__class__" else "fails"}
            raise Odd()
            """,
        )
        assert "Odd" in text

    def test_when_it_recurs_endlessly(self, shared: Gateway) -> None:
        text = failure(shared, "def f():\n    f()\nf()")
        assert "recursion" in text

    def test_of_a_type_without_a_module(self, shared: Gateway) -> None:
        code = "raise type('Odd', (Exception,), {'__module__': None})('what fails')"
        assert "Odd" in failure(shared, code)


class TestNothingCanBeImported:
    def test_items_go_both_ways_without_a_descriptor(self) -> None:
        result = run_python(
            f"""
import execnet, os, resource
FILL = {FILL!r}
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
echo = "channel.send(1)\\nchannel.send(channel.receive())"
full, free = (execnet.makegateway().remote_exec(code + echo) for code in (FILL, ""))
full.receive({BOUND_S}), free.receive({BOUND_S})
exec(FILL)
for channel in free, full:
    channel.send({{"a": 1.5}})
    print(channel.receive({BOUND_S}))
    while keep:
        os.close(keep.pop())
execnet.default_group.terminate(1)
"""
        )
        assert (result.stdout, result.stderr) == ("{'a': 1.5}\n" * 2, "")

    def test_a_second_task_and_the_stacks_are_to_be_had(
        self, fresh: Gateway, python: Interpreter
    ) -> None:
        first = fresh.remote_exec(FEW_DESCRIPTORS + FILL + "channel.send(1)\nchannel.receive()")
        assert first.receive(BOUND_S) == 1
        assert ask(fresh, "channel.send(2)") == 2
        assert "<remote exec>" in fresh.dump_stacks(BOUND_S)
        first.send(None)
        first.waitclose(BOUND_S)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    def test_code_that_left_for_another_root_is_shown_and_interrupted(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        gateway = makegateway("popen")
        channel = gateway.remote_exec(
            f"""
            import os
            os.chroot({str(tmp_path)!r})
            try:
                channel.send(1)
                while True:
                    pass
            finally:
                open("/interrupted", "w").close()
            """
        )
        assert channel.receive(BOUND_S) == 1
        assert "<remote exec>" in gateway.dump_stacks(BOUND_S)
        gateway.exit()
        gateway.join(BOUND_S)
        wait_until((tmp_path / "interrupted").exists)

    def test_nor_is_there_a_path_to_import_from(self, fresh: Gateway) -> None:
        empty = "import sys; del sys.path[:]\nsys.modules.pop('traceback', None)\n"
        first = fresh.remote_exec(empty + "channel.send(1)\nchannel.receive()")
        assert first.receive(BOUND_S) == 1
        assert ask(fresh, "channel.send(2)") == 2
        assert "<remote exec>" in fresh.dump_stacks(BOUND_S)
        first.send(None)
        first.waitclose(BOUND_S)

    @pytest.mark.skipif(sys.platform == "win32", reason="nothing tells there when it idles")
    def test_a_worker_that_idles_loads_what_it_may_need(self, makegateway: MakeGateway) -> None:
        gateway = makegateway(f"popen//python={sys.executable} -S -E")
        names = set(idle._LOADED_LATER)
        loaded = f"import sys\nchannel.send({names!r} <= set(sys.modules))"
        idle_s = 2 * gateway_base.IDLE_MS / 1000  # else asking is what keeps it busy
        wait_until(lambda: ask(gateway, loaded), sleep=lambda _: time.sleep(idle_s))

    @pytest.mark.parametrize("load", [idle.load, WorkerGateway._load_while_idle])
    def test_it_does_not_wait_for_the_lock_of_imports(
        self, load: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It could not notice its coordinator's end while it did."""
        gateway = SimpleNamespace(
            _to_load=["zipapp"], _heard=0, _io=SimpleNamespace(has_more=lambda wait_ms: False)
        )
        monkeypatch.setattr(gateway_base, "load_part", None)  # that would wait, too
        _imp.acquire_lock()
        try:
            load(gateway)
        finally:
            _imp.release_lock()
        assert gateway._to_load == ["zipapp"]

    def test_it_runs_no_file_of_the_user_for_that(
        self, makegateway: MakeGateway, tmp_path: Path
    ) -> None:
        for name in idle._LOADED_LATER[1:] + idle._BROUGHT_ALONG.split():
            (tmp_path / f"{name}.py").write_text("raise SystemExit('it was run')")
        gateway = makegateway(f"popen//python={sys.executable} -S -E//chdir={tmp_path}")
        gateway.remote_exec("pass").waitclose(BOUND_S)
        idle_s = 2 * gateway_base.IDLE_MS / 1000
        wait_until(
            lambda: ask(gateway, "channel.send(str(channel.gateway._to_load))") == "[]",
            sleep=lambda _: time.sleep(idle_s),
        )

    @pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="a fork is not told of")
    def test_a_fork_waits_until_a_module_is_loaded(self, makegateway: MakeGateway) -> None:
        """Else the locks of the import system stay taken in the child."""
        code = """
            import os, sys, threading
            idle = sys.modules[type(channel).__module__].load_part("_features.idle")
            idle._modules_to_load()
            begun, ended = threading.Event(), []

            def load():
                with idle._loading:
                    begun.set()
                    threading.Event().wait(0.1)
                    ended.append(True)

            thread = threading.Thread(target=load)
            thread.start()
            begun.wait()
            pid = os.fork()
            if not pid:
                with idle._loading:  # it is free again
                    os._exit(len(ended))
            thread.join()
            channel.send(os.waitpid(pid, 0)[1])
            """
        assert ask(makegateway(), code) == 1 << 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
class TestForks:
    @pytest.mark.parametrize(
        ("end", "status", "told"),
        [
            ("pass", 0, ""),
            ("raise SystemExit", 0, ""),
            ("raise SystemExit(3)", 3, ""),
            ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
            ("raise ValueError('in the child')", 1, "ValueError: in the child"),
        ],
    )
    @pytest.mark.parametrize("in_main_thread", [True, False])
    def test_one_that_falls_out_of_the_code_ends_there(
        self, python: Interpreter, group: object, end: str, status: int, told: str,
        in_main_thread: bool, tmp_path: Path,
    ) -> None:  # fmt: skip
        gateway = group.makegateway(python.spec)  # type: ignore[attr-defined]
        busy = gateway.remote_exec("channel.send(1); channel.receive()")
        busy.receive(BOUND_S)
        if in_main_thread:
            busy.send(None)
            busy.waitclose(BOUND_S)
        path = tmp_path / "stderr"
        channel = gateway.remote_exec(
            textwrap.dedent(
                f"""
                import atexit, os, sys
                atexit.register(os.write, 2, b"at the exit of %d" % os.getpid())
                saved = os.dup(2)
                os.dup2(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT), 2)
                sys.stdout.write("once")
                pid = os.fork()
                if not pid:
                    os.write(2, b".")
                else:
                    channel.send(os.waitpid(pid, 0)[1])
                    os.dup2(saved, 2)
                if not pid:
                    {end}
                """
            ).replace('b"at the exit of %d" % os.getpid()', "b'at the exit'")
        )
        assert channel.receive(BOUND_S) == status << 8
        channel.waitclose(BOUND_S)
        assert ask(gateway, "channel.send(1)") == 1
        text = path.read_text()
        assert text.startswith(".")
        assert told in text
        assert bool(told) == bool(text[1:])
        assert "at the exit" not in text
        if not in_main_thread:
            busy.send(None)
            busy.waitclose(BOUND_S)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal can be blocked")
@pytest.mark.parametrize("spec", ["popen", f"popen//python={sys.executable}", "popen//forkserver"])
def test_code_is_interrupted_where_the_coordinator_has_blocked_sigint(
    tmp_path: Path, spec: str
) -> None:
    result = run_python(
        f"""
import os, signal, sys, execnet
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})
gateway = execnet.makegateway({spec + "//grace=0.1"!r})
channel = gateway.remote_exec(
    "import time; channel.send(1)\\n"
    "try: time.sleep(99)\\n"
    "finally: open({str(tmp_path / "mark")!r}, 'w').close()"
)
channel.receive({BOUND_S})
execnet.default_group.terminate({BOUND_S})
"""
    )
    assert (result.stdout, result.stderr) == ("", "")
    assert (tmp_path / "mark").exists()


class TestTexts:
    def test_that_of_code_that_ran_begins_with_it(self, shared: Gateway) -> None:
        lines = failure(shared, "\nraise ValueError('there')").splitlines()
        assert lines[1] == '  File "<remote exec>", line 2, in <module>'
        assert "gateway_base" not in "".join(lines)

    def test_that_of_an_item_that_can_not_be_sent_is_a_line_and_its_place(
        self, shared: Gateway
    ) -> None:
        text = failure(shared, "def f():\n    channel.send({'a': [object()]})\nf()")
        assert text.count("Traceback") == 1
        assert "gateway_base.py" not in text
        assert 'File "<remote exec>", line 2, in f' in text
        assert "DumpError: item['a'][0]: can't serialize" in text.splitlines()[-1]

    def test_a_tuple_of_an_error_is_one(self) -> None:
        try:
            raise ValueError("what went wrong")
        except ValueError as error:
            expected = gateway_base.geterrortext(error)
            told = gateway_base.geterrortext((ValueError, error, error.__traceback__))
        assert told == expected
        assert gateway_base.geterrortext((ValueError, ValueError("x"), None)) == "ValueError: x\n"

    def test_an_unhandled_error_without_a_stderr_disturbs_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        gateway_base.RemoteError("nobody asks").warn()
