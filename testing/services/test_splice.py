"""What joins a program's stream to a login: the login may send anything."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from execnet._service.splice import Splice
from execnet._via.far_forwarder import CHUNK_BYTES, EOF, WINDOW_BYTES
from execnet.gateway_base import Message, get_execmodel, loads_internal


class End:
    """A gateway that notes what is sent over it."""

    def __init__(self) -> None:
        self.execmodel = get_execmodel("thread")
        self._channelfactory = self
        self._writer = self
        self.lock = threading.Lock()
        self.sent: list[tuple[int, object]] = []
        self.known_parts: frozenset[str] = frozenset()
        self.exits = 0

    def post(self, head: bytes, data: bytes) -> None:
        frame = head + data
        self._post(frame[0], int.from_bytes(frame[1:5], "big"), frame[9:])

    def _post(self, code: int, id: int, data: bytes = b"") -> None:
        item = loads_internal(data) if code == Message.CHANNEL_DATA else "closed"
        self.sent.append((id, item))

    def _local_close(self, id: int) -> None:
        pass

    def exit(self) -> None:
        self.exits += 1


class Channel:
    """One of its channels."""

    def __init__(self, gateway: End, id: int) -> None:
        self.gateway, self.id = gateway, id

    def isclosed(self) -> bool:
        return (self.id, "closed") in self.gateway.sent


class Spliced:
    """A splice whose login has been asked for a worker."""

    def __init__(self) -> None:
        self.program, self.login = End(), End()
        self.over: list[object] = []
        channels: Any = [Channel(self.program, 1), Channel(self.program, 2)]
        self.splice: Any = Splice(*channels, {}, lambda request: 1 / 0, self.over.append)  # type: ignore[arg-type,return-value]
        self.splice._far_data = Channel(self.login, 3)
        self.splice._far_news = Channel(self.login, 4)
        self.splice._login = self.login

    def data(self, item: object) -> None:
        self.splice._on_data(self.login, item)

    def news(self, item: object) -> None:
        self.splice._on_news(self.login, item)


def test_items_pass_both_ways_as_they_are() -> None:
    spliced = Spliced()
    for item in b"first", b"x" * 300_000, 12345, -1, (17,), 0:
        spliced.splice.on_item(item)
    spliced.data(b"answer")
    spliced.news(99)
    spliced.data(EOF)
    spliced.news((3, b"stderr", b""))
    assert [item for _, item in spliced.login.sent[:-2]] == [
        b"first", b"x" * 300_000, 12345, -1, (17,), 0,
    ]  # fmt: skip
    assert spliced.login.sent[-2:] == [(3, "closed"), (4, "closed")]
    assert spliced.program.sent == [(1, b"answer"), (2, 99), (1, EOF), (2, (3, b"stderr", b""))]
    assert spliced.over == [spliced.login]
    spliced.splice.on_item(b"late")
    assert len(spliced.login.sent) == 8


def test_bytes_that_come_after_the_news_of_the_end_pass_as_well() -> None:
    spliced = Spliced()
    spliced.news((-9, b"", b""))
    assert spliced.over == []
    spliced.data(b"last")
    spliced.splice.on_item(4)
    spliced.data(EOF)
    assert spliced.program.sent == [(2, (-9, b"", b"")), (1, b"last"), (1, EOF)]
    assert spliced.login.sent == [(3, 4), (3, "closed"), (4, "closed")]
    assert spliced.over == [spliced.login]


def test_a_program_that_wants_no_more_bytes_after_the_end_gets_none() -> None:
    spliced = Spliced()
    spliced.news((0, b"", b""))
    spliced.splice.on_item(None)
    assert spliced.over == [spliced.login]
    spliced.data(b"late")
    assert spliced.program.sent == [(2, (0, b"", b""))]


def test_a_blob_that_is_kept_is_put_in() -> None:
    spliced = Spliced()
    spliced.splice._kept[b"hash"] = b"kept"
    spliced.splice.on_item([b"hash", b"head ", b" tail"])
    assert spliced.login.sent == [(3, b"head kept tail")]


def test_a_program_that_is_gone_leaves_the_worker_its_time() -> None:
    spliced = Spliced()
    spliced.splice.on_item(None)
    assert spliced.login.sent == [(3, "closed")]
    assert spliced.over == []
    spliced.news((0, b"", b""))
    assert spliced.over == [spliced.login]


def test_the_end_of_a_login_is_the_end_of_its_workers() -> None:
    spliced = Spliced()
    spliced.news(None)
    assert spliced.program.sent == [(2, (None, b"", b"")), (1, EOF)]
    assert spliced.over == [spliced.login]
    spliced.news(None)
    assert spliced.over == [spliced.login]


def test_a_login_that_sends_more_than_was_asked_for_is_ended() -> None:
    spliced = Spliced()
    piece = b"x" * CHUNK_BYTES
    for _ in range(WINDOW_BYTES // CHUNK_BYTES + 1):
        spliced.data(piece)
    assert spliced.login.exits == 0
    spliced.splice.on_item(CHUNK_BYTES)  # as much has been taken
    spliced.data(piece)
    assert spliced.login.exits == 0
    for _ in range(10):
        spliced.data(piece)
    assert spliced.login.exits == 1
    assert spliced.over == [spliced.login]
    (end,) = (item for id, item in spliced.program.sent if id == 2)
    assert end == (None, b"", b"its login was ended: more was forwarded than was asked for")
    assert sum(item == piece for _, item in spliced.program.sent) == 6


@pytest.mark.parametrize(
    ("where", "item"),
    [
        ("data", 1),
        ("data", [b""]),
        ("data", "text"),
        ("data", True),
        ("news", 0),
        ("news", -5),
        ("news", b"host"),
        ("news", (None, b"")),
        ("news", (None, "text", b"")),
        ("news", ("0", b"", b"")),
        ("news", {}),
    ],
)
def test_a_login_that_sends_anything_else_is_ended(where: str, item: object) -> None:
    spliced = Spliced()
    getattr(spliced, where)(item)
    assert spliced.login.exits == 1
    assert spliced.over == [spliced.login]
    assert [told for _, told in spliced.program.sent if told == item and told != EOF] == []
