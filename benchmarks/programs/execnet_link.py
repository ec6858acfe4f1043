"""A round trip, or large ``bytes``, to a worker by TCP, by TCP with TLS, and over ssh.

All on loopback, with the proofs that a socket server asks for by default. Arguments: ``roundtrip``
(microseconds) or ``bulk`` (items of 64 MiB to the worker, megabytes a second); ``tcp``, ``tls`` or
``ssh``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _items
from _measure import Result, Scaled, bulk_rate, main
from _sshd import HOST, sshd
from execnet_bulk import TAKE
from execnet_roundtrip import measure_with

import execnet

SIZE = "64m"


def measure(scaled: Scaled, what: str, how: str) -> Result:
    with over_ssh() if how == "ssh" else served(*(["--tls"] if how == "tls" else [])) as spec:
        group = execnet.Group()
        gateway = group.makegateway(spec)
        if what == "roundtrip":
            result = measure_with(gateway, scaled, "int")
        else:
            result = measure_bulk(gateway, scaled)
        group.terminate(5)
        return result


def measure_bulk(gateway: execnet.Gateway, scaled: Scaled) -> Result:
    size_bytes = _items.BULK_BYTES[SIZE]
    count = scaled(_items.BULK_TOTAL_BYTES // size_bytes)
    channel = gateway.remote_exec(TAKE)
    data = b"x" * size_bytes

    def pass_all() -> int:
        channel.send(count)
        for _ in range(count):
            channel.send(data)
        return channel.receive()

    return bulk_rate(pass_all, count * size_bytes, _items.BULK_SAMPLES)


@contextmanager
def served(*options: str) -> Iterator[str]:
    """Run a socket server with a key of its own; yield the spec that leads to it."""
    os.environ["EXECNET_HOME"] = str(Path.cwd() / "home")
    command = [sys.executable, "-m", "execnet.script.socketserver", ":0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        words = server.stdout.readline().split()
        try:
            yield f"socket={words[-1]}"
        finally:
            server.terminate()


@contextmanager
def over_ssh() -> Iterator[str]:
    """Run an sshd; yield the spec that leads to it."""
    with sshd(Path.cwd()) as config:
        yield f"ssh={HOST}//ssh_config={config}//python={sys.executable}"


if __name__ == "__main__":
    main(measure)
