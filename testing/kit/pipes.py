"""A pipe with a stream of ours at either end."""

from __future__ import annotations

import os
from io import BytesIO

from execnet.gateway_base import ExecModel, Popen2IO


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
