"""Links of all kinds, and targets that can make none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rsync_trees import Sync, assert_same, forbid_links, make_tree, send, snapshot
from tools import MakeGateway

from execnet import Gateway, RSync
from execnet._rsync.far.links import Links
from execnet._rsync.far.wire import ROOTED, SMALL_MAX, SYMLINK
from execnet._rsync.result import Skipped

FILES = {"a": b"1", "d/b": b"2"}


@pytest.mark.parametrize(
    ("path", "text", "copied"),
    [
        ("l", "a", "a"),
        ("l", "nowhere", "nowhere"),
        ("l", "d/../a", "d/../a"),
        ("d/l", "../a", "../a"),
        ("l", "..", ".."),
        ("l", "../../x", "../../x"),
        ("l", "/etc/passwd", "/etc/passwd"),
        ("l", "../source/d/b", "d/b"),
        ("d/l", "../../source/a", "../a"),
        ("d/l", "../../source", ".."),
        ("l", "../source-too/a", "../source-too/a"),
    ],
)
def test_a_relative_link_stays_as_it_is_unless_it_left_and_came_back(
    tmp_path: Path, path: str, text: str, copied: str
) -> None:
    links = Links(os.fsencode(tmp_path / "source"))
    assert links.convert(path.encode(), text.encode()) == (SYMLINK, copied.encode())


@pytest.mark.parametrize("tail", ["", "/", "/a", "/d//b", "/nowhere/at/all", "/d/../a"])
def test_an_absolute_link_into_the_tree_becomes_one_into_the_copy(
    tmp_path: Path, tail: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "other-name").symlink_to("source")
    for name in ("source", "other-name"):
        links = Links(os.fsencode(tmp_path / "other-name"))
        text = os.fsencode(tmp_path / name) + tail.encode()
        assert links.convert(b"l", text) == (ROOTED, tail.encode())


def test_an_absolute_link_that_left_and_came_back_is_made_to_stay(tmp_path: Path) -> None:
    text = os.fsencode(tmp_path / "source") + b"/../source/a"
    links = Links(os.fsencode(tmp_path / "source"))
    assert links.convert(b"l", text) == (ROOTED, b"/a")


@pytest.mark.parametrize("tail", ["/..", "/../x", "-too", "/d/../../x"])
def test_an_absolute_link_out_of_the_tree_stays_as_it_is(tmp_path: Path, tail: str) -> None:
    text = os.fsencode(tmp_path / "source") + tail.encode()
    assert Links(os.fsencode(tmp_path / "source")).convert(b"l", text) == (SYMLINK, text)


def test_links_of_all_kinds_arrive_as_links(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    texts = [
        "a",
        "d",
        "d/b",
        "nowhere",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "loop",
        "../../x",
        "\udcff\n",
    ]
    texts += [str(source), str(source / "d/b"), str(source / "nowhere")]
    for number, text in enumerate(texts):
        (source / f"l{number}").symlink_to(text)
    (source / "loop").symlink_to("l8")
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)
    assert sync(gateway, source, dest).settled == 0


def test_a_link_that_changed_is_replaced(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    (source / "l").symlink_to("a")
    sync(gateway, source, dest)
    (source / "l").unlink()
    (source / "l").symlink_to("d")
    sync(gateway, source, dest)
    assert_same(source, dest)


# hard links


def test_hard_links_stay_hard_links(sync: Sync, gateway: Gateway, source: Path, dest: Path) -> None:
    (source / "large").write_bytes(os.urandom(SMALL_MAX * 2))
    for old, new in [("a", "a2"), ("a", "d/a3"), ("large", "d/large2"), ("large", "A")]:
        os.link(source / old, source / new)
    result = sync(gateway, source, dest)
    assert result.bytes_sent == 2 + SMALL_MAX * 2
    assert_same(source, dest)
    assert sync(gateway, source, dest).settled == 0


def test_hard_links_that_are_none_any_more_are_parted(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    os.link(source / "a", source / "a2")
    sync(gateway, source, dest)
    content, time = (source / "a").read_bytes(), (source / "a").stat().st_mtime_ns
    (source / "a2").unlink()
    (source / "a2").write_bytes(content)
    os.utime(source / "a2", ns=(time, time))
    sync(gateway, source, dest)
    assert_same(source, dest)


def test_a_file_with_names_outside_of_the_target_is_not_changed_there(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, tmp_path: Path
) -> None:
    (source / "large").write_bytes(os.urandom(SMALL_MAX * 2))
    sync(gateway, source, dest)
    backup = tmp_path / "backup"
    backup.mkdir()
    for name in ("a", "large"):
        os.link(dest / name, backup / name)
    before = snapshot(backup)
    (source / "a").chmod(0o600)
    os.utime(source / "large", (5, 5))
    sync(gateway, source, dest)
    assert_same(source, dest)
    assert snapshot(backup) == before


def test_a_target_that_can_make_no_hard_links_gets_copies(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    os.link(source / "a", source / "a2")
    forbid_links(gateway, "link")
    result = send(gateway, source, dest)
    assert (result.ok, result.refused, result.skipped) == (False, {"links": 1}, [])
    assert snapshot(dest).entries == snapshot(source).entries
    again = send(gateway, source, dest)
    assert (again.files_sent, again.unchanged, again.refused) == (0, 3, {"links": 1})


def test_a_hard_link_to_what_did_not_arrive_is_not_a_refused_one(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    os.link(source / "a", source / "a2")
    make_tree(dest, {"a/in/the/way": b""})
    result = send(gateway, source, dest)
    assert ([skipped.path for skipped in result.skipped], result.refused) == (["a"], {})
    assert (dest / "a2").read_bytes() == b"1"


# targets that can make no links


def test_a_copy_stands_in_for_a_link_to_a_file_or_directory_in_the_tree(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"d/e/c": b"3", "large": os.urandom(SMALL_MAX * 3)})
    (source / "file").symlink_to("a")
    (source / "big").symlink_to(source / "large")
    (source / "tree").symlink_to("d")
    (source / "x").mkdir()
    (source / "x/up").symlink_to("../d/e")
    forbid_links(gateway)
    result = send(gateway, source, dest)
    assert (result.ok, result.skipped, result.refused) == (False, [], {"links": 4})
    for path in ("file", "big", "tree/b", "tree/e/c", "x/up/c", "a", "d/b", "large"):
        assert not (dest / path).is_symlink()
        assert (dest / path).read_bytes() == (source / path).read_bytes()
    again = send(gateway, source, dest, delete=True)
    assert (again.skipped, again.refused) == ([], {"links": 4})
    assert (again.files_sent, again.settled, again.deleted) == (0, 0, 0)
    plan = send(gateway, source, dest, delete=True, dry_run=True)
    assert (plan.planned, plan.planned_deletions, plan.skipped) == ([], [], [])
    (source / "d/b").write_bytes(b"22")
    plan = send(gateway, source, dest, dry_run=True)
    assert (sorted(plan.planned), plan.skipped) == (["d/b", "d/b"], [])


def test_a_dry_run_tells_a_copy_in_place_of_a_link_from_what_is_in_the_way(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    (source / "l").symlink_to("d")
    make_tree(dest, {"d/b": b"2", "l/own": b"3"})
    os.utime(dest / "l", (9, 9))
    plan = send(gateway, source, dest, delete=True, dry_run=True)
    assert "l" in plan.planned
    assert plan.planned_deletions == ["l/own", "l"]


def test_a_link_that_gets_no_copy_is_named_and_the_rest_arrives(
    gateway: Gateway, source: Path, dest: Path, tmp_path: Path
) -> None:
    make_tree(tmp_path / "outside", {"secret": b"x"})
    os.mkfifo(source / "fifo")
    for name, text in {
        "out": "../outside/secret",
        "out-d": str(tmp_path / "outside"),
        "dangling": "nowhere",
        "self": "self",
        "special": "fifo",
        "d/up": "..",
        "here": ".",
    }.items():
        (source / name).symlink_to(text)
    forbid_links(gateway)
    result = send(gateway, source, dest)
    why = "the target cannot make links, and a copy is not possible: "
    assert {skipped.path: skipped.reason.removeprefix(why) for skipped in result.skipped} == {
        "fifo": "is a FIFO, left out",
        "out": "it leads out of the tree",
        "out-d": "it leads out of the tree",
        "dangling": "No such file or directory",
        "self": "Too many levels of symbolic links",
        "special": "it points to a special file",
        "d/up": "it leads in a loop",
        "here": "it leads in a loop",
    }
    assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*")) == ["a", "d", "d/b"]


def test_links_within_what_links_point_to_end(gateway: Gateway, source: Path, dest: Path) -> None:
    (source / "p").mkdir()
    (source / "q").mkdir()
    (source / "p/to-q").symlink_to("../q")
    (source / "q/to-p").symlink_to("../p")
    make_tree(source, {"p/x": b"1", "q/y": b"2"})
    forbid_links(gateway)
    result = send(gateway, source, dest)
    assert (dest / "p/to-q/y").read_bytes() == b"2"
    assert (dest / "q/to-p/x").read_bytes() == b"1"
    assert len(result.skipped) == 2
    assert all("in a loop" in skipped.reason for skipped in result.skipped)


def test_what_filter_leaves_out_is_not_copied_through_a_link(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            return not path.endswith("/d")

    (source / "tree").symlink_to("d")
    (source / "file").symlink_to("d/b")
    (source / "good").symlink_to("a")
    forbid_links(gateway)
    rsync = Filtered(source, verbose=False)
    rsync.add_target(gateway, dest)
    result = rsync.send()
    assert result is not None
    assert {skipped.path for skipped in result.targets[0].skipped} == {"tree", "file"}
    assert sorted(os.listdir(dest)) == ["a", "good"]


def test_only_the_target_that_can_make_no_links_gets_copies(
    makegateway: MakeGateway, source: Path, dest: Path
) -> None:
    (source / "l").symlink_to("d")
    able, unable = makegateway(), makegateway()
    forbid_links(unable)
    rsync = RSync(source, verbose=False)
    rsync.add_target(able, dest / "able")
    rsync.add_target(unable, dest / "unable")
    result = rsync.send()
    assert result is not None
    assert [target.refused for target in result.targets] == [{}, {"links": 1}]
    assert_same(source, dest / "able")
    assert (dest / "unable/l/b").read_bytes() == b"2"
    assert not (dest / "unable/l").is_symlink()


def test_a_single_reason_names_each_link(
    gateway: Gateway, source: Path, dest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "l").symlink_to("/etc/passwd")
    forbid_links(gateway)
    rsync = RSync(source)
    rsync.add_target(gateway, dest)
    result = rsync.send()
    assert result is not None
    (skipped,) = result.targets[0].skipped
    assert isinstance(skipped, Skipped)
    assert f"skipped l: {skipped.reason}" in capsys.readouterr().out
