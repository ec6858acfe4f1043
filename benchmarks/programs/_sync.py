"""Bringing trees to other places: what is copied, what is changed, and the clock.

A program gives ``measure_with`` a class of ``Syncer``. Trees are made in the folder that the
program is started in, which the runner removes.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Protocol

from _measure import Result, Scaled
from _sshd import sshd

SMALL_FILES = 10_000
SMALL_BYTES = 2_000
DIRECTORIES = 200
LARGE_BYTES = 512 * 1000 * 1000
MOVED_BYTES = 50 * 1000 * 1000
PROJECT_FILES = 1_008
PROJECT_BYTES = 21 * 1000 * 1000
PIECE_BYTES = 1000 * 1000
TARGETS = 8
SAMPLES = {"tree": 3, "file": 1, "moved": 3, "project": 3}
FUTURE = count(2_000_000_000)

Step = Callable[[Path, Scaled, random.Random], None]


class Syncer(Protocol):
    """One that can bring a tree to places. ``config`` is that of ssh, None for no ssh."""

    def __init__(self, config: Path | None) -> None: ...
    def connect(self, count: int) -> None: ...
    def sync(self, source: Path, dests: list[Path]) -> None: ...
    def cut_off(self, source: Path, dest: Path) -> None:
        """Begin to bring a file, end that at 80 %, and have later runs go on from there."""

    def close(self) -> None: ...


def make_tree(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Make many small files in directories."""
    files = scaled(SMALL_FILES)
    for number in range(files):
        directory = folder / f"directory{number % DIRECTORIES}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_bytes(chance.randbytes(SMALL_BYTES))


def make_project(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Make files of sizes from 1 byte to 42 KB in directories."""
    files = scaled(PROJECT_FILES)
    for number in range(files):
        directory = folder / f"directory{number % 42}"
        directory.mkdir(parents=True, exist_ok=True)
        size = 1 + number * 2 * PROJECT_BYTES // PROJECT_FILES // files
        (directory / f"file{number}").write_bytes(chance.randbytes(size))


def make_file(folder: Path, scaled: Scaled, chance: random.Random, size: int = LARGE_BYTES) -> None:
    """Make one large file."""
    folder.mkdir()
    left = scaled(size)
    with open(folder / "file", "wb") as file:
        while left:
            left -= file.write(chance.randbytes(min(left, PIECE_BYTES)))


def leave(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Change nothing."""


def touch(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Give one file in a hundred other content."""
    for path in sorted(folder.rglob("file*"))[::100]:
        path.write_bytes(chance.randbytes(SMALL_BYTES))
        make_newer(path)


def change(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Change one byte in the middle."""
    with open(folder / "file", "r+b") as file:
        file.seek(os.path.getsize(folder / "file") // 2)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 255]))
    make_newer(folder / "file")


def shift(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Put one byte in front."""
    content = (folder / "file").read_bytes()
    (folder / "file").write_bytes(chance.randbytes(1) + content)
    make_newer(folder / "file")


def renew(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    """Change all of a file, but not its size."""
    size = os.path.getsize(folder / "file")
    shutil.rmtree(folder)
    make_file(folder, lambda whole: size, chance)
    make_newer(folder / "file")


def append(folder: Path, scaled: Scaled, chance: random.Random) -> None:
    with open(folder / "file", "ab") as file:
        file.write(chance.randbytes(PIECE_BYTES))
    make_newer(folder / "file")


def make_newer(path: Path) -> None:
    """Set a time that no file had before: some compare times to the second."""
    seconds = next(FUTURE)
    os.utime(path, (seconds, seconds))


MAKERS: dict[str, Step] = {
    "tree": make_tree, "file": make_file, "project": make_project,
    "moved": partial(make_file, size=MOVED_BYTES),
}  # fmt: skip
STEPS: dict[str, Step | None] = {
    "first": None, "resumed": None, "unchanged": leave, "touched": touch, "changed": change,
    "appended": append, "shifted": shift, "renewed": renew,
}  # fmt: skip


def measure_with(make: type[Syncer]) -> Callable[..., Result]:
    """Return a ``measure`` function; its arguments: local, ssh or defaults, tree or file,
    step, targets.
    """

    def measure(scaled: Scaled, how: str, what: str, step: str, targets: str = "1") -> Result:
        with ExitStack() as stack:
            folder = Path.cwd()
            config = (
                stack.enter_context(sshd(folder, how == "defaults")) if how != "local" else None
            )
            syncer = make(config)
            stack.callback(syncer.close)
            dests = [folder / f"dest{number}" for number in range(int(targets))]
            if step == "connect":
                return {"samples": [timed(syncer.connect, len(dests))]}
            chance = random.Random(0)
            MAKERS[what](folder / "source", scaled, chance)
            syncer.connect(len(dests))
            alter = STEPS[step] and partial(STEPS[step], scaled=scaled, chance=chance)
            samples = [
                sample(syncer, folder / "source", dests, alter, step == "resumed")
                for _ in range(SAMPLES[what])
            ]
            return {"samples": samples}

    return measure


def sample(
    syncer: Syncer, source: Path, dests: list[Path], alter: Callable[[Path], None] | None,
    is_resumed: bool,
) -> float:  # fmt: skip
    """Return the seconds of one synchronisation, and see to it that it did what it should.

    alter: what is done to a source that has been copied before; None for a first copy.
    """
    if alter is None:
        for dest in dests:
            shutil.rmtree(dest, ignore_errors=True)
            if is_resumed:
                syncer.cut_off(source, dest)
    else:
        syncer.sync(source, dests)
        alter(source)
    os.sync()  # on a disk, what was written so far would keep the processors busy in between
    seconds = timed(syncer.sync, source, dests)
    for dest in dests:
        check(source, dest)
    return seconds


def timed(function: Callable[..., object], *arguments: object) -> float:
    started = perf_counter()
    function(*arguments)
    return perf_counter() - started


def check(source: Path, dest: Path) -> None:
    """Compare content; the comparison is not timed."""
    for path in sorted(source.rglob("*")):
        other = dest / path.relative_to(source)
        if path.is_file() and not filecmp.cmp(path, other, shallow=False):
            raise ValueError(f"{other} is not a copy of {path}")
