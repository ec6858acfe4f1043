"""Sources in targets and targets in sources, whatever the way to either of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import Sync, make_tree, send, snapshot
from tools import SOURCE, missing

from execnet import Gateway, Group, RSync
from execnet._rsync.far import apart
from execnet._rsync.far.apart import Apart, place_of
from execnet._rsync.pull import root_of
from execnet._rsync.result import RSyncError

# workers that see this machine's files, whether their specs show that or not
SPECS = ["popen", f"popen//python={sys.executable}", "popen//via=first", "popen//chdir=inner"]


@pytest.fixture(params=SPECS)
def worker(
    request: pytest.FixtureRequest, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Gateway:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    if "via" in request.param:
        group.makegateway("popen//id=first")
    return group.makegateway(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", {"a/b/file": b"1", "a/sibling": b"2"})


@pytest.mark.parametrize(("inner", "option"), [("a/b", "delete"), (".", "delete_excluded")])
def test_deleting_where_the_source_lies_is_refused(
    worker: Gateway, sync: Sync, tree: Path, inner: str, option: str
) -> None:
    before = snapshot(tree)
    for is_dry in (True, False):
        with pytest.raises(RSyncError, match="deleting there would remove the source"):
            sync(worker, tree / inner, tree, dry_run=is_dry, **{option: True})
    assert snapshot(tree) == before


def test_a_source_is_found_in_a_target_by_links_and_homes(
    group: Group, sync: Sync, tree: Path, tmp_path: Path
) -> None:
    before = snapshot(tree)
    (tmp_path / "by-link").symlink_to("tree/a")
    worker = group.makegateway(f"popen//env:HOME={tree}")
    with pytest.raises(RSyncError, match="would remove the source"):
        sync(worker, tmp_path / "by-link/b", tree, delete=True)
    with pytest.raises(RSyncError, match="would remove the source"):
        send(worker, tree / "a/b", "~", expanduser=True, delete=True)
    with pytest.raises(RSyncError, match="would remove the source"):
        send(worker, tree / "a/b", "~/a", expanduser=True, delete=True)
    assert snapshot(tree) == before


def test_other_targets_of_the_run_are_served_all_the_same(
    group: Group, tree: Path, tmp_path: Path
) -> None:
    rsync = RSync(tree / "a/b", verbose=False)
    for name in "tree", "other":
        rsync.add_target(group.makegateway(), tmp_path / name, delete=True)
    with pytest.raises(RSyncError, match="would remove the source"):
        rsync.send()
    assert rsync.result is not None
    assert [target.error is None for target in rsync.result.targets] == [False, True]
    assert os.listdir(tmp_path / "other") == ["file"]


def test_a_source_may_lie_in_a_target_from_which_nothing_is_deleted(
    worker: Gateway, sync: Sync, tree: Path
) -> None:
    assert sync(worker, tree / "a/b", tree).ok
    assert sorted(os.listdir(tree)) == ["a", "file"]
    assert sync(worker, tree / "a/b/file", tree / "a", delete=True).ok
    assert sorted(os.listdir(tree / "a")) == ["b", "file", "sibling"]


def test_a_target_in_the_source_is_left_out_or_refused(
    worker: Gateway, sync: Sync, tree: Path
) -> None:
    before = snapshot(tree / "a")
    if worker.spec.python or worker.spec.via:
        with pytest.raises(RSyncError, match="is inside of the source"):
            sync(worker, tree, tree / "out/deep")
        assert os.listdir(tree) == ["a"]
    else:
        assert sync(worker, tree, tree / "out/deep").ok
        assert snapshot(tree / "out/deep/a") == before
    assert snapshot(tree / "a") == before


def test_a_directory_on_another_machine_is_never_the_same(
    monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    source = place_of(os.fsencode(tree / "a"))
    for dest in tree, tree / "a":
        with pytest.raises(OSError, match="would remove the source"):
            Apart(source).check(os.fsencode(dest), True, False, False)
    Apart(source).check(os.fsencode(tree), False, False, False)
    with pytest.raises(OSError, match="the source is inside of it"):
        Apart(source).check(os.fsencode(tree), False, True, True)
    with pytest.raises(OSError, match="is inside of the source"):
        Apart(source).check(os.fsencode(tree / "a/b/new/er"), False, True, True)
    monkeypatch.setattr(apart, "machine", lambda: b"another")
    for path in "", "a", "a/b":
        Apart(source).check(os.fsencode(tree / path), True, True, False)


@pytest.mark.parametrize("lie", [5, (), (b"", None), (b"", [5]), ("", []), (b"", [], 1)])
def test_a_source_that_lies_about_its_place_is_named(lie: Any) -> None:
    with pytest.raises(RSyncError, match=r"^there broke the protocol"):
        root_of(((6, 0o755, 1), {}, lie), "there", b"path")


BY_ANOTHER_MOUNT = """
import sys
from execnet import Group, RSync
with Group() as group:
    rsync = RSync("mounted", verbose=False)
    rsync.add_target(group.makegateway("popen"), "tree/a", delete=True)
    [target] = rsync.send().targets
    print([(skipped.path, skipped.reason) for skipped in target.skipped], target.deleted)
"""


def test_a_source_that_is_mounted_elsewhere_is_not_removed(tree: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    (tmp_path / "mounted").mkdir()
    mount = "mount --bind tree/a/b mounted"
    words = [unshare or "", "--map-root-user", "--mount", "sh", "-c"]
    if unshare is None or subprocess.run([*words, mount], cwd=tmp_path, check=False).returncode:
        missing("mount namespaces for ordinary users")
    words += [f'{mount} && exec "$0" -c "$1"', sys.executable, BY_ANOTHER_MOUNT]
    found = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert (found.stdout, found.stderr) == ("[('', 'deleting b: it is the source')] 1\n", "")
    assert (tree / "a/b/file").read_bytes() == b"1"
