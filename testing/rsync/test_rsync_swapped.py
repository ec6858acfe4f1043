"""Another process swaps files and links, directories and links: nothing outside is read or changed.

``python -m benchmarks sync`` does 5,000 rounds of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rsync_trees import give_away, make_tree, owners_in, send, snapshot
from tools import clean_environment

from execnet import Gateway, RSync
from execnet._rsync.far.places import HAS_FDS
from execnet._rsync.result import RSyncError

ROUNDS = int(os.environ.get("EXECNET_SWAP_ROUNDS", "25"))
LARGE = 100_000

pytestmark = pytest.mark.skipif(not HAS_FDS, reason="reaches everything by paths")

# Puts links in the place of a file and of a directory, and takes them away, until stdin ends.
SWAP = """
import os, select, shutil, sys
base, outside = sys.argv[1:]
def swap(name):
    path = os.path.join(base, name)
    try:
        os.rename(path, path + "-moved")
        os.symlink(os.path.join(outside, name), path)
        os.unlink(path)
        os.rename(path + "-moved", path)
    except OSError:
        pass  # the other side was faster; the next swap finds what it left
    if os.path.islink(path):
        os.unlink(path)
    try:
        os.rename(path + "-moved", path)
    except OSError:  # the other side has made a directory here
        shutil.rmtree(path + "-moved", ignore_errors=True)
print("swapping", flush=True)
while not select.select([0], [], [], 0)[0]:
    for name in ("a", "d", "large"):
        swap(name)
"""


@contextmanager
def swapping(base: Path, outside: Path) -> Iterator[None]:
    arguments = [sys.executable, "-c", SWAP, str(base), str(outside)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            assert process.wait(60) == 0


def tree(root: Path, content: bytes) -> Path:
    return make_tree(
        root, {"a": content, "d/x": content, "d/e/y": content, "large": content * LARGE}
    )


def contents(root: Path) -> set[bytes]:
    return {path.read_bytes()[:1] for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_source_in_which_links_come_and_go_is_never_left(
    gateway: Gateway, tmp_path: Path, direction: str
) -> None:
    source, outside = tree(tmp_path / "source", b"i"), tree(tmp_path / "outside", b"o")
    with swapping(source, outside):
        for number in range(ROUNDS):
            dest = tmp_path / f"dest{number % 2}"
            if direction == "push":
                send(gateway, source, dest, delete=True)
            else:
                RSync.pull(gateway, source, dest, delete=True)
            for path in dest.rglob("*"):
                if path.is_symlink():
                    path.unlink()  # a link is copied as one
            assert contents(dest) <= {b"i"}


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_target_in_which_links_come_and_go_is_never_left(
    gateway: Gateway, tmp_path: Path, direction: str
) -> None:
    source, outside = tree(tmp_path / "source", b"i"), tree(tmp_path / "outside", b"o")
    dest = tree(tmp_path / "dest", b"o")
    give_away(source)
    before = snapshot(outside), owners_in(outside)
    with swapping(dest, outside):
        for number in range(ROUNDS):
            for path in [source, *source.rglob("*")]:  # times, modes and some content differ
                os.utime(path, (number, number))
                path.chmod((0o700 if path.is_dir() else 0o600) + number % 8)
            (source / "d/x").write_bytes(b"i" * (number % 3))
            options = {"delete": number % 2 > 0, "owners": number % 3 > 0}
            with suppress(RSyncError):  # the root's own directories may not be there
                if direction == "push":
                    send(gateway, source, dest, **options)
                else:
                    RSync.pull(gateway, source, dest, **options)
            assert (snapshot(outside), owners_in(outside)) == before


def test_a_source_that_is_removed_while_it_is_read_does_not_count_as_empty(
    gateway: Gateway, tmp_path: Path
) -> None:
    source, dest = make_tree(tmp_path / "source", {"d/e/x": b"1"}), tmp_path / "dest"
    send(gateway, source, dest)

    class Removing(RSync):
        def filter(self, path: str) -> bool:
            if path.endswith("/e"):
                (source / "d/e/x").unlink()
                (source / "d/e").rmdir()
                (source / "d").rename(tmp_path / "d")
            return True

    rsync = Removing(source, verbose=False)
    rsync.add_target(gateway, dest, delete=True)
    rsync.send()
    assert (dest / "d/e/x").exists()


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_paths_are_used_for_the_roots_only(tmp_path: Path, direction: str) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1", "d/b": b"2", "d/large": bytes(LARGE)})
    for name in ("touched", "mode", "d/touched", "kind"):
        make_tree(source, {name: bytes(LARGE if name[0] == "d" else 10)})
        make_tree(tmp_path / "dest", {name: bytes(LARGE if name[0] == "d" else 10)})
    (source / "kind").unlink()
    (source / "kind").symlink_to("a")
    os.link(source / "a", source / "linked")
    os.utime(source / "mode", (5, 5))
    os.utime(tmp_path / "dest/mode", (5, 5))
    (source / "mode").chmod(0o600)
    make_tree(tmp_path / "dest", {"old/x": b"", "d/old": b"", "linked/x": b""})
    (tmp_path / "dest/d").chmod(0o500)
    (source / "link").symlink_to("a")
    (tmp_path / "dest/link").symlink_to("a")
    give_away(source)
    done = subprocess.run(
        [sys.executable, "-c", AUDITED.replace("DIRECTION", direction)],
        cwd=tmp_path, capture_output=True, text=True, env=clean_environment(),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True 6 []\n", "")


# Runs one half of RSync here and tells what it reaches other than by a name in an open directory.
AUDITED = """
import os, re, sys
import execnet, execnet._rsync.pull, execnet._rsync.push
gateway = execnet.makegateway()
def run(dest, **options):
    if "DIRECTION" == "pull":
        return execnet.RSync.pull(gateway, "source", dest, **options)
    rsync = execnet.RSync("source", verbose=False)
    rsync.add_target(gateway, dest, **options)
    return rsync.send().targets[0]
run("first")
seen, is_on = [], []
roots = [os.fsencode(os.path.abspath("dest")), b"source"]
# for each event: which arguments are paths, and which of the directories that they are in
EVENTS = {
    "os.chmod": [(0, 2)], "os.chown": [(0, 3)], "os.utime": [(0, 3)], "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.rename": [(0, 2), (1, 3)],
    "os.link": [(0, 2), (1, 3)], "os.symlink": [(1, 2)], "os.listdir": [(0, None)],
    "os.scandir": [(0, None)], "os.truncate": [(0, None)],
}
OPENED = re.compile(rb"/proc/self/fd/\\d+$")
BY_NAME = ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink")
def hook(event, args):
    if not is_on:
        return
    if event == "open" and args[1] is None and args[0] not in roots:
        if b"/" in os.fsencode(args[0]) or not args[2] & os.O_NOFOLLOW:
            seen.append((event, args))
    for path, where in EVENTS.get(event, ()):
        if isinstance(args[path], int) or OPENED.match(os.fsencode(args[path])):
            continue
        if event not in BY_NAME or args[where] == -1 or b"/" in os.fsencode(args[path]):
            seen.append((event, args))
sys.addaudithook(hook)
is_on.append(1)
result = run("dest", delete=True, owners=True)
is_on.clear()
print(result.ok, result.deleted, seen)
"""
