"""What the tests of transports share: servers, and stand-ins for ssh."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_links import CutLink
from services import FakeSsh, Sshd
from socketservers import OthersServer, Serve, Servers
from tools import BOUND_S, missing

from execnet import _readers
from execnet._ends import terminate
from execnet._resume import near
from execnet.script import socketserver


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a certificate."""
    if shutil.which("openssl") is None:
        missing("the program openssl")
    path = tmp_path_factory.mktemp("pem") / "pem"
    path.write_bytes(socketserver.make_certificate())
    return str(path)


@pytest.fixture(scope="module")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A real sshd for all tests of a module."""
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    yield sshd
    sshd.stop()


@pytest.fixture
def spec(shared_sshd: Sshd) -> str:
    """A worker that ``shared_sshd`` starts."""
    return f"ssh=loop//ssh_config={shared_sshd.ssh_config}"


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    """An ssh of shell commands, which each test gives it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}", prepend=":")
    return FakeSsh(tmp_path)


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutLink:
    """A network that the test cuts, and whose ssh may take long to start on a busy machine."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for module in terminate, near:
        monkeypatch.setattr(module, "REACH_S", BOUND_S)
    return CutLink(tmp_path)


@pytest.fixture(params=["own", "shared"])
def readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways over sockets and through others have a thread each, then share some."""
    if request.param == "shared":
        monkeypatch.setattr(_readers, "OWN", 0)


@pytest.fixture
def serve(servers: Servers) -> Serve:
    """A function that starts a socket server."""
    return servers.start


@pytest.fixture
def others(tmp_path: Path) -> Iterator[OthersServer]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can be another user as well")
    server = OthersServer(str(tmp_path / "others"))
    yield server
    server.popen.terminate()
    server.popen.communicate()
