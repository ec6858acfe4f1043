"""The folders of execnet, and ``execnet clean``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import state_of
from tools import run_python, wait_until

from execnet import _folders

GONE = 99999999  # the number of no process


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a user's own."""
    for name, value in {
        "EXECNET_HOME": tmp_path / "home",
        "XDG_RUNTIME_DIR": tmp_path / "run",
        "HOME": tmp_path,
        "TMPDIR": tmp_path / "tmp",
    }.items():
        monkeypatch.setenv(name, str(value))
    for folder in "home", "run/execnet-ssh", "tmp":
        (tmp_path / folder).mkdir(0o700, parents=True)
    return tmp_path


def test_the_page_lists_every_place_and_no_other() -> None:
    table = (Path(__file__).parents[2] / "doc" / "folders.rst").read_text().split("\n====")[3]
    where = [line[:32].strip().replace("``", "") for line in table.splitlines()[1:]]
    assert [one for one in where if one] == [*_folders.PLACES]


def test_each_place_is_where_the_page_says(places: Path) -> None:
    (places / "run").chmod(0o700)
    shown = {"~/.execnet": places / "home", "$XDG_RUNTIME_DIR": places / "run"}
    for where, found in _folders.PLACES.items():
        for begins, folder in shown.items():
            if where.startswith(begins):
                assert found()[0] == str(folder) + where.removeprefix(begins)
    assert _folders.PLACES["the folder for temporary files"]() == [tempfile.gettempdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no services")
def test_services_are_where_the_list_says(places: Path) -> None:
    from execnet._service.far_find import services_folder

    (places / "run").chmod(0o700)
    first, second = _folders.services_folders()
    assert services_folder() == first
    (places / "run").chmod(0o755)  # others can enter it
    assert services_folder() == second


CLEAN = """
import sys
from execnet import _cli
from execnet._resume import far_supervisor
far_supervisor.PLACE = sys.argv[1]  # other tests may just have left something in /tmp
sys.exit(_cli.main(["clean", *sys.argv[2:]]))
"""


def clean(*options: str) -> str:
    variables = {name: os.environ[name] for name in ("EXECNET_HOME", "XDG_RUNTIME_DIR", "TMPDIR")}
    done = run_python(CLEAN, os.environ["TMPDIR"], *options, **variables)
    assert done.returncode == 0
    return done.stdout


def test_what_ended_processes_left_goes_and_all_else_stays(places: Path) -> None:
    (places / "home" / "key").write_text("a key")
    (places / "tmp" / f"execnet-debug-{os.getpid()}-x").write_text("it runs")
    (places / "tmp" / "execnet-debug-other").write_text("whose is it?")
    (places / "tmp" / f"execnet-debug-{GONE}-x").write_text("it has ended")
    (places / "tmp" / f"execnet-cert-{os.getpid()}-x").mkdir()
    (places / "tmp" / "execnet-cert-other").mkdir()
    (places / "tmp" / f"execnet-cert-{GONE}-x").mkdir()
    (places / "home" / "key.1f").write_text("half")
    os.utime(places / "home" / "key.1f", (1, 1))
    (places / "home" / "key.2f").write_text("another process is at it")
    stale, live = places / "run/execnet-ssh/stale", places / "run/execnet-ssh/live"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as gone:
        listener.bind(str(live))
        listener.listen()
        gone.bind(str(stale))
        gone.close()
        before = {*places.rglob("*")}
        shown = clean("--dry-run")
        assert {*places.rglob("*")} == before
        assert shown.count("would remove ") == 4
        assert clean() == shown.replace("would remove", "removed")
        left = {str(path.relative_to(places)) for path in before - {*places.rglob("*")}}
        assert clean() == ""
    traces = {f"tmp/execnet-debug-{GONE}-x", f"tmp/execnet-cert-{GONE}-x"}
    assert left == {"home/key.1f", "run/execnet-ssh/stale", *traces}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's /proc tells")
def test_a_process_that_waits_for_its_parent_to_take_note_has_ended(places: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: state_of(zombie.pid) in ("Z", "?"))
    trace = places / "tmp" / f"execnet-debug-{zombie.pid}-x"
    trace.write_text("it has ended")
    clean()
    zombie.wait()
    assert not trace.exists()


def test_a_folder_that_others_can_enter_is_left_alone(places: Path) -> None:
    folder = places / "run/execnet-ssh"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "stale"))
    folder.chmod(0o755)
    assert list(_folders.leftovers()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_other_users_stay(places: Path) -> None:
    path = places / "tmp" / f"execnet-debug-{GONE}"
    path.write_text("")
    os.chown(path, 12345, 12345)
    assert clean() == ""
