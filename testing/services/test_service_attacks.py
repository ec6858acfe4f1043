"""What a second user of the machine tries against a service; only root can play two users."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest
from tools import BOUND_S, MakeGateway, error_of, run_python

import execnet
from execnet import Group, service
from execnet._folders import HOME_VARIABLE
from execnet._service import far_find
from execnet._service.far_find import ServiceError, services_folder
from execnet.script.socketserver import make_key

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")
NOBODY = 65534
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user as well"
)


def as_nobody(code: str) -> str:
    """Return what a program prints that another user runs."""
    head = f"import os, sys, socket; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    return run_python(head + code, python=getattr(sys, "_base_executable", sys.executable)).stdout


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): stat.filemode(path.lstat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }


def test_all_that_a_service_makes_is_for_its_user_alone(
    home: Path, makegateway: MakeGateway
) -> None:
    before = os.umask(0)
    try:
        makegateway("socketservice")
    finally:
        os.umask(before)
    kinds = {mode[0] + mode[4:] for mode in modes(home / "services").values()}
    assert kinds == {"d------", "-------", "s------"}


@as_root
class TestTheOtherUser:
    def test_can_not_connect_where_the_folder_lets_everybody_in(
        self, home: Path, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway("socketservice=work")
        folder = service.find("work")._found[0]
        for path in home.parent, home, home / "services", Path(folder), Path(folder, "socket"):
            path.chmod(0o777)
        told = as_nobody(
            f"conn = socket.socket(socket.AF_UNIX); conn.connect({folder + '/socket'!r})\n"
            f"conn.settimeout({BOUND_S}); print(conn.recv(100))"
        )
        for path in home.parent, home, home / "services", Path(folder), Path(folder, "socket"):
            path.chmod(0o700)
        assert told == "b''\n"
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_can_not_read_or_enter_what_is_there(
        self, home: Path, makegateway: MakeGateway
    ) -> None:
        makegateway("socketservice=work")
        home.parent.chmod(0o755)
        folder = service.find("work")._found[0]
        tries = "".join(
            f"\ntry: print({attempt})\nexcept PermissionError: print('no')"
            for attempt in (
                f"os.listdir({folder!r})",
                f"open({folder + '/log'!r})",
                f"socket.socket(socket.AF_UNIX).connect({folder + '/socket'!r})",
            )
        )
        assert as_nobody(tries[1:]) == "no\nno\nno\n"

    def test_is_not_taken_for_the_service(
        self, home: Path, group: Group, makegateway: MakeGateway
    ) -> None:
        makegateway("socketservice=work").exit()
        folder = Path(service.find("work")._found[0])
        service.find("work").stop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            try:
                listener.listen()  # which takes the credentials of this moment
            finally:
                os.seteuid(0)
                os.setegid(0)
            with pytest.raises(execnet.BootstrapError, match=f"user {NOBODY} listens"):
                group.makegateway("socketservice=work")

    @pytest.mark.parametrize("which", ["services", "service", "link", "above"])
    def test_can_not_squat(self, home: Path, group: Group, which: str) -> None:
        services = home / "services"
        services.mkdir(0o700, parents=True)
        command = [sys.executable, "-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
        key = services / far_find.key_of("default", command)
        if which == "services":
            os.chown(services, NOBODY, NOBODY)
        elif which == "service":
            key.mkdir(0o700)
            os.chown(key, NOBODY, NOBODY)
        elif which == "link":
            (home / "elsewhere").mkdir(0o700)
            key.symlink_to(home / "elsewhere")
        else:
            os.chown(home, NOBODY, NOBODY)
        before = modes(home)
        text = str(error_of(group, "socketservice"))
        assert {
            "services": "belongs to user 65534",
            "service": "belongs to user 65534",
            "link": "is not a folder",
            "above": "can be changed by others",
        }[which] in text
        assert modes(home) == before  # nothing is mended
        os.chown(home, 0, 0)
        os.chown(services, 0, 0)


@pytest.mark.parametrize(("mode", "is_refused"), [(0o700, False), (0o710, True), (0o755, True)])
def test_a_folder_that_others_can_enter_is_refused_and_not_changed(
    home: Path, mode: int, is_refused: bool
) -> None:
    services = home / "services"
    services.mkdir(parents=True)
    services.chmod(mode)
    if is_refused:
        with pytest.raises(ServiceError, match="others can enter it"):
            services_folder()
    else:
        assert services_folder() == str(services.resolve())
    assert stat.S_IMODE(services.stat().st_mode) == mode
    services.chmod(0o700)


def test_the_folder_of_the_session_is_taken_only_from_this_user(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert services_folder() == str(tmp_path / "execnet")
    tmp_path.chmod(0o755)  # it is no such folder
    assert services_folder() == str((home / "services").resolve())


def test_a_link_in_place_of_a_file_is_not_followed(home: Path, group: Group) -> None:
    folder = Path(services_folder())
    target = folder / "target"
    command = [sys.executable, "-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
    service_folder = folder / far_find.key_of("default", command)
    service_folder.mkdir(0o700)
    for name in "lock", "log":
        (service_folder / name).symlink_to(target)
        with pytest.raises(OSError, match=r"too many levels|[Ss]ymbolic"):
            group.makegateway("socketservice")
        (service_folder / name).unlink()
    assert not target.exists()


def test_a_port_tells_nothing_to_whoever_has_no_key(
    home: Path, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    makegateway(f"socketservice//port={port}")
    with socket.create_connection(("127.0.0.1", port), BOUND_S) as conn:
        assert conn.recv(4096).startswith(b"execnet-auth-1 plain ")
        conn.sendall(b"execnet-auth-1 %s 127.0.0.1:%d %s\n" % (b"0" * 64, port, b"0" * 64))
        said = conn.makefile("rb").read()
    assert (
        said == b"execnet-auth-1 error the client has not proved that it has the key of this user\n"
    )
    other = home.parent / "other"
    other.mkdir()
    make_key(str(other / "key"))
    monkeypatch.setenv(HOME_VARIABLE, str(other))
    with pytest.raises(execnet.BootstrapError, match="the key"):
        makegateway(f"socketservice//port={port}")
    strangers = [socket.create_connection(("127.0.0.1", port), BOUND_S) for _ in range(70)]
    assert strangers[-1].recv(4096) == b""  # there are too many
    for stranger in strangers:
        stranger.close()
    monkeypatch.setenv(HOME_VARIABLE, str(home))
