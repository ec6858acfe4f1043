"""Nothing is lost: what a synchronisation must leave where it is.

What holds in both directions is tested in both.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import NOBODY, Sync, assert_same, give_away, make_tree, pull, send, snapshot
from tools import SOURCE, clean_environment, missing

from execnet import Gateway, RSync
from execnet._rsync.far import sending, temps
from execnet._rsync.far import tree as rsync_far_tree
from execnet._rsync.far.folders import Folders
from execnet._rsync.far.temps import PREFIX
from execnet._rsync.far.wire import SMALL_MAX
from execnet._rsync.result import RSyncError, Skipped


@contextmanager
def ordinary_user(gateway: Gateway, spare: Path) -> Iterator[None]:
    """Be one who may not do everything, here and in a worker, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    for sync in (send, pull):  # so that all modules are loaded that it may not read later
        sync(gateway, make_tree(spare / sync.__name__, {"a": b""}), spare / f"to-{sync.__name__}")
    become = "import os; os.seteuid({})"
    gateway.remote_exec(become.format(NOBODY)).waitclose()
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        gateway.remote_exec(become.format(0)).waitclose()


# what the source could not look at


def test_delete_keeps_what_the_source_lists_and_cannot_examine(
    sync: Sync, gateway: Gateway, open_path: Path
) -> None:
    source = make_tree(open_path / "source", {"d/a": b"1", "d/b": b"1", "shut/a": b"1"})
    dest = make_tree(open_path / "dest", {})
    give_away(source, dest)
    with ordinary_user(gateway, open_path):
        sync(gateway, source, dest, delete=True)
        make_tree(dest / "d", {"old": b"goes", "a": b"2"})
        (source / "d").chmod(0o400)
        (source / "shut").chmod(0o000)
        try:
            result = sync(gateway, source, dest, delete=True)
        finally:
            (source / "d").chmod(0o700)
            (source / "shut").chmod(0o700)
            (dest / "d").chmod(0o700)
            (dest / "shut").chmod(0o700)
    denied = "Permission denied"
    assert sorted(result.skipped, key=str) == [
        Skipped("d/a", denied), Skipped("d/b", denied), Skipped("shut", denied),
    ]  # fmt: skip
    assert sorted(os.listdir(dest / "d")) == ["a", "b"]
    assert os.listdir(dest / "shut") == ["a"]
    assert result.deleted == 1


def test_delete_keeps_the_counterpart_of_a_special_file(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    os.mkfifo(source / "pipe")
    make_tree(dest, {"pipe": b"1", "old": b"2"})
    sync(gateway, source, dest, delete=True)
    assert os.listdir(dest) == ["pipe"]


def test_delete_removes_what_vanished_while_it_was_listed(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a": b"1", "b": b"2"})
    make_tree(dest, {"b": b"2"})

    class Vanishing(RSync):
        def filter(self, path: str) -> bool:
            if os.path.basename(path) == "b" and os.path.exists(path):
                os.unlink(path)
            return True

    rsync = Vanishing(source, verbose=False)
    rsync.add_target(gateway, dest, delete=True)
    rsync.send()
    assert os.listdir(dest) == ["a"]


# one kind in the place of another


def make_obstacles(dest: Path) -> None:
    """Make full and empty directories where a source has files and links."""
    make_tree(dest, dict.fromkeys(("file/x", "link/x", "large/d/x", "second/x"), b"precious"))
    for name in ("none", "none-link"):
        (dest / name).mkdir()
    make_tree(dest, {"d": b"file"})


def make_replacements(source: Path) -> Path:
    make_tree(source, {"file": b"1", "large": bytes(100_000), "none": b"2", "d/x": b"3"})
    (source / "link").symlink_to("file")
    (source / "none-link").symlink_to("file")
    os.link(source / "file", source / "second")
    return source


KEPT = ["file", "large", "link", "second"]
REASON = "a non-empty directory has its name"


def test_without_delete_no_full_directory_goes_for_a_file_or_link(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_obstacles(make_tree(dest, {}))
    make_replacements(source)
    before = snapshot(dest)
    plan = sync(gateway, source, dest, dry_run=True)
    assert snapshot(dest) == before
    assert sorted(plan.planned_deletions) == ["d", "none", "none-link"]
    result = sync(gateway, source, dest)
    for outcome in (plan, result):
        assert sorted(item.path for item in outcome.skipped) == KEPT
        assert {item.reason for item in outcome.skipped} == {REASON}
    after = snapshot(dest).entries
    for name, entry in before.entries.items():
        if name.split(b"/")[0].decode() in KEPT:
            assert after[name][0::3] == entry[0::3]  # kind and content
    assert ((dest / "none").read_bytes(), (dest / "d/x").read_bytes()) == (b"2", b"3")
    assert result.deleted == 3


def test_a_tree_is_not_put_in_place_of_a_file(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a": b"1"})
    dest.write_bytes(b"precious")
    for delete in (False, True):
        with pytest.raises(RSyncError, match="cannot replace a file"):
            sync(gateway, source, dest, delete=delete)
    assert dest.read_bytes() == b"precious"


@pytest.mark.parametrize("delete", [False, True])
def test_a_single_file_goes_into_a_directory(
    sync: Sync, gateway: Gateway, source: Path, dest: Path, delete: bool
) -> None:
    make_tree(source, {"file": b"1"})
    make_tree(dest, {"full/x": b"precious", "taken/file/x": b"precious"})
    (dest / "empty").mkdir()
    (dest / "by-link").symlink_to("full")
    for name in ("full", "empty", "by-link"):
        plan = sync(gateway, source / "file", dest / name, delete=delete, dry_run=True)
        assert plan.planned_deletions == []
        assert sync(gateway, source / "file", dest / name, delete=delete).deleted == 0
    assert sorted(os.listdir(dest / "full")) == ["file", "x"]
    assert os.listdir(dest / "empty") == ["file"]
    result = sync(gateway, source / "file", dest / "taken", delete=delete)
    assert result.deleted == (2 if delete else 0)
    assert (dest / "taken/file").is_dir() is not delete


def test_a_slash_at_the_end_of_a_target_means_a_directory(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"file": b"1"})
    sync(gateway, source / "file", f"{dest}/new/")
    assert (dest / "new/file").read_bytes() == b"1"


def test_deleting_where_the_source_lies_is_refused(
    sync: Sync, gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    make_tree(source, {"a": b"1"})
    with pytest.raises(RSyncError, match="would remove the source"):
        sync(gateway, source, tmp_path, delete=True)
    assert os.listdir(source) == ["a"]
    assert sync(gateway, source, tmp_path).ok


def test_a_dry_run_lists_all_that_delete_would_remove(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(dest, {"a/b/c": b"", "a/d": b"", "e": b""})
    plan = sync(gateway, source, dest, delete=True, dry_run=True)
    assert plan.planned_deletions == ["a/b/c", "a/b", "a/d", "a", "e"]
    assert sync(gateway, source, dest, delete=True).deleted == 5


def make_deep(root: Path, depth: int) -> None:
    """Make directories in each other, deeper than a path can name."""
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("directory", dir_fd=here)
        inner = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_delete_removes_what_is_deeper_than_a_path_can_name(
    sync: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    sync(gateway, source, dest)
    make_deep(dest / "deep", 2000)
    result = sync(gateway, source, dest, delete=True)
    assert (result.deleted, result.skipped, os.listdir(dest)) == (2001, [], [])


# what is left out

RULES = ["- .env", "- *.log", "- cache/"]


class WithoutSecrets(RSync):
    """Leaves out by ``filter`` what the rules do, and must not be asked about what is no path."""

    def filter(self, path: str) -> bool:
        name = os.path.basename(path)
        os.stat(os.path.dirname(path) if self.looks else "/")
        return name != ".env" and not name.endswith(".log") and name != "cache"

    looks = False


def send_with_rules(gateway: Gateway, source: Path, dest: Path, **options: Any) -> Any:
    rsync = RSync(source, verbose=False, rules=RULES)
    rsync.add_target(gateway, dest, **options)
    return rsync.send().targets[0]  # type: ignore[union-attr]


def send_with_filter(gateway: Gateway, source: Path, dest: Path, **options: Any) -> Any:
    rsync = WithoutSecrets(source, verbose=False)
    rsync.add_target(gateway, dest, **options)
    return rsync.send().targets[0]  # type: ignore[union-attr]


def pull_with_rules(gateway: Gateway, source: Path, dest: Path, **options: Any) -> Any:
    return pull(gateway, source, dest, rules=RULES, **options)


WAYS = [send_with_rules, send_with_filter, pull_with_rules]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def leaving_out(request: pytest.FixtureRequest) -> Sync:
    function: Sync = request.param
    return function


def make_excluded(source: Path, dest: Path) -> None:
    make_tree(source, {"a": b"1", ".env": b"mine", "d/x.log": b"mine", "cache/c": b"mine"})
    make_tree(dest, {".env": b"kept", "d/x.log": b"kept", "d/y.log": b"kept", "cache/k": b"kept"})
    make_tree(dest, {"old/deep/.env": b"kept", "old/deep/x": b"goes", "old/cache/k/m": b"kept"})
    make_tree(dest, {"gone/e/x": b"goes"})


def test_delete_leaves_alone_what_is_left_out(
    leaving_out: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_excluded(source, dest)
    plan = leaving_out(gateway, source, dest, delete=True, dry_run=True)
    doomed = ["gone", "gone/e", "gone/e/x", "old/deep/x"]
    assert sorted(plan.planned_deletions) == doomed
    result = leaving_out(gateway, source, dest, delete=True)
    assert (result.deleted, result.ok) == (len(doomed), True)
    kept = {name for name, entry in snapshot(dest).entries.items() if entry[3] == b"kept"}
    assert kept == {
        b".env", b"d/x.log", b"d/y.log", b"cache/k", b"old/deep/.env", b"old/cache/k/m",
    }  # fmt: skip
    assert leaving_out(gateway, source, dest, delete_excluded=True).deleted > 0
    assert sorted(snapshot(dest).entries) == [b".", b"a", b"d"]


def test_a_directory_with_what_is_left_out_does_not_go_for_a_file(
    leaving_out: Sync, gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"file": b"1", "free": b"2"})
    (source / "link").symlink_to("file")
    os.link(source / "file", source / "second")
    for name in ("file", "link", "second"):
        make_tree(dest / name, {"x": b"", "d/.env": b"kept"})
    make_tree(dest / "free", {"d/x": b""})
    reason = "a directory that holds excluded entries has its name"
    for dry_run in (True, False):
        result = leaving_out(gateway, source, dest, delete=True, dry_run=dry_run)
        assert sorted(item.path for item in result.skipped) == ["file", "link", "second"]
        assert {item.reason for item in result.skipped} == {reason}
    assert (dest / "free").read_bytes() == b"2"
    for name in ("file", "link", "second"):
        assert (dest / name / "d/.env").read_bytes() == b"kept"
        assert (dest / name / "x").exists()


def test_what_a_filter_cannot_judge_for_want_of_the_file_stays(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"a": b"1"})
    make_tree(dest, {"old/x": b"1", "b": b"2"})
    rsync = WithoutSecrets(source, verbose=False)
    rsync.looks = True
    rsync.add_target(gateway, dest, delete=True)
    rsync.send()
    assert sorted(path.name for path in dest.rglob("*")) == ["a", "old", "x"]


def test_rules_choose_what_is_sent_and_pulled(
    gateway: Gateway, source: Path, dest: Path, tmp_path: Path
) -> None:
    make_excluded(source, tmp_path / "unused")
    for way in WAYS:
        way(gateway, source, dest / way.__name__)
        assert sorted(snapshot(dest / way.__name__).entries) == [b".", b"a", b"d"]


def test_a_target_without_links_gets_no_copy_of_what_rules_leave_out(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"cache/c": b"1", ".env": b"2"})
    (source / "one").symlink_to("cache")
    (source / "two").symlink_to(".env")
    gateway.remote_exec("import os; del os.symlink").waitclose()
    result = send_with_rules(gateway, source, dest)
    assert os.listdir(dest) == []
    assert sorted(item.path for item in result.skipped) == ["one", "two"]


def test_names_that_are_left_out_are_told_only_to_who_would_delete_them(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    from execnet._rsync.far.tree import Tree

    make_tree(source, {"a": b"1", "secret-name": b"2"})
    for tells, count in [(False, 0), (True, 1)]:
        tree = Tree(os.fsencode(source), lambda path: path == b"a", lambda *_: None)
        tree.tells_left_out = tells
        assert str(list(tree.walk())).count("secret-name") == count


# few descriptors


@pytest.mark.parametrize(("limit", "targets"), [(64, 1), (256, 5)])
def test_few_descriptors_are_enough(tmp_path: Path, limit: int, targets: int) -> None:
    make_tree(tmp_path / "source", {f"d{n}/e{m}/f": b"1" for n in range(9) for m in range(9)})
    make_tree(tmp_path / "source", {f"large/{n}": bytes(SMALL_MAX * 2) for n in range(12)})
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(limit), str(targets)], cwd=tmp_path,
        capture_output=True, text=True, env=clean_environment(),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True True\n" * 2, "")
    for place in ["back", *[f"dest{n}" for n in range(targets)]]:
        assert_same(tmp_path / "source", tmp_path / place)


FEW_DESCRIPTORS = """
import resource, sys
limit, targets = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
import execnet
gateways = [execnet.makegateway() for _ in range(targets)]
for content in [None, bytes(100_000)]:
    for number in range(12 if content else 0):
        with open(f"source/large/{number}", "wb") as file:
            file.write(content)
    rsync = execnet.RSync("source", verbose=False)
    for number, gateway in enumerate(gateways):
        rsync.add_target(gateway, f"dest{number}", delete=True)
    print(rsync.send().ok, execnet.RSync.pull(gateways[0], "source", "back", delete=True).ok)
"""


# temporary files of others


def test_a_run_in_another_pid_namespace_keeps_its_temporary_files(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from execnet._rsync.far import temps as t; "
    )
    code += "print(t.host_tag().decode())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        missing(f"a pid namespace: {done.stderr}")
    name = f"{os.fsdecode(PREFIX)}{done.stdout.strip()}-{2**22 + 5}-1"
    make_tree(dest, {name: b"coming", f"d/{name}": b"coming"})
    make_tree(source, {"d/a": b""})
    send(gateway, source, dest)
    assert done.stdout.strip() != temps.host_tag().decode()
    assert sorted(os.listdir(dest)) == sorted([name, "d"])
    assert sorted(os.listdir(dest / "d")) == sorted([name, "a"])


# names that are no UTF-8


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_of_any_bytes_can_be_printed(
    gateway: Gateway, source: Path, dest: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"b\xff", b"caf\xc3\xa9", b"red\x1b[31m", b"two\nlines"]
    for name in names:
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(b"1")
    os.mkfifo(os.fsencode(source) + b"/pipe\x1b\xff")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    rsync = RSync(source)
    rsync.add_target(gateway, dest)
    rsync.send()
    sys.stdout.flush()
    text = written.getvalue()
    monkeypatch.undo()
    assert sorted(os.listdir(os.fsencode(dest))) == names
    assert rb"<= b\xff" in text
    assert rb"<= red\x1b[31m" in text
    assert rb"<= two\nlines" in text
    assert rb"skipped pipe\x1b\xff: is a FIFO" in text
    assert text.count(b"\n") == len(names) + 1


# a source that goes


@pytest.mark.parametrize("when", ["status_of", "names", "small", "large"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_source_that_vanishes_is_one_error(
    gateway: Gateway, source: Path, dest: Path, when: str, replaced: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_tree(source, {f"{n}": bytes(100_000 if when == "large" else 10) for n in range(300)})
    make_tree(dest, {"kept": b""})
    homes = {"status_of": rsync_far_tree, "names": Folders}
    home = homes.get(when, rsync_far_tree.Entries)
    name = "open" if when in ("small", "large") else when
    function = getattr(home, name)

    def vanish(*args: Any) -> Any:
        if not source.with_name("gone").exists():
            source.rename(source.with_name("gone"))
            if replaced:
                source.mkdir()
        return function(*args)

    monkeypatch.setattr(home, name, vanish)
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, dest, delete=True)
    with pytest.raises(RSyncError, match="source: the source has vanished"):
        rsync.send()
    assert rsync.result is not None
    assert rsync.result.targets[0].skipped == []
    assert (dest / "kept").exists() or when != "names"  # all that was in it was announced


@pytest.mark.parametrize("when", ["list", "content"])
def test_a_source_that_vanishes_at_a_worker_is_one_error(
    gateway: Gateway, source: Path, dest: Path, when: str
) -> None:
    make_tree(source, {f"{n}": b"1" for n in range(300)})
    gateway.remote_exec(
        f"""
        import os, shutil
        gone, function = [], "{"lstat" if when == "list" else "open"}"
        keep = getattr(os, function)
        def vanish(path, *args, **kwargs):
            if kwargs.get("dir_fd") is not None and not gone:
                gone.append(path)
                shutil.rmtree({str(source)!r})
            return keep(path, *args, **kwargs)
        setattr(os, function, vanish)
        os.supports_dir_fd.add(vanish)
        """
    ).waitclose()
    with pytest.raises(RSyncError, match="source: the source has vanished"):
        pull(gateway, source, dest, delete=True)
    assert os.listdir(dest) == []


# homes


@pytest.mark.parametrize("path", ["~", "~/x", "~root/x", Path("~/x")])
def test_a_home_is_refused_with_a_hint(
    gateway: Gateway, source: Path, dest: Path, path: Any
) -> None:
    rsync = RSync(source)
    with pytest.raises(ValueError, match="expanduser"):
        rsync.add_target(gateway, path)
    with pytest.raises(ValueError, match="expanduser"):
        pull(gateway, source, path)
    with pytest.raises(ValueError, match="expanduser"):
        pull(gateway, path, dest)


def test_expanduser_is_the_home_of_the_worker(
    gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    make_tree(source, {"a": b"1"})
    home = str(tmp_path / "home")
    gateway.remote_exec(f"import os; os.environ['HOME'] = {home!r}").waitclose()
    assert send(gateway, source, "~/in", expanduser=True).ok
    assert_same(source, tmp_path / "home/in")
    with pytest.raises(RSyncError, match="no such home"):
        send(gateway, source, "~nobody-of-that-name/x", expanduser=True)


# a file that grows


@pytest.mark.parametrize("there", ["nothing", "another", "the same"])
@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_file_that_is_appended_to_is_copied_as_it_was_and_reported(
    gateway: Gateway, source: Path, dest: Path, size: int, there: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    content = os.urandom(size)
    make_tree(source, {"log": content})
    if there != "nothing":
        make_tree(dest, {"log": os.urandom(size) if there == "another" else content})
        os.utime(dest / "log", (1, 1))

    def growing(function: Any) -> Any:
        def grow(*args: Any) -> Any:
            found = function(*args)
            with open(source / "log", "ab") as file:
                file.write(b"another line")
            return found

        return grow

    monkeypatch.setattr(sending, "read_exactly", growing(sending.read_exactly))
    monkeypatch.setattr(rsync_far_tree.Entries, "_is_as_listed", growing(lambda *_: False))
    result = send(gateway, source, dest)
    copied = (dest / "log").read_bytes()
    assert copied == content[: len(copied)] or copied[:size] == content
    assert len(copied) >= size
    reason = "grew while it was read; the copy has its content from before"
    assert result.skipped == [Skipped("log", reason)]
    monkeypatch.undo()
    assert send(gateway, source, dest).ok
    assert_same(source, dest)


def test_a_file_that_is_appended_to_at_a_worker_is_copied_and_reported(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(source, {"log": bytes(3 << 20)})
    gateway.remote_exec(
        f"""
        import os
        read = os.read
        def read_and_grow(fd, size):
            data = read(fd, size)
            if size > 100000:
                with open({str(source / "log")!r}, "ab") as file:
                    file.write(b"x")
            return data
        os.read = read_and_grow
        """
    ).waitclose()
    [skipped] = pull(gateway, source, dest).skipped
    assert (skipped.path, "grew" in skipped.reason) == ("log", True)
    assert (dest / "log").read_bytes() == bytes(3 << 20)
