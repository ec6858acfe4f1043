"""An ``ssh`` without a network, whose connections a test cuts, stops and refuses.

It runs the command here, behind ``relay``.  Start at ``CutLink``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import is_gone, stop
from services import FakeSsh
from tools import KIT, SOURCE, wait_until

from execnet import Gateway

EXCHANGE_S = 60.0  # for one item, across cuts
RUN = """
if [ -e $here/down ]; then echo 'Network is unreachable' >&2; exit 255; fi
cut=$(sed -n "$(wc -l < $here/runs)p" $here/cuts)
delay=$(cat $here/delay)
login=$(cat $here/login)
set -- ${{cut:+--cut $cut}} ${{delay:+--delay $delay}} ${{login:+--login $login}} -- "$@"
exec {python} {relay} --shell {apart} --log $here/log "$@"
"""


class CutLink:
    """What leads to a host; its folder has to be in the PATH."""

    def __init__(self, folder: Path, login: str = "", is_apart: bool = False) -> None:
        """Lead to this machine, or log in at an address of ``slow_net``.

        is_apart: what runs there outlives whatever runs ``ssh``, also if that kills all below it.
        """
        apart = "--apart" if is_apart else ""
        self._ssh = FakeSsh(folder)
        (folder / "login").write_text(login)
        self._cuts, self._delay = folder / "cuts", folder / "delay"
        self._delay.touch()
        self._log = folder / "log"
        self._down = folder / "down"
        (folder / "runs").write_text("")
        self.set_cuts([])
        self._ssh(RUN.format(python=sys.executable, relay=KIT / "relay.py", apart=apart))

    def set_cuts(self, cuts: list[int]) -> None:
        """Have the first connections cut after so many bytes each."""
        self._cuts.write_text("".join(f"{cut}\n" for cut in cuts))

    def set_delay(self, seconds: float) -> None:
        """Have all bytes arrive so much later, over connections that are made from now on."""
        self._delay.write_text(f"{seconds:g}")

    def runs(self) -> int:
        """Return how many connections were tried."""
        return len(self._ssh.runs())

    def flag(self, name: str) -> Path:
        """Return a file that is there, for code to wait for its end."""
        path = self._down.with_name(name)
        path.touch()
        return path

    def pieces(self) -> list[tuple[str, int]]:
        """Return direction ("<" comes from there) and size of all that has passed."""
        lines = map(str.split, self._log.read_text().splitlines())
        return [(sign, int(size)) for sign, _, size in lines]

    def cut(self) -> None:
        """Cut the connection in use."""
        os.kill(self._ssh.runs()[-1], signal.SIGKILL)

    def stop(self) -> None:
        """Have the connection in use pass nothing any more, without an end."""
        stop(self._ssh.runs()[-1])

    def go_down(self) -> None:
        """Have no connections from now on, until ``go_up``."""
        self._down.touch()
        self.cut()

    def go_up(self) -> None:
        """Have connections again."""
        self._down.unlink()


def assert_gone(*pids: int) -> None:
    """Processes have ended, or do so soon."""
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


@contextmanager
def program_with(*specs: str, fanout: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a program that has gateways; yield it and the process id of the last one's worker.

    fanout: that of a tree, if they are to be one.
    """
    make = f"tree({specs!r}, fanout={fanout})" if fanout else f"makegateways({specs!r})"
    code = (
        "import execnet, sys\n"
        f"*_, gateway = execnet.default_group.{make}\n"
        "print(gateway._rinfo().pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as program:
        assert program.stdout is not None
        yield program, int(program.stdout.readline())


def clean() -> str:
    """Run ``execnet clean``, by which one worker is ended; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "execnet", "clean"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert done.stdout.endswith(" was ended\n"), done.stdout + done.stderr
    return done.stdout


def supervisor_of(pid: int) -> int:
    """Return the process that is a worker's supervisor."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


FAR = """
asked = channel.receive()
back = channel.receive()
back.setcallback(lambda item: back.send(item))
for number, item in enumerate(channel):
    if item is None:
        break
    channel.send([number, item])
"""


def exchange(
    gateway: Gateway,
    sizes: list[int],
    timeout_s: float = EXCHANGE_S,
    halfway: Callable[[], object] = int,
) -> None:
    """Send items of these sizes there and back, with callbacks beside them, and compare.

    Half of the bytes go over a channel whose ends receive, half over one with callbacks.  halfway:
    called when half of the items have come back, while others are under way.
    """
    channel = gateway.remote_exec(FAR)
    other = gateway.newchannel()
    channel.send("go")
    channel.send(other)
    came: list[str] = []
    done = threading.Event()

    def take(item: str) -> None:
        came.append(item)
        if len(came) == len(sizes):
            done.set()

    other.setcallback(take)
    texts = [f"{number}:".ljust(size, "x") for number, size in enumerate(sizes)]

    def send() -> None:
        for text in texts:
            channel.send(text)
            other.send(text)

    sender = threading.Thread(target=send)
    sender.start()
    for number, text in enumerate(texts):
        assert channel.receive(timeout_s) == [number, text]
        if number == len(texts) // 2:
            halfway()
    sender.join()
    assert done.wait(timeout_s)
    assert came == texts
    channel.send(None)
    channel.waitclose(EXCHANGE_S)
