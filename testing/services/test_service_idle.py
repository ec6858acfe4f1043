"""When a service ends by itself, and what it does so that it is found: its clock is set forward."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("there are no services there", allow_module_level=True)

from execnet._service import far, far_find

DAY_S = 86400.0


class Still:
    """A service in this process, of which nothing runs but what a test calls; it has the lock."""

    def __init__(self, folder: Path, idle_s: float) -> None:
        far_find.be_private(str(folder))
        self.folder = folder
        self.now = far.clock()
        lock = far_find.try_lock(str(folder))
        options = {"name": "work", "folder": str(folder), "port": None, "idle": idle_s}
        self.service = far.Service(options | {"lock": lock, "version": "3", "python": "python"})
        self.service._write_record()
        self._fds = [lock, self.service._log._fd]
        for wakes in "woken", "wakes", "main_woken", "main_wakes":
            self._fds.append(getattr(self.service, f"_{wakes}"))

    def ends_after(self, seconds: float) -> bool:
        """Whether it ends by itself when so much more time has passed."""
        self.now += seconds
        self.service._look()
        return self.service._is_stopping

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def still(
    nothing_is_left: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], Still]]:
    """Return a function that makes a service with a number of idle seconds."""
    made: list[Still] = []

    def make(idle_s: float) -> Still:
        made.append(Still(tmp_path / "service", idle_s))
        monkeypatch.setattr(far, "clock", lambda: made[0].now)
        return made[0]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("use", ["a connection", "running code", "a kept connection"])
def test_a_used_service_stays(
    still: Callable[[float], Still], monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    one = still(10)
    uses: dict[str, Callable[[], None]] = {
        "a connection": lambda: setattr(one.service, "_connections", 1),
        "running code": lambda: monkeypatch.setitem(one.service.running, 1, Any),
        "a kept connection": lambda: monkeypatch.setitem(far.kept, "host", {}),
    }
    assert one.service._pause_s() < 11
    uses[use]()
    assert one.service._pause_s() == far.LOOK_S
    assert not one.ends_after(11)
    assert not one.ends_after(11)
    one.service._connections = 0
    one.service.running.clear()
    far.kept.clear()
    assert not one.ends_after(9)
    assert one.ends_after(2)


def test_with_an_idle_time_of_0_it_stays_for_ever(still: Callable[[float], Still]) -> None:
    one = still(0)
    assert one.service._pause_s() == far.LOOK_S
    assert not one.ends_after(1000 * DAY_S)


def test_once_a_day_it_touches_its_files(still: Callable[[float], Still]) -> None:
    one = still(0)
    paths = [one.folder / name for name in ("record", "lock", "log")]
    for path in paths:
        os.utime(path, (0, 0))
    assert not one.ends_after(0.9 * DAY_S)
    assert [path.stat().st_mtime for path in paths] == [0] * 3
    assert not one.ends_after(0.2 * DAY_S)
    assert min(path.stat().st_mtime for path in paths) > time.time() - 1000


@pytest.mark.parametrize("gone", ["record", "lock", "socket"])
def test_without_a_file_by_which_it_is_found_it_ends(
    still: Callable[[float], Still], gone: str
) -> None:
    one = still(0)
    one.service._listen().close()
    assert not one.ends_after(far.LOOK_S)
    (one.folder / gone).unlink()
    assert one.ends_after(far.LOOK_S)


def test_it_stays_when_its_code_has_used_up_all_descriptors(
    still: Callable[[float], Still], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = still(0)
    monkeypatch.setattr(far_find, "record_of", lambda folder: {})  # as it can't be opened
    assert not one.ends_after(far.LOOK_S)


def test_at_its_end_it_removes_what_is_its_own(still: Callable[[float], Still]) -> None:
    one = still(0)
    one.service._listen().close()
    assert {"record", "socket"} < {path.name for path in one.folder.iterdir()}
    one.service._remove_traces()
    assert {path.name for path in one.folder.iterdir()} == {"lock", "log"}


@pytest.mark.parametrize("of_another", ["record", "lock", "socket"])
def test_at_its_end_it_leaves_what_is_a_successors(
    still: Callable[[float], Still], of_another: str
) -> None:
    one = still(0)
    one.service._listen().close()
    left = {"record", "socket"} if of_another == "lock" else {of_another}
    path = one.folder / of_another
    other = path.with_name("other")
    other.write_text("{}")
    other.rename(path)  # while the former one exists, so the inode is another
    one.service._remove_traces()
    assert left <= {path.name for path in one.folder.iterdir()}
