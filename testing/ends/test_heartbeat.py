"""Signs of life: a peer that is silent is given up by either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children_of, is_running, stop
from tools import MakeGateway, clean_environment, wait_until

from execnet import WorkerDied, XSpec
from execnet._features.pulse import Pulse
from execnet._specs import Settings
from execnet.gateway_base import get_execmodel
from execnet.gateway_io import _descendants

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP here"),
    pytest.mark.usefixtures("coordinator"),
]

THREAD = get_execmodel("thread")


class TestSpecs:
    @pytest.mark.parametrize(
        ("spec", "seconds"),
        [
            ("popen", (0, 0)),
            ("popen//heartbeat=2", (2, 8)),
            ("popen//heartbeat=2//dead_after=3", (2, 3)),
            ("ssh=host", (15, 60)),
            ("socket=host:1", (15, 60)),
            ("popen//via=gw0", (15, 60)),
            ("ssh=host//heartbeat=0", (0, 0)),
            ("ssh=host//dead_after=20", (15, 20)),
        ],
    )
    def test_it_is_on_where_a_network_is_in_between(
        self, spec: str, seconds: tuple[float, float]
    ) -> None:
        settings = Settings(XSpec(spec))
        assert (settings.heartbeat_s, settings.dead_after_s) == seconds

    @pytest.mark.parametrize("key", ["heartbeat", "dead_after"])
    @pytest.mark.parametrize("value", ["", "-1", "x", "inf"])
    def test_values_are_seconds(self, makegateway: MakeGateway, key: str, value: str) -> None:
        with pytest.raises(ValueError, match=f"{key}="):
            makegateway(f"popen//{key}={value}")


class TestASilentWorker:
    def test_it_is_given_up(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//heartbeat=0.05//dead_after=1")
        channel = gateway.remote_exec("channel.send(1); channel.receive()")
        assert channel.receive() == 1
        stop(gateway._rinfo().pid)
        with pytest.raises(WorkerDied, match=r"given up: silent for 1 s"):
            channel.receive(20)
        with pytest.raises(OSError, match="silent for"):
            channel.send(1)

    def test_one_that_is_busy_is_not(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//heartbeat=0.1//dead_after=2")
        channel = gateway.remote_exec("""
import time
end = time.time() + 3
while time.time() < end: pass
channel.send("done")
""")
        assert channel.receive(30) == "done"

    def test_nor_is_one_that_is_idle_for_long(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//heartbeat=0.02//dead_after=1")
        heard = gateway._heard
        wait_until(lambda: gateway._heard > heard + 100, 30)
        assert gateway.remote_exec("channel.send(1)").receive() == 1

    def test_one_that_dies_at_once_is_noticed_as_ever(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("popen//heartbeat=100")
        with pytest.raises(WorkerDied, match="exit status 3"):
            gateway.remote_exec("import os; os._exit(3)").receive(10)


COORDINATOR = """
import sys, execnet
gateway = execnet.makegateway("popen//heartbeat=0.05//dead_after=1//grace=0.3")
channel = gateway.remote_exec('''
import os, time
channel.send(os.getpid())
try:
    time.sleep(1000)
finally:
    open(os.environ["MARK"], "w").close()
''')
print(channel.receive(), flush=True)
sys.stdin.read()
"""


def test_a_worker_ends_when_its_coordinator_is_silent(tmp_path: object) -> None:
    """Its code is interrupted, so that ``finally`` blocks run."""
    mark = f"{tmp_path}/mark"
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment(MARK=mark),
    )
    assert process.stdin
    assert process.stdout
    try:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not is_running(pid), 20)
        assert os.path.exists(mark)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


RESUMED = """
import sys, execnet
spec = f"ssh=host//python={sys.executable}//heartbeat=0.3//dead_after={sys.argv[1]}"
gateway = execnet.makegateway(spec)
channel = gateway.remote_exec("for item in channel: channel.send(item)")
gateway.remote_exec("import os; channel.send(os.getpid())").receive()
print(gateway.remote_status().pid, flush=True)
sys.stdin.readline()
channel.send(1)
try:
    print(channel.receive())
except EOFError as error:
    print(error)
execnet.default_group.terminate(1)
"""
SSH = """
import subprocess, sys
sys.exit(subprocess.call(["sh", "-c", sys.argv[-1]]))
"""


@pytest.fixture
def resumed(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a coordinator that leads a process group, with a worker behind a stand-in of ssh."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!{sys.executable}{SSH}")
    ssh.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def start(dead_after: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RESUMED, dead_after],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("long", [False, True])
def test_a_coordinator_that_was_stopped_comes_back(resumed: Any, long: bool) -> None:
    """The worker gives it twice the time, and says so if that was not enough."""
    process = resumed("1.5" if long else "3")
    worker = int(process.stdout.readline())
    started = [process.pid, *_descendants(process.pid)]
    stopped = [pid for pid in started if pid != worker and worker not in children_of(pid)]
    for pid in stopped:
        stop(pid)
    if long:
        wait_until(lambda: not is_running(worker), 20)
    else:
        time.sleep(3.6)  # longer than dead_after, and much less than twice of that
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    output, errors = process.communicate("go\n", timeout=30)
    if long:
        assert "gave up, exit status 1: its coordinator was silent for 3 s" in output
        assert "gw0-worker ends: its coordinator was silent for 3 s" in errors
    else:
        assert (output, errors) == ("1\n", "")


class QuietGateway:
    """A gateway as a pulse sees it."""

    _io = None

    class _writer:
        _frames: tuple[()] = ()

    class _channelfactory:
        direct = None

    def __init__(self) -> None:
        self._receiver_done = THREAD.Event()
        self._heard = 0
        self._reading = True
        self.posted: list[int] = []
        self.silences: list[str] = []

    def _post(self, code: int) -> None:
        self.posted.append(code)

    def _on_silence(self, reason: str) -> None:
        self.silences.append(reason)


class TestPulse:
    def test_each_beat_is_a_sign_of_life(self) -> None:
        gateway = QuietGateway()
        pulse = Pulse(gateway, 1.0, 4.0)
        assert [pulse.beat() for _ in range(3)] == [True] * 3
        assert gateway.posted == [12, 12, 12]

    def test_silence_counts_in_beats(self) -> None:
        gateway = QuietGateway()
        pulse = Pulse(gateway, 1.0, 3.0)
        assert [pulse.beat() for _ in range(4)] == [True, True, True, False]
        assert gateway.silences == ["silent for 3 s"]

    def test_whatever_comes_starts_the_count_anew(self) -> None:
        gateway = QuietGateway()
        pulse = Pulse(gateway, 1.0, 2.0)
        for _ in range(10):
            assert pulse.beat()
            gateway._heard += 1
        assert gateway.silences == []

    def test_who_does_not_read_hears_nothing_and_knows_it(self) -> None:
        gateway = QuietGateway()
        gateway._reading = False
        pulse = Pulse(gateway, 1.0, 2.0)
        assert all(pulse.beat() for _ in range(10))

    def test_a_beat_that_comes_late_says_nothing_of_the_peer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This process was stopped, and has not read yet what came meanwhile."""
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        gateway = QuietGateway()
        pulse = Pulse(gateway, 1.0, 1.0)
        gateway._heard = -1
        now[0] = 75.0
        assert pulse.beat()
        now[0] = 76.0
        assert not pulse.beat()
        assert gateway.silences == ["silent for 1 s"]

    def test_behind_the_end_nothing_is_watched(self) -> None:
        gateway = QuietGateway()
        gateway._receiver_done.set()
        assert not Pulse(gateway, 1.0, 2.0).beat()
        assert gateway.posted == []


@pytest.mark.needs_threads("greenlets beat in greenlets")
def test_one_thread_beats_for_all_and_ends_with_the_last(makegateway: MakeGateway) -> None:
    import threading

    def beating() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "execnet-heartbeat"]

    gateways = [makegateway("popen//heartbeat=1000") for _ in range(3)]
    assert len(beating()) == 1
    start = time.monotonic()
    for gateway in gateways:
        gateway.exit()
    wait_until(lambda: not beating())
    assert time.monotonic() - start < 100
