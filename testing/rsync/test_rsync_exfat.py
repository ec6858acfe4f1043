"""A target that ignores case, makes no links, rounds times, and takes modes without setting them.

That is exFAT by FUSE, in a file. Only root can mount it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rsync_trees import Sync, make_tree

from execnet import Gateway

MAKE, MOUNT = "mkfs.exfat", "mount.exfat-fuse"
FILES = {"a": b"1", "d/b": b"2", "d/large": bytes(100_000), "twice": b"3"}


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def dest(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or not (shutil.which(MAKE) and shutil.which(MOUNT)):
        pytest.skip("needs root, exfatprogs and exfat-fuse")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE here")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 32 << 20)
    folder.mkdir()
    run(MAKE, image)
    try:
        device = run("losetup", "--find", "--show", image)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"no loop device: {exc.stderr}")
    try:
        run(MOUNT, device, folder)
        yield folder / "dest"
        run("umount", folder)
    finally:
        run("losetup", "--detach", device)


def test_content_arrives_and_a_second_run_sends_nothing(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    (source / "a").chmod(0o604)
    (source / "link").symlink_to("d")
    os.link(source / "twice", source / "other")
    result = sync(gateway, source, dest)
    assert (result.skipped, result.error, list(result.refused)) == ([], None, ["modes", "links"])
    assert result.refused["links"] == 2
    for name in (*FILES, "link/b", "link/large"):  # which is a copy: it makes no links
        assert (dest / name).read_bytes() == (source / name).read_bytes()
    assert (dest / "other").read_bytes() == b"3"
    again = sync(gateway, source, dest)
    assert (again.bytes_sent, again.files_sent, again.skipped) == (0, 0, [])
    assert again.refused["links"] == 2


def test_another_spelling_is_used_and_two_names_that_are_one_are_told(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(dest, {"D/B": b"old", "D/old": b"", "A": b"old"})
    make_tree(source, {"readme": b"first", "README": b"second"})
    result = sync(gateway, source, dest, delete=True)
    [skipped] = result.skipped
    [arrived] = {"readme", "README"} - {skipped.path}
    assert set(os.listdir(dest)) == {"A", "D", arrived, "twice"}
    assert sorted(os.listdir(dest / "d")) == ["B", "large"]
    assert (dest / "d/b").read_bytes() == b"2"
    assert sync(gateway, source, dest, delete=True).bytes_sent == 0
