"""One worker that many go via: its threads do not grow in number, and nobody holds up another.

What a system lacks is taken away from it in some of these: its best poll, or the descriptors that
tell of a process's end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
from chains import MIB, echoed, pid_of, posix_only
from processes import children_of, is_gone, stop
from tools import BOUND_S, MakeGateway, find_python, wait_until

from execnet import BootstrapError, Gateway, Group
from execnet._via.stream import ViaIO

pytestmark = posix_only
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LACKING = {
    "all there": "",
    "no epoll": "import select; vars(select).pop('epoll', None)",
    "no pidfd": "import os; vars(os).pop('pidfd_open', None)",
}


def carrier(makegateway: MakeGateway, lacking: str = "", python: str = "") -> Gateway:
    option = f"//python={find_python(python)}" if python else ""
    gateway = makegateway(f"popen//id=between{option}")
    gateway.remote_exec(lacking).waitclose(BOUND_S)
    return gateway


@pytest.fixture(params=LACKING)
def between(request: pytest.FixtureRequest, makegateway: MakeGateway) -> Gateway:
    return carrier(makegateway, LACKING[request.param])


def number_of_threads(gateway: Gateway) -> int:
    return len(os.listdir(f"/proc/{pid_of(gateway)}/task"))


def start(via: Gateway, script: str, stderr: bool = False) -> ViaIO:
    """Start a shell's script, which is no worker; return the stream to it."""
    args = ["sh", "-c", script]
    request = {"args": args, "address": None, "stderr": stderr, "timeout": None}
    return ViaIO(via, request, args, None, via.execmodel)


def line_of(stream: ViaIO) -> str:
    data = b""
    while not data.endswith(b"\n"):
        data += stream.read_some(1)
    return data.decode()


@linux_only
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="else each process has a thread")
@pytest.mark.parametrize("lacking", ["all there", "no epoll"])
def test_no_further_worker_costs_a_thread(
    makegateway: MakeGateway, group: Group, lacking: str
) -> None:
    between = carrier(makegateway, LACKING[lacking])
    first = makegateway("popen//via=between")
    wait_until(lambda: number_of_threads(between) <= 4)  # main, receiver, and two that forward
    more = group.makegateways(["popen//via=between"] * 5)
    assert all(echoed(gateway, 1) == 1 for gateway in [first, *more])
    wait_until(lambda: number_of_threads(between) <= 4)


@linux_only
def test_stderr_of_all_is_read_by_one_thread(makegateway: MakeGateway) -> None:
    between = carrier(makegateway)
    streams = [start(between, "echo; read line; echo $line >&2", stderr=True) for _ in range(4)]
    for stream in streams:
        assert line_of(stream) == "\n"
    wait_until(lambda: number_of_threads(between) <= 5 + 4 * (not hasattr(os, "pidfd_open")))
    for number, stream in enumerate(streams):
        stream.write(b"%d\n" % number)
    assert [stream.wait() for stream in streams] == [0] * 4
    assert [stream.stderr_tail() for stream in streams] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("python", ["", "2.7", "pypy3.9"])
def test_the_last_words_on_stderr_are_kept_and_all_are_passed_on(
    makegateway: MakeGateway, capfd: pytest.CaptureFixture[str], python: str
) -> None:
    between = carrier(makegateway, python=python)
    stream = start(between, "seq 2000 >&2; read line; echo $line >&2; exit 4", stderr=True)
    stream.write(b"last\n")
    assert stream.wait() == 4
    tail = stream.stderr_tail().split()
    assert (tail[-2:], len(tail) > 500) == (["2000", "last"], True)
    assert capfd.readouterr().err.split()[-2001:] == [*map(str, range(1, 2001)), "last"]


def test_one_that_reads_nothing_holds_up_no_other(
    between: Gateway, makegateway: MakeGateway
) -> None:
    deaf, other = makegateway("popen//via=between"), makegateway("popen//via=between")
    channel = deaf.remote_exec("channel.send(sum(len(channel.receive()) for _ in range(16)))")
    assert echoed(deaf, 1) == 1
    stop(pid_of(deaf))
    sender = threading.Thread(target=lambda: [channel.send(b"x" * MIB) for _ in range(16)])
    sender.start()
    try:
        wait_until(lambda: deaf._io.input.under_way >= MIB)
        for item in [*range(200), b"x" * (5 * MIB)]:
            assert echoed(other, item) == item
        assert makegateway("popen//via=between").remote_status().numexecuting == 0
    finally:
        os.kill(pid_of(deaf), signal.SIGCONT)
    assert channel.receive(BOUND_S) == 16 * MIB
    sender.join(BOUND_S)


def test_one_whose_output_nobody_takes_holds_up_no_other(
    between: Gateway, makegateway: MakeGateway
) -> None:
    chatty, other = makegateway("popen//via=between"), makegateway("popen//via=between")
    go_on, came = threading.Event(), threading.Event()
    sizes: list[int] = []

    def take(item: bytes) -> None:
        sizes.append(len(item))
        came.set()
        assert go_on.wait(BOUND_S)

    channel = chatty.remote_exec("for _ in range(16): channel.send(b'x' * (1 << 20))")
    channel.setcallback(take)
    assert came.wait(BOUND_S)
    wait_until(lambda: chatty._io._data._items.qsize() >= 3)
    try:
        for item in [*range(200), b"x" * (5 * MIB)]:
            assert echoed(other, item) == item
    finally:
        go_on.set()
    channel.waitclose(BOUND_S)
    assert sizes == [MIB] * 16


@pytest.mark.parametrize("stderr", [False, True])
def test_nothing_of_one_that_ended_is_left_while_others_go_on(
    makegateway: MakeGateway, stderr: bool
) -> None:
    between = carrier(makegateway)
    other = makegateway("popen//via=between")
    assert echoed(other, 1) == 1
    code = "import gc; channel.send([type(one).__name__ for one in gc.get_objects()])"

    def forwarders() -> int:
        names: list[str] = between.remote_exec(code).receive(BOUND_S)
        return names.count("PolledForwarder")

    for _ in range(3):
        stream = start(between, "exit 3", stderr)
        assert (stream.read_some(1), stream.wait()) == (b"", 3)
    wait_until(lambda: forwarders() == 1)
    assert echoed(other, 1) == 1


class TestEnds:
    @pytest.fixture(params=[*LACKING, "2.7", "3.6", "pypy3.9"])
    def between(self, request: pytest.FixtureRequest, makegateway: MakeGateway) -> Gateway:
        lacking = LACKING.get(request.param)
        if lacking is None:
            return carrier(makegateway, python=request.param)
        return carrier(makegateway, lacking)

    def test_all_that_a_process_wrote_comes_before_its_status(self, between: Gateway) -> None:
        stream = start(between, f"head -c {20 * MIB} /dev/zero; exit 5")
        size = 0
        while data := stream.read_some(65536):
            size += len(data)
        assert (size, stream.wait()) == (20 * MIB, 5)

    def test_a_fork_that_writes_for_ever_does_not_hide_it(self, between: Gateway) -> None:
        stream = start(between, "yes & exit 7")
        while stream.read_some(65536):
            pass
        assert stream.wait() == 7

    def test_a_fork_that_holds_everything_open_does_not_hide_it(self, between: Gateway) -> None:
        stream = start(between, "sleep 100 & echo $!; echo words >&2; exit 3", stderr=True)
        pid = int(line_of(stream))
        try:
            assert stream.read_some(1) == b""
            assert stream.wait() == 3
            assert stream.stderr_tail() == "words"
            assert not is_gone(pid)
        finally:
            os.kill(pid, signal.SIGKILL)

    def test_what_was_not_read_does_not_keep_it(self, between: Gateway) -> None:
        stream = start(between, "echo; exit 6")
        assert line_of(stream) == "\n"
        for _ in range(3):
            try:
                stream.write(b"x" * MIB)
            except OSError:
                break
        assert stream.wait() == 6

    def test_its_last_byte_is_read_before_the_end_of_its_input(self, between: Gateway) -> None:
        stream = start(between, "wc -c; exit 2")
        stream.write(b"x" * (5 * MIB))
        stream.close_write()
        assert int(line_of(stream)) == 5 * MIB
        assert stream.wait() == 2


def test_a_process_for_which_there_is_no_thread_is_killed_and_told(
    makegateway: MakeGateway,
) -> None:
    between = carrier(makegateway)
    between.remote_exec("""
        model = channel.gateway.execmodel
        start = model.start
        def fail(func, args=(), name=""):
            if name == "execnet-via-write":
                raise RuntimeError("can't start new thread")
            start(func, args, name)
        model.start = fail
        """).waitclose(BOUND_S)
    with pytest.raises(BootstrapError, match="between can't start it: can't start new thread"):
        makegateway("popen//via=between")
    wait_until(lambda: all(map(is_gone, children_of(pid_of(between)))))
    assert echoed(between, 1) == 1
