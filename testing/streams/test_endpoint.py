"""What all streams of the coordinator have in common, and what a stream may lack."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, Resources

import execnet
from execnet import Gateway, Group, XSpec
from execnet._endpoint import Endpoint, endpoint_of
from execnet._forkserver.stream import ForkedIO
from execnet._transports.tls import Tls, TlsIO
from execnet._via.stream import ViaIO
from execnet.gateway_base import ExecModel, Popen2IO, WorkerGateway, get_execmodel
from execnet.gateway_io import Popen2IOMaster
from execnet.gateway_socket import SocketIO

pytestmark = pytest.mark.core

PACKAGE = Path(execnet.__file__).parent
KINDS = [Popen2IOMaster, SocketIO, TlsIO, ViaIO, ForkedIO]
MEMBERS = {*dir(Endpoint), *Endpoint.__annotations__}


class TestTheBase:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_of_stream_has_all_that_is_abstract(self, kind: type) -> None:
        assert issubclass(kind, Endpoint)
        assert kind.__abstractmethods__ == frozenset()  # type: ignore[attr-defined]

    def test_it_has_every_member_that_a_gateway_asks_its_stream_for(self) -> None:
        asked = {
            node.attr
            for path in PACKAGE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
            and (of := ast.unparse(node.value)).endswith(("._io", ".endpoint"))
            and not (of == "self._io" and path.parent.name == "_via")  # which is a ``ViaIO``
            and path.parent.name not in ("_service", "_resume")  # which make their own
        }
        of_workers, of_writers = {"has_more"}, {"hand_in"}
        of_links = {"on_ack"}  # nothing else is sent an ACK: ``_ends.admission``
        assert {"wait", "kill", "read_some", "carrier"} <= asked
        assert asked - MEMBERS - of_workers - of_writers - of_links == set()

    @pytest.mark.parametrize(
        "name", ["has_ended", "disown", "kill", "wait", "poll_until", "note_status"]
    )
    def test_one_that_wraps_another_passes_on_what_is_asked_of_the_worker(self, name: str) -> None:
        class Within:
            execmodel, args, remoteaddress = get_execmodel("thread"), (), "far"

            def __getattr__(self, name: str) -> Any:
                return lambda *args: asked.append(name)

        asked: list[str] = []
        io = TlsIO(Within(), Tls.__new__(Tls))  # type: ignore[arg-type]
        getattr(io, name)(*([0] if name in ("poll_until", "note_status") else []))
        assert asked == [name]

    def test_one_is_taken_as_it_is(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            io = SocketIO(ours, get_execmodel("thread"), "far:1")
            assert endpoint_of(io) is io


class Noted(Endpoint):
    """What is abstract, and notes what is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def write(self, data: bytes) -> None:
        self.calls.append("write")

    def wait_writable(self) -> None:
        self.calls.append("wait_writable")

    def can_write_now(self) -> bool:
        return True

    def close_write(self) -> None:
        self.calls.append("close_write")

    def read_some(self, limit: int) -> bytes:
        return b""

    def close_read(self) -> None:
        self.calls.append("close_read")

    def wait(self) -> int | None:
        self.calls.append("wait")
        return None

    def poll_until(self, deadline: float) -> int | None:
        return None

    def kill(self) -> None:
        self.calls.append("kill")


class TestTheDefaults:
    def test_a_stream_has_nothing_special_unless_it_says_so(self) -> None:
        io = Noted()
        assert (io.needs_boot, io.could_not_start, io.takes_whole) == (False,) * 3
        assert io.small_bytes == 0
        assert (io.stdout_fd, io.carrier, io.worker_pid, io.write_pieces) == (None,) * 4
        assert (io.direct_reads(), io.stderr_tail(), io.args) == (None, "", ())
        assert (io.has_ended(), io.is_connecting()) == (False, False)
        for call in io.kill_group, io.end, io.disown:
            call()
        assert io.calls == []

    def test_one_that_is_discarded_is_killed_waited_for_and_closed(self) -> None:
        io = Noted()
        io.discard()
        assert io.calls == ["kill", "wait", "close_write", "close_read"]

    def test_a_worker_behind_which_nothing_answers_is_killed_with_what_it_started(self) -> None:
        io = Noted()
        io.worker_pid = 5
        io.note_silence()
        assert io.worker_pid is None


class LeastIO:
    """A stream over two pipes with what nothing goes without."""

    def __init__(self, reads: int, writes: int, execmodel: ExecModel) -> None:
        self.execmodel = execmodel
        self.note = "its own"
        self._reads, self._writes = reads, writes

    def read_some(self, limit: int) -> bytes:
        return os.read(self._reads, limit)

    def write(self, data: bytes) -> None:
        os.write(self._writes, data)

    def close_read(self) -> None:
        os.close(self._reads)

    def close_write(self) -> None:
        os.close(self._writes)


class TestAForeignStream:
    def test_a_gateway_works_over_it_and_its_group_ends_it(self) -> None:
        before = Resources.now()
        there, back = os.pipe(), os.pipe()
        model = get_execmodel("thread")
        far = Popen2IO(model.fdopen(back[1], "wb"), model.fdopen(there[0], "rb"), model)
        worker = WorkerGateway(io=far, id="w", _startcount=2)
        serving = threading.Thread(target=worker.serve)
        serving.start()
        with Group() as group:
            gateway = Gateway(LeastIO(back[0], there[1], model), XSpec("popen//id=x"))
            group._register(gateway)
            channel = gateway.remote_exec("channel.send(channel.receive() + 1)")
            channel.send(41)
            assert channel.receive(BOUND_S) == 42
            assert gateway.remoteaddress is None
        serving.join(BOUND_S)
        before.assert_nothing_new()

    def test_what_it_has_is_used_and_found(self) -> None:
        class Io(LeastIO):
            worker_pid = 5
            poll_until = staticmethod(lambda deadline: 3)

        io = endpoint_of(Io(0, 0, get_execmodel("thread")))
        assert (io.worker_pid, io.poll_until(0.0), io.has_ended()) == (5, 3, True)
        assert (io.wait(), io.stderr_tail()) == (None, "")
        noted: Any = io
        assert noted.note == "its own"
        with pytest.raises(AttributeError, match="not_there"):
            noted.not_there  # noqa: B018

    def test_it_may_stand_in_for_the_stream_of_a_process(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class ProcessIO(LeastIO):
            def __init__(self, args: list[str], execmodel: ExecModel) -> None:
                pipe = subprocess.PIPE
                self.popen = subprocess.Popen(args, stdin=pipe, stdout=pipe, bufsize=0)
                assert self.popen.stdin is not None
                assert self.popen.stdout is not None
                super().__init__(self.popen.stdout.fileno(), self.popen.stdin.fileno(), execmodel)

            def close_read(self) -> None:
                self.popen.stdout.close()  # type: ignore[union-attr]

            def close_write(self) -> None:
                self.popen.stdin.close()  # type: ignore[union-attr]

            def wait(self) -> int:
                return self.popen.wait()

            def kill(self) -> None:
                self.popen.kill()

        monkeypatch.setattr("execnet.gateway_io.Popen2IOMaster", ProcessIO)
        gateway = group.makegateway(f"popen//python={sys.executable}")
        assert gateway._io.popen.pid == gateway._rinfo().pid  # type: ignore[attr-defined]
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
