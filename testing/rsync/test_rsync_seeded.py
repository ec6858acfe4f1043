"""Faults by chance: no file is ever half, and after the next run all is there and nothing is left.

Half of the runs go from here to a worker, the others from a worker to here and between two workers.
``python -m benchmarks sync`` tries 2,000.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import is_gone
from rsync_steps import STEPS, make_readable, take
from rsync_trees import assert_same, make_tree, pull, send, snapshot, sync_and_die
from tools import SOURCE, MakeGateway, clean_environment, wait_until

from execnet import Gateway, RemoteError
from execnet._rsync.far.temps import PREFIX
from execnet._rsync.relay import relay
from execnet.rsync import pull_options

SEEDS = int(os.environ.get("EXECNET_FAULT_SEEDS", "32"))
WAYS = ["send", "send", "pull", "relay"]  # the turns that they take
KINDS = ["kill", "kill", "full", "refuse", "coordinator"]

# Makes what changes the file system fail at a moment, or from then on.
FAULT = """
import errno, os, signal, stat
count = [0]
def faulty(name, function):
    def counting(*args, **kwargs):
        count[0] += 1
        if {kind!r} == "kill" and count[0] == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        if {kind!r} == "full" and count[0] >= {moment}:
            is_file = name != "write" or stat.S_ISREG(os.fstat(args[0]).st_mode)
            if name in ("write", "mkdir", "symlink", "ftruncate") and is_file:
                raise OSError(errno.ENOSPC, "No space left on device")
        if {kind!r} == "refuse" and count[0] >= {moment}:
            if name in ("chmod", "utime", "fchmod", "link"):
                raise OSError(errno.EPERM, "Operation not permitted")
        if {kind!r} == "broken" and count[0] >= {moment}:
            if name == "open" or stat.S_ISREG(os.fstat(args[0]).st_mode):
                raise OSError(errno.EIO, "Input/output error")
        return function(*args, **kwargs)
    return counting
for name in {names!r}.split():
    function = getattr(os, name)
    setattr(os, name, faulty(name, function))
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if function in known:
            known.add(getattr(os, name))
"""
WRITING = "write rename utime fchmod chmod mkdir unlink rmdir symlink link ftruncate"
READING = "open read"

# Brings a tree from a worker, with a fault there, here, or at the worker that gets it.
BRINGING = """
import os, signal, sys
sys.path.insert(0, {path!r})
import execnet
from execnet._rsync.relay import relay
from execnet.rsync import pull_options
one, two = execnet.makegateway(), execnet.makegateway()
for gateway in (one, two):
    print(gateway.remote_exec("import os; channel.send(os.getpid())").receive(), flush=True)
count = 0
def tell(path):
    global count
    count += 1
    if {dies!r} and count == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
if {where!r} == "here":
    exec({fault!r})
else:
    (one if {where!r} == "source" else two).remote_exec({fault!r}).waitclose()
try:
    if {way!r} == "pull":
        execnet.RSync.pull(one, {source!r}, {dest!r}, mask=0, links="as-is", **{options!r})
    else:
        wishes = pull_options(one, mask=0, links="as-is", **{options!r})
        relay(one, {source!r}.encode(), two, {dest!r}.encode(), wishes, [], tell)
except (EOFError, OSError, execnet.RemoteError):
    pass
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
    """Send, and fail."""
    kind, moment = seed.choice(KINDS), seed.randrange(1, 60)
    if kind == "coordinator":
        sync_and_die(source, dest, seed.randrange(1, 9), **options)
        return
    gateway = makegateway()
    gateway.remote_exec(FAULT.format(kind=kind, moment=moment, names=WRITING)).waitclose()
    with contextlib.suppress(EOFError, OSError, RemoteError):
        send(gateway, source, dest, **options)
    gateway.exit()


def bring_and_fail(way: str, seed: random.Random, source: Path, dest: Path, **options: Any) -> None:
    """Pull, or copy from one worker to another, and fail; return when all workers have ended."""
    kind, moment = seed.choice([*KINDS, "broken", "kill source"]), seed.randrange(1, 60)
    at_source = kind in ("broken", "kill source")
    where = "source" if at_source else "here" if way == "pull" else "target"
    dies = kind == "coordinator" and way == "relay"
    fault = FAULT.format(
        kind="kill" if kind == "kill source" or (kind == "coordinator" and not dies) else kind,
        moment=moment,
        names=READING if at_source else WRITING,
    )
    program = BRINGING.format(
        path=str(SOURCE), source=str(source), dest=str(dest), options=options, way=way,
        where=where, fault=fault, dies=dies, moment=moment % 9 + 1 if dies else 0,
    )  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=clean_environment()
    )
    assert process.returncode in (0, -signal.SIGKILL)
    for pid in process.stdout.split():
        wait_until(lambda pid=pid: is_gone(int(pid)))


def bring(way: str, one: Gateway, two: Gateway, source: Path, dest: Path, **options: Any) -> Any:
    if way == "send":
        return send(one, source, dest, **options)
    if way == "pull":
        return pull(one, source, dest, **options)
    wishes = pull_options(one, mask=0, links="as-is", **options)
    places = one, os.fsencode(source), two, os.fsencode(dest)
    return relay(*places, wishes, [], lambda path: None)


@pytest.mark.parametrize("part", range(4))
def test_no_file_is_half_and_the_next_run_completes(
    makegateway: MakeGateway, tmp_path: Path, part: int
) -> None:
    healthy = makegateway(), makegateway()
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
        way = WAYS[number // 4 % 4]
        if way == "send":
            run_and_fail(makegateway, seed, source, dest, **options)
        else:
            bring_and_fail(way, seed, source, dest, **options)
        for name, content in contents(dest).items():
            if PREFIX not in name:
                assert content in (old.get(name), new.get(name)), (number, name)
        assert bring(way, *healthy, source, dest, **options).ok, number
        for path in [source, *source.rglob("*")]:  # what a copy drops
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & (0o1777 if path.is_dir() else 0o777))
        assert_same(source, dest)
        shutil.rmtree(base)
