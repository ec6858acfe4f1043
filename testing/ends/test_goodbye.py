"""Workers behind a network tell of their own ends, whatever they have left behind over there.

OpenSSH ends a stream when its command has closed stderr as well; so does the stand-in here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import is_running
from services import Sshd, script
from tools import BOUND_S, MakeGateway, find_python, wait_until

from execnet import Channel, Group, WorkerDied
from execnet._ends import last_words as last_words_module
from execnet._ends.last_words import LastWords
from execnet.gateway_base import (
    OF_WATCHED,
    OF_WATCHER,
    OF_WORKER,
    Message,
    StreamEnded,
    dumps_internal,
)

SOON_S = 5  # what is left behind lives for a hundred seconds

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="ssh is tested on POSIX"),
    pytest.mark.usefixtures("coordinator"),
]

SSH = f"""#!{sys.executable}
import os, subprocess, sys, threading
if "check" in sys.argv:
    sys.exit("Control socket connect: No such file or directory")
command = ["sh", "-c", sys.argv[-1]]
far = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
def pass_on(source, fd):
    while data := source.read(65536):
        os.write(fd, data)
reader = threading.Thread(target=pass_on, args=(far.stderr, 2), daemon=True)
reader.start()
pass_on(far.stdout, 1)
reader.join()
status = far.wait()
sys.exit(status if status >= 0 else 255)
"""
# What it leaves behind holds stderr, and if it is only forked stdout too.
LEAVE = {
    "a process": """
        import subprocess
        left = subprocess.Popen(["sleep", "100"]).pid
        """,
    "a fork": """
        import os, time
        left = os.fork()
        if not left:
            time.sleep(100)
            os._exit(0)
        """,
}
END = {
    "exits": ("import os; os._exit(3)", 3, None),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, 9),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, 11),
}


@pytest.fixture(scope="module", params=["stand-in", "sshd"])
def sshd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sshd | None]:
    sshd = Sshd(tmp_path_factory.mktemp("sshd")) if request.param == "sshd" else None
    yield sshd
    if sshd is not None:
        sshd.stop()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "bin" / "ssh"
    path.parent.mkdir()
    path.write_text(SSH)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return f"ssh=host//python={sys.executable}"


@pytest.fixture
def spec(request: pytest.FixtureRequest, sshd: Sshd | None) -> str:
    """A worker over ssh without a heartbeat, which would notice its end as well."""
    if sshd is None:
        return f"{request.getfixturevalue('stand_in')}//heartbeat=0"
    return f"ssh=loop//ssh_config={sshd.ssh_config}//heartbeat=0"


@pytest.fixture
def leave(nothing_is_left: None) -> Iterator[Callable[..., Channel]]:
    """Have a worker leave a process behind; what is sent to the channel is executed."""
    pids: list[int] = []

    def leave(gateway: Any, what: str) -> Channel:
        code = LEAVE[what] + "\n        channel.send(left)\n        exec(channel.receive())"
        channel: Channel = gateway.remote_exec(code)
        pids.append(channel.receive(BOUND_S))
        return channel

    yield leave
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class TestADeath:
    @pytest.mark.parametrize("what", LEAVE)
    @pytest.mark.parametrize("end", END)
    def test_is_told_at_once_with_what_ended_it(
        self, makegateway: MakeGateway, leave: Any, spec: str, what: str, end: str
    ) -> None:
        gateway: Any = makegateway(spec)
        channel = leave(gateway, what)
        code, status, number = END[end]
        start = time.monotonic()
        channel.send(code)
        with pytest.raises(WorkerDied) as caught:
            channel.receive(BOUND_S)
        assert (caught.value.exitcode, caught.value.signal) == (status, number)
        gateway.join(BOUND_S)
        assert gateway._io.popen.poll() is not None  # ssh has been ended
        assert time.monotonic() - start < SOON_S

    def test_within_a_frame_is_told_as_well(
        self, makegateway: MakeGateway, leave: Any, spec: str
    ) -> None:
        channel = leave(makegateway(spec), "a fork")
        channel.send("""
import os, signal, threading
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
channel.gateway._io.write(b"\\4" + bytes([0, 0, 0, 1, 0, 0x0f, 0, 0]) + b"x" * 1000)
signal.pause()
""")
        with pytest.raises(WorkerDied, match="killed by SIGKILL: its process has ended"):
            channel.receive(BOUND_S)

    def test_has_its_last_words_on_stderr(
        self, makegateway: MakeGateway, spec: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        channel = makegateway(spec).remote_exec(
            "import os; os.write(2, b'last words'); os._exit(7)"
        )
        with pytest.raises(WorkerDied, match="exit status 7") as caught:
            channel.receive(BOUND_S)
        assert caught.value.stderr == "last words"

    @pytest.mark.parametrize("version", ["2.7", "3.6", "3.13", "pypy"])
    def test_is_told_by_other_interpreters(
        self, makegateway: MakeGateway, leave: Any, stand_in: str, version: str
    ) -> None:
        python = find_python(version)
        spec = stand_in.partition("//")[0] + f"//python={python}//heartbeat=0"
        channel = leave(makegateway(spec), "a fork")
        channel.send(END["is killed"][0])
        with pytest.raises(WorkerDied, match="SIGKILL"):
            channel.receive(BOUND_S)

    def test_is_told_through_another_worker(self, group: Group, leave: Any, stand_in: str) -> None:
        group.makegateway("popen//id=jump")
        channel = leave(group.makegateway(stand_in + "//via=jump//heartbeat=0"), "a fork")
        start = time.monotonic()
        channel.send(END["is killed"][0])
        with pytest.raises(WorkerDied, match="SIGKILL") as caught:
            channel.receive(BOUND_S)
        assert caught.value.signal == signal.SIGKILL
        group.terminate(BOUND_S)
        assert time.monotonic() - start < SOON_S


class TestAnOrderlyEnd:
    @pytest.mark.parametrize("what", LEAVE)
    def test_does_not_take_as_long_as_what_is_left_behind_lives(
        self, makegateway: MakeGateway, group: Group, leave: Any, spec: str, what: str
    ) -> None:
        gateway: Any = makegateway(spec)
        channel = leave(gateway, what)
        channel.send("pass")
        channel.waitclose(BOUND_S)
        start = time.monotonic()
        group.terminate(BOUND_S)
        assert time.monotonic() - start < SOON_S
        assert gateway.exitcode is None

    def test_waits_for_the_exit_functions_of_the_worker(
        self, makegateway: MakeGateway, group: Group, spec: str, tmp_path: Path
    ) -> None:
        code = """
        import atexit, time
        name = channel.receive()
        @atexit.register
        def write():
            time.sleep(0.5)
            open(name, "w").close()
        """
        channel = makegateway(spec).remote_exec(code)
        channel.send(str(tmp_path / "mark"))
        channel.waitclose(BOUND_S)
        group.terminate(BOUND_S)
        assert (tmp_path / "mark").exists()

    def test_leaves_no_process_over_there(
        self, makegateway: MakeGateway, group: Group, spec: str
    ) -> None:
        channel = makegateway(spec).remote_exec(
            "import os; channel.send([os.getpid(), os.getppid()])"
        )
        worker, watcher = channel.receive(BOUND_S)
        channel.waitclose(BOUND_S)
        assert is_running(watcher)
        group.terminate(BOUND_S)
        wait_until(lambda: not is_running(worker) and not is_running(watcher))


class TestTheWatcher:
    def test_is_no_child_of_the_worker(self, makegateway: MakeGateway, stand_in: str) -> None:
        channel = makegateway(stand_in).remote_exec("""
            import os
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                channel.send("none")
        """)
        assert channel.receive(BOUND_S) == "none"

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted there")
    def test_holds_nothing_but_the_stream(self, makegateway: MakeGateway, stand_in: str) -> None:
        channel = makegateway(stand_in).remote_exec("import os; channel.send(os.getppid())")
        assert os.listdir(f"/proc/{channel.receive(BOUND_S)}/fd") == ["1"]

    def test_does_without_a_stderr(
        self, makegateway: MakeGateway, group: Group, stand_in: str
    ) -> None:
        spec = stand_in.replace("python=", "python=sh -c 'exec \"$@\" 2>&-' sh ")
        code = "import os; channel.send(os.getppid()); channel.receive(); os._exit(3)"
        channel = makegateway(spec).remote_exec(code)
        watcher = channel.receive(BOUND_S)
        assert is_running(watcher)
        channel.send(None)
        with pytest.raises(WorkerDied, match="exit status 3: its process has ended"):
            channel.receive(BOUND_S)
        wait_until(lambda: not is_running(watcher))

    def test_passes_a_signal_on(self, makegateway: MakeGateway, stand_in: str) -> None:
        channel = makegateway(stand_in).remote_exec(
            "import os; channel.send(os.getppid()); channel.receive()"
        )
        os.kill(channel.receive(BOUND_S), signal.SIGTERM)
        with pytest.raises(WorkerDied, match="killed by SIGTERM"):
            channel.receive(BOUND_S)

    def test_is_not_needed(self, makegateway: MakeGateway, group: Group, stand_in: str) -> None:
        gateway: Any = makegateway(stand_in)
        channel = gateway.remote_exec("import os; channel.send(os.getppid()); channel.receive()")
        os.kill(channel.receive(BOUND_S), signal.SIGKILL)
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1
        channel.send(None)
        channel.waitclose(BOUND_S)
        start = time.monotonic()
        group.terminate(BOUND_S)
        assert time.monotonic() - start < SOON_S

    def test_is_left_out_where_threads_would_stay_behind(
        self, makegateway: MakeGateway, stand_in: str, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import threading, time\n"
            "sleeper = threading.Thread(target=time.sleep, args=(1000,), daemon=True)\n"
            "sleeper.name = 'of old'\n"
            "sleeper.start()\n"
        )
        spec = stand_in.replace("python=", f"python=env PYTHONPATH={tmp_path} ")
        gateway = makegateway(spec)
        code = """
            import threading
            channel.send([thread.name for thread in threading.enumerate()])
        """
        assert "of old" in gateway.remote_exec(code).receive(BOUND_S)

    def test_does_not_run_where_the_end_shows(
        self, makegateway: MakeGateway, group: Group, stand_in: str
    ) -> None:
        code = "import os; channel.send(os.getppid())"
        assert makegateway().remote_exec(code).receive(BOUND_S) == os.getpid()
        shared = group.makegateways([stand_in + "//share=yes"] * 2)
        parents = {gateway.remote_exec(code).receive(BOUND_S) for gateway in shared}
        assert len(parents) == 1


def test_ctrl_c_does_not_end_ssh(makegateway: MakeGateway, spec: str) -> None:
    """A terminal sends it to all programs that run in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    gateway: Any = makegateway(spec)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    os.kill(gateway._io.popen.pid, signal.SIGINT)
    channel = gateway.remote_exec("for item in channel: channel.send(item)")
    for number in range(100):
        channel.send(number)
        assert channel.receive(BOUND_S) == number


def goodbye(status: int | None, reason: str, whose: int, marker: bytes = b"mark\n") -> bytes:
    data = dumps_internal((status, reason, whose, marker))
    frame = Message(Message.GOODBYE, 0, data)
    written: list[bytes] = []

    class Out:
        write = written.append

    frame.to_io(Out)
    return b"".join(written)


class TestLastWords:
    @pytest.mark.parametrize("status", [0, 3, 15, 255, -9, None])
    def test_a_goodbye_that_cuts_a_frame_is_found(self, status: int | None) -> None:
        words = LastWords(b"mark\n")
        words.keep(b"x" * 100_000)
        with pytest.raises(StreamEnded, match="its process has ended"):
            words.keep(b"x" * 10 + goodbye(status, "", OF_WATCHER))
        assert words.status == status
        assert words.is_certain

    def test_so_is_one_that_comes_in_pieces(self) -> None:
        words, data = LastWords(b"mark\n"), goodbye(3, "", OF_WATCHER)
        for position in range(len(data) - 1):
            words.keep(data[position : position + 1])
        with pytest.raises(StreamEnded):
            words.keep(data[-1:])

    def test_that_of_another_worker_is_not(self) -> None:
        LastWords(b"mark\n").keep(goodbye(3, "", OF_WATCHER, b"other"))
        LastWords(b"").keep(goodbye(3, "", OF_WATCHER, b""))

    def test_that_of_one_that_is_watched_is_not_the_last(self) -> None:
        words = LastWords(b"")
        words.take_goodbye(dumps_internal((1, "tired\x1b[2J", OF_WATCHED, b"")))
        with pytest.raises(StreamEnded):
            words.take_goodbye(dumps_internal((9, "", OF_WATCHER, b"")))
        assert (words.status, words.reason) == (9, "tired[2J")

    def test_that_of_one_that_is_not_ends_the_stream(self) -> None:
        words = LastWords(b"")
        with pytest.raises(StreamEnded):
            words.take_goodbye(dumps_internal((1, "tired", OF_WORKER, b"")))
        assert not words.is_certain

    def test_a_trace_is_read_to_its_end_and_shows_no_control_characters(self) -> None:
        words = LastWords(b"")
        words.keep(b"half a frame" + last_words_module.FAULT + b"Aborted\n")
        pieces = [b"File \x1b[2J", b"\xff line 3\n", b""]
        assert words.read_trace(lambda limit: pieces.pop(0))
        assert words.trace() == "Fatal Python error: Aborted\nFile ?[2J\\xff line 3\n"

    def test_one_without_end_is_cut(self) -> None:
        words = LastWords(b"")
        words.keep(last_words_module.FAULT)
        assert words.read_trace(lambda limit: b"x" * limit)
        assert len(words.trace()) < 4 * last_words_module.TRACE_BYTES

    def test_other_bytes_are_no_trace(self) -> None:
        words = LastWords(b"")
        words.keep(b"something else")
        assert not words.read_trace(lambda limit: b"")
        assert words.trace() == ""


def test_a_shared_ssh_is_not_ended_with_its_worker(
    makegateway: MakeGateway, leave: Any, stand_in: str, tmp_path: Path
) -> None:
    """It carries the connections of others, which are not done."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(SSH.replace("No such file", "No"))
    gateway: Any = makegateway(stand_in + "//heartbeat=0")
    pid = gateway._io.popen.pid
    script(ssh, f'echo "Master running (pid={pid})" >&2')
    channel = leave(gateway, "a process")
    channel.send(END["is killed"][0])
    with pytest.raises(WorkerDied, match="SIGKILL"):
        channel.receive(BOUND_S)
    assert gateway._io.popen.poll() is None
