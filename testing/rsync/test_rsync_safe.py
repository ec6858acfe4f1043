"""Neither side of RSync trusts the other: hostile workers, hostile sources, hostile trees.

A hostile source is a list of messages for a ``Target``; a hostile worker one for a ``Pump``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rsync_trees import make_tree, send, snapshot
from rsync_units import OPTIONS, unit
from tools import MakeGateway

from execnet import Gateway, RSync
from execnet._rsync.far import places
from execnet._rsync.far.pump import Pump
from execnet._rsync.far.rules import Rules
from execnet._rsync.far.target import Target
from execnet._rsync.far.tree import Tree
from execnet._rsync.far.watcher import TargetFailed, Watcher
from execnet._rsync.far.wire import (
    ACK,
    CHECK,
    CHUNKS,
    CLOSE,
    DELTA,
    DIGESTS,
    DIRECTORY,
    DONE,
    DOOMED,
    END,
    FAIL,
    FATAL,
    FILE,
    FILES,
    HARDLINK,
    HELLO,
    INSTEAD,
    LEADER,
    LIST,
    LIST_END,
    LISTED,
    MORE,
    NOLINK,
    NOTE,
    OPEN,
    PIECE,
    PIECE_BYTES,
    PLAN,
    ROOTED,
    SAME,
    SMALL_MAX,
    SPARED,
    SYMLINK,
    WANT,
    Violation,
    block_bytes,
    chunk_bytes,
    pack_ids,
)
from execnet._rsync.patterns import parse_rules
from execnet._rsync.result import RSyncError
from execnet._ship import parts


def test_what_is_read_at_once_is_a_whole_number_of_blocks() -> None:
    for size in [0, 1, *(2**power + offset for power in range(10, 50) for offset in (-1, 0, 1))]:
        block = block_bytes(size)
        assert PIECE_BYTES % block == 0
        assert chunk_bytes(block) % block == 0
        assert block <= chunk_bytes(block) <= PIECE_BYTES


# hostile sources


class Stage:
    """A target directory, what lies beside it, and a ``Target`` that is told things."""

    def __init__(self, base: Path) -> None:
        self.outside = make_tree(base / "outside", {"secret": b"untouched", "d/x": b"untouched"})
        self.dest = base / "dest"
        self.dest.mkdir()
        self.before = snapshot(self.outside)
        self.sent: list[Any] = []

    def play(self, messages: list[Any], **options: Any) -> None:
        """Let a target take messages; it must end with an error, or want more of them."""
        settings = {"dest": os.fsencode(self.dest), "root": (DIRECTORY, 0o755, 1)}
        settings |= OPTIONS | options
        announced_by = settings.pop("announced_by", None)
        target = Target(self.sent.append, settings)
        target.announced_by = announced_by
        target.run(iter(messages).__next__)

    def assert_unharmed(self) -> None:
        assert snapshot(self.outside) == self.before
        temps = [path for path in self.dest.rglob("*") if path.name.startswith(".execnet-rsync")]
        assert temps == []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def piece(number: int, offset: int, content: bytes) -> bytes:
    return PIECE.pack(number, offset % 2**64) + content


def files(number: int, content: bytes) -> tuple[Any, ...]:
    return FILES, pack_ids([number]), pack_ids([len(content)]), {}, content, False


@pytest.mark.parametrize("kind", [FILE, LEADER, HARDLINK, SYMLINK, ROOTED, DIRECTORY])
@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"../outside", b"a/b", b"/etc", b"d/../../outside", b"x/"]
)
def test_a_name_that_is_no_single_component_is_refused(
    stage: Stage, name: bytes, kind: int
) -> None:
    extras = {HARDLINK: [1], SYMLINK: [b"x"], ROOTED: [b"/x"]}.get(kind, [])
    with pytest.raises(Violation, match="not a name"):
        stage.play([(LIST, 9, [unit([(name, kind, 0)], extras)])])
    stage.assert_unharmed()
    assert list(stage.dest.iterdir()) == []


def test_a_name_with_a_zero_in_it_is_two_names_too_many(stage: Stage) -> None:
    with pytest.raises(Violation):
        stage.play([(LIST, 9, [unit([(b"a\0b", FILE, 0)])])])


def test_a_link_cannot_be_made_and_then_be_entered_as_a_directory(stage: Stage) -> None:
    outside = os.fsencode(stage.outside)
    messages = [
        (LIST, 9, [unit([(b"d", SYMLINK, 0), (b"d", DIRECTORY, 0)], [outside])]),
        (LIST, 9, [unit([(b"secret", FILE, 3)], directory=2, first=3)]),
        files(3, b"new"),
    ]
    with pytest.raises(Violation, match="announced twice"):
        stage.play(messages)
    stage.assert_unharmed()


def test_a_directory_cannot_be_announced_and_then_be_replaced_by_a_link(stage: Stage) -> None:
    outside = os.fsencode(stage.outside)
    messages = [
        (LIST, 9, [unit([(b"d", DIRECTORY, 0)], last=MORE)]),
        (LIST, 9, [unit([(b"d", SYMLINK, 0)], [outside], first=2)]),
        (LIST, 9, [unit([(b"secret", FILE, 3)], directory=1, first=3)]),
        files(3, b"new"),
    ]
    with pytest.raises(Violation, match="announced twice"):
        stage.play(messages)
    stage.assert_unharmed()


def test_a_directory_that_was_listed_cannot_be_listed_again(stage: Stage) -> None:
    outside = os.fsencode(stage.outside)
    messages = [
        (LIST, 9, [unit([(b"d", DIRECTORY, 0)])]),
        (LIST, 9, [unit([(b"d", SYMLINK, 0)], [outside], first=2)]),
    ]
    with pytest.raises(Violation, match="announced before"):
        stage.play(messages)


def test_entries_of_two_directories_cannot_be_mixed(stage: Stage) -> None:
    messages = [
        (LIST, 9, [unit([(b"d", DIRECTORY, 0)], last=MORE)]),
        (LIST, 9, [unit([(b"x", FILE, 0)], directory=1, first=2)]),
    ]
    with pytest.raises(Violation, match="announced before"):
        stage.play(messages)


@pytest.mark.parametrize("linked", ["d", "d/e"])
def test_links_that_stand_in_the_target_are_never_followed(
    tmp_path: Path, makegateway: MakeGateway, linked: str
) -> None:
    source = make_tree(tmp_path / "source", {"d/e/secret": b"new", "d/x": b"new", "secret": b"new"})
    outside = make_tree(tmp_path / "outside", {"secret": b"1", "e/secret": b"2", "x": b"3"})
    dest = make_tree(tmp_path / "dest", {})
    (dest / linked).parent.mkdir(exist_ok=True)
    (dest / linked).symlink_to(outside)
    (dest / "secret").symlink_to(outside / "secret")
    before = snapshot(outside)
    assert send(makegateway(), source, dest, delete=True).ok
    assert snapshot(outside) == before
    assert (dest / "d/e/secret").read_bytes() == b"new"


def test_delete_does_not_follow_links(tmp_path: Path, makegateway: MakeGateway) -> None:
    source = make_tree(tmp_path / "source", {"a": b""})
    outside = make_tree(tmp_path / "outside", {"secret": b"1", "d/x": b""})
    dest = make_tree(tmp_path / "dest", {"old/x": b""})
    (dest / "link").symlink_to(outside)
    (dest / "old/link").symlink_to(outside)
    before = snapshot(outside)
    assert send(makegateway(), source, dest, delete=True).deleted == 4
    assert snapshot(outside) == before


def test_a_stand_in_that_was_not_asked_for_is_refused(stage: Stage) -> None:
    for number in (0, 1, 2, 99):
        with pytest.raises(Violation):
            stage.play([
                (LIST, 9, [unit([(b"a", FILE, 0), (b"d", DIRECTORY, 0)])]),
                (INSTEAD, number, DIRECTORY, 50, 0o755, 0, 1),
            ])  # fmt: skip


LARGE = SMALL_MAX * 2


@pytest.mark.parametrize(
    "answers",
    [
        [files(2, b"x")],  # another one was asked for
        [files(1, b"x"), files(1, b"x")],  # once more
        [(FILES, pack_ids([1]), pack_ids([5]), {}, b"x", False)],  # more than came
        [(FILES, pack_ids([1, 2]), pack_ids([1]), {}, b"x", False), files(2, b"")],
        [(OPEN, 2, 5, 0o644, 1, False)],
        [(OPEN, 1, -1, 0o644, 1, False)],
        [(OPEN, 1, 5, 0o644, 1, True)],  # there is no base
        [(OPEN, 1, 5, 0o644, 1, False), (OPEN, 1, 5, 0o644, 1, False)],
        [piece(1, 0, b"x")],  # not opened
        [(CLOSE, 1, 0)],
        [(OPEN, 1, 5, 0o644, 1, False), piece(2, 0, b"x")],
        [(OPEN, 1, 5, 0o644, 1, False), piece(1, -1, b"x")],
        [(OPEN, 1, 5, 0o644, 1, False), piece(1, 3, b"xyz")],
        [(OPEN, 1, 5, 0o644, 1, False), piece(1, 2, b"x"), piece(1, 0, b"x")],
        [(SAME, pack_ids([2]), {}, None)],
        [(FAIL, 2, b"")],
        [(99,)],
        [5],
        [()],
        [(LIST, 9, 5)],
        [(LIST, 9, [(1, 2)])],
        [(LIST, 9, [unit([(b"z", 77, 0)], directory=0, first=9)])],
        [(LIST, 9, [unit([(b"z", FILE, 0)], directory=77, first=9)])],
    ],
)
def test_an_answer_that_does_not_fit_ends_the_run(stage: Stage, answers: list[Any]) -> None:
    messages = [(LIST, 9, [unit([(b"a", FILE, 1), (b"b", FILE, 1)])]), *answers]
    with pytest.raises(Violation):
        stage.play(messages)
    stage.assert_unharmed()
    assert {path.name for path in stage.dest.iterdir()} <= {"a", "b"}


def test_set_id_bits_are_dropped_whoever_announces_them(stage: Stage) -> None:
    entries = [(b"a", FILE, 1), (b"b", FILE, 1), (b"c", FILE, 1), (b"d", DIRECTORY, 0)]
    stage.play([
        (LIST, 9, [unit(entries, mode=0o7755), unit([], directory=4, first=5)]),
        files(1, b"x"),
        (FILES, pack_ids([2]), pack_ids([1]), {0: (0o6755, 1)}, b"x", False),
        (OPEN, 3, 1, 0o4755, 1, False), piece(3, 0, b"x"), (CLOSE, 3, None),
        (LIST_END,),
    ])  # fmt: skip
    modes = {path.name: path.stat().st_mode & 0o7777 for path in stage.dest.iterdir()}
    assert modes == dict.fromkeys("abc", 0o755) | {"d": 0o1755}  # the sticky bit is harmless


def test_a_directory_that_becomes_a_link_meanwhile_is_not_entered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "HANDLES_MAX", 1)  # so that it is entered anew

    def messages() -> Iterator[Any]:
        names = [unit([(b"d", DIRECTORY, 0), (b"e", DIRECTORY, 0)])]
        names += [unit([(b"x", FILE, 1)], directory=1, first=3), unit([], directory=2, first=4)]
        yield LIST, 9, names
        (stage.dest / "d").rmdir()
        (stage.dest / "d").symlink_to(stage.outside)
        yield files(3, b"new")
        yield (LIST_END,)

    options = {"dest": os.fsencode(stage.dest), "root": (DIRECTORY, 0o755, 1)}
    options |= OPTIONS
    (stage.dest / "e").mkdir()
    Target(stage.sent.append, options).run(messages().__next__)
    notes = [message for message in stage.sent if message[0] == NOTE]
    assert [number for _, number, _ in notes] == [3, 1]
    stage.assert_unharmed()


def test_content_that_does_not_prove_true_is_not_kept(stage: Stage) -> None:
    messages = [
        (LIST, 9, [unit([(b"a", FILE, 5)])]),
        (OPEN, 1, 5, 0o644, 1, False), piece(1, 0, b"12345"), (CLOSE, 1, 12345),
        (LIST_END,),
    ]  # fmt: skip
    with pytest.raises(StopIteration):
        stage.play(messages)
    assert list(stage.dest.iterdir()) == []
    assert [message[0] for message in stage.sent].count(WANT) == 2
    stage.assert_unharmed()


def test_no_temporary_file_is_left_when_the_source_learns_of_a_full_disk(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    left: list[list[str]] = []

    def send(message: Any) -> None:
        stage.sent.append(message)
        if message[0] == FATAL:
            left.append(os.listdir(stage.dest))

    (stage.dest / "large").write_bytes(b"x" * LARGE)
    entries = unit([(b"large", FILE, LARGE), (b"small", FILE, 1)])
    options = {"dest": os.fsencode(stage.dest), "root": (DIRECTORY, 0o755, 1)}
    options |= OPTIONS
    script = iter([(LIST, 9, [entries]), (OPEN, 1, LARGE, 0o644, 1, True), files(2, b"x")])
    monkeypatch.setattr(os, "write", full)
    Target(send, options).run(script.__next__)
    assert stage.sent[-1] == (FATAL, 1, errno.ENOSPC, b"No space left on device")
    assert left == [["large"]]


def test_a_hard_link_to_what_was_not_announced_as_one_is_asked_for(stage: Stage) -> None:
    for leader in (0, 1, 77):
        with pytest.raises(StopIteration):
            stage.play([
                (LIST, 9, [unit([(b"a", FILE, 1), (b"h", HARDLINK, 1)], [leader])]),
                (LIST_END,), files(1, b"x"),
            ])  # fmt: skip
        assert stage.sent.pop() == (WANT, pack_ids([2]))
        (stage.dest / "a").unlink()
        assert not (stage.dest / "h").exists()


def test_a_huge_size_is_not_allocated(stage: Stage) -> None:
    messages = [
        (LIST, 9, [unit([(b"a", FILE, 2**62)])]),
        (OPEN, 1, 2**62, 0o644, 1, False), piece(1, 0, b"x"), (CLOSE, 1, None), (LIST_END,),
    ]  # fmt: skip
    stage.play(messages)
    assert [message[2] for message in stage.sent if message[0] == NOTE] == [b"File too large"]
    assert list(stage.dest.iterdir()) == []


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.binary(max_size=20)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.tuples(),
    max_leaves=8,
)


@given(
    st.lists(
        st.tuples(st.sampled_from([*range(1, 10), *range(20, 33)]), json, json)
        | st.tuples(st.sampled_from([*range(1, 10), *range(20, 33)]), json)
        | json,
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_ends_either_side_with_an_error(tmp_path: Path, garbage: list[Any]) -> None:
    base = tmp_path / "x"
    base.mkdir(exist_ok=True)
    stage = Stage.__new__(Stage)
    stage.dest, stage.sent = base / "dest", []
    start = [(LIST, 9, [unit([(b"a", FILE, 1), (b"large", FILE, LARGE), (b"d", DIRECTORY, 0)])])]
    with pytest.raises((Violation, StopIteration)):
        stage.play(start + garbage)
    source = make_tree(base / "source", {"a": b"1"})
    with pytest.raises((Violation, StopIteration, TargetFailed)):
        serve(source, garbage)
    assert sorted(os.listdir(base)) == ["dest", "source"]


# hostile workers


def serve(source: Path, messages: list[Any]) -> list[Any]:
    """Let a pump take messages of a worker; return what it sent before it ended."""
    sent: list[Any] = []
    tree = Tree(os.fsencode(source), None, lambda path, reason: None)
    walk = tree.walk()
    Pump(tree, walk.__next__, sent.append, iter(messages).__next__, Watcher()).run()
    return sent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with ids 1 to 5: a file, a directory, a large file, a link, a file in the first."""
    make_tree(tmp_path / "source", {"a": b"1", "d/x": b"2", "large": bytes(LARGE)})
    (tmp_path / "source/link").symlink_to("/etc/passwd")
    return tmp_path / "source"


HELLO_MESSAGE = (HELLO, "md5", b"", 1)


@pytest.mark.parametrize(
    "messages",
    [
        [(WANT, pack_ids([0]))],  # the root
        [(WANT, pack_ids([2]))],  # a directory
        [(WANT, pack_ids([4]))],  # a link
        [(WANT, pack_ids([6]))],  # not announced
        [(WANT, pack_ids([2**40]))],  # a stand-in, of which there are none
        [(WANT, pack_ids([1]))] * 3,  # a third time
        [(WANT, pack_ids([1])), (CHECK, pack_ids([1]), b"x" * 16)],
        [(WANT, b"1234567")],
        [(WANT, "text")],
        [(CHECK, pack_ids([2]), b"x" * 16)],
        [(DELTA, 3, -1, False)],
        [(DELTA, 3, "x", False)],
        [(DELTA, 3, LARGE, False), (DELTA, 3, LARGE, False)],
        [(CHUNKS, 3, True, b"", b"", b"", b"")],  # it was not told to seek
        [(DELTA, 3, LARGE, False), (DIGESTS, 3, b"x" * 15)],
        [(DELTA, 3, LARGE, False), (DIGESTS, 3, b"x" * 16 * 99)],
        [(DIGESTS, 3, b"x" * 16)],
        [(ACK, 10**9, 0)],
        [(ACK, 0, 10**9)],
        [(ACK, -1, 0)],
        [(ACK, None, 0)],
        [(DONE, pack_ids([1]))],  # was not sent
        [(WANT, pack_ids([1])), (DONE, pack_ids([1])), (DONE, pack_ids([1]))],
        [(NOTE, 99, b"")],
        [(NOTE, -1, b"")],
        [(PLAN, [99])],
        [(NOLINK, 1)],  # is no link
        [(NOLINK, 4), (NOLINK, 4)],
        [(LISTED, -1)],
        [(LISTED, "x")],
        [(HELLO, "crc32", b"", 1)],
        [(HELLO, "md5", b"short", 1)],
        [(HELLO,)],
        [(FATAL, 77, 1, b"")],
        [(END, "x", 0, 0, 0, 0, 0)],
        [(LIST_END,)],
        [(99, 1)],
        [5],
        [()],
        [None, "x"],
    ],
)
def test_a_request_that_does_not_fit_ends_the_run(source: Path, messages: list[Any]) -> None:
    with pytest.raises(Violation):
        serve(source, [HELLO_MESSAGE, *messages])


def test_a_worker_gets_no_content_that_was_not_announced_to_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "source", {"a": b"public", "secret": b"private"})
    tree = Tree(
        os.fsencode(tmp_path / "source"), lambda path: path != b"secret", lambda *args: None
    )
    sent: list[Any] = []
    wanted = iter([HELLO_MESSAGE, (WANT, pack_ids([1])), (WANT, pack_ids([2]))])
    pump = Pump(tree, tree.walk().__next__, sent.append, wanted.__next__, Watcher())
    with pytest.raises(Violation, match="not announced"):
        pump.run()
    assert b"public" in repr(sent).encode()
    assert b"private" not in repr(sent).encode()


def test_reasons_are_cut(source: Path) -> None:
    reasons: list[bytes] = []

    class Record(Watcher):
        def skipped(self, path: bytes, reason: bytes) -> None:
            reasons.append(reason)

    tree = Tree(os.fsencode(source), None, lambda *args: None)
    said = iter([HELLO_MESSAGE, (NOTE, 1, b"x" * 10**6), (FATAL, 1, 5, b"x" * 10**6)])
    with pytest.raises(TargetFailed) as caught:
        Pump(tree, tree.walk().__next__, lambda message: None, said.__next__, Record()).run()
    assert [len(reason) for reason in reasons] == [1000]
    assert len(caught.value.args[2]) == 1000


def test_a_hostile_worker_is_named_in_the_error(
    gateway: Gateway, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
for _ in range(2): channel.receive()
channel.send((22, b"x" * 8))
channel.receive()
"""
    monkeypatch.setattr(parts, "LOADER", code)
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, "/tmp/none")
    with pytest.raises(RSyncError, match=r"gw0:/tmp/none broke the protocol: .*not announced"):
        rsync.send()


def test_a_hostile_source_of_a_pull_is_named_in_the_error(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = unit([(b"../evil", FILE, 1)])
    code = (
        "for _ in range(2): channel.receive()\n"
        f"channel.send((({DIRECTORY}, 0o755, 1), {{'md5': 1.0}}, None))\n"
        f"channel.send(({LIST}, 9, [{evil!r}]))\n"
        "channel.receive()"
    )
    monkeypatch.setattr(parts, "LOADER", code)
    with pytest.raises(RSyncError, match=r"gw0:/far broke the protocol: .*not a name"):
        RSync.pull(gateway, "/far", tmp_path / "dest")
    assert os.listdir(tmp_path) == ["dest"]


# questions about what is to be deleted


@pytest.mark.parametrize("path", [b"..", b"a/../b", b"/etc/passwd", b"a//b", b"", 1, None])
def test_a_target_asks_about_paths_below_the_root_only(source: Path, path: Any) -> None:
    with pytest.raises(Violation):
        serve(source, [(DOOMED, [path])])


@pytest.mark.parametrize("answers", [[b"\0"], [b"\0" * 3], [b"\1", b"\0\0"]])
def test_answers_about_what_stays_must_fit_the_questions(stage: Stage, answers: Any) -> None:
    make_tree(stage.dest, {"a/b": b""})
    listing = (LIST, 64, [unit([])]), (LIST_END,)
    if len(answers[0]) == 1:
        listing = listing[1:]  # there is no question yet
    with pytest.raises(Violation):
        stage.play([*listing, *[(SPARED, answer) for answer in answers]], delete=True, asks=True)
    assert (stage.dest / "a/b").exists()


def test_a_worker_cannot_announce_what_the_rules_leave_out(stage: Stage) -> None:
    rules = Rules(parse_rules(["- a/"]))
    with pytest.raises(StopIteration):
        stage.play([(LIST, 64, [unit([(b"a", FILE, 1)])])], announced_by=rules)
    with pytest.raises(Violation):
        stage.play([(LIST, 64, [unit([(b"a", DIRECTORY, 0)])])], announced_by=rules)
