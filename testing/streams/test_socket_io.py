"""The stream over a socket: frames, ends from either side, and what is known of them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tools import BOUND_S, Task, wait_until

from execnet.gateway_base import FrameWriter, get_execmodel
from execnet.gateway_socket import SocketIO

pytestmark = pytest.mark.core

Pair = tuple[SocketIO, socket.socket]


class TestSocketIO:
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        """A stream and the plain socket at its other side."""
        ours, theirs = socket.socketpair()
        yield SocketIO(ours, get_execmodel("thread"), "far:1"), theirs
        ours.close()
        theirs.close()

    def test_a_frame_goes_out_whole_whatever_the_system_takes_at_once(self, pair: Pair) -> None:
        io, theirs = pair
        payload = bytes(range(250)) * 80
        for taken in 0, 3, 9, 10, 16393, 20009:
            limits = iter([taken])
            io.write_pieces = lambda buffers, limits=limits: io._sock.send(
                b"".join(buffers)[: next(limits, None)]
            )
            FrameWriter(io, "gw").send(b"headerxyz", payload)
            data = b""
            while len(data) < 20009:
                data += theirs.recv(65536)
            assert data == b"headerxyz" + payload, taken

    def test_a_forked_process_lets_go_of_it_and_ends_nothing(self, pair: Pair) -> None:
        io, theirs = pair
        with io._sock.dup():  # as the parent's
            io.disown()
            assert io._sock.fileno() == -1
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    def test_what_an_interrupted_frame_lacks_is_known(self, pair: Pair) -> None:
        io, theirs = pair
        answers = iter([5, 4, 7000, KeyboardInterrupt()])

        class Interrupted:
            def send(self, data: bytes) -> int:
                answer = next(answers)
                if isinstance(answer, BaseException):
                    raise answer
                return io_sock.send(data[:answer])

        io_sock, io.write_some, io.write_pieces = io._sock, Interrupted().send, None
        writer = FrameWriter(io, "gw")
        frame = writer.frame(b"headerxyz", b"p" * 20000)
        writer._flush_queued = lambda: None  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            writer.deliver(frame)
        assert frame[2] == [5, 4, 7000]
        assert theirs.recv(65536) == b"headerxyz" + b"p" * 7000

    def test_the_end_of_writing_is_seen_while_reading_goes_on(self, pair: Pair) -> None:
        io, theirs = pair
        io.write(b"last")
        io.close_write()
        assert theirs.recv(10) == b"last"
        assert theirs.recv(10) == b""
        theirs.sendall(b"answer")
        assert io.read_some(100) == b"answer"

    def test_kill_wakes_up_who_reads(self, pair: Pair) -> None:
        io, theirs = pair
        reading = Task(io.execmodel, io.read_some, 100)
        io.kill()
        assert reading.result() == b""
        assert theirs.recv(1) == b""
        io.kill()

    def test_close_read_wakes_up_who_writes(self, pair: Pair) -> None:
        io, _ = pair
        writing = Task(io.execmodel, io.write, b"x" * 50_000_000)
        wait_until(lambda: not io.can_write_now())
        io.close_read()
        with pytest.raises(OSError, match=r"\[Errno"):
            writing.result()
        io.close_read()
        io.close_write()
        assert io.can_write_now()

    def test_it_can_tell_whether_writing_would_wait(self, pair: Pair) -> None:
        io, _ = pair
        assert io.can_write_now()
        io._sock.setblocking(False)
        for _ in range(1000):
            with suppress(BlockingIOError):
                io._sock.send(b"x" * 65536)
        assert not io.can_write_now()

    @pytest.mark.parametrize("told", [None, 0, 3])
    def test_its_end_has_a_status_only_if_the_worker_told_it(
        self, pair: Pair, told: int | None
    ) -> None:
        io, theirs = pair
        io.close_write()
        io.note_status(told)
        assert io.poll_until(time.monotonic()) is None
        theirs.close()
        assert io.read_some(1) == b""
        io.close_read()
        assert io.wait() == told
        assert io.poll_until(time.monotonic()) == told
        assert io.has_ended()

    def test_an_end_that_another_thread_has_read_is_known(self, pair: Pair) -> None:
        io, theirs = pair
        start = time.monotonic()
        io.close_write()
        assert io.poll_until(time.monotonic()) is None
        theirs.sendall(b"x")
        theirs.close()
        assert io.poll_until(time.monotonic()) is None, "there is more to be read"
        assert os.read(io._sock.fileno(), 10) == b"x"
        assert os.read(io._sock.fileno(), 10) == b""
        assert io.poll_until(time.monotonic() + BOUND_S) is None
        assert io.has_ended()
        assert time.monotonic() - start < 5
        io.close_read()
        assert io.direct_reads() is None

    def test_a_killed_one_does_not_have_to_be_waited_for(self, pair: Pair) -> None:
        io, _ = pair
        io.note_status(0)
        io.kill()
        assert io.wait() is None, "nobody knows how the worker has ended now"
        assert io.has_ended()

    def test_a_kill_after_the_end_changes_nothing(self, pair: Pair) -> None:
        io, theirs = pair
        io.note_status(0)
        theirs.close()
        assert io.read_some(1) == b""
        io.kill()
        assert io.wait() == 0

    def test_a_reset_is_an_end(self, pair: Pair) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
        io = SocketIO(ours, get_execmodel("thread"), "far:1")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            io.read_some(1)
        io.close_read()
        io.close_write()
        assert io.wait() is None
        assert io.has_ended()
        listener.close()
