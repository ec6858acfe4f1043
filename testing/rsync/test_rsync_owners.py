"""Users and groups: kept if that is wanted, by name where there is one, and reported if refused."""

from __future__ import annotations

import grp
import os
import pwd
import struct
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import NOBODY, Sync, forbid_links, owners_in, pull, send

from execnet import Gateway
from execnet._rsync.far.owners import Owners, Told
from execnet._rsync.far.wire import TooMuch, Violation

FILES = {"a": b"1", "d/b": b"2", "d/large": bytes(100_000), "twice": b"3"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def owned(source: Path) -> Path:
    (source / "link").symlink_to("/nowhere")
    os.link(source / "twice", source / "other")
    for number, path in enumerate([source, *sorted(source.rglob("*"))]):
        os.chown(path, 10_000 + number, NOBODY, follow_symlinks=False)
    return source


@as_root
def test_everything_belongs_to_whom_it_did(
    gateway: Gateway, sync: Sync, owned: Path, dest: Path
) -> None:
    assert sync(gateway, owned, dest, owners=True).ok
    assert owners_in(dest) == owners_in(owned)
    result = sync(gateway, owned, dest, owners=True)
    assert (result.unchanged, result.settled, result.files_sent) == (6, 0, 0)


@as_root
def test_only_an_owner_that_changed_is_set_and_no_content_is_sent(
    gateway: Gateway, sync: Sync, owned: Path, dest: Path
) -> None:
    sync(gateway, owned, dest)
    assert set(owners_in(dest).values()) == {(0, 0)}
    planned = sync(gateway, owned, dest, owners=True, dry_run=True).planned
    assert sorted(planned) == ["a", "d/b", "d/large", "other"]
    result = sync(gateway, owned, dest, owners=True)
    assert (result.bytes_sent, result.settled) == (1, 4)  # what has two names is made anew
    assert owners_in(dest) == owners_in(owned)


@as_root
def test_targets_that_want_owners_and_those_that_do_not_are_served_at_once(
    makegateway: Any, owned: Path, dest: Path
) -> None:
    from execnet import RSync

    rsync = RSync(owned, verbose=False)
    rsync.add_target(makegateway(), dest / "with", owners=True)
    rsync.add_target(makegateway(), dest / "without")
    rsync.send()
    assert owners_in(dest / "with") == owners_in(owned)
    assert set(owners_in(dest / "without").values()) == {(0, 0)}


@as_root
def test_copies_in_place_of_links_belong_to_whom_what_is_copied_does(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    (source / "to-d").symlink_to("d")
    (source / "to-a").symlink_to("a")
    for number, name in enumerate(["a", "d", "d/b", "d/large"]):
        os.chown(source / name, 10_000 + number, 20_000 + number)
    forbid_links(gateway)
    for _ in range(2):
        assert send(gateway, source, dest, owners=True).refused == {"links": 2}
        for copy, name in {"to-a": "a", "to-d": "d", "to-d/b": "d/b"}.items():
            assert not (dest / copy).is_symlink()
            assert owners_in(dest)[copy] == owners_in(source)[name]


REFUSE = """
import os
def refuse(*args, **kwargs):
    raise PermissionError(1, "Operation not permitted")
os.chown = os.fchown = os.lchown = refuse
os.geteuid = lambda: 1000
"""


@as_root
def test_a_target_that_refuses_keeps_the_content_and_says_so(
    gateway: Gateway, owned: Path, dest: Path
) -> None:
    gateway.remote_exec(REFUSE).waitclose()
    result = send(gateway, owned, dest, owners=True)
    assert (result.refused, result.ok, result.skipped) == ({"owners": 7}, False, [])
    assert {name: (dest / name).read_bytes() for name in FILES} == FILES
    again = send(gateway, owned, dest, owners=True)
    assert (again.bytes_sent, again.refused) == (0, {"owners": 7})
    assert pull(gateway, owned, dest, owners=True).ok  # this process may


def test_a_name_counts_where_it_is_known_and_otherwise_the_number() -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    found = os.stat("/")
    owners = Owners(True, None)
    names = {70_001: os.fsencode(user.pw_name), 70_002: b"nobody-has-this-name", 70_003: b"\0/"}
    groups = {80_001: os.fsencode(group.gr_name)}
    numbers = [70_001, 80_001, 70_002, 80_002, 70_003, 80_003]
    owners.learn(0, struct.pack("!6I", *numbers), names, groups)
    expected = [(user.pw_uid, group.gr_gid), (70_002, 80_002), (70_003, 80_003), None]
    assert [owners._owner_of(number) for number in range(4)] == expected
    assert owners.is_right(3, found)  # of what nothing was told
    told = Told()
    told.add(os.stat(Path(__file__)))
    [(_, first, pairs, users, _)] = told.messages()
    assert (first, len(pairs), told.messages()) == (0, 8, [])
    assert set(users.values()) <= {os.fsencode(one.pw_name) for one in pwd.getpwall()}


def test_a_source_tells_of_each_entry_once_and_of_no_more_than_are_allowed() -> None:
    owners = Owners(True, 3)
    with pytest.raises(Violation):
        owners.learn(1, bytes(8), {}, {})
    owners.learn(0, bytes(32), {}, {})
    for first in (0, 3, 5):
        with pytest.raises(Violation):
            owners.learn(first, bytes(8), {}, {})
    with pytest.raises(TooMuch):
        owners.learn(4, bytes(8), {}, {})
    with pytest.raises(TooMuch):
        Owners(True, None).learn(0, b"", dict.fromkeys(range(100_001), b"x"), {})
