"""Start of a bare interpreter over ssh on loopback to its first byte, in milliseconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _measure import Result, Scaled, main, milliseconds, time_starts
from _sshd import HOST, sshd


def measure(scaled: Scaled) -> Result:
    with sshd(Path.cwd()) as config:
        remote = f"{sys.executable} -c 'import os; os.write(1, b\"1\"); os.read(0, 1)'"
        command = ["ssh", "-F", str(config), HOST, remote]
        pipe = subprocess.PIPE

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
            process.stdout.read(1)
            return process

        return milliseconds(time_starts(start, subprocess.Popen.communicate, scaled(5)))


if __name__ == "__main__":
    main(measure)
