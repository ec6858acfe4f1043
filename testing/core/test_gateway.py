"""The coordinator's end of a gateway: running code, asking about the worker, garbled streams.

What may be sent as code is in ``test_source``, the states of a gateway in
``test_channel_states``, its end in ``test_termination``.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from models import EXECMODELS, GREENLET_MODELS, need_model
from tools import BOUND_S, MakeGateway, some_of, wait_until

import execnet
from execnet import Channel, DumpError, Gateway, Group, ProtocolError, RemoteError, XSpec
from execnet.gateway import RemoteStatus, RInfo, rinfo_source
from execnet.gateway_base import (
    MAIN_THREAD_ONLY_DEADLOCK_TEXT,
    ExecModel,
    Message,
    Popen2IO,
    WorkerGateway,
    dumps_internal,
    get_execmodel,
)

pytestmark = pytest.mark.core


class TestAttributes:
    def test_it_has_the_names_that_programs_use(self, group: Group) -> None:
        gateway = group.makegateway("popen//id=mine")
        assert isinstance(gateway, execnet.Gateway)
        assert gateway.id == "mine"
        assert str(gateway.spec) == "popen//id=mine"
        assert gateway.remoteaddress is None
        assert gateway._group is group
        assert isinstance(gateway._io, Popen2IO)
        assert gateway.execmodel is group.execmodel
        assert gateway._channelfactory.channels() == []
        assert gateway.hasreceiver() is True
        gateway._trace("nothing", 1)

    def test_it_says_how_it_is(self, group: Group) -> None:
        gateway = group.makegateway()
        live = "<Gateway id='gw0' receive-live, thread model, {} active channels>"
        assert repr(gateway) == live.format(0)
        channels = [gateway.newchannel() for _ in range(2)]
        assert repr(gateway) == live.format(len(channels))
        gateway.exit()
        gateway.join(BOUND_S)
        assert repr(gateway).startswith("<Gateway id='gw0' not-receiving, thread model, ")

    def test_it_can_be_a_key_and_take_attributes(self, group: Group) -> None:
        one, other = group.makegateways(["popen"] * 2)
        one.workerinput = {"x": 1}  # type: ignore[attr-defined]
        assert {one: 1, other: 2}[one] == 1
        assert one != other
        assert one.workerinput == {"x": 1}  # type: ignore[attr-defined]

    def test_joining_waits_for_its_receiver_only_so_long(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway.join(timeout=0.01)
        assert gateway.hasreceiver()
        gateway.exit()
        gateway.join()
        assert not gateway.hasreceiver()

    def test_its_receiver_is_a_named_daemon(self, makegateway: MakeGateway) -> None:
        makegateway("popen//id=mine")
        (thread,) = [t for t in threading.enumerate() if "mine" in t.name]
        assert thread.daemon
        assert "receiver" in thread.name

    def test_a_frame_can_be_sent_by_hand(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        task = ("channel.send(channel.receive())", None, None, {})
        gateway._send(Message.CHANNEL_EXEC, channel.id, dumps_internal(task))
        gateway._send(Message.CHANNEL_DATA, channelid=channel.id, data=dumps_internal(7))
        assert channel.receive(BOUND_S) == 7

    def test_starting_threads_by_hand_says_that_it_does_nothing(
        self, makegateway: MakeGateway, capsys: pytest.CaptureFixture[str]
    ) -> None:
        makegateway().remote_init_threads(3)
        assert "remote_init_threads" in capsys.readouterr().out


class TestRemoteExec:
    def test_code_runs_in_another_process(self, gw: Gateway) -> None:
        channel = gw.remote_exec("import os; channel.send(os.getpid())")
        assert isinstance(channel, Channel)
        assert channel.receive(BOUND_S) == gw._rinfo().pid != os.getpid()

    def test_it_has_the_channel_and_its_name_as_globals(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec("channel.send([__name__, sorted(globals())])")
        name, names = channel.receive(BOUND_S)
        assert name == "__channelexec__"
        assert set(names) == {"__builtins__", "__name__", "channel"}

    def test_each_has_globals_of_its_own(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway.remote_exec("x = 1").waitclose(BOUND_S)
        assert gateway.remote_exec("channel.send('x' in globals())").receive(BOUND_S) is False

    def test_functions_see_the_globals_of_their_code(self, makegateway: MakeGateway) -> None:
        code = "import os\ndef f(): return [os.sep, x, [x for _ in 'ab']]\nx = 1\nchannel.send(f())"
        assert makegateway().remote_exec(code).receive(BOUND_S) == [os.sep, 1, [1, 1]]

    def test_a_function_gets_the_channel_and_its_arguments(self, gw: Gateway) -> None:
        def add(channel, one, other=5):
            channel.send(one + other)

        assert gw.remote_exec(add, one=1).receive(BOUND_S) == 6
        assert gw.remote_exec(add, one="a", other="b").receive(BOUND_S) == "ab"

    def test_wrong_arguments_are_an_error_of_the_far_side(self, makegateway: MakeGateway) -> None:
        def take(channel, one):
            pass

        gateway = makegateway()
        for arguments in {}, {"one": 1, "other": 2}, {"channel": 1, "one": 1}:
            with pytest.raises(RemoteError, match="TypeError"):
                gateway.remote_exec(take, **arguments).waitclose(BOUND_S)

    def test_an_argument_that_cannot_be_sent_starts_nothing(self, makegateway: MakeGateway) -> None:
        def take(channel, one):
            pass

        gateway = makegateway()
        with pytest.raises(DumpError, match=r"\['one'\]\[1\].*object"):
            gateway.remote_exec(take, one=[1, object()])
        gc.collect()
        assert gateway._channelfactory.channels() == []
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_channels_may_be_arguments(self, makegateway: MakeGateway) -> None:
        def send(channel, other):
            other.send(channel.id)

        gateway = makegateway()
        other = gateway.newchannel()
        channel = gateway.remote_exec(send, other=other)
        assert other.receive(BOUND_S) == channel.id

    def test_a_module_runs_from_its_file(self, makegateway: MakeGateway, tmp_path: Path) -> None:
        module = ModuleType("sample")
        module.__file__ = str(tmp_path / "sample.py")
        gateway = makegateway()
        for number in 1, 22:
            (tmp_path / "sample.py").write_text(
                f"if __name__ == '__channelexec__':\n    channel.send({number})\n"
            )
            assert gateway.remote_exec(module).receive(BOUND_S) == number

    @pytest.mark.parametrize("source", [b"pass", None, 5, print, object(), Group])
    def test_what_is_no_code_starts_nothing(self, makegateway: MakeGateway, source: object) -> None:
        gateway = makegateway()
        with pytest.raises((TypeError, ValueError)):
            gateway.remote_exec(source)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            gateway.remote_exec(lambda channel: None)
        assert gateway._channelfactory.channels() == []
        assert gateway.remote_status().numexecuting == 0

    def test_the_traceback_names_the_code(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec("x = 1\n\nraise ValueError('there')")
        with pytest.raises(RemoteError) as caught:
            channel.waitclose(BOUND_S)
        text = str(caught.value)
        assert 'File "<remote exec>", line 3' in text
        assert text.rstrip().endswith("ValueError: there")

    def test_the_traceback_of_code_that_does_not_compile_has_a_frame_of_gateway_base(
        self, makegateway: MakeGateway
    ) -> None:
        with pytest.raises(RemoteError) as caught:
            makegateway().remote_exec("def +").waitclose(BOUND_S)
        assert "gateway_base.py" in str(caught.value)

    def test_the_stack_can_be_inspected(self, makegateway: MakeGateway) -> None:
        code = """
            import inspect
            frames = inspect.stack()
            channel.send([frames[0][1], frames[0][2], frames[0][3]])
            """
        got = makegateway().remote_exec(code).receive(BOUND_S)
        assert got == ["<remote exec>", 3, "<module>"]

    def test_the_source_of_a_string_can_be_had_there(self, makegateway: MakeGateway) -> None:
        code = "import inspect\ndef f():\n    return 7\nchannel.send(inspect.getsource(f))"
        gateway = makegateway()
        gateway.remote_exec("import linecache").waitclose(BOUND_S)
        assert gateway.remote_exec(code).receive(BOUND_S) == "def f():\n    return 7\n"

    def test_an_empty_string_is_code(self, makegateway: MakeGateway) -> None:
        for code in "", "\n", "# nothing":
            makegateway().remote_exec(code).waitclose(BOUND_S)

    def test_code_may_end_without_a_newline_and_begin_indented(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        for code in (
            "if 1:\n  channel.send(1)",
            "\n   channel.send(1)",
            "  channel.send(1)\n  x = 1",
        ):
            assert gateway.remote_exec(code).receive(BOUND_S) == 1

    def test_the_future_of_execnet_is_not_that_of_the_code(self, makegateway: MakeGateway) -> None:
        code = "def f(x: int): pass\nchannel.send(f.__annotations__['x'] is int)"
        assert makegateway().remote_exec(code).receive(BOUND_S) is True


class TestThreadsOfAWorker:
    IN_MAIN = "threading.current_thread() is threading.main_thread()"

    @pytest.mark.parametrize("model", ["thread", *GREENLET_MODELS])
    def test_several_run_at_once(self, makegateway: MakeGateway, model: str) -> None:
        need_model(model)
        gateway = makegateway(f"popen//execmodel={model}")
        channels = [gateway.remote_exec("channel.send(channel.receive())") for _ in range(5)]
        assert gateway.remote_status().numexecuting == 5
        for number, channel in reversed(list(enumerate(channels))):
            channel.send(number)
            assert channel.receive(BOUND_S) == number

    @pytest.mark.parametrize("model", ["thread", "main_thread_only"])
    def test_the_first_runs_in_the_main_thread(self, makegateway: MakeGateway, model: str) -> None:
        need_model(model)
        gateway = makegateway(f"popen//execmodel={model}")
        for _ in range(5):
            channel = gateway.remote_exec(f"import threading; channel.send({self.IN_MAIN})")
            assert channel.receive(BOUND_S) is True
            channel.waitclose(BOUND_S)

    def test_a_second_one_meanwhile_runs_in_another(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//execmodel=thread")
        code = f"import threading; channel.send({self.IN_MAIN}); channel.receive()"
        first, second = gateway.remote_exec(code), gateway.remote_exec(code)
        assert (first.receive(BOUND_S), second.receive(BOUND_S)) == (True, False)
        first.send(None)
        first.waitclose(BOUND_S)
        third = gateway.remote_exec(code)
        assert third.receive(BOUND_S) is True

    @pytest.mark.parametrize(
        "code",
        [
            "1/0",
            "raise SystemExit",
            "raise KeyboardInterrupt",
            "def f(:",
            "channel.send(object())",
            "channel.close()",
            "import threading; threading.Thread(target=channel.receive, daemon=True).start()",
        ],
    )
    @pytest.mark.parametrize("model", ["thread", "main_thread_only"])
    def test_one_that_failed_leaves_the_main_thread_free(
        self, makegateway: MakeGateway, model: str, code: str
    ) -> None:
        need_model(model)
        gateway = makegateway(f"popen//execmodel={model}")
        for _ in range(2):
            channel = gateway.remote_exec(code)
            with contextlib.suppress(RemoteError):
                channel.waitclose(BOUND_S)
            channel = gateway.remote_exec(f"import threading; channel.send({self.IN_MAIN})")
            assert channel.receive(BOUND_S) is True
            channel.waitclose(BOUND_S)

    def test_one_behind_another_need_not_wait_for_its_end(self, makegateway: MakeGateway) -> None:
        """The last item of code comes before its end, and the next one is let in all the same."""
        gateway = makegateway("popen//execmodel=main_thread_only")
        for number in range(50):
            assert gateway.remote_exec(f"channel.send({number})").receive(BOUND_S) == number

    def test_main_thread_only_refuses_a_second_one(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//execmodel=main_thread_only")
        first = gateway.remote_exec("channel.send(channel.receive())")
        refused = [gateway.remote_exec("channel.send('never')") for _ in range(3)]
        for channel in refused:
            with pytest.raises(RemoteError) as caught:
                channel.receive(BOUND_S)
            assert str(caught.value) == MAIN_THREAD_ONLY_DEADLOCK_TEXT
        first.send(1)
        assert first.receive(BOUND_S) == 1
        first.waitclose(BOUND_S)
        assert gateway.remote_exec("channel.send(2)").receive(BOUND_S) == 2

    def test_an_interrupt_of_an_idle_worker_harms_nobody(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        for _ in range(3):
            os.kill(gateway._rinfo().pid, signal.SIGINT)
            assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_an_interrupt_of_a_busy_worker_ends_its_code(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("channel.send(1)\nwhile True: pass")
        channel.receive(BOUND_S)
        os.kill(gateway._rinfo().pid, signal.SIGINT)
        with pytest.raises(RemoteError, match=r"^keyboard-interrupted$"):
            channel.waitclose(BOUND_S)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1


class TestFreshWorkers:
    @pytest.mark.timeout(480)  # it makes its own load
    def test_the_first_code_of_many_runs_in_their_main_threads_also_under_load(self) -> None:
        code = "import threading as t; channel.send(t.current_thread() is t.main_thread())"
        command = [sys.executable, "-c", "while True: pass"]
        load = [get_execmodel("thread").subprocess.Popen(command) for _ in range(2)]
        answers = []
        try:
            for _ in range(some_of(10)):
                with Group() as group:
                    group.makegateways(["popen"] * 20)
                    answers += group.remote_exec(code).receive_each()
                    group.terminate(timeout=1)
        finally:
            for process in load:
                process.kill()
                process.wait()
        assert answers == [True] * (20 * some_of(10))


class TestAskingAboutTheWorker:
    def test_its_interpreter_is_known(self, gw: Gateway) -> None:
        info = gw._rinfo()
        assert isinstance(info, RInfo)
        assert info.executable == sys.executable
        assert info.version_info == sys.version_info
        assert len(info.version_info) == 5
        assert info.platform == sys.platform
        assert info.cwd == os.getcwd()
        assert info.pid == gw._io.popen.pid
        assert str(info.pid) in repr(info)

    def test_it_is_asked_again_on_request_only(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        info = gateway._rinfo()
        assert gateway._cache_rinfo is info
        assert gateway._rinfo() is info
        gateway.remote_exec("import os; os.chdir('/')").waitclose(BOUND_S)
        assert gateway._rinfo().cwd == os.getcwd()
        assert gateway._rinfo(update=True).cwd == "/"
        assert gateway._rinfo().cwd == "/"

    def test_it_is_known_still_when_the_worker_has_gone(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        gateway.exit()
        gateway.join(BOUND_S)
        assert gateway._rinfo().pid == gateway._io.popen.pid

    def test_programs_may_ask_with_code_of_their_own(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        mapping = gateway.remote_exec(rinfo_source).receive(BOUND_S)
        info = RInfo(mapping)
        for name in "executable", "version_info", "platform", "cwd", "pid":
            assert getattr(info, name) == getattr(gateway._rinfo(), name)

    def test_the_source_of_that_code_runs_by_itself(self) -> None:
        sent: list[Any] = []
        names: dict[str, Any] = {}
        exec(inspect.getsource(rinfo_source), names)
        names["rinfo_source"](SimpleNamespace(send=sent.append))
        assert RInfo(sent[0]).version_info == tuple(sys.version_info[:5])

    def test_its_status_counts_channels_and_executions(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        status = gateway.remote_status()
        assert isinstance(status, RemoteStatus)
        assert (status.numchannels, status.numexecuting, status.execmodel) == (0, 0, "thread")
        channels = [gateway.remote_exec("channel.receive()") for _ in range(2)]
        status = gateway.remote_status()
        assert (status.numchannels, status.numexecuting) == (2, 2)
        assert "numexecuting=2" in repr(status)
        for channel in channels:
            channel.send(1)
            channel.waitclose(BOUND_S)
        wait_until(lambda: gateway.remote_status().numexecuting == 0)
        assert gateway.remote_status().numchannels == 0

    @pytest.mark.parametrize("work", ["time.sleep(100)", "pass"])
    @pytest.mark.parametrize("model", ["thread", "main_thread_only"])
    def test_it_answers_while_its_main_thread_is_busy(
        self, makegateway: MakeGateway, model: str, work: str
    ) -> None:
        need_model(model)
        gateway = makegateway(f"popen//execmodel={model}")
        code = f"import time; channel.send(1)\nwhile True: {work}"
        gateway.remote_exec(code).receive(BOUND_S)
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda: result.extend([gateway.remote_status(), gateway._rinfo(update=True)]),
            daemon=True,
        )
        thread.start()
        thread.join(BOUND_S)
        status, info = result
        assert status.numexecuting == 1
        assert info.pid == gateway._io.popen.pid
        os.kill(info.pid, signal.SIGKILL)

    @pytest.mark.parametrize("model", EXECMODELS)
    def test_it_answers_while_its_code_waits(self, makegateway: MakeGateway, model: str) -> None:
        need_model(model)
        gateway = makegateway(f"popen//execmodel={model}")
        channel = gateway.remote_exec("channel.receive()")
        assert gateway.remote_status().numexecuting == 1
        channel.send(1)


# Each makes the worker write these bytes into the stream, behind whole frames.
GARBAGE = {
    "unknown code": (struct.pack("!bii", 99, 1, 0), "code 99"),
    "negative code": (struct.pack("!bii", -1, 1, 0), "code -1"),
    "negative channel": (struct.pack("!bii", 4, -7, 0), "channel -7"),
    "negative size": (struct.pack("!bii", 4, 1, -5), "-5 bytes"),
    "absurd size": (struct.pack("!bii", 4, 1, 2**31 - 1), "2147483647 bytes"),
    "text": (b"Segmentation fault\n", "Segmentation"),
    "a piece of nothing": (struct.pack("!bii", 9, 1, 0), ""),
    "a piece without a number": (struct.pack("!bii", 9, 1, 4) + b"\0\0\0\1", ""),
    "an error that is no item": (struct.pack("!bii", 6, 1, 2) + b"xx", ""),
    "a configuration that is none": (struct.pack("!bii", 1, 0, 6) + dumps_internal(5), ""),
    "a hello that is none": (struct.pack("!bii", 8, 0, 6) + dumps_internal(5), ""),
    "a hello without a word": (struct.pack("!bii", 8, 0, 2) + dumps_internal({}), ""),
}


class TestAGarbledStream:
    def garble(self, gateway: Gateway, garbage: bytes) -> Channel:
        channel = gateway.remote_exec(
            """
            channel.send("whole")
            channel.gateway._io.write(channel.receive())
            channel.receive()
            """
        )
        assert channel.receive(BOUND_S) == "whole"
        channel.send(garbage)
        return channel

    @pytest.mark.parametrize("name", GARBAGE)
    def test_the_cause_reaches_who_waits(self, makegateway: MakeGateway, name: str) -> None:
        garbage, words = GARBAGE[name]
        gateway = makegateway()
        other = gateway.newchannel()
        channel = self.garble(gateway, garbage)
        for one in channel, other:
            with pytest.raises(ProtocolError, match=f"gw0.*{words}") as caught:
                one.receive(BOUND_S)
            assert isinstance(caught.value, EOFError)
        assert not gateway.hasreceiver() or gateway.join(BOUND_S) is None

    def test_the_worker_is_gone_and_nothing_is_sent_any_more(self, group: Group) -> None:
        gateway = group.makegateway()
        channel = self.garble(gateway, b"\xff" * 20)
        with pytest.raises(ProtocolError):
            channel.waitclose(BOUND_S)
        with pytest.raises(OSError, match="cannot send"):
            channel.send(1)
        with pytest.raises(OSError, match="closed"):
            gateway.remote_exec("pass")
        gateway.join(BOUND_S)
        wait_until(lambda: gateway._io.popen.poll() is not None)

    def test_an_item_that_cannot_be_read_ends_its_channel_only(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        channel = self.garble(gateway, struct.pack("!bii", 4, 1, 9) + b"?" * 9)
        with pytest.raises(execnet.LoadError, match="opcode"):
            channel.receive(BOUND_S)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_an_error_that_is_no_text_can_be_read_all_the_same(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        channel = self.garble(gateway, struct.pack("!bii", 6, 1, 6) + dumps_internal(5))
        with pytest.raises((RemoteError, ProtocolError)) as caught:
            channel.receive(BOUND_S)
        assert "5" in str(caught.value)

    def test_garbage_for_a_worker_ends_it(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("channel.receive()")
        gateway._io.write(b"\xff" * 20)
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)
        gateway.join(BOUND_S)
        assert gateway._state == "lost"


class FakeIO(Popen2IO):
    """A stream whose far ends the test holds."""

    def __init__(self, execmodel: ExecModel) -> None:
        self.far_reads, near_writes = os.pipe()
        near_reads, self.far_writes = os.pipe()
        super().__init__(
            execmodel.fdopen(near_writes, "wb"), execmodel.fdopen(near_reads, "rb"), execmodel
        )
        self.calls: list[str] = []

    def wait(self) -> None:
        self.calls.append("wait")

    def kill(self) -> None:
        self.calls.append("kill")

    def end(self) -> None:
        os.close(self.far_reads)
        os.close(self.far_writes)


class TestAStreamOfAnyKind:
    def test_a_gateway_works_over_whatever_can_read_and_write(self) -> None:
        io = FakeIO(get_execmodel("thread"))
        gateway = Gateway(io, XSpec("popen//id=x"))
        channel = gateway.newchannel()
        data = dumps_internal("item")
        frame = struct.pack("!bii", Message.CHANNEL_DATA, channel.id, len(data)) + data
        for byte in frame:
            os.write(io.far_writes, bytes([byte]))
        assert channel.receive(BOUND_S) == "item"
        io.end()
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)
        gateway.join(BOUND_S)
        wait_until(lambda: io.calls == ["wait"])
        gateway.exit()

    @pytest.mark.parametrize("cut", [1, 8, 9, 12])
    def test_an_end_within_a_frame_is_told(self, cut: int) -> None:
        io = FakeIO(get_execmodel("thread"))
        gateway = Gateway(io, XSpec("popen//id=x"))
        channel = gateway.newchannel()
        os.write(io.far_writes, (struct.pack("!bii", 4, channel.id, 8) + b"cut here")[:cut])
        io.end()
        with pytest.raises(EOFError, match="within"):
            channel.receive(BOUND_S)
        gateway.join(BOUND_S)

    def test_a_worker_works_over_it_too(self) -> None:
        """Two gateways, mouth to mouth, in one process."""
        threads = get_execmodel("thread")
        near = FakeIO(threads)
        far = Popen2IO(
            threads.fdopen(near.far_writes, "wb"), threads.fdopen(near.far_reads, "rb"), threads
        )
        worker = WorkerGateway(io=far, id="w", _startcount=2)
        serving = threading.Thread(target=worker.serve)
        serving.start()
        gateway = Gateway(near, XSpec("popen//id=x"))
        channel = gateway.remote_exec("channel.send(channel.receive() + 1)")
        channel.send(41)
        assert channel.receive(BOUND_S) == 42
        channel.waitclose(BOUND_S)
        assert gateway._rinfo().pid == os.getpid()
        gateway.exit()
        gateway.join(BOUND_S)
        serving.join(BOUND_S)
        assert not serving.is_alive()
        assert near.calls == ["wait"]


class TestReconfigure:
    def test_it_holds_for_later_channels_on_both_sides(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        before = gateway.newchannel()
        gateway.reconfigure(py2str_as_py3str=False, py3str_as_py2str=True)
        channel = gateway.remote_exec(
            "channel.send([channel._strconfig, channel.gateway._strconfig])"
        )
        assert channel.receive(BOUND_S) == [(False, True), (False, True)]
        assert gateway._strconfig == channel._strconfig == (False, True)
        assert before._strconfig == (True, False)
        gateway.reconfigure()
        assert gateway._strconfig == (True, False)


class TestInterruptsHere:
    @pytest.mark.parametrize("call", ["receive", "waitclose"])
    def test_one_in_a_waiting_call_leaves_the_gateway_as_it_was(
        self, gw: Gateway, call: str
    ) -> None:
        channel = gw.remote_exec("for item in channel: channel.send(item)")
        for number in range(3):
            with interrupt_in(call, gw.execmodel), pytest.raises(KeyboardInterrupt):
                getattr(channel, call)()
            channel.send(number)
            assert channel.receive(BOUND_S) == number
        assert channel.isclosed() is False


@contextlib.contextmanager
def interrupt_in(call: str, execmodel: ExecModel) -> Iterator[None]:
    """Send this process SIGINT once its main thread, or greenlet, waits in a call."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_when_it_is_there() -> None:
        main = threading.main_thread().ident or 0
        wait_until(lambda: call in names_of_functions(sys._current_frames()[main]))
        interrupt()

    if execmodel.backend in GREENLET_MODELS:
        execmodel.start(interrupt)  # it runs as soon as the main greenlet waits
        yield
        return
    thread = threading.Thread(target=interrupt_when_it_is_there)
    thread.start()
    yield
    thread.join(BOUND_S)


def names_of_functions(frame: Any) -> list[str]:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


class TestRoundTripOfSpecs:
    def test_the_attributes_of_a_spec_can_be_sent(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//chdir=.//env:A=1")
        channel = gateway.remote_exec("channel.send(channel.receive())")
        channel.send(vars(gateway.spec))
        got = channel.receive(BOUND_S)
        assert got == vars(gateway.spec)
        assert json.dumps(got)
