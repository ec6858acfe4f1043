"""RSync keeps to the byte, the bit and the nanosecond what the source has, and says what it left.

Links of all kinds are in ``test_rsync_links.py``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import NOBODY, Sync, assert_same, give_away, make_tree, pull, send, snapshot

from execnet import Gateway, RSync
from execnet._rsync.far import pump, sending, wire
from execnet._rsync.far.wire import SMALL_MAX
from execnet._rsync.result import Skipped


def drop_privileges(gateway: Gateway, spare: Path) -> None:
    """Make a worker one that may not do everything, also where the tests run as root."""
    if os.geteuid() == 0:
        for sync in (send, pull):  # so that all modules are loaded that it may not read later
            sync(
                gateway, make_tree(spare / sync.__name__, {"a": b""}), spare / f"{sync.__name__}-to"
            )
        gateway.remote_exec(
            f"import os; os.setgroups([]); os.setegid({NOBODY}); os.seteuid({NOBODY})"
        ).waitclose()


# names, sizes, modes, times


def test_names_of_any_bytes_arrive(sync: Sync, gateway: Gateway, source: Path, dest: Path) -> None:
    names = [bytes([code]) for code in range(1, 256) if chr(code) not in "/."]
    names += [b"x" * 255, b"\xff" * 255, b"\xc3\x28", b"...", b"-rf", b"a\nb\r\n", b"%s{}"]
    for name in names:
        directory = os.fsencode(source) + b"/d" + name[:200]
        os.mkdir(directory)
        for path in (os.fsencode(source) + b"/" + name, directory + b"/" + name):
            with open(path, "wb") as file:
                file.write(name)
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)


def test_sizes_around_every_border_arrive(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    borders = [0, SMALL_MAX, 256 * 1024, wire.CHUNK_BYTES, 1 << 20, 2 << 20]
    for border in borders:
        for size in {max(border + offset, 0) for offset in (-1, 0, 1)}:
            (source / str(size)).write_bytes(os.urandom(size))
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)


def test_empty_directories_arrive(sync: Sync, gateway: Gateway, source: Path, dest: Path) -> None:
    (source / "a/b/c").mkdir(parents=True)
    (source / "z").mkdir()
    assert sync(gateway, source, dest).ok
    assert_same(source, dest)


def test_an_empty_source_empties_the_target(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(dest, {"a": b"", "d/b": b""})
    assert sync(gateway, source, dest, delete=True).deleted == 3
    assert_same(source, dest)


def test_every_mode_arrives_and_set_id_bits_do_not(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    old = os.umask(0o077)
    needed = 0 if os.geteuid() == 0 else 0o400  # an ordinary user reads no other files
    try:
        for mode in [*range(0o1000), 0o1777, 0o2755, 0o4755, 0o6711]:
            if mode & needed != needed:
                continue
            path = source / f"{mode:o}"
            path.write_bytes(b"")
            path.chmod(mode)
            directory = source / f"d{mode:o}"
            if mode & 0o700 == 0o700:
                directory.mkdir()
                directory.chmod(mode)
        assert sync(gateway, source, dest).ok
    finally:
        os.umask(old)
    for path in source.iterdir():
        kept = path.stat().st_mode & (0o1777 if path.is_dir() else 0o777)
        assert (dest / path.name).stat().st_mode & 0o7777 == kept, path.name


def test_a_mode_that_changed_is_set_without_sending_the_file(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a": b"1", "d/b": b"2"})
    sync(gateway, source, dest)
    (source / "a").chmod(0o600)
    (source / "d").chmod(0o711)
    result = sync(gateway, source, dest)
    assert (result.files_sent, result.settled) == (0, 1)
    assert_same(source, dest)


@pytest.mark.parametrize(
    "time",
    [0, 1, 999_999_999, -1, -1_500_000_000, 2**31 * 10**9, 10**18 + 123_456_789, 2**33 * 10**9],
)
def test_times_arrive_to_the_nanosecond(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, time: int
) -> None:
    make_tree(source, {"file": b"1", "large": bytes(SMALL_MAX * 2), "d/x": b""})
    (source / "link").symlink_to("file")
    for name in ("file", "large", "d"):
        os.utime(source / name, ns=(time, time))
    os.utime(source / "link", ns=(time, time), follow_symlinks=False)
    sync(gateway, source, dest)
    assert_same(source, dest)
    assert sync(gateway, source, dest).settled == 0


def test_holes_stay_holes(sync: Sync, gateway: Gateway, source: Path, dest: Path) -> None:
    with open(source / "sparse", "wb") as file:
        for start in (0, 20 << 20, 40 << 20):
            file.seek(start)
            file.write(os.urandom(100_000))
        file.truncate(64 << 20)
    (source / "hole").touch()
    os.truncate(source / "hole", 5 << 20)
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent < 1_000_000
    assert (dest / "sparse").stat().st_blocks * 512 < 2 << 20
    assert (dest / "hole").stat().st_blocks * 512 < 1 << 20


def test_a_changed_sparse_file_is_as_sparse_as_before(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    (source / "sparse").write_bytes(b"x")
    os.truncate(source / "sparse", 64 << 20)
    sync(gateway, source, dest)
    with open(source / "sparse", "r+b") as file:
        file.seek(32 << 20)
        file.write(b"y")
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent <= 64 * 1024
    assert (dest / "sparse").stat().st_blocks * 512 < 4 << 20


# what is sent of a file that is there


def large(source: Path, size: int = 3 << 20) -> Path:
    path = source / "large"
    path.write_bytes(os.urandom(size))
    return path


def test_a_byte_that_changed_costs_one_block(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    path = large(source)
    sync(gateway, source, dest)
    with open(path, "r+b") as file:
        file.seek(1_500_000)
        old = file.read(1)
        file.seek(1_500_000)
        file.write(bytes([old[0] ^ 1]))
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent == wire.block_bytes(os.path.getsize(path))


def test_appended_data_is_sent_as_the_appended_part(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    path = large(source, (3 << 20) + 12345)
    sync(gateway, source, dest)
    with open(path, "ab") as file:
        file.write(b"x" * 777)
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent == 777


@pytest.mark.parametrize("size", [0, 1, SMALL_MAX + 1, 1 << 20, (2 << 20) + 5])
def test_a_file_that_was_cut_costs_nothing_if_it_is_still_large(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, size: int
) -> None:
    path = large(source)
    sync(gateway, source, dest)
    os.truncate(path, size)
    result = sync(gateway, source, dest)
    assert_same(source, dest)
    assert result.bytes_sent == (size if size <= SMALL_MAX else 0)


def test_a_base_that_does_not_prove_true_is_replaced_whole(
    gateway: Gateway, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(source)
    send(gateway, source, dest)
    with open(path, "ab") as file:
        file.write(b"x")
    proofs = []

    class Liar(pump.Comparison):
        def changes(self, position: int, data: bytes, digests: bytearray) -> Any:
            changes = super().changes(position, data, digests)
            digests[0] ^= position == 0
            proofs.append(position)
            return changes

    monkeypatch.setattr(pump, "Comparison", Liar)
    result = send(gateway, source, dest)
    assert proofs
    assert result.ok
    assert result.bytes_sent == 1 + (3 << 20) + 1
    assert_same(source, dest)


def test_a_touched_large_file_has_only_its_time_set(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    os.utime(large(source), (1, 1))
    sync(gateway, source, dest)
    inode = (dest / "large").stat().st_ino
    os.utime(source / "large", (2, 2))
    result = sync(gateway, source, dest)
    assert (result.files_sent, result.bytes_sent, result.settled) == (0, 0, 1)
    assert (dest / "large").stat().st_ino == inode
    assert_same(source, dest)


# files where directories are needed, and the other way round


def test_with_delete_any_kind_takes_the_place_of_any_other(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a/b": b"1", "c": b"2", "large": bytes(SMALL_MAX * 2), "s/x": b""})
    (source / "l").symlink_to("c")
    os.link(source / "c", source / "c2")
    make_tree(dest, {"a": b"3", "c/d/e": b"4", "c2/f": b"4", "large/x": b"5", "l/y": b"6"})
    (dest / "s").symlink_to("c")
    plan = sync(gateway, source, dest, delete=True, dry_run=True)
    lost = ["a", "c/d/e", "c/d", "c", "c2/f", "c2", "l/y", "l", "large/x", "large", "s"]
    assert (sorted(plan.planned_deletions), plan.skipped) == (sorted(lost), [])
    result = sync(gateway, source, dest, delete=True)
    assert (result.ok, result.deleted) == (True, len(lost))
    assert_same(source, dest)


def test_the_target_may_be_a_link_to_a_directory(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, tmp_path: Path
) -> None:
    make_tree(source, {"a": b"1"})
    (tmp_path / "real").mkdir()
    dest.symlink_to("real")
    sync(gateway, source, dest)
    assert dest.is_symlink()
    assert_same(source, tmp_path / "real")


# a source that is a single file


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_a_single_file_becomes_the_file_that_the_target_names(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, size: int
) -> None:
    file = source / "file"
    file.write_bytes(os.urandom(size))
    file.chmod(0o640)
    make_tree(dest, {"other": b"stays"})
    assert sync(gateway, file, dest / "x/copy").ok
    assert snapshot(file) == snapshot(dest / "x/copy")
    file.write_bytes(os.urandom(size + 1))
    assert sync(gateway, file, dest / "x/copy", delete=True).deleted == 0
    assert snapshot(file) == snapshot(dest / "x/copy")
    assert sync(gateway, file, dest / "x/copy").unchanged == 1
    assert (dest / "other").read_bytes() == b"stays"


def test_a_source_that_is_a_link_is_what_it_points_to(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, tmp_path: Path
) -> None:
    make_tree(source, {"a": b"1"})
    (tmp_path / "to-tree").symlink_to(source)
    (tmp_path / "to-file").symlink_to(source / "a")
    sync(gateway, tmp_path / "to-tree", dest)
    assert_same(source, dest)
    sync(gateway, tmp_path / "to-file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"1"


# what cannot be had


def test_special_files_are_reported_and_left_out(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(source, {"a": b"1", "z": b"2"})
    os.mkfifo(source / "fifo")
    monkeypatch.chdir(source)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        result = sync(gateway, source, dest)
    assert sorted((skipped.path, skipped.reason) for skipped in result.skipped) == [
        ("fifo", "is a FIFO, left out"),
        ("socket", "is a socket, left out"),
    ]
    assert sorted(path.name for path in dest.iterdir()) == ["a", "z"]


class Meddler(RSync):
    """Does something to the source once "z" was listed, and so all before it."""

    def __init__(self, source: Path, meddle: Callable[[], object]) -> None:
        super().__init__(source, verbose=False)
        self.meddle = meddle

    def filter(self, path: str) -> bool:
        if path.endswith("/z"):
            self.meddle()
        return True


@pytest.mark.parametrize("size", [5, SMALL_MAX * 2])
@pytest.mark.parametrize("change", ["vanish", "fifo", "link", "directory"])
def test_a_file_that_is_another_thing_when_it_is_read_is_reported(
    gateway: Gateway, source: Path, dest: Path, change: str, size: int
) -> None:
    make_tree(source, {"a": b"1", "b": bytes(size), "z": b"2"})
    make_tree(dest, {"b": b"old"})

    def meddle() -> None:
        (source / "b").unlink()
        if change == "fifo":
            os.mkfifo(source / "b")
        elif change == "link":
            (source / "b").symlink_to("/etc/passwd")
        elif change == "directory":
            (source / "b").mkdir()

    rsync = Meddler(source, meddle)
    rsync.add_target(gateway, dest)
    result = rsync.send()
    assert result is not None
    (skipped,) = result.targets[0].skipped
    assert skipped.path == "b"
    assert {
        "vanish": "No such file or directory",
        "fifo": "is not a file any more",
        "link": "became a link since it was listed",
        "directory": "is not a file any more" if size > SMALL_MAX else "Is a directory",
    }[change] == skipped.reason
    assert (dest / "b").read_bytes() == b"old"
    assert ((dest / "a").read_bytes(), (dest / "z").read_bytes()) == (b"1", b"2")


@pytest.mark.parametrize(
    ("before", "after"), [(5, 7), (5, 1 << 20), (1 << 20, 5), (1 << 20, 2 << 20)]
)
def test_a_file_that_changed_since_it_was_listed_arrives_as_it_is_now(
    gateway: Gateway, source: Path, dest: Path, before: int, after: int
) -> None:
    make_tree(source, {"b": os.urandom(before), "z": b"2"})

    def meddle() -> None:
        (source / "b").write_bytes(os.urandom(after))
        (source / "b").chmod(0o611)

    for _ in range(2):  # the second time there is an old one
        (source / "b").write_bytes(os.urandom(before))
        rsync = Meddler(source, meddle)
        rsync.add_target(gateway, dest)
        result = rsync.send()
        assert result is not None
        assert result.ok
        assert snapshot(source / "b") == snapshot(dest / "b")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("change", ["rewrite and grow", "shrink", "write"])
def test_a_file_that_changes_while_it_is_read_is_reported_and_the_old_one_stays(
    gateway: Gateway,
    source: Path,
    dest: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    there: bool,
) -> None:
    make_tree(source, {"a": b"1", "b": os.urandom(3 << 20), "z": b"2"})
    make_tree(dest, {"b": os.urandom(3 << 20)} if there else {})
    old = snapshot(dest).entries.get(b"b")
    read = sending.read_exactly

    def read_and_change(fd: int, size: int) -> bytes:
        data = read(fd, size)
        if change == "rewrite and grow":
            with open(source / "b", "r+b") as file:
                file.write(os.urandom(9))
                file.seek(0, os.SEEK_END)
                file.write(b"x")
        elif change == "shrink":
            os.truncate(source / "b", 2 << 20)
        else:
            with open(source / "b", "r+b") as file:
                file.write(b"y")
            os.utime(source / "b", (9, 9))
        return data

    monkeypatch.setattr(sending, "read_exactly", read_and_change)
    result = send(gateway, source, dest)
    assert [skipped.path for skipped in result.skipped] == ["b"]
    assert "while it was read" in result.skipped[0].reason
    assert sorted(os.listdir(dest)) == (["a", "b", "z"] if there else ["a", "z"])
    assert snapshot(dest).entries.get(b"b") == old


def test_a_small_file_that_changes_while_it_is_read_is_reported(
    gateway: Gateway, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(source, {"a": b"1", "b": b"2", "z": b"3"})
    seek = os.lseek

    def change_and_seek(fd: int, *arguments: int) -> int:  # before it is read for good
        (source / "b").write_bytes(b"other")
        return seek(fd, *arguments)

    def change() -> None:
        (source / "b").write_bytes(b"changed")
        monkeypatch.setattr(os, "lseek", change_and_seek)

    rsync = Meddler(source, change)
    rsync.add_target(gateway, dest)
    result = rsync.send()
    monkeypatch.undo()
    assert result is not None
    assert result.targets[0].skipped == [Skipped("b", "changed while it was read")]
    assert sorted(os.listdir(dest)) == ["a", "z"]


def test_a_file_that_cannot_be_read_is_reported_and_the_rest_arrives(
    gateway: Gateway, open_path: Path
) -> None:
    source = make_tree(
        open_path / "source", {"a": b"1", "secret": b"2", "d/x": b"3", "shut/x": b"4"}
    )
    for path in source.rglob("*"):
        path.chmod(0o777)
    (source / "secret").chmod(0)
    (source / "shut").chmod(0)
    drop_privileges(gateway, open_path)
    dest = make_tree(open_path / "dest", {"shut/old": b"5", "secret": b"6"})
    result = pull(gateway, source, dest, delete=True)
    assert sorted(result.skipped, key=str) == [
        Skipped("secret", "Permission denied"),
        Skipped("shut", "Permission denied"),
    ]
    assert (dest / "d/x").read_bytes() == b"3"
    assert (dest / "secret").read_bytes() == b"6"
    os.chmod(dest / "shut", 0o700)
    assert (dest / "shut/old").read_bytes() == b"5"


def test_read_only_directories_can_be_filled_and_stay_read_only(
    gateway: Gateway, open_path: Path
) -> None:
    drop_privileges(gateway, open_path)
    source = make_tree(open_path / "source", {"d/e/x": b"1", "d/y": b"2"})
    dest = open_path / "dest"
    for directory in (source / "d/e", source / "d", source):
        directory.chmod(0o555)
    assert send(gateway, source, dest).ok
    assert_same(source, dest)
    for directory in (source, source / "d"):
        directory.chmod(0o755)
    (source / "d/y").unlink()
    (source / "d/e/x").write_bytes(b"changed")
    (source / "d").chmod(0o500)
    source.chmod(0)
    try:
        if os.geteuid() == 0:
            assert send(gateway, source, dest, delete=True).ok
            assert_same(source, dest)
    finally:
        source.chmod(0o700)
        dest.chmod(0o700)


def test_what_the_target_may_not_write_is_reported_and_the_rest_arrives(
    gateway: Gateway, open_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a directory of another user")
    drop_privileges(gateway, open_path)
    source = make_tree(open_path / "source", {"a": b"1", "d/x": b"2", "d/e/y": b"3", "z": b"4"})
    dest = make_tree(open_path / "dest", {"d/x": b"old", "d/gone": b"stays"})
    give_away(dest, recursive=False)
    result = send(gateway, source, dest, delete=True)
    assert {skipped.path for skipped in result.skipped} == {"d", "d/e", "d/x"}
    assert {skipped.reason.rpartition(": ")[2] for skipped in result.skipped} <= {
        "Permission denied", "Operation not permitted",
    }  # fmt: skip
    assert (dest / "d/x").read_bytes() == b"old"
    assert (dest / "d/gone").exists()
    assert ((dest / "a").read_bytes(), (dest / "z").read_bytes()) == (b"1", b"4")


def test_a_name_that_the_target_cannot_have_is_reported(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a": b"1", "bad": b"2", "bad-d/x": b"", "z": b"3"})
    gateway.remote_exec(
        """
        import errno, os
        rename, mkdir = os.rename, os.mkdir
        def refuse(function):
            def refusing(*args, **kwargs):
                if [arg for arg in args if str(arg).startswith("b'bad")]:
                    raise OSError(errno.ENAMETOOLONG, "File name too long")
                return function(*args, **kwargs)
            return refusing
        os.rename, os.mkdir = refuse(rename), refuse(mkdir)
        os.supports_dir_fd.update([os.rename, os.mkdir])
        """
    ).waitclose()
    result = send(gateway, source, dest)
    assert result.skipped == [
        Skipped("bad-d", "File name too long"),
        Skipped("bad", "File name too long"),
    ]
    assert sorted(os.listdir(dest)) == ["a", "z"]
