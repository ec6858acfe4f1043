"""What a spec says, in values: checked and read once, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from tools import MakeGateway

from execnet import XSpec
from execnet._specs import Settings
from execnet._transports import table
from execnet.gateway_base import WorkerGateway

pytestmark = pytest.mark.core

DEFAULTS = {
    "type": "popen",
    "nice": 0,
    "connect_timeout_s": 60.0,
    "grace_s": WorkerGateway.grace_s,
    "heartbeat_s": 0.0,
    "dead_after_s": 0.0,
    "window_bytes": None,
    "output": "",
    "kills_group": False,
    "is_shared": False,
    "address": None,
    "preload": (),
    "is_over_network": False,
    "has_source": True,
    "is_in_server": False,
}


def values(spec: str | XSpec) -> dict[str, Any]:
    settings = Settings(XSpec(spec) if isinstance(spec, str) else spec)
    return {name: getattr(settings, name) for name in DEFAULTS}


@pytest.mark.parametrize(
    ("spec", "others"),
    [
        ("popen", {}),
        ("popen//nice=5//grace=0.5//window=9", {"nice": 5, "grace_s": 0.5, "window_bytes": 9}),
        ("popen//connect_timeout=0", {"connect_timeout_s": None}),
        ("popen//output=forward", {"output": "forward"}),
        ("popen//kill=group//python=p", {"kills_group": True, "has_source": False}),
        ("popen//heartbeat=2", {"heartbeat_s": 2.0, "dead_after_s": 8.0}),
        ("popen//forkserver//preload=a,b.c", {"preload": ("a", "b.c")}),
        ("popen//preload=what it likes//share=5//ssh_persist=x", {}),  # a program's own
        ("popen//via=a", {"is_over_network": True, "has_source": False, "heartbeat_s": 15.0,
                          "dead_after_s": 60.0}),
    ],
)  # fmt: skip
def test_numbers_are_numbers_and_the_rest_is_as_documented(
    spec: str, others: dict[str, Any]
) -> None:
    assert values(spec) == {**DEFAULTS, **others}


def test_a_socket_has_an_address_and_ssh_may_be_shared() -> None:
    far = {"is_over_network": True, "has_source": False, "heartbeat_s": 15.0, "dead_after_s": 60.0}
    found = values("socket=unix:/tmp/x")
    assert found == {
        **DEFAULTS, **far, "type": "socket", "address": "/tmp/x", "is_in_server": True,
    }  # fmt: skip
    assert values("socket=h:1")["address"] == ("h", 1)
    assert not values("socket=h:0//installvia=a")["is_in_server"]
    assert values("ssh=h//share=yes") == {**DEFAULTS, **far, "type": "ssh", "is_shared": True}
    assert not values("ssh=h//share=no")["is_shared"]


def test_what_is_assigned_counts_and_nothing_is_changed() -> None:
    spec: Any = XSpec("popen//nice=x//id=a")
    spec.nice, spec.connect_timeout, spec.grace, spec.chdir = 1, 3, None, False
    before = dict(vars(spec))
    assert values(spec) == {**DEFAULTS, "nice": 1, "connect_timeout_s": 3.0}
    assert vars(spec) == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("docker=box//preload=a", "preload= is for popen=, not docker="),
        ("docker=box//installvia=a", "installvia= is for socket=, not docker="),
        ("popen//nice", "nice= needs a value: a whole number"),
        ("popen//via=", "via= needs a value: the id of a gateway"),
        ("socket", "socket= needs a value, or installvia=: host:port"),
        ("socket=host", "socket=host: .*is not host:port"),
    ],
)
def test_what_cannot_work_is_refused_before_a_start(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(XSpec(spec))


def test_the_type_is_found_once_on_the_way_to_a_gateway(
    makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[XSpec] = []
    types_of = table.types_of
    monkeypatch.setattr(table, "types_of", lambda spec: looked.append(spec) or types_of(spec))
    gateway = makegateway("popen//python=python3")
    assert looked == [gateway.spec]
