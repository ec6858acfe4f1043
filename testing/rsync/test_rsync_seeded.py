"""Faults by chance: no file is ever half, and after the next run all is there and nothing is left.

``python -m benchmarks sync`` tries 2,000.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from rsync_steps import STEPS, make_readable, take
from rsync_trees import assert_same, make_tree, send, snapshot, sync_and_die
from tools import MakeGateway

from execnet import RemoteError
from execnet._rsync.far.temps import PREFIX

SEEDS = int(os.environ.get("EXECNET_FAULT_SEEDS", "32"))
KINDS = ["kill", "kill", "full", "refuse", "coordinator"]

# Makes what changes the file system fail at a moment, or from then on.
FAULT = """
import errno, os, signal
count = [0]
def faulty(name, function):
    def counting(*args, **kwargs):
        count[0] += 1
        if {kind!r} == "kill" and count[0] == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        if {kind!r} == "full" and count[0] >= {moment}:
            if name in ("write", "mkdir", "symlink", "ftruncate"):
                raise OSError(errno.ENOSPC, "No space left on device")
        if {kind!r} == "refuse" and count[0] >= {moment}:
            if name in ("chmod", "utime", "fchmod", "link"):
                raise OSError(errno.EPERM, "Operation not permitted")
        return function(*args, **kwargs)
    return counting
for name in "write rename utime fchmod chmod mkdir unlink rmdir symlink link ftruncate".split():
    function = getattr(os, name)
    setattr(os, name, faulty(name, function))
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if function in known:
            known.add(getattr(os, name))
"""


def by_chance(seed: random.Random, count: int) -> list[Any]:
    return [
        (seed.randrange(len(STEPS)), *(seed.randrange(1000) for _ in range(3)))
        for _ in range(count)
    ]


def contents(root: Path) -> dict[bytes, bytes | None]:
    return {n: entry[3] for n, entry in snapshot(root).entries.items() if entry[0] == "file"}


def run_and_fail(
    makegateway: MakeGateway, seed: random.Random, source: Path, dest: Path, **options: Any
) -> None:
    kind, moment = seed.choice(KINDS), seed.randrange(1, 60)
    if kind == "coordinator":
        sync_and_die(source, dest, seed.randrange(1, 9), **options)
        return
    gateway = makegateway()
    gateway.remote_exec(FAULT.format(kind=kind, moment=moment)).waitclose()
    with contextlib.suppress(EOFError, OSError, RemoteError):
        send(gateway, source, dest, **options)
    gateway.exit()


@pytest.mark.parametrize("part", range(4))
def test_no_file_is_half_and_the_next_run_completes(
    makegateway: MakeGateway, tmp_path: Path, part: int
) -> None:
    healthy = makegateway()
    for number in range(part, SEEDS, 4):
        seed = random.Random(number)
        base = tmp_path / str(number)
        source, dest = make_tree(base / "source", {}), make_tree(base / "dest", {})
        first = by_chance(seed, 30)
        for root in (source, dest):
            take(root, first, 0)
        take(source, by_chance(seed, 12), 10_000)
        take(dest, by_chance(seed, 4))
        make_readable(source)
        old, new = contents(dest), contents(source)
        options = {"delete": True, "partial": seed.random() < 0.5}
        run_and_fail(makegateway, seed, source, dest, **options)
        for name, content in contents(dest).items():
            if PREFIX not in name:
                assert content in (old.get(name), new.get(name)), (number, name)
        assert send(healthy, source, dest, **options).ok, number
        for path in [source, *source.rglob("*")]:  # what a copy drops
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & (0o1777 if path.is_dir() else 0o777))
        assert_same(source, dest)
        shutil.rmtree(base)
