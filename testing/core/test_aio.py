"""``execnet.aio``: gateways in an asyncio loop; how they end is in ``test_aio_ends``."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any

import pytest
from processes import stop
from tools import BOUND_S, some_of, wait_in_loop

import execnet
import execnet.codecs
from execnet import aio
from execnet.gateway_base import Message

ECHO = "for item in channel: channel.send(item)"
Body = Callable[[aio.Group], Awaitable[Any]]


def run(body: Body, *specs: str) -> Any:
    """Run a body with a group of these workers in a loop of its own; return its result."""

    async def main() -> Any:
        async with aio.Group(specs or ("popen",)) as group:
            return await asyncio.wait_for(body(group), BOUND_S)

    return asyncio.run(main())


def add(a: int, b: int = 1) -> int:
    return a + b


class TestChannels:
    def test_items_of_all_kinds_and_sizes_go_there_and_back(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec(ECHO)
            for item in (1, "a", [1, {"b": (2.5, None)}], b"x" * 5_000_000, {1: b"y" * 70_000}):
                await channel.send(item)
                assert await channel.receive() == item

        run(body)

    def test_no_thread_stays_while_gateways_are_used(self) -> None:
        before = set(threading.enumerate())

        def ours() -> list[str]:
            names = [thread.name for thread in set(threading.enumerate()) - before]
            return [name for name in names if "execnet" in name]

        async def body(group: aio.Group) -> None:
            for channel in group.remote_exec(ECHO):
                await channel.send(1)
                await channel.receive()
            await wait_in_loop(lambda: not ours())  # the one that has started them ends

        run(body, "popen", "popen")

    def test_iteration_ends_when_the_code_does(self) -> None:
        async def body(group: aio.Group) -> list[Any]:
            return [item async for item in group[0].remote_exec("channel.send(1); channel.send(2)")]

        assert run(body) == [1, 2]

    def test_what_the_code_raises_is_raised_once_items_are_taken(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec("channel.send(1); 1 / 0")
            assert await channel.receive() == 1
            with pytest.raises(execnet.RemoteError, match="ZeroDivisionError"):
                await channel.receive()
            with pytest.raises(execnet.RemoteError, match="ValueError"):
                await group[0].remote_exec("raise ValueError").waitclose()

        run(body)

    def test_waits_end_with_their_timeouts(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec(ECHO)
            for timeout in (0.01, 0, -1):
                with pytest.raises(execnet.TimeoutError):
                    await channel.receive(timeout)
                with pytest.raises(execnet.TimeoutError):
                    await channel.waitclose(timeout)
            await channel.send(1)
            assert await channel.receive(BOUND_S) == 1

        run(body)

    def test_callbacks_run_in_the_loop_and_get_the_endmarker(self) -> None:
        async def body(group: aio.Group) -> None:
            got: asyncio.Queue[Any] = asyncio.Queue()

            def callback(item: Any) -> None:
                got.put_nowait((item, asyncio.get_running_loop()))

            channel = group[0].remote_exec("channel.send(1); channel.send(2)")
            channel.setcallback(callback, endmarker=None)
            loop = asyncio.get_running_loop()
            assert [await got.get() for _ in range(3)] == [(1, loop), (2, loop), (None, loop)]

        run(body)

    def test_channels_travel_in_items(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec("c = channel.receive()[0]; c.send(1); channel.send([c])")
            inner = group[0].newchannel()
            await channel.send([inner])
            assert await inner.receive() == 1
            assert await channel.receive() == [inner]

        run(body)

    def test_send_waits_while_the_worker_reads_nothing(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec("channel.receive(); channel.send(None)")
            pid = (await group[0].remote_status()).pid
            stop(pid)
            try:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(send_many(channel), 0.2)
                assert len(group[0]._writer._frames) <= 2  # of one item
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await channel.receive() is None

        async def send_many(channel: aio.Channel) -> None:
            for _ in range(1000):
                await channel.send(b"x" * (1 << 20))

        run(body)

    def test_threads_wait_too_while_the_worker_reads_nothing(self) -> None:
        async def body(group: aio.Group) -> None:
            def send_many() -> None:
                channel = group[0].remote_exec("for item in channel: pass")
                for _ in range(20):
                    execnet.Channel.send(channel, b"x" * (1 << 20))

            pid = (await group[0].remote_status()).pid
            stop(pid)
            try:
                sending = asyncio.get_running_loop().run_in_executor(None, send_many)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(sending), 0.3)
                assert len(group[0]._writer._frames) <= 4  # of two items
            finally:
                os.kill(pid, signal.SIGCONT)
            await sending

        run(body)

    def test_a_frame_that_is_handed_in_while_another_is_written_goes_out(self) -> None:
        async def body(group: aio.Group) -> None:
            writer = group[0]._writer
            channel, asked = group[0].remote_exec(ECHO), group[0].newchannel()
            write_some = writer._write_some

            def write_and_ask(data: bytes) -> Any:
                writer._write_some = write_some
                group[0]._post(Message.STATUS, asked.id)
                return write_some(data)

            writer._write_some = write_and_ask
            await channel.send("first")
            assert await channel.receive() == "first"
            assert (await asked.receive(BOUND_S))["numexecuting"] == 1

        run(body)

    def test_the_loop_and_threads_send_at_once(self) -> None:
        async def body(group: aio.Group) -> None:
            source = "channel.send(sum(len(channel.receive()) for _ in range(200)))"

            def send_many() -> int:
                channel = group[0].remote_exec(source)
                for _ in range(200):
                    execnet.Channel.send(channel, b"x" * 40_000)
                size: int = execnet.Channel.receive(channel)
                return size

            sending = [asyncio.to_thread(send_many) for _ in range(3)]
            tasks = [asyncio.ensure_future(one) for one in sending]
            channel = group[0].remote_exec(source)
            for _ in range(200):
                await channel.send(b"x" * 40_000)
            assert await channel.receive() == 200 * 40_000
            assert await asyncio.gather(*tasks) == [200 * 40_000] * 3

        run(body)

    @pytest.mark.parametrize("side", ["here", "there"])
    def test_a_window_bounds_what_is_unread(self, side: str) -> None:
        source = (
            "if channel.receive() == 'there': channel.set_window(1000)\n"
            "go = channel.gateway.newchannel(); channel.send(go); go.receive()\n"
            "channel.receive(); channel.receive(); channel.send(None)"
        )

        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec(source)
            if side == "here":
                channel.set_window(1000)
            await channel.send(side)
            go = await channel.receive()
            await channel.send(b"x" * 600)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(channel.send(b"z" * 600), 0.1)
            second = asyncio.ensure_future(channel.send(b"y" * 600))
            await go.send(None)
            await second
            assert await channel.receive() is None

        run(body)

    def test_a_codec_takes_other_types(self) -> None:
        async def body(group: aio.Group) -> Any:
            group.codec(execnet.codecs.standard)
            channel = group[0].remote_exec(ECHO)
            await channel.send(date(2020, 2, 2))
            assert await channel.receive() == date(2020, 2, 2)
            got: asyncio.Queue[Any] = asyncio.Queue()
            channel.setcallback(got.put_nowait, endmarker=None)
            await channel.send(date(2021, 2, 2))
            return await got.get()

        assert run(body) == date(2021, 2, 2)

    @pytest.mark.parametrize("misuse", ["iter(c)", "next(c)", "c.makefile()", "g.module('os')"])
    def test_what_would_stop_the_loop_is_refused(self, misuse: str) -> None:
        async def body(group: aio.Group) -> None:
            names = {"g": group[0], "c": group[0].newchannel()}
            with pytest.raises(TypeError, match=r"execnet\.aio"):
                eval(misuse, names)
            with pytest.raises(TypeError, match="async with"), group[0]:
                pass
            with pytest.raises(TypeError, match="plain function"):
                group[0].newchannel().setcallback(body)

        run(body)


class TestCancelling:
    def test_a_cancelled_receive_loses_no_item(self) -> None:
        count = some_of(5000)

        async def body(group: aio.Group) -> list[int]:
            channel = group[0].remote_exec(
                "import time\n"
                f"for number in range({count}): channel.send(number); time.sleep(0.0002)\n"
                "channel.receive()"
            )
            got: list[int] = []

            async def take() -> None:
                got.append(await channel.receive())

            rounds = 0
            while len(got) < count:
                tasks = [asyncio.ensure_future(take()) for _ in range(2)]
                for _ in range(rounds % 4):
                    await asyncio.sleep(0)
                tasks[rounds % 2].cancel()
                await asyncio.sleep(0.0001 * (rounds % 3))
                for task in tasks:
                    task.cancel()
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    assert result is None or isinstance(result, asyncio.CancelledError)
                rounds += 1
            return got

        assert run(body) == list(range(count))

    def test_a_chosen_receive_that_is_cancelled_leaves_its_turn_to_the_next(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].newchannel()
            first = asyncio.ensure_future(channel.receive())
            second = asyncio.ensure_future(channel.receive())
            await asyncio.sleep(0)
            channel._inbox.put("item")  # wakes the first
            first.cancel()
            assert await asyncio.wait_for(second, BOUND_S) == "item"
            with pytest.raises(asyncio.CancelledError):
                await first

        run(body)


class TestCalls:
    def test_functions_run_there_and_errors_come_as_themselves(self) -> None:
        async def body(group: aio.Group) -> None:
            gateway = group[0]
            assert await gateway.call(add, 1, b=2) == 3
            assert await asyncio.gather(*(gateway.call(add, n) for n in range(5))) == [*range(1, 6)]
            with pytest.raises(ZeroDivisionError):
                await gateway.call("operator:truediv", 1, 0)
            futures = [gateway.submit(add, number) for number in range(5)]
            assert [await future for future in futures] == [1, 2, 3, 4, 5]
            with pytest.raises(ModuleNotFoundError):
                await gateway.submit("nowhere_to_be_found:function")

        run(body)

    def test_a_call_that_waited_for_the_stream_holds_up_no_other(self) -> None:
        async def body(group: aio.Group) -> None:
            gateway = group[0]
            gateway.remote_exec("import threading; threading.told = threading.Event()")
            channel, pid = gateway.remote_exec(ECHO), (await gateway.remote_status()).pid
            stop(pid)
            try:
                await channel.send(b"x" * 5_000_000)
                assert gateway._writer.is_full()
                waits = [gateway.call("threading:told.wait", BOUND_S) for _ in range(4)]
                told = asyncio.gather(*waits, gateway.call("threading:told.set"))
                await wait_in_loop(lambda: len(gateway._writer._waiting_tasks) == 5)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await told == [True] * 4 + [None]

        run(body)

    def test_status_and_stacks_are_awaited(self) -> None:
        async def body(group: aio.Group) -> None:
            channel = group[0].remote_exec("channel.send(1); channel.receive()")
            await channel.receive()
            status = await group[0].remote_status(BOUND_S)
            assert (status.numexecuting, status.execmodel) == (1, "thread")
            assert "in receive" in (await group.dump_stacks(BOUND_S))["gw0"]
            channel.close()

        run(body)


class TestGroups:
    def test_items_of_many_come_as_they_are_sent(self) -> None:
        async def body(group: aio.Group) -> set[Any]:
            channels = group.remote_exec("channel.send(1); channel.send(2)")
            return {(channel.gateway.id, item) async for channel, item in channels.as_received()}

        expected = {(id, item) for id in ("gw0", "gw1") for item in (1, 2)}
        assert run(body, "2*popen") == expected

    def test_what_one_of_many_raises_is_raised_and_the_others_go_on(self) -> None:
        async def body(group: aio.Group) -> None:
            channels = group.remote_exec("channel.send(channel.receive() / 2)")
            await channels[0].send("text")
            await channels[1].send(4)
            errors, items = 0, []
            while channels._open:
                try:
                    async for _, item in channels.as_received():
                        items.append(item)
                except execnet.RemoteError:
                    errors += 1
            assert (errors, items) == (1, [2])

        run(body, "2*popen")

    def test_a_worker_that_reads_nothing_holds_up_no_other(self) -> None:
        async def body(group: aio.Group) -> None:
            channels = group.remote_exec("for item in channel: channel.send(item)")
            pid = (await group[0].remote_status()).pid
            stop(pid)
            try:
                await channels[0].send(b"x" * 3_000_000)
                sending = asyncio.ensure_future(channels.send_each(1))
                assert await channels[1].receive() == 1
                assert not sending.done()
                channels[1].close()
            finally:
                os.kill(pid, signal.SIGCONT)
            await sending
            with pytest.raises(OSError, match="cannot send"):
                await channels.send_each(2)
            assert [len(await channels[0].receive()), await channels[0].receive()] == [3_000_000, 1]
            assert await channels[0].receive() == 2

        run(body, "2*popen")

    def test_one_item_of_each_is_taken_once_all_are_there(self) -> None:
        async def body(group: aio.Group) -> None:
            channels = group.remote_exec("for item in channel: channel.send(item)")
            await channels[0].send(1)
            receiving = asyncio.ensure_future(channels.receive_each())
            other = asyncio.ensure_future(channels[1].receive())
            await wait_in_loop(lambda: channels[0]._inbox.qsize())
            await channels[1].send("for the other")
            assert await other == "for the other"
            receiving.cancel()
            await asyncio.wait([receiving])
            channels[1].close()
            with pytest.raises(EOFError):
                await channels.receive_each()
            assert await channels[0].receive() == 1

        run(body, "2*popen")

    def test_a_queue_gets_items_alone_unless_it_is_to_tell_of_ends(self) -> None:
        async def body(group: aio.Group) -> None:
            for more in ((), ("end",)):
                channels = group.remote_exec("channel.send(1)")
                queue = channels.make_receive_queue(*more)
                await channels.waitclose(BOUND_S)
                taken = [queue.get_nowait() for _ in range(queue.qsize())]
                assert taken == [(channels[0], item) for item in (1, *more)]
            with pytest.raises(execnet.TimeoutError):
                await group.remote_exec("channel.receive()").waitclose(0.01)

        run(body)

    def test_modules_are_forwarded(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "only_here.py").write_text("VALUE = 42")
        monkeypatch.syspath_prepend(tmp_path)

        async def body(group: aio.Group) -> int:
            code = "import only_here; channel.send(only_here.VALUE)"
            value: int = await group[0].remote_exec(code).receive()
            await group[0].forward_imports(["only_here"])
            return value

        assert run(body, "popen//imports=only_here//chdir=/") == 42

    def test_a_loop_has_groups_of_its_own(self) -> None:
        async def make(group: aio.Group) -> None:
            await group.makegateway("popen")

        async def main() -> aio.Group:
            group = aio.Group()
            await group.makegateway("popen")
            return group

        group = asyncio.run(main())
        with pytest.raises(RuntimeError, match="another loop"):
            asyncio.run(make(group))

    def test_output_is_forwarded(self) -> None:
        lines: queue.SimpleQueue[tuple[str, str, str]] = queue.SimpleQueue()

        async def main() -> None:
            async with aio.Group() as group:
                group.on_output(lambda gateway, *told: lines.put((gateway.id, *told)))
                gateway = await group.makegateway("popen//output=forward")
                await gateway.remote_exec("print('hello')").waitclose(BOUND_S)
                assert await asyncio.to_thread(lines.get, True, BOUND_S) == (
                    "gw0", "stdout", "hello",
                )  # fmt: skip

        asyncio.run(main())

    @pytest.mark.parametrize(
        "spec", ["nonsense", "popen//python=/nowhere/python", "ssh=host//resume=60"]
    )
    def test_a_start_that_fails_leaves_nothing(self, spec: str) -> None:
        async def main() -> None:
            async with aio.Group() as group:
                with pytest.raises((ValueError, execnet.BootstrapError)):
                    await group.makegateways(["popen", spec])
                assert len(group) == 0

        asyncio.run(main())
