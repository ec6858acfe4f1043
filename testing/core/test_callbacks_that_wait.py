"""Callbacks that would wait for their own gateway, whose receiver thread runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway

import execnet
from execnet import Channel, DeadlockError, Gateway, Group
from execnet.gateway_base import ExecModel


def outcome(callable: Callable[[], Any]) -> Any:
    """Return what a call returned or raised."""
    try:
        return callable()
    except Exception as exc:
        return exc


def in_callback(gateway: Gateway, act: Callable[[], Any]) -> Any:
    """Return what a call came to in a callback of a gateway."""
    outcomes = gateway.execmodel.queue.Queue()
    channel = gateway.remote_exec("channel.send(channel.receive()); channel.receive()")
    channel.setcallback(lambda item: outcomes.put(outcome(act)))
    channel.send(1)  # what came before would be called back in this thread
    try:
        return outcomes.get(True, BOUND_S)
    finally:
        channel.send(None)
        channel.waitclose(BOUND_S)


WAITS: dict[str, Callable[[Gateway, Channel], Any]] = {
    "receive": lambda gateway, channel: channel.receive(),
    "receive with a timeout": lambda gateway, channel: channel.receive(BOUND_S),
    "iteration": lambda gateway, channel: next(channel),
    "waitclose": lambda gateway, channel: channel.waitclose(),
    "remote_status": lambda gateway, channel: gateway.remote_status(),
    "rinfo": lambda gateway, channel: gateway._rinfo(update=True),
    "dump_stacks": lambda gateway, channel: gateway.dump_stacks(),
    "join": lambda gateway, channel: gateway.join(),
}


@pytest.fixture
def model_group(nothing_is_left: None, execmodel: ExecModel) -> Any:
    group = Group(execmodel="thread")
    group.set_execmodel(execmodel, "thread")
    yield group
    group.terminate(BOUND_S)


class TestOfItsOwnGateway:
    @pytest.mark.parametrize("wait", WAITS)
    def test_a_wait_raises(self, model_group: Group, wait: str) -> None:
        gateway = model_group.makegateway()
        channel = gateway.remote_exec("channel.receive()")
        caught = in_callback(gateway, lambda: WAITS[wait](gateway, channel))
        assert isinstance(caught, DeadlockError)
        assert isinstance(caught, RuntimeError)
        assert "a callback of gw0 can't wait for" in str(caught)
        channel.send(None)
        channel.waitclose(BOUND_S)

    def test_what_is_queued_is_received(self, model_group: Group) -> None:
        gateway = model_group.makegateway()
        channel = gateway.remote_exec("channel.send(1); channel.send(2)")
        channel.waitclose(BOUND_S)
        assert in_callback(gateway, lambda: [channel.receive(), channel.receive(BOUND_S)]) == [1, 2]
        assert isinstance(in_callback(gateway, channel.receive), EOFError)
        assert in_callback(gateway, channel.waitclose) is None

    def test_to_look_is_not_to_wait(self, model_group: Group) -> None:
        gateway = model_group.makegateway()
        channel = gateway.remote_exec("channel.receive()")
        assert isinstance(in_callback(gateway, lambda: channel.receive(0)), execnet.TimeoutError)
        assert isinstance(in_callback(gateway, lambda: channel.waitclose(0)), execnet.TimeoutError)
        channel.send(None)

    def test_sending_goes_on(self, model_group: Group) -> None:
        gateway = model_group.makegateway()
        channel = gateway.remote_exec("channel.send(len(channel.receive()))")
        item = b"x" * 3_000_000
        assert in_callback(gateway, lambda: channel.send(item)) is None
        assert channel.receive(BOUND_S) == len(item)

    def test_sending_into_a_full_window_raises(self, model_group: Group) -> None:
        gateway = model_group.makegateway("popen//window=1000")
        channel = gateway.remote_exec("channel.gateway.newchannel().receive()")
        assert in_callback(gateway, lambda: channel.send(b"x" * 2000)) is None
        caught = in_callback(gateway, lambda: channel.send(b"x"))
        assert isinstance(caught, DeadlockError)

    def test_terminate_ends_the_worker(self, model_group: Group) -> None:
        gateway = model_group.makegateway()
        assert in_callback_of_one_that_ends(gateway, lambda: model_group.terminate(5)) is None
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()


def in_callback_of_one_that_ends(gateway: Gateway, act: Callable[[], Any]) -> Any:
    outcomes = gateway.execmodel.queue.Queue()
    channel = gateway.remote_exec("channel.send(channel.receive())")
    channel.setcallback(lambda item: outcomes.put(outcome(act)))
    channel.send(1)
    return outcomes.get(True, BOUND_S)


def test_a_wait_in_a_worker_raises_too(makegateway: MakeGateway) -> None:
    channel = makegateway().remote_exec(
        """
        other = channel.gateway.newchannel()
        outcomes = channel.gateway.execmodel.queue.Queue()
        def wait(item):
            try:
                other.receive()
            except Exception as exc:
                outcomes.put(type(exc).__name__)
        channel.setcallback(wait)
        channel.send("ready")
        channel.send(outcomes.get())
        """
    )
    assert channel.receive(BOUND_S) == "ready"
    channel.send(1)
    assert channel.receive(BOUND_S) == "DeadlockError"


def test_another_gateway_may_be_waited_for(group: Group) -> None:
    first, second = group.makegateways(["popen"] * 2)
    assert in_callback(first, lambda: second.remote_status().numexecuting) == 0


def test_but_not_one_that_goes_via_its_own(group: Group) -> None:
    carrier = group.makegateway("popen//id=carrier")
    carried = group.makegateway("popen//via=carrier")
    caught = in_callback(carrier, carried.remote_status)
    assert isinstance(caught, DeadlockError)
    assert "a callback of carrier can't wait" in str(caught)


def test_a_thread_with_the_number_of_a_receiver_that_has_ended_waits(group: Group) -> None:
    gateway = group.makegateway("popen")
    gateway.exit()
    gateway.join(BOUND_S)
    # Systems give the number of a thread that has ended to the next one.
    assert gateway._receiver_ident is None
