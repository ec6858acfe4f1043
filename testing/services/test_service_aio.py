"""``socketservice=`` in an asyncio loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from tools import BOUND_S

import execnet
from execnet import aio
from execnet.gateway_base import CAN_READ_DIRECTLY


@pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")
@pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="only its stream tells of its end")
def test_a_service_answers_and_its_end_is_seen_though_a_fork_holds_the_stream(home: Path) -> None:
    fork = """
import os, subprocess
fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
popen = subprocess.Popen(["sleep", "60"], close_fds=False, pass_fds=fds)
channel.send((os.getpid(), popen.pid))
channel.receive()
"""

    async def main() -> None:
        async with aio.Group(["socketservice=loop"]) as group:
            channel = group[0].remote_exec("channel.send(channel.receive())")
            await channel.send(b"x" * 3_000_000)
            assert await channel.receive(BOUND_S) == b"x" * 3_000_000
            channel = group[0].remote_exec(fork)
            service, child = await channel.receive(BOUND_S)
            os.kill(service, signal.SIGKILL)
            with pytest.raises(execnet.WorkerDied):
                await channel.receive(BOUND_S)
            os.kill(child, signal.SIGKILL)

    asyncio.run(main())
