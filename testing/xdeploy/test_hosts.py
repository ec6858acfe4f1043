"""Environments on hosts that have nothing: another user's empty home, no network, no room."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import pytest
from hosts import UID, Host
from tools import BOUND_S, IS_THOROUGH, ROOT, threads, wait_until
from wheels import (
    Place,
    make_wheel,
    place_with_wheels,
    use_no_index,
    version_of,
    wheel_of_installed,
)

from execnet import Gateway, Group, xdeploy
from execnet._xdeploy import create, sources

LADDER = list(create.LADDER)
MOUNTS = """\
mkdir -p $HOME/disk
mount -t tmpfs -o size=600k,uid={uid},gid={uid},mode=700 none $HOME/disk
for folder in /usr/lib/python3*/ensurepip /usr/local/lib/python3*/ensurepip
do test ! -d $folder || mount -t tmpfs none $folder
done
"""
Guest = tuple[Host, Place, Gateway]
Make = Callable[..., Gateway]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A host, wheels for it, and a gateway there, over ssh as another user."""
    with tempfile.TemporaryDirectory() as name, Group() as group:
        host = Host(Path(name), MOUNTS.format(uid=UID))
        place = place_with_wheels(Path(name, "here"))
        gateway = group.makegateway(host.spec)
        wait_until(lambda: "execnet-heartbeat" in {thread.name for thread in threads()}, BOUND_S)
        yield host, place, gateway
        group.terminate(timeout=5)


@pytest.fixture
def make(guest: Guest) -> Iterator[Make]:
    """Return a function that makes an environment there; its workers end with the test."""
    _, place, gateway = guest
    made: list[Gateway] = []

    def make(*args: Any, **options: Any) -> Gateway:
        made.append(place.create(gateway, *args, **options))
        return made[-1]

    yield make
    for one in made:
        one.exit()
        one.join(BOUND_S)


class TestAHostWithNothing:
    def test_becomes_one_with_an_environment(
        self, guest: Guest, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = guest[0]
        use_no_index(monkeypatch, LADDER if IS_THOROUGH else ["venv", "venv --without-pip"])
        made = make(root=None, offline="auto")
        venv: xdeploy.Venv = made.venv  # type: ignore[attr-defined]
        assert venv.tool == "venv --without-pip"  # it has no ensurepip
        assert version_of(made, "tom") == "2.0"
        assert venv.path.startswith(f"{host.home}/.cache/execnet/venvs/proj-")
        assert sorted(path.name for path in host.home.iterdir()) == [".cache", "disk"]
        code = (
            "import os; channel.send((os.getuid(), open('/proc/net/dev').read().split('\\n')[2:]))"
        )
        uid, links = made.remote_exec(code).receive(BOUND_S)
        assert (uid, [link.split(":")[0].strip() for link in links]) == (UID, ["lo", ""])

    def test_has_no_room_and_then_some(
        self, guest: Guest, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, _, gateway = guest
        use_no_index(monkeypatch)
        root = f"{host.home}/disk/cache"
        fill = f"""
            try:
                with open({f"{host.home}/disk/full"!r}, "wb", 0) as file:
                    while True:
                        file.write(bytes(4096))
            except OSError as error:
                channel.send(error.errno)
            """
        gateway.remote_exec(fill).waitclose(BOUND_S)
        with pytest.raises(xdeploy.DeployError, match="No space left on device"):
            make(root=root)
        gateway.remote_exec(f"import os; os.unlink({f'{host.home}/disk/full'!r})").waitclose()
        made = make(root=root)
        assert made.venv.is_new  # type: ignore[attr-defined]
        assert version_of(made, "sid") == "1.0"

    def test_has_a_home_that_can_not_be_written_to(
        self, guest: Guest, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = guest[0]
        use_no_index(monkeypatch)
        root = f"{host.home}/later/cache"
        host.home.chmod(0o500)
        with pytest.raises(xdeploy.DeployError, match=f"Permission denied.*{host.home}/later"):
            make((), root=root)
        host.home.chmod(0o700)
        assert make((), root=root).venv.is_new  # type: ignore[attr-defined]

    @pytest.mark.skipif(not IS_THOROUGH, reason="a minute's work, for a thorough run")
    @pytest.mark.timeout(600)
    def test_gets_this_project(
        self, guest: Guest, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("build")
        place = guest[1]
        use_no_index(monkeypatch, LADDER)
        wheel_of_installed(place.wheels, "setuptools")
        worker = make(root=None)
        project = xdeploy.SetupFile(ROOT / "pyproject.toml", isolated=False)
        folder = project.sdist_remote_install(worker, offline=True, find_links=place.wheels)
        code = "import execnet; channel.send(execnet.__file__)"
        assert worker.remote_exec(code).receive(BOUND_S) == f"{folder}/execnet/__init__.py"

    @pytest.mark.skipif(not IS_THOROUGH, reason="a measurement, for a thorough run")
    def test_has_the_one_file_that_changed_within_50_ms(
        self, guest: Guest, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_no_index(monkeypatch)
        package = tmp_path / "project" / "measured"
        package.mkdir(parents=True)
        (package.parent / "pyproject.toml").write_text("[project]\nname = 'measured'\n")
        for number in range(200):
            (package / f"module{number}.py").write_text("value = 0\n" * 200)
        worker = make((), root=None)
        code = "import measured.module0 as it; channel.send(it.value)"
        times = []
        with xdeploy.SetupFile(package.parent).sync_remote(worker) as brought:
            for number in range(1, 21):
                (package / "module0.py").write_text(f"value = {number}\n" * 200)
                begun = perf_counter()
                assert brought.once() == 1
                times.append(perf_counter() - begun)
                assert worker.remote_exec(code).receive(BOUND_S) == number
        assert min(times) <= 0.05, times  # the machine may do other things, too


# ---------------------------------------------------------------- indexes


class Garbage(BaseHTTPRequestHandler):
    """An index that answers what it should not."""

    wheel = b""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        name = "sid-9.0-py3-none-any.whl"
        bodies = {
            "bytes": os.urandom(999),
            "loop": b'<a href="../sid/">sid-9.0.tar.gz</a>',
            "file": f'<a href="/is-no-wheel/{name}">x</a>'.encode(),
            "digest": f'<a href="/wheel/{name}#sha256={"0" * 64}">x</a>'.encode(),
            "names": b'<a href="/x/../../etc/passwd">x</a><a href="file:///etc/a-1.tar.gz">y</a>',
            "wheel": self.wheel,
        }
        body = bodies.get(kind, b"no wheel")
        if kind == "noise":
            self.wfile.write(os.urandom(99))
            return
        self.send_response(500 if kind == "error" else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body) + 99 * (kind == "cut")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def garbage(tmp_path: Path) -> Iterator[str]:
    """The address of such an index."""
    Garbage.wheel = make_wheel(tmp_path / "hostile", "sid", "9.0").read_bytes()
    with HTTPServer(("127.0.0.1", 0), Garbage) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_index_of_garbage_leaves_nothing(
    place: Place, gateway: Gateway, garbage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["bytes", "loop", "file", "digest", "names", "error", "cut", "noise"]
    for ladder in [["unpack"], ["venv --without-pip"]] if IS_THOROUGH else [["unpack"]]:
        use_no_index(monkeypatch, ladder)
        for kind in kinds:
            with pytest.raises(xdeploy.DeployError) as caught:
                place.create(gateway, index_url=f"{garbage}/{kind}/simple", find_links=None)
            assert "sid" in str(caught.value), kind
            assert place.venvs() == []
    assert version_of(place.create(gateway), "sid") == "1.0"


def test_an_index_that_does_not_answer_takes_no_longer_than_allowed(
    place: Place, gateway: Gateway
) -> None:
    begun = monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        with pytest.raises(xdeploy.DeployError):
            place.create(gateway, index_url=url, timeout=1)
    assert monotonic() - begun < sources.FETCH_S / 2
    assert place.venvs() == []


@pytest.mark.skipif(not IS_THOROUGH, reason="pip takes some seconds")
def test_pip_does_not_install_a_hostile_name(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_no_index(monkeypatch, ["venv --without-pip"])
    make_wheel(place.wheels, "evil", files={"../../../../../evil.py": ""})
    with pytest.raises(xdeploy.DeployError):
        place.create(gateway, "evil")
    assert not list(place.root.parent.rglob("evil.py"))
    assert place.venvs() == []
    assert version_of(place.create(gateway), "sid") == "1.0"
