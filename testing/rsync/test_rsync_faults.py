"""Whatever dies, and whenever: every file of the target is whole, and the next run completes.

Moments are counted, not timed: a process is killed at its n-th change of the file system, or
at the n-th file that it reports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import state_of, stop
from rsync_trees import assert_same, make_tree, send, snapshot, sync_and_die
from tools import MakeGateway, missing, threads, wait_until

from execnet import Gateway, RSync
from execnet._rsync.far.pump import Pump
from execnet._rsync.far.sending import DATA_WINDOW_BYTES
from execnet._rsync.far.temps import PREFIX, Temps
from execnet._rsync.far.tree import Tree
from execnet._rsync.far.watcher import Watcher
from execnet._rsync.far.wire import HELLO, LIST, PIECE_BYTES, SMALL_MAX, WANT, pack_ids
from execnet._rsync.result import RSyncError

OLD = {"a": b"old", "d/b": b"old" * 20_000, "gone": b"", "h1": b"x", "d/same": b"same"}
NEW = {
    "a": b"new!",
    "d/b": b"old" * 20_000 + b"and new",
    "d/e/c": b"c" * (SMALL_MAX * 3),
    "d/same": b"same",
    "f/g": b"",
    "h1": b"h" * 10,
    "z": b"z",
}

# Counts changes of the file system and dies at one of them.
DIE = """
import os, signal
count = [0]
def fatal(function):
    def counting(*args, **kwargs):
        count[0] += 1
        if count[0] == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counting
for name in "write rename utime fchmod chmod mkdir unlink rmdir symlink link ftruncate".split():
    wrapped = getattr(os, name)
    setattr(os, name, fatal(wrapped))
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if wrapped in known:
            known.add(getattr(os, name))
channel.send(None)
for item in channel:
    channel.send(count[0])
"""


def make_source(base: Path) -> Path:
    source = make_tree(base / "source", NEW)
    os.link(source / "h1", source / "h2")
    (source / "l").symlink_to("a")
    return source


def make_dest(base: Path) -> Path:
    return make_tree(base / "dest", OLD)


def assert_whole(dest: Path) -> None:
    """Every file is the old one or the new one."""
    for path in dest.rglob("*"):
        name = str(path.relative_to(dest)).replace("h2", "h1")
        if path.is_symlink() or not path.is_file():
            continue
        if not path.name.startswith(os.fsdecode(PREFIX)):
            assert path.read_bytes() in (OLD.get(name), NEW.get(name)), path


def changes_of_a_run(makegateway: MakeGateway, base: Path) -> int:
    """Return how many changes of the file system a run takes that nothing disturbs."""
    gateway = makegateway()
    counter = gateway.remote_exec(DIE.format(moment=0))
    counter.receive()
    send(gateway, make_source(base), make_dest(base), delete=True)
    counter.send(None)
    count: int = counter.receive()
    gateway.exit()
    return count


@pytest.mark.parametrize("part", range(4))
def test_a_worker_that_is_killed_leaves_whole_files_and_the_next_run_completes(
    makegateway: MakeGateway, tmp_path: Path, part: int
) -> None:
    total = changes_of_a_run(makegateway, tmp_path / "whole") if part == 0 else 44
    assert total >= 35
    for moment in range(1 + part, total + 1, 4):
        base = tmp_path / str(moment)
        base.mkdir()
        source, dest = make_source(base), make_dest(base)
        gateway = makegateway()
        channel = gateway.remote_exec(DIE.format(moment=moment))
        channel.receive()
        with contextlib.suppress(EOFError):  # the last moments are behind the end of a run
            send(gateway, source, dest, delete=True)
        channel.close()
        gateway.exit()
        assert_whole(dest)
        finished = snapshot(dest).entries
        result = send(makegateway(), source, dest, delete=True)
        assert result.ok
        assert_same(source, dest)
        files = {n: e for n, e in snapshot(source).entries.items() if e[0] == "file"}
        missing_files = [name for name, entry in files.items() if finished.get(name) != entry]
        assert result.files_sent <= len(missing_files)


def test_the_error_of_a_killed_worker_says_how_it_died(
    makegateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = makegateway()
    gateway.remote_exec(DIE.format(moment=5)).receive()
    with pytest.raises(EOFError, match=r"(?i)gw0.*(signal|kill)"):
        send(gateway, make_source(tmp_path), make_dest(tmp_path))


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_coordinator_that_is_killed_leaves_whole_files_and_the_next_run_completes(
    makegateway: MakeGateway, tmp_path: Path, moment: int
) -> None:
    source, dest = make_source(tmp_path), make_dest(tmp_path)
    sync_and_die(source, dest, moment, delete=True)
    assert_whole(dest)
    assert send(makegateway(), source, dest, delete=True).ok
    assert_same(source, dest)


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        missing(f"a tmpfs can't be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


@pytest.mark.parametrize(
    "files",
    [
        {f"f{number}": os.urandom(30_000) for number in range(60)},
        {"a": b"1", "large": os.urandom(3 << 20), "z": b"2"},
        {"large": os.urandom(600_000) + b"new"},
    ],
    ids=["small", "large", "delta"],
)
def test_a_full_disk_is_told_and_nothing_is_torn(
    makegateway: MakeGateway, tmp_path: Path, small_disk: Path, files: dict[str, bytes]
) -> None:
    source, dest = make_tree(tmp_path / "source", files), small_disk / "dest"
    if len(files) == 1:
        make_tree(dest, {"large": files["large"][:600_000]})
    before = {path.name: path.read_bytes() for path in dest.glob("*")}
    gateway = makegateway()
    with pytest.raises(
        RSyncError, match=r"gw0:.*No space left on device \((f\d+|large)\)"
    ) as caught:
        send(gateway, source, dest)
    assert caught.value.errno == 28
    for path in dest.iterdir():
        assert path.read_bytes() in (files[path.name], before.get(path.name))
    grow(small_disk)
    assert send(gateway, source, dest).ok
    assert_same(source, dest)


def test_a_touched_file_needs_no_room(
    makegateway: MakeGateway, tmp_path: Path, small_disk: Path
) -> None:
    source = make_tree(tmp_path / "source", {"large": os.urandom(600_000)})
    gateway = makegateway()
    send(gateway, source, small_disk / "dest")
    os.utime(source / "large", (5, 5))
    assert send(gateway, source, small_disk / "dest").settled == 1
    assert_same(source, small_disk / "dest")


def test_a_full_disk_of_one_target_does_not_disturb_another(
    makegateway: MakeGateway, tmp_path: Path, small_disk: Path
) -> None:
    source = make_tree(tmp_path / "source", {f"f{n}": os.urandom(100_000) for n in range(40)})
    rsync = RSync(source, verbose=False)
    rsync.add_target(makegateway(), small_disk / "dest")
    rsync.add_target(makegateway(), tmp_path / "dest")
    with pytest.raises(RSyncError, match=r"gw0:.*No space left"):
        rsync.send()
    assert_same(source, tmp_path / "dest")


# what an interrupted run leaves


@pytest.mark.parametrize("delete", [False, True])
def test_temporary_files_of_dead_runs_go_and_those_of_live_ones_stay(
    makegateway: MakeGateway, tmp_path: Path, delete: bool
) -> None:
    source = make_tree(tmp_path / "source", {"d/a": b"1"})
    gateway = makegateway()
    send(gateway, source, tmp_path / "dest")
    host = stem_of(gateway)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: state_of(zombie.pid) in ("Z", "?"))
    names = {
        f"{host}-{dead.pid}-1": False,
        f"{host}-{zombie.pid}-1": sys.platform != "linux",
        f"{host}-{os.getpid()}-1": True,
        f"0badcafe-{dead.pid}-1": True,  # of another host, and young
        f"0badcafe-{dead.pid}-2": False,  # of another host, and old
        f"{host}-x-1": not delete,  # not one of ours
    }
    for name in names:
        (tmp_path / "dest/d" / (os.fsdecode(PREFIX) + name)).write_bytes(b"rest")
    os.utime(tmp_path / "dest/d" / (os.fsdecode(PREFIX) + f"0badcafe-{dead.pid}-2"), (1, 1))
    assert send(gateway, source, tmp_path / "dest", delete=delete).deleted == delete
    left = {path.name.removeprefix(os.fsdecode(PREFIX)) for path in (tmp_path / "dest/d").iterdir()}
    assert left == {"a", *(name for name, stays in names.items() if stays)}
    zombie.wait()


def stem_of(gateway: Gateway) -> str:
    """Return the tag of this host in the names of temporary files."""
    from execnet._rsync.far.places import Places

    return Temps(Places())._host.decode()


def test_a_source_that_has_names_like_temporary_ones_is_copied(
    makegateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = makegateway()
    names = [os.fsdecode(PREFIX) + f"{stem_of(gateway)}-{pid}-1" for pid in (1, 2**22 + 5)]
    source = make_tree(tmp_path / "source", dict.fromkeys(names, b"1"))
    send(gateway, source, tmp_path / "dest", delete=True)
    assert_same(source, tmp_path / "dest")
    assert send(gateway, source, tmp_path / "dest", delete=True).files_sent == 0


# bounds


class Silent(Exception):
    """Raised in place of waiting for a target that says no more."""


def pump_until_silent(source: Path, messages: list[Any]) -> list[Any]:
    sent: list[Any] = []
    tree = Tree(os.fsencode(source), None, lambda *args: None)
    script = iter(messages)

    def receive() -> Any:
        try:
            return next(script)
        except StopIteration:
            raise Silent from None

    walk = tree.walk()
    with pytest.raises(Silent):
        Pump(tree, walk.__next__, sent.append, receive, Watcher()).run()
    walk.close()
    return sent


def test_a_target_that_acknowledges_nothing_gets_one_window_of_data(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", {"large": b""})
    os.truncate(source / "large", 3 * DATA_WINDOW_BYTES)
    with open(source / "large", "r+b") as file:
        for start in range(0, 3 * DATA_WINDOW_BYTES, 4096):  # no holes
            file.seek(start)
            file.write(b"x")
    sent = pump_until_silent(source, [(HELLO, "md5", b"", 1), (WANT, pack_ids([1]))])
    assert max(len(message) for message in sent if isinstance(message, bytes)) <= PIECE_BYTES
    data = sum(len(message) for message in sent if isinstance(message, bytes))
    assert 7 << 20 <= data <= 9 << 20


def test_a_target_that_acknowledges_nothing_gets_one_window_of_the_list(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(15_000):
        (source / (f"{number:05}" + "x" * 245)).touch()
    sent = pump_until_silent(source, [(HELLO, "md5", b"", 1)])
    cost = sum(message[1] for message in sent if message[0] == LIST)
    assert 2 << 20 <= cost < 3 << 20


def test_a_stopped_target_does_not_hold_up_another(
    makegateway: MakeGateway, tmp_path: Path
) -> None:
    files = {f"f{number}": os.urandom(1 << 20) for number in range(24)}
    source = make_tree(tmp_path / "source", files)
    slow, fast = makegateway(), makegateway()
    pid = slow.remote_exec("import os; channel.send(os.getpid())").receive()
    finished: list[str] = []

    def on_fast() -> None:
        finished.append("fast")
        os.kill(pid, signal.SIGCONT)

    rsync = RSync(source, verbose=False)
    rsync.add_target(slow, tmp_path / "slow", finishedcallback=lambda: finished.append("slow"))
    rsync.add_target(fast, tmp_path / "fast", finishedcallback=on_fast)
    stop(pid)
    rsync.send()
    assert finished == ["fast", "slow"]
    assert_same(source, tmp_path / "slow")
    assert_same(source, tmp_path / "fast")


PEAK = """
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def peak():
    with open("/proc/self/status") as file:
        return [int(line.split()[1]) for line in file if line.startswith("VmHWM")][0]
channel.send(peak())
channel.receive()
channel.send(peak())
"""


class Peak:
    """The most memory that this process and a worker take, in KiB above what they had."""

    def __init__(self, gateway: Gateway) -> None:
        self._channels = [gateway.remote_exec(PEAK)]
        self._before = [self._own(reset=True), self._channels[0].receive()]

    def _own(self, reset: bool = False) -> int:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
        raise AssertionError("no VmHWM")

    def growth(self) -> list[int]:
        self._channels[0].send(None)
        after = [self._own(), self._channels[0].receive()]
        return [late - early for early, late in zip(self._before, after, strict=True)]


def test_memory_stays_bounded_for_a_large_file(makegateway: MakeGateway, tmp_path: Path) -> None:
    if not os.path.exists("/proc/self/clear_refs"):
        missing("/proc/self/clear_refs, which tells how much memory was used")
    source = make_tree(tmp_path / "source", {})
    with open(source / "large", "wb") as file:
        for _ in range(192):
            file.write(b"x" * (1 << 20))
    gateway = makegateway()
    send(gateway, make_tree(tmp_path / "warm", {"a": b""}), tmp_path / "warm-dest")
    for change in (b"", b"y"):
        with open(source / "large", "r+b") as file:
            file.seek(96 << 20)
            file.write(change)
        peak = Peak(gateway)
        send(gateway, source, tmp_path / "dest")
        assert max(peak.growth()) < 64 * 1024


def test_memory_grows_little_for_many_small_files(makegateway: MakeGateway, tmp_path: Path) -> None:
    if not os.path.exists("/proc/self/clear_refs"):
        missing("/proc/self/clear_refs, which tells how much memory was used")
    count = 15_000
    source = tmp_path / "source"
    for directory in range(15):
        (source / f"d{directory}").mkdir(parents=True)
        for number in range(count // 15):
            (source / f"d{directory}/file{number}").touch()
    gateway = makegateway()
    send(gateway, make_tree(tmp_path / "warm", {"a": b""}), tmp_path / "warm-dest")
    peak = Peak(gateway)
    send(gateway, source, tmp_path / "dest")
    assert max(peak.growth()) < count  # one KiB for each


def test_no_thread_is_left_behind(makegateway: MakeGateway, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", {"a": b"1"})
    gateway = makegateway()
    before = threads()
    send(gateway, source, tmp_path / "dest")
    wait_until(lambda: threads() == before)
