"""An import that waits for its module reads the stream itself where nobody else does.

Callbacks run in the thread that reads; one that waits for an import, or imports something itself,
must not keep the module from coming.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import BOUND_S, find_python, wait_until

from execnet import Gateway, Group, RemoteError
from execnet._imports.far_tap import Tap
from execnet.gateway_base import FrameDecoder, Message, get_execmodel

# A callback imports what it is told; the main thread imports ``slow``, if it is told to.
CODE = """
items = channel.receive()
answers = []

def callback(item):
    if isinstance(item, type(u"")) or isinstance(item, str):
        exec(item, {})
        item = "imported"
    answers.append(item)

items.setcallback(callback)
channel.send("ready")
if channel.receive():
    import slow
for item in iter(channel.receive, None):
    channel.send(list(answers))
"""
WHAT = {
    "the same": "import slow",
    "another": "import other",
    "one that is there": "import decimal, colorsys",
}


@pytest.fixture(params=["2.7", "3.6", "3.11", "3.13"])
def gateway(
    request: pytest.FixtureRequest, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Gateway:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow.py").write_text("import slower\n")
    (tmp_path / "slower.py").write_text("")
    (tmp_path / "other.py").write_text("")
    gateway = group.makegateway(f"popen//python={find_python(request.param)}")
    gateway.forward_imports(["slow", "slower", "other"])
    return gateway


def count_requests(gateway: Gateway) -> list[Message]:
    """Return what gets the requests of a worker from now on."""
    requests: list[Message] = []
    on_import = gateway._on_import

    def note(message: Message) -> None:
        requests.append(message)
        on_import(message)

    gateway._on_import = note  # type: ignore[method-assign]
    return requests


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("both", [False, True])
def test_a_callback_may_import_while_the_main_thread_does(
    gateway: Gateway, what: str, both: bool
) -> None:
    requests, items = count_requests(gateway), gateway.newchannel()
    channel = gateway.remote_exec(CODE)
    channel.send(items)
    assert channel.receive(BOUND_S) == "ready"
    with gateway.get_forwarding()._sending:  # nothing is answered meanwhile
        channel.send(both)
        if both:
            wait_until(lambda: requests)
        items.send(WHAT[what])
        for number in range(20):
            items.send(number)
    channel.send(True)
    assert channel.receive(BOUND_S) == ["imported", *range(20)]
    channel.send(None)
    channel.waitclose(BOUND_S)


def test_the_end_of_its_coordinator_ends_an_import_that_waits(gateway: Gateway) -> None:
    requests = count_requests(gateway)
    with gateway.get_forwarding()._sending:
        channel = gateway.remote_exec(
            "try:\n import slow\nexcept ImportError as exc:\n channel.send(str(exc))"
        )
        wait_until(lambda: requests)
        gateway.exit()
        assert "the coordinator is gone" in channel.receive(BOUND_S)
    with pytest.raises((RemoteError, EOFError)):
        channel.receive(BOUND_S)


class Source:
    """A gateway to a tap: gives out a stream in pieces."""

    execmodel = get_execmodel("thread")
    _to_load = None
    _load_while_idle = None

    def __init__(self, begun: bytes, pieces: list[bytes]) -> None:
        self._decoder = FrameDecoder(True)
        self._decoder._chunks = [begun]
        self._io = self
        self._channelfactory = SimpleNamespace(lock=threading.Lock())
        self.kept: dict[bytes, bytes] = {}
        self.read_some: Any = iter([*pieces, b""]).__next__

    def _next_data(self, limit: int, decoder: object) -> bytes:
        piece: bytes = self.read_some()
        return piece


KEPT = st.builds(
    lambda digest, rest: b"k" + digest + rest,
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=30),
)
PAYLOADS = st.binary(max_size=30).filter(lambda payload: payload[:1] != b"k") | KEPT
FRAMES = st.lists(st.tuples(st.sampled_from([4, 9, 45]), st.integers(0, 2), PAYLOADS), max_size=8)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """Yield the pieces between some places, none of them empty."""
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for start, end in pairwise(bounds):
        yield data[start:end]


@given(FRAMES, st.lists(st.integers(0, 500), max_size=12), FRAMES)
def test_answers_are_found_in_any_cut_and_nothing_is_lost(
    frames: list[tuple[int, int, bytes]], places: list[int], begun: list[tuple[int, int, bytes]]
) -> None:
    data, before = [
        b"".join(
            struct.pack("!bii", code, id, len(payload)) + payload for code, id, payload in some
        )
        for some in (frames, begun)
    ]
    first, *pieces = [*cut(data, places)] or [b""]
    tap = Tap(Source(before + first, pieces))
    got = b""
    for chunk in iter(lambda: tap.next_data(100, None), b""):
        got += chunk
    assert first + got == data
    answers = [
        (id, payload) for code, id, payload in begun + frames if code == Message.SOURCES and id
    ]
    kept = {payload[1:33]: payload[33:] for _, payload in answers if payload[:1] == b"k"}
    assert tap.answers == [
        (id, payload[33:] if payload[:1] == b"k" else payload) for id, payload in answers
    ]
    assert tap._gateway.kept == kept
    assert tap.ended
