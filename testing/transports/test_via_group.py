"""Gateways of one call that go via each other, and callbacks that send to those behind."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from chains import MIB, echoed, make_chain, pid_of, posix_only
from processes import stop
from tools import BOUND_S, wait_until

from execnet import Group
from execnet.gateway_bootstrap import BootstrapError


def test_a_spec_can_go_via_another_of_the_same_call(group: Group) -> None:
    specs = ["popen//via=c", "popen//id=c//via=b", "popen", "popen//id=b//via=a", "popen//id=a"]
    gateways = group.makegateways(specs)
    assert [gateway.id for gateway in gateways] == ["gw0", "c", "gw1", "b", "a"]
    assert list(group) == gateways
    assert echoed(gateways[0], 1) == 1


def test_specs_that_go_via_each_other_in_a_circle_are_refused(group: Group) -> None:
    with pytest.raises(ValueError, match=r"via=b: there is no such gateway, there are: "):
        group.makegateways(["popen//id=a//via=b", "popen//id=b//via=a", "popen"])
    assert len(group) == 0


def test_one_that_fails_behind_others_leaves_none_of_them(group: Group) -> None:
    with pytest.raises(BootstrapError, match="exit status 1"):
        group.makegateways(["popen//id=a", "popen//id=b//via=a", "popen//via=a//python=false"])
    assert len(group) == 0


@posix_only
@pytest.mark.parametrize("number", [1, 2])
def test_a_callback_of_a_gateway_may_send_to_one_behind_it_that_others_wait_for(
    group: Group, number: int
) -> None:
    gateways = make_chain(group, "", "", "")
    behind = gateways[number]
    channel = behind.remote_exec("channel.send(sum(len(channel.receive()) for _ in range(65)))")
    stop(pid_of(behind))
    sender = threading.Thread(target=lambda: [channel.send(b"x" * MIB) for _ in range(64)])
    sender.start()
    wait_until(lambda: behind._io.input.under_way >= MIB)
    called = threading.Event()

    def call(item: int) -> None:
        channel.send(b"y")
        called.set()

    trigger = gateways[0].remote_exec("channel.send(channel.receive())")
    trigger.setcallback(call)  # before the item comes, else it would be called in this thread
    trigger.send(1)
    wait_until(called.is_set)
    os.kill(pid_of(behind), signal.SIGCONT)
    assert channel.receive(BOUND_S) == 64 * MIB + 1
    sender.join(BOUND_S)
