"""Programs that ask for a service, and services that begin, are killed at any step.

A step is a line that is run in a module of ``_service``. Start at ``KILLED``.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tools import IS_THOROUGH, clean_environment

from execnet import service

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

PROGRAMS = 50 if IS_THOROUGH else 4  # at once
STEPS = 50 if IS_THOROUGH else 4  # of each kind, at which one is killed
ASKS = 2  # of each program
FAR_S = 300.0  # for all programs together

# Kills its process at a step; without one it counts them in a file.
KILLED = """
def be_killed(step, path):
    import os, sys, threading
    taken = [0]
    def on_line(frame, event, arg):
        if event == "line":
            taken[0] += 1
            if taken[0] == step:
                os.kill(os.getpid(), 9)
            if not step:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT)  # as a service closes others
                os.pwrite(fd, b"%9d" % taken[0], 0)
                os.close(fd)
        return on_line
    def on_call(frame, event, arg):
        is_ours = "_service." in frame.f_globals.get("__name__", "")
        return on_line if is_ours and frame.f_code.co_name != "<module>" else None
    threading.settrace(on_call)
    sys.settrace(on_call)
"""
# Arguments: the spec, the step or -1, the file for the number of steps, how often it asks.
PROGRAM = (
    KILLED
    + """
import sys
import execnet
spec, step, path, asks = sys.argv[1:]
if int(step) >= 0:
    be_killed(int(step), path)
for _ in range(int(asks)):
    try:
        gateway = execnet.makegateway(spec)
        code = "import os; channel.send(os.getpid())"
        print(gateway.remote_exec(code).receive(), flush=True)
        gateway.exit()
    except (execnet.WorkerDied, execnet.BootstrapError, OSError) as exc:
        print(type(exc).__name__, str(exc).splitlines()[0], flush=True)
"""
)
# The interpreter of the services; the first that finds the file with a step is killed at it.
PYTHON = (
    f"#!{sys.executable}\n{KILLED}"
    + """
import os, sys
folder = os.path.dirname(os.path.abspath(__file__))
try:
    os.rename(folder + "/step", folder + "/taken")
except OSError:
    pass
else:
    with open(folder + "/taken") as file:
        be_killed(int(file.read()), folder + "/steps")
exec(sys.argv[3])
"""
)


class Place:
    """Where services begin that can be killed at a step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        python = folder / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.spec = f"socketservice=work//python={python}"

    def kill_next_at(self, step: int) -> None:
        """Have the service that begins next killed at a step; 0: have its steps counted."""
        (self._folder / "new").write_text(str(step))
        (self._folder / "new").rename(self._folder / "step")

    def start(self, step: int = -1, asks: int = 1) -> subprocess.Popen[str]:
        """Start a program that is killed at a step; 0: its steps are counted, -1: they are not."""
        words = [sys.executable, "-c", PROGRAM, self.spec, str(step), str(self._folder / "steps")]
        return subprocess.Popen(
            [*words, str(asks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def steps_of_starter(self) -> int:
        """Return how many steps a program takes that starts a service."""
        finished(self.start(0))
        return self._counted()

    def steps_of_service(self) -> int:
        """Return how many steps a service takes for one program, with those of its end."""
        self.kill_next_at(0)
        finished(self.start())
        return self._counted()

    def _counted(self) -> int:
        stop_all()
        return int((self._folder / "steps").read_text())

    def asked(self) -> set[int]:
        """Let two programs use the service; return the processes that answered them."""
        said = [finished(self.start()) for _ in range(2)]
        return {int(one) for one in said}


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Place:
    """A place of the test's own, whose services end with it."""
    return Place(tmp_path)


def stop_all() -> None:
    for one in service.find_all():
        one.stop()


def finished(program: subprocess.Popen[str]) -> str:
    """Wait for a program; return what it printed, if it was not killed."""
    said, errors = program.communicate(timeout=FAR_S)
    assert errors == ""
    return said


def spread(steps: int) -> list[int]:
    """Return some of the steps, from the first to the last one."""
    return sorted({1 + round((steps - 1) * turn / (STEPS - 1)) for turn in range(STEPS)})


def assert_one_serves(place: Place) -> None:
    pids = place.asked()
    assert [one._found[1]["pid"] for one in service.find_all()] == list(pids)


def test_programs_that_ask_at_once_get_one_service(place: Place) -> None:
    programs = [place.start(asks=ASKS) for _ in range(PROGRAMS)]
    pids = [int(pid) for program in programs for pid in finished(program).split()]
    assert len(pids) == PROGRAMS * ASKS
    assert len(set(pids)) == 1


def test_after_a_starter_that_was_killed_at_any_step_one_serves(place: Place) -> None:
    for step in spread(place.steps_of_starter()):
        finished(place.start(step))
        assert_one_serves(place)
        stop_all()


def test_after_a_service_that_was_killed_at_any_step_one_serves(place: Place) -> None:
    for step in spread(place.steps_of_service()):
        place.kill_next_at(step)
        finished(place.start())
        assert len(service.find_all()) <= 1
        stop_all()  # one whose step is yet to come, too
        assert_one_serves(place)
        stop_all()


def test_one_serves_after_all_kinds_were_killed_while_many_ask(place: Place) -> None:
    chance = random.Random(15)
    of_starter, of_service = place.steps_of_starter(), place.steps_of_service()
    over = threading.Event()

    def kill_services() -> None:
        while not over.wait(0.1):
            place.kill_next_at(1 + chance.randrange(of_service))

    killer = threading.Thread(target=kill_services)
    killer.start()
    try:
        at = [-1 if turn % 2 else 1 + chance.randrange(of_starter) for turn in range(PROGRAMS)]
        programs = [place.start(step, ASKS) for step in at]
        said = [finished(program) for program in programs]
    finally:
        over.set()
        killer.join()
    unharmed = [one.splitlines() for one, step in zip(said, at, strict=True) if step < 0]
    assert [len(lines) for lines in unharmed] == [ASKS] * len(unharmed)
    place.kill_next_at(-1)  # that is never reached
    assert len(service.find_all()) <= 1
    stop_all()  # one whose step is yet to come, too
    assert_one_serves(place)
