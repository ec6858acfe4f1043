"""RSync with gateways of an asyncio loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tools import BOUND_S

import execnet
from execnet import aio
from execnet.gateway_socket import start_via


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    (folder / "small").write_text("content")
    (folder / "below" / "large").write_bytes(os.urandom(3_000_000))
    return folder


def test_trees_go_there_and_back_while_the_loop_runs(source: Path, tmp_path: Path) -> None:
    there, back, paths = [tmp_path / "a", tmp_path / "b"], tmp_path / "back", []

    async def main() -> None:
        async with aio.Group(["2*popen"]) as group:
            rsync = aio.RSync(source)
            for gateway, folder in zip(group, there, strict=True):
                rsync.add_target(gateway, folder, finishedcallback=lambda: paths.append(1))
            sending = asyncio.ensure_future(rsync.send())
            assert await group[0].call("os:getpid")
            result = await sending
            assert result is not None
            assert [target.error for target in result.targets] == [None, None]
            await aio.RSync.pull(group[0], there[1], back)
            with pytest.raises(OSError, match="no targets"):
                await rsync.send()

    asyncio.run(main())
    large = (source / "below" / "large").read_bytes()
    assert [(folder / "below" / "large").read_bytes() == large for folder in (*there, back)]
    assert paths == [1, 1]


def test_a_cancelled_send_stops_and_the_gateway_goes_on(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(1 << 22))

    async def main() -> None:
        async with aio.Group(["popen"]) as group:
            loop, begun = asyncio.get_running_loop(), asyncio.Event()

            class Telling(aio.RSync):
                def _report_send_file(self, gateway: object, modified_rel_path: str) -> None:
                    loop.call_soon_threadsafe(begun.set)

            rsync = Telling(tmp_path / "large")
            rsync.add_target(group[0], tmp_path / "there", bwlimit=1 << 16)  # it takes a minute
            sending = asyncio.ensure_future(rsync.send())
            await asyncio.wait_for(begun.wait(), BOUND_S)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(sending, BOUND_S)
            assert await asyncio.wait_for(group[0].call("os:getpid"), BOUND_S)

    asyncio.run(main())
    assert not (tmp_path / "there").exists()


def test_what_waits_in_threads_refuses_a_gateway_of_a_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.Group(["popen"]) as group:
            with pytest.raises(TypeError, match=r"execnet\.aio"):
                execnet.RSync(tmp_path).add_target(group[0], tmp_path)
            with pytest.raises(TypeError, match=r"execnet\.aio"):
                execnet.RSync.pull(group[0], tmp_path, tmp_path)
            with pytest.raises(TypeError, match=r"execnet\.aio"):
                execnet.ChannelGateway(group[0].newchannel())
            with pytest.raises(TypeError, match=r"execnet\.aio"):
                start_via(group[0])

    asyncio.run(main())
