"""A bare interpreter on two pipes: the least that any of this can cost.

Nothing is framed or serialized: what is to be an item is made into bytes beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys


class Interpreter:
    """``python -u -c CODE ARGUMENT...`` and the descriptors of its stdin and stdout."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-u", "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
        self.to_it = self.process.stdin.fileno()
        self.from_it = self.process.stdout.fileno()

    def buffer(self, size_bytes: int) -> None:
        """Set what the kernel buffers in each direction (Linux)."""
        import fcntl

        for descriptor in (self.to_it, self.from_it):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size_bytes)

    def read(self, count: int) -> int:
        """Read ``count`` bytes into a new object, as whoever wants them must; return its size."""
        taken = memoryview(bytearray(count))
        while taken:
            got = os.readv(self.from_it, [taken])
            if not got:
                raise EOFError("the interpreter ended")
            taken = taken[got:]
        return count

    def write(self, data: bytes) -> None:
        """Write all of ``data``."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.to_it, rest) :]

    def stop(self) -> None:
        """Close its stdin, at which each of these programs ends, and wait for that."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
