"""``output=``: every kind of worker, what becomes of its descriptors, and how lines are cut.

What comes of forwarded lines is in ``test_output.py``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreters import Interpreter, chosen
from socketservers import Servers
from tools import BOUND_S, MakeGateway, run_python, wait_until
from written import FORWARD, Written, run_in

from execnet import Group
from execnet._forkserver import templates
from execnet._output.far import LINE_BYTES, Splitter
from execnet.gateway_base import ExecModel
from execnet.gateway_bootstrap import BootstrapError

MARK = b"\0mark"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="commands of POSIX")


class TestTheWorker:
    def test_the_first_code_of_a_user_has_the_main_thread(self, makegateway: MakeGateway) -> None:
        code = "import threading; channel.send(threading.current_thread().name)"
        for execmodel in "thread", "main_thread_only":
            gateway = makegateway(f"{FORWARD}//execmodel={execmodel}")
            assert gateway.remote_exec(code).receive(BOUND_S) == "MainThread"

    def test_it_can_redirect_its_stdout_itself(
        self, group: Group, written: Written, tmp_path: Path
    ) -> None:
        file = tmp_path / "file"
        code = "import os\nprint('before')\nfd = os.open(channel.receive(), os.O_RDWR|os.O_CREAT)\n"
        code += "os.dup2(fd, 1); print('into the file')\n"
        code += "import atexit; atexit.register(os.write, 1, b'at the end\\n')"
        channel = group.makegateway(FORWARD).remote_exec(code)
        channel.send(str(file))
        channel.waitclose(BOUND_S)
        group.terminate(BOUND_S)
        assert (written.lines(), file.read_text()) == (["before"], "into the file\nat the end\n")

    def test_its_own_output_does_not_stop_it_when_the_coordinator_is_gone(self) -> None:
        code = """if 1:
            import execnet, os
            gateway = execnet.makegateway("popen//output=forward//grace=20")
            source = "try: channel.send(1); channel.receive()\\nfinally:\\n"
            source += " for i in range(100000): print('%0100d' % i)\\n open(path, 'w').close()"
            channel = gateway.remote_exec("path = channel.receive()\\n" + source)
            channel.send(os.environ["WHERE"]); channel.receive()
            os._exit(0)
        """
        where = Path(os.environ.get("TMPDIR", "/tmp")) / f"execnet-output-{os.getpid()}"
        run_python(code, WHERE=str(where))
        try:
            wait_until(where.exists, 20)
        finally:
            where.unlink(missing_ok=True)

    @pytest.mark.parametrize("python", chosen(), ids=str)
    def test_any_python_will_do(self, group: Group, written: Written, python: Interpreter) -> None:
        gateway = group.makegateway(f"{python.spec}//output=forward")
        code = "import os, sys\nprint('p')\nchannel.receive()\nos.system('echo s')\n"
        channel = gateway.remote_exec(code + "sys.stderr.write('e\\n'); sys.stdout.write('q')")
        wait_until(lambda: written.lines() == ["p"])
        channel.send(None)
        channel.waitclose(BOUND_S)
        group.terminate(BOUND_S)
        assert (written.lines(), written.lines("stderr")) == (["p", "s", "q"], ["e"])

    @pytest.mark.parametrize(
        "spec", ["popen//via=carrier", "popen//kill=group", "popen//forkserver", "socket"]
    )
    def test_any_way_to_it_will_do(
        self, group: Group, written: Written, servers: Servers, spec: str
    ) -> None:
        group.makegateway("popen//id=carrier")
        spec = f"socket={servers.start().address}" if spec == "socket" else spec
        try:
            run_in(
                group.makegateway(f"{spec}//output=forward"),
                "import os; print('p'); os.system('echo s')",
            )
            group.terminate(BOUND_S)
            assert written.lines() == ["p", "s"]
        finally:
            templates.shutdown()

    def test_any_execution_model_will_do(self, execmodel: ExecModel) -> None:
        group, written = Group(execmodel=execmodel), Written()
        group.on_output(written)
        channel = group.makegateway(FORWARD).remote_exec(
            "import os; print('p'); os.system('echo s'); channel.receive(); print('q')"
        )
        wait_until(lambda: written.lines() == ["p", "s"], sleep=execmodel.sleep)
        channel.send(None)
        group.terminate(BOUND_S)
        assert written.lines() == ["p", "s", "q"]

    def test_one_that_can_not_forward_is_no_gateway(self, group: Group) -> None:
        # Room for the worker itself, but not for the pipes.
        python = f"sh -c 'ulimit -n 9; exec {sys.executable} \"$@\"' sh"
        with pytest.raises(BootstrapError, match="output of workers can't be forwarded"):
            group.makegateway(f"{FORWARD}//python={python}")
        assert len(group) == 0


class TestInherit:
    def test_stdout_of_a_worker_is_that_of_the_coordinator(
        self, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run_in(makegateway("popen//output=inherit"), "import os; print('p'); os.system('echo s')")
        assert capfd.readouterr().out == "p\ns\n"

    @pytest.mark.parametrize("python", chosen(), ids=str)
    def test_any_python_will_do(
        self, makegateway: MakeGateway, capfd: pytest.CaptureFixture[str], python: Interpreter
    ) -> None:
        run_in(makegateway(f"{python.spec}//output=inherit"), "print('p')")
        assert capfd.readouterr().out == "p\n"

    def test_the_worker_keeps_no_further_descriptor(self, makegateway: MakeGateway) -> None:
        code = "import os; channel.send(len(os.listdir('/proc/self/fd')))"
        counts = [
            makegateway(f"popen{option}").remote_exec(code).receive(BOUND_S)
            for option in ("", "//output=inherit")
        ]
        assert counts[0] == counts[1]

    def test_a_program_in_between_that_closes_it_is_an_error(
        self, makegateway: MakeGateway
    ) -> None:
        close = "import os, sys; os.closerange(3, 99); os.execv(sys.executable, sys.argv)"
        python = f'{sys.executable} -c "{close}"'
        with pytest.raises(BootstrapError, match="Bad file descriptor"):
            makegateway(f"popen//output=inherit//python={python}")


class TestSpecs:
    @pytest.mark.parametrize("value", ["", "=", "=x", "=Forward"])
    def test_there_is_forward_and_inherit(self, makegateway: MakeGateway, value: str) -> None:
        with pytest.raises(ValueError, match="output="):
            makegateway(f"popen//output{value}")

    @pytest.mark.parametrize("spec", ["ssh=host", "socket=host:1", "popen//forkserver"])
    def test_inherit_is_for_popen(self, makegateway: MakeGateway, spec: str) -> None:
        with pytest.raises(ValueError, match="output=inherit is for popen on this machine only"):
            makegateway(f"{spec}//output=inherit")

    def test_without_it_nothing_is_forwarded(
        self, group: Group, written: Written, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run_in(group.makegateway(), "import sys; print('out'); sys.stderr.write('err\\n')")
        group.terminate(BOUND_S)
        assert (written.all, capfd.readouterr()) == ([], ("", "err\n"))


class TestSplitter:
    @given(st.lists(st.text("ab\n\xe4", max_size=9)), st.integers(1, 9))
    def test_lines_are_the_same_in_any_cut(self, words: list[str], size: int) -> None:
        data = "".join(words).encode()
        splitter, pieces = Splitter(MARK), []
        for start in range(0, len(data), size):
            pieces.append(splitter.feed(data[start : start + size]))
            assert pieces[-1][-1:] in (b"", b"\n")
        pieces.append(splitter.feed(b""))
        assert (b"".join(pieces), splitter.ended) == (data, True)

    @given(st.binary(max_size=30), st.integers(1, 9))
    def test_the_mark_ends_it_in_any_cut(self, data: bytes, size: int) -> None:
        stream, splitter, pieces = data + MARK + b"of a child", Splitter(MARK), []
        while not splitter.ended:
            pieces.append(splitter.feed(stream[:size]))
            stream = stream[size:]
        assert b"".join(pieces) == data

    @given(st.integers(0, 9), st.integers(0, 3))
    def test_a_long_line_is_cut_between_characters_and_not_in_the_mark(
        self, beyond: int, shift: int
    ) -> None:
        text = ("x" * shift + "\u20ac" * (LINE_BYTES // 3 + beyond)).encode()
        splitter, pieces = Splitter(MARK), []
        for data in (text[:LINE_BYTES], text[LINE_BYTES:] + MARK[:2], MARK[2:]):
            pieces.append(splitter.feed(data))
        lines = b"".join(pieces).decode().split("\n")
        assert (splitter.ended, "".join(lines).encode()) == (True, text)
        assert max(map(len, lines)) <= LINE_BYTES
