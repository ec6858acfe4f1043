"""Captured stderr: one thread for all, the last bytes kept, nothing left behind."""

from __future__ import annotations

import os
import threading

import pytest
from tools import BOUND_S, Resources, run_python, wait_until

from execnet import gateway_base
from execnet._ends import stderr


def threads() -> int:
    return sum(thread.name == "execnet-stderr" for thread in threading.enumerate())


class TestCapture:
    def test_what_is_written_is_kept_and_shown(self, capfd: pytest.CaptureFixture[str]) -> None:
        read, write = os.pipe()
        capture = stderr.capture(read)
        os.write(write, b"first\n")
        wait_until(lambda: capture.tail == b"first\n")
        os.write(write, b"second\n")
        os.close(write)
        assert capture.done.wait(BOUND_S)
        assert capture.tail == b"first\nsecond\n"
        assert capfd.readouterr().err == "first\nsecond\n"

    def test_only_the_last_of_it_is_kept(self, capfd: pytest.CaptureFixture[str]) -> None:
        read, write = os.pipe()
        capture = stderr.capture(read)
        data = b"".join(b"line %d\n" % number for number in range(20000))
        with os.fdopen(write, "wb") as file:
            file.write(data)
        assert capture.done.wait(BOUND_S)
        assert capture.tail == data[-stderr.TAIL_BYTES :]
        assert capfd.readouterr().err.encode() == data

    def test_closing_takes_what_is_there_though_the_pipe_stays_open(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = Resources.now()
        read, write = os.pipe()
        capture = stderr.capture(read)
        os.write(write, b"last words")
        capture.close()
        assert capture.tail == b"last words"
        capture.close()
        with pytest.raises(BrokenPipeError):
            os.write(write, b"more")
        os.close(write)
        before.assert_nothing_new()

    def test_many_share_one_thread_that_ends_with_the_last(self) -> None:
        pipes = [os.pipe() for _ in range(20)]
        captures = [stderr.capture(read) for read, _ in pipes]
        wait_until(lambda: threads() == 1)
        for _, write in pipes[1:]:
            os.close(write)
        for capture in captures[1:]:
            assert capture.done.wait(BOUND_S)
        wait_until(lambda: threads() == 1)
        os.close(pipes[0][1])
        wait_until(lambda: threads() == 0)
        read, write = os.pipe()
        capture = stderr.capture(read)
        wait_until(lambda: threads() == 1)
        os.close(write)
        assert capture.done.wait(BOUND_S)

    def test_without_a_thread_it_leaves_the_pipe_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("can't start new thread")

        before = Resources.now()
        monkeypatch.setattr(gateway_base._thread, "start_new_thread", fail)
        read, write = os.pipe()
        with pytest.raises(RuntimeError, match="new thread"):
            stderr.capture(read)
        monkeypatch.undo()
        os.close(read)
        os.close(write)
        before.assert_nothing_new()

    def test_opening_and_closing_in_turns_never_gets_stuck(self) -> None:
        def work() -> None:
            for number in range(100):
                read, write = os.pipe()
                capture = stderr.capture(read)
                os.write(write, b"")
                if number % 2:
                    os.close(write)
                    assert capture.done.wait(BOUND_S)
                else:
                    capture.close()
                    assert capture.done.is_set()
                    os.close(write)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_one_of_its_own() -> None:
    code = """
import os, sys, warnings
from execnet._ends import stderr
warnings.simplefilter("ignore", DeprecationWarning)
first, write = os.pipe()
kept = stderr.capture(first)
pid = os.fork()
if pid == 0:
    read, other = os.pipe()
    capture = stderr.capture(read)
    os.close(other)
    os._exit(0 if capture.done.wait(5) else 1)
print(os.waitpid(pid, 0)[1])
os.close(write)
print(kept.done.wait(5))
"""
    result = run_python(code)
    assert result.stdout == "0\nTrue\n"


IMPORT = {
    "gevent": "import gevent.monkey as monkey; patch = monkey.patch_all",
    "eventlet": "import eventlet; patch = eventlet.monkey_patch",
}


@pytest.mark.parametrize("model", sorted(IMPORT))
@pytest.mark.parametrize("patched", [False, True])
def test_it_gets_along_with_greenlets(model: str, patched: bool) -> None:
    """With those of a program that has turned its threads into greenlets, too."""
    pytest.importorskip(model, exc_type=ImportError)
    code = f"""
import warnings
warnings.simplefilter("ignore")
{IMPORT[model]}
if {patched}:
    patch()
import os
from execnet._ends import stderr
from execnet.gateway_base import get_execmodel
sleep = get_execmodel({model!r}).sleep
read, write = os.pipe()
capture = stderr.capture(read)
os.write(write, b"words\\n")
while not capture.tail:
    sleep(0.01)
capture.close()
print(capture.tail, capture.done.is_set())
"""
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("b'words\\n' True\n", "words\n")
