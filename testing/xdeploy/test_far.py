"""The far side's parts alone: locks, commands, wheels, what it reaches."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from processes import state_of
from tools import BOUND_S, Task, wait_until
from wheels import make_wheel

from execnet._ship.parts import with_imports
from execnet._via import far_ends
from execnet._xdeploy.far import flocks, locks, reach, start, wheels
from execnet._xdeploy.far.commands import Commands, Failure
from execnet.gateway_base import get_execmodel


def nothing(*_: object) -> None:
    pass


class TestLocks:
    def lock(self, path: Path, seconds: float = BOUND_S, on_wait: Any = nothing) -> locks.Lock:
        return locks.Lock(str(path), time.time() + seconds, on_wait, nothing)

    @pytest.fixture(params=["flock", "folder"])
    def kind(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        if request.param == "folder":

            def refuse(*_: object) -> None:
                raise OSError(errno.ENOLCK, "no locks here")

            monkeypatch.setattr(flocks.fcntl, "flock", refuse)
        kind: str = request.param
        return kind

    def test_one_waits_for_the_other_and_says_for_whom(self, kind: str, tmp_path: Path) -> None:
        path, waits = tmp_path / "lock", threading.Event()
        told: list[str] = []

        def wait() -> None:
            with self.lock(path, on_wait=lambda who: (told.append(who), waits.set())):
                pass

        with self.lock(path):
            task = Task(get_execmodel("thread"), wait)
            assert waits.wait(BOUND_S)
        task.result()
        assert told[-1] == f"process {os.getpid()} on {socket.gethostname()}"
        with self.lock(path):
            pass

    def test_waiting_is_bounded(self, kind: str, tmp_path: Path) -> None:
        busy = pytest.raises(flocks.Busy, match=str(os.getpid()))
        with self.lock(tmp_path / "lock"), busy, self.lock(tmp_path / "lock", seconds=0):
            pass

    @pytest.mark.parametrize(
        ("host", "boot", "pid", "age_s", "is_left"),
        [
            ("", "", "999999999", 0, True),
            ("", "", "1", 1000, False),
            ("elsewhere", "-", "1", 0, False),
            ("elsewhere", "-", "1", 1000, True),
        ],
    )
    def test_what_an_ended_maker_left_is_taken_over(
        self, tmp_path: Path, host: str, boot: str, pid: str, age_s: float, is_left: bool
    ) -> None:
        folder = tmp_path / "lock.d"
        folder.mkdir()
        owner = [host or socket.gethostname(), boot or locks.boot_id(), pid]
        (folder / "owner").write_text(" ".join(owner))
        os.utime(folder, (time.time() - age_s,) * 2)
        taken = locks.take_folder(str(folder))
        assert (taken is not None) == is_left
        if taken is not None:
            taken.release()
        assert folder.exists() != is_left

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux's /proc tells")
    def test_a_maker_that_waits_for_its_parent_to_take_note_has_ended(self, tmp_path: Path) -> None:
        folder = tmp_path / "lock.d"
        folder.mkdir()
        zombie = subprocess.Popen([sys.executable, "-c", ""])
        wait_until(lambda: state_of(zombie.pid) == "Z")
        (folder / "owner").write_text(f"{socket.gethostname()} {locks.boot_id()} {zombie.pid}")
        taken = locks.take_folder(str(folder))
        zombie.wait()
        assert taken is not None
        taken.release()

    def test_one_that_can_not_say_who_it_is_leaves_nothing(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full() -> str:
            raise OSError(errno.ENOSPC, "no space left")

        with monkeypatch.context() as patch:
            patch.setattr(locks, "identity", full)
            try:
                with self.lock(tmp_path / "lock"):
                    pass
            except OSError:
                assert kind == "folder"
        with self.lock(tmp_path / "lock", seconds=0):
            pass

    def test_a_file_that_was_removed_is_no_lock(self, tmp_path: Path) -> None:
        path = str(tmp_path / "held")
        first = flocks.exclusive(path)
        os.unlink(path)
        second = flocks.exclusive(path)
        assert not os.path.samestat(os.fstat(first), os.fstat(second))
        os.close(first)
        os.close(second)


class Lines:
    """Stands in for the channel that lines go to."""

    def __init__(self) -> None:
        self.closed = False
        self.items: list[Any] = []

    def send(self, item: Any) -> None:
        self.items.append(item)

    def isclosed(self) -> bool:
        return self.closed


class TestCommands:
    def run(self, lines: Lines, code: str, seconds: float = BOUND_S) -> list[str]:
        commands = Commands(lines, time.time() + seconds, "/nowhere")
        commands.begin("testing")
        environ = commands.environ("/nowhere", {"A": "b"})
        found: list[str] = commands.run([sys.executable, "-c", code], environ)
        return found

    def test_lines_come_whatever_they_are_made_of(self) -> None:
        lines = Lines()
        code = "import os; os.write(1, b'a\\r\\n\\xff' + b'x' * 99999 + b'\\n'); os.write(2, b'b')"
        assert [len(line) for line in self.run(lines, code)] == [1, 1 << 14, 1]
        assert lines.items[0] == ("step", "testing")

    def test_a_failure_has_the_last_of_them(self) -> None:
        code = "for n in range(300): print(n)\nraise SystemExit(3)"
        with pytest.raises(Failure) as caught:
            self.run(Lines(), code)
        failure = caught.value
        assert (failure.step, failure.status) == ("testing", 3)
        assert failure.lines == [str(n) for n in range(200, 300)]

    def test_what_it_started_ends_with_it(self) -> None:
        code = "import os, time\nif os.fork(): os._exit(0)\ntime.sleep(600)"
        assert self.run(Lines(), code) == []

    @pytest.mark.parametrize("why", ["late", "not wanted"])
    def test_it_is_killed_when(self, why: str, tmp_path: Path) -> None:
        lines = Lines()
        code = f"open({str(tmp_path / 'on')!r}, 'w').close()\nimport time; time.sleep(600)"

        def close() -> None:
            wait_until((tmp_path / "on").exists, BOUND_S)
            lines.closed = True

        thread = threading.Thread(target=close)
        if why == "not wanted":
            thread.start()
        with pytest.raises((Failure, EOFError), match=r"too long|nobody waits"):
            self.run(lines, code, seconds=0.3 if why == "late" else BOUND_S)
        if why == "not wanted":
            thread.join()


class TestWheels:
    @pytest.mark.parametrize(
        "name",
        ["../x", "/etc/x", "a/../../x", "a//b", "./x", "a\\b", "C:x", "a\nb", "\x1b[2J", ""],
    )
    def test_a_hostile_name_is_refused(self, name: str) -> None:
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        with pytest.raises(Failure, match="hostile name"):
            wheels.check(entry)

    def test_a_link_is_refused(self) -> None:
        entry = zipfile.ZipInfo("x")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with pytest.raises(Failure, match="hostile name"):
            wheels.check(entry)

    @pytest.mark.parametrize(
        ("files", "is_pure", "why"),
        [
            ({}, False, "not a pure wheel"),
            ({"sid-1.0.data/scripts/x": ""}, True, "needs an installer"),
            ({"other-1.dist-info/METADATA": ""}, True, "not a wheel"),
        ],
    )
    def test_what_needs_an_installer_is_refused(
        self, tmp_path: Path, files: dict[str, str], is_pure: bool, why: str
    ) -> None:
        wheel = make_wheel(tmp_path, "sid", files=files, is_pure=is_pure)
        with pytest.raises(Failure, match=why):
            wheels.unpack(str(wheel), str(tmp_path / "p"), str(tmp_path), "python")

    def test_two_packages_do_not_share_a_file(self, tmp_path: Path) -> None:
        wheel = str(make_wheel(tmp_path, "sid"))
        wheels.unpack(wheel, str(tmp_path / "p"), str(tmp_path), "python")
        with pytest.raises(Failure, match="two packages"):
            wheels.unpack(wheel, str(tmp_path / "p"), str(tmp_path), "python")


def test_an_index_is_reached_if_something_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach.reaches(f"http://127.0.0.1:{port}/simple/", "")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert reach.reaches("https://nowhere.invalid/simple/", "")
        monkeypatch.setenv("no_proxy", ".invalid")
        assert not reach.reaches("https://nowhere.invalid/simple/", "")
    assert not reach.reaches(f"http://127.0.0.1:{port}/simple/", "")


def test_what_forwards_is_loaded_after_what_it_imports() -> None:
    assert [f"_via.{name}" for name in start.FORWARDS] == with_imports("_via.far")


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs POSIX")
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_status_that_can_not_be_had_is_none(is_taken: bool) -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    child = start.Child(far_ends, pid, -1, -1)
    if is_taken:
        os.waitpid(pid, 0)
    assert child.status() == (None if is_taken else 3)
