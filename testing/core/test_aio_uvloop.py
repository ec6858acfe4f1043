"""``execnet.aio`` in a loop of uvloop, which is installed into a folder of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from tools import missing, run_python

PROGRAM = """
import asyncio, os, signal, sys, threading

sys.path.append(sys.argv[1])
import uvloop

import execnet
from execnet import aio


async def main():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with aio.Group(["popen//id=a", "popen//via=a//id=b"]) as group:
        for channel in group.remote_exec("for item in channel: channel.send(item)"):
            for item in (1, b"x" * 3_000_000):
                await channel.send(item)
                assert await channel.receive() == item
            waiting = asyncio.ensure_future(channel.receive())
            await asyncio.sleep(0)
            await channel.send(2)
            waiting.cancel()
            assert await channel.receive(20) == 2
        channel = group["a"].remote_exec("channel.receive()")
        assert await group["a"].call("operator:add", 1, 2) == 3
        while any("execnet" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
        os.kill((await group["a"].remote_status()).pid, signal.SIGKILL)
        try:
            await channel.receive(20)
        except execnet.WorkerDied as error:
            print(error.signal)
    group = aio.Group()
    return (await (await group.makegateway("popen")).remote_status()).pid


pid = uvloop.run(main())
try:
    os.kill(pid, 0)
except ProcessLookupError:
    print("ended with its loop")
"""


def find_uvloop() -> str:
    """Return the folder where uvloop is; skip the test where it has no wheel, fail it in CI."""
    major, minor = sys.version_info[:2]
    folder = Path.home() / ".cache" / "execnet-tests" / f"uvloop-{major}.{minor}"
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--retries", "1"]
    command = [*pip, "install", "--only-binary", ":all:", "--target", str(folder), "uvloop"]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may test at the same time
        if not (folder / "complete").exists():
            env = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
            if done.returncode:
                missing(f"uvloop can't be installed: {done.stderr.strip().splitlines()[-1:]}")
            (folder / "complete").touch()
    return str(folder)


def test_all_of_it_works_in_a_loop_of_uvloop() -> None:
    done = run_python(PROGRAM, find_uvloop(), PYTHONWARNINGS="ignore::DeprecationWarning")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "9\nended with its loop\n"
