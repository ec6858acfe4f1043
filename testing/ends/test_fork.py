"""A process that was forked from the coordinator owns none of its gateways."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import pytest
from processes import is_running
from tools import FORKING, MakeGateway, run_python, wait_until

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system"),
]

HEAD = """
import os, sys, execnet
gateway = execnet.makegateway()
channel = gateway.remote_exec("for item in channel: channel.send(item)")
def in_child(function):
    pid = os.fork()
    if not pid:
        function()
        sys.stdout.flush()
        os._exit(0)
    return os.waitpid(pid, 0)[1]
"""

USES = {
    "a send": "channel.send(1)",
    "a receive": "channel.receive()",
    "a wait": "channel.waitclose()",
    "a new channel": "gateway.newchannel()",
    "an execution": "gateway.remote_exec('1')",
    "a status": "gateway.remote_status()",
    "stacks": "gateway.dump_stacks()",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_use_in_the_child_raises_at_once_and_says_why(use: str) -> None:
    result = run_python(
        f"""{HEAD}
def use():
    try:
        {use}
    except (OSError, EOFError) as exc:
        print(exc)
in_child(use)
channel.send(2)
print(channel.receive())
""",
        **FORKING,
    )
    why, item = result.stdout.splitlines()
    assert "of which this one is a fork" in why
    assert item == "2"
    assert result.stderr == ""


def test_the_childs_exit_ends_none_of_the_parents_workers() -> None:
    result = run_python(
        f"""{HEAD}
if not os.fork():
    sys.exit()  # runs what atexit has
os.wait()
channel.send(2)
print(channel.receive(), len(execnet.default_group))
""",
        **FORKING,
    )
    assert (result.stdout, result.stderr) == ("2 1\n", "")


def test_a_child_can_have_gateways_of_its_own() -> None:
    result = run_python(
        f"""{HEAD}
def use():
    with execnet.makegateway() as own:
        print(own.remote_exec("channel.send(3)").receive())
in_child(use)
""",
        **FORKING,
    )
    assert (result.stdout, result.stderr) == ("3\n", "")


def test_a_child_does_not_keep_the_workers_of_a_dead_parent_alive() -> None:
    result = run_python(
        f"""{HEAD}
read_end, write_end = os.pipe()
child = os.fork()
if not child:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.read(read_end, 1)  # outlives its parent
print(gateway._rinfo().pid, child, flush=True)
os.kill(os.getpid(), 9)
""",
        **FORKING,
    )
    worker, child = map(int, result.stdout.split())
    try:
        wait_until(lambda: not is_running(worker))
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads and fork
def test_multiprocessing_with_fork_works_beside_gateways(makegateway: MakeGateway) -> None:
    channel = makegateway().remote_exec("for item in channel: channel.send(item)")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.close()
        pool.join()
    channel.send(sys.version)
    assert channel.receive() == sys.version
