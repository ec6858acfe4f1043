"""A worker under ``sudo=`` and the terminal of the user."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest
from tools import SOURCE, wait_until

from execnet import XSpec
from execnet._transports.table import command

PROGRAM = """
import execnet, os, sys
gateway = execnet.makegateway("sudo=somebody")
channel = gateway.remote_exec('''
import os
try:
    os.open("/dev/tty", os.O_RDWR)
    found = "a terminal"
except OSError:
    found = "none"
channel.send((found, os.getsid(0) == os.getpid()))
''')
found = channel.receive(20)
execnet.default_group.terminate(5)
os.open("/dev/tty", os.O_RDWR)
with open(sys.argv[1], "w") as file:
    file.write(repr(found))
os.rename(sys.argv[1], sys.argv[1] + ".done")
"""


@pytest.mark.parametrize("leads", ["", "-m"], ids=["in a group", "leads a group"])
def test_the_worker_has_none_and_sudo_has_it(tmp_path: Path, leads: str) -> None:
    sudo = tmp_path / "sudo"
    leading = "import os; os.setpgid(0, 0)\n" if leads else ""
    sudo.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.open('/dev/tty', os.O_RDWR)\n"
        f"at = sys.argv.index('--')\n{leading}os.execvp(sys.argv[at + 1], sys.argv[at + 1:])\n"
    )
    sudo.chmod(0o700)
    out = tmp_path / "out"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(SOURCE)
    pid, fd = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, str(out)], environment)
    try:
        done = tmp_path / "out.done"
        wait_until(done.exists, 30)
        assert done.read_text() == "('none', True)"
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


def test_a_program_may_ask_for_the_password() -> None:
    words = command(XSpec("sudo=other//sudo_askpass=/bin/ask me//python=python3"))
    assert words[:6] == ["env", "SUDO_ASKPASS=/bin/ask me", "sudo", "-A", "-u", "other"]
