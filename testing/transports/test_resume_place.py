"""``resume=``: another login is made where the first one was, whatever has changed since."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cut_links import CutLink, assert_gone, clean, program_with, supervisor_of
from processes import stop
from services import script
from tools import BOUND_S

from execnet import Group, _folders
from execnet._resume import records
from execnet._transports import surroundings
from execnet._transports.surroundings import Surroundings
from execnet._transports.table import Command

ECHO = "for item in channel: channel.send(item)"
SSH = f"ssh=host//ssh_config=config//python={sys.executable}//grace=0.2"
DOCKER = "docker=box//grace=0.2"
# Each is as choosy as the program of its name.
CHOOSY_SSH = """
[ -e config ] || { echo "Can't open user config file config" >&2; exit 255; }
[ "$SSH_AUTH_SOCK" = %s ] || { echo "Permission denied (publickey)" >&2; exit 255; }
exec %s "$@"
"""
CHOOSY_DOCKER = """
[ "$DOCKER_HOST" = tcp://there ] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; }
shift 3
exec "$@"
"""


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutLink:
    """A network that the test cuts; the folder and the environment are right for it."""
    for name in "link", "bin", "home", "elsewhere":
        (tmp_path / name).mkdir()
    link = CutLink(tmp_path / "link", is_apart=True)
    agent = tmp_path / "agent"
    (tmp_path / "home" / "config").touch()
    agent.touch()
    script(tmp_path / "bin" / "ssh", CHOOSY_SSH % (agent, tmp_path / "link" / "ssh"))
    script(tmp_path / "bin" / "docker", CHOOSY_DOCKER)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    monkeypatch.setenv("DOCKER_HOST", "tcp://there")
    monkeypatch.chdir(tmp_path / "home")
    return link


def go_elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Change all that a login depends on."""
    (folder / "other agent").touch()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(folder / "other agent"))
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.chdir(folder / "elsewhere")


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shared"])
def test_a_lost_login_is_made_anew_in_the_folder_and_environment_of_the_first(
    shares: bool, link: CutLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"{SSH}//resume={BOUND_S}" + "//share=yes" * shares
    with Group() as group:
        gateways = [group.makegateway(spec)]
        go_elsewhere(monkeypatch, tmp_path)
        if shares:  # the login is that of another one, which ends
            gateways.append(group.makegateway(spec))
            gateways.pop(0).exit()
        channel = gateways[0].remote_exec(ECHO)
        pid = gateways[0]._rinfo().pid
        link.cut()
        channel.send(1)
        assert channel.receive(BOUND_S) == 1
        stop(pid)  # so that it has to be killed by a login
        gateways[0]._io.kill()
    assert_gone(pid)


BEYOND = f"{SSH}//id=hop//env:KUBECONFIG=a secret", f"{SSH}//via=hop"


@pytest.mark.parametrize("specs", [(SSH,), (DOCKER,), (f"{SSH}//share=yes",), BEYOND])
def test_execnet_clean_logs_in_as_the_program_did(
    specs: tuple[str, ...], link: CutLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:a%20secret@proxy")
    *hops, spec = specs
    with program_with(*hops, f"{spec}//resume=600//env:KUBECONFIG=a secret") as (program, pid):
        supervisor = supervisor_of(pid)
        (record,) = os.listdir(_folders.resume_folder())
        text = Path(_folders.resume_folder(), record).read_text()
        assert not any(word in text for word in ("secret@", "a secret", "SECRET_ACCESS"))
        program.kill()
    go_elsewhere(monkeypatch, tmp_path)
    clean()
    assert list(records.left()) == []
    assert_gone(pid, supervisor)


def test_a_record_has_of_the_environment_what_leads_there_and_no_secret() -> None:
    env = {
        "DOCKER_HOST": "ssh://me@there",
        "CONTAINER_HOST": "ssh://me:secret@there",
        "HTTPS_PROXY": "http://token@proxy",
        "NO_PROXY": "localhost",
        "PATH": "/opt/python@3:/bin",
        "GITHUB_TOKEN": "secret",
    }
    told = Surroundings("/folder", env).for_record()
    assert told["cwd"] == "/folder"
    written = {name: text for name, text in told["env"].items() if text is not None}
    assert sorted(written) == ["DOCKER_HOST", "NO_PROXY", "PATH"]
    assert told["env"]["KUBECONFIG"] is None
    assert "CONTAINER_HOST" not in told["env"]


def test_what_a_record_does_not_have_is_as_in_the_later_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "of this program")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")
    monkeypatch.setenv("SSH_AUTH_SOCK", "of this program")
    monkeypatch.setenv("OTHER", "of this program")
    gone = str(tmp_path / "gone")
    env = {"SSH_AUTH_SOCK": gone, "HTTPS_PROXY": "http://me:other@proxy", "DOCKER_HOST": "there"}
    found = surroundings.of_record(Surroundings(gone, env).for_record())
    assert "KUBECONFIG" not in found.env  # which would lead somewhere else
    assert found.env["DOCKER_HOST"] == "there"
    assert found.env["HTTPS_PROXY"] == "http://me:secret@proxy"
    assert (found.env["SSH_AUTH_SOCK"], found.env["OTHER"]) == ("of this program",) * 2
    assert found.put_around(Command(["ssh"])).folder is None
    of_old_record = surroundings.of_record({})
    assert (of_old_record.folder, of_old_record.env) == (None, dict(os.environ))
