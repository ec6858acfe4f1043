"""Workers that dial in to ``execnet.aio``; how they prove themselves is in ``test_join``."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, clean_environment, wait_in_loop

import execnet
from execnet import aio
from execnet._join.command import KEY_VARIABLE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

KEY = bytes(range(32))
Body = Callable[[aio.Group], Awaitable[Any]]


def run(body: Body, pem: str, **options: Any) -> Any:
    """Run a body with a group that listens, in a loop of its own; return its result."""

    async def main() -> Any:
        async with aio.Group() as group:
            await group.listen("127.0.0.1:0", KEY, pem, **options)
            return await asyncio.wait_for(body(group), BOUND_S)

    return asyncio.run(main())


def start(group: aio.Group, **variables: str) -> subprocess.Popen[bytes]:
    command = shlex.split(group.join_command(python=sys.executable))
    environment = clean_environment(**{KEY_VARIABLE: KEY.hex()}, **variables)
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


@pytest.mark.usefixtures("nothing_is_left")
class TestListening:
    def test_joiners_are_gateways_of_the_loop(self, pem: str) -> None:
        joiners: list[subprocess.Popen[bytes]] = []

        async def body(group: aio.Group) -> None:
            joined: list[str] = []
            group.on_join(lambda gateway: joined.append(gateway.id))
            joiners.extend(start(group) for _ in range(2))
            gateways = await group.wait_for(2, BOUND_S)
            assert sorted(map(id, gateways)) == sorted(map(id, group))
            for gateway in gateways:
                assert await gateway.call("operator:add", 1, 2) == 3
                channel = gateway.remote_exec("channel.send(channel.receive())")
                await channel.send(b"x" * 300_000)
                assert await channel.receive() == b"x" * 300_000
            await wait_in_loop(lambda: len(joined) == 2)
            assert sorted(joined) == sorted(gateway.id for gateway in gateways)

        run(body, pem)
        assert [joiner.wait(BOUND_S) for joiner in joiners] == [0, 0]

    def test_further_ones_are_reached_through_others(self, pem: str) -> None:
        joiners: list[subprocess.Popen[bytes]] = []

        async def body(group: aio.Group) -> None:
            for count in 1, 2, 3:
                joiners.append(start(group))
                gateways = await group.wait_for(count, BOUND_S)
            via = [gateway.spec.via for gateway in gateways]
            assert via == [None, *(gateway.id for gateway in gateways[:2])]
            channel = gateways[2].remote_exec("channel.send(channel.receive())")
            await channel.send(b"x" * 300_000)
            assert await channel.receive() == b"x" * 300_000

        run(body, pem, fanout=1)
        assert [joiner.wait(BOUND_S) for joiner in joiners] == [0, 0, 0]

    def test_a_launched_program_brings_workers_and_ends_with_the_group(self, pem: str) -> None:
        async def body(group: aio.Group) -> None:
            await group.launch(["env"], python=sys.executable)
            (gateway,) = await group.wait_for(1)
            assert await gateway.call("os:getppid") != os.getpid()

        run(body, pem)

    def test_a_rank_belongs_to_a_worker_that_answers(self, pem: str) -> None:
        mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "PMIX_NAMESPACE": "7"}
        joiners: list[subprocess.Popen[bytes]] = []

        async def body(group: aio.Group) -> None:
            joiners.append(start(group, **mpi))
            (gateway,) = await group.wait_for(1)
            joiners.append(start(group, **mpi))
            await wait_in_loop(lambda: group._core._get_joins().reasons)
            with pytest.raises(execnet.TimeoutError, match="rank 3 of MPI job 7 has joined"):
                await group.wait_for(2, 0)
            assert list(group) == [gateway]

        run(body, pem)
        assert [joiner.wait(BOUND_S) for joiner in joiners] == [0, 1]

    def test_a_wait_for_joiners_ends_when_it_is_cancelled(self, pem: str) -> None:
        async def body(group: aio.Group) -> None:
            waiting = asyncio.ensure_future(group.wait_for(1))
            done, _ = await asyncio.wait([waiting], timeout=0.01)
            assert not done
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(execnet.TimeoutError, match="0 of 1 workers"):
                await group.wait_for(1, 0)

        run(body, pem)

    def test_what_a_group_refuses_in_threads_is_refused(self, pem: str) -> None:
        async def body(group: aio.Group) -> None:
            with pytest.raises(ValueError, match="listens already"):
                await group.listen()

            async def callback(gateway: aio.Gateway) -> None: ...

            with pytest.raises(TypeError, match="plain function"):
                group.on_join(callback)

        run(body, pem)
        with pytest.raises(ValueError, match="not listening"):
            aio.Group().join_command()

    def test_a_group_that_only_listens_ends_with_its_loop(self, pem: str) -> None:
        async def main() -> None:
            await aio.Group().listen("127.0.0.1:0", KEY, pem)

        asyncio.run(main())


@pytest.mark.usefixtures("nothing_is_left")
class TestSpecs:
    def test_a_spec_stands_for_the_next_joiner(
        self, pem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = tmp_path / "key"
        key.write_text(KEY.hex())
        key.chmod(0o600)
        spec = f"listen=127.0.0.1:0//key={key}//certificate={pem}"

        async def main() -> None:
            async with aio.Group() as group:
                making = asyncio.ensure_future(group.makegateway(spec))
                said: list[str] = []

                def command() -> str:
                    said.append(capsys.readouterr().err)
                    return "".join(said).partition("workers join with: execnet ")[2]

                await wait_in_loop(lambda: command().endswith("\n"))
                words = [sys.executable, "-m", "execnet", *shlex.split(command())]
                with subprocess.Popen(words, env=clean_environment()) as joiner:
                    gateway = await asyncio.wait_for(making, BOUND_S)
                    assert await gateway.call("operator:add", 1, 2) == 3
                    making = asyncio.ensure_future(group.makegateway(spec))
                    done, _ = await asyncio.wait([making], timeout=0.01)
                    assert not done
                    making.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await making
                    assert list(group) == [gateway]
                    await group.terminate(BOUND_S)
                assert joiner.returncode == 0

        asyncio.run(main())
