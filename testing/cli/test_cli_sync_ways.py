"""``execnet sync`` from a worker to here, and to another one; what it prints; what it watches."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import children_of
from rsync_trees import assert_same, make_tree, snapshot
from shell import Shell
from tools import wait_until

from execnet._rsync.direct import direct
from execnet._rsync.result import RSyncError


@pytest.fixture
def source(shell: Shell) -> Path:
    return make_tree(shell.folder / "source", {"a": b"1", "d/b": b"2" * 100_000, "cache/y": b""})


WAYS = {
    "to": ["source", "popen:dest"],
    "from": ["popen:source", "dest"],
    "between": ["popen//id=one:source", "popen//id=two:dest"],
    "directly": ["--direct", "popen//id=one:source", "popen//id=two:dest"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_tree_goes_each_way(shell: Shell, source: Path, way: str) -> None:
    done = shell.run("sync", *WAYS[way])
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 files sent" in done.stdout.splitlines()[-1]
    assert {line.split()[1] for line in done.stdout.splitlines()[:-1]} == {"a", "cache/y", "d/b"}
    assert_same(source, shell.folder / "dest")
    (source / "d/b").write_bytes(b"x" + b"2" * 100_000)
    make_tree(shell.folder / "dest", {"old": b"", ".env": b""})
    words = ["--delete", "--exclude", ".env", "--stats", *WAYS[way]]
    done = shell.run("sync", *words)
    assert "1 file sent" in done.stdout
    assert "deleted: 1" in done.stdout
    (shell.folder / "dest/.env").unlink()
    os.utime(shell.folder / "dest", ns=(1, source.stat().st_mtime_ns))
    assert_same(source, shell.folder / "dest")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out_and_what_would_be_done_is_told(
    shell: Shell, source: Path, way: str
) -> None:
    os.mkfifo(source / "fifo")
    make_tree(shell.folder / "dest", {"old": b""})
    done = shell.run("sync", "-n", "--delete", "--json", *WAYS[way])
    found = json.loads(done.stdout)
    assert sorted(found["planned"]) == ["a", "cache", "cache/y", "d", "d/b"]
    assert found["planned_deletions"] == ["old"]
    assert found["skipped"] == [["fifo", "is a FIFO, left out"]]
    assert (found["ok"], done.returncode) == (False, 1)
    assert os.listdir(shell.folder / "dest") == ["old"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out_is_deleted_only_if_that_is_asked_for(
    shell: Shell, source: Path, way: str
) -> None:
    make_tree(shell.folder / "dest", {".env": b"", "old": b""})
    words = ["--exclude", ".env", *WAYS[way]]
    assert shell.run("sync", "--delete", *words).returncode == 0
    assert sorted(os.listdir(shell.folder / "dest")) == [".env", "a", "cache", "d"]
    assert shell.run("sync", "--delete-excluded", *words).returncode == 0
    assert sorted(os.listdir(shell.folder / "dest")) == ["a", "cache", "d"]


def test_a_home_is_that_of_the_side_that_it_is_on(shell: Shell, source: Path) -> None:
    home = make_tree(shell.folder / "home", {"far/x": b"1"})
    far = f"popen//env:HOME={home}"
    assert shell.run("sync", f"{far}:~/far", "~/near", HOME=str(shell.folder)).returncode == 0
    assert os.listdir(shell.folder / "near") == ["x"]
    done = shell.run("sync", f"{far}:~/far", "~nobody-of-this-name/near")
    assert (done.returncode, "no such home directory" in done.stderr) == (1, True)
    assert shell.run("sync", "~/source/d", f"{far}:~/d", HOME=str(shell.folder)).returncode == 0
    assert os.listdir(home / "d") == ["b"]
    assert not list(shell.folder.glob("~*"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("src", "dest", "said"),
    [("source", "source/d/copy", "is inside of the source"),
     ("source/d", "source", "the source is inside of it"),
     ("~/d", "source", "deleting there would remove the source")],
)  # fmt: skip
def test_a_target_and_a_source_inside_of_each_other_are_refused(
    shell: Shell, source: Path, way: str, src: str, dest: str, said: str
) -> None:
    before = snapshot(source)
    options = ["--delete"] * ("delet" in said)
    if way == "to":
        src = src.replace("~", "source")
    places = {"source": src, "dest": dest}
    words = [re.sub("(source|dest)$", lambda match: places[match[0]], word) for word in WAYS[way]]
    done = shell.run("sync", *options, *words, HOME=str(source))
    assert (done.returncode, said in done.stderr) == (1, True)
    assert snapshot(source) == before


@pytest.mark.parametrize("way", ["from", "between", "directly"])
def test_a_source_that_is_not_there_is_told(shell: Shell, way: str) -> None:
    done = shell.run("sync", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(":source: No such file or directory\n")
    assert "Errno" not in done.stderr


@pytest.mark.parametrize(("way", "name"), [("to", "gw0"), ("between", "two")])
def test_a_single_file_has_its_name_in_what_is_printed(
    shell: Shell, source: Path, way: str, name: str
) -> None:
    words = [word.replace("source", "source/a") for word in WAYS[way]]
    assert shell.run("sync", "-n", *words).stdout == f"[{name}] would send a\n"
    assert shell.run("sync", *words).stdout.splitlines()[0] == f"[{name}] a"


def test_a_source_that_vanishes_while_it_is_watched_is_named(shell: Shell, source: Path) -> None:
    process = shell.start("sync", "--watch", "source", "popen:dest")
    wait_until(lambda: (shell.folder / "dest/d/b").exists())
    source.rename(shell.folder / "elsewhere")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "source: " in said
    assert "b'" not in said


@pytest.mark.parametrize("way", ["from", "between", "directly"])
def test_a_target_that_can_take_nothing_is_told(shell: Shell, source: Path, way: str) -> None:
    (shell.folder / "dest").write_bytes(b"")
    done = shell.run("sync", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    assert "a directory cannot replace a file" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--direct", "popen:source", "dest"], ["--direct", "source", "popen:dest"],
     ["popen:source", "dest", "popen:x"],
     ["--gitignore", "popen:source", "dest"], ["--bwlimit=0", "source", "popen:dest"],
     ["--mask=9", "popen:source", "dest"], ["source", "dest"]],
)  # fmt: skip
def test_what_cannot_be_done_starts_nothing(shell: Shell, source: Path, words: list[str]) -> None:
    assert shell.run("sync", *words).returncode == 2
    assert not (shell.folder / "dest").exists()


@pytest.mark.parametrize(
    ("way", "words"),
    [("to", []), ("from", []), ("between", ["--partial"]), ("directly", ["--partial"])],
)
def test_ctrl_c_leaves_nothing_half_unless_that_is_wanted(
    shell: Shell, source: Path, way: str, words: list[str]
) -> None:
    (source / "a").write_bytes(os.urandom(8 << 20))
    process = shell.start("sync", "--bwlimit=1M", *words, *WAYS[way])

    def left() -> list[Path]:
        found = []
        for path in shell.folder.glob("dest/.execnet-rsync-*"):
            with suppress(FileNotFoundError):
                found += [path] * (path.stat().st_size > 0)
        return found

    wait_until(left)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(left()) == len(words)
    for path in left():  # its run has let go of it, and told the checksum
        assert re.search(r"-0-[1-9]\d+\.", path.name)


def test_modes_and_links_from_a_worker_are_as_is_only_if_asked_for(
    shell: Shell, source: Path
) -> None:
    (source / "a").chmod(0o666)
    (source / "out").symlink_to("/etc")
    shell.run("sync", "popen:source", "dest")
    assert (shell.folder / "dest/a").stat().st_mode & 0o777 == 0o644
    assert not (shell.folder / "dest/out").is_symlink()
    assert shell.run("sync", "--mask=0", "--links=as-is", "popen:source", "dest").returncode == 0
    assert_same(source, shell.folder / "dest")


def test_content_is_compressed_if_that_is_asked_for(shell: Shell, source: Path) -> None:
    hop, far = "popen//id=hop:other", "popen//id=far//via=hop"
    done = shell.run("sync", "--json", "source", hop, f"{far}:plain")
    plain = json.loads(done.stdout.splitlines()[1])["bytes_sent"]
    done = shell.run("sync", "--json", "-z", "source", hop, f"{far}:short")
    short = json.loads(done.stdout.splitlines()[1])["bytes_sent"]
    assert (plain, short < 10_000) == (100_001, True)
    assert_same(source, shell.folder / "short")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("way", WAYS)
def test_owners_are_kept_if_that_is_asked_for(shell: Shell, source: Path, way: str) -> None:
    os.chown(source / "d", 12345, 23456)
    os.chown(source / "d/b", 0, 23456)
    for options, expected in ([], [(0, 0)] * 2), (["--owner"], [(12345, 23456), (0, 23456)]):
        assert shell.run("sync", *options, *WAYS[way]).returncode == 0
        found = [(shell.folder / "dest" / name).stat() for name in ("d", "d/b")]
        assert [(one.st_uid, one.st_gid) for one in found] == expected


def test_a_watched_worker_that_dies_is_told(shell: Shell, source: Path) -> None:
    process = shell.start("sync", "--watch", "popen:source", "dest")
    wait_until(lambda: (shell.folder / "dest/d/b").exists())
    [worker] = children_of(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in said) == (1, False)
    assert "worker gw0 died, killed by SIGKILL" in said


def test_a_target_that_the_source_does_not_reach_is_told(shell: Shell, source: Path) -> None:
    done = shell.run("sync", "--direct", "popen:source", "popen//python=nowhere:dest")
    assert (done.returncode, done.stdout) == (1, "")
    assert "gw0:source: " in done.stderr
    assert "nowhere" in done.stderr


def test_a_source_with_an_old_python_starts_nothing() -> None:
    gateway: Any = SimpleNamespace(id="old", _rinfo=lambda: SimpleNamespace(version_info=(3, 9, 1)))
    with pytest.raises(RSyncError, match=r"old:here: only Python 3\.10 or later"):
        direct(gateway, b"here", "popen", b"there", {}, [], None)


@pytest.mark.parametrize("way", WAYS)
def test_changes_are_brought_over_as_they_come(shell: Shell, source: Path, way: str) -> None:
    process = shell.start("sync", "--watch", *WAYS[way])
    dest = shell.folder / "dest"
    wait_until(lambda: (dest / "d/b").exists())
    make_tree(source, {"new/deep/file": b"1"})
    wait_until(lambda: (dest / "new/deep/file").exists())
    (source / "new/deep/file").write_bytes(b"22")
    wait_until(lambda: (dest / "new/deep/file").read_bytes() == b"22")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
