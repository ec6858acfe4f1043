"""Trees with ``resume=``: a worker whose hop has died is reached another way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from chains import pid_of
from cut_links import assert_gone, exchange, supervisor_of
from cut_ports import CutPort
from processes import stop
from services import FakeSsh
from socketservers import Serve, Server
from tools import BOUND_S, wait_until

from execnet import Gateway, Group, WorkerDied, XSpec
from execnet._ends.terminate import carriers_last
from execnet._resume import detours, near
from execnet._specs import Settings
from execnet._tree.plan import arranged

ECHOES = "for item in channel: channel.send(item)"
WAITS = "channel.send(1); channel.receive()"
RESUMES = f"//resume={BOUND_S:g}//grace=0.2"

MakeTree = Callable[..., list[Gateway]]


def sizes() -> list[int]:
    """Return the sizes of items some of which are under way at any time."""
    draw = random.Random("detours")
    return [draw.choice((3, 300, 30_000)) for _ in range(200)]


def kill(*gateways: Gateway) -> None:
    """Kill the workers of gateways, and wait until that is known here."""
    for gateway in gateways:
        os.kill(pid_of(gateway), signal.SIGKILL)
    for gateway in gateways:
        wait_until(lambda gateway=gateway: not gateway.hasreceiver())  # type: ignore[misc]


def carrier_of(gateway: Gateway) -> str:
    """Return the id of the gateway that another one goes via; "" for none."""
    return getattr(gateway._io.carrier, "id", "")


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve()


@pytest.fixture
def states(group: Group) -> list[str]:
    """What became of the connections of a group."""
    states: list[str] = []
    group.on_state(lambda gateway, state: states.append(f"{gateway.id} {state}"))
    return states


@pytest.fixture
def make_tree(group: Group, server: Server, states: list[str]) -> MakeTree:
    """Make hops of this machine, and a worker of a server via the first; it is the last."""

    def make(hops: int = 2, options: str = RESUMES) -> list[Gateway]:
        return group.tree([f"{hops}*popen", f"socket={server.address}{options}"], hops)

    return make


# ---------------------------------------------------------------- another way


def test_all_comes_once_and_in_order_when_the_hop_is_killed(
    make_tree: MakeTree, states: list[str]
) -> None:
    first, second, worker = make_tree()
    pid = pid_of(worker)
    exchange(worker, sizes(), halfway=lambda: os.kill(pid_of(first), signal.SIGKILL))
    assert (carrier_of(worker), worker.spec.via) == (second.id, first.id)
    assert worker._rinfo(update=True).pid == pid
    wait_until(lambda: states == ["gw2 lost", "gw2 resumed"])


def test_each_hop_may_die_and_then_it_is_reached_directly(make_tree: MakeTree) -> None:
    *hops, worker = make_tree(3)
    ways = []
    for hop in hops:
        exchange(worker, sizes(), halfway=lambda hop=hop: kill(hop))  # type: ignore[misc]
        ways.append(carrier_of(worker))
    assert ways == ["gw1", "gw2", ""]
    exchange(worker, sizes())


def test_a_direct_connection_is_made_anew_like_any_other(
    group: Group, server: Server, states: list[str]
) -> None:
    with CutPort(server.address) as port:
        spec = f"socket={port.address}//bound={server.address}{RESUMES}"
        hop, worker = group.tree(["popen", spec], 1)
        exchange(worker, sizes(), halfway=lambda: kill(hop))
        assert carrier_of(worker) == ""
        exchange(worker, sizes(), halfway=port.cut)
        wait_until(lambda: states == ["gw1 lost", "gw1 resumed"] * 2)
        group.terminate(BOUND_S)


def test_a_way_that_leads_nowhere_is_followed_by_the_next(
    fake_ssh: FakeSsh, tmp_path: Path, group: Group
) -> None:
    """The first other hop reaches nobody, the second another host of the same name."""
    sed = f"{shutil.which('sed')} -u"
    nowhere, elsewhere = tmp_path / "nowhere", tmp_path / "elsewhere"
    for folder in nowhere, elsewhere:
        folder.mkdir()
    fake_ssh(FakeSsh.RUN)
    FakeSsh(nowhere)("echo 'No route to host' >&2; exit 255")
    asked = f"{sed} s/execnet-resume-/execnet-nobody-/"
    told = f"{sed} 's/^unknown [^ ]* /unknown another-boot /'"
    FakeSsh(elsewhere)(f'for last; do :; done; {asked} | sh -c "$last" | {told}')
    path = os.environ["PATH"]
    hops = ["popen", *(f"popen//env:PATH={folder}:{path}" for folder in (nowhere, elsewhere))]
    worker = group.tree([*hops, f"ssh=host//python={sys.executable}{RESUMES}"], 3)[-1]
    before = len(fake_ssh.runs())
    exchange(worker, sizes(), halfway=lambda: kill(group[0]))
    assert carrier_of(worker) == ""
    assert [len(FakeSsh(folder).runs()) for folder in (nowhere, elsewhere)] == [1, 1]
    assert len(fake_ssh.runs()) == before + 1


def test_a_way_that_hangs_leaves_time_for_the_next(make_tree: MakeTree) -> None:
    first, second, worker = make_tree(2, "//resume=6//grace=0.2")
    pid = pid_of(second)
    stop(pid)
    exchange(worker, sizes(), halfway=lambda: kill(first))
    assert carrier_of(worker) == ""
    os.kill(pid, signal.SIGCONT)


def test_a_real_tree_over_ssh_goes_on_without_one_of_its_hops(spec: str, group: Group) -> None:
    python = f"//python={sys.executable}"
    tree = group.tree([f"{spec}{python}{RESUMES}"] * 5, fanout=2)
    deepest = group.tree([f"{spec}{python}"], fanout=1)  # not of this tree
    assert [gateway.spec.via for gateway in tree] == [None, None, "gw0", "gw0", "gw1"]
    channels = [gateway.remote_exec(ECHOES) for gateway in tree[2:]]
    exchange(tree[2], sizes(), halfway=lambda: kill(tree[0]))
    for number, channel in enumerate(channels):
        channel.send(number)
        assert channel.receive(BOUND_S) == number
    assert [carrier_of(gateway) for gateway in [*tree[2:], *deepest]] == ["gw1", "gw1", "gw1", ""]


def test_what_is_beyond_a_worker_that_moves_stays_there(group: Group, server: Server) -> None:
    spec = f"socket={server.address}{RESUMES}"
    tree = group.tree(["popen", "popen", *[spec] * 5], fanout=2)
    assert [gateway.spec.via for gateway in tree[2:]] == ["gw0", "gw0", "gw1", "gw1", "gw2"]
    exchange(tree[6], sizes(), halfway=lambda: kill(tree[0]))
    wait_until(lambda: carrier_of(tree[3]) == "gw1")  # nobody needs it so far
    assert [carrier_of(gateway) for gateway in tree[2:]] == ["gw1"] * 4 + ["gw2"]
    kill(tree[2])
    exchange(tree[6], sizes())
    assert carrier_of(tree[6]) == "gw3"


def test_a_hop_that_is_out_of_reach_is_waited_for_half_of_the_time(
    group: Group, server: Server, states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "FIRST_PAUSE_S", BOUND_S)  # as late in the first half it may be
    beats = "//heartbeat=0.2//dead_after=2"
    with CutPort(server.address) as port, ExitStack() as after:
        hop = f"socket={port.address}//bound={server.address}//resume={BOUND_S:g}{beats}"
        spec = f"socket={server.address}//resume=6//grace=0.2{beats}"
        tree = group.tree([hop, "popen", spec], fanout=2)
        after.callback(group.terminate, BOUND_S)
        channel = tree[2].remote_exec(ECHOES)
        port.go_down()
        channel.send(1)
        assert channel.receive(BOUND_S) == 1
        assert carrier_of(tree[2]) == "gw1"
        assert tree[0].hasreceiver()
        port.go_up()
        wait_until(lambda: "gw0 resumed" in states)
        assert carrier_of(tree[2]) == "gw1"


def test_a_callback_of_the_other_hop_never_waits_for_the_lost_worker(
    make_tree: MakeTree,
) -> None:
    first, second, worker = make_tree()
    beyond = worker.remote_exec("for item in channel: channel.send(len(item))")
    count, sent = 12, threading.Event()  # more than what is kept without an answer

    def send(_: int) -> None:
        for _ in range(count):
            beyond.send(b"x" * (1 << 20))
        sent.set()

    stop(pid_of(worker))  # so that nothing is acknowledged
    channel = second.remote_exec("channel.send(channel.receive()); channel.receive()")
    channel.setcallback(send)
    channel.send(1)  # only now, as what had come before would be given to the callback here
    kill(first)
    os.kill(worker._rinfo().pid, signal.SIGCONT)
    assert sent.wait(BOUND_S)
    assert [beyond.receive(BOUND_S) for _ in range(count)] == [1 << 20] * count
    assert carrier_of(worker) == second.id


# ---------------------------------------------------------------- no other way


def test_without_another_way_the_error_says_which_hop_died_and_what_was_tried(
    group: Group, server: Server
) -> None:
    with CutPort(server.address) as port:
        spec = f"socket={port.address}//bound={server.address}//resume=4//grace=0.2"
        first, second, worker = group.tree(["popen", "popen", spec], 2)
        channel = worker.remote_exec(WAITS)
        assert channel.receive(BOUND_S) == 1
        pid = pid_of(worker)
        supervisor = supervisor_of(pid)
        port.go_down()
        kill(first)
        with pytest.raises(WorkerDied) as caught:
            channel.receive(BOUND_S)
    assert caught.value.hop == first.id
    text = str(caught.value)
    assert "gw2 was given up: it was out of reach for 4 s; gw0, which it went via, has " in text
    assert "ended: worker gw0 died, killed by SIGKILL: the stream ended; via gw1: " in text
    assert "; directly: " in text
    assert_gone(pid, supervisor)
    assert second.hasreceiver()


def test_a_way_that_hangs_to_the_end_is_told_of(make_tree: MakeTree) -> None:
    first, second, worker = make_tree(2, "//resume=1//grace=0.2")
    channel = worker.remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    pid = pid_of(second)
    stop(pid)
    kill(first)
    with pytest.raises(WorkerDied, match=r"killed by SIGKILL.*; via gw1: .*silent") as caught:
        channel.receive(BOUND_S)
    os.kill(pid, signal.SIGCONT)
    assert caught.value.hop == "gw0"


@pytest.mark.parametrize(
    "options", ["//grace=0.2", pytest.param(RESUMES, id="resume, at a path of one machine")]
)
def test_what_no_other_way_leads_to_ends_with_its_hop(
    group: Group, serve: Serve, tmp_path: Path, options: str
) -> None:
    address = f"unix:{tmp_path / 'at'}" if "resume" in options else serve().address
    more = "//authentication=none" if "unix" in address else ""
    if more:
        serve(address, "--no-authentication")
    tree = group.tree(["popen", "popen", f"socket={address}{more}{options}"], 2)
    channel = tree[2].remote_exec(WAITS)
    assert channel.receive(BOUND_S) == 1
    supervisor = supervisor_of(pid_of(tree[2])) if more else 0
    kill(tree[0])
    with pytest.raises(WorkerDied, match="gw0, which it goes via, has ended") as caught:
        channel.receive(BOUND_S)
    assert caught.value.hop == "gw0"
    if supervisor:
        os.kill(supervisor, signal.SIGKILL)


def test_a_worker_that_ended_meanwhile_is_told_of_as_such(group: Group, server: Server) -> None:
    with CutPort(server.address) as port, ExitStack() as after:
        spec = f"socket={port.address}//bound={server.address}{RESUMES}"
        first, _, worker = group.tree(["popen", "popen", spec], 2)
        after.callback(group.terminate, BOUND_S)
        channel = worker.remote_exec(WAITS)
        assert channel.receive(BOUND_S) == 1
        pid = pid_of(worker)
        supervisor = supervisor_of(pid)
        connected = len(os.listdir(f"/proc/{supervisor}/fd"))
        kill(first)
        port.go_down()
        wait_until(lambda: len(os.listdir(f"/proc/{supervisor}/fd")) < connected)
        os.kill(pid, signal.SIGKILL)
        port.go_up()
        with pytest.raises(WorkerDied, match="SIGKILL") as caught:
            channel.receive(BOUND_S)
        assert (caught.value.exitcode, caught.value.hop) == (-signal.SIGKILL, "")


# ---------------------------------------------------------------- the end


def test_a_kill_goes_another_way_too(make_tree: MakeTree) -> None:
    first, _, worker = make_tree()
    pid = pid_of(worker)
    supervisor = supervisor_of(pid)
    stop(pid)
    kill(first)
    worker._io.kill()
    assert worker._io.wait() == -signal.SIGKILL
    assert_gone(pid, supervisor)


def test_the_group_ends_one_that_has_moved_before_its_new_hop(
    make_tree: MakeTree, group: Group
) -> None:
    first, _, worker = make_tree()
    pid = pid_of(worker)
    supervisor = supervisor_of(pid)
    exchange(worker, sizes(), halfway=lambda: kill(first))
    group.terminate(BOUND_S)
    assert_gone(pid, supervisor)


def test_whatever_may_lead_to_a_lost_worker_ends_after_it(
    make_tree: MakeTree, group: Group, server: Server, states: list[str]
) -> None:
    first, second, worker = make_tree(2, "//resume=1//grace=0.2")
    assert list(carriers_last(list(group))) == [[second, worker], [first]]
    pid = pid_of(worker)
    supervisor = supervisor_of(pid)
    server.stop(signal.SIGKILL)
    kill(first)
    wait_until(lambda: states == ["gw2 lost"])
    assert list(carriers_last(list(group))) == [[worker], [first, second]]
    assert_gone(pid, supervisor)


# ---------------------------------------------------------------- which ways


@pytest.mark.parametrize(
    ("spec", "leads"),
    [
        ("ssh=h", True),
        ("vagrant_ssh=h", True),
        ("socket=h:1", True),
        ("socket=unix:/p", False),
        ("docker=h", False),
        ("kubectl=h", False),
    ],
)
def test_only_an_address_leads_to_the_same_machine_from_everywhere(spec: str, leads: bool) -> None:
    assert detours.leads_anywhere(Settings(XSpec(f"{spec}//resume=1"))) == leads


def test_the_children_of_a_dead_hop_are_spread_over_its_level() -> None:
    specs = [XSpec(f"ssh=h//id={number}") for number in range(12)]
    arranged([Settings(spec) for spec in specs], 4)
    found = [vars(spec).get("_level") for spec in specs]
    ids = ["0", "1", "2", "3"]
    assert found[:4] == [None] * 4
    assert found[4:] == [(ids, start) for start in (1, 2, 2, 3, 3, 0, 0, 1)]
