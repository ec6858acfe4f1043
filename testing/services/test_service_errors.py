"""What is in the way of a service, and what a program is told of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from processes import is_gone, processes_with, stop
from services import script
from tools import BOUND_S, MakeGateway, error_of, wait_until

from execnet import BootstrapError, Group, service
from execnet._folders import HOME_VARIABLE
from execnet._service import admin, far_find
from execnet._service.far_find import ServiceError
from execnet.gateway_base import _frame_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

WORDS = [sys.executable, "-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
SPEC = "socketservice=work//connect_timeout=0.3"


def folder_of(name: str) -> Path:
    folder = Path(far_find.services_folder(), far_find.key_of(name, WORDS))
    far_find.be_private(str(folder))
    return folder


@contextmanager
def lock_of(folder: Path) -> Iterator[None]:
    """Hold the lock of a service."""
    fd = far_find.try_lock(str(folder))
    assert fd >= 0
    yield
    os.close(fd)


@contextmanager
def listener_that_says(folder: Path, said: bytes) -> Iterator[None]:
    """Listen where a service would, say so much to each that connects, and hang up."""

    def serve() -> None:
        while not is_over.is_set():
            with suppress(OSError), listener.accept()[0] as conn:
                conn.sendall(said)

    is_over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        listener.settimeout(0.05)  # of each wait for a connection
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        is_over.set()
        thread.join()


def test_a_key_is_short_and_differs_with_all_that_tells_services_apart() -> None:
    told = [("a", WORDS), ("b", WORDS), ("a", WORDS[:1]), ("a", WORDS, 8888), ("a", WORDS, 8889)]
    keys = [far_find.key_of(*one) for one in told]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)
    assert far_find.key_of("b", None, 8888) == keys[3]  # the port alone makes it


def test_a_folder_with_a_long_path_is_told(
    home: Path, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home.parent / ("x" * 80)))
        assert "is too long for a socket; set EXECNET_HOME" in str(error_of(group, SPEC))


def test_one_that_is_stopped_is_told_and_can_be_ended(home: Path, makegateway: MakeGateway) -> None:
    pid = makegateway("socketservice=work")._rinfo().pid
    stop(pid)
    with pytest.raises(BootstrapError, match="does not answer; it may be stopped"):
        makegateway(SPEC)
    with pytest.raises(ServiceError, match="does not answer"):
        service.find("work").status()
    service.find("work").stop()
    assert is_gone(pid)


def test_a_process_that_holds_the_lock_and_does_not_serve_is_told(home: Path, group: Group) -> None:
    folder = folder_of("work")
    with lock_of(folder):
        said = f"another process holds the lock in {folder}, and no service answers"
        assert said in str(error_of(group, SPEC))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_one_that_is_not_ready_in_time_is_killed(home: Path, group: Group, tmp_path: Path) -> None:
    slow = script(tmp_path / "slow", "exec sleep 1000")
    spec = f"socketservice=work//python={slow}//connect_timeout=0.5"
    assert "it was not ready in time" in str(error_of(group, spec))
    started = partial(processes_with, f"{HOME_VARIABLE}={home}")
    wait_until(lambda: set(started()) <= {os.getpid()})
    assert service.find_all() == []


def test_what_is_no_file_of_this_user_is_not_used(home: Path, group: Group) -> None:
    lock = folder_of("work") / "lock"
    os.mkfifo(lock)
    assert f"{lock} is not a file of this user" in str(error_of(group, SPEC))
    lock.unlink()


def test_what_does_not_greet_as_a_service_is_told(home: Path, group: Group) -> None:
    folder = folder_of("work")
    with lock_of(folder), listener_that_says(folder, _frame_of("hello")):
        error = error_of(group, "socketservice=work")
    assert f"what listens for {folder} is not a service" in str(error)


def test_what_hangs_up_before_it_greets_is_nobody_and_one_is_started(
    home: Path, makegateway: MakeGateway
) -> None:
    with listener_that_says(folder_of("work"), b""):
        gateway = makegateway("socketservice=work")
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1


def test_what_a_killed_one_left_is_nobody_and_one_is_started(
    home: Path, makegateway: MakeGateway
) -> None:
    folder, pids = folder_of("work"), set()
    for _ in range(2):
        pid = makegateway("socketservice=work")._rinfo().pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: service.find_all() == [])
        assert {"socket", "record"} < {path.name for path in folder.iterdir()}
        pids.add(pid)
    assert len(pids) == 2


def test_what_an_older_service_does_not_know_is_told(home: Path, makegateway: MakeGateway) -> None:
    makegateway("socketservice=work")
    with pytest.raises(ServiceError, match=r"this service, of version 3.*, does not support fly"):
        admin._ask(admin.find("work"), "fly")
