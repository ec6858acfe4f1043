"""No link is followed in a target: what is changed is the very file that was compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rsync_trees import make_tree, snapshot
from rsync_units import OPTIONS, unit

from execnet._rsync.far import target
from execnet._rsync.far.digests import digest_of
from execnet._rsync.far.target import Target
from execnet._rsync.far.wire import (  # fmt: skip
    CHECK,
    DELTA,
    DIRECTORY,
    FILE,
    LIST,
    LIST_END,
    NOTE,
    SAME,
    WANT,
    Violation,
    block_bytes,
    pack_ids,
)

LARGE = 100_000


class Stage:
    """A target with a file "a" and a directory "d", and a place outside that a link leads to."""

    def __init__(self, base: Path, size: int) -> None:
        self.outside = make_tree(base / "outside", {"a": b"x" * size, "d/x": b"untouched"})
        self.dest = make_tree(base / "dest", {"a": b"x" * size, "d/x": b"1"})
        for path in (self.outside / "a", self.dest / "a", self.outside / "d", self.dest / "d"):
            path.chmod(0o600 if path.name == "a" else 0o500)
            os.utime(path, (5, 5))
        self.before = snapshot(self.outside)
        self.sent: list[Any] = []

    def swap(self, name: str) -> None:
        """Put a link in the place of a name, as another process could at any moment."""
        (self.dest / name).rename(self.dest / f"moved-{name}")
        (self.dest / name).symlink_to(self.outside / name)

    def play(self, messages: Iterator[Any]) -> None:
        options = {"dest": os.fsencode(self.dest), "root": (DIRECTORY, 0o755, 1)}
        Target(self.sent.append, options | OPTIONS).run(messages.__next__)

    def codes(self) -> list[int]:
        return [message[0] for message in self.sent]


def proof_of(content: bytes) -> bytes:
    """Return the digest of the digests of a file's blocks."""
    digest, block = digest_of("md5", b""), block_bytes(len(content))
    parts = [content[start : start + block] for start in range(0, len(content), block)]
    return digest(b"".join(map(digest, parts)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("size", "code"), [(10, CHECK), (LARGE, DELTA)])
def test_the_same_is_said_of_the_file_that_was_compared(
    tmp_path: Path, size: int, code: int
) -> None:
    stage = Stage(tmp_path, size)

    def messages() -> Iterator[Any]:
        yield LIST, 9, [unit([(b"a", FILE, size)])]
        assert code in stage.codes()
        stage.swap("a")
        yield SAME, pack_ids([1]), {0: (0o666, 10**18)}, proof_of(b"x" * size)
        yield (LIST_END,)

    stage.play(messages())
    assert snapshot(stage.outside) == stage.before
    assert NOTE in stage.codes()


def test_the_same_is_accepted_only_for_what_was_to_be_compared(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 10)
    stage.swap("a")

    def messages() -> Iterator[Any]:
        yield LIST, 9, [unit([(b"a", FILE, 10)])]
        assert WANT in stage.codes()
        yield SAME, pack_ids([1]), {0: (0o666, 10**18)}, None

    with pytest.raises(Violation):
        stage.play(messages())
    assert snapshot(stage.outside) == stage.before


def test_a_mode_is_set_on_the_file_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, 10)
    os.utime(stage.dest / "a", ns=(1, 1))
    monkeypatch.setattr(Target, "_is_alone", lambda *_: stage.swap("a") or True)
    stage.play(iter([(LIST, 9, [unit([(b"a", FILE, 10)], mode=0o666)]), (LIST_END,)]))
    assert snapshot(stage.outside) == stage.before
    assert NOTE in stage.codes()


def test_a_directory_is_opened_up_only_where_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, 10)
    found_type = target.stat.S_ISDIR

    def swap_and_tell(mode: int) -> bool:
        if not (stage.dest / "d").is_symlink() and stage.sent and mode & 0o777 == 0o500:
            stage.swap("d")
        return found_type(mode)

    monkeypatch.setattr(target.stat, "S_ISDIR", swap_and_tell)
    units = [unit([(b"d", DIRECTORY, 0)]), unit([], directory=1, first=2)]
    stage.play(iter([(LIST, 9, units), (LIST_END,)]))
    monkeypatch.undo()
    assert (stage.dest / "d").is_symlink()
    assert snapshot(stage.outside) == stage.before
