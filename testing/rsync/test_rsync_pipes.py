"""The pipes that a worker of ssh has got from sshd, which are small ones."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from services import FakeSsh

from execnet import Group, RSync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes have other sizes there")

SPEC = f"ssh=host//python={sys.executable}"
SIZES = """
import fcntl
io = channel.gateway._io
channel.send([fcntl.fcntl(file.fileno(), 1032) for file in (io.infile, io.outfile)])
"""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: Group) -> Group:
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}", prepend=":")
    cat = shutil.which("cat")
    FakeSsh(tmp_path)(f'for last; do :; done; {cat} | sh -c "$last" | {cat}')
    return group


def test_they_become_large_ones_where_files_pass(group: Group, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(b"content")
    target, source = group.makegateways([SPEC] * 2)
    sizes = [gateway.remote_exec(SIZES).receive() for gateway in (target, source)]
    assert sizes == [[65536, 65536]] * 2
    rsync = RSync(str(tmp_path / "here"), verbose=False)
    rsync.add_target(target, str(tmp_path / "there"))
    rsync.send()
    RSync.pull(source, str(tmp_path / "here"), str(tmp_path / "back"))
    assert (tmp_path / "back" / "file").read_bytes() == b"content"
    sizes = [gateway.remote_exec(SIZES).receive() for gateway in (target, source)]
    assert sizes == [[1 << 20, 65536], [65536, 1 << 20]]
