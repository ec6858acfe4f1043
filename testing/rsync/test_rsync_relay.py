"""Two workers whose messages pass through the coordinator, either of which may lie."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rsync_trees import forbid_links, make_tree
from rsync_units import LIES, unit
from tools import MakeGateway

from execnet import RSync
from execnet._rsync import relay
from execnet._rsync.far import wire
from execnet._rsync.far.messages import PATH_MAX
from execnet._rsync.far.wire import DIRECTORY, FILE, FIRST_STANDIN, SYMLINK, TOLD
from execnet._rsync.patterns import parse_rules
from execnet._rsync.reports import REPORTS, Reports
from execnet._rsync.result import RSyncError, TargetResult

ROOT = ((DIRECTORY, 0o755, 1), {"md5": 1.0}, None)
WISHES = dict.fromkeys(
    ("compress", "most_per_s", "expands", "owners", "delete_excluded", "dry_run"), False
)
PATH = b"\x1b" * PATH_MAX * 2
TRUE_REPORTS: dict[str, tuple[Any, ...]] = {
    "sending": ([PATH],),
    "sent": (5,),
    "skipped": (PATH, PATH),
    "planned": ([PATH], [PATH]),
    "ended": (1, 2, 3, 0, 0, 0, 0),
    "failed": (PATH,),
}
END = object()
DELIVERED: list[Any] = []  # to the target, by the last relay


class Channel:
    """A channel of a worker that says something and then waits until it is closed."""

    def __init__(self, says: list[Any]) -> None:
        self._items: queue.Queue[Any] = queue.Queue()
        self.put = self._items.put
        for item in says:
            self.put(item)
        self.got: list[Any] = []
        self.send = self.got.append

    def receive(self) -> Any:
        return self._items.get()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items.get, self)

    def waitclose(self) -> None: ...
    def close(self) -> None:
        self._items.put(self)


def relayed(
    monkeypatch: pytest.MonkeyPatch, source: list[Any], target: list[Any],
    rules: tuple[str, ...] = (), root: Any = ROOT,
) -> dict[str, Channel]:  # fmt: skip
    """Relay between workers that say something; an END is the end of the source's channel."""
    channels = {"one": Channel([root]), "two": Channel(target)}
    for item in source:
        if item is END:
            channels["one"].close()
        else:
            channels["one"].put(item)
    monkeypatch.setattr(relay, "run", lambda gateway, _: channels[gateway.id])
    one, two = (
        SimpleNamespace(
            id=name, known_parts=set(), _rinfo=lambda: SimpleNamespace(platform="linux")
        )
        for name in channels
    )
    places = one, b"/here", two, b"/there"
    try:
        relay.relay(*places, WISHES, parse_rules(rules), lambda path: None)  # type: ignore[arg-type]
    finally:
        DELIVERED[:] = channels["two"].got[1:]
    return channels


def reports_of(**options: Any) -> tuple[Reports, TargetResult, list[str]]:
    sent: list[str] = []
    result = TargetResult(SimpleNamespace(id="two"), "/there")  # type: ignore[arg-type]
    options = {"is_dry": False, "rules": [], **options}
    return Reports("one:/here", result, sent.append, **options), result, sent


def test_there_is_a_true_report_of_each_kind_to_make_lies_of() -> None:
    assert set(TRUE_REPORTS) == set(REPORTS)
    for name, values in TRUE_REPORTS.items():
        reports, result, sent = reports_of(is_dry=name == "planned", is_alone=True)
        reports.take((TOLD, name, values))
        kept = [*result.planned, *result.planned_deletions, *sent]
        kept += [text for skipped in result.skipped for text in (skipped.path, skipped.reason)]
        assert all(len(text) <= PATH_MAX for text in kept)
        assert "\x1b" not in str(RSyncError(reports.failed))


def lies_about_reports() -> Iterator[tuple[str, Any]]:
    """Yield (name, values) of which one lies, or is missing or too much."""
    for name, values in TRUE_REPORTS.items():
        yield name, (*values, 1)
        yield name, values[:-1]
        for lie in LIES:
            yield name, lie
            for place in range(len(values)):
                yield name, (*values[:place], lie, *values[place + 1 :])
    for lie in LIES:
        yield lie, (5,)


def error_of(reports: Reports, message: Any) -> str | None:
    try:
        reports.take(message)
    except RSyncError as exc:
        return str(exc)
    return None


def test_a_report_is_true_or_names_the_source() -> None:
    for name, values in lies_about_reports():
        is_dry = name == "planned"
        reports, result, sent = reports_of(is_dry=is_dry, is_alone=True)
        text = error_of(reports, (TOLD, name, values))
        if text is not None:
            assert text.startswith("one:/here broke the protocol")
            assert text.isprintable()
            continue
        assert isinstance(values, tuple)
        assert len(values) == len(TRUE_REPORTS[name])
        counts = result.unchanged, result.settled, result.deleted, result.bytes_sent
        assert all(isinstance(count, int) for count in (*counts, *result.refused.values()))
        texts = [*result.planned, *result.planned_deletions, *sent]
        assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["planned"]),
        ({"is_dry": True}, ["sending"]),
        ({}, ["failed"]),
        ({"is_alone": True}, ["failed", "failed"]),
        ({}, ["ended", "ended"]),
        ({}, ["ended", "sent"]),
    ],
)
def test_a_report_at_a_wrong_moment_names_the_source(options: Any, names: list[str]) -> None:
    *before, last = [(TOLD, name, TRUE_REPORTS[name]) for name in names]
    reports, result, _ = reports_of(**options)
    for message in before:
        reports.take(message)
    with pytest.raises(RSyncError, match=r"^one:/here broke the protocol: "):
        reports.take(last)
    assert (result.planned, result.files_sent, result.bytes_sent) == ([], 0, 0)


def test_what_a_callback_raises_is_no_breach_of_the_protocol() -> None:
    def raise_mine(path: str) -> None:
        raise ValueError("mine")

    result = TargetResult(SimpleNamespace(id="two"), "/there")  # type: ignore[arg-type]
    reports = Reports("one:/here", result, raise_mine, False, [])
    with pytest.raises(ValueError, match="mine"):
        reports.take((TOLD, "sending", ([b"a"],)))


@pytest.mark.parametrize("told", [[], [(TOLD, "sent", (5,))]])
def test_a_source_that_does_not_say_how_it_went_has_failed(
    monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    with pytest.raises(RSyncError, match=r"^one:/here ended before everything was there"):
        relayed(monkeypatch, [*told, END], [])
    relayed(monkeypatch, [*told, (TOLD, "ended", (0,) * 7), END], [])


@pytest.mark.parametrize(
    "lie",
    [(wire.GONE,), (wire.GONE, 2), (wire.GONE, -1, b"x"), (wire.GONE, 2, "text"),
     (wire.TOLD,), (wire.TOLD, "sent", 5), (wire.TOLD, "sent", ("x",)), (wire.TOLD, "no", ()),
     (wire.TOLD, "sending", (5,)), (wire.TOLD, "skipped", (b"x",)), (wire.TOLD, "ended", ()),
     (wire.TOLD, "skipped", (b"x", "text")), (wire.TOLD, "failed", ("t",)),
     (wire.TOLD, "planned", ([b"x"], [])), (wire.TOLD, "ended", (0, 0, 0, "\x1b]0;x", 0, 0, 0)),
     5, None, (), {}, [], "x", (wire.LIST,), (wire.LIST, 9, [5]), (wire.END, 0, 0, 0)],
)  # fmt: skip
def test_a_source_that_lies_to_the_coordinator_is_named(
    monkeypatch: pytest.MonkeyPatch, lie: Any
) -> None:
    with pytest.raises(RSyncError, match=r"^one:/here broke the protocol"):
        relayed(monkeypatch, [lie], [])
    assert not DELIVERED


@pytest.mark.parametrize(
    "lie",
    [5, None, (), {}, {0: 1}, [], "x", b"x", (wire.FATAL,), (wire.FATAL, 0, 2, "text"),
     (wire.FATAL, 0, -1, b"x"), (wire.WANT, 5), (wire.GO, 5)],
)  # fmt: skip
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


# rules

IN_ROOT = (
    wire.LIST,
    9,
    [unit([(b"a", FILE, 1), (b"d", DIRECTORY, 0), (b"l", SYMLINK, 0)], [b"d"])],
)
STANDIN = (wire.INSTEAD, 3, DIRECTORY, FIRST_STANDIN, 0o755, 0, 1)


@pytest.mark.parametrize(
    ("rules", "messages"),
    [
        (["- .env"], [(wire.LIST, 9, [unit([(b".env", FILE, 1)])])]),
        (["- /d/x"], [IN_ROOT, (wire.LIST, 9, [unit([(b"x", FILE, 1)], directory=2, first=4)])]),
        (["- d/"], [IN_ROOT]),
        (["- l/"], [IN_ROOT, STANDIN]),
        (["- /l/x"], [IN_ROOT, STANDIN,
                      (wire.LIST, 9, [unit([(b"x", FILE, 1)], directory=FIRST_STANDIN,
                                           first=FIRST_STANDIN + 1)])]),
        (["- x"], [(wire.LIST, 9, [unit([(b"a", FILE, 1)], directory=7)])]),
        (["- x"], [IN_ROOT, (wire.INSTEAD, 1, FILE, FIRST_STANDIN, 0o755, 0, 1)]),
    ],
)  # fmt: skip
def test_what_the_rules_leave_out_is_not_handed_on(
    monkeypatch: pytest.MonkeyPatch, rules: list[str], messages: list[Any]
) -> None:
    with pytest.raises(RSyncError, match=r"^one:/here broke the protocol"):
        relayed(monkeypatch, messages, [], tuple(rules))
    assert messages[:-1] == DELIVERED


def test_what_the_rules_let_through_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [IN_ROOT, STANDIN, b"a piece"]
    relayed(monkeypatch, [*messages, (TOLD, "ended", (0,) * 7), END], [], ("- x",))
    assert messages == DELIVERED
    single = [(wire.LIST, 9, [unit([(b"-", FILE, 1)])])]
    root = ((FILE, 0o644, 1), {"md5": 1.0}, None)
    relayed(monkeypatch, [*single, (TOLD, "ended", (0,) * 7), END], [], ("- *",), root)
    assert single == DELIVERED


@pytest.mark.parametrize(
    ("rules", "name", "path", "is_allowed"),
    [
        (["- .env"], "sending", b"d/.env", False),
        (["- .env"], "sending", b".env/x", False),
        (["- d/"], "sending", b"d/e/x", False),
        (["- d/"], "sending", b"x/d", True),
        (["- d"], "planned", b"x/d", False),
        (["+ d/", "- d"], "planned", b"x/d", True),  # it may be a directory
        (["+ d/", "- d"], "sending", b"x/d", False),
    ],
)
def test_what_a_source_that_serves_alone_says_it_sends_keeps_to_the_rules(
    rules: list[str], name: str, path: bytes, is_allowed: bool
) -> None:
    reports, result, sent = reports_of(
        is_dry=name == "planned", is_alone=True, rules=parse_rules(rules)
    )
    message = (TOLD, name, ([path],) if name == "sending" else ([path], [b".env", b"d"]))
    if is_allowed:
        reports.take(message)
        assert [*sent, *result.planned] == [path.decode()]
    else:
        with pytest.raises(RSyncError, match=r"^one:/here broke the protocol: .*the rules"):
            reports.take(message)


def test_rules_hold_for_the_path_that_a_copy_in_place_of_a_link_gets(
    makegateway: MakeGateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"d/x": b"1", "d/y": b"2", "d/e/z": b"3"})
    for name in ("l", "never"):
        (source / name).symlink_to("d")
    gateway = makegateway()
    forbid_links(gateway)
    rsync = RSync(source, verbose=False, rules=["- /l/y", "- /l/e/z", "- never/"])
    rsync.add_target(gateway, dest)
    result = rsync.send()
    assert result is not None
    assert [skipped.path for skipped in result.targets[0].skipped] == ["never"]
    found = {str(path.relative_to(dest)) for path in dest.rglob("*")}
    assert found == {"d", "d/x", "d/y", "d/e", "d/e/z", "l", "l/x", "l/e"}
