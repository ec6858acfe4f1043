"""The harness of hostile peers: it sends all that there is, and sees what it is to see."""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import threading
from pathlib import Path

import hostile
import hostile_frames
import pytest
from hostile_user import CAN_BE_TWO, Neighbour
from tools import KIT, SOURCE, run_python

import execnet
from execnet.gateway_base import Message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")


def test_frames_of_every_code_are_sent() -> None:
    choose = random.Random(1)
    sent = {hostile_frames.one_frame(choose, 1)[0] for _ in range(1000)}
    assert sent == set(Message._types)


def test_a_call_that_does_not_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "WAIT_S", 0.01)
    ended = threading.Event()
    wait = hostile.Wait("a call", ended.wait)
    with pytest.raises(AssertionError, match="a call has not ended"):
        wait.check()
    ended.set()
    wait.join()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (execnet.TimeoutError("late"), "a call waited to its end: late"),
        (TimeoutError("late"), "a call waited to its end: late"),
        (KeyError("x"), "a call raised KeyError"),
    ],
)
def test_a_call_that_ends_as_it_should_not_is_seen(error: Exception, words: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(AssertionError, match=words):
        hostile.Wait("a call", fail).check()


def test_a_call_that_ends_with_an_error_of_ours_is_right() -> None:
    def fail() -> None:
        raise execnet.ProtocolError("it sent what can't be understood")

    hostile.Wait("a call", fail).check()


def test_a_flood_that_is_kept_is_seen() -> None:
    """In a process of its own, as one that has freed much need not take more to keep it."""
    done = run_python(
        """
import random
import hostile, hostile_frames
from execnet._ends import admission

for name in "EARLY_MAX", "EARLY_EACH_MAX", "EARLY_FRAMES_MAX":
    setattr(admission, name, 1 << 40)
code = hostile_frames.flood("RECONFIGURE of a channel that never comes", 1)
hostile.with_worker(random.Random(1), 10_000, code, lambda id: id, 3 * hostile.WAIT_S)
""",
        timeout_s=6 * hostile.WAIT_S,
        PYTHONPATH=os.pathsep.join([str(KIT), str(SOURCE)]),
    )
    assert re.search(r"AssertionError: \d+ MiB more, where 65 are allowed", done.stderr)


@pytest.mark.skipif(not CAN_BE_TWO, reason="only root can be another user as well")
def test_another_user_who_may_do_something_is_seen() -> None:
    with tempfile.TemporaryDirectory() as name:  # those of pytest are in one of a single user
        Path(name).chmod(0o777)
        path = Path(name, "server")
        path.touch()
        neighbour = Neighbour(Path(name), path)
        try:
            with pytest.raises(AssertionError, match="another user could remove: None"):
                neighbour.fail("remove", path)
        finally:
            neighbour.close()
