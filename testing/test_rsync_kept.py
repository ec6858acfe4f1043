"""Nothing is lost: what a synchronisation must leave where it is.

What holds in both directions is tested in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeGateway
from rsync_trees import make_tree, send

from execnet import Gateway, RSync
from execnet._rsync_result import Skipped

Sync = Callable[..., Any]
NOBODY = 65534


def pull(gateway: Gateway, source: Path | str, dest: Path | str, **options: Any) -> Any:
    return RSync.pull(gateway, source, dest, **options)


@pytest.fixture
def gateway(makegateway: MakeGateway) -> Gateway:
    return makegateway()


@pytest.fixture(params=[send, pull], ids=["send", "pull"])
def sync(request: pytest.FixtureRequest) -> Sync:
    """Either direction; what follows holds for both."""
    function: Sync = request.param
    return function


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", {})


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that everyone can reach and write to."""
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


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


def give_away(*roots: Path) -> None:
    if os.geteuid() == 0:
        for root in roots:
            for path in [root, *root.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


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
