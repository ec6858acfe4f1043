"""What the core may ask of every kind of stream, in every execution model that it works in.

Each test holds both ends: ``io`` is written and read as a gateway does, ``far`` is a pair of
plain descriptors. A new kind of stream is one more class in ``stream_ends``, whose docstring says
what it needs; all that is here holds for it then, or shows what it lacks.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from stream_ends import ALL, Far, Stream
from tools import BOUND_S, Task

from execnet.gateway_base import ExecModel, FrameWriter, Message

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="far ends are descriptors of POSIX"),
    pytest.mark.usefixtures("templates"),
]

LARGE = 1 << 20
MANY = 16  # frames of that size are more than any stream takes while nobody reads
Made = tuple[Any, Far]
Frame = tuple[int, bytes]


@pytest.fixture(params=ALL)
def stream(request: pytest.FixtureRequest) -> Stream:
    """Each kind of stream in turn."""
    return ALL[request.param]


@pytest.fixture
def made(stream: Stream, execmodel: ExecModel, nothing_is_left: None) -> Iterator[Made]:
    """A stream and its far end."""
    if execmodel.backend not in stream.models:
        pytest.skip(f"it does not work in {execmodel.backend}")
    with stream.make(execmodel) as made:
        yield made


def writer_of(io: Any) -> FrameWriter:
    writer: FrameWriter = getattr(io, "writer_class", FrameWriter)(io, "gw")
    return writer


def header(channel: int, payload: bytes) -> bytes:
    return struct.pack("!bii", Message.CHANNEL_DATA, channel, len(payload))


def frame(channel: int, size: int) -> Frame:
    return channel, bytes([channel]) * size


def send(writer: FrameWriter, sent: Frame) -> None:
    writer.send(header(*sent), sent[1])


def send_many(io: Any, writer: FrameWriter) -> Task:
    """Begin to send ``MANY`` frames; return when there is no room for them."""
    sending = Task(io.execmodel, lambda: [send(writer, sent) for sent in many()])
    deadline = time.monotonic() + BOUND_S
    while io.can_write_now():
        assert time.monotonic() < deadline, "all of it was taken"
        io.execmodel.sleep(0.001)
    return sending


def many() -> list[Frame]:
    return [frame(number, LARGE) for number in range(1, MANY + 1)]


def read_all(io: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = io.read_some(65536)
        assert more, f"the stream has ended after {len(data)} of {size} bytes"
        data += more
    return data


def read_end(io: Any) -> None:
    with suppress(ConnectionResetError):  # an end as well: not all was read over there
        assert io.read_some(100) == b""


class TestReading:
    def test_bytes_arrive_in_their_order(self, made: Made) -> None:
        io, far = made
        for size in 1, 70_000, LARGE:
            data = os.urandom(size)
            reading = Task(io.execmodel, read_all, io, size)
            far.write(data)
            assert reading.result() == data

    def test_no_more_is_read_than_was_asked_for(self, stream: Stream, made: Made) -> None:
        io, far = made
        if stream.reads_in_pieces:
            pytest.skip("what comes over a channel is read in the pieces in which it came")
        far.write(b"abc")
        assert io.read_some(2) == b"ab"
        assert io.read_some(2) == b"c"

    def test_the_end_comes_after_all_that_was_written_and_can_be_read_again(
        self, made: Made
    ) -> None:
        io, far = made
        far.write(b"x" * 10_000)
        reading = Task(io.execmodel, read_all, io, 10_000)
        far.end()
        assert reading.result() == b"x" * 10_000
        for _ in range(3):
            assert io.read_some(100) == b""

    def test_one_that_waits_is_told_of_the_end(self, made: Made) -> None:
        io, far = made
        reading = Task(io.execmodel, io.read_some, 100)
        io.execmodel.sleep(0)
        far.end()
        assert reading.result() == b""

    def test_what_comes_after_it_was_closed_is_in_nobodys_way(self, made: Made) -> None:
        io, far = made
        io.close_read()
        with suppress(OSError):  # there is nobody left to write to
            far.write(b"x")
        io.close_read()  # once more does no harm


class TestWriting:
    def test_a_frame_of_any_size_arrives(self, made: Made) -> None:
        io, far = made
        writer = writer_of(io)
        for size in 0, 1, 5000, 100_000, LARGE:
            sending = Task(io.execmodel, send, writer, frame(1, size))
            assert far.frames(1) == [frame(1, size)]
            sending.result()

    def test_it_arrives_whole_however_little_is_taken_at_once(
        self, stream: Stream, made: Made
    ) -> None:
        io, far = made
        written = stream.written(io)
        if written is None:
            pytest.skip("a channel takes all of a piece or nothing")
        write, limits = written.write_some, itertools.cycle([1, 0, 8, 9, 10, 16_393])

        def write_some(data: Any) -> int | None:
            taken: int | None = write(bytes(data)[: next(limits)])
            return taken

        written.write_some, written.takes_whole = write_some, False
        if written.write_pieces is not None:
            written.write_pieces = lambda pieces: write_some(b"".join(pieces))
        writer = writer_of(io)
        for number, size in enumerate([0, 10, 2000, 20_000, 100_000], 1):
            sending = Task(io.execmodel, send, writer, frame(number, size))
            assert far.frames(1) == [frame(number, size)]
            sending.result()

    def test_what_is_sent_to_one_who_does_not_read_waits_and_arrives(self, made: Made) -> None:
        io, far = made
        writer = writer_of(io)
        assert io.can_write_now()
        sending = send_many(io, writer)
        posted = frame(99, 100)
        writer.post(header(*posted), posted[1])  # does not wait
        frames = far.frames(MANY + 1)
        assert [sent for sent in frames if sent != posted] == many()
        assert posted in frames
        sending.result()
        assert io.can_write_now()

    def test_what_several_send_at_once_is_not_mixed(self, made: Made) -> None:
        io, far = made
        writer = writer_of(io)
        sizes = [0, 10, 4000, 20_000, 400_000]

        def send_some(number: int) -> None:
            for size in sizes:
                send(writer, frame(number, size))

        tasks = [Task(io.execmodel, send_some, number) for number in (1, 2, 3)]
        frames = far.frames(15)
        for task in tasks:
            task.result()
        for number in (1, 2, 3):
            assert [f for f in frames if f[0] == number] == [frame(number, s) for s in sizes]

    def test_one_that_is_closed_while_somebody_writes_ends_after_that(self, made: Made) -> None:
        io, far = made
        writer = writer_of(io)
        sending = send_many(io, writer)
        writer.close_soon()
        arrived = len(far.read_to_end())
        assert arrived % (LARGE + 9) == 0, "whole frames"
        assert 0 < arrived < MANY * (LARGE + 9)
        with pytest.raises(OSError, match="the gateway was ended"):
            sending.result()
        with pytest.raises(OSError, match="closed"):
            send(writer, frame(2, 0))
        io.close_write()  # once more does no harm

    def test_the_far_end_s_end_is_told_to_one_who_waits_and_to_later_ones(self, made: Made) -> None:
        io, far = made
        writer = writer_of(io)
        sending = send_many(io, writer)
        far.end()
        ending = Task(io.execmodel, read_end, io)  # as a gateway's receiver does
        with pytest.raises(OSError, match="cannot send"):
            sending.result()
        with pytest.raises(OSError, match="cannot send"):
            send(writer, frame(2, 1))
        ending.result()


class Steps:
    """Counts the calls that write a frame; one of them is interrupted in its place.

    That is in the thread or greenlet that makes these, as no other gets interrupts.
    """

    def __init__(self, stream: Stream, io: Any) -> None:
        self.interrupted_at = self._calls = 0
        self._get_ident = io.execmodel.get_ident
        self._ident = self._get_ident()
        for owner, name in stream.steps(io):
            setattr(owner, name, self._step(getattr(owner, name)))

    def _step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if self._get_ident() == self._ident:
                self._calls += 1
                if self._calls == self.interrupted_at:
                    raise KeyboardInterrupt
            return function(*args)

        return call

    def interrupts(self, call: Callable[[], object]) -> Iterator[bool]:
        """Interrupt each step of a call in turn; yield whether there was that step."""
        for number in range(1, 50):
            self.interrupted_at, self._calls = number, 0
            try:
                call()
                came = False
            except KeyboardInterrupt:
                came = True
            self.interrupted_at = 0
            yield came
            if not came:
                assert number > 1, "nothing was interrupted"
                return
        pytest.fail("there is no end of steps")


@pytest.mark.parametrize("size", [10, 20_000, 400_000])
class TestInterrupts:
    def test_a_frame_that_is_delivered_again_arrives_once_whichever_step_was_interrupted(
        self, stream: Stream, made: Made, size: int
    ) -> None:
        io, far = made
        steps = Steps(stream, io)
        writer, sent = writer_of(io), frame(1, size)
        whole: list[Any] = []

        def deliver() -> None:
            whole[:] = [writer.frame(header(*sent), sent[1])]
            writer.deliver(whole[0])

        reading = Task(io.execmodel, far.frames, 1)
        for came in steps.interrupts(deliver):
            if came:
                writer.deliver(whole[0])
            assert reading.result() == [sent]
            reading = Task(io.execmodel, far.frames, 1)
        send(writer, sent)
        assert reading.result() == [sent]

    def test_one_whose_sending_is_interrupted_arrives_once_or_not_at_all(
        self, stream: Stream, made: Made, size: int
    ) -> None:
        io, far = made
        steps = Steps(stream, io)
        writer, sent, last = writer_of(io), frame(1, size), frame(2, size)

        def read_up_to_the_last() -> list[Frame]:
            frames = far.frames(1)
            while frames[-1] != last:
                frames += far.frames(1)
            return frames

        reading = Task(io.execmodel, read_up_to_the_last)
        for came in steps.interrupts(lambda: send(writer, sent)):
            send(writer, last)
            frames = reading.result()
            assert frames == [sent, last] or (came and frames == [last])
            reading = Task(io.execmodel, read_up_to_the_last)
        send(writer, last)
        assert reading.result() == [last]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestForks:
    def test_a_forked_process_leaves_the_stream_to_its_parent(self, made: Made) -> None:
        io, far = made
        if not io.execmodel.has_main_thread:
            pytest.skip("a fork takes the greenlets along")
        pid = os.fork()
        if not pid:
            getattr(io, "disown", int)()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        writer = writer_of(io)
        sending = Task(io.execmodel, send, writer, frame(1, 100_000))
        assert far.frames(1) == [frame(1, 100_000)]
        sending.result()
        far.write(b"answer")
        assert read_all(io, 6) == b"answer"

    def test_one_that_lives_on_does_not_hide_the_end(self, made: Made) -> None:
        io, far = made
        if not io.execmodel.has_main_thread:
            pytest.skip("a fork takes the greenlets along")
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            getattr(io, "disown", int)()
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        try:
            writer_of(io).close_soon()
            assert far.read_to_end() == b""
        finally:
            os.close(writer)
            os.close(reader)
            os.waitpid(pid, 0)


class TestTheWorkersEnd:
    def test_it_is_not_known_before_it_comes(self, made: Made) -> None:
        io, _ = made
        assert io.poll_until(time.monotonic() + 0.05) is None

    def test_a_kill_ends_it_and_each_who_waits_is_told_the_same(
        self, stream: Stream, made: Made
    ) -> None:
        io, far = made
        waiting = [Task(io.execmodel, io.wait) for _ in range(2)]
        io.execmodel.sleep(0)
        io.kill()
        io.kill()
        status = io.wait()
        assert [task.result() for task in waiting] == [status] * 2
        assert io.poll_until(time.monotonic()) == status
        assert io.has_ended()
        assert (status is None) is (stream.end_status is None), "it was killed, not asked"
        far.end()
        read_end(io)

    def test_one_as_asked_has_no_status_where_nothing_tells_it(
        self, stream: Stream, made: Made
    ) -> None:
        io, far = made
        io.close_write()
        far.end()
        read_end(io)
        assert io.wait() == stream.end_status
        assert io.has_ended()

    def test_what_the_worker_has_told_counts_where_nothing_else_does(
        self, stream: Stream, made: Made
    ) -> None:
        io, far = made
        io.note_status(7)
        assert io.poll_until(time.monotonic()) is None
        far.end()
        read_end(io)
        status = 7 if stream.end_status is None else stream.end_status
        assert io.wait() == io.poll_until(time.monotonic()) == status
