"""Streams over pipes: one with a stream of ours at either end, one that the test talks to."""

from __future__ import annotations

import os
from io import BytesIO

from execnet.gateway_base import ExecModel, FrameDecoder, Message, Popen2IO, get_execmodel


class Pipe:
    """A pipe with a stream at either end."""

    def __init__(self, execmodel: ExecModel) -> None:
        reader, writer = os.pipe()
        self.execmodel = execmodel
        self.out = Popen2IO(execmodel.fdopen(writer, "wb"), BytesIO(), execmodel)
        self.into = Popen2IO(BytesIO(), execmodel.fdopen(reader, "rb"), execmodel)

    def close(self) -> None:
        self.out.close_write()
        self.execmodel.sleep(0.001)  # for greenlets that read: they see the end
        self.into.close_read()

    def fill(self) -> int:
        """Write until the pipe takes no more; return how many bytes it has taken."""
        fd, taken = self.out.outfile.fileno(), 0
        blocking = os.get_blocking(fd)
        os.set_blocking(fd, False)
        try:
            while True:
                taken += os.write(fd, b"\0" * 4096)
        except BlockingIOError:
            return taken
        finally:
            os.set_blocking(fd, blocking)


class PipeIO(Popen2IO):
    """A stream over two pipes, whose far ends the test holds; each has room for 64 KiB."""

    def __init__(self) -> None:
        self.far_reads, near_writes = os.pipe()
        near_reads, self.far_writes = os.pipe()
        model = get_execmodel("thread")
        super().__init__(model.fdopen(near_writes, "wb"), model.fdopen(near_reads, "rb"), model)
        self._decoder = FrameDecoder()
        self._messages: list[Message] = []

    def wait(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def say(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        class Far:
            write = staticmethod(lambda data: os.write(self.far_writes, data))

        Message(msgcode, channelid, data).to_io(Far)

    def next_message(self) -> Message:
        """Wait for the next message that was written."""
        while not self._messages:
            self._messages.extend(self._decoder.feed(os.read(self.far_reads, 65536)))
        return self._messages.pop(0)

    def heard(self) -> list[str]:
        """Return the names of the messages that were written."""
        os.set_blocking(self.far_reads, False)
        try:
            data = os.read(self.far_reads, 65536)
        except BlockingIOError:
            return []
        frames = FrameDecoder().feed(data)
        return [Message._types[frame.msgcode][0] for frame in frames]

    def end(self) -> None:
        if self.far_writes >= 0:
            os.close(self.far_writes)
            self.far_writes = -1

    def close(self) -> None:
        self.end()
        os.close(self.far_reads)
