"""Byte streams and who writes to them, over real pipes and in all four execution models."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO, TextIOWrapper
from pipes import Pipe

import pytest
from tools import Task, Trickle, run, threads, wait_until

from execnet.gateway_base import (
    ExecModel,
    FrameDecoder,
    FrameWriter,
    Message,
    Popen2IO,
    get_execmodel,
)

pytestmark = pytest.mark.core

THREAD = get_execmodel("thread")


class Sink:
    """Takes at most so many bytes in one write, as a pipe may."""

    def __init__(self, at_most: int | None) -> None:
        self.at_most = at_most
        self.written = b""
        self.writes = 0

    def write(self, data: bytes) -> int | None:
        taken = bytes(data[: self.at_most])
        self.written += taken
        self.writes += 1
        return None if self.at_most is None else len(taken)


@pytest.fixture
def pipe(execmodel: ExecModel) -> Iterator[Pipe]:
    pipe = Pipe(execmodel)
    yield pipe
    pipe.close()


class TestReading:
    def test_it_reads_exactly_so_many_bytes(self) -> None:
        io = Popen2IO(BytesIO(), BytesIO(b"abcdef"), THREAD)
        assert [io.read(2), io.read(0), io.read(3)] == [b"ab", b"", b"cde"]

    def test_it_reads_as_often_as_it_takes(self) -> None:
        assert Popen2IO(BytesIO(), Trickle(b"abcdef"), THREAD).read(6) == b"abcdef"

    def test_its_read_can_be_replaced(self) -> None:
        io = Popen2IO(BytesIO(), BytesIO(), THREAD)
        io._read = Trickle(b"abcdef").read
        assert io.read(5) == b"abcde"

    @pytest.mark.parametrize("wanted", [1, 3, 10**9])
    def test_the_end_within_what_is_wanted_is_an_eof_error(self, wanted: int) -> None:
        for infile in (Trickle(b"ab"[: wanted - 1]), BytesIO(b"ab"[: wanted - 1])):
            with pytest.raises(EOFError):
                Popen2IO(BytesIO(), infile, THREAD).read(wanted)

    def test_some_is_what_is_there(self) -> None:
        io = Popen2IO(BytesIO(), Trickle(b"ab"), THREAD)
        assert [io.read_some(100), io.read_some(100), io.read_some(100)] == [b"a", b"b", b""]

    def test_a_file_of_text_is_read_as_bytes(self) -> None:
        assert (
            Popen2IO(BytesIO(), TextIOWrapper(BytesIO(b"\xff\r\n")), THREAD).read(3) == b"\xff\r\n"
        )

    def test_a_read_that_returns_nothing_is_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Popen2IO(BytesIO(), BytesIO(), THREAD)
        reads = iter([b"1", b"23", b""])
        monkeypatch.setattr(stream, "_read", lambda size: next(reads))
        assert stream.read(3) == b"123"
        with pytest.raises(EOFError):
            stream.read(1)


class TestWriting:
    @pytest.mark.parametrize("at_most", [1, 2, 100, None])
    def test_it_writes_all_of_it(self, at_most: int | None) -> None:
        sink = Sink(at_most)
        io = Popen2IO(sink, BytesIO(), THREAD)
        data = bytes(range(50)) if at_most else b"x"
        io.write(data)
        FrameWriter(io, "gw").send(data, data)
        assert sink.written == data * 3

    def test_a_file_of_text_is_written_as_bytes(self) -> None:
        buffer = BytesIO()
        text = TextIOWrapper(buffer)
        Popen2IO(text, BytesIO(), THREAD).write(b"\xff\n")
        assert buffer.getvalue() == b"\xff\n"

    def test_its_files_are_attributes_and_are_closed(self) -> None:
        outfile, infile = BytesIO(), BytesIO()
        io = Popen2IO(outfile, infile, THREAD)
        assert (io.outfile, io.infile, io.execmodel) == (outfile, infile, THREAD)
        io.close_read()
        assert (outfile.closed, infile.closed) == (False, True)
        io.close_write()
        assert outfile.closed


class TestPipes:
    @pytest.mark.parametrize("size", [1, 70_000, 3_000_000])
    def test_any_amount_arrives(self, pipe: Pipe, size: int) -> None:
        data = os.urandom(size)
        writing = Task(pipe.execmodel, pipe.out.write, data)
        assert pipe.into.read(size) == data
        writing.result()

    def test_nothing_is_there_at_once(self, pipe: Pipe) -> None:
        assert Task(pipe.execmodel, pipe.into.read, 0).result() == b""

    @pytest.mark.parametrize("size", [0, 1, 16_384, 70_000, 3_000_000])
    def test_a_frame_of_any_size_arrives(self, pipe: Pipe, size: int) -> None:
        data = os.urandom(size)
        for payload in (data, memoryview(data)):
            writing = Task(pipe.execmodel, FrameWriter(pipe.out, "gw").send, b"header", payload)
            assert pipe.into.read(6 + size) == b"header" + data
            writing.result()

    @pytest.mark.skipif(not hasattr(os, "writev"), reason="needs os.writev")
    @pytest.mark.parametrize("taken", [1, 5, 6, 7, 20_000, 29_999])
    def test_a_frame_that_is_taken_in_two_steps_arrives(
        self, monkeypatch: pytest.MonkeyPatch, taken: int
    ) -> None:
        def writev(fd: int, parts: Sequence[bytes]) -> int:
            return os.write(fd, b"".join(parts)[:taken])

        monkeypatch.setattr(os, "writev", writev)
        pipe = Pipe(THREAD)
        data = os.urandom(30_000)
        for payload in (data, memoryview(data)):
            FrameWriter(pipe.out, "gw").send(b"header", payload)
            assert pipe.into.read(6 + len(data)) == b"header" + data
        pipe.close()

    def test_the_end_of_the_writer_is_the_end_of_the_stream(self, pipe: Pipe) -> None:
        pipe.out.write(b"abc")
        pipe.out.close_write()
        assert pipe.into.read_some(100) == b"abc"
        assert pipe.into.read_some(100) == b""
        with pytest.raises(EOFError):
            pipe.into.read(1)

    def test_a_reader_waits_until_something_comes(self, pipe: Pipe) -> None:
        reading = Task(pipe.execmodel, pipe.into.read, 3)
        pipe.out.write(b"ab")
        pipe.execmodel.sleep(0)
        pipe.out.write(b"c")
        assert reading.result() == b"abc"

    def test_it_knows_whether_a_write_would_wait(self, pipe: Pipe) -> None:
        assert pipe.out.can_write_now()
        filled = pipe.fill()
        assert not pipe.out.can_write_now()
        assert pipe.into.read(filled) == bytes(filled)
        assert pipe.out.can_write_now()


def header(size: int, channel_id: int = 1) -> bytes:
    out = BytesIO()
    Message(4, channel_id, b"x" * size).to_io(out)
    return out.getvalue()[: -size or None]


def read_messages(pipe: Pipe, skip: int = 0) -> Iterator[Message]:
    """Yield the messages behind ``skip`` bytes, to the end of the stream."""
    assert pipe.into.read(skip) == bytes(skip)
    decoder = FrameDecoder()
    while data := pipe.into.read_some(65536):
        yield from decoder.feed(data)
    assert decoder.pending() == b""


def sizes_of(pipe: Pipe, skip: int = 0) -> list[int]:
    return [len(message.data) for message in read_messages(pipe, skip)]


class TestFrameWriter:
    def test_frames_arrive_in_order_and_then_the_end(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        sizes = [0, 5, 100, 20_000, 1]
        for number, size in enumerate(sizes):
            put = writer.post if number % 2 else writer.send
            put(header(size), b"x" * size)
        writer.close_soon()
        assert sizes_of(pipe) == sizes

    def test_many_senders_mix_and_lose_nothing(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")

        def send_some(sender: int) -> None:
            for number in range(40):
                payload = b"%d:%d:" % (sender, number) + bytes([sender]) * (number % 7 * 6000)
                put = writer.post if number % 5 == 4 else writer.send
                put(header(len(payload), sender), payload)

        reading = Task(pipe.execmodel, lambda: list(read_messages(pipe)))
        for task in [Task(pipe.execmodel, send_some, sender) for sender in range(8)]:
            task.result()
        writer.close_soon()
        numbers: dict[int, list[int]] = defaultdict(list)
        for message in reading.result():
            sender, number, filling = message.data.split(b":", 2)
            assert message.channelid == int(sender)
            assert filling == bytes([int(sender)]) * (int(number) % 7 * 6000)
            numbers[int(sender)].append(int(number))
        assert numbers == {sender: list(range(40)) for sender in range(8)}

    def test_posting_never_waits(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        filled = pipe.fill()
        sizes = [10, 100_000, 0, 70_000]
        for size in sizes:
            writer.post(header(size), b"x" * size)  # would never return
        writer.close_soon()
        assert sizes_of(pipe, filled) == sizes

    def test_what_is_sent_comes_behind_what_was_posted(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        filled = pipe.fill()
        writer.post(header(100_000), b"x" * 100_000)
        sending = Task(pipe.execmodel, writer.send, header(1), b"x")
        reading = Task(pipe.execmodel, sizes_of, pipe, filled)
        sending.result()
        writer.close_soon()
        assert reading.result() == [100_000, 1]

    def test_a_frame_posted_while_one_is_written_comes_behind_it(self) -> None:
        written: list[bytes] = []

        def write_some(data: bytes) -> int:
            if not written:  # as a finalizer may, in the middle of anything
                writer.post(b"second", b"")
            written.append(data)
            return len(data)

        io = Popen2IO(BytesIO(), BytesIO(), THREAD)
        io.write_some = write_some
        writer = FrameWriter(io, "gw")
        writer.send(b"first", b"")
        assert written == [b"first", b"second"]

    def test_after_the_end_nothing_is_sent(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        writer.close_soon()
        with pytest.raises(OSError, match="closed"):
            writer.send(header(0), b"")
        writer.post(header(0), b"")
        writer.close_soon()
        assert sizes_of(pipe) == []

    def test_a_failure_is_what_later_senders_are_told(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        writer.fail("the moon is down")
        writer.fail("something else")
        with pytest.raises(OSError, match="the moon is down"):
            writer.send(header(0), b"")
        writer.post(header(0), b"")
        pipe.out.close_write()
        assert sizes_of(pipe) == []

    def test_a_reader_that_has_gone_is_an_os_error_at_every_send(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        pipe.into.close_read()
        for _ in range(3):
            with pytest.raises(OSError, match=r"(?i)broken pipe"):
                Task(pipe.execmodel, writer.send, header(1), b"x").result()
        Task(pipe.execmodel, writer.post, header(1), b"x").result()

    def test_a_file_that_somebody_has_closed_is_an_os_error_as_well(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        pipe.out.close_write()
        with pytest.raises(OSError, match=r"closed|bad file descriptor|cannot send"):
            writer.send(header(1), b"x")

    def test_a_sender_that_waits_is_told_of_the_reader_s_end(self, pipe: Pipe) -> None:
        writer = FrameWriter(pipe.out, "gw")
        pipe.fill()
        sending = Task(pipe.execmodel, writer.send, header(1), b"x")
        pipe.execmodel.sleep(0)
        pipe.into.close_read()
        with pytest.raises(OSError, match=r"(?i)broken pipe"):
            sending.result()

    def test_the_stream_may_end_while_a_frame_is_posted(self) -> None:
        class Io(Popen2IO):
            def can_write_now(self) -> bool:
                writer.fail("the stream has ended")  # as the receiver thread does meanwhile
                return True

        writer = FrameWriter(Io(BytesIO(), BytesIO(), THREAD), "gw")
        writer.post(header(0), b"")
        with pytest.raises(OSError, match="ended"):
            writer.send(header(0), b"")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_an_interrupted_frame_is_the_last_where_none_knows_how_far_it_came(
        self, error: type[BaseException]
    ) -> None:
        class Io(Popen2IO):
            def write(self, data: bytes) -> None:
                raise error

        io = Io(BytesIO(), BytesIO(), THREAD)
        del io.write_some
        writer = FrameWriter(io, "gw")
        with pytest.raises(error):
            writer.send(header(0), b"")
        with pytest.raises(OSError, match="interrupted"):
            writer.send(header(0), b"")

    def test_no_thread_stays_behind_a_reader_that_has_gone(self) -> None:
        pipe = Pipe(THREAD)
        before = len(threads())
        writer = FrameWriter(pipe.out, "gw")
        pipe.fill()
        writer.post(header(1), b"x")
        wait_until(lambda: len(threads()) == before + 1)
        pipe.close()
        wait_until(lambda: len(threads()) == before)


POPEN_IO_PROGRAM = """
import os, sys
from execnet.gateway_base import get_execmodel, init_popen_io
io = init_popen_io(get_execmodel(sys.argv[1]))
print("noise", flush=True)
os.system("echo noise; cat")
os.write(1, b"noise")
assert os.read(0, 100) == b""
assert sys.stdin.read() == ""
for file in io.infile, io.outfile:
    assert file.fileno() > 2
    assert not os.get_inheritable(file.fileno())
for fd in 0, 1:
    assert os.path.samestat(os.fstat(fd), os.stat(os.devnull))
    assert os.get_inheritable(fd)
io.write(io.read(5).upper())
io.write(io.read_some(100).title())
assert io.read_some(100) == b""
io.close_read()
io.close_write()
"""


class TestTakingOverStdinAndStdout:
    @pytest.mark.skipif(sys.platform == "win32", reason="runs a Unix shell")
    def test_nothing_that_is_printed_or_read_disturbs_the_stream(
        self, execmodel: ExecModel
    ) -> None:
        command = [sys.executable, "-W", "ignore", "-c", POPEN_IO_PROGRAM, execmodel.backend]
        ended = run(command, stdin="hello world")
        assert ended.stderr == ""
        assert ended.stdout == "HELLO World"

    def test_code_may_close_what_it_has_in_their_place(self) -> None:
        program = POPEN_IO_PROGRAM.replace("io.write(", "os.closerange(0, 2); io.write(", 1)
        ended = run([sys.executable, "-c", program, "thread"], "hello world")
        assert ended.stdout == "HELLO World"
