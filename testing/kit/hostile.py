"""Workers, clients, servers and other users that mean harm: nothing else is disturbed by any.

    python testing/kit/hostile.py 1234              the session of seed 1234
    python testing/kit/hostile.py 0 --count 10000   those of seeds 0 to 9999

A worker that runs another interpreter gets bytes to put on its stream; a client says bytes to a
socket server, a server says them to a client; another user reaches for what is not his.  In each
session every call that waits ends with a result or a typed error, at the latest when its group is
terminated; memory stays below what the spec allows and 64 MiB; another gateway and the server
still answer. The exit status is 1 if that does not hold. Start at ``Sessions``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # what is beside this file is tested, not what is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hostile_frames
from hostile_user import CAN_BE_TWO, Neighbour

import execnet
from execnet._folders import HOME_VARIABLE
from execnet.script import socketserver

WAIT_S = 30.0  # for what ought to happen at once, on however busy a machine
TOLD_S = 0.5  # for the worker to say that it has said all; what it said may keep that from us
MAY_RISE_MIB = 64.0
MAX_ITEM = 1_000_000
FLOOD_S = 10.0  # the same, for many bytes
MIB = 1 << 20
TYPED = (execnet.ExecnetError, EOFError, OSError)  # ours, or as in execnet 2
SAY = """
channel.gateway._io.write(channel.receive())
channel.send(1)
if {ends}:
    import os
    os._exit(3)
channel.receive()
"""


def memory_mib(name: str = "VmRSS") -> float:
    """Return this process's resident memory, or with "VmHWM" the most since ``forget_peak``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def give_back_freed() -> None:
    """Have the allocator give back what it keeps for later, as what was freed is no leak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


# ---------------------------------------------------------------- a worker


class Wait(threading.Thread):
    """A call that waits, in a thread of its own; ``check`` says whether it ended as it should."""

    def __init__(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(name=name, daemon=True)
        self._call, self._args = call, args
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call(*self._args)
        except BaseException as exc:
            self.error = exc

    def check(self) -> None:
        """``AssertionError`` if it has not ended, or not with a result or a typed error."""
        self.join(WAIT_S)
        assert not self.is_alive(), f"{self.name} has not ended"
        exc = self.error
        assert exc is None or isinstance(exc, TYPED), f"{self.name} raised {exc!r}"
        assert not isinstance(exc, TimeoutError), f"{self.name} waited to its end: {exc}"


def wait_in_all_ways(gateway: execnet.Gateway, id: int, choose: random.Random) -> list[Wait]:
    """Have threads wait for a worker, with and without a bound that is longer than its life."""
    channel = gateway._channelfactory.new(id)
    bound = choose.choice([None, 3 * WAIT_S])
    other, data = gateway.newchannel(), b"x" * choose.choice([10, 100_000])  # nobody reads it
    ways: dict[str, Callable[[], Any]] = {
        "receive": lambda: channel.receive(bound),
        "waitclose": lambda: channel.waitclose(bound),
        "iteration": lambda: list(other),
        "remote_status": lambda: gateway.remote_status(bound),
        "join": lambda: gateway.join(bound),
        "send": lambda: [other.send(data) for _ in range(9)],
    }
    return [Wait(name, ways[name]) for name in choose.sample(sorted(ways), 3)]


def check_the_dead(channels: list[execnet.Channel]) -> None:
    """Look again at channels whose gateway has ended: nothing waits, and what is left is read."""
    for channel in channels:
        calls = [channel.receive] * 1000 + [channel.waitclose]
        for call in calls:
            try:
                call(WAIT_S)
            except TimeoutError as exc:
                raise AssertionError(f"a channel of an ended gateway waits: {exc}") from exc
            except TYPED:
                pass


def be_a_worker(choose: random.Random) -> None:
    """Have a worker say what it should not, and see that all waiting calls end."""
    window = choose.choice([0, 10_000])
    harm = choose.choice([hostile_frames.frames, hostile_frames.one_frame])
    with_worker(choose, window, SAY.format(ends=choose.randrange(2)), lambda id: harm(choose, id))


def be_a_flood(choose: random.Random) -> None:
    """Have a worker say one kind of thing without end."""
    name = choose.choice(sorted(hostile_frames.FLOODS))
    size = choose.choice([1, 1000, 60_000, 60_000])
    try:
        code = hostile_frames.flood(name, size)
        per_byte = 80 if name == hostile_frames.OBJECTS else 1
        window = choose.choice([10_000, 1_000_000])
        with_worker(choose, window, code, lambda id: id, FLOOD_S, per_byte)
    except AssertionError as exc:
        raise AssertionError(f"{name}, by {size} bytes: {exc}") from exc


def with_worker(
    choose: random.Random,
    window: int,
    code: str,
    told: Callable[[int], Any],
    time_s: float = TOLD_S,
    per_byte: int = 1,
) -> None:
    """Start a worker, have threads wait for it, tell it what to do, end it, and check all.

    per_byte: what a byte of an item may take in memory once the item is loaded.
    """
    spec = f"popen//python={sys.executable}//max_item={MAX_ITEM}//grace=0.1"
    group = execnet.Group()
    try:
        gateway = group.makegateway(spec + (f"//window={window}" if window else ""))
        waiting, channel = gateway.newchannel(), gateway.remote_exec(code)
        waits = wait_in_all_ways(gateway, waiting.id, choose)
        forget_peak()
        before = memory_mib()
        channel.send(told(waiting.id))
        waits.append(Wait("the answer", channel.receive, 3 * WAIT_S))
        waits[-1].join(time_s)
    finally:
        start = time.monotonic()
        group.terminate(timeout=1.0)
        assert time.monotonic() - start < WAIT_S, "the end of a group took too long"
    for wait in waits:
        wait.check()
    risen = memory_mib("VmHWM") - before
    check_the_dead([waiting, channel])
    held = MAX_ITEM + 4 * window  # as many channels may have a window
    most = MAY_RISE_MIB + per_byte * held / MIB
    assert risen < most, f"{risen:.0f} MiB more, where {most:.0f} are allowed"


# ---------------------------------------------------------------- a client, a server


def be_a_client(choose: random.Random, address: tuple[str, int]) -> None:
    """Say something to a server that is no proof."""
    with socket.create_connection(address, WAIT_S) as conn:
        conn.settimeout(1.0)
        said = choose.choice(
            [
                b"'import os; os._exit(0)'\n",
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"execnet-auth-1 " + choose.randbytes(32).hex().encode() + b" 127.0.0.1:1 00\n",
                b"execnet-auth-2 x\n",
                choose.randbytes(choose.randrange(1, 2000)),
                b"\0quit\n",
                b"",
            ]
        )
        step = choose.choice([1000, 7])
        if choose.randrange(4) == 0:
            said = said[: choose.randrange(len(said) + 1)]
        try:
            for start in range(0, len(said), step):
                conn.sendall(said[start : start + step])
            if choose.randrange(2):
                conn.shutdown(socket.SHUT_WR)
                while conn.recv(1000):
                    pass
        except OSError:
            pass


def be_a_server(choose: random.Random) -> None:
    """Answer a client with what no server says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as conn:
                conn.settimeout(1.0)
                greeting = b"execnet-auth-1 plain " + choose.randbytes(32).hex().encode() + b"\n"
                said = [greeting, b"execnet-auth-1 tls -\n", choose.randbytes(100), b"\n", b""]
                try:
                    conn.sendall(choose.choice(said))
                    heard = conn.recv(1 << 16)  # a hello of TLS is large by now
                    if b"SECRET" in heard or b"def boot" in heard:
                        leaks.append(heard)
                    conn.sendall(
                        b"execnet-auth-1 ok " + choose.randbytes(40).hex().encode() + b"\n"
                    )
                    heard = conn.recv(1000)
                    if heard:
                        leaks.append(heard)
                except OSError:
                    pass

        leaks: list[bytes] = []
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            port = listener.getsockname()[1]
            spec = f"socket=127.0.0.1:{port}//env:SECRET=x//connect_timeout=3"
            execnet.Group([spec])
            raise AssertionError("a server that proved nothing was taken")
        except execnet.AuthenticationError:
            pass
        thread.join(WAIT_S)
        if leaks:
            raise AssertionError(f"it was told {leaks}")


# ---------------------------------------------------------------- sessions


class Sessions:
    """Runs sessions by seed, beside a gateway, a server and files that none of them may disturb."""

    def __init__(self, folder: Path) -> None:
        """folder: new and empty, as it has the keys."""
        self._folder = folder
        os.environ[HOME_VARIABLE] = str(folder / "home")
        script = socketserver.__file__
        (folder / "all").mkdir()
        (folder / "all").chmod(0o1777)
        folder.chmod(0o755)  # what is in it keeps others out by itself
        self._servers = []
        for address in "127.0.0.1:0", f"unix:{folder / 'all' / 'server'}":
            command = [sys.executable, "-u", script, address]
            self._servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        said = [server.stdout.readline() for server in self._servers if server.stdout]
        host, _, port = said[0].split()[-1].rpartition(":")
        self.address = host, int(port)
        specs = f"socket={host}:{port}", f"socket=unix:{folder / 'all' / 'server'}"
        self._group = execnet.Group(specs)
        echo = "for item in channel: channel.send(item)"
        self._good = [gateway.remote_exec(echo) for gateway in self._group]
        self._user = Neighbour(folder / "all", folder / "all" / "server") if CAN_BE_TWO else None
        self.before = memory_mib()
        self.kinds: Counter[str] = Counter()

    def close(self) -> None:
        self._group.terminate(timeout=5)
        if self._user is not None:
            self._user.close()
        for server in self._servers:
            server.terminate()
            server.communicate()

    def run(self, seed: int) -> None:
        """Have the session of a seed; ``AssertionError`` if it disturbed anything."""
        choose = random.Random(seed)
        kind = choose.choice(
            ["worker"] * 7 + ["flood"] * 3 + ["client"] * 7 + ["server", "user"] * 2
        )
        self.kinds[kind] += 1
        if kind == "worker":
            be_a_worker(choose)
        elif kind == "flood":
            be_a_flood(choose)
        elif kind == "server":
            be_a_server(choose)
        elif kind == "user" and self._user is not None:
            self._user.run(choose)
        else:
            be_a_client(choose, self.address)
        for good in self._good:
            good.send(seed)
            assert good.receive(WAIT_S) == seed
        if memory_mib() - self.before > MAY_RISE_MIB / 2:
            give_back_freed()
        assert memory_mib() - self.before < MAY_RISE_MIB, "memory"


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seed", nargs="?", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=1, help="how many sessions (1)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    bad, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sessions = Sessions(Path(folder))
        try:
            for seed in range(options.seed, options.seed + options.count):
                try:
                    sessions.run(seed)
                except Exception as exc:
                    bad += 1
                    print(f"seed {seed}: {type(exc).__name__}: {exc}", flush=True)
        finally:
            sessions.close()
    took = time.monotonic() - start
    risen = memory_mib() - sessions.before
    print(f"{options.count} hostile sessions in {took:.0f} s: {bad} bad, {risen:.0f} MiB more")
    print(f"sessions: {dict(sessions.kinds.most_common())}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
