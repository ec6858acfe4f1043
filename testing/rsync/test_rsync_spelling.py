"""Targets that take names of other case, or in another form, to be the same.

Few hosts have such a file system at hand, so that of a pull is played: names are looked up as one
that ignores case would.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import assert_same, make_tree, pull

from execnet import Gateway
from execnet._rsync.far import places
from execnet._rsync.far.spelling import Spelling, blindness

pytestmark = pytest.mark.skipif(not places.HAS_FDS, reason="names are looked up by descriptors")
NAMES = ["lstat", "open", "unlink", "rmdir", "mkdir", "readlink", "utime", "chmod", "rename"]


def folded(name: bytes) -> str:
    return unicodedata.normalize("NFC", os.fsdecode(name)).lower()


def spelled(name: Any, fd: int | None) -> Any:
    """Return how a name is spelled in an open directory."""
    if fd is None or not isinstance(name, bytes):
        return name
    there = [os.fsencode(one) for one in os.listdir(fd)]
    same = [one for one in there if folded(one) == folded(name)]
    return same[0] if same else name


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let names that are looked up in open directories be found whatever their case and form."""
    for name in NAMES:
        function = getattr(os, name)

        def look_up(path: Any, *args: Any, function: Any = function, **where: Any) -> Any:
            if "dst_dir_fd" in where:
                args = (spelled(args[0], where["dst_dir_fd"]),)
            return function(spelled(path, where.get("dir_fd")), *args, **where)

        monkeypatch.setattr(os, name, look_up)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("blind")
def test_what_is_there_in_another_spelling_is_used_and_not_deleted(
    gateway: Gateway, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {"Docs/Read": b"new", "LARGE": b"x" * 99, "Ä/b": b"2"})
    dest = make_tree(tmp_path / "dest", {"docs/read": b"old", "docs/old": b"", "Large": b""})
    decomposed = unicodedata.normalize("NFD", "Ä").lower()
    make_tree(dest, {f"{decomposed}/B": b"1", "gone": b""})
    result = pull(gateway, source, dest, delete=True)
    assert not result.skipped, result.skipped
    assert (result.ok, result.deleted) == (True, 2)
    assert contents(dest) == {"docs/read": b"new", "Large": b"x" * 99, f"{decomposed}/B": b"2"}
    assert pull(gateway, source, dest, delete=True).files_sent == 0


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("there", [{}, {"x": b""}, {"1": b""}])
def test_names_that_collide_are_reported_and_the_first_one_arrives(
    gateway: Gateway, tmp_path: Path, there: dict[str, bytes]
) -> None:
    source = make_tree(tmp_path / "source", {"A": b"1", "a": b"2", "D/x": b"3", "d/y": b"4"})
    make_tree(tmp_path / "dest", there)
    result = pull(gateway, source, tmp_path / "dest")
    assert {skipped.path: skipped.reason for skipped in result.skipped} == {
        "a": "has the same name on this file system as A",
        "d": "has the same name on this file system as D",
    }
    assert contents(tmp_path / "dest") == {"A": b"1", "D/x": b"3"} | there


def test_names_that_differ_in_case_only_arrive_where_they_may(
    gateway: Gateway, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source", {"A": b"1", "a": b"2", "D/x": b"3", "d/y": b"4"})
    for _ in range(2):
        assert pull(gateway, source, tmp_path / "dest", delete=True).ok
        assert_same(source, tmp_path / "dest")


def test_a_directory_with_both_spellings_is_not_blind(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": b"", "A": b""})
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert blindness(fd, {b"a", b"A"}, (False, False)) == (False, False)
        assert blindness(fd, {b"1"}, (True, False)) == (True, False)
    finally:
        os.close(fd)


def test_names_that_are_no_text_have_a_spelling() -> None:
    spelling = Spelling({b"\xff", b"b"}, (True, True))
    assert spelling.take(b"\xff") == (b"\xff", None)
    assert spelling.take(b"B") == (b"b", None)
    assert spelling.take(b"b") == (b"b", b"B")
