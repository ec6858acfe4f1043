"""``execnet.RSync`` as its users know it, and what ``send`` returns."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import assert_same, forbid_links, make_tree, send
from tools import MakeGateway

from execnet import Gateway, Group, RemoteError, RSync
from execnet._rsync.result import RSyncError, Skipped

FILES = {"a": b"hello", "d/b": b"x" * 100, "d/e/c": b""}


class Recorder:
    """A ``callback`` that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.channels: set[Any] = set()
        self.threads: set[int] = set()

    def __call__(self, event: str, size: int, channel: Any) -> None:
        self.calls.append((event, size))
        self.channels.add(channel)
        self.threads.add(threading.get_ident())


def test_a_tree_arrives_with_modes_and_times(gateway: Gateway, source: Path, dest: Path) -> None:
    (source / "a").chmod(0o640)
    (source / "d").chmod(0o700)
    os.utime(source / "d/b", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "d/e", ns=(1, 987_654_321))
    result = send(gateway, source, dest)
    assert_same(source, dest)
    assert result.ok
    assert (result.files_sent, result.bytes_sent) == (3, 105)


def test_directories_above_the_target_are_made(gateway: Gateway, source: Path, dest: Path) -> None:
    send(gateway, source, dest / "x/y")
    assert_same(source, dest / "x/y")


def test_a_relative_target_is_below_the_workers_directory(
    makegateway: MakeGateway, source: Path, dest: Path
) -> None:
    dest.mkdir()
    send(makegateway(f"popen//chdir={dest}"), source, "inner")
    assert_same(source, dest / "inner")


def test_a_second_run_sends_nothing(gateway: Gateway, source: Path, dest: Path) -> None:
    send(gateway, source, dest)
    again = send(gateway, source, dest)
    assert (again.files_sent, again.bytes_sent, again.settled) == (0, 0, 0)
    assert again.unchanged == len(FILES)


def test_callback_gets_the_list_first_and_then_an_ack_for_each_file(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    record = Recorder()
    rsync = RSync(source, callback=record, verbose=False)
    rsync.add_target(gateway, dest)
    rsync.send()
    assert record.calls[0] == ("list", 105)
    assert sorted(record.calls[1:]) == [("ack", 0), ("ack", 5), ("ack", 100)]
    assert [channel.gateway for channel in record.channels] == [gateway]
    assert record.threads == {threading.get_ident()}


def test_a_touched_file_has_only_its_time_set(gateway: Gateway, source: Path, dest: Path) -> None:
    send(gateway, source, dest)
    inode = (dest / "a").stat().st_ino
    os.utime(source / "a", (5, 5))
    record = Recorder()
    rsync = RSync(source, callback=record, verbose=False)
    rsync.add_target(gateway, dest)
    result = rsync.send()
    assert result is not None
    assert (result.targets[0].files_sent, result.targets[0].settled) == (0, 1)
    assert record.calls == [("list", 5), ("ack", 5)]
    assert (dest / "a").stat().st_ino == inode
    assert_same(source, dest)


def test_a_file_of_the_same_size_and_time_is_not_read(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    send(gateway, source, dest)
    before = (source / "a").stat().st_mtime_ns
    (source / "a").write_bytes(b"HELLO")
    os.utime(source / "a", ns=(before, before))
    send(gateway, source, dest)
    assert (dest / "a").read_bytes() == b"hello"


def test_delete_removes_what_the_source_does_not_have(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    make_tree(dest, {"extra": b"1", "d/old/deep/file": b"2", "d/e/more": b"3"})
    send(gateway, source, dest)
    assert (dest / "extra").exists()
    result = send(gateway, source, dest, delete=True)
    assert result.deleted == 5
    assert_same(source, dest)


def test_an_unknown_option_is_a_type_error(gateway: Gateway, source: Path, dest: Path) -> None:
    with pytest.raises(TypeError, match=r"add_target.* unknown options: delet$"):
        RSync(source).add_target(gateway, dest, delet=True)


def test_without_targets_send_raises_oserror_unless_told_not_to(source: Path) -> None:
    with pytest.raises(OSError, match="no targets"):
        RSync(source).send()
    assert RSync(source).send(raises=False) is None


def test_targets_are_gone_after_send(gateway: Gateway, source: Path, dest: Path) -> None:
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, dest)
    rsync.send()
    with pytest.raises(OSError, match="no targets"):
        rsync.send()


def test_a_source_that_is_not_there_is_an_error_that_names_it(
    gateway: Gateway, tmp_path: Path, dest: Path
) -> None:
    rsync = RSync(tmp_path / "nowhere", verbose=False)
    rsync.add_target(gateway, dest)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rsync.send()
    assert not dest.exists()


def test_finishedcallback_is_called_once_when_a_target_is_done(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    done: list[int] = []
    rsync = RSync(source, verbose=False)
    rsync.add_target(
        gateway, dest, finishedcallback=lambda: done.append(len(list(dest.rglob("*"))))
    )
    rsync.send()
    assert done == [5]


def test_verbose_prints_what_is_sent(
    gateway: Gateway, source: Path, dest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rsync = RSync(source)
    rsync.add_target(gateway, dest)
    rsync.send()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" <= ")[2] for line in lines] == ["a", "d/b", "d/e/c"]
    assert all(line.startswith("<Gateway id='gw0'") for line in lines)


def test_filter_gets_paths_below_the_source_and_leaves_out_what_it_refuses(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    seen: list[str] = []

    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            seen.append(path)
            return not path.endswith("/e")

    rsync = Filtered(source, verbose=False)
    rsync.add_target(gateway, dest)
    rsync.send()
    assert sorted(seen) == [f"{source}/{name}" for name in ("a", "d", "d/b", "d/e")]
    assert not (dest / "d/e").exists()
    assert (dest / "d/b").exists()


def test_a_class_like_that_of_xdist_works(gateway: Gateway, source: Path, dest: Path) -> None:
    class HostRSync(RSync):
        def __init__(self, sourcedir: Path, *, ignores: Any = None, **kwargs: Any) -> None:
            self.ignores = ignores or []
            self.reports: list[tuple[str, str]] = []
            super().__init__(sourcedir=Path(sourcedir), **kwargs)

        def filter(self, path: str) -> bool:
            return Path(path).name not in self.ignores

        def add_target_host(self, gateway: Gateway, finished: Any = None) -> None:
            remotepath = dest / os.path.basename(self._sourcedir)
            super().add_target(gateway, remotepath, finishedcallback=finished, delete=True)

        def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
            if self._verbose > 0:
                path = os.path.basename(self._sourcedir) + "/" + modified_rel_path
                self.reports.append((gateway.spec._spec, path))

    rsync = HostRSync(source, ignores=["b"], verbose=True)
    done: list[bool] = []
    rsync.add_target_host(gateway, lambda: done.append(True))
    rsync.send()
    assert done == [True]
    assert rsync.reports == [("popen", "source/a"), ("popen", "source/d/e/c")]
    assert sorted(path.name for path in dest.rglob("*")) == ["a", "c", "d", "e", "source"]


def test_one_run_serves_several_targets(makegateway: MakeGateway, source: Path, dest: Path) -> None:
    gateways = [makegateway() for _ in range(3)]
    rsync = RSync(source, verbose=False)
    for gateway in gateways:
        rsync.add_target(gateway, dest / gateway.id)
    rsync.add_target(gateways[0], dest / "second")
    result = rsync.send()
    assert result is not None
    assert result.ok
    assert [target.gateway for target in result.targets] == [*gateways, gateways[0]]
    for name in ("gw0", "gw1", "gw2", "second"):
        assert_same(source, dest / name)


def test_a_target_that_fails_does_not_keep_others_from_the_source(
    makegateway: MakeGateway, source: Path, dest: Path
) -> None:
    good, bad = makegateway(), makegateway()
    rsync = RSync(source, verbose=False)
    rsync.add_target(bad, "/dev/null/nowhere")
    rsync.add_target(good, dest)
    with pytest.raises(RSyncError, match=r"gw1:/dev/null/nowhere: Not a directory"):
        rsync.send()
    assert rsync.result is not None
    assert [target.ok for target in rsync.result.targets] == [False, True]
    assert_same(source, dest)


def test_a_worker_that_dies_is_an_eoferror_and_the_gateways_own(
    makegateway: MakeGateway, source: Path, dest: Path
) -> None:
    gateway = makegateway()
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, dest)
    gateway._io.kill()
    with pytest.raises(EOFError):
        rsync.send()


def test_an_error_of_a_callback_ends_the_run_and_reaches_the_caller(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    def callback(*args: Any) -> None:
        raise ZeroDivisionError("mine")

    rsync = RSync(source, callback=callback, verbose=False)
    rsync.add_target(gateway, dest)
    with pytest.raises(ZeroDivisionError, match="mine"):
        rsync.send()
    assert gateway.remote_exec("channel.send(1)").receive() == 1


def test_an_error_of_filter_ends_the_run_and_reaches_the_caller(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    class Broken(RSync):
        def filter(self, path: str) -> bool:
            raise ZeroDivisionError("mine")

    rsync = Broken(source, verbose=False)
    rsync.add_target(gateway, dest)
    with pytest.raises(ZeroDivisionError, match="mine"):
        rsync.send()


def test_a_dry_run_changes_nothing_and_says_what_would_be(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    plan = send(gateway, source, dest, dry_run=True)
    assert not dest.exists()
    assert plan.planned == ["a", "d", "d/b", "d/e", "d/e/c"]
    send(gateway, source, dest)
    (source / "a").write_bytes(b"other")
    make_tree(dest, {"old/x": b""})
    before = sorted(dest.rglob("*"))
    plan = send(gateway, source, dest, dry_run=True, delete=True)
    assert (plan.planned, plan.planned_deletions) == (["a"], ["old/x", "old"])
    assert sorted(dest.rglob("*")) == before
    assert (dest / "a").read_bytes() == b"hello"


def test_progress_ends_with_all_done(gateway: Gateway, source: Path, dest: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    (source / "large").write_bytes(bytes(3 << 20))
    rsync = RSync(source, verbose=False, progress=lambda *args: calls.append(args))
    rsync.add_target(gateway, dest)
    rsync.send()
    assert calls[-1][:2] == ((3 << 20) + 105, (3 << 20) + 105)
    assert all(done <= total for total, done, _ in calls)
    assert {current for _, _, current in calls} <= {*FILES, "large"}


def test_the_result_counts_what_was_done(gateway: Gateway, source: Path, dest: Path) -> None:
    send(gateway, source, dest)
    (source / "a").write_bytes(b"longer")
    os.utime(source / "d/b", (7, 7))
    os.mkfifo(source / "fifo")
    make_tree(dest, {"extra": b""})
    result = send(gateway, source, dest, delete=True)
    assert (result.files_sent, result.bytes_sent, result.settled) == (1, 6, 1)
    assert (result.unchanged, result.deleted) == (1, 1)
    assert result.skipped == [Skipped("fifo", "is a FIFO, left out")]
    assert result.seconds > 0
    assert not result.ok


def test_code_that_fails_in_the_worker_is_a_remote_error(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    gateway.remote_exec("import os; os.listdir = None").waitclose()
    dest.mkdir()
    rsync = RSync(source, verbose=False)
    rsync.add_target(gateway, dest)
    with pytest.raises(RemoteError, match=r"far/target\.py"):
        rsync.send()


def test_every_execution_model_can_send_and_pull(
    execmodel: Any, group: Group, source: Path, dest: Path
) -> None:
    group.set_execmodel(execmodel.backend, "main_thread_only")
    gateway = group.makegateway("popen")
    for number in range(5):  # one right after the other, to a worker that does one at a time
        assert send(gateway, source, dest / f"to{number}").ok
        assert RSync.pull(gateway, dest / f"to{number}", dest / f"back{number}").ok
        assert_same(source, dest / f"back{number}")


def test_a_worker_keeps_what_it_needs_for_the_next_run(
    gateway: Gateway, source: Path, dest: Path
) -> None:
    which = "import sys; channel.send(id(sys.modules['execnet._rsync.far.target']))"
    send(gateway, source, dest)
    first = gateway.remote_exec(which).receive()
    send(gateway, source, dest)
    assert gateway.remote_exec(which).receive() == first


def test_two_runs_can_begin_at_once_in_one_worker(
    gateway: Gateway, source: Path, tmp_path: Path
) -> None:
    rsync = RSync(source, verbose=False)
    dests = [tmp_path / f"dest{number}" for number in range(8)]
    for dest in dests:
        rsync.add_target(gateway, dest)
    rsync.send()
    for dest in dests:
        assert_same(source, dest)


# libffi, which is there once ``ctypes`` is used, may keep its own file open to map it again.
COUNT_DESCRIPTORS = """
import os
links = []
for name in os.listdir("/dev/fd"):
    try:
        links.append(os.readlink("/dev/fd/" + name))
    except OSError:  # the listing's own, or no link
        links.append("")
channel.send(sum("/libffi.so." not in link for link in links))
"""


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="counts descriptors")
@pytest.mark.parametrize("way", ["send", "pull"])
def test_the_worker_holds_nothing_when_the_call_returns(
    gateway: Gateway, source: Path, dest: Path, way: str
) -> None:
    slow = "import os, time; close = os.close; os.close = lambda fd: (time.sleep(0.05), close(fd))"
    gateway.remote_exec(slow).waitclose()
    before = gateway.remote_exec(COUNT_DESCRIPTORS).receive()
    if way == "send":
        send(gateway, source, dest)
    else:
        RSync.pull(gateway, source, dest)
    assert gateway.remote_exec(COUNT_DESCRIPTORS).receive() == before


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("asks", [True, False])
def test_a_target_inside_of_the_source_is_not_deleted_at_another_one(
    makegateway: MakeGateway, source: Path, dest: Path, is_there: bool, asks: bool
) -> None:
    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            return not path.endswith("never")

    gateway = makegateway(f"popen//chdir={source}")
    make_tree(dest, {"d/copy/keep": b"1", "d/old": b"2", "copy": b"3"})
    if is_there:
        (source / "d/copy").mkdir()
    rsync = (Filtered if asks else RSync)(source, verbose=False)
    rsync.add_target(gateway, "d/copy")
    rsync.add_target(makegateway(), dest, delete=True)
    result = rsync.send()
    assert result is not None
    assert result.ok
    found = {str(path.relative_to(dest)) for path in dest.rglob("*")}
    assert found == {"a", "d", "d/b", "d/copy", "d/copy/keep", "d/e", "d/e/c"}


@pytest.mark.parametrize("excludes", ["by rule", "by filter"])
def test_a_target_inside_of_the_source_that_is_excluded_goes_with_what_is_excluded(
    makegateway: MakeGateway, source: Path, dest: Path, excludes: str
) -> None:
    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            return excludes == "by rule" or not path.endswith("copy")

    gateway = makegateway(f"popen//chdir={source}")
    make_tree(dest, {"copy/old": b"1"})
    make_tree(source, {"copy/x": b"1"})
    rules = ["- copy/"] if excludes == "by rule" else []
    rsync = Filtered(source, verbose=False, rules=rules)
    rsync.add_target(gateway, "copy")
    rsync.add_target(makegateway(), dest, delete_excluded=True)
    rsync.send()
    assert sorted(os.listdir(dest)) == ["a", "d"]


def test_a_target_inside_of_the_source_is_not_copied_through_a_link(
    makegateway: MakeGateway, source: Path
) -> None:
    gateway = makegateway(f"popen//chdir={source}")
    forbid_links(gateway)
    (source / "copy").mkdir()
    (source / "l").symlink_to("copy")
    result = send(gateway, source, "copy")
    assert [skipped.path for skipped in result.skipped] == ["l"]
    assert sorted(os.listdir(source / "copy")) == ["a", "d"]


@pytest.mark.parametrize("way", ["send", "pull"])
def test_a_target_inside_of_the_source_is_left_out_of_it(
    makegateway: MakeGateway, source: Path, way: str
) -> None:
    gateway = makegateway(f"popen//chdir={source}")
    for _ in range(2):
        if way == "send":
            send(gateway, source, "d/copy")
        else:
            RSync.pull(gateway, source, source / "d/copy")
        found = sorted(str(path.relative_to(source)) for path in source.rglob("*"))
        assert found == [
            *("a", "d", "d/b", "d/copy", "d/copy/a", "d/copy/d", "d/copy/d/b"),
            *("d/copy/d/e", "d/copy/d/e/c", "d/e", "d/e/c"),
        ]
