"""What several workers behind another need crosses the link to that one once, however it is cut."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from tools import BOUND_S, IS_THOROUGH, find_python

from execnet import Group, RSync
from execnet._via import blobs
from execnet._via.blobs import kept_by

SIZES = 100, 5000, 30_000, 150_000, 600_000  # small ones, sent together; in pieces; whole
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
KEPT = "channel.send(sum(map(len, getattr(channel.gateway, 'kept', {}).values())))"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of a megabyte that nothing makes smaller."""
    draw, folder = random.Random(1), tmp_path / "source"
    for number, size in enumerate(SIZES * 2):
        path = folder / f"d{number % 3}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.randbytes(size))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def copy(group: Group, source: Path, tmp_path: Path) -> None:
    """Copy to all members, and compare."""
    rsync = RSync(source, verbose=False)
    for gateway in group:
        rsync.add_target(gateway, tmp_path / f"copy-{gateway.id}")
    rsync.send()
    for gateway in group:
        assert content(tmp_path / f"copy-{gateway.id}") == content(source)


def written() -> int:
    """Return how many bytes this process has written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


@linux_only
def test_a_tree_is_sent_once_a_link_and_so_is_source(source: Path, tmp_path: Path) -> None:
    with Group() as group:
        group.tree(["popen"] * 5, fanout=1)
        before = written()
        copy(group, source, tmp_path)
        size = sum(map(len, content(source).values()))
        assert written() - before < 1.6 * size  # with what RSync itself needs
        before = written()
        group.makegateway("popen//via=gw4")  # the source of another one is at the first already
        assert written() - before < 10_000


def test_no_more_is_kept_than_there_is_room_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "STORE_BYTES", 300_000)
    with Group() as group:
        hop, *_ = group.tree(["popen"] * 3, fanout=1)
        copy(group, source, tmp_path)
        assert 0 < hop.remote_exec(KEPT).receive(BOUND_S) <= 300_000
        assert kept_by(hop)._left == 300_000 - hop.remote_exec(KEPT).receive(BOUND_S)


@pytest.mark.parametrize("hop", ["2.7", "3.6"] if IS_THOROUGH else ["2.7"])
def test_any_python_keeps_for_others(source: Path, tmp_path: Path, hop: str) -> None:
    with Group() as group:
        specs = [f"popen//python={find_python(hop)}", f"popen//python={sys.executable}", "popen"]
        group.tree(specs, fanout=1)
        copy(group, source, tmp_path)
        assert all(kept_by(gateway)._blobs for gateway in list(group)[:2])


def test_a_blob_is_not_dropped_before_what_uses_it_was_handed_in() -> None:
    handed_in: list[object] = []

    class Writer:
        frame = staticmethod(lambda header, payload: [header + payload])
        post_frame = staticmethod(handed_in.append)
        has = staticmethod(lambda frame: any(frame is one for one in handed_in))

    class Model:
        from threading import Lock

    class Stream:
        carrier = None

    class Hop:
        writer, endpoint, execmodel = Writer, Stream, Model
        imports_parts = staticmethod(lambda: True)

    class User:
        is_forwarded = True
        has_ended = staticmethod(lambda: False)

    kept, big = blobs.Kept(Hop), b"x" * (blobs.STORE_BYTES - 10)
    frame = kept.use(b"1", big, User, lambda: ["uses 1"])  # type: ignore[arg-type]
    assert kept.use(b"2", b"y" * 100, User, lambda: ["uses 2"]) is None  # type: ignore[arg-type]
    handed_in.append(frame)
    User.is_forwarded = False  # nor while the far half may not have looked
    assert kept.use(b"2", b"y" * 100, User, lambda: ["uses 2"]) is None  # type: ignore[arg-type]
    User.is_forwarded = True
    assert kept.use(b"2", b"y" * 100, User, lambda: ["uses 2"]) == ["uses 2"]  # type: ignore[arg-type]
    assert list(kept._blobs) == [b"2"]
    assert [b"drop" in one[0] for one in handed_in[-2:]] == [True, False]  # type: ignore[index]
