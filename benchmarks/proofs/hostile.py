"""Workers and clients that mean harm, one after the other: nothing else is disturbed by any.

Each session has a seed, from which all that it does follows.  A worker that runs another
interpreter gets bytes to put on its stream; a client gets bytes to say to a socket server.  After
each, every call that waited has ended with an error of ours, another gateway and the server still
answer, and the memory has not grown beyond the bound.  The exit status is 1 if that does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import execnet
from execnet.gateway_base import dumps_fast, dumps_internal

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 20.0
MAY_RISE_MIB = 64.0
CODE = "channel.gateway._io.write(channel.receive())\nchannel.send(1)\nchannel.receive()"


def memory_mib() -> float:
    """Return this process's resident memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


# ---------------------------------------------------------------- a worker


def item(choose: random.Random) -> bytes:
    """Return an item, or what is nearly one."""
    good: Any = choose.choice([1, "x" * 50, [1, 2.5], {"a": (1, b"x")}, {(1, 2): 3}])
    data = choose.choice([dumps_fast, dumps_internal])(good)
    kind = choose.randrange(7)
    if kind == 0:
        return data
    if kind == 1:
        at = choose.randrange(len(data))
        return data[:at] + choose.randbytes(choose.randrange(1, 9)) + data[at + 1 :]
    if kind == 2:
        opcodes = b"]})(eaust2NKq\x94\x85\x86\x87\x90\x91\x96"
        return b"\x80\x04" + bytes(choose.choices(opcodes, k=200)) + b"."
    if kind == 3:
        return b"\x80\x04}" + b")" + b"\x85" * choose.randrange(100_000) + b"Ns."
    if kind == 4:
        return dumps_internal(
            {n * sys.hash_info.modulus: 0 for n in range(1, choose.randrange(2, 300))}
        )
    if kind == 5:
        return b"B" + struct.pack("!i", choose.randrange(-9, 99)) * choose.randrange(1, 9) + b"Q"
    return choose.randbytes(choose.randrange(200))


def frames(choose: random.Random, id: int) -> bytes:
    """Return what a worker puts on its stream."""
    said = b""
    for _ in range(choose.randrange(1, 40)):
        code = choose.choice([4, 4, 4, 9, *range(-1, 18)])
        channel = choose.choice([id, id, 0, 2, choose.randrange(-2, 3000)])
        data = item(choose)
        if code == 9:
            data = struct.pack("!iB", choose.randrange(9), choose.randrange(2)) + data
        if code in (12, 13, 14, 1):
            data = choose.choice([b"", dumps_internal(choose.randrange(-5, 1 << 31)), data])
        size = choose.choice([len(data)] * 9 + [choose.randrange(-1, 1 << 30)])
        said += struct.pack("!bii", code if -128 <= code < 128 else 0, channel, size) + data
    return said


def be_a_worker(choose: random.Random, spec: str) -> None:
    """Have a worker say what it should not, and see that all waiting calls end."""
    window = choose.choice(["", "//window=10000"])
    group = execnet.Group()
    try:
        gateway = group.makegateway(f"{spec}{window}//max_item=1000000//grace=0.1")
        channel, waiting = gateway.remote_exec(CODE), gateway.newchannel()
        channel.send(frames(choose, waiting.id))
        for one in channel, waiting:
            with suppress(EOFError, OSError, execnet.ExecnetError):  # ours, or as in execnet 2
                one.receive(1.0)
    finally:
        start = time.monotonic()
        group.terminate(timeout=1.0)
        if time.monotonic() - start > WAIT_S:
            raise AssertionError("the end of a group took too long")


# ---------------------------------------------------------------- a client, a server


def be_a_client(choose: random.Random, address: tuple[str, int]) -> None:
    """Say something to a server that is no proof."""
    with socket.create_connection(address, WAIT_S) as conn:
        conn.settimeout(1.0)
        said = choose.choice(
            [
                b"'import os; os._exit(0)'\n",
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"execnet-auth-1 " + os.urandom(32).hex().encode() + b" 127.0.0.1:1 00\n",
                b"execnet-auth-2 x\n",
                choose.randbytes(choose.randrange(1, 2000)),
                b"\0quit\n",
                b"",
            ]
        )
        try:
            for start in range(0, len(said), choose.choice([1000, 7])):
                conn.sendall(said[start : start + 7])
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
                greeting = b"execnet-auth-1 plain " + os.urandom(32).hex().encode() + b"\n"
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seed", nargs="?", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=10_000, help="how many sessions")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    script = ROOT / "execnet" / "script" / "socketserver.py"
    with subprocess.Popen([sys.executable, str(script), ":0"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        host, _, port = server.stdout.readline().decode().split()[-1].rpartition(":")
        good = execnet.makegateway(f"socket={host}:{port}").remote_exec(
            "for item in channel: channel.send(item)"
        )
        start, before, bad = time.monotonic(), memory_mib(), 0
        for seed in range(options.seed, options.seed + options.count):
            choose = random.Random(seed)
            try:
                kind = choose.randrange(10)
                if kind < 5:
                    be_a_worker(choose, f"popen//python={sys.executable}")
                elif kind < 9:
                    be_a_client(choose, (host, int(port)))
                else:
                    be_a_server(choose)
                good.send(seed)
                assert good.receive(WAIT_S) == seed
                assert memory_mib() - before < MAY_RISE_MIB, "memory"
            except Exception as exc:
                bad += 1
                print(f"seed {seed}: {type(exc).__name__}: {exc}")
        took = time.monotonic() - start
        execnet.default_group.terminate(timeout=5)
        server.terminate()
    risen = memory_mib() - before
    print(f"{options.count} hostile sessions in {took:.0f} s: {bad} bad, {risen:.0f} MiB more")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
