"""The shipped module as a whole: the ways it runs, what it loads, its errors and its worker.

Its parts have files of their own: serializer, frames, execution models, streams, tracing, worker.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from tools import MakeGateway, clean_environment, run, run_python

from execnet import _errors, gateway_base
from execnet.gateway_base import (
    ISPYPY,
    FrameDecoder,
    Message,
    RemoteError,
    dumps_internal,
    loads_internal,
)

FILE = Path(gateway_base.__file__)

# Run in the module's own namespace, whatever the module is called there.
CHECK = """
import sys
assert not [name for name in sys.modules if name.partition(".")[0] == "execnet"], "it needs more"
item = {"a": [1, "\\xe9", b"x", None, (2.5, 1j), {True}, -2 ** 40]}
assert loads(dumps(item)) == item
try:
    dumps([object()])
except DumpError as error:
    assert "item[0]" in str(error)
pool = WorkerPool(get_execmodel("thread"))
assert pool.spawn(int, "7").get(5) == 7
assert Message._types[4][0] == "CHANNEL_DATA"
trace("nothing")
print("works")
"""
# What it takes from the rest of execnet, which is beside it or installed, without importing that.
CHECK_PARTS = """
import sys
assert [get_execmodel(name).backend for name in ("gevent", "eventlet")] == ["gevent", "eventlet"]
assert isinstance(get_execmodel("gevent"), ExecModel)
assert "execnet" not in sys.modules
print("works")
"""
CHECK_WITHOUT = """
try:
    get_execmodel("gevent")
except ImportError as error:
    print(error)
"""
# CPython 3.7 and newer have such a queue, PyPy has none.
CHECK_WITHOUT_QUEUE = """
ExecModel.inbox.__globals__["_SimpleQueue"] = None
items = ExecModel().inbox()
items.put(7)
print(type(items).__name__, items.get())
"""
SERVE = "\nserve(init_popen_io(get_execmodel('thread')), id='worker')\n"

# A dict of modules that sees whether the package of a new one has it already.
CHECK_PACKAGE_FIRST = """
import sys
seen = []

class Modules(dict):
    def setdefault(self, name, module):
        package, _, leaf = name.rpartition(".")
        if package:
            seen.append(hasattr(sys.modules[package], leaf))
        return dict.setdefault(self, name, module)

sys.modules = Modules(sys.modules)
_make_module("packaged.within", "within.py", "x = 1")
print(seen, sys.modules["packaged"].within.x)
"""

# One thread has begun to import ``select`` when another needs it, and ends only when that waits.
HALF_IMPORTED = """
import importlib.machinery, sys, threading
from execnet import gateway_base

assert "select" not in sys.modules
ours, begun = threading.get_ident(), threading.Event()
loader = importlib.machinery.ExtensionFileLoader
execute = loader.exec_module

def slowly(self, module):
    if module.__name__ == "select":
        begun.set()
        while "importlib" not in sys._current_frames()[ours].f_code.co_filename:
            pass
    execute(self, module)

loader.exec_module = slowly
threading.Thread(target=__import__, args=("select",)).start()
begun.wait()
print(gateway_base.real_select().poll().poll(0))
"""

# Ways to run the module, as programs: {file} is its path, {folder} where that is, {code} what
# is then executed among its names.
WAYS = {
    "imported from its folder": """
import sys
sys.path.insert(0, {folder!r})
import gateway_base
exec({code!r}, vars(gateway_base))
""",
    "imported under another name": """
import importlib.util
spec = importlib.util.spec_from_file_location("something.else", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
exec({code!r}, vars(module))
""",
    "executed from a string": """
exec(open({file!r}, encoding="utf-8").read() + {code!r}, {{}})
""",
    "executed from a string as __main__": """
names = {{"__name__": "__main__"}}
exec(compile(open({file!r}, encoding="utf-8").read(), "<string>", "exec"), names)
exec({code!r}, names)
""",
    "executed as a module that has no file": """
import sys
module = type(sys)("shipped")
sys.modules["shipped"] = module
exec(compile(open({file!r}, encoding="utf-8").read(), "<shipped>", "exec"), module.__dict__)
exec({code!r}, module.__dict__)
""",
}
SCRIPT = "executed as a script with code appended"
ways = pytest.mark.parametrize("way", [*WAYS, SCRIPT])


def command_for(way: str, code: str, folder: Path) -> list[str]:
    """Return the command that runs the module in that way and the code behind it."""
    if way == SCRIPT:
        script = folder / "script.py"
        script.write_text(FILE.read_text("utf-8") + "\n" + code, "utf-8")
        return [sys.executable, str(script)]
    program = WAYS[way].format(file=str(FILE), folder=str(FILE.parent), code=code)
    return [sys.executable, "-c", program]


def frames(*messages: Message) -> bytes:
    out = BytesIO()
    for message in messages:
        message.to_io(out)
    return out.getvalue()


class TestWaysToRun:
    @ways
    def test_it_works_when_it_is(self, way: str, tmp_path: Path) -> None:
        ended = run(command_for(way, CHECK, tmp_path), PYTHONPATH="")
        assert ended.stderr == ""
        assert ended.stdout == "works\n"

    @ways
    def test_it_finds_its_parts_when_it_is(self, way: str, tmp_path: Path) -> None:
        ended = run(command_for(way, CHECK_PARTS, tmp_path), PYTHONPATH=str(FILE.parent.parent))
        assert ended.stderr == ""
        assert ended.stdout == "works\n"

    def test_without_the_rest_of_execnet_it_says_so(self, tmp_path: Path) -> None:
        python, *script = command_for(SCRIPT, CHECK + CHECK_WITHOUT, tmp_path)
        ended = run([python, "-I", "-S", *script])
        assert ended.stderr == ""
        assert ended.stdout == "works\n__main__ runs alone, without the rest of execnet\n"

    def test_a_package_has_a_module_before_others_find_it(self, tmp_path: Path) -> None:
        """Python 2 looks nowhere else for one that it finds loaded."""
        ended = run(command_for(SCRIPT, CHECK_PACKAGE_FIRST, tmp_path))
        assert (ended.stderr, ended.stdout) == ("", "[True] 1\n")

    @pytest.mark.parametrize(("options", "kind"), [([], "OwnInbox"), (["-I", "-S"], "Queue")])
    def test_it_has_a_queue_where_python_has_none_in_c(
        self, options: list[str], kind: str, tmp_path: Path
    ) -> None:
        way = "imported under another name"
        if options:  # without the rest of execnet
            way = SCRIPT
        python, *script = command_for(way, CHECK_WITHOUT_QUEUE, tmp_path)
        ended = run([python, *options, *script])
        assert (ended.stderr, ended.stdout) == ("", kind + " 7\n")

    @ways
    def test_it_serves_when_it_is(self, way: str, tmp_path: Path) -> None:
        worker = subprocess.Popen(
            command_for(way, SERVE, tmp_path),
            env=clean_environment(PYTHONPATH=""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        watchdog = threading.Timer(20, worker.kill)
        watchdog.start()
        try:
            with worker:
                self.talk_to(worker)
        finally:
            watchdog.cancel()
            watchdog.join()
        assert worker.returncode == 0

    def talk_to(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdin is not None
        assert worker.stderr is not None
        source = "channel.send(channel.receive() * 2)"
        worker.stdin.write(
            frames(
                Message(Message.CHANNEL_EXEC, 1, dumps_internal((source, None, None, {}))),
                Message(Message.CHANNEL_DATA, 1, dumps_internal("ab")),
                Message(Message.CHANNEL_EXEC, 3, dumps_internal(("1 / 0", None, None, {}))),
            )
        )
        worker.stdin.flush()
        hello, *answers = self.read_messages(worker, 4)
        worker.stdin.write(frames(Message(Message.GATEWAY_TERMINATE)))
        worker.stdin.close()
        assert worker.stderr.read() == b""
        assert hello.msgcode == Message.HELLO
        assert loads_internal(hello.data)["pid"] == worker.pid
        on_first = [message for message in answers if message.channelid == 1]
        assert [m.msgcode for m in on_first] == [Message.CHANNEL_DATA, Message.CHANNEL_CLOSE]
        assert loads_internal(on_first[0].data) == "abab"
        (failure,) = [message for message in answers if message.channelid == 3]
        assert failure.msgcode == Message.CHANNEL_CLOSE_ERROR
        assert "ZeroDivisionError" in loads_internal(failure.data)

    def test_without_the_rest_of_execnet_code_is_not_interrupted(self, tmp_path: Path) -> None:
        """It ends with the worker, which ends ``grace`` seconds after its coordinator."""
        serve = "\nserve(init_popen_io(get_execmodel('thread')), id='worker', grace=0.01)\n"
        python, *script = command_for(SCRIPT, serve, tmp_path)
        worker = subprocess.Popen(
            [python, "-I", "-S", *script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        watchdog = threading.Timer(20, worker.kill)
        watchdog.start()
        try:
            with worker:
                assert worker.stdin is not None
                source = "channel.send(1)\nwhile True: pass"
                task = dumps_internal((source, None, None, {}))
                worker.stdin.write(frames(Message(Message.CHANNEL_EXEC, 1, task)))
                worker.stdin.write(frames(Message(Message.STACKS, 3)))
                worker.stdin.flush()
                said = [loads_internal(m.data) for m in self.read_messages(worker, 4) if m.data]
                worker.stdin.close()
        finally:
            watchdog.cancel()
            watchdog.join()
        assert "no stacks: a part of execnet can't be loaded" in said
        assert worker.returncode == 1

    def read_messages(self, worker: subprocess.Popen[bytes], number: int) -> list[Message]:
        assert worker.stdout is not None
        decoder = FrameDecoder()
        messages: list[Message] = []
        while len(messages) < number:
            data = os.read(worker.stdout.fileno(), 65536)
            if not data:
                pytest.fail(f"it ended after {messages}")
            messages += decoder.feed(data)
        return messages


UNWANTED = {"typing", "subprocess", "socket", "tempfile", "traceback", "inspect", "asyncio"}
UNWANTED -= {"traceback"} if ISPYPY else set()  # its ``threading`` needs that
LIST_MODULES = "import sys; print(*sys.modules)"


class TestWhatItLoads:
    def test_importing_it_loads_little(self) -> None:
        program = f"import sys; sys.path.insert(0, {str(FILE.parent)!r}); import gateway_base; "
        loaded = self.modules_of([sys.executable, "-I", "-S", "-c", program + LIST_MODULES])
        assert "gateway_base" in loaded
        assert loaded & UNWANTED == set()

    @pytest.mark.parametrize("spec", ["popen", f"popen//python={sys.executable}"])
    def test_a_worker_loads_little(self, makegateway: MakeGateway, spec: str) -> None:
        code = "import sys; channel.send(' '.join(sys.modules))"
        loaded = set(makegateway(spec).remote_exec(code).receive(20).split())
        without_us = self.modules_of([sys.executable, "-u", "-c", LIST_MODULES])
        assert "_struct" in loaded
        assert (loaded - without_us) & UNWANTED == set()

    def modules_of(self, command: list[str]) -> set[str]:
        ended = run(command)
        assert ended.stderr == ""
        return set(ended.stdout.split())

    def test_a_greenlet_library_is_loaded_when_its_model_is_used(self) -> None:
        program = "from execnet.gateway_base import get_execmodel; get_execmodel('gevent'); "
        ended = run_python(program + LIST_MODULES)
        assert "gevent" not in ended.stdout.split()


SIGNATURES = {
    "BaseGateway": "io, id, _startcount=2",
    "Channel": "gateway, id",
    "Channel.close": "self, error=None",
    "Channel.makefile": "self, mode='w', proxyclose=False",
    "Channel.receive": "self, timeout=None",
    "Channel.reconfigure": "self, py2str_as_py3str=True, py3str_as_py2str=False",
    "Channel.send": "self, item",
    "Channel.waitclose": "self, timeout=None",
    "ChannelFactory": "gateway, startcount=1",
    "ChannelFactory.new": "self, id=None",
    "ChannelFactory._local_close": "self, id, remoteerror=None",
    "Message": "msgcode, channelid=0, data=b''",
    "Message.from_io": "io",
    "Message.received": "self, gateway",
    "Message.to_io": "self, io",
    "Popen2IO": "outfile, infile, execmodel",
    "Reply.get": "self, timeout=None",
    "Reply.waitfinish": "self, timeout=None",
    "Unserializer": "stream, channel_or_gateway=None, strconfig=None",
    "Unserializer.load": "self, versioned=False",
    "WorkerGateway": "io, id, _startcount=2",
    "WorkerPool": "execmodel, hasprimary=False",
    "WorkerPool.terminate": "self, timeout=None",
    "WorkerPool.waitall": "self, timeout=None",
    "bchr": "n",
    "dump": "byteio, obj",
    "dumps": "obj",
    "geterrortext": "exc",
    "init_popen_io": "execmodel",
    "load": "io, py2str_as_py3str=False, py3str_as_py2str=False",
    "loads": "bytestring, py2str_as_py3str=False, py3str_as_py2str=False",
    "serve": "io, id",
}


class TestNames:
    @pytest.mark.parametrize(("name", "expected"), SIGNATURES.items(), ids=SIGNATURES)
    def test_a_signature_is_as_it_was_or_longer(self, name: str, expected: str) -> None:
        thing: Any = gateway_base
        for part in name.split("."):
            thing = getattr(thing, part)
        shown = [
            parameter.name
            + (f"={parameter.default!r}" if parameter.default is not parameter.empty else "")
            for parameter in inspect.signature(thing).parameters.values()
        ]
        wanted = expected.split(", ")
        assert shown[: len(wanted)] == wanted
        assert all("=" in more for more in shown[len(wanted) :]), "a new one needs a default"

    def test_texts_and_tuples_are_there(self) -> None:
        assert gateway_base.sysex == (KeyboardInterrupt, SystemExit)
        assert isinstance(gateway_base.INTERRUPT_TEXT, str)
        assert "main_thread_only" in gateway_base.MAIN_THREAD_ONLY_DEADLOCK_TEXT
        assert issubclass(gateway_base.GatewayReceivedTerminate, Exception)


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "bases"),
        [
            ("DataFormatError", ()),
            ("DumpError", ("DataFormatError",)),
            ("LoadError", ("DataFormatError",)),
            ("RemoteError", ()),
            ("TimeoutError", (OSError,)),
            ("ProtocolError", (EOFError,)),
            ("WorkerDied", (EOFError,)),
        ],
    )
    def test_each_is_what_callers_already_catch(self, name: str, bases: tuple[Any, ...]) -> None:
        home = _errors if name == "WorkerDied" else gateway_base
        error = getattr(home, name)
        assert issubclass(error, gateway_base.ExecnetError)
        for base in bases:
            assert issubclass(error, getattr(gateway_base, base) if isinstance(base, str) else base)

    def test_a_remote_error_is_its_text(self) -> None:
        error = RemoteError("Traceback\nValueError: x")
        assert error.formatted == str(error) == "Traceback\nValueError: x"
        assert repr(error).startswith("RemoteError: Traceback")

    def test_the_text_of_an_error_is_its_traceback(self) -> None:
        try:
            raise ValueError("what went wrong")
        except ValueError as error:
            text = gateway_base.geterrortext(error)
        assert text.startswith("Traceback")
        assert text.rstrip().endswith("ValueError: what went wrong")
        assert "test_gateway_base" in text

    def test_an_error_without_a_traceback_has_a_text(self) -> None:
        assert "ValueError: x" in gateway_base.geterrortext(ValueError("x"))

    def test_an_error_without_a_text_has_one(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no comment")

            __repr__ = __str__

        assert "Mute" in gateway_base.geterrortext(Mute())
        assert "KeyError" in gateway_base.geterrortext(KeyError(Mute()))


@pytest.mark.skipif("select" in sys.builtin_module_names, reason="it is imported at once there")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no poll")
def test_a_module_that_another_thread_is_importing_is_waited_for() -> None:
    """One in C that is used too early crashes the process."""
    assert run_python(HALF_IMPORTED).stdout == "[]\n"
