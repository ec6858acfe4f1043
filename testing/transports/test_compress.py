"""``compress=``: large frames travel as zlib streams, both ways, where that pays."""

from __future__ import annotations

import _thread
import asyncio
import operator
import os
import random
import shutil
import signal
import sys
import zlib
from collections import deque
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cut_links import CutLink
from interpreters import Interpreter, chosen
from services import script
from socketservers import Serve
from tools import BOUND_S, MakeGateway, error_of, missing, run_all, wait_until
from workers import ECHO, ask, assert_ends, frame, plain_channel

from execnet import Gateway, Group, ProtocolError, RemoteError, WorkerDied, aio
from execnet._features import deflate
from execnet.gateway_base import (
    ISPYPY,
    ITEM_MAX,
    PART_BYTES,
    FrameDecoder,
    FrameWriter,
    Message,
    dumps_internal,
    get_execmodel,
)

SIZES = 1, 1030, 70_000, ITEM_MAX + 10
COMPRESS = "compress=yes"


def text_of(size: int) -> bytes:
    """Return bytes that shrink, though not to nearly nothing."""
    choose = random.Random(size)
    return b"".join(b"%d words " % choose.randrange(10**6) for _ in range(size // 8 + 1))[:size]


def upper(text: str) -> str:
    return text.upper()


def noise_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def mixed() -> list[bytes]:
    return [make(size) for size in SIZES for make in (text_of, noise_of)]


@pytest.fixture
def hop(group: Group) -> Gateway:
    """A gateway that others go via."""
    return group.makegateway("popen//id=hop")


def assert_echoes(gateway: Gateway) -> None:
    channel = plain_channel(gateway, ECHO)
    for item in mixed():
        channel.send(item)
        assert channel.receive(BOUND_S) == item
    buffer = bytearray(PART_BYTES)
    for item in [item for item in mixed() if len(item) <= PART_BYTES]:
        channel.send_bytes(item)
        assert channel.receive_into(buffer, BOUND_S) == len(item)
        assert buffer[: len(item)] == item
    for item in {"a": "ä" * 5000}, list(range(5000)), ["x" * 3000, None, 2.5], "x" * 2_300_000:
        channel.send(item)
        answer = channel.receive(BOUND_S)
        assert len(answer) == len(item)
    channel.close()


class TestItemsComeBack:
    @pytest.mark.parametrize("python", chosen(), ids=str)
    @pytest.mark.parametrize("more", ["", "//window=100000"])
    def test_from_each_python(
        self, hop: Gateway, group: Group, python: Interpreter, more: str
    ) -> None:
        assert_echoes(
            group.makegateway(f"popen//via=hop//python={python.path}//compress=yes{more}")
        )

    def test_over_a_socket(self, serve: Serve, makegateway: MakeGateway, readers: None) -> None:
        assert_echoes(makegateway(f"socket={serve().address}//{COMPRESS}"))

    def test_over_tls(self, serve: Serve, makegateway: MakeGateway) -> None:
        if shutil.which("openssl") is None:
            missing("the program openssl")
        assert_echoes(makegateway(f"socket={serve(':0', '--tls').address}//{COMPRESS}"))

    def test_by_way_of_a_gateway_that_compresses(self, link: CutLink, group: Group) -> None:
        hop = group.makegateway(f"ssh=host//python={sys.executable}//id=hop//{COMPRESS}")
        plain, both = group.makegateways(["popen//via=hop", f"popen//via=hop//{COMPRESS}"])
        for gateway in hop, plain, both:
            assert_echoes(gateway)

    def test_over_a_shared_login(self, link: CutLink, group: Group) -> None:
        spec = f"ssh=host//share=yes//python={sys.executable}//{COMPRESS}"
        for gateway in group.makegateways([spec] * 2):
            assert_echoes(gateway)
        assert link.runs() == 1

    def test_when_the_connection_is_cut_and_made_anew(self, link: CutLink, group: Group) -> None:
        link.set_cuts([150_000, 90_000])
        spec = f"ssh=host//python={sys.executable}//resume={BOUND_S:g}//{COMPRESS}"
        gateway = group.makegateway(spec)
        assert "frame" in vars(gateway._writer)
        assert ask(gateway, "channel.send('frame' in vars(channel.gateway._writer))") is True
        channel = plain_channel(gateway, ECHO)
        for size in range(25_000, 25_012):
            for item in text_of(size), noise_of(size):
                channel.send(item)
                assert channel.receive(BOUND_S) == item
        assert link.runs() > 2

    def test_in_a_loop(self, serve: Serve) -> None:
        address = serve().address

        async def exchange_all() -> None:
            async with aio.Group() as group:
                gateway = await group.makegateway(f"socket={address}//{COMPRESS}")
                channel = gateway.remote_exec(ECHO)
                for item in mixed():
                    await channel.send(item)
                    assert await channel.receive() == item
                for item in mixed():
                    await channel.send_bytes(item)
                    assert await channel.receive() == item
                assert await gateway.call(upper, "ab" * 5000) == "AB" * 5000

        asyncio.run(asyncio.wait_for(exchange_all(), BOUND_S))

    def test_into_callbacks_and_from_them(self, link: CutLink, compressing: Gateway) -> None:
        channel = plain_channel(compressing, ECHO)
        answers: list[bytes] = []

        def again(item: bytes) -> None:
            answers.append(item)
            if len(answers) < 4:
                channel.send(item)

        channel.setcallback(again)
        channel.send(text_of(70_000))
        wait_until(lambda: len(answers) == 4)
        assert set(answers) == {text_of(70_000)}


@pytest.fixture
def compressing(link: CutLink, group: Group) -> Gateway:
    """A gateway over a link that counts."""
    return group.makegateway(f"ssh=host//python={sys.executable}//{COMPRESS}")


def passed(link: CutLink, sign: str) -> int:
    return sum(size for direction, size in link.pieces() if direction == sign)


class TestTheStream:
    @pytest.mark.parametrize("size", [2000, 200_000, 3_000_000])
    def test_has_fewer_bytes_both_ways(
        self, link: CutLink, compressing: Gateway, size: int
    ) -> None:
        channel = plain_channel(compressing, ECHO)
        channel.send(1)
        channel.receive(BOUND_S)
        before = {sign: passed(link, sign) for sign in "<>"}
        item = text_of(size)
        channel.send(item)
        assert channel.receive(BOUND_S) == item
        for sign in "<>":
            wait_until(lambda sign=sign: passed(link, sign) > before[sign] + size // 8)  # type: ignore[misc]
            assert passed(link, sign) - before[sign] < size * 0.6

    def test_has_fewer_bytes_for_source_calls_and_errors(
        self, link: CutLink, compressing: Gateway
    ) -> None:
        compressing.call("builtins:len", "warm")
        before = passed(link, ">"), passed(link, "<")
        line = "# a line that comes again and again\n"
        assert ask(compressing, line * 1000 + "channel.send(1)") == 1
        assert compressing.call("builtins:len", line * 1000) == len(line) * 1000
        channel = compressing.remote_exec("raise ValueError('%s')" % ("words " * 5000))
        with pytest.raises(RemoteError, match="words words"):
            channel.receive(BOUND_S)
        assert passed(link, ">") - before[0] < 20_000
        assert passed(link, "<") - before[1] < 20_000

    def test_is_left_alone_without_the_key(self, group: Group, hop: Gateway) -> None:
        for gateway in hop, group.makegateway("popen//via=hop//compress=no"):
            assert not {"frame", "send"} & set(vars(gateway._writer))
            loaded = "import sys; channel.send([n for n in sys.modules if n.endswith('deflate')])"
            assert ask(gateway, loaded) == []

    def test_of_many_calls_has_each_answer_once(self, compressing: Gateway, group: Group) -> None:
        with group.executor() as executor:
            texts = [f"{number} " * 2000 for number in range(30)]
            assert list(executor.map(upper, texts, timeout=BOUND_S)) == texts


def end_process(text: str) -> None:
    os._exit(len(text) % 7)


def test_a_call_that_has_left_is_not_made_again_by_another_worker(link: CutLink) -> None:
    with Group([f"ssh=host//python={sys.executable}//{COMPRESS}"] * 2) as group:
        with group.executor() as executor, pytest.raises(WorkerDied):
            executor.submit(end_process, "text " * 3000).result(BOUND_S)
        assert [gateway.hasreceiver() for gateway in group].count(True) == 1


class Writer:
    """What a gateway's writer is to a ``Deflater``."""

    def __init__(self) -> None:
        self._io = SimpleNamespace(execmodel=get_execmodel("thread"))
        self._frames: deque[Any] = deque()
        self._error, self._closing = None, False
        self.alone: list[bytes] = []  # the headers of frames that were not queued

    def frame(self, header: bytes, payload: Any, *blob: object) -> list[Any]:
        return [header, payload, *blob, [], []][:4]

    def send(self, header: bytes, payload: Any) -> None:
        self.alone.append(header)
        self._frames.append([header, payload])

    def deliver(self, frame: list[Any]) -> None:
        assert frame in self._frames

    def _flush_queued(self) -> None:
        """There is no stream."""


class Taken:
    """A stream that takes everything at once."""

    execmodel = get_execmodel("thread")

    def __init__(self, small_bytes: int = 0) -> None:
        self.small_bytes = small_bytes
        self._data = b""
        self.writer: Any = FrameWriter(self, "gw")  # type: ignore[arg-type]

    def write_some(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def can_write_now(self) -> bool:
        return True

    def frames(self) -> list[tuple[bytes, bytes]]:
        whole = [(one.msgcode, one.channelid, one.data) for one in FrameDecoder().feed(self._data)]
        return [(frame(*one)[:9], one[2]) for one in whole]


def codes_sent(items: list[tuple[int, bytes]]) -> list[int]:
    writer: Any = Writer()
    deflate.Deflater(writer)
    wholes = [frame(code, 1, data) for code, data in items]
    return [writer.frame(whole[:9], whole[9:])[0][0] for whole in wholes]


class TestFrames:
    @pytest.mark.parametrize("size", [0, 1, 1023])
    def test_that_are_small_stay_as_they_are(self, size: int) -> None:
        assert codes_sent([(4, text_of(size))]) == [4]

    def test_that_are_large_are_deflated_wherever_the_header_ends(self) -> None:
        data, writer = text_of(5000), Writer()
        deflater = deflate.Deflater(writer)  # type: ignore[arg-type]
        whole = frame(4, 7, data)
        for end in 9, 14, 20:
            header, payload, *_ = deflater.frame(whole[:end], memoryview(whole)[end:])
            assert header[:5] == bytes([Message.DEFLATED, 0, 0, 0, 7])
            assert int.from_bytes(header[5:9], "big") == len(payload) < 4000
            assert payload[:2] == bytes([4, deflate.ALONE])
            assert zlib.decompress(payload[6:]) == data

    @pytest.mark.parametrize("code", sorted(set(Message._types) - deflate.KINDS))
    def test_of_other_kinds_stay_as_they_are(self, code: int) -> None:
        assert codes_sent([(code, text_of(5000))]) == [code]

    def test_that_are_written_in_one_call_are_deflated_without_a_stream_too(self) -> None:
        taken, item = Taken(small_bytes=4096), text_of(3000)
        deflate.Deflater(taken.writer, may_continue=False)
        taken.writer.send(frame(4, 1, item)[:9], item)
        assert [header[0] for header, _ in taken.frames()] == [Message.DEFLATED]
        assert read(taken.frames()) == [item]

    def test_with_a_blob_stay_as_they_are(self) -> None:
        writer: Any = Writer()
        deflate.Deflater(writer)
        whole = frame(4, 1, text_of(5000))
        assert writer.frame(whole[:9], whole[9:], "blob")[:3] == [whole[:9], whole[9:], "blob"]

    def test_that_do_not_shrink_are_sent_as_they_are_and_tried_less_often(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried, make = [], zlib.compressobj
        monkeypatch.setattr(zlib, "compressobj", lambda level: tried.append(1) or make(level))
        assert codes_sent([(4, noise_of(2000))] * 200) == [4] * 200
        assert 5 < len(tried) < 12
        tried.clear()
        assert codes_sent([(4, noise_of(2000)), (4, text_of(2000))] * 2) == [4, 4, 4, 25]
        assert codes_sent([(4, noise_of(2000)), (4, text_of(70_000))] * 2) == [4, 25, 4, 25]


def deflated(
    code: int, data: bytes, size: int | None = None, more: bytes = b"", how: int = deflate.ALONE
) -> bytes:
    """Return what a DEFLATED frame holds."""
    stated = len(data) if size is None else size
    return deflate._INNER.pack(code, how, stated) + zlib.compress(data) + more


def streamed(data: bytes, size: int | None = None) -> bytes:
    """Return what a DEFLATED frame that begins a stream holds."""
    stream = zlib.compressobj()
    short = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
    return deflate._INNER.pack(4, deflate.BEGINS, size or len(data)) + short


ITEM = dumps_internal(b"x" * 2000)
BAD = {
    "nothing": (1, b"", "deflated frame of code"),
    "no zlib stream": (1, bytes([4, 0, 0, 0, 0, 9]) + b"garbage", "a deflated frame: "),
    "one that goes on with nothing": (1, deflated(4, ITEM, how=2), "goes on with nothing"),
    "one that goes on in no way": (1, deflated(4, ITEM, how=3), f"code 4 and {len(ITEM)} bytes, 3"),
    "one that ends what should go on": (1, deflated(4, ITEM, how=1), "not just its"),
    "garbage that goes on": (
        1,
        streamed(ITEM) + frame(25, 1, bytes([4, 2, 0, 0, 7, 0]) + b"garbage"),
        "a deflated frame: ",
    ),
    "more than it says, going on": (1, streamed(ITEM, len(ITEM) - 1), "not just its"),
    "a stream that is cut": (1, deflated(4, ITEM)[:-3], "not just its"),
    "bytes after it": (1, deflated(4, ITEM, more=b"x"), "not just its"),
    "less than it says": (1, deflated(4, ITEM, len(ITEM) + 1), "not just its"),
    "more than it says": (1, deflated(4, ITEM, len(ITEM) - 1), "not just its"),
    "a size below 0": (1, bytes([4, 0]) + b"\xff" * 4, "and -1 bytes"),
    "too much": (1, deflated(4, bytes(ITEM_MAX + 1)), f"code 4 and {ITEM_MAX + 1} bytes"),
    "one within another": (1, deflated(25, deflated(4, ITEM)), "deflated frame of code 25"),
    "a hello": (1, deflated(8, dumps_internal({})), "deflated frame of code 8"),
    "a code below 0": (1, deflated(-1, ITEM), "deflated frame of code -1"),
    "code to run": (1, deflated(3, ITEM), "may not send CHANNEL_EXEC"),
    "a call": (1, deflated(16, ITEM), "may not send CALL"),
    "no channel": (0, deflated(4, ITEM), "DEFLATED without a channel"),
    "a frame that is too large": (1, bytes(ITEM_MAX + 1), f"DEFLATED of {ITEM_MAX + 1} bytes"),
}


def read(frames: list[Any]) -> list[bytes]:
    """Return the payloads of frames with items, as the other side would."""
    got: list[bytes] = []
    factory = SimpleNamespace(_local_receive=lambda id, data: got.append(data))
    gateway: Any = SimpleNamespace(_admits=None, _channelfactory=factory)
    for header, payload, *_ in frames:
        message = Message(header[0], 1, bytes(payload))
        if header[0] == Message.DEFLATED:
            deflate.on_deflated(message, gateway)
        else:
            got.append(message.data)
    return got


class TestTheStreamOfADirection:
    def test_makes_a_frame_small_that_repeats_another(self) -> None:
        writer: Any = Writer()
        deflate.Deflater(writer)
        wholes = [frame(4, 1, text_of(4000))] * 3
        for whole in wholes:
            writer.send(whole[:9], whole[9:])
        sizes = [len(payload) for _, payload, *_ in writer._frames]
        assert sizes[0] > 1000
        assert max(sizes[1:]) < 100
        assert read(writer._frames) == [whole[9:] for whole in wholes]

    def test_has_few_bits_after_each_frame(self) -> None:
        writer: Any = Writer()
        deflate.Deflater(writer)
        items = [text_of(size) for size in range(1024, 12_000, 97)]
        stream, size = zlib.compressobj(deflate.LEVEL), 0
        for item in items:
            writer.send(frame(4, 1, item)[:9], item)
            size += len(stream.compress(item) + stream.flush(zlib.Z_SYNC_FLUSH))
        sent = sum(len(payload) - deflate._INNER.size for _, payload, *_ in writer._frames)
        assert sent < size - 3 * len(items)
        assert read(writer._frames) == items

    def test_begins_anew_after_what_does_not_shrink(self) -> None:
        writer: Any = Writer()
        deflate.Deflater(writer)
        items = [
            make(size) for size in (4000, 9000, 20_000) for make in (text_of, noise_of, text_of)
        ]
        for item in items:
            writer.send(frame(4, 1, item)[:9], item)
        assert sum(payload[1] == deflate.BEGINS for _, payload, *_ in writer._frames) > 1
        assert read(writer._frames) == items

    def test_is_tried_again_after_as_many_bytes_as_are_to_pass(self) -> None:
        taken = Taken()
        deflate.Deflater(taken.writer)
        items = [noise_of(20_000), *[text_of(20_000)] * 4]
        for item in items:
            taken.writer.send(frame(4, 1, item)[:9], item)
        frames = taken.frames()
        assert [header[0] for header, _ in frames] == [4, 4, 4, 25, 25]
        assert [payload[1] for _, payload in frames[3:]] == [deflate.BEGINS, deflate.GOES_ON]
        assert read(frames) == items

    def test_is_passed_over_by_a_thread_that_would_have_to_wait(self) -> None:
        writer: Any = Writer()
        deflater = deflate.Deflater(writer)
        item = text_of(4000)
        with deflater._lock:
            writer.send(frame(4, 1, item)[:9], item)
        assert writer.alone

    def test_begins_anew_after_an_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        writer: Any = Writer()
        deflate.Deflater(writer)
        make_frame, item = Writer.frame, text_of(4000)

        def interrupted(*args: Any) -> list[Any]:
            raise KeyboardInterrupt

        writer.send(frame(4, 1, item)[:9], item)
        deflater = writer.send.__self__
        monkeypatch.setattr(deflater, "_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.send(frame(4, 1, item)[:9], item)
        monkeypatch.setattr(deflater, "_frame", lambda *args: make_frame(writer, *args))
        writer.send(frame(4, 1, item)[:9], item)
        assert [payload[1] for _, payload, *_ in writer._frames] == [deflate.BEGINS] * 2
        assert read(writer._frames) == [item] * 2

    def test_goes_out_if_an_interrupt_comes_just_after_it_was_queued(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(frame: object) -> None:
            raise KeyboardInterrupt

        taken, item = Taken(), text_of(4000)
        deflate.Deflater(taken.writer)
        monkeypatch.setattr(taken.writer, "deliver", interrupted)
        with pytest.raises(KeyboardInterrupt):
            taken.writer.send(frame(4, 1, item)[:9], item)
        assert read(taken.frames()) == [item]

    @pytest.mark.skipif(ISPYPY, reason="an interrupt may come between any two bytecodes")
    def test_stays_in_use_if_an_interrupt_comes_while_its_lock_is_taken(self) -> None:
        def interrupt(number: int, stack: object) -> None:
            raise KeyboardInterrupt

        taken, item, released = Taken(), text_of(4000), list[None]()
        deflater = deflate.Deflater(taken.writer)
        # Called with False, this returns True; the signal is handled where Python looks next.
        signals = map(_thread.interrupt_main, (signal.SIGALRM,))
        acquire: Any = partial(reduce, operator.is_not, signals)
        deflater._lock = SimpleNamespace(acquire=acquire, release=lambda: released.append(None))  # type: ignore[assignment]
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                taken.writer.send(frame(4, 1, item)[:9], item)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert released

    def test_is_not_disturbed_by_threads_that_send_at_once(self, compressing: Gateway) -> None:
        def exchange_all(number: int) -> None:
            channel = plain_channel(compressing, ECHO)
            for size in range(2000, 12_000, 2000):
                for item in text_of(size + number), noise_of(size + number):
                    channel.send(item)
                    assert channel.receive(BOUND_S) == item

        run_all([lambda number=number: exchange_all(number) for number in range(4)])  # type: ignore[misc]


class TestAWorkerThatMeansHarm:
    @pytest.mark.parametrize("name", BAD)
    def test_ends_its_gateway_and_no_other(self, group: Group, hop: Gateway, name: str) -> None:
        id, data, words = BAD[name]
        assert_ends(group.makegateway(f"popen//via=hop//{COMPRESS}"), frame(25, id, data), words)
        assert ask(hop, "channel.send(1)") == 1

    def test_may_not_begin_by_itself(self, gateway: Gateway) -> None:
        assert_ends(gateway, frame(25, 1, deflated(4, ITEM)), "DEFLATED, without compress=")

    @pytest.mark.parametrize("ends", [True, False])
    def test_takes_no_more_memory_than_the_largest_frame(self, ends: bool) -> None:
        """A bomb: 64 MiB in 64 KiB."""
        import tracemalloc

        bomb = deflated(4, bytes(64 << 20), ITEM_MAX)
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError, match="not just its"):
                deflate.inflated(zlib.decompressobj(), bomb[6:], ITEM_MAX, ends)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(bomb) < 1 << 17
        assert peak < 3 * ITEM_MAX

    def test_is_held_to_its_window_by_what_frames_become(self, group: Group, hop: Gateway) -> None:
        gateway = group.makegateway(f"popen//via=hop//{COMPRESS}//window=10000")
        channel = gateway.remote_exec(
            "write = channel.gateway._io.write; write(channel.receive()); channel.receive()"
        )
        waiting = gateway.newchannel()
        data = frame(25, channel.id, deflated(4, dumps_internal(b"x" * 8000)))
        channel.send(data * 4)
        with pytest.raises(ProtocolError, match="window=10000"):
            waiting.receive(BOUND_S)


class TestIsRefused:
    @pytest.mark.parametrize("spec", ["popen", "sudo=user", "socketservice=name"])
    def test_where_there_is_no_network(self, group: Group, spec: str) -> None:
        with pytest.raises(ValueError, match="compress= is for connections over a network"):
            group.makegateway(f"{spec}//{COMPRESS}")

    def test_with_another_value(self, group: Group) -> None:
        with pytest.raises(ValueError, match="neither yes nor no"):
            group.makegateway("ssh=host//compress=always")

    def test_by_a_python_without_zlib(self, link: CutLink, group: Group, tmp_path: Path) -> None:
        code = "import sys; sys.modules['zlib'] = None; exec(eval(sys.stdin.readline()))"
        python = script(tmp_path / "no_zlib", f'exec {sys.executable} -u -c "{code}"')
        error = error_of(group, f"ssh=host//python={python}//{COMPRESS}")
        assert "compress=yes needs zlib, which the worker's Python does not have" in str(error)
        assert group.makegateway(f"ssh=host//python={python}")

    def test_by_an_execnet_that_does_not_know_it(
        self, link: CutLink, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_hello = Gateway._on_hello

        def older(gateway: Gateway, hello: dict[str, Any]) -> None:
            on_hello(gateway, {**hello, "features": "goodbye stacks"})

        monkeypatch.setattr(Gateway, "_on_hello", older)
        error = error_of(group, f"ssh=host//python={sys.executable}//{COMPRESS}")
        assert "the worker's execnet can't inflate frames" in str(error)
