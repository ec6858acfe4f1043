"""``listen=`` in a spec: each such spec gets the next worker that dials in."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_join import KEY, Speaker, Start, ended, start  # noqa: F401 - fixtures
from tools import BOUND_S, SOURCE, clean_environment, wait_until
from workers import ask

from execnet import BootstrapError, Group
from execnet._cli import main
from execnet._cli.session import WatchedGroup
from execnet._join.wanted import Wanted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

ADDRESS = "listen=127.0.0.1:0"  # all of them share one listener, as the text is the same
JOIN = [sys.executable, "-m", "execnet", "join"]


@pytest.fixture
def spec(pem: str, tmp_path: Path) -> str:
    key = tmp_path / "key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    return f"{ADDRESS}//key={key}//certificate={pem}//connect_timeout={BOUND_S}"


def words_of(said: str) -> list[str]:
    """Return the arguments of ``execnet join`` that a listener has told."""
    found = re.findall(r"workers join with: execnet join (.*)", said)
    assert len(found) == 1, said
    return shlex.split(found[0])


def open_door(group: Group, spec: str) -> Wanted:
    """Have a group listen, by a spec that does not wait; return what listens."""
    with pytest.raises(BootstrapError, match="no worker has joined within"):
        group.makegateway(spec.replace(f"timeout={BOUND_S}", "timeout=0.01"))
    (door,) = group._doors.values()
    return door


def test_each_spec_gets_the_next_one_and_the_others_are_let_go(
    group: Group,
    spec: str,
    start: Start,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    door = open_door(group, spec)
    words = words_of(capsys.readouterr().err)
    assert main(["join", *words, "--print-command"]) == 0
    bare = capsys.readouterr().out.replace("python3", sys.executable, 1)
    joiners = [start(shlex.join(JOIN + words)), *(start(bare) for _ in range(2))]
    gateways = group.makegateways([f"{spec}//id=mine", "popen", spec])
    assert [gateway.id for gateway in gateways] == ["mine", "gw1", "gw2"]
    wait_until(lambda: door._idle)  # the third, whom nobody wants yet
    gateways.append(group.makegateway(spec))
    pids = [ask(gateway, "import os; channel.send(os.getpid())") for gateway in gateways]
    assert len(set(pids)) == 4
    joiners.append(start(bare))
    wait_until(lambda: door._idle)
    group.terminate(5)
    assert [ended(joiner) for joiner in joiners] == [(0, "")] * 3 + [
        (0, "execnet join: the group was ended\n")
    ]
    assert capsys.readouterr().err == ""


def test_a_joiner_that_has_left_is_nobodys_worker(
    group: Group,
    spec: str,
    start: Start,  # noqa: F811
) -> None:
    door = open_door(group, spec)
    with Speaker(str(door.joins.ticket)) as left:
        left.file.read(int(left.answer.split()[2]))
        left.sock.sendall(b'{"host": "here", "pid": 1}\n')
        wait_until(lambda: door._idle)
    start(shlex.join([*JOIN, str(door.joins.ticket)]))
    assert ask(group.makegateway(spec), "channel.send(7)") == 7
    assert "it has left" in str(door.joins.reasons)


def test_whoever_has_no_key_is_named_when_nobody_comes(
    group: Group,
    spec: str,
    start: Start,  # noqa: F811
) -> None:
    door = open_door(group, spec)
    stranger = start(shlex.join([*JOIN, str(door.joins.ticket)]), bytes(32))
    assert ended(stranger)[0] == 1
    with pytest.raises(BootstrapError, match=r"execnet join 127\.0\.0\.1:.*turned away: 127"):
        group.makegateway(spec.replace(f"timeout={BOUND_S}", "timeout=0.01"))


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (f"{ADDRESS}//via=gw0", "nothing starts a worker that dials in"),
        (f"{ADDRESS}//python=python2", "nothing starts a worker that dials in"),
        ("listen=unix:/tmp/x", "workers dial in at host:port"),
        ("listen", "needs a value"),
    ],
)
def test_what_makes_no_sense_is_refused(group: Group, spec: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        group.makegateway(spec)


def test_one_address_has_one_key(group: Group, spec: str) -> None:
    open_door(group, spec)
    with pytest.raises(ValueError, match="another key= or certificate="):
        group.makegateway(ADDRESS)


def test_pytest_xdist_runs_on_workers_that_dial_in(
    spec: str,
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "test_two.py").write_text("def test_one(): pass\ndef test_other(): pass\n")
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    tx = f"--tx=2*{spec}//chdir={folder}"
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-d", tx],
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(SOURCE)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    words = words_of(run.stderr.readline())
    joiners = [start(shlex.join(JOIN + words)) for _ in range(2)]
    said = run.communicate(timeout=3 * BOUND_S)[0]
    assert "2 passed" in said
    assert [ended(joiner) for joiner in joiners] == [(0, "")] * 2


def test_a_command_that_ends_gives_up_the_wait(nothing_is_left: None, spec: str) -> None:
    group, errors = WatchedGroup(), []

    def make() -> None:
        try:
            group.makegateway(spec.replace(f"timeout={BOUND_S}", "timeout=0"))
        except BootstrapError as exc:
            errors.append(str(exc))

    making = threading.Thread(target=make, daemon=True)
    making.start()
    wait_until(lambda: group._doors and next(iter(group._doors.values()))._wants)
    assert group.stop(0.0) == []
    making.join(BOUND_S)
    assert "no worker has joined before the end" in errors[0]


def test_ctrl_c_ends_the_wait(spec: str) -> None:
    program = f"import execnet; execnet.makegateway({spec!r})"
    waiting = subprocess.Popen(
        [sys.executable, "-c", program],
        env=clean_environment(PYTHONPATH=str(SOURCE)),
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert waiting.stderr is not None
    words_of(waiting.stderr.readline())
    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=BOUND_S)[1]
    assert "KeyboardInterrupt" in said
    assert waiting.returncode != 0
