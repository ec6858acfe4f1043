"""A source or a worker that lies in every answer it can give, and what a pull lets in at most.

The lies are made from the protocol's table of messages.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import stop
from rsync_trees import make_tree, send, snapshot
from rsync_units import LIES, OPTIONS, unit
from tools import IS_THOROUGH, SOURCE

from execnet import Gateway, RSync
from execnet._rsync import result
from execnet._rsync.far import target, wire
from execnet._rsync.far.messages import FROM_SOURCE, FROM_TARGET
from execnet._rsync.far.pump import Pump
from execnet._rsync.far.target import Target
from execnet._rsync.far.tree import Tree
from execnet._rsync.far.watcher import TargetFailed, Watcher
from execnet._rsync.far.wire import (
    DIRECTORY,
    FILE,
    HARDLINK,
    LEADER,
    LIST,
    ROOTED,
    SMALL_MAX,
    SYMLINK,
    Violation,
    pack_ids,
)
from execnet._rsync.result import RSyncError
from execnet._ship import parts

LARGE = SMALL_MAX * 2
IDS = pack_ids([1])
# One of each, as it may come after the entries of ``ENTRIES`` were announced.
TRUE_ANSWERS: dict[int, tuple[Any, ...]] = {
    wire.LIST: (9, [unit([(b"z", FILE, 1)], directory=3, first=8)]),
    wire.LIST_END: (),
    wire.OWNERS: (0, b"\0" * 8, {0: b"root"}, {0: b"root"}),
    wire.FILES: (IDS, IDS, {0: (0o644, 5)}, b"x", False),
    wire.PACKED: (2, 0, 5, zlib.compress(b"12345")),
    wire.OPEN: (1, 5, 0o644, 5, 0),
    wire.CLOSE: (1, 0),
    wire.SAME: (IDS, {0: (0o644, 5)}, None),
    wire.GO: (2,),
    wire.SEEK: (2,),
    wire.DIFFERS: (2,),
    wire.COPY: (2, 0, 5, 10),
    wire.HOLE: (2, 0, 5),
    wire.FAIL: (1, b"why"),
    wire.INSTEAD: (5, FILE, wire.FIRST_STANDIN, 0o644, 1, 5),
    wire.REMARK: (b"path", b"why"),
    wire.SPARED: (b"\0",),
    wire.GONE: (2, b"why"),
}
TRUE_REQUESTS: dict[int, tuple[Any, ...]] = {
    wire.HELLO: ("md5", b"", 1),
    wire.ACK: (0, 0),
    wire.WANT: (IDS,),
    wire.CHECK: (IDS, b"x" * 16),
    wire.DELTA: (3, LARGE),
    wire.REST: (3, LARGE, 1),
    wire.DIGESTS: (3, b"x" * wire.SENT_BYTES),
    wire.CHUNKS: (3, True, b"a", b"b", b"x" * 8, b"\0\0\0\1"),
    wire.LISTED: (5,),
    wire.DONE: (IDS,),
    wire.NOTE: (1, b"why"),
    wire.PLAN: ([1, b"path"],),
    wire.NOLINK: (4,),
    wire.END: (1, 1, 1, 0, 0, 0, 0),
    wire.FATAL: (1, 28, b"why"),
    wire.DOOMED: ([b"path"],),
}
ENTRIES = [(b"a", FILE, 1), (b"large", FILE, LARGE), (b"d", DIRECTORY, 0), (b"h", HARDLINK, 1),
           (b"l", SYMLINK, 0), (b"r", ROOTED, 0), (b"leader", LEADER, 1)]  # fmt: skip


def lies_about(answers: dict[int, tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Yield lists of messages in which one field lies, or one is missing or too much."""
    for code, fields in answers.items():
        yield [(code, *fields)]
        yield [(code, *fields), (code, *fields)]
        yield [(code, *fields, 1)]
        yield [(code, *fields[:-1])]
        for place in range(len(fields)):
            for lie in LIES:
                yield [(code, *fields[:place], lie, *fields[place + 1 :])]
    opened = [(wire.OPEN, 1, 5, 0o644, 5, 0)]
    yield from ([*opened, lie] for lie in LIES)
    for place, field in enumerate(answers.get(wire.LIST, [0, [()]])[1][0]):
        for lie in [*LIES, field]:
            entries = answers[wire.LIST][1][0] if wire.LIST in answers else ()
            yield [(wire.LIST, 9, [(*entries[:place], lie, *entries[place + 1 :])])]


def test_there_is_a_true_answer_of_each_kind_to_make_lies_of() -> None:
    assert set(TRUE_ANSWERS) == set(FROM_SOURCE)
    assert set(TRUE_REQUESTS) == set(FROM_TARGET)


@pytest.mark.parametrize("state", ["full", "empty", "dry"] if IS_THOROUGH else ["full"])
def test_whatever_a_source_says_a_target_ends_with_a_violation_or_wants_more(
    tmp_path: Path, state: str
) -> None:
    outside = make_tree(tmp_path / "outside", {"x": b"untouched"})
    before = snapshot(outside)
    for number, lies in enumerate(lies_about(TRUE_ANSWERS)):
        dest = tmp_path / f"dest{number}"
        if state != "empty":
            make_tree(dest, {"a": b"0", "large": bytes(LARGE), "l": b"", "old": b"1"})
        options = {"dest": os.fsencode(dest), "root": (DIRECTORY, 0o755, 1), **OPTIONS}
        options |= {
            "delete": True,
            "asks": state == "full",
            "owners": state != "empty",
            "dry_run": state == "dry",
        }
        start = [(LIST, 9, [unit(ENTRIES, [1, os.fsencode(outside), b"/d"])])]
        sent: list[Any] = []
        with pytest.raises((Violation, StopIteration)):
            Target(sent.append, options).run(iter(start + lies).__next__)
    assert snapshot(outside) == before


def test_whatever_a_worker_says_the_run_ends_with_a_violation_or_goes_on(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "d/x": b"2", "large": bytes(LARGE)})
    (source / "link").symlink_to("/etc/passwd")

    class Wet(Watcher):
        def plans(self) -> bool:
            return False

    for has_hello in (False, True):
        for lies in lies_about(TRUE_REQUESTS):
            tree = Tree(os.fsencode(source), None, lambda *_: None)
            walk, sent = tree.walk(), []
            start: list[Any] = [(wire.HELLO, "md5", b"", 1)] * has_hello
            try:
                Pump(tree, walk.__next__, sent.append, iter(start + lies).__next__, Wet()).run()
            except (Violation, StopIteration, TargetFailed):
                pass
            else:
                assert lies[0][0] == wire.END
            walk.close()


# a pull


def pull_from(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, dest: Path, messages: str, **options: Any
) -> Any:
    """Pull from a worker that says what a program in it sends."""
    code = f"""
import sys
sys.path.insert(0, {str(SOURCE / "testing/kit")!r})
sys.path.insert(0, {str(SOURCE)!r})
from rsync_units import unit
from execnet._rsync.far.wire import *
for _ in range(2): channel.receive()
def say(*messages):
    for message in messages:
        channel.send(message)
{messages}
try:
    while channel.receive()[0] != END: pass
except EOFError:
    pass
"""
    monkeypatch.setattr(parts, "LOADER", code)
    return RSync.pull(gateway, "/far", dest, **options)


ROOT = "say(((DIRECTORY, 0o755, 1), {'md5': 1.0}, None))\n"


@pytest.mark.parametrize(
    "first",
    ["5", "None", "()", "(None,)", "(None, 2**70, b'x')", "(None, 1, 'text')", "((1, 2), {}, None)",
     "((DIRECTORY, 0o755, 2**99), {}, None)", "((SYMLINK, 0o777, 1), {'md5': 1.0}, None)",
     "((DIRECTORY, 0o755, 1), {'md5': 'x'}, None)", "((DIRECTORY, 0o755, 1), {}, None)",
     "((DIRECTORY, 0o755, 1), [], None)", "((FILE, -1, 1), {'md5': 1.0}, None)"],
)  # fmt: skip
def test_a_malformed_first_answer_names_the_worker(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str
) -> None:
    with pytest.raises(RSyncError, match=r"^gw0:/far broke the protocol"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", f"say({first})")


def test_a_file_is_no_larger_than_it_may_have_become_since_it_was_announced(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lie = ROOT + "say((LIST, 9, [unit([(b'a', FILE, 5)])]), (OPEN, 1, 2**44, 0o644, 1, 0),\n"
    lie += "    (CLOSE, 1, None), (LIST_END,))"
    with pytest.raises(RSyncError, match=r"gw0:/far broke the protocol: .*announced with 5"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", lie)
    assert os.listdir(tmp_path / "dest") == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_small_file_is_small_however_it_comes(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_packed: bool
) -> None:
    lie = ROOT + "say((LIST, 9, [unit([(b'a', FILE, 5)])]))\n"
    lie += "blob = bytes(SMALL_MAX + 1)\n"
    lie += f"content = zlib.compress(blob) if {is_packed} else blob\n"
    lie += f"say((FILES, pack_ids([1]), pack_ids([len(blob)]), {{}}, content, {is_packed}),\n"
    lie += "    (LIST_END,))"
    with pytest.raises(RSyncError, match=r"gw0:/far broke the protocol: .*a small file of 32769"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", lie)
    assert os.listdir(tmp_path / "dest") == []


def test_small_files_that_grew_count_against_what_a_pull_may_bring(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lie = ROOT + "say((LIST, 9, [unit([(b'a', FILE, 5), (b'b', FILE, 5)])]))\n"
    lie += "say((FILES, pack_ids([1, 2]), pack_ids([500, 600]), {}, bytes(1100), False),\n"
    lie += "    (LIST_END,))"
    with pytest.raises(RSyncError, match=r"gw0:/far has more than 1000 bytes, which"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", lie, max_bytes=1000)
    assert sum(path.stat().st_size for path in (tmp_path / "dest").iterdir()) <= 1000


def test_content_that_never_proves_true_ends_a_pull(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lie = ROOT + "say((LIST, 9, [unit([(b'a', FILE, 5)])]))\n"
    lie += "for _ in range(9):\n"
    lie += "    say((OPEN, 1, 5, 0o644, 1, 0), PIECE.pack(1, 0) + b'12345', (CLOSE, 1, 7))"
    with pytest.raises(RSyncError, match=r"failed its check twice"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", lie)


def test_a_pull_brings_no_more_than_it_may(gateway: Gateway, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "d/b": b"2" * 99})
    for options in ({"max_files": 2}, {"max_bytes": 99}):
        with pytest.raises(RSyncError, match=r"gw0:.*has more than (2 entries|99 bytes), which"):
            RSync.pull(gateway, source, tmp_path / "dest", **options)
    assert RSync.pull(gateway, source, tmp_path / "dest", max_files=3, max_bytes=100).ok


def test_a_pull_makes_no_file_that_is_larger_than_the_file_system_unless_that_is_allowed(
    gateway: Gateway, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(make_tree(source, {"a": b"1", "sparse": b""}) / "sparse", 5_000_001)
    monkeypatch.setattr(target, "room_at", lambda path: 5_000_000)
    result = RSync.pull(gateway, source, dest)
    assert [(one.path, "max_bytes=" in one.reason) for one in result.skipped] == [("sparse", True)]
    assert os.listdir(dest) == ["a"]
    assert RSync.pull(gateway, source, dest, max_bytes=6_000_000).ok
    assert send(gateway, source, dest.with_name("other")).ok


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_pull_takes_no_longer_than_it_may(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    monkeypatch.setattr("execnet._rsync.pull._WORKER_S", 0.1)
    if is_stopped:  # it reads nothing either
        pid = gateway.remote_exec("import os; channel.send(os.getpid())").receive()
        stop(pid)
    try:
        with pytest.raises(RSyncError, match=r"gw0:/far was not copied within 0\.2 seconds"):
            pull_from(gateway, monkeypatch, tmp_path / "dest", "", timeout=0.2)
    finally:
        if is_stopped:
            os.kill(pid, signal.SIGCONT)


def test_a_pull_may_take_any_time(gateway: Gateway, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1"})
    for seconds in (1e30, float("inf")):
        assert RSync.pull(gateway, source, tmp_path / "dest", timeout=seconds).ok


def test_a_path_here_that_cannot_be_is_no_breach_of_the_protocol(
    gateway: Gateway, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="null character"):
        RSync.pull(gateway, tmp_path, f"{tmp_path}/a\0b")


def test_modes_let_nobody_else_write_unless_that_is_asked_for(
    gateway: Gateway, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "large": bytes(LARGE), "d/x": b""})
    for path in (source, *source.rglob("*")):
        path.chmod(0o777)
    RSync.pull(gateway, source, tmp_path / "dest")
    modes = {path.stat().st_mode & 0o7777 for path in (tmp_path / "dest").rglob("*")}
    assert modes == {0o755}
    assert RSync.pull(gateway, source, tmp_path / "dest").settled == 0
    RSync.pull(gateway, source, tmp_path / "dest", mask=0)
    modes = {path.stat().st_mode & 0o7777 for path in (tmp_path / "dest").rglob("*")}
    assert modes == {0o777}


LINKS = {"in": "a", "d/up": "../a", "d/here": "./x", "here": ".", "around": "here/../a",
         "out": "../x", "d/out": "../../x", "root": "/etc", "far": "d/../../x"}  # fmt: skip


@pytest.mark.parametrize(
    ("links", "made"),
    [("inside", {"in", "d/up", "d/here", "here"}), ("as-is", set(LINKS)), ("none", set())],
)
def test_links_that_lead_out_are_made_only_if_that_is_asked_for(
    gateway: Gateway, tmp_path: Path, links: str, made: set[str]
) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "d/x": b""})
    for name, text in LINKS.items():
        (source / name).symlink_to(text)
    result = RSync.pull(gateway, source, tmp_path / "dest", links=links)
    links_there = {path for path in (tmp_path / "dest").rglob("*") if path.is_symlink()}
    assert {str(path.relative_to(tmp_path / "dest")) for path in links_there} == made
    assert {skipped.path for skipped in result.skipped} == set(LINKS) - made
    assert send(gateway, source, tmp_path / "pushed", links=links).unchanged == 0


@pytest.mark.parametrize("text", ["/../outside/x", "x", "/d/../../x"])
def test_a_link_that_is_said_to_lead_into_the_tree_does(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    lie = ROOT + f"say((LIST, 9, [unit([(b'l', ROOTED, 0)], [{text.encode()!r}])]))"
    with pytest.raises(RSyncError, match=r"gw0:/far broke the protocol: .*not a place in the tree"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", lie)
    assert os.listdir(tmp_path / "dest") == []


def test_a_file_is_refused_where_a_directory_is_meant(gateway: Gateway, tmp_path: Path) -> None:
    make_tree(tmp_path, {"file": b"1"})
    with pytest.raises(RSyncError, match=r"gw0:.*file/: Not a directory"):
        RSync.pull(gateway, f"{tmp_path}/file/", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_remarks_are_bounded_and_counted(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(result, "LISTED_MAX", 10)
    lie = ROOT + "say(*[(REMARK, b'x' * 10**5, b'y' * 10**5)] * 25)\n"
    lie += "say((LIST, 9, [unit([])]), (LIST_END,))"
    found = pull_from(gateway, monkeypatch, tmp_path / "dest", lie)
    assert (len(found.skipped), found.unlisted, found.ok) == (10, {"skipped": 15}, False)
    assert max(len(item.path) + len(item.reason) for item in found.skipped) < 6000


def test_errors_of_the_far_side_are_escaped(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RSyncError, match=r"^\[Errno 2\] gw0:/far: \\x1b\[31mred\\r$"):
        pull_from(gateway, monkeypatch, tmp_path / "dest", "say((None, 2, b'\\x1b[31mred\\r'))")


def test_what_progress_raises_is_no_breach_of_the_protocol(
    gateway: Gateway, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1"})

    def progress(total: int, done: int, current: str) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        RSync.pull(gateway, source, tmp_path / "dest", progress=progress)
