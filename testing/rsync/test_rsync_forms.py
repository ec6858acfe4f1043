"""A target whose file system ignores case and Unicode forms, as those of macOS do.

That is a file system of our own, by FUSE. Only root can mount it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from rsync_trees import Sync, make_tree
from tools import BOUND_S, KIT

from execnet import Gateway

COMPOSED, DECOMPOSED = "Ägypten/Öl", unicodedata.normalize("NFD", "Ägypten/Öl")


@pytest.fixture(scope="module", params=["keeps", "decomposes"])
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root, and FUSE")
    folder = tmp_path_factory.mktemp("folding")
    command = [sys.executable, KIT / "folding_fs.py", folder, request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.readline():
            pytest.skip(f"cannot mount: {process.stderr.read()[-200:].decode()}")
        yield folder
        subprocess.run(["umount", folder], check=True)
        assert process.wait(BOUND_S) == 0


@pytest.fixture
def dest(mounted: Path, request: pytest.FixtureRequest) -> Path:
    return mounted / f"dest{abs(hash(request.node.name))}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED.swapcase())],
)
def test_another_form_of_a_name_is_used_and_a_second_run_sends_nothing(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, theirs: str, ours: str
) -> None:
    make_tree(dest, {theirs: b"old", "gone": b""})
    there = sorted(path.relative_to(dest) for path in dest.rglob("*l"))
    make_tree(source, {ours: b"new", "straße/x": b"2"})
    result = sync(gateway, source, dest, delete=True)
    assert (result.ok, result.deleted, result.files_sent) == (True, 1, 2)
    assert sorted(path.relative_to(dest) for path in dest.rglob("*l")) == there
    assert (dest / theirs).read_bytes() == b"new"
    again = sync(gateway, source, dest, delete=True)
    assert (again.unchanged, again.files_sent, again.deleted, again.ok) == (2, 0, 0, True)


def test_two_forms_of_one_name_are_told_and_the_first_arrives(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    names = sorted(os.fsencode(name) for name in ("é", unicodedata.normalize("NFD", "é")))
    make_tree(source, {os.fsdecode(name): name for name in names})
    make_tree(source, {f"{os.fsdecode(name)}-d/x": name for name in names})
    for _ in range(2):
        result = sync(gateway, source, dest, delete=True)
        assert sorted(skipped.path for skipped in result.skipped) == [
            os.fsdecode(names[1]), f"{os.fsdecode(names[1])}-d",
        ]  # fmt: skip
        assert all("the same name" in skipped.reason for skipped in result.skipped)
        assert (dest / "é").read_bytes() == (dest / "é-d/x").read_bytes() == names[0]
    assert result.files_sent == 0
