"""Two workers whose messages pass through the coordinator, either of which may lie."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from execnet._rsync import relay
from execnet._rsync.far import wire
from execnet._rsync.far.wire import DIRECTORY
from execnet._rsync.result import RSyncError

ROOT = ((DIRECTORY, 0o755, 1), {"md5": 1.0}, None)
WISHES = dict.fromkeys(("compress", "most_per_s", "expands", "owners", "delete_excluded"), False)


class Channel:
    """A channel of a worker that says something and then waits until it is closed."""

    def __init__(self, says: list[Any]) -> None:
        self._items: queue.Queue[Any] = queue.Queue()
        for item in says:
            self._items.put(item)
        self.got: list[Any] = []
        self.send = self.got.append

    def receive(self) -> Any:
        return self._items.get()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items.get, self)

    def waitclose(self) -> None: ...
    def close(self) -> None:
        self._items.put(self)


def relayed(monkeypatch: pytest.MonkeyPatch, source: list[Any], target: list[Any]) -> Any:
    channels = {"one": Channel([ROOT, *source]), "two": Channel(target)}
    monkeypatch.setattr(relay, "run", lambda gateway, _: channels[gateway.id])
    gateways = [
        SimpleNamespace(id=name, _rinfo=lambda: SimpleNamespace(platform="linux"))
        for name in channels
    ]
    relay.relay(gateways[0], b"/here", gateways[1], b"/there", WISHES, [], lambda path: None)
    return channels


@pytest.mark.parametrize(
    "lie",
    [(wire.GONE,), (wire.GONE, 2), (wire.GONE, -1, b"x"), (wire.GONE, 2, "text"),
     (wire.TOLD,), (wire.TOLD, "sent", 5), (wire.TOLD, "sent", ("x",)), (wire.TOLD, "no", ()),
     (wire.TOLD, "sending", (5,)), (wire.TOLD, "skipped", (b"x",)), (wire.TOLD, "ended", ())],
)  # fmt: skip
def test_a_source_that_lies_to_the_coordinator_is_named(
    monkeypatch: pytest.MonkeyPatch, lie: Any
) -> None:
    with pytest.raises(RSyncError, match=r"^one:/here broke the protocol"):
        relayed(monkeypatch, [lie], [])


@pytest.mark.parametrize(
    "lie", [5, None, (), (wire.FATAL,), (wire.FATAL, 0, 2, "text"), (wire.FATAL, 0, -1, b"x")]
)
def test_a_target_that_lies_to_the_coordinator_is_named(
    monkeypatch: pytest.MonkeyPatch, lie: Any
) -> None:
    with pytest.raises(RSyncError, match=r"^two broke the protocol"):
        relayed(monkeypatch, [], [lie])


def test_what_either_fails_with_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RSyncError, match=r"one:/here: gone\\x1b"):
        relayed(monkeypatch, [(wire.GONE, 2, b"gone\x1b")], [])
    with pytest.raises(RSyncError, match="two:/there: full"):
        relayed(monkeypatch, [], [(wire.FATAL, 0, 28, b"full")])
